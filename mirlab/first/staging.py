"""What the ledger's runs of ``masks`` and ``stages`` say: levels, differences within a seed, curves, adaptation.

All from the rows that are there; whether a claim holds is judged in `mirlab.first.closing`. No title reads anything off
fewer seeds than `mirlab.first.mediation.SEEDS_NEEDED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mirlab.first.closing.masks import FURTHER, HELPS, PAIRS
from mirlab.first.closing.stages import ADAPTS, AT_ONCE, FASTER, FOUR, QUARTER, SHARED, WORK, adaptation
from mirlab.first.estimates import Estimate, bootstrap
from mirlab.first.figures import figure_seed_values, headline, interval, loss_curves, say_missing
from mirlab.first.mediation import SEEDS_NEEDED
from mirlab.first.outcomes import IN_PART, OPPOSITE, REPRODUCED, Claim, grouped, standing
from mirlab.first.protocols import PROTOCOLS
from mirlab.first.tables import Row, difference, frame
from mirlib.plots import COLOURS, LINES, MARKERS, TEXT, VISION, new_axes

COMPARED: dict[str, dict[str, tuple[str, str]]] = {
    "masks": {
        f"{pairs} pairs: {label}": (f"{pairs} pairs, {first}", f"{pairs} pairs, {second}")
        for pairs in PAIRS
        for label, first, second in (
            ("vision both ways − causal", "vision bidirectional", "causal"),
            ("prefix − causal", "prefix", "causal"),
            ("prefix − vision both ways", "prefix", "vision bidirectional"),
        )
    },
    "stages": {
        "full captions: clean − noisy": ("full, clean", "full, noisy"),
        "mid captions: clean − noisy": ("mid, clean", "mid, noisy"),
        "captions: full, clean − mid, noisy": ("full, clean", "mid, noisy"),
        "512 clean − 2048 noisy pairs": ("full, clean, a quarter", "full, noisy"),
        "pictures: (2048 + 1024) − (1024 + 2048)": ("full, clean", "shares, 1024 + 2048"),
        "pictures: (2560 + 512) − (2048 + 1024)": ("shares, 2560 + 512", "full, clean"),
        "four stages − one, frozen": ("alignment, four stages", "alignment, one stage, frozen"),
        "four stages − one, all learns": ("alignment, four stages", "alignment, one stage, all"),
        "one stage: all learns − frozen": ("alignment, one stage, all", "alignment, one stage, frozen"),
        "four stages − plain, low rate": ("alignment, four stages", "full, clean"),
    },
}
"""Pairs of arms that are compared, by experiment and by the name of the difference: the first minus the second.

The last two of ``stages`` are in no criterion: they were added when the runs were there, to tell what four stages gain
from what unlocking gains.
"""

CAPTIONS, SHARES, ALIGNMENT = (tuple(COMPARED["stages"])[part] for part in (slice(4), slice(4, 6), slice(6, None)))
"""Which of the differences of ``stages`` belong to finding 2, and which to the two readings of finding 3."""

SAME_TEXTS = frozenset([*COMPARED["masks"], *(name for name in COMPARED["stages"] if "full, clean − mid" not in name)])
"""Differences between runs whose perplexity is taken on the same texts."""

TIMES = {
    "before": "before",
    "short": "after a short\nadaptation",
    "long": "after a long\none",
    "direct": "digits\nalone",
}
"""What a run of the new domain was measured after, by its name in the ledger."""

COLUMNS = {"accuracy": "accuracy", "perplexity": "perplexity", "mir": "MIR"}

_NO_RUN = "no run in the ledger yet"


def levels(name: str, rows: Iterable[Row], labels: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean over seeds and 95 % interval of each arm, as text: arms by ``runs`` and `COLUMNS`; the blind level beside.

    Args:
        name: Experiment.
        rows: Its rows.
        labels: Which of `COMPARED` the arms are of; all arms of the protocol if left out. Fewer pairs come first.

    Returns:
        A line for each arm that has a run.
    """
    table = frame(rows)
    arms = PROTOCOLS[name].arms
    wanted = arms if labels is None else {arm for label in labels for arm in COMPARED[name][label]}
    if name == "masks":
        wanted = sorted(wanted, key=lambda arm: arms[arm][0].stage_one.pairs)
    else:
        wanted = [arm for arm in arms if arm in wanted]
    lines: dict[str, dict[str, object]] = {}
    for arm in wanted:
        here = table[table["arm"] == arm] if len(table) else table
        if len(here):
            lines[arm.replace("vision bidirectional", "vision both ways")] = {"runs": len(here)} | {
                shown: bootstrap(here[column].to_numpy(float)).cell(signs=False)
                for column, shown in {"accuracy": "accuracy", "blind": "blind", **COLUMNS}.items()
            }
    return pd.DataFrame(lines).T if lines else pd.DataFrame(columns=[_NO_RUN])


