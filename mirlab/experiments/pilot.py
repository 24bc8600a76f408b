"""How noisy are runs? The pilot of the second edition, before its experiments run and apart from their seeds.

The plain recipe is run twice with each set of parts, at two sizes: what two runs of one set differ by is the noise of
every comparison of arms. Four amounts of data at batch 64 give the means that rank correlations are asked about. From
these `mirlab.power` computes the oracle's rate of every claim (`results/ceilings.json`).
"""

from mirlab.experiments import Experiment
from mirlab.recipes import arm

ONCE, AGAIN = range(100, 106), range(106, 112)
AMOUNTS = (4096, 8192, 16384, 32768)
MEASURED = {"probes": (64, 256), "leaning": True, "long_tokens": True}

EXPERIMENT = Experiment(
    name="pilot",
    figure="",
    summary="Noise of runs, for the power of all other experiments; seeds from 100 on.",
    question="By how much do two runs of one set of parts differ?",
    paper="One run of each.",
    arms={
        "plain, once": arm(seeds=ONCE, **MEASURED),
        "plain, again": arm(seeds=AGAIN, **MEASURED),
        "8192 pairs, once": arm(seeds=ONCE, pairs=8192),
        "8192 pairs, again": arm(seeds=AGAIN, pairs=8192),
        **{f"{pairs} pairs, batch 64": arm(seeds=(100, 101), pairs=pairs, batch=64) for pairs in AMOUNTS},
    },
    claims=(),
)
