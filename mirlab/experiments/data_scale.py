"""Does MIR follow the amount of stage-1 data and the accuracy after stage 2, better than its rivals (Fig. 1, 6, 9)?"""

from mirlab.claims import BELOW, Contrast, Follows, better
from mirlab.experiments import Experiment
from mirlab.recipes import arm

FIGURE = "paper, Fig. 1"
AMOUNTS = (4096, 8192, 16384, 32768, 65536)
ARMS = tuple(f"{pairs} pairs" for pairs in AMOUNTS)

EXPERIMENT = Experiment(
    name="data_scale",
    figure="Fig. 1, 6 and 9",
    summary="How MIR, loss, perplexity and in-context scores follow the amount of data (Fig. 1, 6, 9).",
    question="From 4096 to 65,536 pairs at batch 64: does MIR fall, and does it rank models as their accuracy after "
    "stage 2 does? Do its rivals? What do loss and perplexity do where accuracy stands still?",
    paper="Loss and perplexity keep falling while performance saturates; the in-context score jitters; MIR follows "
    "performance.",
    arms={name: arm(pairs=pairs, batch=64, zoo=True) for name, pairs in zip(ARMS, AMOUNTS, strict=True)},
    claims=(
        Follows("MIR falls with the amount of data", FIGURE, ARMS, "pairs", "mir"),
        Follows("MIR follows the accuracy after stage 2", FIGURE, ARMS, "mir", "accuracy"),
        Follows("Its norm-only baseline follows the accuracy as well", "ours", ARMS, "norm_only", "accuracy"),
        Follows("Perplexity follows the accuracy as well", "ours", ARMS, "perplexity", "accuracy"),
        Follows("Loss follows the accuracy as well", "ours", ARMS, "loss", "accuracy"),
        Follows("The in-context score follows the accuracy as well", "ours", ARMS, "in_context_text", "accuracy", 0.8),
        Contrast("From 32,768 to 65,536 pairs the loss keeps falling", FIGURE, ARMS[4], ARMS[3], "loss", BELOW, -0.02),
        better("From 32,768 to 65,536 pairs accuracy still rises", "ours", ARMS[4], ARMS[3], 0.03),
    ),
)