def budgets() -> pd.DataFrame:
    """Pictures and steps of each stage for the arms that share one budget of pictures."""
    lines = {}
    for arm in SHARED:
        run = PROTOCOLS["stages"].arms[arm][0]
        steps = [stage.schedule.steps for stage in (run.stage_one, run.stage_two)]
        lines[arm] = {
            "pictures, stage 1": run.stage_one.pairs,
            "pictures, stage 2": run.stage_two.images,
            "steps, stage 1": steps[0],
            "steps, stage 2": steps[1],
            "steps together": sum(steps),
        }
    return pd.DataFrame(lines).T


def differences(name: str, rows: Iterable[Row], column: str = "accuracy") -> dict[str, np.ndarray]:
    """`COMPARED` arms within a seed, by the name of the difference: (seeds,), of the seeds that have both."""
    table = frame(rows)
    found = {}
    for label, pair in COMPARED[name].items():
        values = difference(table, *pair, column)
        if len(values) and (column != "perplexity" or label in SAME_TEXTS):
            found[label] = values
    return found


def changes(name: str, rows: Sequence[Row]) -> pd.DataFrame:
    """`differences` as text, by `COLUMNS`, and the number of seeds; perplexity only where the texts are the same."""
    lines: dict[str, dict[str, object]] = {}
    for column, shown in COLUMNS.items():
        for label, values in differences(name, rows, column).items():
            line = lines.setdefault(label, dict.fromkeys(COLUMNS.values(), "void: other texts"))
            line |= {shown: bootstrap(values).cell(), "seeds": len(values)}
    return pd.DataFrame(lines).T if lines else pd.DataFrame(columns=[_NO_RUN])


def figure_changes(name: str, rows: Sequence[Row], labels: Sequence[str] | None = None) -> Figure:
    """Differences of accuracy (left) and of MIR (right): every seed, means and intervals.

    Args:
        name: Experiment.
        rows: Its rows.
        labels: Which of `COMPARED` are drawn; all if left out.
    """
    labels = list(COMPARED[name]) if labels is None else list(labels)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 1.4 + 0.5 * len(labels)), sharey=True)
    for ax, (column, told, unit) in zip(
        axes, (("accuracy", "Accuracy", "share right"), ("mir", "MIR", "log10")), strict=True
    ):
        found = differences(name, rows, column)
        data = {label: {"": found[label]} if label in found else {} for label in labels}
        figure_seed_values(data, ax, xlabel=f"difference within a seed ({unit})")
        drawn = [found[label] for label in labels if label in found]
        ax.set_title(headline(told, _count(drawn), map(len, drawn)))
    return figure


def _count(drawn: Sequence[np.ndarray]) -> str:
    """How many differences have an interval wholly on one side of 0."""
    ends = [interval(values) for values in drawn if len(values) > 1]
    above, below = sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends)
    return f"{above} of {len(drawn)} bars above 0, {below} below"


