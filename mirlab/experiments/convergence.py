"""How do MIR, loss and accuracy go over the steps of stage 1 (Fig. 4)?"""

from mirlab.claims import ABOVE, Effect, better, lower_mir
from mirlab.experiments import Experiment
from mirlab.recipes import plain

FIGURE = "paper, Fig. 4"
START, HALF = "plain, step 64", "plain, step 256"
FLATTENS = {"plain": 1, HALF: -2, START: 1}

EXPERIMENT = Experiment(
    name="convergence",
    figure="Fig. 4",
    summary="MIR, loss and accuracy over the steps of stage 1 (Fig. 4).",
    question="Does MIR fall steeply and then flatten over the steps of stage 1, while accuracy after stage 2 rises?",
    paper="MIR falls steeply, then flattens, as loss does; post-SFT performance rises with it.",
    arms={"plain": plain()},
    claims=(
        lower_mir("MIR falls over the first half of the steps", FIGURE, HALF, START, -0.1),
        Effect("MIR flattens: it falls less in the second half than in the first", FIGURE, FLATTENS, "mir", ABOVE, 0.1),
        lower_mir("MIR falls from step 64 to the end", FIGURE, "plain", START, -0.1),
        better("Accuracy after stage 2 rises from step 64 to the end", FIGURE, "plain", START, effect=None),
    ),
)
