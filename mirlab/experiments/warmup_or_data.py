"""Is it data or warm-up that moves MIR, and is there more to it than length? A design of two by three at one rate.

It was declared with the others of the second edition, put off, and taken out before any of its runs was made, when
`operating_point` had shown three of its six arms and the sets of parts were gone. It stands here again on the sets
that came later; arms, claims, sizes and margins are those of then. Measures of the zoo, which no claim asks for, are
left out.
"""

from mirlab.claims import BELOW, Contrast, Effect
from mirlab.experiments import Experiment
from mirlab.experiments.real import length_only, main_effect, name
from mirlab.recipes import LATER_PARTS, arm

LITTLE, MUCH = 8192, 32768
SHORT, MEDIUM, LONG = 4, 15, 61
"""Warm-up steps: 3 % of the 128 steps of `LITTLE`, of the 512 of `MUCH`, and four times as many again."""


_DATA = main_effect({MUCH: 1, LITTLE: -1}, dict.fromkeys((SHORT, MEDIUM, LONG), 1 / 3))
_WARMUP = main_effect({LITTLE: 1 / 2, MUCH: 1 / 2}, {LONG: 1, SHORT: -1})
GROWING = (name(MUCH, MEDIUM), name(LITTLE, SHORT))

EXPERIMENT = Experiment(
    name="warmup_or_data",
    figure="Fig. 1 and Table 2",
    summary="Is it data or warm-up that moves MIR?",
    question="With the number of warm-up steps held fixed, does four times as much data lower MIR? Does a longer "
    "warm-up, with the data held fixed? And MIR beyond its norm-only baseline?",
    paper="Silent: warm-up is 3 % of the steps throughout, so more data means a longer warm-up. In Table 2 a warm-up"
    " of 5 % lowers MIR from 3.182 to 3.043.",
    arms={
        name(pairs, steps): arm(pairs=pairs, batch=64, warmup_steps=steps, parts=LATER_PARTS)
        for pairs in (LITTLE, MUCH)
        for steps in (SHORT, MEDIUM, LONG)
    },
    claims=(
        Contrast("Data lowers MIR where warm-up grows with it", "paper, Fig. 1", *GROWING, "mir", BELOW, -0.31),
        Effect("Data alone lowers MIR", "ours", _DATA, "mir", BELOW, -0.31),
        Effect("A longer warm-up alone lowers MIR", "paper, Table 2", _WARMUP, "mir", BELOW, -0.3),
        length_only("Data", _DATA),
        length_only("Warm-up", _WARMUP),
    ),
)
