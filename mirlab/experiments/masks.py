"""Should vision rows see each other both ways, with the language model frozen or unlocked (Improved Alignment, 1)?"""

from mirlab.claims import ABOVE, Effect, better, lower_mir
from mirlab.experiments import Experiment
from mirlab.recipes import Method, arm, plain

BOTH_WAYS = Method("masks", variant="vision_bidirectional")
PREFIX = Method("masks", variant="prefix")

OPEN, OPEN_BOTH = "unlocked", "unlocked, both ways"
MORE = {OPEN_BOTH: 1, OPEN: -1, "both ways": -1, "plain": 1}

EXPERIMENT = Experiment(
    name="masks",
    figure="Improved Alignment, finding 1",
    summary="Attention masks: causal, vision both ways, prefix; language model frozen or unlocked (Improved "
    "Alignment).",
    question="Does a model whose vision rows see each other both ways, in stage 1, in stage 2 and when it is asked, "
    "answer better than a causal one? Does it need a language model that learns in stage 1? What does MIR do?",
    paper="The attention mask should not be applied on visual inputs (abstract of arXiv 2503.19508; no number).",
    arms={
        "plain": plain(),
        "both ways": arm(method=BOTH_WAYS),
        "prefix": arm(method=PREFIX),
        OPEN: arm(unlock="all"),
        OPEN_BOTH: arm(unlock="all", method=BOTH_WAYS),
    },
    claims=(
        better("Vision both ways raises the accuracy", "paper", "both ways", "plain"),
        better("The prompt both ways, too, raises it further", "ours", "prefix", "both ways"),
        better("With the language model unlocked, vision both ways raises the accuracy", "paper", OPEN_BOTH, OPEN),
        Effect("It gains more with the language model unlocked", "ours", MORE, "accuracy", ABOVE, 0.05),
        lower_mir("Vision both ways lowers MIR", "ours", "both ways", "plain", -0.1),
    ),
)
