"""Hidden states in samples, how to compare results, and a process of its own that streams its share of them.

It imports little, since every process of a distributed test imports it again.
"""

import os
import pickle

import numpy as np
import torch
import torch.distributed

from mirlib.streaming import ModalityIntegrationRate

LAYERS, DIM, SAMPLES, TOKENS = 2, 4, 12, 6


def hidden_states(seed=0, samples=SAMPLES, dim=DIM, dtype=torch.float64):
    """(K, samples, tokens, d) of each modality, with two outlier rows that the 3σ rule catches."""
    rng = np.random.default_rng(seed)
    vision = 3 * rng.normal(size=(LAYERS, samples, TOKENS, dim)) + 1
    text = rng.normal(size=(LAYERS, samples, TOKENS, dim))
    vision[0, 2, 1] *= 30
    text[1, 3, 0] *= 30
    return torch.tensor(vision, dtype=dtype), torch.tensor(text, dtype=dtype)


def agree(a, b, rel=1e-12):
    assert np.isclose(a.value, b.value, rtol=rel, atol=0)
    for name in ("per_layer", "mean_term", "covariance_term", "norm_ratio", "scale", "bias"):
        assert np.allclose(getattr(a, name), getattr(b, name), rtol=rel * 10, atol=0), name
    assert np.isclose(a.norm_only, b.norm_only, rtol=rel, atol=0)
    assert np.isclose(a.zeroed_rows, b.zeroed_rows, rtol=rel, atol=0)
    assert {k: v.tolist() for k, v in a.outliers.items()} == {k: v.tolist() for k, v in b.outliers.items()}
    assert a.rows == b.rows


def measure(share, batch_size, groups, **options):
    """Both passes over some samples, each in the jackknife group that its number gives it; returns the metric."""
    vision, text = hidden_states(seed=4, samples=2 * SAMPLES)
    metric = ModalityIntegrationRate(LAYERS, DIM, groups=groups, confidence=0.95, **options)
    share = list(share)
    for step in range(metric.passes):
        if step:
            metric.begin_second_pass()
        for start in range(0, len(share), batch_size):
            chosen = share[start : start + batch_size]
            ids = torch.tensor([number * groups // (2 * SAMPLES) for number in chosen]).repeat_interleave(TOKENS)
            metric.update(vision[:, chosen].flatten(1, 2), text[:, chosen].flatten(1, 2), groups=ids)
    return metric


def worker(rank, port, cases, groups, folder):
    """One process: for each case ``(shares, options)`` its share, and what it found written to ``folder``."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=len(cases[0][0]))
    try:
        found = []
        for shares, options in cases:
            metric = measure(shares[rank], rank + 1, groups, **options)  # each process has its own batch size
            before = metric.norm_sums.clone()
            computed, result = float(metric.compute()), metric.result()
            kept = torch.equal(metric.norm_sums, before)
            found.append((computed, result, metric.result(), kept))
        with open(os.path.join(folder, f"{rank}.pickle"), "wb") as file:
            pickle.dump(found, file)
    finally:
        torch.distributed.destroy_process_group()
