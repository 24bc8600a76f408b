"""Tables, figures and sentences of the chapter on token weights and losses on the gap, from the ledger's rows.

Whether a claim holds is judged in `mirlab.first.closing.weighting`. No sentence is read off fewer seeds than
`mirlab.first.mediation.SEEDS_NEEDED`.
"""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mirlab.first.closing.weighting import (
    APART,
    CAL,
    FORCED,
    HELPS,
    LIGHT,
    PAIRS,
    PRIOR,
    PROTOCOL,
    REGAP,
    REGIMES,
    STRONG,
)
from mirlab.first.estimates import Estimate, bootstrap
from mirlab.first.figures import figure_against_accuracy, figure_arms, headline
from mirlab.first.mediation import LONG, SEEDS_NEEDED
from mirlab.first.outcomes import NOT_MEASURED, OPPOSITE, REPRODUCED, Claim, overall
from mirlab.first.reporting import listed
from mirlab.first.tables import Row, arms_of, cells, complete_seeds, difference, frame
from mirlab.methods.weighting import ForcedGap

COLUMNS = {"mir": "MIR", "norm_ratio": "norm ratio, layer 1", "accuracy": "accuracy", "perplexity": "perplexity"}
"""What is compared, by the columns of `mirlab.first.tables.frame`, with the names on a page."""

WEIGHTED = ("CAL", "PRIOR")
"""Arms that weigh words and leave the gap alone."""

_DIGITS = {"mir": 2, "norm_ratio": 1, "accuracy": 3, "perplexity": 2}

LIGHTEST = "light gap loss, high rate"
RIVALS = {
    LIGHTEST: ("weighting", f"high, {FORCED[0]}"),
    "strong gap loss, high rate": ("weighting", f"high, {FORCED[-1]}"),
    "light gap loss, low rate": ("weighting", f"low, {FORCED[0]}"),
    "ReGap, high rate": ("weighting", "high, ReGap"),
    "plain, high rate": ("weighting", "high, plain"),
    "plain, low rate": ("weighting", "low, plain"),
    "plain, high rate, long warm-up": ("warmup_or_data", f"high, {PAIRS} pairs, {LONG} warm-up steps"),
    "plain, low rate, long warm-up": ("warmup_or_data", f"low, {PAIRS} pairs, {LONG} warm-up steps"),
    "MoCa, high rate": ("moca", "high, MoCa"),
    "one LayerNorm, high rate": ("moca", "high, LayerNorm"),
    "matched norms, high rate": ("weighting", "high, matched norms"),
}
"""Experiment and arm of what could stand in the place of the light loss at the high rate, which comes first. All with
as many pairs, the same seeds, and the same encoders and language models."""

_CLOSERS = tuple(RIVALS)[:4]
"""Those of the rivals that have a loss on the gap, or on the distance of tokens."""

_AHEAD = "the light loss is ahead by"


def arms_in_words() -> str:
    """What was run, as a list in Markdown."""
    layers = listed([str(layer) for layer in ForcedGap().layers])
    return "\n".join(
        [
            f"- *plain*: the recipe as it is, {PAIRS} pairs, five seeds.",
            "- *matched norms*: plain, and every vision token rescaled to the mean length of the text embeddings where "
            "it enters the language model. That shortens vision tokens with no loss on the gap. It also takes away "
            "what lengths differ by from token to token.",
            f"- *gap, light* and *gap, strong*: the gap loss with $\\lambda = {LIGHT:g}$ and $\\lambda = {STRONG:g}$, "
            f"over layers {layers} of 8.",
            f"- *ReGap*: the distance of means {{eq}}`weighting-regap` with $\\lambda = {APART:g}$, at the high rate.",
            "- *CAL* at both rates, and *PRIOR* at the high one.",
        ]
    )


def change(table: pd.DataFrame, name: str, column: str) -> np.ndarray:
    """An arm minus the plain run of its regime, over the seeds that have both; empty if none has.

    Args:
        table: From `mirlab.first.tables.frame`.
        name: Of the arm.
        column: Of the table.
    """
    return difference(table, name, f"{name.partition(', ')[0]}, plain", column)


