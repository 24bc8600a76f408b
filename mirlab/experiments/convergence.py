"""How do MIR, loss and accuracy go over the steps of stage 1 (Fig. 4)?"""

from mirlab.claims import ABOVE, Contrast, Effect, lower_mir
from mirlab.experiments import Experiment
from mirlab.recipes import plain

EXPERIMENT = Experiment(
    name="convergence",
    figure="Fig. 4",
    summary="MIR, loss and accuracy over the steps of stage 1 (Fig. 4).",
    question="Does MIR fall steeply and then flatten over the steps of stage 1, while accuracy after stage 2 rises?",
    paper="MIR falls steeply, then flattens, as loss does; post-SFT performance rises with it.",
    arms={"plain": plain()},
    claims=(
        lower_mir(
            "MIR falls over the first half of the steps", "paper, Fig. 4", "plain, step 256", "plain, step 64", -0.1
        ),
        Effect(
            "MIR flattens: it falls less in the second half than in the first",
            "paper, Fig. 4",
            {"plain": 1, "plain, step 256": -2, "plain, step 64": 1},
            "mir",
            ABOVE,
            0.1,
        ),
        lower_mir("MIR falls from step 64 to the end", "paper, Fig. 4", "plain", "plain, step 64", -0.1),
        Contrast(
            "Accuracy after stage 2 rises from step 64 to the end",
            "paper, Fig. 4",
            "plain",
            "plain, step 64",
            "accuracy",
            ABOVE,
        ),
    ),
)
