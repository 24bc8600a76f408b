"""MLPs of one, two and four layers, and a Q-Former (Table 4)."""

from mirlab.claims import ABOVE, BELOW, Contrast, Follows
from mirlab.experiments import Experiment
from mirlab.recipes import arm, plain

TABLE = "paper, Table 4"
ARMS = ("plain", "mlp1", "mlp4", "qformer")

EXPERIMENT = Experiment(
    name="connectors",
    figure="Table 4",
    summary="MLPs of 1, 2 and 4 layers, and a Q-Former (Table 4).",
    question="Does MIR rank connectors as accuracy does, with the Q-Former last in both?",
    paper="MLP of 1, 2, 4 layers: 3.454, 3.182, 3.446; Q-Former 3.673; averages 63.6, 63.9, 63.7, 53.7.",
    arms={name: plain() if name == "plain" else arm(connector=name) for name in ARMS},
    claims=(
        Contrast(
            "The Q-Former has a higher MIR than the two-layer MLP", TABLE, "qformer", "plain", "mir", ABOVE, 0.491
        ),
        Contrast(
            "The Q-Former makes a worse model than the two-layer MLP",
            TABLE,
            "qformer",
            "plain",
            "accuracy",
            BELOW,
            -0.1,
        ),
        Contrast("One layer has a higher MIR than two", TABLE, "mlp1", "plain", "mir", ABOVE, 0.272),
        Contrast("Four layers have a higher MIR than two", TABLE, "mlp4", "plain", "mir", ABOVE, 0.264),
        Follows("MIR ranks connectors as accuracy does", TABLE, ARMS, "mir", "accuracy"),
    ),
)
