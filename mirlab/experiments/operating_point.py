"""Does the noise of a small batch set the sign of MIR against data? Pre-registration A, at LLaVA's operating point.

The relative step of LLaVA-1.5 (rate over the root mean square of the first weights) is reached here near a rate of
.008. Rates .008 and .02, each with batches of 8 and of 64, from 2048 to 65,536 pairs; warm-up is 3 % of the steps, and
at batch 64 also a fixed number of steps: 15, the 3 % of 32,768 pairs, so that one run serves as both.

Deciding, at each rate: the change of MIR from 8192 to 32,768 pairs at batch 64, and that change minus the one at batch
8. "The paper's direction" if the first lies below 0, "batch decides" if the second does; "the opposite holds" if the
first lies above 0. Student's t over six seeds, Holm over the four.
"""

from mirlab.claims import BELOW, Effect, lower_mir
from mirlab.experiments import Experiment
from mirlab.recipes import arm

RATES = {".008": 8e-3, ".02": 2e-2}
FIXED = 15

SIZE = -0.31
"""Change of MIR for which the oracle is asked, as large as the rise that the first edition saw, the other way."""


def _arms() -> dict:
    arms = {}
    for name, rate in RATES.items():
        for batch, amounts in ((8, (2048, 8192, 32768)), (64, (8192, 32768, 65536))):
            for pairs in amounts:
                zoo = name == ".008" and batch == 64  # those of data_scale
                arms[f"{name}, batch {batch}, {pairs}"] = arm(pairs=pairs, batch=batch, learning_rate=rate, zoo=zoo)
        for pairs in (8192, 65536):
            fixed = arm(pairs=pairs, batch=64, learning_rate=rate, warmup_steps=FIXED)
            arms[f"{name}, batch 64, {pairs}, fixed"] = fixed
    return arms


def _claims(rate: str) -> tuple:
    large, small = ((f"{rate}, batch {batch}, 32768", f"{rate}, batch {batch}, 8192") for batch in (64, 8))
    weights = dict(zip((*large, *small), (1, -1, -1, 1), strict=True))
    more = f"At rate {rate} a larger batch makes MIR fall more, or rise less, with data"
    return (
        lower_mir(f"At rate {rate} and batch 64 MIR falls with data", "paper, Fig. 1", *large, SIZE),
        Effect(more, "ours", weights, "mir", BELOW, SIZE),
    )


EXPERIMENT = Experiment(
    name="operating_point",
    figure="Fig. 1",
    summary="Batch, rate and data: what sets the sign of MIR's change with data (pre-registration A).",
    question="At LLaVA's operating point, does MIR fall from 8192 to 32,768 pairs at batch 64, and does it fall "
    "more, or rise less, than at batch 8?",
    paper="MIR falls with the amount of data, in the step of LLaVA-1.5 (rate 1e-3, batch 256).",
    arms=_arms(),
    claims=(*_claims(".008"), *_claims(".02")),
)
