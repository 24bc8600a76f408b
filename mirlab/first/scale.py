"""What came out of data_scale and warmup_or_data, as numbers and in words; chapter 8 prints it.

Nothing is typed: each sentence is made from the rows that are there, and is left out, with a word on what is missing,
where fewer than five seeds have all the runs that it needs. Verdicts on claims are in `mirlab.first.verdicts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mirlab.first.estimates import Estimate, bootstrap, correlations
from mirlab.first.mediation import LITTLE, LONG, MUCH, SEEDS_NEEDED, SHORT, WARMUP_SERIES, WARMUP_STEPS, grid, mediation
from mirlab.first.outcomes import follows
from mirlab.first.protocols import PROTOCOLS
from mirlab.first.reporting import listed
from mirlab.first.tables import MORE_IS_BETTER, Row, arms_of, cells, complete_seeds, frame

REGIMES = ("high", "low", "matched", "unlocked")
FROZEN = REGIMES[:3]
"""Regimes whose language model and encoder do not learn."""


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, for print: a true minus, and no minus before zero.

    Example:
        >>> signed(-0.123), signed(-0.001)
        ('−0.12', '+0.00')
    """
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def scale_arms(regime: str) -> list[str]:
    """Arms of a regime of data_scale, from the least data to the most."""
    return arms_of(PROTOCOLS["data_scale"], regime)


def values(table: pd.DataFrame, arms: Sequence[str], column: str) -> np.ndarray:
    """(arms, seeds) values of a column, of the seeds that have all of these arms; (arms, 0) if none has."""
    seeds = complete_seeds(table, arms)
    return cells(table, arms, column, seeds) if seeds else np.empty((len(arms), 0))


# ---------------------------------------------------------------------------------------------------------------------
# data_scale


class Change(NamedTuple):
    """How a metric of one regime changes between two amounts of data, within a seed.

    Attributes:
        regime: Of data_scale.
        column: Of `mirlab.first.tables.frame`.
        by_seed: (seeds,) changes of the seeds that have both amounts.
    """

    regime: str
    column: str
    by_seed: np.ndarray

    @property
    def known(self) -> bool:
        """Whether there are seeds enough to say anything."""
        return len(self.by_seed) >= SEEDS_NEEDED

    @property
    def estimate(self) -> Estimate:
        """Mean over seeds with its interval."""
        return bootstrap(self.by_seed)


def change(table: pd.DataFrame, regime: str, column: str, *, last_doubling: bool = False) -> Change:
    """Change of a column from the least to the most data, or from the last but one amount to the most."""
    arms = scale_arms(regime)
    ends = [arms[-2 if last_doubling else 0], arms[-1]]
    found = values(table, ends, column)
    return Change(regime, column, found[1] - found[0])


def in_regimes(table: pd.DataFrame, column: str) -> str:
    """In how many regimes a metric gets better with data, or worse, in words; an interval that holds 0 is undecided."""
    sign = 1 if column in MORE_IS_BETTER else -1
    moved = [sign * change(table, regime, column).by_seed for regime in REGIMES]
    if any(len(one) < SEEDS_NEEDED for one in moved):
        return ""
    better, worse = sum(bootstrap(one).low > 0 for one in moved), sum(bootstrap(one).high < 0 for one in moved)
    return f"better with data in {better}, worse in {worse} of {len(moved)}"


def shape(found: np.ndarray, sign: int) -> np.ndarray:
    """Change since the first amount within each seed, in units of the range of the means; turned so that up is better.

    Args:
        found: (amounts, ..., seeds) values.
        sign: 1 if higher is better, -1 if lower is.

    Returns:
        The same shape; zeros where the means do not differ.
    """
    span = np.ptp(found.mean(axis=-1), axis=0)[..., None]
    return np.where(span > 0, sign * (found - found[0]) / np.where(span > 0, span, 1), 0.0)


