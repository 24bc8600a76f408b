"""How noisy are runs? The pilot of the second edition, before its experiments run and apart from their seeds.

The plain recipe is run with two seeds for each set of parts, and so is the same with half of the data. A seed sets the
projector's first weights, so two seeds differ in more than two arms of one seed do: `mirlab.power` takes both apart.
Four amounts of data at batch 64 give the means that rank correlations are asked about.

The pilot is a second gate, too: experiments on remedies are to run past the phase transition in which a model comes to
see colours and shapes. A set of parts with a plain run below an accuracy of `PAST` is not past it and is replaced. This
was decided when set 13 was seen to fail it (.65 and .48, where ten runs of the others gave .67 to .71). One run of an
experiment had been seen by then, of set 10.
"""

from dataclasses import replace

from mirlab.experiments import Experiment
from mirlab.recipes import arm

SEEDS = range(100, 112)
AMOUNTS = (4096, 8192, 16384, 32768)
PAST = 0.6
MEASURED = {"probes": (64, 256), "leaning": True, "long_tokens": True}

EXPERIMENT = Experiment(
    name="pilot",
    figure="",
    summary="Noise of runs, for the power of all other experiments; seeds from 100 on.",
    question="By how much do runs of one recipe differ, between seeds and within?",
    paper="One run of each.",
    arms={
        "plain": arm(seeds=SEEDS, **MEASURED),
        "8192 pairs": arm(seeds=SEEDS, pairs=8192, leaning=True),
        **{
            f"{name}, set 13": tuple(replace(run, parts=13) for run in arm(seeds=(104, 110), **options))
            for name, options in (("plain", MEASURED), ("8192 pairs", {"pairs": 8192}))
        },
        **{f"{pairs} pairs, batch 64": arm(seeds=(100, 101), pairs=pairs, batch=64) for pairs in AMOUNTS},
    },
    claims=(),
)
