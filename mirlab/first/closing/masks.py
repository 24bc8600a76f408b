"""Does it help to take the causal mask off the vision rows (the first finding of arXiv 2503.19508)?

Inspired by "Improved Alignment of Modalities in Large Vision Language Models", of which only the abstract is public to
us: its masks are not, so the arms are our reading. ``causal`` is the plain recipe, whose rows were there when this was
written; no row of any other arm was, and nothing was tuned. An arm has its mask in stage 1, in stage 2 and in all that
is measured. The language model was trained on text alone, causally, as those of the field are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mirlab.first.outcomes import Part, above, below, shown
from mirlab.first.protocol import Protocol, arm
from mirlab.methods.masks import AttentionMask

if TYPE_CHECKING:
    import pandas as pd

PAIRS = (2048, 8192)
REGIME = "low"

HELPS = "No causal mask on vision is better: rows of an image that see each other both ways raise the accuracy"
FURTHER = "Nor on the prompt: image and prompt both ways raise the accuracy further (not in the paper)"
LOWERS = "No causal mask on vision lowers MIR (not in the paper)"
OURS = frozenset({FURTHER, LOWERS})
"""Claims that are not the paper's."""

PROTOCOL = Protocol(
    name="masks",
    figure="Improved Alignment, finding 1",
    summary="Attention masks: causal, vision both ways, prefix (Improved Alignment, finding 1).",
    question="Does a model whose vision rows see each other both ways, in stage 1, in stage 2 and when it is asked, "
    "answer better than a causal one? Does it help to let the prompt see itself too, and what does MIR do?",
    paper="The attention mask should not be applied on visual inputs (abstract of arXiv 2503.19508; no number).",
    primary="Difference of accuracy after stage 2 from the causal model, within a seed, at each amount of data; mean "
    "over seeds, bootstrap over seeds. Shown beside it: differences of perplexity and of MIR (news).",
    criteria={
        HELPS: "interval of accuracy's difference, vision both ways minus causal, above 0",
        FURTHER: "interval of accuracy's difference, prefix minus vision both ways, above 0",
        LOWERS: "interval of MIR's difference, vision both ways minus causal, below 0",
    },
    arms={
        **{f"{pairs} pairs, causal": arm(pairs=pairs, regime=REGIME) for pairs in PAIRS},
        **{
            f"{pairs} pairs, {variant.replace('_', ' ')}": arm(
                pairs=pairs, regime=REGIME, method=AttentionMask(variant)
            )
            for pairs in PAIRS
            for variant in ("vision_bidirectional", "prefix")
        },
    },
)


def judge(at: Any) -> None:
    """Decide the claims of `PROTOCOL`; see `mirlab.first.verdicts`."""
    # Not at the top: the tables know all protocols, and this one is among them.
    from mirlab.first.tables import difference

    def claim(paper: str, pairs: int, first: str, second: str) -> None:
        arms = [f"{pairs} pairs, {first}", f"{pairs} pairs, {second}"]

        def decide(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
            mir, accuracy, perplexity = (
                difference(table, *arms, column, seeds) for column in ("mir", "accuracy", "perplexity")
            )
            if paper == LOWERS:
                return [below("MIR changes by", mir)]
            return [above("accuracy changes by", accuracy), shown("perplexity by", perplexity), shown("MIR by", mir)]

        at.claim(PROTOCOL.figure, paper, f"{pairs} pairs", arms, decide)

    both_ways = "vision bidirectional"
    for paper, first, second in (
        (HELPS, both_ways, "causal"),
        (FURTHER, "prefix", both_ways),
        (LOWERS, both_ways, "causal"),
    ):
        for pairs in PAIRS:
            claim(paper, pairs, first, second)
