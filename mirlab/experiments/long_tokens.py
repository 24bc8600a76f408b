"""Are long vision tokens noise or signal?

One trained model reads pictures whose longest quarter of vision tokens is dropped, or brought to another length; beside
that as many are dropped at random, and the shortest. All contrasts are within a run: nothing is trained differently.
MIR and perplexity are those after stage 1, accuracies those after stage 2, as everywhere. Dropped tokens keep their
places and are hidden from attention (`mirlab.model.long_tokens` says why); MIR is that of the tokens that are left.

The question is that of LAB's list (arXiv 2512.08374, 2503.03321, 2510.08510). Before the claims were written the
measures were tried on the shipped miniature, which is no run of this experiment; there the longest tokens stood on the
background more often than others did, and dropping the shortest cost most. The claims take the side of the signal
nonetheless, so that noise would be the opposite.
"""

from mirlab.claims import ABOVE, BELOW, Effect, Within
from mirlab.experiments import Experiment
from mirlab.recipes import plain

MARGIN = 0.02
"""Change of accuracy that counts as none."""

PLAIN = {"plain": 1.0}
DROPPING = "Dropping the longest tokens costs more accuracy than dropping"
LEVELLING = "Bringing the longest tokens to the length of the others"

EXPERIMENT = Experiment(
    name="long_tokens",
    figure="ours",
    summary="The longest vision tokens dropped, rescaled, kept.",
    question="Does a model lose more by its longest vision tokens than by others? Does it need their length?",
    paper="The MIR paper is silent on single tokens.",
    arms={"plain": plain()},
    claims=(
        Effect(
            f"{DROPPING} as many at random", "ours", PLAIN, "accuracy_drop_long - accuracy_drop_random", BELOW, -0.03
        ),
        Effect(f"{DROPPING} the shortest", "ours", PLAIN, "accuracy_drop_long - accuracy_drop_short", BELOW, -0.03),
        Effect(
            "The longest tokens stand on things more often than all tokens do",
            "ours",
            PLAIN,
            "long_on_thing - all_on_thing",
            ABOVE,
            0.05,
        ),
        Within(f"{LEVELLING} leaves the accuracy as it is", "ours", PLAIN, "accuracy_rest_long - accuracy", MARGIN),
        Effect(f"{LEVELLING} lowers MIR", "ours", PLAIN, "mir_rest_long - mir", BELOW, -0.05),
        Within(
            "Bringing all tokens to the length of words leaves the accuracy as it is",
            "ours",
            PLAIN,
            "accuracy_words_all - accuracy",
            MARGIN,
        ),
    ),
)
