"""The same pairs again: loss falls, and what do MIR and accuracy do (Fig. 5)?

All arms make 512 steps of 32 pairs. The second edition asks about repetition at equal steps; the first had asked what
happens at the boundary between two epochs.
"""

from mirlab.claims import ABOVE, BELOW, Contrast
from mirlab.experiments import Experiment
from mirlab.recipes import arm, plain

EPOCHS = {16384: 1, 4096: 4, 1024: 16}


def name(pairs: int) -> str:
    """Of an arm."""
    return "plain" if pairs == 16384 else f"{pairs} pairs, {EPOCHS[pairs]} times"


EXPERIMENT = Experiment(
    name="overfitting",
    figure="Fig. 5",
    summary="The same pairs again and again, at equal steps: does MIR see it? (Fig. 5)",
    question="At equal steps, what does it do to loss, MIR and accuracy to see 1024 pairs sixteen times, or 4096 "
    "four times, instead of 16,384 once?",
    paper="In a second epoch the loss drops sharply; performance and MIR do not.",
    arms={name(pairs): plain() if epochs == 1 else arm(pairs=pairs, epochs=epochs) for pairs, epochs in EPOCHS.items()},
    claims=(
        Contrast("Repeated pairs lower the loss", "paper, Fig. 5", name(1024), "plain", "loss", BELOW, -0.1),
        Contrast("Repeated pairs lower the accuracy", "ours", name(1024), "plain", "accuracy", BELOW, -0.05),
        Contrast("MIR sees it: repeated pairs raise MIR", "ours", name(1024), "plain", "mir", ABOVE, 0.1),
        Contrast("Perplexity on held-out captions sees it", "ours", name(1024), "plain", "perplexity", ABOVE, 0.1),
    ),
)
