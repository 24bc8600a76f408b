"""What the ledger's rows say about the paper's claims.

Claims and criteria are those of `mirlib.lab.protocols`, which were written before any row of the ledger was there: a
claim that is not in the protocol cannot be judged. Nothing is judged without an interval, and nothing from fewer than
five seeds.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from mirlib.lab.estimates import Estimate, bootstrap, correlations, ratio_of_means, spearman
from mirlib.lab.mediation import SEEDS_NEEDED, WARMUP_SERIES, WARMUP_STEPS, changes, grid, mediation
from mirlib.lab.protocols import MOVED, PROTOCOLS, RIVALS, Protocol
from mirlib.lab.tables import (
    METRICS,
    Row,
    arms_by_key,
    arms_of,
    cells,
    complete_seeds,
    frame,
    load,
    loss_curve,
    probes,
    steps_of,
    summary,
)

__all__ = [
    "TOLERANCE",
    "Claim",
    "as_frame",
    "boxed",
    "frame",
    "grouped",
    "judge",
    "load",
    "markdown",
    "mediation",
    "overall",
    "probes",
    "ranges",
    "report",
    "samples_needed",
    "spans",
    "summary",
]

TOLERANCE = {"mir": 0.02, "accuracy": 0.03}
"""By how much a row that is run again may differ, on another processor or with other library versions."""

REPRODUCED, NOT_REPRODUCED, NOT_MEASURED = "reproduced", "not reproduced", "not measured"
ONLY_WHEN = "reproduced only when"

CLAUSES = {
    "high": "the rate is high",
    "low": "the rate is low",
    "matched": "norms are matched",
    "matched high": "norms are matched at the high rate",
    "unlocked": "encoder and language model are unlocked",
    "lora": "LoRA learns",
    "lora merged": "LoRA is merged",
    "half": "half of the layers learn",
    "all": "all layers learn",
}
"""What follows ``reproduced only when``, by the condition of a claim."""

# ---------------------------------------------------------------------------------------------------------------------
# Claims


@dataclass(frozen=True)
class Claim:
    """One claim of the paper under one condition, and what the ledger says of it.

    Attributes:
        experiment: Whose rows were read.
        figure: Of the paper, for example ``Fig. 1``.
        paper: What it says.
        condition: What it was tested under: a regime, an arm; empty if there is one only.
        measured: What came out, in a sentence with numbers.
        estimate: The deciding number; not a number where nothing was judged.
        low: Lower end of its 95 % interval over seeds.
        high: Upper end.
        seeds: Number of seeds that have all the runs it needs.
        parts: Number of encoders and language models among them.
        runs: Number of runs read.
        verdict: ``reproduced``, ``reproduced only when ...``, ``not reproduced`` or ``not measured``.
        criterion: What had to hold.
        command: What repeats it.
    """

    experiment: str
    figure: str
    paper: str
    condition: str
    measured: str
    estimate: float
    low: float
    high: float
    seeds: int
    parts: int
    runs: int
    verdict: str
    criterion: str
    command: str


@dataclass(frozen=True)
class Part:
    """One number that a verdict hangs on.

    Attributes:
        name: What it is.
        estimate: The number with its interval.
        holds: Whether it is as the claim says.
        note: What a reader should know beside it.
        clause: What else had to be granted for it to hold; goes into the verdict.
        digits: To print.
    """

    name: str
    estimate: Estimate
    holds: bool
    note: str = ""
    clause: str = ""
    digits: int = 2

    def __str__(self) -> str:
        return f"{self.name} {self.estimate.text(self.digits)}{f' ({self.note})' if self.note else ''}"


Decide = Callable[[pd.DataFrame, list[int]], list[Part]]


def below(name: str, values: Sequence[float] | np.ndarray, digits: int = 3) -> Part:
    """The interval of the mean must lie below 0."""
    found = bootstrap(values)
    return Part(name, found, found.high < 0, _side(found, found.low > 0), digits=digits)


def above(name: str, values: Sequence[float] | np.ndarray, digits: int = 3) -> Part:
    """The interval of the mean must lie above 0."""
    found = bootstrap(values)
    return Part(name, found, found.low > 0, _side(found, found.high < 0), digits=digits)


def follows(name: str, values: Sequence[float] | np.ndarray) -> Part:
    """The mean correlation must be at most -0.8, and its interval lie below 0."""
    found = bootstrap(values)
    return Part(name, found, found.value <= -0.8 + 1e-9 and found.high < 0, _side(found, found.low > 0))


def _side(found: Estimate, opposite: bool) -> str:
    return "the other way" if opposite else "the interval holds 0" if found.low <= 0 <= found.high else ""


_GROWS_WITH_ACCURACY = ("in_context_text", "in_context_image", "discrimination")
"""Metrics of which more is better; of all others less is."""


def _unsigned(correlated: dict[str, np.ndarray]) -> Part:
    """Whether the first of two metrics ranks as accuracy does more closely than the second, whatever the signs are.

    A reader must know where a sign is the wrong one, so it is named beside the number; where the metric that is
    called better owes its rank to it, the verdict names it too.
    """
    first, second = correlated.values()
    names = METRICS | {"mir": "MIR"}
    wrong = []
    for column, values in correlated.items():
        rises = column in _GROWS_WITH_ACCURACY
        interval = bootstrap(values)
        found = interval.high < 0 if rises else interval.low > 0
        wrong.append(f"{names[column]} {'falls' if rises else 'rises'} with accuracy" if found else "")
    part = above("difference of absolute correlations with accuracy", np.abs(first) - np.abs(second), 2)
    notes = [part.note, ", ".join(f"{names[column]} {bootstrap(values)}" for column, values in correlated.items())]
    notes += [f"wrong sign: {', '.join(filter(None, wrong))}"] if any(wrong) else []
    clause = f"the sign is ignored ({wrong[0]})" if wrong[0] else ""
    return replace(part, note="; ".join(filter(None, notes)), clause=clause)


class _Judge:
    """Claims of one protocol from its rows."""

    def __init__(self, protocol: Protocol, rows: Sequence[Row]) -> None:
        self.protocol = protocol
        self.rows = [row for row in rows if row["experiment"] == protocol.name]
        self.table = frame(self.rows)
        self.claims: list[Claim] = []
        self.command = f"mir lab run {protocol.name}"

    def claim(
        self,
        figure: str,
        paper: str,
        condition: str,
        arms: Sequence[str],
        decide: Decide,
        *,
        complete: Callable[[int], bool] = lambda seed: True,
    ) -> None:
        """Judge one claim of the protocol from the seeds that have all arms; `complete` may ask for more of a seed."""
        needed = [run for arm in arms for run in self.protocol.arms[arm]]
        here = self.table[self.table["arm"].isin(arms)] if len(self.table) else pd.DataFrame({"arm": [], "seed": []})
        seeds = [seed for seed in complete_seeds(here, arms) if complete(seed)]
        criterion = self.protocol.criteria[paper]
        fixed = {"figure": figure, "paper": paper, "condition": condition, "criterion": criterion}
        if len(seeds) < SEEDS_NEEDED:
            wanted = len({run.seed for run in needed})
            self.claims.append(
                Claim(
                    experiment=self.protocol.name,
                    measured=f"{len(here)} of {len(needed)} runs are in the ledger; {len(seeds)} of {wanted} seeds "
                    "have all that it needs",
                    estimate=float("nan"),
                    low=float("nan"),
                    high=float("nan"),
                    seeds=len(seeds),
                    parts=0,
                    runs=len(here),
                    verdict=NOT_MEASURED,
                    command=self.command,
                    **fixed,
                )
            )
            return
        used = here[here["seed"].isin(seeds)]
        found = decide(used, seeds)
        decisive = next((part for part in found if not part.holds), found[0])
        self.claims.append(
            Claim(
                experiment=self.protocol.name,
                measured="; ".join(map(str, found)),
                estimate=decisive.estimate.value,
                low=decisive.estimate.low,
                high=decisive.estimate.high,
                seeds=len(seeds),
                parts=used["parts"].nunique(),
                runs=len(used),
                verdict=_verdict(found, condition),
                command=self.command,
                **fixed,
            )
        )


def _verdict(parts: Sequence[Part], condition: str) -> str:
    if not all(part.holds for part in parts):
        return NOT_REPRODUCED
    granted = [part.clause for part in parts if part.clause]
    if not granted:
        return REPRODUCED
    return f"{ONLY_WHEN} {' and '.join(filter(None, [CLAUSES.get(condition, condition), *granted]))}"


def judge(protocol: Protocol, rows: Sequence[Row]) -> list[Claim]:
    """All claims of a protocol.

    Args:
        protocol: What was declared.
        rows: The ledger's rows; those of other experiments are passed over, but those of data_scale give the unit in
            which robustness is measured.

    Returns:
        The claims, one for each condition. Where some conditions of a claim reproduce it and others do not, those that
        do say ``reproduced only when ...``.
    """
    judging = _Judge(protocol, rows)
    {
        "data_scale": _data_scale,
        "warmup_or_data": _warmup_or_data,
        "convergence": _convergence,
        "overfitting": _overfitting,
        "robustness": lambda at: _robustness(at, [row for row in rows if row["experiment"] == "data_scale"]),
        "captions": _captions,
        "recipes": _recipes,
        "unlocking": _unlocking,
        "connectors": _connectors,
        "sizes": _sizes,
    }[protocol.name](judging)
    return _with_conditions(judging.claims)


def _with_conditions(claims: list[Claim]) -> list[Claim]:
    result = []
    for claim in claims:
        group = [other for other in claims if other.paper == claim.paper]
        failed = any(other.verdict == NOT_REPRODUCED for other in group)
        if claim.verdict == REPRODUCED and claim.condition and failed:
            claim = replace(claim, verdict=f"{ONLY_WHEN} {CLAUSES[claim.condition]}")
        result.append(claim)
    return result


def overall(claims: Sequence[Claim]) -> str:
    """One verdict for a claim that was tested under several conditions.

    Example:
        >>> overall([])
        'not measured'
    """
    good = [claim for claim in claims if claim.verdict.startswith(REPRODUCED)]
    bad = [claim for claim in claims if claim.verdict == NOT_REPRODUCED]
    open_ = [claim.condition for claim in claims if claim.verdict == NOT_MEASURED]
    if not good and not bad:
        return NOT_MEASURED
    verdict = NOT_REPRODUCED
    if good:
        granted = any(claim.verdict.startswith(ONLY_WHEN) for claim in good)
        clauses = [
            claim.verdict.removeprefix(ONLY_WHEN).strip()
            if claim.verdict.startswith(ONLY_WHEN)
            else CLAUSES[claim.condition]
            for claim in good
            if claim.condition or claim.verdict.startswith(ONLY_WHEN)
        ]
        verdict = f"{ONLY_WHEN} {', or '.join(clauses)}" if bad or granted else REPRODUCED
    return verdict + (f" ({', '.join(open_)}: {NOT_MEASURED})" if open_ else "")


def _data_scale(at: _Judge) -> None:
    protocol = at.protocol
    series = {name: arms_of(protocol, name) for name in ("high", "low", "matched", "unlocked")}
    frozen = {name: arms for name, arms in series.items() if name != "unlocked"}

    def with_accuracy(arms: list[str], column: str = "mir", other: str = "accuracy") -> Decide:
        def decide(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
            values = cells(table, arms, column, seeds), cells(table, arms, other, seeds)
            return [follows(f"correlation of MIR with {METRICS.get(other, other)}", correlations(*values))]

        return decide

    for name, arms in frozen.items():
        at.claim("Fig. 1", "MIR follows the accuracy after stage 2", name, arms, with_accuracy(arms))
    for name, arms in frozen.items():
        at.claim(
            "Fig. 1, 6",
            "MIR falls with the amount of data",
            name,
            arms,
            with_accuracy(arms, other="pairs"),
        )

    def better(arms: list[str], column: str) -> Decide:
        def decide(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
            accuracy = cells(table, arms, "accuracy", seeds)
            ours = correlations(cells(table, arms, "mir", seeds), accuracy)
            theirs = correlations(cells(table, arms, column, seeds), accuracy)
            return [_unsigned({"mir": ours, column: theirs})]

        return decide

    for column, paper in RIVALS.items():
        for name, arms in frozen.items():
            at.claim("Fig. 1", paper, name, arms, better(arms, column))

    def saturates(arms: list[str]) -> Decide:
        def decide(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
            last = arms[-2:]
            change = {
                key: np.diff(cells(table, last, key, seeds), axis=0)[0] for key in ("accuracy", "loss", "perplexity")
            }
            gain = bootstrap(change["accuracy"])
            first = Part("over the last doubling accuracy changes by", gain, gain.low <= 0, digits=3)
            return [first, below("loss by", change["loss"]), below("perplexity by", change["perplexity"])]

        return decide

    for name, arms in frozen.items():
        at.claim(
            "Fig. 1",
            "Loss and perplexity keep falling while performance saturates",
            name,
            arms,
            saturates(arms),
        )

    unlocked = series["unlocked"]
    at.claim(
        "Fig. 6",
        "With encoder and language model unlocked, too, MIR follows the accuracy",
        "",
        unlocked,
        with_accuracy(unlocked),
    )
    pair = series["matched"][1:3] + unlocked[1:3]

    def longer(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
        def extra(column: str) -> np.ndarray:
            values = cells(table, pair, column, seeds)
            return (values[3] - values[2]) - (values[1] - values[0])

        return [
            below("from 2048 to 8192 pairs, unlocked against frozen: MIR changes more by", extra("mir")),
            above("accuracy by", extra("accuracy")),
        ]

    at.claim(
        "Fig. 6",
        "With encoder and language model unlocked, performance and MIR improve for longer",
        "",
        pair,
        longer,
    )

    def worse(arms: list[str]) -> Decide:
        def decide(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
            accuracy = cells(table, arms, "accuracy", seeds)
            columns = ("perplexity", "perplexity_out")
            return [_unsigned({key: correlations(cells(table, arms, key, seeds), accuracy) for key in columns})]

        return decide

    for name, arms in frozen.items():
        at.claim(
            "Fig. 9",
            "Perplexity is a worse guide still when evaluated out of domain",
            name,
            arms,
            worse(arms),
        )

    curves = {(arms_by_key(protocol.name).get(row["key"]), row["configuration"]["seed"]): row for row in at.rows}
    for name, arms in series.items():

        def flattens(_: pd.DataFrame, seeds: list[int], arm: str = arms[-1]) -> list[Part]:
            layers = [curves[arm, seed]["metrics"]["mir"]["per_layer"] for seed in seeds]
            falls = [spearman(range(len(curve)), curve) for curve in layers]
            ends = [np.log10(curve[-1] / curve[0]) for curve in layers]
            return [
                follows("correlation of a layer's distance with its number", falls),
                below("log10 of the last layer's distance over the first's", ends),
            ]

        at.claim("Fig. 2", "The gap shrinks with depth in every model", name, arms[-1:], flattens)


# --- warmup_or_data ---------------------------------------------------------------------------------------------------


def _warmup_or_data(at: _Judge) -> None:
    for name in WARMUP_SERIES:
        arms = arms_of(at.protocol, name)

        def proportional(table: pd.DataFrame, seeds: list[int], name: str = name) -> list[Part]:
            change = changes(grid(table, name, "mir", seeds))["proportional"]
            return [below("change of MIR from 2048 to 8192 pairs", change)]

        at.claim(
            "Fig. 1",
            "MIR falls with data where warm-up is 3 % of the steps",
            name,
            arms,
            proportional,
        )
    for name in WARMUP_SERIES:

        def fixed(table: pd.DataFrame, seeds: list[int], name: str = name) -> list[Part]:
            change = changes(grid(table, name, "mir", seeds))
            return [
                below(f"change of MIR at {steps} warm-up steps", change[f"{steps} steps"]) for steps in WARMUP_STEPS
            ]

        at.claim(
            "Fig. 1",
            "Data itself lowers MIR: also where the number of warm-up steps is fixed",
            name,
            arms_of(at.protocol, name),
            fixed,
        )
    for name in WARMUP_SERIES:

        def through(table: pd.DataFrame, seeds: list[int], name: str = name) -> list[Part]:
            change = changes(grid(table, name, "mir", seeds))
            return [
                below("change with proportional warm-up", change["proportional"]),
                above("change at fixed warm-up minus half of that", change["fixed"] - 0.5 * change["proportional"]),
            ]

        at.claim(
            "Fig. 1, Table 2",
            "The fall comes through warm-up (what a prototype of this laboratory saw; the paper is silent)",
            name,
            arms_of(at.protocol, name),
            through,
        )


# --- during training --------------------------------------------------------------------------------------------------


def _convergence(at: _Judge) -> None:
    table = probes(at.rows)

    for name in at.protocol.arms:

        def decide(_: pd.DataFrame, seeds: list[int], name: str = name) -> list[Part]:
            steps, falls, accurate, early = [], [], [], []
            for seed in seeds:
                one = table[(table["arm"] == name) & (table["seed"] == seed)].sort_values("step")
                steps.append(spearman(one["mir"], one["step"]))
                accurate.append(spearman(one["mir"], one["accuracy"]))
                middle = np.interp(one["step"].max() / 2, one["step"], one["mir"])
                falls.append((one["mir"].iloc[-1] - middle) - (middle - one["mir"].iloc[0]))
                early.append(middle - one["mir"].iloc[0])
            half = above("change of MIR in the second half of the steps minus that in the first", falls)
            first = bootstrap(early)
            return [
                follows("correlation of MIR with the step", steps),
                follows("with accuracy after stage 2", accurate),
                replace(half, note="; ".join(filter(None, [half.note, f"first half {first.text(3)}"]))),
            ]

        at.claim(
            "Fig. 4",
            "MIR falls steeply, then flattens, over the steps; performance rises with it",
            name,
            [name],
            decide,
        )


def _overfitting(at: _Judge) -> None:
    table = probes(at.rows)
    name = next(iter(at.protocol.arms))
    by_seed = {row["configuration"]["seed"]: row for row in at.rows}

    def decide(_: pd.DataFrame, seeds: list[int]) -> list[Part]:
        pivoted = table.pivot(index="step", columns="seed", values="mir")[seeds]
        accuracy = table.pivot(index="step", columns="seed", values="accuracy")[seeds]
        boundary = steps_of(by_seed[seeds[0]]) // 2
        steps = list(pivoted.index)
        before, after = steps[0], next(step for step in steps if step > boundary)
        curves = [loss_curve(by_seed[seed]) for seed in seeds]

        def window(first: int, last: int) -> np.ndarray:
            return np.array([curve[(curve[:, 0] > first) & (curve[:, 0] <= last), 1].mean() for curve in curves])

        wide = 32  # steps; the protocol says so
        drop = window(boundary, boundary + wide) - window(boundary - wide, boundary)
        whole = np.abs(np.mean(window(boundary - wide, boundary) - window(0, wide)))
        moved = (pivoted.loc[after] - pivoted.loc[boundary]).to_numpy()
        unit = np.abs((pivoted.loc[boundary] - pivoted.loc[before]).mean())
        later = (pivoted.loc[steps[-1]] - pivoted.loc[boundary]).to_numpy()
        change = bootstrap(later)
        gained = bootstrap((accuracy.loc[steps[-1]] - accuracy.loc[boundary]).to_numpy())
        across = bootstrap(moved / unit)
        return [
            below("change of loss across the boundary, in units of the first epoch's", drop / whole),
            Part(
                "change of MIR over the second epoch",
                change,
                change.high >= 0,
                f"across the boundary, in units of its change from step {before} to {boundary}: {across}",
                digits=3,
            ),
            Part("change of accuracy over the second epoch", gained, gained.low <= 0, digits=3),
        ]

    at.claim(
        "Fig. 5",
        "In a second epoch the loss drops at the boundary; performance and MIR do not improve",
        "",
        [name],
        decide,
    )


# --- robustness -------------------------------------------------------------------------------------------------------


def spans(scale_rows: Iterable[Row]) -> pd.DataFrame:
    """For each regime and seed of data_scale with all amounts: highest minus lowest MIR. Columns by regime."""
    table = frame(scale_rows)
    if not len(table):
        return pd.DataFrame()
    wide = table.pivot(index="seed", columns="arm", values="mir")
    found = {}
    for name in ("high", "low", "matched"):
        arms = arms_of(PROTOCOLS["data_scale"], name)
        if set(arms) <= set(wide.columns):
            whole = wide[arms].dropna()
            found[name] = whole.max(axis=1) - whole.min(axis=1)
    return pd.DataFrame(found)


def ranges(row: Row) -> dict[str, float]:
    """How far MIR of one model (a row of robustness) moves, by what was changed; means over draws.

    Returns:
        ``pictures`` (kinds of pictures, with news), ``texts`` (kinds of texts, with scenes), ``kinds`` (all pairs),
        ``template``, ``relevance`` and ``seen``: highest minus lowest.
    """
    metrics = row["metrics"]
    kinds = {picture: {text: np.mean(v) for text, v in by.items()} for picture, by in metrics["kinds"].items()}
    found = {
        "pictures": [by["news"] for by in kinds.values()],
        "texts": list(kinds["scenes"].values()),
        "kinds": [value for by in kinds.values() for value in by.values()],
        **{name: [np.mean(v) for v in metrics[name].values()] for name in ("template", "relevance", "seen")},
    }
    return {name: float(np.ptp(values)) for name, values in found.items()}


def samples_needed(counts: dict[str, list[float]], unit: float) -> int | None:
    """The smallest N with a spread, and a distance of its mean to that of the largest N, below a twentieth of `unit`.

    Example:
        >>> samples_needed({"1": [0.0, 1.0], "5": [0.50, 0.51], "1000": [0.5, 0.5]}, unit=1.0)
        5
    """
    largest = np.mean(counts[max(counts, key=int)])
    for number in sorted(counts, key=int):
        values = np.asarray(counts[number])
        if values.std(ddof=1) < unit / 20 and abs(values.mean() - largest) <= unit / 20:
            return int(number)
    return None


_VARIED = {
    "pictures": ("Fig. 3a", "four kinds of pictures, with news"),
    "texts": ("Fig. 3a", "five kinds of texts, with scenes"),
    "kinds": ("Fig. 3a", "twenty pairs of kinds"),
    "template": ("Fig. 3b", "chat or plain"),
    "relevance": ("Fig. 3b", "own or another scene's caption"),
    "seen": ("Fig. 3c", "pictures and captions of stage 1 or held-out ones"),
}


def _robustness(at: _Judge, scale_rows: list[Row]) -> None:
    at.command = "mir lab run data_scale && mir lab run robustness"
    units = spans(scale_rows)
    by_seed = {(arms_by_key("robustness").get(row["key"]), row["configuration"]["seed"]): row for row in at.rows}

    def unit(name: str, seeds: Iterable[int]) -> np.ndarray:
        return units.loc[list(seeds), name].to_numpy()

    def has_unit(name: str) -> Callable[[int], bool]:
        return lambda seed: name in units and seed in units.index and bool(np.isfinite(units.loc[seed, name]))

    for key, (figure, how) in _VARIED.items():
        for name in at.protocol.arms:

            def decide(
                _: pd.DataFrame, seeds: list[int], name: str = name, key: str = key, how: str = how
            ) -> list[Part]:
                moved = np.array([ranges(by_seed[name, seed])[key] for seed in seeds])
                found = bootstrap(np.array([moved, unit(name, seeds)]), ratio_of_means)
                plain = f"range of MIR {bootstrap(moved).text(3)}; unit {bootstrap(unit(name, seeds)).text(3)}"
                label = f"{how}: range, in units of the difference between the models of data_scale,"
                return [Part(label, found, found.high < 0.25, plain)]

            at.claim(
                figure,
                MOVED[key],
                name,
                [name],
                decide,
                complete=has_unit(name),
            )
    for name in at.protocol.arms:

        def enough(_: pd.DataFrame, seeds: list[int], name: str = name) -> list[Part]:
            scale = float(np.mean(unit(name, seeds)))
            found = [samples_needed(by_seed[name, seed]["metrics"]["counts"], scale) for seed in seeds]
            never = sum(number is None for number in found)
            numbers = bootstrap([1000 if number is None else number for number in found])
            note = f"by seed: {', '.join('none' if number is None else str(number) for number in found)}"
            return [Part("samples needed", numbers, never == 0 and numbers.high <= 20, note, digits=0)]

        at.claim(
            "Fig. 8, Table 6",
            "20 samples are enough",
            name,
            [name],
            enough,
            complete=has_unit(name),
        )


# --- recipes and designs ----------------------------------------------------------------------------------------------


def _ranks_as_accuracy(arms: list[str]) -> Decide:
    def decide(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
        values = cells(table, arms, "mir", seeds), cells(table, arms, "accuracy", seeds)
        return [follows("correlation of MIR with accuracy after stage 2", correlations(*values))]

    return decide


def _captions(at: _Judge) -> None:
    for name in ("high", "matched"):
        arms = [f"{name}, {detail}" for detail in ("brief", "mid", "full")]

        def decide(table: pd.DataFrame, seeds: list[int], arms: list[str] = arms) -> list[Part]:
            mir = cells(table, arms, "mir", seeds)
            length = np.arange(3.0)[:, None] * np.ones(len(seeds))
            accuracy = cells(table, arms, "accuracy", seeds)
            return [
                follows("correlation of MIR with the length of the captions", correlations(mir, length)),
                follows("with accuracy after stage 2", correlations(mir, accuracy)),
            ]

        at.claim(
            "Table 1",
            "Longer captions give a lower MIR and a better model",
            name,
            arms,
            decide,
        )


def _recipes(at: _Judge) -> None:
    regimes = ("high", "matched")
    for name in regimes:
        arms = arms_of(at.protocol, name)
        at.claim("Table 2", "MIR ranks recipes as accuracy does", name, arms, _ranks_as_accuracy(arms))

    def change(name: str, other: str, column: str, table: pd.DataFrame, seeds: list[int]) -> np.ndarray:
        return np.diff(cells(table, [f"{name}, base", f"{name}, {other}"], column, seeds), axis=0)[0]

    for name in regimes:
        arms = [f"{name}, {recipe}" for recipe in ("base", "rate x 3", "rate / 2", "rate x 0.3")]

        def by_rate(table: pd.DataFrame, seeds: list[int], name: str = name) -> list[Part]:
            return [
                above("three times the rate changes MIR by", change(name, "rate x 3", "mir", table, seeds)),
                below("half of it by", change(name, "rate / 2", "mir", table, seeds)),
                below("0.3 of it by", change(name, "rate x 0.3", "mir", table, seeds)),
            ]

        at.claim(
            "Table 2",
            "A higher learning rate raises MIR, a lower one lowers it",
            name,
            arms,
            by_rate,
        )
    for name in regimes:
        arms = [f"{name}, base", f"{name}, warm-up 5%"]

        def by_warmup(table: pd.DataFrame, seeds: list[int], name: str = name) -> list[Part]:
            return [below("5 % instead of 3 % changes MIR by", change(name, "warm-up 5%", "mir", table, seeds))]

        at.claim(
            "Table 2",
            "A longer warm-up lowers MIR",
            name,
            arms,
            by_warmup,
        )


def _unlocking(at: _Judge) -> None:
    for name in ("lora", "lora_merged", "half", "all"):

        def decide(table: pd.DataFrame, seeds: list[int], name: str = name) -> list[Part]:
            def against_none(column: str) -> np.ndarray:
                return np.diff(cells(table, ["none", name], column, seeds), axis=0)[0]

            return [
                below("MIR changes by", against_none("mir")),
                above("accuracy by", against_none("accuracy")),
            ]

        at.claim(
            "Table 3",
            "Unlocking the language model lowers MIR and raises accuracy",
            name.replace("_", " "),
            ["none", name],
            decide,
        )


def _connectors(at: _Judge) -> None:
    for name in ("high", "matched"):
        arms = arms_of(at.protocol, name)
        at.claim(
            "Table 4",
            "MIR ranks connectors as accuracy does",
            name,
            arms,
            _ranks_as_accuracy(arms),
        )


def _sizes(at: _Judge) -> None:
    arms = ["small", "base", "large"]

    def decide(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
        steps = np.diff(cells(table, arms, "mir", seeds), axis=0)
        return [below("MIR, base minus small,", steps[0]), below("large minus base", steps[1])]

    at.claim(
        "Table 7",
        "Larger language models have a lower MIR",
        "",
        arms,
        decide,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Text


def as_frame(claims: Sequence[Claim]) -> pd.DataFrame:
    """Claims as a table, one line each."""
    return pd.DataFrame([asdict(claim) for claim in claims])


def markdown(claims: Sequence[Claim], *, experiment: bool = False) -> str:
    """Claims as a Markdown table, one line for each claim of the paper: what it says, what we measured, the verdict.

    Args:
        claims: From `judge`.
        experiment: Whether to add the command that repeats it.
    """
    head = ["", "the paper says", "we measured (mean over seeds, 95 % interval)", "verdict"]
    head += ["repeat it with"] if experiment else []
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for group in grouped(claims):
        said = []
        for claim in group:
            start = f"*{claim.condition}*: " if claim.condition else ""
            counts = f"{claim.seeds} seeds, {claim.parts} sets of parts, {claim.runs} runs"
            outcome = "" if claim.verdict == NOT_MEASURED else f" ({counts}): {claim.verdict}"
            said.append(f"{start}{claim.measured}{outcome}")
        cells_ = [group[0].figure, group[0].paper, "<br>".join(said), f"**{overall(group)}**"]
        cells_ += [f"`{group[0].command}`"] if experiment else []
        lines.append(f"| {' | '.join(cells_)} |")
    return "\n".join(lines)


def boxed(table: str) -> str:
    """A Markdown table as a block that scrolls sideways in its own box on a page of the book.

    Example:
        >>> print(boxed("| a |"))
        ```{table}
        :class: verdicts
        <BLANKLINE>
        | a |
        ```
    """
    return f"```{{table}}\n:class: verdicts\n\n{table}\n```"


def grouped(claims: Sequence[Claim]) -> list[list[Claim]]:
    """Claims of the paper, each with its conditions, in the order in which they come."""
    groups: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        groups.setdefault((claim.experiment, claim.paper), []).append(claim)
    return list(groups.values())


_WIDTH = 118


def report(protocol: Protocol, rows: Sequence[Row]) -> str:
    """An experiment's protocol, table and verdicts as text of at most 120 columns."""
    own = [row for row in rows if row["experiment"] == protocol.name]
    known = sum(row["key"] in arms_by_key(protocol.name) for row in own)
    count = f"{protocol.name} ({protocol.figure}): {known} of {len(protocol.runs)} runs"
    if known < len(own):
        count += f"; {len(own) - known} rows that are no run of the protocol are left out"

    def filled(label: str, text: str) -> str:
        return textwrap.fill(text, _WIDTH, initial_indent=f"{label:10}", subsequent_indent=" " * 10)

    sections = [
        "\n".join(
            [
                count,
                filled("question", protocol.question),
                filled("paper", protocol.paper),
                filled("primary", protocol.primary),
            ]
        ),
        _table(protocol, own),
    ]
    for group in grouped(judge(protocol, rows)):
        lines = [
            textwrap.fill(f"{group[0].figure}: {group[0].paper}. {overall(group).upper()}", _WIDTH),
            textwrap.fill(f"criterion: {group[0].criterion}", _WIDTH, initial_indent="  ", subsequent_indent="    "),
        ]
        for claim in group:
            start = f"{claim.condition}: " if claim.condition else ""
            counts = f" ({claim.seeds} seeds, {claim.parts} sets of parts, {claim.runs} runs)"
            counts = "" if claim.verdict == NOT_MEASURED else counts
            text = f"{start}{claim.measured}{counts}: {claim.verdict}"
            lines.append(textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="    "))
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


_SHOWN = {
    "mir": "MIR",
    "norm_only": "norm-only",
    "loss": "loss",
    "perplexity": "PPL",
    "in_context_text": "in-context",
    "discrimination": "discr.",
    "accuracy": "accuracy",
}


def _table(protocol: Protocol, rows: Sequence[Row]) -> str:
    found = summary(protocol, rows, tuple(_SHOWN))
    lines = [["", "runs", *_SHOWN.values()]]
    for arm, line in found.iterrows():
        values = []
        for key in _SHOWN:
            value, half = line[key], (line[f"{key}_high"] - line[f"{key}_low"]) / 2
            digits = 2 if key in ("loss", "perplexity") else 3
            cell = f"{value:.{digits}f}±{half:.{digits}f}"
            values.append("" if np.isnan(value) else re.sub(r"(?<!\d)0\.", ".", cell))
        lines.append([str(arm), str(int(line["runs"])), *values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        " ".join([line[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True)])
        for line in lines
    ]
    return "\n".join([*aligned, "(mean over seeds ± half of its 95 % interval)"])
