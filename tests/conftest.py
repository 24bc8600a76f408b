import pytest
import torch

from mirlab.model import precision

pytest.register_assert_rewrite("streams")


@pytest.fixture
def one_thread():
    """Small matrices are slower with more, and sums come out the same everywhere with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bfloat16(monkeypatch):
    """A context manager for low precision in the surroundings: the laboratory's option, on every CPU."""
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    with precision.use("bfloat16"):
        yield precision.multiplying


LONGEST = [
    "test_pages.py",
    "test_the_model.py",
    "test_distributed.py",
    "test_execute_pages.py",
    "test_notebook_server.py",
    "test_readme.py",
    "test_train_in_page.py",
    "test_ask_the_model.py",
    "test_train.py",
    "test_notebooks_stored.py",
    "test_sweep.py",
]
"""Files that take longest, twenty seconds and more: `make test` begins with them, so that no core waits in the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
