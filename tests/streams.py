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


def narrowing(seed=0, samples=40):
    """The like, whose norms spread widely in the first samples and hardly at all later: no bounds of a part hold."""
    vision, text = hidden_states(seed, samples)
    for states, few in ((vision, 4), (text[:1], 6)):
        norms = torch.linspace(0.9, 1.1, samples * TOKENS, dtype=torch.float64).view(samples, TOKENS)
        norms[:few] = torch.linspace(0.1, 1.9, few * TOKENS, dtype=torch.float64).view(few, TOKENS)
        states *= (norms / states.norm(dim=-1))[..., None]
    return vision, text


def agree(a, b, rel=1e-12):
    assert np.isclose(a.value, b.value, rtol=rel, atol=0)
    for name in ("per_layer", "mean_term", "covariance_term", "norm_ratio", "scale", "bias"):
        assert np.allclose(getattr(a, name), getattr(b, name), rtol=rel * 10, atol=0), name
    assert np.isclose(a.norm_only, b.norm_only, rtol=rel, atol=0)
    assert np.isclose(a.zeroed_rows, b.zeroed_rows, rtol=rel, atol=0)
    assert {k: v.tolist() for k, v in a.outliers.items()} == {k: v.tolist() for k, v in b.outliers.items()}
    assert a.rows == b.rows


def same_interval(found, expected, order=None, rel=1e-9):
    """``order``: which sample of the expected result stands at each place of the other."""
    assert (found.interval is None) == (expected.interval is None)
    if expected.interval is not None:
        assert found.interval.method == expected.interval.method
        assert found.interval.degrees == expected.interval.degrees
        assert np.allclose(found.interval[:4], expected.interval[:4], rtol=rel, atol=0)
    assert (found.influence is None) == (expected.influence is None)
    if expected.influence is not None:
        assert found.influence.paired == expected.influence.paired
        for side in ("vision", "text"):
            a, b = getattr(found.influence, side), getattr(expected.influence, side)
            b = b if order is None else b[:, order]
            assert np.allclose(a, b, rtol=0, atol=rel * np.abs(b).max()), side


def batch(states, chosen):
    """(K, n, tokens, d) to K matrices of the chosen samples' rows."""
    return states[:, list(chosen)].flatten(1, 2)


def feed(metric, vision, text, batches):
    for chosen in batches:
        ids = torch.tensor(list(chosen)).repeat_interleave(TOKENS)
        metric.update(batch(vision, chosen), batch(text, chosen), samples=(ids, ids))


def stream(vision, text, batches, *, metric=None, **options):
    """All passes that the metric asks for."""
    metric = metric or ModalityIntegrationRate(LAYERS, vision.shape[-1], **options)
    feed(metric, vision, text, batches)
    while metric.needs_second_pass():
        metric.begin_second_pass()
        feed(metric, vision, text, batches)
    return metric


KINDS = ("norms", "aside", "_maps")


def bytes_of_state(metric):
    """Bytes by kind of all tensors that a metric holds, each storage once."""
    found, seen = {}, set()

    def look(value, kind):
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                found[kind] = found.get(kind, 0) + storage.nbytes()
        elif isinstance(value, dict):
            for part in value.values():
                look(part, kind)
        elif isinstance(value, (list, tuple)):
            for part in value:
                look(part, kind)
        elif hasattr(value, "__dict__") and type(value).__module__.startswith("mirlib"):
            for name, part in vars(value).items():
                look(part, {"running": "moments", "unit": "moments"}.get(name, name if name in KINDS else kind))

    for name, value in vars(metric).items():
        if name in ("_layers", "_influences", "_known"):
            look(value, name)
    return found


def measure(share, batch_size, dim=DIM, make=None, **options):
    """All passes over some samples; returns the metric."""
    vision, text = narrowing() if make == "narrowing" else hidden_states(seed=4, samples=2 * SAMPLES, dim=dim)
    share = list(share)
    batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    return stream(vision, text, batches, **options)


def worker(rank, port, cases, folder):
    """One process: for each case ``(shares, options)`` its share, and what it found written to ``folder``."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=len(cases[0][0]))
    try:
        found = []
        for shares, options in cases:
            metric = measure(shares[rank], rank + 1, **options)  # each process has its own batch size
            before = metric._layers[0][0].sums.clone()
            computed, result = float(metric.compute()), metric.result()
            kept = torch.equal(metric._layers[0][0].sums, before)
            found.append((computed, result, metric.result(), kept))
        with open(os.path.join(folder, f"{rank}.pickle"), "wb") as file:
            pickle.dump(found, file)
    finally:
        torch.distributed.destroy_process_group()
