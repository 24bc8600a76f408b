"""MLPs of one, two and four layers, and a Q-Former (Table 4)."""

from mirlab.claims import ABOVE, BELOW, Contrast, Follows
from mirlab.experiments import Experiment
from mirlab.recipes import arm, plain

ARMS = {"plain": {}, "mlp1": {"connector": "mlp1"}, "mlp4": {"connector": "mlp4"}, "qformer": {"connector": "qformer"}}

EXPERIMENT = Experiment(
    name="connectors",
    figure="Table 4",
    summary="MLPs of 1, 2 and 4 layers, and a Q-Former (Table 4).",
    question="Does MIR rank connectors as accuracy does, with the Q-Former last in both?",
    paper="MLP of 1, 2, 4 layers: 3.454, 3.182, 3.446; Q-Former 3.673; averages 63.6, 63.9, 63.7, 53.7.",
    arms={name: arm(**options) if options else plain() for name, options in ARMS.items()},
    claims=(
        Contrast(
            "The Q-Former has a higher MIR than the two-layer MLP",
            "paper, Table 4",
            "qformer",
            "plain",
            "mir",
            ABOVE,
            0.491,
        ),
        Contrast(
            "The Q-Former makes a worse model than the two-layer MLP",
            "paper, Table 4",
            "qformer",
            "plain",
            "accuracy",
            BELOW,
            -0.1,
        ),
        Contrast("One layer has a higher MIR than two", "paper, Table 4", "mlp1", "plain", "mir", ABOVE, 0.272),
        Contrast("Four layers have a higher MIR than two", "paper, Table 4", "mlp4", "plain", "mir", ABOVE, 0.264),
        Follows("MIR ranks connectors as accuracy does", "paper, Table 4", tuple(ARMS), "mir", "accuracy"),
    ),
)
