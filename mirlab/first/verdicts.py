"""What the ledger's rows say about the paper's claims.

Claims and criteria are those of `mirlab.first.protocols`, which were written before any row of the ledger was there: a
claim that is not in the protocol cannot be judged. Nothing is judged without an interval, and nothing from fewer than
five seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mirlab.first import closing, reporting
from mirlab.first.estimates import bootstrap, correlations, ratio_of_means, spearman
from mirlab.first.mediation import SEEDS_NEEDED, WARMUP_SERIES, WARMUP_STEPS, changes, grid, mediation
from mirlab.first.outcomes import (
    ABOVE,
    BELOW,
    NOT_MEASURED,
    Claim,
    Part,
    above,
    below,
    conclude,
    follows,
    grouped,
    overall,
    shown,
)
from mirlab.first.protocols import MOVED, PROTOCOLS, RIVALS, Protocol
from mirlab.first.reporting import as_frame, boxed, in_short, markdown, short
from mirlab.first.tables import (
    METRICS,
    MORE_IS_BETTER,
    Row,
    arms_of,
    cells,
    complete_seeds,
    difference,
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
    "in_short",
    "judge",
    "load",
    "markdown",
    "mediation",
    "overall",
    "probes",
    "ranges",
    "report",
    "samples_needed",
    "short",
    "spans",
    "summary",
]

TOLERANCE = {"mir": 0.02, "accuracy": 0.03}
"""By how much a row that is run again may differ, on another processor or with other library versions."""

OURS = frozenset(
    {
        *(RIVALS[column] for column in ("in_context_image", "discrimination", "norm_only")),
        "The fall comes through warm-up (what a prototype of this laboratory saw; the paper is silent)",
        *closing.OURS,
    }
)
"""Claims that this book adds to those of the paper."""

# ---------------------------------------------------------------------------------------------------------------------
# Claims

Decide = Callable[[pd.DataFrame, list[int]], list[Part]]

_ABSOLUTE = (
    "Two metrics are compared by the absolute values of their rank correlations with accuracy. Absolute values are "
    "taken within each seed before they are averaged, so a metric whose sign flips from seed to seed gains by this "
    "rule."
)


def _unsigned(correlated: dict[str, np.ndarray], best: np.ndarray, best_of: str) -> Part:
    """Whether the first of two metrics ranks as accuracy does more closely than the second, whatever the signs are.

    A reader must know where a sign is the wrong one, so it is named beside the number; where the metric that is
    called better owes its rank to it, the verdict names it too.

    Args:
        correlated: Correlations with accuracy over seeds, by two columns of `mirlab.first.tables.frame`.
        best: The difference over seeds, had the claim been as true as it can be.
        best_of: See `Part`.
    """
    first, second = correlated.values()
    names = METRICS | {"mir": "MIR"}
    wrong = []
    for column, values in correlated.items():
        rises = column in MORE_IS_BETTER
        interval = bootstrap(values)
        found = interval.high < 0 if rises else interval.low > 0
        wrong.append(f"{names[column]} {'falls' if rises else 'rises'} with accuracy" if found else "")
    sizes = [f"{names[column]} {np.abs(v).mean():.2f}, {bootstrap(v)}" for column, v in correlated.items()]
    notes = [f"mean absolute value, and with the sign: {'; '.join(sizes)}"]
    notes += [f"wrong sign: {', '.join(filter(None, wrong))}"] if any(wrong) else []
    return replace(
        above("difference of absolute correlations with accuracy", np.abs(first) - np.abs(second), 2),
        best=bootstrap(best),
        best_of=best_of,
        note="; ".join(notes),
        clause=f"the sign is ignored ({wrong[0]})" if wrong[0] else "",
        footnote=_ABSOLUTE,
    )


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
        void: str = "",
    ) -> None:
        """Judge one claim of the protocol from the seeds that have all arms.

        `complete` may ask for more of a seed; `void` says why the rows that are there measure something else.
        """
        needed = [run for arm in arms for run in self.protocol.arms[arm]]
        here = self.table[self.table["arm"].isin(arms)] if len(self.table) else pd.DataFrame({"arm": [], "seed": []})
        seeds = [seed for seed in complete_seeds(here, arms) if complete(seed) and not void]
        fixed = {
            "experiment": self.protocol.name,
            "figure": figure,
            "paper": paper,
            "source": "ours" if paper in OURS else "paper",
            "condition": condition,
            "criterion": self.protocol.criteria[paper],
            "seeds": len(seeds),
            "command": self.command,
        }
        if len(seeds) < SEEDS_NEEDED:
            wanted = len({run.seed for run in needed})
            self.claims.append(
                Claim(
                    measured=void
                    or f"{len(here)} of {len(needed)} runs are in the ledger; {len(seeds)} of {wanted} seeds have all "
                    "that it needs",
                    estimate=float("nan"),
                    low=float("nan"),
                    high=float("nan"),
                    best=None,
                    parts=0,
                    runs=len(here),
                    outcome=NOT_MEASURED,
                    granted="",
                    verdict=NOT_MEASURED,
                    footnotes=(),
                    **fixed,
                )
            )
            return
        used = here[here["seed"].isin(seeds)]
        found = decide(used, seeds)
        conclusion = conclude(found)
        decisive = conclusion.decisive
        self.claims.append(
            Claim(
                measured="; ".join(map(str, found)),
                estimate=decisive.estimate.value,
                low=decisive.estimate.low,
                high=decisive.estimate.high,
                best=decisive.best,
                parts=used["parts"].nunique(),
                runs=len(used),
                outcome=conclusion.outcome,
                granted=conclusion.granted,
                verdict=conclusion.verdict,
                footnotes=tuple(dict.fromkeys(part.footnote for part in found if part.footnote)),
                **fixed,
            )
        )


def judge(protocol: Protocol, rows: Sequence[Row]) -> list[Claim]:
    """All claims of a protocol.

    Args:
        protocol: What was declared.
        rows: The ledger's rows; those of other experiments are passed over, but those of data_scale give the unit in
            which robustness is measured.

    Returns:
        The claims, one for each condition; `overall` puts the conditions of one claim together.
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
        **closing.JUDGES,
    }[protocol.name](judging)
    return judging.claims


