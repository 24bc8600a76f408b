"""What each experiment asks, what it runs, and what would count as an answer: written down before anything was run.

A `Protocol` is a small declarative configuration. Its runs follow from it alone; its claims are judged by
`mirlab.first.verdicts` from the ledger's rows, and by nothing else. Here stand the experiments of the MIR paper; those
on ways to close the gap are in `mirlab.first.closing`.
"""

from __future__ import annotations

from mirlab.first import closing
from mirlab.first.protocol import HIGH_RATE, LOW_RATE, PARTS, REGIMES, SEEDS, WARMUP, Protocol, arm

__all__ = [
    "HIGH_RATE",
    "LOW_RATE",
    "MOVED",
    "PARTS",
    "PROTOCOLS",
    "REGIMES",
    "RIVALS",
    "SEEDS",
    "WARMUP",
    "Protocol",
    "arm",
]

PAIRS = (512, 2048, 8192, 16_384)
_WARMUP_PAIRS = (2048, 8192)
_WARMUP_STEPS = (8, 31, 124)

RIVALS = {
    "loss": "MIR ranks models better than loss",
    "perplexity": "MIR ranks models better than perplexity",
    "in_context_text": "MIR ranks models better than the in-context score, text shots",
    "in_context_image": "MIR ranks models better than the in-context score, shots with images (not in the paper)",
    "discrimination": "MIR ranks models better than soft discrimination (not in the paper)",
    "norm_only": "MIR ranks models better than its norm-only baseline (not in the paper)",
}
"""Claims about other metrics, by the metric's column in `mirlab.first.tables.frame`."""

MOVED = {
    "pictures": "MIR hardly moves with the kind of picture",
    "texts": "MIR hardly moves with the kind of text",
    "kinds": "MIR hardly moves with the kinds of picture and text together",
    "template": "MIR hardly moves with the conversation template",
    "relevance": "MIR hardly moves with whether text and picture belong together",
    "seen": "MIR hardly moves with whether the data were trained on",
}
"""Claims about robustness, by what is varied; the names are those of `mirlab.first.verdicts.ranges`."""

_FOLLOWS = "mean correlation at most −0.8, interval below 0"
_UNSIGNED = "interval above 0 (signs do not count; the verdict names those that are wrong)"
_DURING = (64, 128, 256, 512, 768)
_SECOND_EPOCH = (128, 224, 256, 288, 384)