def curves(rows: Sequence[Row]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Loss curves of stage 1 by kind of caption, clean or noisy: steps (n,), and losses (seeds, n)."""
    found = {}
    for arm in ("full, clean", "full, noisy", "mid, clean", "mid, noisy"):
        of_arm = [row for row in rows if row.get("arm") == arm]
        if of_arm:
            found[arm] = loss_curves(of_arm)
    return found


def smoothed(losses: np.ndarray, width: int = 8) -> np.ndarray:
    """Means of a curve over a window that looks back, shorter at the start: (..., n) to (..., n)."""
    sums = np.cumsum(losses, axis=-1)
    before = np.concatenate([np.zeros_like(sums[..., :width]), sums[..., :-width]], axis=-1)
    return (sums - before) / np.minimum(np.arange(1, losses.shape[-1] + 1), width)


def figure_loss_curves(data: Mapping[str, tuple[np.ndarray, np.ndarray]], ax: Axes | None = None) -> Axes:
    """Losses over the steps of stage 1, smoothed, means over seeds with their 95 % interval.

    Args:
        data: From `curves`.
        ax: Where to draw; a new figure if left out.
    """
    ax = new_axes(ax, figsize=(6.8, 3.8))
    if not data:
        say_missing([ax])
    ends = []
    for number, (label, (steps, losses)) in enumerate(data.items()):
        shown = smoothed(losses)
        low, high = interval(shown)
        ax.plot(steps, shown.mean(axis=0), color=COLOURS[number], linestyle=LINES[number], marker="", label=label)
        ax.fill_between(steps, low, high, color=COLOURS[number], alpha=0.15, linewidth=0)
        ends.append(f"{label} {shown[:, -1].mean():.2f}")
    ax.set_title(headline("Loss at the end", "; ".join(ends), (len(losses) for _, losses in data.values())), fontsize=9)
    ax.set(xlabel="step of stage 1", ylabel="loss on its own captions (nats a token)")
    if data:
        ax.legend()
    return ax


def adapted(rows: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
    """Accuracy in each domain by time of `TIMES`: (seeds,); nothing where no run is there."""
    found = adaptation(rows)
    return {
        domain: {time: np.array([by_time[time][domain] for by_time in found.values()]) for time in TIMES}
        for domain in ("shapes", "digits")
        if found
    }


_STEPS_OF_ADAPTING = {
    "short − before": ("short", "before"),
    "long − before": ("long", "before"),
    "digits alone − before": ("direct", "before"),
    "short − digits alone": ("short", "direct"),
}


def adaptation_changes(rows: Sequence[Row]) -> pd.DataFrame:
    """Differences of accuracy within a seed between times of `TIMES`, as text, by domain."""
    data = adapted(rows)
    return pd.DataFrame(
        {
            f"accuracy on {domain}": {
                label: bootstrap(by_time[first] - by_time[second]).cell(narrow=False)
                for label, (first, second) in _STEPS_OF_ADAPTING.items()
            }
            for domain, by_time in reversed(data.items())
        }
        if data
        else {_NO_RUN: {}}
    )


def figure_adaptation(data: Mapping[str, Mapping[str, np.ndarray]], ax: Axes | None = None) -> Axes:
    """Accuracy on the old domain and on the new one before and after adaptations: seeds, means, 95 % intervals.

    Args:
        data: From `adapted`.
        ax: Where to draw; a new figure if left out.
    """
    ax = new_axes(ax, figsize=(6.8, 3.8))
    if not data:
        say_missing([ax])
        return ax
    for domain, colour, marker, shift in (("shapes", TEXT, MARKERS[1], -0.08), ("digits", VISION, MARKERS[0], 0.08)):
        for place, values in enumerate(data[domain].values()):
            mean, (low, high) = values.mean(), interval(values)
            reach = None if np.isnan(low) else [[mean - low], [high - mean]]
            look = {"color": colour, "marker": marker, "linestyle": ""}
            ax.plot(
                np.full(len(values), place + 2.2 * shift), values, color=colour, marker="_", linestyle="", alpha=0.7
            )
            label = f"questions about {domain}" if place == 0 else None
            ax.errorbar(place + shift, mean, yerr=reach, capsize=3, zorder=3, label=label, **look)
    ax.set_xticks(range(len(TIMES)), list(TIMES.values()))
    gain, cost = (bootstrap(data[d]["short"] - data[d]["before"]).text(3) for d in ("digits", "shapes"))
    said = f"digits {gain}, shapes {cost}"
    ax.set_title(headline("A short adaptation", said, [len(data["digits"]["before"])]), fontsize=9)
    ax.set_ylabel("accuracy (mean over kinds of question)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return ax


def reading(name: str, rows: Sequence[Row]) -> list[str]:
    """A sentence on each difference of accuracy that is decided, and one on all others; adaptation; MIR beside them.

    Differences that fewer than `SEEDS_NEEDED` seeds have are left out, and a last sentence says how many.
    """
    sentences: list[str] = []
    undecided: list[str] = []
    missing = 0
    found = differences(name, rows)
    for label in COMPARED[name]:
        values = found.get(label, np.empty(0))
        if len(values) < SEEDS_NEEDED:
            missing += 1
            continue
        estimate = bootstrap(values)
        if _sign(estimate):
            sentences.append(f"{label}: accuracy {_decided(estimate)}.")
        else:
            undecided.append(f"{label} {estimate.text(3)}{', by a hair' if _at_zero(estimate) else ''}")
    if undecided:
        sentences.append(f"Undecided in accuracy: {'; '.join(undecided)}.")
    if name == "masks":
        sentences += for_scale(rows)
    if name == "stages":
        adapting = on_adaptation(rows)
        missing += not adapting
        sentences += [*adapting, *beside_mir(rows)]
    if missing:
        sentences.append(f"{missing} comparisons of {name} have fewer than {SEEDS_NEEDED} seeds so far.")
    return sentences


def for_scale(rows: Sequence[Row]) -> list[str]:
    """What more data do to the causal arms of ``masks``, in a sentence; none without `SEEDS_NEEDED` seeds."""
    few, many = PAIRS
    values = difference(frame(rows), f"{many} pairs, causal", f"{few} pairs, causal", "accuracy")
    if len(values) < SEEDS_NEEDED:
        return []
    return [f"For scale: {many} pairs in place of {few}, both causal, move accuracy by {bootstrap(values).text(3)}."]


def on_adaptation(rows: Sequence[Row]) -> list[str]:
    """What a short adaptation brings and costs, and how much there was to be had; none without `SEEDS_NEEDED` seeds."""
    data = adapted(rows)
    if len(data.get("digits", {}).get("before", ())) < SEEDS_NEEDED:
        return []
    gain, cost = (bootstrap(data[d]["short"] - data[d]["before"]) for d in ("digits", "shapes"))
    room = bootstrap(data["digits"]["direct"] - data["digits"]["before"])
    return [
        f"A short adaptation to digits: accuracy on digits {_decided(gain)}, on shapes {_decided(cost)}. Before any "
        f"adaptation the model is behind stage 2 on digits alone by {room.text(3).replace('+', '')}."
    ]


def beside_mir(rows: Sequence[Row]) -> list[str]:
    """How often MIR of ``stages`` tells of two arms what accuracy tells; none while a difference lacks seeds."""
    accuracy, mir = (differences("stages", rows, column) for column in ("accuracy", "mir"))
    if any(len(accuracy.get(label, ())) < SEEDS_NEEDED for label in COMPARED["stages"]):
        return []
    signs = {label: (_sign(bootstrap(accuracy[label])), _sign(bootstrap(mir[label]))) for label in accuracy}
    decided = [pair for pair in signs.values() if pair[0]]
    open_ones = [label for label, pair in signs.items() if not pair[0]]
    also = [label for label in open_ones if signs[label][1]]
    lower = sum(a == -m for a, m in decided)
    higher = sum(a == m for a, m in decided)
    return [
        f"Accuracy decides {len(decided)} of these {len(signs)} comparisons. In {lower} of them the better arm has the "
        f"lower MIR, in {higher} the higher one, and in {len(decided) - lower - higher} the interval of MIR's "
        f"difference holds 0. Where accuracy does not decide, MIR does in {len(also)} of {len(open_ones)}"
        f"{': ' + '; '.join(also) if also else ''}."
    ]


def _sign(found: Estimate) -> int:
    """1 or -1 where the interval lies above or below 0, else 0."""
    return int(found.low > 0) - int(found.high < 0)


def _decided(found: Estimate) -> str:
    said = {1: "higher", -1: "lower", 0: "undecided"}[_sign(found)]
    return f"{found.text(3)} ({said})"


def _at_zero(found: Estimate) -> bool:
    """Whether an end of the interval is printed as 0."""
    return min(abs(found.low), abs(found.high)) < 0.0005


_ADVICE: dict[str, dict[str, str]] = {
    HELPS: {
        REPRODUCED: "Let the vision rows of an image see each other, in both stages and when the model is asked.",
        IN_PART: "Let the vision rows of an image see each other only after a trial at your amount of data: here it "
        "helped under some conditions and not under others.",
        OPPOSITE: "Keep the causal mask on vision rows, if your language model was trained causally and you have few "
        "pairs: to take it off cost accuracy here.",
        "": "Do not count on a mask on vision rows: neither a gain nor a loss is shown here. The causal one is what a "
        "language model was trained with, and flash attention takes no other.",
    },
    FURTHER: {
        REPRODUCED: "Let the prompt see itself, too.",
        IN_PART: "Let the prompt see itself only after a trial.",
        OPPOSITE: "Leave the prompt causal: to let it see itself cost accuracy against vision both ways.",
        "": "Leave the prompt causal: no gain by letting it see itself is shown.",
    },
    FASTER: {
        REPRODUCED: "Prefer clean captions: as many pairs in as many steps made better models than with wrong words.",
        IN_PART: "Clean the captions where they are the kind for which it paid here.",
        OPPOSITE: "Wrong words in the captions did no harm here; look for what limits you elsewhere.",
        "": "Whether wrong words in the captions cost anything is not decided by these runs.",
    },
    QUARTER: {
        REPRODUCED: "If you must choose, prefer a quarter of the captions, clean, to all of them, noisy.",
        OPPOSITE: "Do not throw away three quarters of the pairs to have clean captions: many noisy ones gave better "
        "models than few clean ones.",
        "": "Few clean captions or four times as many noisy ones: these runs do not say which.",
    },
    WORK: {
        REPRODUCED: "Out of a fixed number of pictures, give more to stage 1, up to the largest share tried here. "
        "Count steps as well: a picture is worth more of them in stage 1, and these runs cannot tell one from the "
        "other.",
        OPPOSITE: "Do not take more and more pictures away from stage 2: somewhere in the range tried here that cost "
        "accuracy.",
        "": "How to share a budget of pictures between the stages is not decided by these runs.",
    },
    FOUR: {
        REPRODUCED: "With matched norms, four stages that unlock encoder and language model made better models than "
        "one frozen stage. That is no reason yet for four: see the next line.",
        OPPOSITE: "Keep encoder and language model frozen in alignment, at this amount of data.",
        "": "Four stages of alignment are more work, and no gain over one frozen stage is shown for it.",
    },
    AT_ONCE: {
        REPRODUCED: "Unlock one part after the other, not all at once.",
        OPPOSITE: "Unlock all at once, not one part after the other.",
        "": "Do not take the trouble of four stages before you have unlocked all at once: no gain over that is shown.",
    },
    ADAPTS: {
        REPRODUCED: "Ask the questions of a new domain before you adapt to it: most of what stage 2 can do there may "
        "be there already. Then adapt, and measure the old domain again.",
        OPPOSITE: "Plan more than a few steps for a new domain of questions, and measure the old one after them.",
        "": "Whether few steps are enough for a new domain is not decided; measure both domains.",
    },
}
"""What follows for practice, by claim and by where it stands; ``""`` is for claims that are undecided."""

_ONE_NUMBER = frozenset({HELPS, FURTHER, QUARTER, FOUR, AT_ONCE})
"""Claims that hang on one difference of accuracy, which the advice can show."""


def advice(claims: Sequence[Claim], rows: Sequence[Row] = ()) -> list[str]:
    """A sentence for each measured claim that has one in `_ADVICE`, with its numbers.

    Args:
        claims: Those of ``masks`` and of ``stages``.
        rows: Of ``stages``; what they say of the plain recipe and of adaptation is added.
    """
    sentences = []
    added = {ADAPTS: "".join(f" {sentence}" for sentence in on_adaptation(rows))}
    plain = differences("stages", rows).get("four stages − plain, low rate", np.empty(0))
    if len(plain) >= SEEDS_NEEDED:
        added[AT_ONCE] = f" Against the plain recipe at the low rate: {bootstrap(plain).text(3)}."
    for group in grouped(claims):
        by_standing = _ADVICE.get(group[0].paper, {})
        measured = [claim for claim in group if claim.seeds >= SEEDS_NEEDED]
        if by_standing and measured:
            said = by_standing.get(standing(measured), by_standing[""])
            if group[0].paper in _ONE_NUMBER:
                said += f" Accuracy: {'; '.join(map(_number, measured))}."
            sentences.append(said + added.get(group[0].paper, ""))
    return sentences


def _number(claim: Claim) -> str:
    found = Estimate(claim.estimate, claim.low, claim.high, claim.seeds).text(3)
    return f"{found} with {claim.condition}" if claim.condition else found