_ALSO_MIR = (
    "Saturation asks only that the interval of accuracy's change does not lie above 0: it shows no rise, which is not "
    "to show that there is none. The change of MIR over the last doubling was no part of the criterion, which was "
    "fixed before; it is printed since the paper's MIR stands still with accuracy."
)
_FINAL_NORM = (
    "Layer K, the last, is read after the final norm of the language model, which brings every token to about the same "
    "length. Where vision tokens are long this alone shrinks the distance; layer K−1 is the last one before it. The "
    "criterion, which was fixed before, asks for layer K."
)


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
            perfect = correlations(accuracy, accuracy)  # 1, or 0 where accuracy stands still
            best = perfect - np.abs(theirs)
            return [_unsigned({"mir": ours, column: theirs}, best, "a perfect MIR would have gained")]

        return decide

    for column, paper in RIVALS.items():
        for name, arms in frozen.items():
            at.claim("Fig. 1", paper, name, arms, better(arms, column))

    def saturates(arms: list[str]) -> Decide:
        def decide(table: pd.DataFrame, seeds: list[int]) -> list[Part]:
            last = arms[-2:]
            change = {
                key: np.diff(cells(table, last, key, seeds), axis=0)[0]
                for key in ("accuracy", "loss", "perplexity", "mir")
            }
            gain = Part(
                "over the last doubling accuracy changes by",
                bootstrap(change["accuracy"]),
                BELOW,
                weak=True,
                premise="accuracy still rises",
                digits=3,
            )
            return [
                gain,
                below("loss by", change["loss"]),
                below("perplexity by", change["perplexity"]),
                shown("MIR by", change["mir"], footnote=_ALSO_MIR),
            ]

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
            found = {key: correlations(cells(table, arms, key, seeds), accuracy) for key in columns}
            best = np.abs(found["perplexity"])
            return [_unsigned(found, best, "one out of domain that ranks nothing would have left")]

        return decide

    for name, arms in frozen.items():
        at.claim(
            "Fig. 9",
            "Perplexity is a worse guide still when evaluated out of domain",
            name,
            arms,
            worse(arms),
        )

    curves = {(row.get("arm"), row["configuration"]["seed"]): row for row in at.rows}
    for name, arms in series.items():

        def flattens(_: pd.DataFrame, seeds: list[int], arm: str = arms[-1]) -> list[Part]:
            layers = [curves[arm, seed]["metrics"]["mir"]["per_layer"] for seed in seeds]
            falls = [spearman(range(len(curve)), curve) for curve in layers]
            ends, before = ([np.log10(curve[layer] / curve[0]) for curve in layers] for layer in (-1, -2))
            return [
                follows("correlation of a layer's distance with its number", falls),
                below("log10 of the last layer's distance over the first's", ends),
                shown("the same of layer K−1, before the final norm,", before, footnote=_FINAL_NORM),
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
                replace(half, note=f"first half {first.text(3)}"),
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
                ABOVE,
                weak=True,
                note=f"across the boundary, in units of its change from step {before} to {boundary}: {across}",
                digits=3,
            ),
            Part("change of accuracy over the second epoch", gained, BELOW, weak=True, digits=3),
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


NEVER_ENOUGH = 1000
"""What counts for a seed that has no such N: the largest that was tried, and enough to put the interval above 20."""


def samples_needed(counts: dict[str, list[float]], unit: float) -> int | None:
    """The smallest N with a spread, and a distance of its mean to that of the largest N, below a twentieth of `unit`.

    Example:
        >>> samples_needed({"1": [0.0, 1.0], "5": [0.50, 0.51], "1000": [0.5, 0.5]}, unit=1.0)
        5
    """
    return next((int(number) for number in sorted(counts, key=int) if is_enough(counts, number, unit)), None)


def is_enough(counts: Mapping[str, Sequence[float]], number: str, unit: float) -> bool:
    """Whether draws of so many samples have the spread and the mean that `samples_needed` asks for."""
    values, largest = np.asarray(counts[number]), np.mean(counts[max(counts, key=int)])
    return bool(values.std(ddof=1) < unit / 20 and abs(values.mean() - largest) <= unit / 20)


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
    by_seed = {(row.get("arm"), row["configuration"]["seed"]): row for row in at.rows}

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
                return [Part(label, found, BELOW, limit=0.25, note=plain)]

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
            numbers = bootstrap([NEVER_ENOUGH if number is None else number for number in found])
            note = f"by seed: {', '.join('none' if number is None else str(number) for number in found)}"
            return [Part("samples needed", numbers, BELOW, limit=20, closed=True, note=note, digits=0)]

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
        return difference(table, f"{name}, {other}", f"{name}, base", column, seeds)

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
                return difference(table, name, "none", column, seeds)

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


def report(protocol: Protocol, rows: Sequence[Row]) -> str:
    """An experiment's protocol, table and verdicts as text of at most 120 columns."""
    return reporting.report(protocol, rows, judge(protocol, rows))
