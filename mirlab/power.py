"""What could be seen at all: the oracle's rate of every claim, from runs that no experiment uses again.

The noise of a comparison is what is left of two arms when each seed's own level is taken away. The pilot shows it in
two ways, each of which holds something else besides: two arms of one seed that differ in the amount of data, and two
seeds of one set of parts. The smaller counts. Means of arms are needed for rank correlations alone: those of the
pilot's amounts of data, and for recipes and designs those of the first edition. `python -m mirlab.power` writes the
rates to ``results/ceilings.json``, where `mirlab.results.outcomes` finds them; they are committed before the
experiments run.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from mirlab import results
from mirlab.claims import Claim, Follows, ceilings, spreads
from mirlab.experiments import EXPERIMENTS
from mirlab.recipes import PARTS
from mirlab.statistics import Spread, spread, wide

PILOT_ARMS = ("8192 pairs", "plain")
"""Arms of the pilot that give the noise."""

STANDS_FOR = {"after_gain": "accuracy"}
"""Columns that plain runs have not, and the column whose noise stands for theirs."""

OLD_ARMS = {
    "recipes": {"plain": "base", "warm-up 10 %": "warm-up 5%", "warm-up 30 %": "warm-up 5%"},
    "connectors": {"plain": "mlp2"},
    "unlocking": {"plain": "none", "lora merged": "lora_merged"},
}
"""Experiments whose arm means come from the first edition, and what arms were called there or which comes nearest."""

FIRST_EDITION = "first_edition.csv"
"""What the rates need of the runs of the first edition, beside the ledger (five seeds on two sets of parts)."""

OLD_REGIME = {"low": ".008", "high": ".02"}
"""Regimes of the first edition whose spreads stood for the rates of pre-registration A, before there was a pilot."""


def rates(folder: Path = Path("results")) -> dict[str, dict[str, float]]:
    """The oracle's rate of every claim by experiment, rounded to four digits, from a folder of the ledger."""
    pilot = _pilot(folder)
    found = {}
    for name, declared in EXPERIMENTS.items():
        if not declared.claims:
            continue
        if name == "real":
            known = [_of_real(claim, results.load("real_pilot", folder)) for claim in declared.claims]
        elif name == "operating_point":
            known = spreads(declared.claims, _in_place_of_a(folder))
        elif name == "robustness":
            known = spreads(declared.claims, first_edition(name, folder).query("arm == 'matched'").assign(arm="plain"))
        elif {arm for claim in declared.claims for arm in claim.arms} <= set(pilot["arm"]):
            known = spreads(declared.claims, pilot)
        else:
            means = _means(name, folder)
            known = [_of(claim, pilot, means) for claim in declared.claims]
        drawn = ceilings(declared.claims, known, seeds=declared.seeds)
        found[name] = {claim: round(rate, 4) for claim, rate in drawn.items()}
    return found


def first_edition(experiment: str, folder: Path) -> pd.DataFrame:
    """Arm, seed and the deciding columns of an experiment's first runs."""
    table = pd.read_csv(folder / FIRST_EDITION)
    return table[table["experiment"] == experiment]


def _pilot(folder: Path) -> pd.DataFrame:
    """The pilot's runs of batch 32, with probes as arms of their own."""
    ends, probed = results.load("pilot", folder), results.probes("pilot", folder)
    table = pd.concat([ends, probed.assign(arm=probed["arm"] + ", step " + probed["step"].astype(str))])
    return table[table["batch"] == 32]


def _of_real(claim: Claim, pilot: pd.DataFrame) -> dict[str, Spread]:
    """The spread of a claim's columns over its arms: the noise of two of them stands for that of all."""
    nothing = np.zeros(len(claim.arms))
    return {column: replace(spread(wide(pilot, column).to_numpy(float)), means=nothing) for column in claim.columns}


def _of(claim: Claim, pilot: pd.DataFrame, means: pd.DataFrame) -> dict[str, Spread]:
    """Arm means of a claim's columns, and the pilot's noise of the last, the one that experiments are drawn of."""
    drawn, centres = claim.columns[-1], np.zeros(len(claim.arms))  # a claim that is no ranking names its effect
    if isinstance(claim, Follows):
        centres = means.loc[list(claim.arms), claim.y].to_numpy(float)  # the oracle's metric is what is ranked
    found = replace(_noise(pilot, STANDS_FOR.get(drawn, drawn)), means=centres)
    return dict.fromkeys(claim.columns, found)


def _noise(pilot: pd.DataFrame, column: str) -> Spread:
    """The smaller of two that are both too large: of two arms of one seed, and of two seeds of one set of parts."""
    plain = pilot[pilot["arm"] == "plain"]
    again = plain["seed"] - plain["seed"].min() >= len(PARTS)
    seeds = plain.assign(seed=plain["parts"], arm=again.map({False: "once", True: "again"}))
    tables = (wide(pilot, column)[list(PILOT_ARMS)].dropna(), wide(seeds, column))
    found = [spread(table.to_numpy(float)) for table in tables if len(table)]
    return min(found, key=lambda spread: float(spread.noise))


def _means(name: str, folder: Path) -> pd.DataFrame:
    """Mean MIR and accuracy of arms, for rank correlations."""
    columns = ["mir", "accuracy"]
    if name in OLD_ARMS:
        old = first_edition(name, folder)
        found = old.groupby(old["arm"].str.removeprefix("matched, "))[columns].mean()
        return pd.concat([found, found.loc[list(OLD_ARMS[name].values())].set_axis(list(OLD_ARMS[name]))])
    found = results.load("pilot", folder).groupby("arm")[columns].mean().filter(like=", batch 64", axis=0)
    found.index = found.index.str.removesuffix(", batch 64")
    found.loc["65536 pairs"] = 2 * found.loc["32768 pairs"] - found.loc["16384 pairs"]  # as if it went on so
    recipes = _means("recipes", folder)
    return pd.concat([found, found.loc["16384 pairs"] + recipes - recipes.loc["plain"]])


def _in_place_of_a(folder: Path) -> pd.DataFrame:
    """Rows of the first edition under the names of pre-registration A's arms: 2048 pairs for 8192, 8192 for 32,768."""
    old, found = first_edition("data_scale", folder), []
    for (regime, rate), batch, pairs in product(OLD_REGIME.items(), (8, 64), (8192, 32768)):
        rows = old[old["arm"] == f"{regime}, {pairs // 4} pairs"]
        found.append(rows.assign(arm=f"{rate}, batch {batch}, {pairs}"))
    return pd.concat(found, ignore_index=True)


def main() -> None:
    """Write the rates beside the ledger."""
    Path("results", results.CEILINGS).write_text(json.dumps(rates(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
