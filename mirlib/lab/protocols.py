"""What each experiment asks, what it runs, and what would count as an answer: written down before anything was run.

A `Protocol` is a small declarative configuration. Its runs follow from it alone; its claims are judged by
`mirlib.lab.verdicts` from the ledger's rows, and by nothing else.

Three regimes stand side by side, because they part where it matters (see the experiment ``warmup_or_data``):

- ``high``: a plain MLP connector at a high learning rate. A prototype of this laboratory saw MIR behave in it as in the
  paper, after a scan of learning rates on data of its own; the rate was fixed before any run here.
- ``low``: the same connector at a rate thirty times lower, which trains better models.
- ``matched``: the low rate, and every vision token rescaled to the mean norm of the text embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mirlib.lab.ledger import key_of
from mirlib.lab.runs import Run
from mirlib.lab.train import StageOne

SEEDS = (0, 1, 2, 3, 4)
PARTS = (0, 1, 2)
"""Seeds of encoder and language model; the run's seed takes them in turn."""

HIGH_RATE, LOW_RATE = 6e-2, 2e-3
WARMUP = 0.03

REGIMES: dict[str, dict[str, object]] = {
    "high": {"learning_rate": HIGH_RATE},
    "low": {"learning_rate": LOW_RATE},
    "matched": {"learning_rate": LOW_RATE, "norm_matched": True},
}


