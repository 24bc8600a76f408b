"""Noisy captions, shares of alignment, four stages, a new domain (Improved Alignment, findings 2 to 4).

That "the language model converges faster" on clean captions is asked of a language model that learns in stage 1: the
first edition judged it with a frozen one.
"""

from mirlab.claims import ABOVE, BELOW, Contrast, Effect, better
from mirlab.experiments import Experiment
from mirlab.recipes import Method, StageTwo, arm, plain

NOISE = Method("noisy_captions")
UNLOCKED = {"unlock": "all", "unlock_encoder": True}

FINDING, OPEN, NOISY = "paper, finding 2", "unlocked", "unlocked, noisy"

EXPERIMENT = Experiment(
    name="stages",
    figure="Improved Alignment, findings 2 to 4",
    summary="Noisy captions, shares of alignment, four stages, a new domain (Improved Alignment, findings 2 to 4).",
    question="What do wrong words in the captions cost? Out of one budget of pictures, does more of stage 1 and less"
    " of stage 2 make a better model? Do four stages of alignment beat one? Does a model that was never "
    "asked about digits learn to answer about them in a few steps?",
    paper="The language model converges faster on AI-generated data; more work should be done in the alignment "
    "stage; the model can easily adapt to any downstream task like visual question answering on healthcare "
    "data (abstract of arXiv 2503.19508; no number).",
    arms={
        "plain": plain(),
        "noisy": arm(method=NOISE),
        OPEN: arm(unlock="all"),
        NOISY: arm(unlock="all", method=NOISE),
        "half aligned": arm(pairs=8192, stage_two=StageTwo(images=9216)),
        "one stage": arm(**UNLOCKED),
        "four stages": arm(pairs=4096, method=Method("four_stages"), **UNLOCKED),
        "new domain": arm(method=Method("new_domain")),
    },
    claims=(
        Contrast(
            "Clean captions lower the perplexity, language model unlocked",
            FINDING,
            OPEN,
            NOISY,
            "perplexity",
            BELOW,
            -0.1,
        ),
        better("Clean captions make a better model, language model unlocked", FINDING, OPEN, NOISY),
        better("Clean captions make a better model, language model frozen", "ours", "plain", "noisy"),
        better("Of one budget, more alignment makes a better model", "paper, finding 3", "plain", "half aligned"),
        better("Four stages of alignment beat one, as many pairs", "paper", "four stages", "one stage"),
        Effect(
            "A short adaptation teaches a new domain", "paper, finding 4", {"new domain": 1}, "after_gain", ABOVE, 0.05
        ),
    ),
)