def _by_regime() -> list[str]:
    """All arms, regime after regime."""
    return [name for regime in REGIMES for name in arms_of(PROTOCOL, regime)]


def levels(rows: Iterable[Row]) -> pd.DataFrame:
    """Means over seeds of every arm; empty where there is no run."""
    table = frame(rows)
    lines = {}
    for name in _by_regime():
        here = table[table["arm"] == name] if len(table) else table
        regime, _, what = name.partition(", ")
        lines[regime, what] = {
            label: f"{here[column].mean():.{_DIGITS[column]}f}" if len(here) else ""
            for column, label in COLUMNS.items()
        } | {"seeds": len(here)}
    return pd.DataFrame(lines).T


def changes(rows: Iterable[Row]) -> pd.DataFrame:
    """What every arm differs by from the plain run of its regime and seed: means over seeds with their intervals."""
    table = frame(rows)
    lines = {}
    for name in _by_regime():
        regime, _, what = name.partition(", ")
        if what == "plain":
            continue
        line = {}
        for column, label in COLUMNS.items():
            moved = change(table, name, column)
            # A cell may break before its interval only.
            text = bootstrap(moved).text(_DIGITS[column]) if len(moved) > 1 else ""
            line[label] = text.replace(", ", ",\u00a0")
        lines[regime, what] = line
    return pd.DataFrame(lines).T


def figure_forced_arms(rows: Iterable[Row]) -> Figure:
    """MIR above, accuracy after stage 2 below, by arm; one column of panels a regime.

    An arm has its own line, colour and marker in all panels; the line is empty where it was not run in a regime.
    """
    table = frame(rows)
    figure, axes = plt.subplots(2, len(REGIMES), figsize=(10, 6.8), layout="constrained", squeeze=False)
    ways = list(dict.fromkeys(name.partition(", ")[2] for name in PROTOCOL.arms))
    for regime, column in zip(REGIMES, axes.T, strict=True):
        for metric, unit, ax in zip(
            ("mir", "accuracy"), ("MIR (log10)", "accuracy (share right)"), column, strict=True
        ):
            values = {
                way: table.loc[table["arm"] == f"{regime}, {way}", metric].to_numpy(float) if len(table) else []
                for way in ways
            }
            figure_arms({"": values}, ax, xlabel=unit)
            if regime != REGIMES[0]:
                ax.set_yticklabels([])
        column[0].set_title(_forced_title(table, regime))
    return figure


def _forced_title(table: pd.DataFrame, regime: str) -> str:
    """What the losses did, a line each, or the regime alone where too few seeds are there."""
    lines = [f"{regime} rate"]
    for forced in FORCED:
        moved = {column: change(table, f"{regime}, {forced}", column) for column in ("mir", "accuracy")}
        if len(moved["mir"]) < SEEDS_NEEDED:
            return lines[0]
        mir, accuracy = (bootstrap(values) for values in moved.values())
        lines.append(f"{forced.removeprefix('gap, ')} loss: MIR {mir.value:+.2f}, accuracy {accuracy.value:+.3f}")
    return "\n".join(lines).replace("-", "−")


def figure_forced_against(rows: Iterable[Row]) -> Figure:
    """MIR against accuracy after stage 2, one mark for each arm that is plain or lowers the gap, one panel a regime.

    The titles name the arms whose accuracy is above that of the plain run with its whole interval.
    """
    table = frame(rows)
    figure, axes = plt.subplots(1, len(REGIMES), figsize=(10, 4.5), layout="constrained")
    for regime, ax in zip(REGIMES, axes, strict=True):
        arms = [name for name in arms_of(PROTOCOL, regime) if not name.endswith(WEIGHTED)]
        arms = [name for name in arms if len(table) and (table["arm"] == name).any()]
        seeds = complete_seeds(table, arms)
        data = {
            name.partition(", ")[2]: tuple(cells(table, [name], column, seeds)[0] for column in ("mir", "accuracy"))
            for name in arms
            if seeds
        }
        figure_against_accuracy(data, ax)
        better = [
            way
            for way, (_, accuracy) in data.items()
            if "plain" in data and way != "plain" and bootstrap(accuracy - data["plain"][1]).low > 0
        ]
        found = f"above plain in accuracy: {'; '.join(better) or 'none'}"
        ax.set_title(headline(f"{regime} rate", found, [len(seeds)]).replace(": ", "\n", 1))
    return figure


