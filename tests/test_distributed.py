"""Several processes, each with its own share of the samples, find what one process finds."""

import multiprocessing
import pickle
import socket

import numpy as np
import pytest
import torch.multiprocessing
from streams import SAMPLES, agree, measure, worker

GROUPS = 6
ALL = range(2 * SAMPLES)
CASES = {
    2: {
        "two halves": ((ALL[:12], ALL[12:]), {}),
        "two unequal shares, one pass": ((ALL[:5], ALL[5:]), {"outliers": "none"}),
        "one process without samples": ((ALL, ALL[:0]), {}),
        "every other sample, not normalised": ((ALL[::2], ALL[1::2]), {"normalize": False}),
    },
    3: {"three unequal shares": ((ALL[:1], ALL[1:15], ALL[15:]), {})},
}


@pytest.fixture(scope="module", params=list(CASES), ids=lambda n: f"{n} processes")
def found(request, tmp_path_factory):
    """``(case, what each process found)`` of all cases with this number of processes."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cases = CASES[request.param]
    multiprocessing.set_forkserver_preload(["streams"])  # PyTorch is imported once instead of once a process
    torch.multiprocessing.start_processes(
        worker,
        (port, list(cases.values()), GROUPS, str(folder)),
        nprocs=request.param,
        start_method="forkserver",
    )
    ranks = [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(request.param)]
    return list(zip(cases, cases.values(), zip(*ranks, strict=True), strict=True))


def test_processes_find_what_one_process_finds(found):
    for name, (_, options), ranks in found:
        alone = measure(ALL, 4, GROUPS, **options).result()
        assert alone.interval.standard_error > 0
        if not options:
            assert alone.outliers["vision"].sum() > 0, "no outliers: the shared bounds are not tested"
        for computed, result, again, kept in ranks:
            agree(result, alone, rel=1e-9)
            assert computed == result.value, name
            assert np.allclose(result.interval[:3], alone.interval[:3], rtol=1e-9), name
            assert result.interval.standard_error == pytest.approx(alone.interval.standard_error, rel=1e-9), name
            agree(again, result, rel=1e-15)
            assert kept, f"{name}: a process kept the sums of the others, so that they would count twice"


def test_a_process_alone_would_have_found_something_else(found):
    """Without this the test above could pass on shares that are all alike."""
    for name, (shares, options), ranks in found:
        part = measure(shares[-1] if len(shares[-1]) else shares[0][:12], 4, GROUPS, **options).result()
        assert abs(part.value - ranks[0][1].value) > 1e-4, name