@dataclass(frozen=True)
class Protocol:
    """One experiment, declared.

    Attributes:
        name: Of the experiment and its file in the ledger.
        figure: The figure or table of the MIR paper that it answers.
        question: What is asked.
        paper: What the paper says.
        primary: The quantity that decides.
        reproduced_when: What would count as reproduced.
        arms: Runs by the name of their arm, for each seed in the same order.
        summary: One line for ``mir lab list``.
    """

    name: str
    figure: str
    summary: str
    question: str
    paper: str
    primary: str
    reproduced_when: str
    arms: dict[str, tuple[Run, ...]]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs."""
        return tuple(run for arm in self.arms.values() for run in arm)

    def arm_of(self, configuration: dict) -> str:
        """The arm that a row's configuration belongs to.

        Raises:
            KeyError: It belongs to none.
        """
        key = key_of(configuration)  # a row came out of JSON, where a tuple is a list
        for name, runs in self.arms.items():
            if any(key_of(run.configuration) == key for run in runs):
                return name
        raise KeyError(f"{self.name} has no arm with this configuration")


def _arm(*, seeds: Iterable[int] = SEEDS, pairs: int, regime: str = "matched", **options: object) -> tuple[Run, ...]:
    """Runs that differ in the seed alone. Options of `StageOne` are told from those of `Run` by their names."""
    recipe = {key: value for key, value in options.items() if key in StageOne.__dataclass_fields__}
    rest = {key: value for key, value in options.items() if key not in recipe}
    stage_one = replace(StageOne(pairs=pairs), **{**REGIMES[regime], **recipe})
    if stage_one.warmup_steps is None:  # one way to say it, so that equal runs have equal keys
        stage_one = replace(stage_one, warmup_steps=max(1, round(stage_one.warmup * stage_one.schedule.steps)))
    stage_one = replace(stage_one, warmup=WARMUP)
    return tuple(Run(seed=seed, parts=PARTS[seed % len(PARTS)], stage_one=stage_one, **rest) for seed in seeds)


PAIRS = (512, 2048, 8192, 16_384)
_WARMUP_PAIRS = (2048, 8192)
_WARMUP_STEPS = (2, 8, 32)
_DURING = (16, 32, 64, 128, 192)
_SECOND_EPOCH = (32, 56, 64, 72, 96)


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
            "within a seed; mean over seeds, bootstrap over seeds.",
            reproduced_when="In a regime: the correlation's mean is at most -0.8 and its 95% interval lies below 0. "
            "Better than another metric: the interval of the difference of absolute correlations lies above 0.",
            arms={
                **{
                    f"{regime}, {pairs} pairs": _arm(pairs=pairs, regime=regime)
                    for regime in REGIMES
                    for pairs in PAIRS
                },
                **{
                    f"unlocked, {pairs} pairs": _arm(pairs=pairs, unlock="all", unlock_encoder=True)
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
            reproduced_when="Data lowers MIR in a regime if the interval of the change at a fixed warm-up lies below 0 "
            "for every number of warm-up steps. The fall comes through warm-up if the change with proportional "
            "warm-up lies below 0 and less than half of it is left at fixed warm-up.",
            arms={
                f"{name}, {pairs} pairs, {steps} warm-up steps": _arm(
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
            "probes of a run; mean over seeds, bootstrap over seeds.",
            reproduced_when="In a regime: both correlations are at most -0.8 in the mean with intervals below 0, and "
            "the first half of the steps brings more of the fall than the second.",
            arms={regime: _arm(pairs=8192, regime=regime, study="during", probes=_DURING) for regime in both},
        ),
        Protocol(
            name="overfitting",
            figure="Fig. 5",
            summary="A second epoch: loss drops at its start, does MIR? (Fig. 5)",
            question="When the same pairs are seen a second time, does the loss drop at the boundary while MIR and "
            "accuracy do not?",
            paper="Loss drops sharply at the epoch boundary; performance and MIR do not.",
            primary="Change across the boundary (mean of the 8 steps, or the probe, after it minus that before it) of "
            "loss and of MIR (news), each in units of its change over the whole first epoch.",
            reproduced_when="The interval of the loss's change lies below 0, and the interval of MIR's change over the "
            "second epoch contains 0 or more.",
            arms={
                "unlocked": _arm(
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
            primary="Range of MIR over the kinds, and differences within a model; in units of the difference between "
            "the best and the worst model of data_scale in the same regime.",
            reproduced_when="The interval of the range (over models) lies below a quarter of the difference between "
            "the models of data_scale. Enough samples: the smallest N whose draws have a standard deviation below a "
            "twentieth of that difference, with a mean within as much of that at N = 1000.",
            arms={regime: _arm(pairs=8192, regime=regime, study="robustness") for regime in both},
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
            reproduced_when="Both correlations are at most -0.8 in the mean with intervals below 0.",
            arms={
                f"{regime}, {detail}": _arm(pairs=2048, regime=regime, detail=detail)
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
            "seeds, bootstrap over seeds. Secondary: the sign of MIR's change with rate and with warm-up.",
            reproduced_when="The correlation is at most -0.8 in the mean with an interval below 0; each sign with an "
            "interval on its side of 0.",
            arms={
                f"{regime}, {name}": _arm(
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
            reproduced_when="For each arm: the interval of MIR's difference lies below 0 and that of accuracy's above.",
            arms={name: _arm(pairs=2048, unlock=name) for name in ("none", "lora", "lora_merged", "half", "all")},
        ),
        Protocol(
            name="connectors",
            figure="Table 4",
            summary="MLPs of 1, 2 and 4 layers, and a Q-Former (Table 4).",
            question="Does MIR rank connectors as accuracy does?",
            paper="MLP of 1, 2, 4 layers: 3.454, 3.182, 3.446; Q-Former 3.673; averages 63.6, 63.9, 63.7, 53.7.",
            primary="Spearman correlation of MIR (news) with accuracy over the four connectors within a seed; mean "
            "over seeds, bootstrap over seeds.",
            reproduced_when="The correlation is at most -0.8 in the mean with an interval below 0.",
            arms={
                f"{regime}, {connector}": _arm(pairs=2048, regime=regime, connector=connector)
                for regime in both
                for connector in ("mlp1", "mlp2", "mlp4", "qformer")
            },
        ),
        Protocol(
            name="sizes",
            figure="Table 7",
            summary="Language models of three widths (Table 7).",
            question="Is MIR lower for larger language models?",
            paper="Vicuna 13B 2.583 against 7B 3.374; LLaMA-2-Chat 13B 2.477 against 7B 3.699.",
            primary="Difference of MIR (news) between neighbouring widths within a seed; mean over seeds, bootstrap "
            "over seeds.",
            reproduced_when="Both differences are negative with intervals below 0.",
            arms={size: _arm(pairs=2048, size=size) for size in ("small", "base", "large")},
        ),
    ]
    return {protocol.name: protocol for protocol in protocols}


PROTOCOLS = _all()
"""All sweeps by name."""