def _effect(accuracy: Estimate) -> str:
    """What an interval says of a change of accuracy, and the interval."""
    if accuracy.low > 0 or accuracy.high < 0:
        return f"It {'raises' if accuracy.low > 0 else 'lowers'} the accuracy, {accuracy.text(3)}"
    return f"What it does to the accuracy these seeds cannot tell, {accuracy.text(3)}"


def reading(rows: Iterable[Row]) -> list[str]:
    """What the runs say of lowering MIR by force, and of weights for words, in sentences.

    First one for each loss and regime, with the change of MIR, how much of it the norm-only baseline shares, and the
    changes of accuracy and perplexity; then, for each regime, what accuracy does on the way from plain to strong and
    where two arms end at the same MIR; then the words.
    """
    table = frame(rows)
    said = []
    for regime in REGIMES:
        for forced in (*FORCED, "ReGap"):
            name = f"{regime}, {forced}"
            if name not in PROTOCOL.arms:
                continue
            moved = {column: change(table, name, column) for column in ("mir", "norm_only", "accuracy", "perplexity")}
            count = len(moved["mir"])
            if count < SEEDS_NEEDED:
                said.append(f"{name}: not measured yet ({count} of {SEEDS_NEEDED} seeds).")
                continue
            mir, norm, accuracy, perplexity = (bootstrap(values) for values in moved.values())
            loss = f"the {forced.removeprefix('gap, ')} loss" if forced in FORCED else f"the loss of {forced}"
            said.append(
                f"At the {regime} rate {loss} moves MIR by {mir.text(2)}, the norm-only baseline by {norm.text(2)}. "
                f"{_effect(accuracy)}. Perplexity moves by {perplexity.text(2)}."
            )
    for regime in REGIMES:
        said += _on_the_way(table, regime) + _at_one_mir(table, regime)
    for way in WEIGHTED:
        found = {}
        for name in (f"{regime}, {way}" for regime in REGIMES):
            moved = (
                [change(table, name, column) for column in ("accuracy", "perplexity")] if name in PROTOCOL.arms else []
            )
            if moved and len(moved[0]) >= SEEDS_NEEDED:
                found[name.partition(",")[0]] = [bootstrap(values) for values in moved]
        each = [
            f"accuracy by {accuracy.text(3)} and perplexity by {perplexity.text(2)} at the {regime} rate"
            for regime, (accuracy, perplexity) in found.items()
        ]
        if each:
            said.append(f"{way} moves {', and '.join(each)}.")
    return said


def _on_the_way(table: pd.DataFrame, regime: str) -> list[str]:
    """MIR and accuracy from plain over light to strong."""
    arms = [f"{regime}, {way}" for way in ("plain", *FORCED)]
    seeds = complete_seeds(table, arms)
    if len(seeds) < SEEDS_NEEDED:
        return []
    mir, accuracy = (cells(table, arms, column, seeds).mean(axis=1) for column in ("mir", "accuracy"))
    ways = " → ".join(f"{value:.2f}" for value in mir), " → ".join(f"{value:.3f}" for value in accuracy)
    return [f"From plain over light to strong, at the {regime} rate, MIR goes {ways[0]} and accuracy {ways[1]}."]


def _at_one_mir(table: pd.DataFrame, regime: str) -> list[str]:
    """The strong loss against matched norms, which end at about the same MIR."""
    strong, matched, plain = (f"{regime}, {way}" for way in (FORCED[-1], "matched norms", "plain"))
    seeds = complete_seeds(table, [strong, matched, plain])
    if len(seeds) < SEEDS_NEEDED:
        return []
    mir = bootstrap(difference(table, strong, matched, "mir", seeds))
    accuracy, lost, won = (
        bootstrap(difference(table, *pair, "accuracy", seeds))
        for pair in ((strong, matched), (matched, plain), (strong, plain))
    )
    return [
        f"At the {regime} rate the strong loss and matched norms differ by {mir.text(2)} in MIR and by "
        f"{accuracy.text(3)} in accuracy. From the plain run matched norms are {lost.text(3)} away, the strong loss "
        f"{won.text(3)}."
    ]