def nearest(guesses: Mapping[str, tuple[np.ndarray, int]], goal: np.ndarray) -> tuple[str, bool]:
    """The guess whose shape lies nearest to that of the accuracy, and whether that is certain.

    Args:
        guesses: By name: (amounts, seeds) values, and their sign; at least two.
        goal: (amounts, seeds) accuracies.

    Returns:
        The name with the smallest mean distance over the amounts, and whether the 95 % interval of the runner-up's
        distance minus its own, paired by seeds, lies above 0.
    """

    def distance(found: np.ndarray, sign: int, accuracy: np.ndarray) -> np.ndarray:
        curves = shape(found, sign).mean(axis=-1), shape(accuracy, 1).mean(axis=-1)
        return np.abs(curves[0] - curves[1])[1:].mean(axis=0)

    order = sorted(guesses, key=lambda name: distance(*guesses[name], goal))
    (best, best_sign), (second, second_sign) = (guesses[name] for name in order[:2])

    def behind(drawn: np.ndarray) -> np.ndarray:
        return distance(drawn[1], second_sign, drawn[2]) - distance(drawn[0], best_sign, drawn[2])

    return order[0], bootstrap(np.stack([best, second, goal]), behind).low > 0


class Ranks(NamedTuple):
    """Rank correlation of a metric with the accuracy over the amounts of data.

    Attributes:
        by_seed: (seeds,) correlations.
        follows: Whether their mean reaches 0.8 with the right sign, and the interval keeps that sign.
    """

    by_seed: np.ndarray
    follows: bool


def ranks(table: pd.DataFrame, regime: str, column: str) -> Ranks:
    """How a metric ranks the models of a regime; `follows` is False where there is no seed."""
    arms = scale_arms(regime)
    found = correlations(values(table, arms, column), values(table, arms, "accuracy"))
    if not len(found):
        return Ranks(found, False)
    return Ranks(found, follows(column, -found if column in MORE_IS_BETTER else found).holds)


def flattening(table: pd.DataFrame) -> str:
    """What accuracy, loss and MIR do over the last doubling of the data, in words; frozen regimes."""
    told, open_ = [], []
    for regime in FROZEN:
        moved = {c: change(table, regime, c, last_doubling=True) for c in ("accuracy", "loss", "mir")}
        if not moved["accuracy"].known:
            open_.append(f"*{regime}*")
            continue
        text = {column: one.estimate.text(3) for column, one in moved.items()}
        flat = moved["accuracy"].estimate.low <= 0
        mir = moved["mir"].estimate
        still = "the interval of MIR holds 0, too" if mir.low <= 0 <= mir.high else "MIR does not stand still"
        verdict = (
            f"the accuracy's interval holds 0, which is as near as these amounts come to saturation; {still}"
            if flat
            else "accuracy still rises: no saturation, so this part of the claim cannot be tested"
        )
        told.append(
            f"- *{regime}*: accuracy changes by {text['accuracy']}, loss by {text['loss']}, MIR by {text['mir']}. "
            f"Here {verdict}."
        )
    if open_:
        told.append(f"- Not measured yet, for want of five complete seeds: {', '.join(open_)}.")
    return "\n".join(told)


def against_zeroed_rows(table: pd.DataFrame) -> str:
    """Where MIR lies beside its zeroed-rows baseline, in words; empty if there is no run."""
    if not len(table):
        return ""
    means = table.groupby("arm", sort=False)[["mir", "null", "accuracy"]].mean()
    above = int((means["mir"] > means["null"]).sum())
    lowest = means.loc[means["mir"].idxmin()]
    under = table[table["mir"] < table["null"]]
    series = listed([f"*{one}*" for one in dict.fromkeys(under["series"])])
    where = f", all of them in {series}" if len(under) else ""
    arms = f"all {len(means)} arms" if above == len(means) else f"{above} of {len(means)} arms"
    return (
        f"In {arms} the mean of MIR lies above the zeroed-rows baseline: rows of zero, put in after the model has "
        f"run, lie closer to the text rows than the vision rows of these models do. The lowest mean is "
        f"{lowest['mir']:.3f}, beside {lowest['null']:.3f} for rows of zero. Of the {len(table)} single runs, "
        f"{len(under)} lie below it{where}. And yet accuracy, with means from {means['accuracy'].min():.2f} to "
        f"{means['accuracy'].max():.2f}, stands against {table['blind'].mean():.2f} for a model that is shown another "
        "picture."
    )


