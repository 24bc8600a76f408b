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