def rivals(rows: Iterable[Row]) -> pd.DataFrame:
    """What could stand in the place of the light loss at the high rate: levels, and by how much that loss is ahead.

    Args:
        rows: Of the experiments ``weighting``, ``warmup_or_data`` and ``moca``.

    Returns:
        One line for each of `RIVALS`, as text; with fewer than `SEEDS_NEEDED` seeds it says so.
    """
    found = _rivals(rows)
    lines = {}
    for label in RIVALS:
        here, ahead = found.get(label, (None, None))
        if here is None:
            lines[label] = {"MIR": "not measured"}
            continue
        lines[label] = {
            COLUMNS[column]: f"{here[column].mean():.{_DIGITS[column]}f}"
            for column in ("mir", "norm_ratio", "accuracy")
        }
        if label != LIGHTEST:
            lines[label] |= {
                _AHEAD: bootstrap(ahead).text(3).replace(", ", ",\u00a0"),
                "in seeds": f"{int((ahead > 0).sum())} of {len(ahead)}",
            }
    return pd.DataFrame(lines).T.fillna("")


def _rivals(rows: Iterable[Row]) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """By label the lines of its arm, over the seeds shared with the light loss, and the lead of that loss."""
    table = frame(rows)
    if not len(table):
        return {}

    def of(label: str) -> pd.DataFrame:
        experiment, arm = RIVALS[label]
        return table[(table["experiment"] == experiment) & (table["arm"] == arm)].set_index("seed")

    light, found = of(LIGHTEST), {}
    for label in RIVALS:
        other = of(label)
        seeds = sorted(set(light.index) & set(other.index))
        if len(seeds) >= SEEDS_NEEDED:
            here = other.loc[seeds]
            found[label] = here, (light.loc[seeds, "accuracy"] - here["accuracy"]).to_numpy(float)
    return found


def beside(rows: Iterable[Row]) -> list[str]:
    """What `rivals` says, in sentences: whom the light loss is ahead of, how even its runs are, and what of length.

    Args:
        rows: As for `rivals`.
    """
    found = _rivals(rows)
    if set(found) != set(RIVALS):
        return ["Not all of these runs are in the ledger yet."]
    lead = {label: bootstrap(ahead) for label, (_, ahead) in found.items() if label != LIGHTEST}
    clear = [label for label, each in lead.items() if each.low > 0]
    behind = [label for label, each in lead.items() if each.high < 0]
    undecided = [label for label in lead if label not in clear + behind]
    said = [
        f"The interval of the light loss's lead {end} against: {'; '.join(labels)}."
        for end, labels in (("lies above 0", clear), ("holds 0", undecided), ("lies below 0", behind))
        if labels
    ]
    light, plain = (found[label][0]["accuracy"] for label in (LIGHTEST, "plain, high rate"))
    said.append(
        f"The runs with the light loss lie between {light.min():.3f} and {light.max():.3f} in accuracy, the plain ones "
        f"at the same rate between {plain.min():.3f} and {plain.max():.3f}."
    )
    return [*said, _on_length({label: here for label, (here, _) in found.items()})]