def other_domain(table: pd.DataFrame) -> str:
    """What unlocking does to the perplexity out of domain, in words; empty below five seeds."""
    arms = scale_arms("unlocked")[1:]
    found = {column: values(table, arms, column) for column in ("perplexity_out", "perplexity", "accuracy")}
    if found["accuracy"].shape[1] < SEEDS_NEEDED:
        return ""
    outside, inside, accuracy = (one.mean(axis=1) for one in found.values())
    low, high = (f"{pairs} pairs" for pairs in (2048, 8192))
    between = f"from {outside[0]:.0f} to {outside[1]:.0f}"
    if outside[1] <= outside[0]:
        return f"With the language model unlocked, out-of-domain perplexity goes {between} from {low} to {high}."
    return (
        f"Look at *unlocked*: from {low} to {high} out-of-domain perplexity rises {between}, while in-domain "
        f"perplexity goes from {inside[0]:.2f} to {inside[1]:.2f} and accuracy from {accuracy[0]:.2f} to "
        f"{accuracy[1]:.2f}. Such a perplexity calls the better model the worse one. (One reading: a language model "
        "that learns in stage 1 unlearns other ways to say a thing. These runs do not test it.)"
    )


_SPOKEN = {
    "loss": "the loss",
    "perplexity": "in-domain perplexity",
    "perplexity_out": "out-of-domain perplexity",
    "in_context_text": "the in-context score with shots in words",
    "in_context_image": "the in-context score with pictures",
    "discrimination": "soft discrimination",
    "norm_only": "the norm-only baseline",
    "pairs": "the number of pairs",
}
"""Metrics beside MIR, as a sentence names them."""


def scale_outcome(rows: Iterable[Row]) -> list[str]:
    """What came out of data_scale, in sentences for the end of a chapter."""
    table = frame(row for row in rows if row["experiment"] == "data_scale")
    known = [regime for regime in REGIMES if len(ranks(table, regime, "mir").by_seed) >= SEEDS_NEEDED]
    if not known:
        return ["No regime of `data_scale` has five complete seeds yet: nothing came out so far."]
    columns = list(_SPOKEN)
    count = {column: sum(ranks(table, regime, column).follows for regime in known) for column in ["mir", *columns]}
    at_most = "none" if not count["mir"] else f"{count['mir']}"
    own = ", ".join(f"*{r}* {signed(ranks(table, r, 'mir').by_seed.mean())}" for r in known)
    by_count: dict[int, list[str]] = {}
    for column in columns:
        by_count.setdefault(count[column], []).append(_SPOKEN[column])
    others = "; ".join(
        f"{listed(by_count[n])} in {'all' if n == len(known) else n or 'none'}" for n in sorted(by_count, reverse=True)
    )
    told = [
        f"**MIR followed the accuracy over the amount of data in {at_most} of {len(known)} regimes; the loss in "
        f"{count['loss']}, and the number of pairs, which knows nothing about a model, in {count['pairs']}.** Mean "
        f"rank correlation of MIR: {own} (asked for: at most −0.8). The others, each with its own sign: {others}."
    ]
    moved = {r: (change(table, r, "mir"), change(table, r, "norm_only")) for r in known}
    text = "; ".join(
        f"*{r}* {mir.estimate.text(2)} ({signed(length.estimate.value)})" for r, (mir, length) in moved.items()
    )
    only = [f"*{r}*" for r, (mir, length) in moved.items() if _all_length(mir, length)]
    told.append(
        "**Length.** Accuracy rose from the least to the most data in "
        f"{_rises(table, known)} regimes; MIR, and in brackets its norm-only baseline, changed by {text}."
        + (f" In {listed(only)} this is a change of length and of nothing else." if only else "")
    )
    return told


def _all_length(mir: Change, length: Change) -> bool:
    """Whether MIR changes for certain, and the norm-only baseline leaves at most a twentieth of the change."""
    whole, rest = mir.estimate, float(np.mean(mir.by_seed - length.by_seed))
    return (whole.low > 0 or whole.high < 0) and abs(rest) <= 0.05 * abs(whole.value)


def _rises(table: pd.DataFrame, known: Sequence[str]) -> str:
    rises = sum(change(table, regime, "accuracy").estimate.low > 0 for regime in known)
    return f"all {len(known)}" if rises == len(known) else f"{rises} of {len(known)}"


