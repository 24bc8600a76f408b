import pytest
import torch

pytest.register_assert_rewrite("streams")


@pytest.fixture
def one_thread():
    """Small matrices are slower with more, and sums come out the same everywhere with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LONGEST = [
    "test_distributed.py",
    "test_pages.py",
    "test_readme.py",
    "test_callback.py",
    "test_sweep.py",
    "test_rerun.py",
    "test_planning.py",
    "test_notebook_server.py",
    "test_scoring.py",
    "test_train.py",
    "test_execute_pages.py",
]
"""Files that take longest, half a minute and more: `make test` begins with them, so that no core waits in the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
