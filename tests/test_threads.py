"""Narrow problems run on one thread, and the libraries that compute are looked for only once."""

import pytest
from threadpoolctl import threadpool_limits

from mirlib import frechet


def threads():
    """Threads of each library that computes here; others that some test has loaded do not count."""
    return {pool["filepath"]: pool["num_threads"] for pool in frechet._thread_pools().info()}


def test_a_narrow_problem_takes_one_thread_and_gives_the_others_back():
    assert {pool["user_api"] for pool in frechet._thread_pools().info()} >= {"blas", "openmp"}  # NumPy's and PyTorch's
    with threadpool_limits(2):
        before = threads()
        assert 2 in before.values()
        with frechet.threads_for(16):
            assert set(threads().values()) == {1}
        assert threads() == before
        with frechet.threads_for(frechet.SMALL + 1):
            assert threads() == before


def test_the_libraries_are_not_looked_for_again(monkeypatch):
    with frechet.threads_for(16):
        pass
    monkeypatch.setattr(frechet, "ThreadpoolController", lambda: pytest.fail("the libraries were searched again"))
    with frechet.threads_for(16), frechet.threads_for(8):
        pass