def given_away(table: pd.DataFrame, column: str | None = None, always: str | None = None) -> np.ndarray:
    """Accuracy lost by choosing among the frozen regimes, for each amount and seed that has all three.

    Args:
        table: Of `mirlab.first.tables.frame`.
        column: Choose what this metric likes best; by lot (the mean over the three) if left out.
        always: Or choose always this regime.

    Returns:
        (amounts, seeds) differences to the best of the three, of the seeds that have all runs.
    """
    arms = [scale_arms(regime) for regime in FROZEN]
    seeds = complete_seeds(table, [arm for some in arms for arm in some])
    if not seeds:
        return np.empty((len(arms[0]), 0))

    def block(name: str) -> np.ndarray:
        return np.array([cells(table, some, name, seeds) for some in arms])  # (regimes, amounts, seeds)

    accuracy = block("accuracy")
    if always is not None:
        chosen = accuracy[FROZEN.index(always)]
    elif column is None:
        chosen = accuracy.mean(axis=0)
    else:
        best = (block(column) * (1 if column in MORE_IS_BETTER else -1)).argmax(axis=0)
        chosen = np.take_along_axis(accuracy, best[None], axis=0)[0]
    return accuracy.max(axis=0) - chosen


def choices(table: pd.DataFrame, column: str) -> dict[str, int]:
    """How often a metric likes each frozen regime best, over the amounts and seeds of `given_away`."""
    arms = [scale_arms(regime) for regime in FROZEN]
    seeds = complete_seeds(table, [arm for some in arms for arm in some])
    if not seeds:
        return {}
    found = np.array([cells(table, some, column, seeds) for some in arms])
    best = (found * (1 if column in MORE_IS_BETTER else -1)).argmax(axis=0)
    return {regime: int((best == number).sum()) for number, regime in enumerate(FROZEN)}


# ---------------------------------------------------------------------------------------------------------------------
# warmup_or_data


class Switch(NamedTuple):
    """One thing that warmup_or_data turns, all else equal, and what it does within a seed.

    Attributes:
        name: What is turned, and where.
        mir: (seeds,) changes of MIR, of the seeds that have all settings it needs.
        norm_only: Those of its norm-only baseline.
        accuracy: Those of the accuracy after stage 2.
        seeds: Of these values.
    """

    name: str
    mir: np.ndarray
    norm_only: np.ndarray
    accuracy: np.ndarray
    seeds: list[int]


def switches(table: pd.DataFrame) -> list[Switch]:
    """What each switch of warmup_or_data does to MIR, to its norm-only baseline and to accuracy.

    More data: mean over the three warm-ups. A longer warm-up (the longest instead of the shortest): mean over both
    amounts. The rate, and the matching of norms: mean over the six settings. The switches are not independent of each
    other: each needs runs that others need, too.

    Args:
        table: `mirlab.first.tables.frame` of rows of warmup_or_data.
    """
    protocol = PROTOCOLS["warmup_or_data"]
    arms = {series: arms_of(protocol, series) for series in WARMUP_SERIES}

    def turned(name: str, needed: Sequence[str], effect: dict[tuple[str, int, int], float]) -> Switch:
        """An effect is a weighted sum over settings (series, pairs, warm-up steps)."""
        seeds = complete_seeds(table, [arm for series in needed for arm in arms[series]])
        found = []
        for column in ("mir", "norm_only", "accuracy"):
            grids = {series: grid(table, series, column, seeds) for series in needed} if seeds else {}
            terms = [weight * grids[series][pairs, steps] for (series, pairs, steps), weight in effect.items() if seeds]
            found.append(np.sum(terms, axis=0) if seeds else np.array([]))
        return Switch(name, *found, seeds)

    settings = [(pairs, steps) for pairs in (LITTLE, MUCH) for steps in WARMUP_STEPS]
    told = []
    for series in WARMUP_SERIES:
        weights = {(series, p, w): (1 if p == MUCH else -1) / 3 for p, w in settings}
        told.append(turned(f"{MUCH // LITTLE} × the data, {series}", [series], weights))
    for series in WARMUP_SERIES:
        weights = {(series, p, w): (1 if w == LONG else -1) / 2 for p, w in settings if w in (SHORT, LONG)}
        told.append(turned(f"warm-up {LONG} for {SHORT}, {series}", [series], weights))
    for name, after, before in (
        ("10 × the rate, plain", "high", "low"),
        ("10 × the rate, matched", "matched high", "matched"),
        ("norms matched, high rate", "matched high", "high"),
        ("norms matched, low rate", "matched", "low"),
    ):
        weights = {(after, *one): 1 / 6 for one in settings} | {(before, *one): -1 / 6 for one in settings}
        told.append(turned(name, [after, before], weights))
    return told