def _on_length(found: dict[str, pd.DataFrame]) -> str:
    """Whether any run without a loss on the gap has vision tokens about as long as those of the light loss."""
    ratio, accuracy = (
        {label: float(here[column].mean()) for label, here in found.items()} for column in ("norm_ratio", "accuracy")
    )
    own = ratio[LIGHTEST]
    near = [label for label in found if label not in _CLOSERS and 0.5 < ratio[label] / own < 2]
    if near:
        return f"Vision tokens about as long as with the light loss, without it: {listed(near)}."
    others = [label for label in found if label not in _CLOSERS]
    longer, shorter = [x for x in others if ratio[x] > own], [x for x in others if ratio[x] <= own]
    parts = []
    for word, labels in (("longer", longer), ("shorter", shorter)):
        if labels:
            ratios, accuracies = ([of[x] for x in labels] for of in (ratio, accuracy))
            limit = f"at least {min(ratios):.1f}" if word == "longer" else f"at most {max(ratios):.1f}"
            parts.append(f"{word} ({limit}; accuracy {min(accuracies):.3f} to {max(accuracies):.3f})")
    return (
        f"With the light loss the norm ratio of layer 1 is {own:.1f}, and the accuracy {accuracy[LIGHTEST]:.3f}. "
        f"Without a loss on the gap the vision tokens are {' or '.join(parts)}. No run brings them to that length by "
        "other means."
    )


def advice(claims: Iterable[Claim], rows: Iterable[Row] = ()) -> list[str]:
    """What follows for a reader who trains a model, from the judged claims and from `rivals`.

    Args:
        claims: Those of `mirlab.first.closing.weighting`.
        rows: As for `rivals`; none if left out.
    """
    claims = list(claims)
    said = _advice_on_force([claim for claim in claims if claim.paper == HELPS])
    found = _rivals(rows)
    cheaper = {
        label: bootstrap(found[label][1])
        for label in ("ReGap, high rate", "plain, low rate, long warm-up")
        if label in found
    }
    cheaper = {label: lead.text(3) for label, lead in cheaper.items() if lead.low <= 0}
    if cheaper:
        each = "; ".join(f"{label}: {lead}" for label, lead in cheaper.items())
        said.append(
            "Try what costs less first. Whether the light loss at the high rate is ahead of these, in accuracy, these "
            f"seeds cannot tell: {each}."
        )
    for claim in claims:
        if claim.paper == REGAP and claim.outcome != NOT_MEASURED:
            said.append(
                "ReGap, that is the distance of tokens, lowers MIR without costing accuracy: "
                f"{overall([claim])} ({'; '.join(claim.measured.split('; ')[:2])})."
            )
    for method, paper in (("CAL", CAL), ("PRIOR", PRIOR)):
        here = [claim for claim in claims if claim.paper == paper and claim.outcome != NOT_MEASURED]
        if here:
            each = "; ".join(
                f"{Estimate(claim.estimate, claim.low, claim.high, claim.seeds).text(3)} at the {claim.condition} rate"
                for claim in here
            )
            why = "" if any(claim.outcome == REPRODUCED for claim in here) else " These runs give no reason to use it."
            said.append(f"{method}: {overall(here)}. Accuracy: {each}.{why}")
    return said


def _settings(conditions: list[str]) -> str:
    """Conditions such as ``high, gap, light`` in words."""
    parts = [condition.split(", ") for condition in conditions]
    return listed([f"the {weight} loss at the {regime} rate" for regime, _, weight in parts])


def _advice_on_force(claims: list[Claim]) -> list[str]:
    judged = [claim for claim in claims if claim.outcome != NOT_MEASURED]
    if not judged:
        return ["The runs that would say whether force helps are not in the ledger yet: no advice."]
    good = [claim.condition for claim in judged if claim.outcome == REPRODUCED]
    bad = [claim.condition for claim in judged if claim.outcome == OPPOSITE]
    said = []
    if good:
        said.append(
            f"A loss on the gap made better models than the plain run at the same rate in {len(good)} of {len(judged)} "
            f"settings ({_settings(good)}). Elsewhere these seeds show no gain. If you try one, take the light weight "
            "first, and keep it only if your own questions are answered better."
        )
    if bad:
        said.append(
            f"Forcing MIR down made worse models in {len(bad)} of {len(judged)} settings ({_settings(bad)}). Do not "
            "choose the weight by MIR: the heaviest wins there."
        )
    if not good:
        said.append(
            "In no setting could these seeds show that forcing MIR down makes a better model: do not add a loss on the "
            "gap for MIR's sake."
        )
    return said