def _all() -> dict[str, Protocol]:
    both = ("high", "matched")
    protocols = [
        Protocol(
            name="data_scale",
            figure="Fig. 1, 6 and 9",
            summary="How MIR, loss, perplexity and in-context scores follow the amount of data (Fig. 1, 6, 9).",
            question="Does MIR fall with the amount of stage-1 data, and does it rank models as their accuracy after "
            "stage 2 does, better than loss, perplexity and in-context scores?",
            paper="Loss and perplexity keep falling while performance saturates; the in-context score jitters; MIR "
            "follows performance. With encoder and language model unlocked, performance and MIR improve for longer. "
            "Perplexity is worse still when training and evaluation data come from different domains.",
            primary="Spearman correlation of MIR (news) with mean accuracy after stage 2, over the amounts of data "
            "within a seed; mean over seeds, bootstrap over seeds. Against other metrics: the difference of the "
            "absolute values of such correlations.",
            criteria={
                "MIR follows the accuracy after stage 2": _FOLLOWS,
                "MIR falls with the amount of data": f"{_FOLLOWS}, of the correlation with the number of pairs",
                **dict.fromkeys(
                    RIVALS.values(),
                    "absolute rank correlation of MIR with accuracy minus that of the other metric, paired within "
                    f"seed: {_UNSIGNED}",
                ),
                "Loss and perplexity keep falling while performance saturates": "from 8192 to 16,384 pairs the "
                "intervals of the changes of loss and of in-domain perplexity lie below 0, and that of accuracy does "
                "not lie above 0",
                "With encoder and language model unlocked, too, MIR follows the accuracy": f"{_FOLLOWS}, over the "
                "three amounts of data of the unlocked arms",
                "With encoder and language model unlocked, performance and MIR improve for longer": "from 2048 to "
                "8192 pairs MIR falls more, and accuracy rises more, than with both frozen and norms matched, within a "
                "seed: interval of the first difference below 0, of the second above 0",
                "Perplexity is a worse guide still when evaluated out of domain": "absolute rank correlation with "
                "accuracy of perplexity in-domain minus that of perplexity out-of-domain, paired within seed: "
                f"{_UNSIGNED}",
                "The gap shrinks with depth in every model": "for the models with the most data of each series: "
                f"{_FOLLOWS}, of a layer's distance with its number; last layer below the first, with an interval",
            },
            arms={
                **{
                    f"{regime}, {pairs} pairs": arm(pairs=pairs, regime=regime) for regime in REGIMES for pairs in PAIRS
                },
                **{
                    f"unlocked, {pairs} pairs": arm(pairs=pairs, unlock="all", unlock_encoder=True)
                    for pairs in PAIRS[:3]
                },
            },
        ),
        Protocol(
            name="warmup_or_data",
            figure="Fig. 1 and Table 2",
            summary="Is it data, warm-up, learning rate or the norm of vision tokens that moves MIR?",
            question="With the number of warm-up steps held fixed, does more data still lower MIR? How much of MIR's "
            "change with data goes through warm-up, how much through the norm ratio, and what is left?",
            paper="Silent: warm-up is 3% of the steps throughout, so that more data means a longer warm-up.",
            primary="Change of MIR (news) from 2048 to 8192 pairs, within a seed: with proportional warm-up, and with "
            "each fixed number of warm-up steps; mean over seeds, bootstrap over seeds.",
            criteria={
                "MIR falls with data where warm-up is 3 % of the steps": "interval of the change below 0",
                "Data itself lowers MIR: also where the number of warm-up steps is fixed": "interval of the change "
                "below 0 for every number of warm-up steps",
                "The fall comes through warm-up (what a prototype of this laboratory saw; the paper is silent)": "the "
                "interval of the change with proportional warm-up lies below 0, and that of the change at fixed "
                "warm-up (mean over its three lengths) minus half of it lies above 0: less than half is left",
            },
            arms={
                f"{name}, {pairs} pairs, {steps} warm-up steps": arm(
                    pairs=pairs, regime=regime, warmup_steps=steps, learning_rate=rate
                )
                for name, regime, rate in (
                    ("high", "high", HIGH_RATE),
                    ("low", "low", LOW_RATE),
                    ("matched", "matched", LOW_RATE),
                    ("matched high", "matched", HIGH_RATE),
                )
                for pairs in _WARMUP_PAIRS
                for steps in _WARMUP_STEPS
            },
        ),
        Protocol(
            name="convergence",
            figure="Fig. 4",
            summary="MIR, loss and accuracy over the steps of stage 1 (Fig. 4).",
            question="Does MIR fall steeply and then flatten over the steps of stage 1, while accuracy after stage 2 "
            "rises?",
            paper="MIR falls steeply, then flattens, as loss does; post-SFT performance rises with it.",
            primary="Spearman correlation of MIR (news) with the step, and with accuracy after stage 2, over the "
            "probes and the end of a run; mean over seeds, bootstrap over seeds.",
            criteria={
                "MIR falls steeply, then flattens, over the steps; performance rises with it": "both correlations: "
                f"{_FOLLOWS}; and the interval of MIR's change in the second half of the steps minus that in the first "
                f"lies above 0 (the first from the first probe, at step {_DURING[0]}, on; MIR at the middle is "
                "interpolated)",
            },
            arms={regime: arm(pairs=8192, regime=regime, study="during", probes=_DURING) for regime in both},
        ),
        Protocol(
            name="overfitting",
            figure="Fig. 5",
            summary="A second epoch: loss drops at its start, does MIR? (Fig. 5)",
            question="When the same pairs are seen a second time, does the loss drop at the boundary while MIR does "
            "not fall, and accuracy not rise, over the second epoch?",
            paper="Loss drops sharply at the epoch boundary; performance and MIR do not.",
            primary="Change of loss across the boundary (mean of the 32 steps after it minus that of the 32 before "
            "it), in units of the first epoch's (the size of the change from its first to its last 32 steps, mean over "
            "seeds); change of MIR (news), in MIR, and of accuracy over the second epoch (from the probe at the "
            "boundary to the end); means over seeds, bootstrap over seeds. Shown beside them and deciding nothing: "
            "the change of MIR from the boundary to the next probe, in units of its change from the first probe (step "
            f"{_SECOND_EPOCH[0]}) to the boundary.",
            criteria={
                "In a second epoch the loss drops at the boundary; performance and MIR do not improve": "interval of "
                "the loss's change below 0; that of MIR's change over the second epoch not below 0, that of accuracy's "
                "not above 0",
            },
            arms={
                "unlocked": arm(
                    pairs=2048, epochs=2, unlock="all", unlock_encoder=True, study="during", probes=_SECOND_EPOCH
                )
            },
        ),
        Protocol(
            name="robustness",
            figure="Fig. 3, Fig. 8 and Table 6",
            summary="Kinds of pictures and texts, templates, relevance, seen or unseen, number of samples (Fig. 3, 8).",
            question="By how much does MIR of one model move with the kind of picture and of text, the template, "
            "whether text and picture belong together, whether they were trained on, and the number of samples?",
            paper="MIR hardly moves with any of them; 20 samples are enough.",
            primary="Range (highest minus lowest) of one model's MIR over what is varied, each value the mean of three "
            "draws; in units of the highest minus the lowest MIR (news) of data_scale over its amounts of data, same "
            "regime and seed; ratio of the means over seeds, bootstrap over seeds.",
            criteria={
                **dict.fromkeys(
                    MOVED.values(), "interval of the range below a quarter of the difference between models"
                ),
                "20 samples are enough": "N is the smallest number whose five draws have a standard deviation below a "
                "twentieth of the difference between models (mean over seeds), with a mean within as much of that at "
                "N = 1000: every seed has one, and the interval of its mean over seeds is at most 20",
            },
            arms={regime: arm(pairs=8192, regime=regime, study="robustness") for regime in both},
        ),
        Protocol(
            name="captions",
            figure="Table 1",
            summary="Longer captions: lower MIR, better model? (Table 1)",
            question="Does MIR fall with the detail of the captions, and accuracy rise?",
            paper="Captions of 15, 49, 127 and 181 tokens give MIR 3.588, 3.442, 3.279, 3.218 and averages 63.8 to "
            "64.4.",
            primary="Spearman correlation of MIR (news) with the length of the captions (brief, mid, full) and with "
            "accuracy, within a seed; mean over seeds, bootstrap over seeds.",
            criteria={"Longer captions give a lower MIR and a better model": f"both correlations: {_FOLLOWS}"},
            arms={
                f"{regime}, {detail}": arm(pairs=2048, regime=regime, detail=detail)
                for regime in both
                for detail in ("brief", "mid", "full")
            },
        ),
        Protocol(
            name="recipes",
            figure="Table 2",
            summary="Learning rate, warm-up and scheduler (Table 2).",
            question="Does MIR rank recipes as accuracy does, and in the paper's order?",
            paper="A third of the rate lowers MIR from 3.182 to 2.808, three times the rate raises it to 3.575; a "
            "longer warm-up lowers it to 3.043, a linear scheduler to 3.171; the averages go the other way.",
            primary="Spearman correlation of MIR (news) with accuracy over the six recipes within a seed; mean over "
            "seeds, bootstrap over seeds. Secondary: the sign of MIR's change from the base with rate and with "
            "warm-up, within a seed. The scheduler's is not judged: the paper's change is a hundredth.",
            criteria={
                "MIR ranks recipes as accuracy does": _FOLLOWS,
                "A higher learning rate raises MIR, a lower one lowers it": "interval of the change above 0 for three "
                "times the rate, below 0 for half of it and for 0.3 of it",
                "A longer warm-up lowers MIR": "interval of the change with 5 % of the steps instead of 3 % below 0",
            },
            arms={
                f"{regime}, {name}": arm(
                    pairs=8192, regime=regime, learning_rate=REGIMES[regime]["learning_rate"] * factor, **options
                )
                for regime in both
                for name, factor, options in (
                    ("base", 1, {}),
                    ("warm-up 5%", 1, {"warmup": 0.05}),
                    ("linear", 1, {"scheduler": "linear"}),
                    ("rate x 3", 3, {}),
                    ("rate / 2", 0.5, {}),
                    ("rate x 0.3", 0.3, {}),
                )
            },
        ),
        Protocol(
            name="unlocking",
            figure="Table 3",
            summary="How much of the language model learns in stage 1 (Table 3).",
            question="Does unlocking the language model in stage 1 lower MIR and raise accuracy?",
            paper="None 3.001, LoRA 2.735 (not merged) and 2.734 (merged), former half 2.705, all 2.656; averages "
            "64.0 to 65.9.",
            primary="Difference of MIR (news) and of accuracy from the frozen model, within a seed; mean over seeds, "
            "bootstrap over seeds.",
            criteria={
                "Unlocking the language model lowers MIR and raises accuracy": "interval of MIR's difference from the "
                "frozen model below 0, of accuracy's above 0; for each arm by itself",
            },
            arms={name: arm(pairs=2048, unlock=name) for name in ("none", "lora", "lora_merged", "half", "all")},
        ),
        Protocol(
            name="connectors",
            figure="Table 4",
            summary="MLPs of 1, 2 and 4 layers, and a Q-Former (Table 4).",
            question="Does MIR rank connectors as accuracy does?",
            paper="MLP of 1, 2, 4 layers: 3.454, 3.182, 3.446; Q-Former 3.673; averages 63.6, 63.9, 63.7, 53.7.",
            primary="Spearman correlation of MIR (news) with accuracy over the four connectors within a seed; mean "
            "over seeds, bootstrap over seeds.",
            criteria={"MIR ranks connectors as accuracy does": _FOLLOWS},
            arms={
                f"{regime}, {connector}": arm(pairs=2048, regime=regime, connector=connector)
                for regime in both
                for connector in ("mlp1", "mlp2", "mlp4", "qformer")
            },
        ),
        Protocol(
            name="sizes",
            figure="Table 7",
            summary="Language models of three widths (Table 7); four of them are trained first, about 25 min each.",
            question="Is MIR lower for larger language models?",
            paper="Vicuna 13B 2.583 against 7B 3.374; LLaMA-2-Chat 13B 2.477 against 7B 3.699.",
            primary="Difference of MIR (news) between neighbouring widths within a seed; mean over seeds, bootstrap "
            "over seeds.",
            criteria={
                "Larger language models have a lower MIR": "both differences (base minus small, large minus base): "
                "interval below 0",
            },
            arms={size: arm(pairs=2048, size=size) for size in ("small", "base", "large")},
        ),
    ]
    return {protocol.name: protocol for protocol in [*protocols, *closing.PROTOCOLS]}


PROTOCOLS = _all()
"""All sweeps by name."""