def warmup_outcome(rows: Iterable[Row]) -> list[str]:
    """What came out of warmup_or_data, in sentences for the end of a chapter."""
    rows = [row for row in rows if row["experiment"] == "warmup_or_data"]
    every = switches(frame(rows))
    known = [switch for switch in every if len(switch.mir) >= SEEDS_NEEDED]
    if not known:
        return [
            "`warmup_or_data` has no series with five complete seeds yet. Whether data, warm-up, rate or length moves "
            "MIR here is open."
        ]
    told = []
    effects = sorted(((bootstrap(switch.mir), switch) for switch in known), key=lambda pair: -abs(pair[0].value))
    sure = [pair for pair in effects if pair[0].low > 0 or pair[0].high < 0]
    large = [pair for pair in sure if abs(pair[0].value) >= 0.1 * abs(effects[0][0].value)]
    small = [pair for pair in effects if pair not in large]
    if large:
        text = "; ".join(f"*{switch.name}*: {found.text(2)}" for found, switch in large)
        rest = f" Each of the other {len(small)} changes it by at most {_largest(small):.2f}." if small else ""
        told.append(f"**What moves MIR**, all else equal, largest first: {text}.{rest}")
    else:
        told.append("**What moves MIR:** no switch does for certain.")
    apart = max(abs(float((switch.mir - switch.norm_only).mean())) for _, switch in large or effects)
    where = "In these" if large else "In all switches"
    told.append(
        f"**Through length.** {where} the norm-only baseline, which knows nothing but lengths, changes by the same "
        f"amount to within {apart:.2f}."
    )
    paths = mediation(rows)
    data = [switch for switch in known if "the data" in switch.name]
    if len(paths):
        ways, undecided = [], []
        for series in paths["series"].unique():
            line = paths[paths["series"] == series].set_index("path")["estimate"]
            if np.isnan(paths[paths["series"] == series]["share"].iloc[0]):  # the interval of the change holds 0
                undecided.append(f"*{series}*")
                continue
            ways.append(
                f"*{series}* {signed(line['whole change, proportional warm-up'])} = "
                f"{signed(line['by warm-up, at equal data'])} by warm-up {_then(line['by data, at equal warm-up'])} "
                f"by data ({signed(line['through the norm ratio, of the whole change'])} of it goes through the norm "
                "ratio)"
            )
        ways += [f"in {listed(undecided)} the interval of the change holds 0"] if undecided else []
        told.append(f"**Data or warm-up?** With the recipe's 3 %, from {LITTLE} to {MUCH} pairs: {'; '.join(ways)}.")
    if data:
        falls = [s for s in data if bootstrap(s.mir).high < 0]
        grows = [s for s in data if bootstrap(s.mir).low > 0]
        better = sum(bootstrap(switch.accuracy).low > 0 for switch in data)
        told.append(
            f"**Against the accuracy.** More data at equal warm-up raise accuracy in {better} of {len(data)} series; "
            f"MIR falls in {len(falls)} of them and rises in {len(grows)} (the rest is undecided)."
        )
    arms = list(PROTOCOLS["warmup_or_data"].arms)
    mir, ratio, accuracy = (values(frame(rows), arms, column) for column in ("mir", "norm_ratio", "accuracy"))
    if mir.shape[1] >= SEEDS_NEEDED:
        told.append(
            f"**Over all {len(arms)} settings** the rank correlation of MIR with the norm ratio of layer 1 is "
            f"{bootstrap(correlations(mir, ratio)).text(2)}, with the accuracy "
            f"{bootstrap(correlations(mir, accuracy)).text(2)} (a guess at a model's worth should have −1)."
        )
    missing = [switch.name for switch in every if len(switch.mir) < SEEDS_NEEDED]
    if missing:
        told.append(f"Not measured yet, for want of five complete seeds: {listed([f'*{name}*' for name in missing])}.")
    return told


def _largest(effects: Sequence[tuple[Estimate, Switch]]) -> float:
    return max(abs(found.value) for found, _ in effects)


def _then(value: float) -> str:
    """A term of a sum that is written out."""
    text = signed(value)
    return f"{'+' if text[0] == '+' else '−'} {text[1:]}"
