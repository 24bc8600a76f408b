"""Learning rate, warm-up and scheduler (Table 2)."""

from mirlab.claims import ABOVE, Contrast, Follows, lower_mir
from mirlab.experiments import Experiment
from mirlab.recipes import arm, plain

ARMS = {
    "plain": {},
    "rate x 3": {"learning_rate": 0.024},
    "rate / 2": {"learning_rate": 0.004},
    "rate x 0.3": {"learning_rate": 0.0024},
    "warm-up 10 %": {"warmup": 0.1},
    "warm-up 30 %": {"warmup": 0.3},
    "linear": {"scheduler": "linear"},
}

EXPERIMENT = Experiment(
    name="recipes",
    figure="Table 2",
    summary="Learning rate, warm-up and scheduler (Table 2).",
    question="Does MIR rank recipes as accuracy does, and does it move with rate and warm-up as in the paper?",
    paper="A third of the rate lowers MIR from 3.182 to 2.808, three times the rate raises it to 3.575; a longer "
    "warm-up lowers it to 3.043, a linear scheduler to 3.171; the averages go the other way.",
    arms={name: arm(zoo=True, **options) if options else plain() for name, options in ARMS.items()},
    claims=(
        Contrast("Three times the rate raises MIR", "paper, Table 2", "rate x 3", "plain", "mir", ABOVE, 0.393),
        lower_mir("Half the rate lowers MIR", "paper, Table 2", "rate / 2", "plain", -0.192),
        lower_mir("A third of the rate lowers MIR", "paper, Table 2", "rate x 0.3", "plain", -0.374),
        lower_mir("A longer warm-up lowers MIR", "paper, Table 2", "warm-up 10 %", "plain", -0.139),
        Follows("MIR ranks recipes as accuracy does", "paper, Table 2", tuple(ARMS), "mir", "accuracy"),
        Follows("The log norm ratio of layer 1 ranks them as well", "ours", tuple(ARMS), "log_norm_ratio", "accuracy"),
    ),
)
