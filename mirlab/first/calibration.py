"""What the ledger's runs of ``moca`` say: levels, differences within a seed, layers, and what scales and shifts became.

All from the rows that are there; whether a claim holds is judged in `mirlab.first.closing.moca`. No sentence and no
title reads anything off fewer seeds than `mirlab.first.mediation.SEEDS_NEEDED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mirlab.first.closing.moca import RATES, SAME, layers
from mirlab.first.estimates import Estimate, bootstrap
from mirlab.first.figures import figure_seed_values, headline, say_missing
from mirlab.first.mediation import SEEDS_NEEDED
from mirlab.first.reporting import listed
from mirlab.first.tables import Row, cells, complete_seeds, difference, frame
from mirlib import rows as token_rows
from mirlib.align import moca
from mirlib.plots import figure_layer_curves

PUBLISHED = {
    "LLaVA-1.5": {"plain": (3.374, 59.1), "MoCa": (3.162, 60.6)},
    "Mini-Gemini": {"plain": (2.667, 62.1), "MoCa": (2.514, 63.0)},
}
"""MIR and average over benchmarks as Table 5 of Huang et al. (arXiv:2410.07167v2) prints them."""

PANELS: dict[str, dict[str, str]] = {
    "high": RATES["high"],
    "low": RATES["low"] | {"MoCa, std 0.02": "low, MoCa 0.02"},
    "matched": {"plain": "matched, plain", "MoCa": "matched, MoCa"},
}
"""Arms by regime, or by learning rate, and by what is done. The runs of the low rate with matched norms are the plain
ones of the regime *matched*, and stand in both panels."""

COLUMNS = {"mir": "MIR", "accuracy": "accuracy", "norm_only": "norm-only", "norm_ratio": "norm ratio, layer 1"}

_NO_RUN = "no run in the ledger yet"


def levels(rows: Iterable[Row]) -> pd.DataFrame:
    """Means over the seeds that are there with their 95 % intervals, as text; the paper's lines first.

    Returns:
        (regime, way) by `COLUMNS`; where the paper or the ledger has nothing, the cell is empty.
    """
    table = frame(rows)
    nothing = dict.fromkeys(COLUMNS.values(), "")
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for model, published in PUBLISHED.items():
        for way, (mir, average) in published.items():
            lines[f"paper, {model}", way] = nothing | {
                "MIR": f"{mir:.3f}",
                "accuracy": f"{average:.1f} (average of benchmarks)",
            }
    for panel, arms in PANELS.items():
        for way, arm in arms.items():
            here = table[table["arm"] == arm] if len(table) else table
            lines[panel, way] = nothing | {
                shown: bootstrap(here[column].to_numpy(float)).cell(signs=False)
                for column, shown in COLUMNS.items()
                if len(here)
            }
    return pd.DataFrame(lines).T


def differences(rows: Iterable[Row], column: str) -> dict[str, dict[str, np.ndarray]]:
    """Each way minus plain within a seed, by panel and way: (seeds,), of the seeds that have both; mostly five."""
    table = frame(rows)
    found: dict[str, dict[str, np.ndarray]] = {}
    for panel, arms in PANELS.items():
        found[panel] = {}
        for way, arm in arms.items():
            values = difference(table, arm, arms["plain"], column)
            if way != "plain" and len(values):
                found[panel][way] = values
    return found


def changes(rows: Sequence[Row]) -> pd.DataFrame:
    """`differences` as text: mean over seeds and 95 % interval, (regime, way) by `COLUMNS`, and the number of seeds."""
    lines: dict[tuple[str, str], dict[str, object]] = {}
    for column, shown in COLUMNS.items():
        for panel, by_way in differences(rows, column).items():
            for way, values in by_way.items():
                line = lines.setdefault((panel, f"{way} − plain"), {})
                line |= {shown: bootstrap(values).cell(), "seeds": len(values)}
    table = pd.DataFrame(lines).T
    return table[[*COLUMNS.values(), "seeds"]] if lines else pd.DataFrame(columns=[_NO_RUN])


def layer_curves(rows: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
    """log10 of the distance of every layer by panel and way, (seeds, K); ways without a run are left out."""
    table = frame(rows)
    found: dict[str, dict[str, np.ndarray]] = {}
    for panel, arms in PANELS.items():
        seeds = {way: complete_seeds(table, [arm]) for way, arm in arms.items()}
        found[panel] = {way: layers(list(rows), arms[way], some) for way, some in seeds.items() if some}
    return found


def layer_changes(rows: Sequence[Row], way: str = "MoCa") -> dict[str, np.ndarray]:
    """log10 of the distance of every layer, a way minus plain within a seed: (seeds, K) by panel."""
    table = frame(rows)
    found = {}
    for panel, arms in PANELS.items():
        seeds = complete_seeds(table, [arms["plain"], arms[way]]) if way in arms else []
        if seeds:
            found[panel] = layers(list(rows), arms[way], seeds) - layers(list(rows), arms["plain"], seeds)
    return found


def learned(rows: Iterable[Row]) -> dict[str, dict[str, np.ndarray]]:
    """What MoCa's parameters were after stage 1, by panel: ``u_mean``, ``u_sd`` and ``v_norm``, each (seeds, K)."""
    arm_of = {PANELS[panel]["MoCa"]: panel for panel in PANELS}
    kept: dict[str, list[Mapping[str, Any]]] = {panel: [] for panel in PANELS}
    for row in rows:
        if "after_stage_one" in row["metrics"]:
            panel = arm_of.get(row["arm"])
            if panel is not None:
                kept[panel].append(row["metrics"]["after_stage_one"])
    return {
        panel: {name: np.array([one[name] for one in found]) for name in ("u_mean", "u_sd", "v_norm")}
        for panel, found in kept.items()
        if found
    }


# ---------------------------------------------------------------------------------------------------------------------
# Figures and sentences


def figure_changes(rows: Sequence[Row]) -> Figure:
    """Differences from plain of MIR (left) and of accuracy (right): every seed, means and intervals, by regime."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), sharey=True)
    ways = list(dict.fromkeys(way for arms in PANELS.values() for way in arms if way != "plain"))
    for ax, (column, name, unit) in zip(
        axes, (("mir", "MIR", "log10"), ("accuracy", "accuracy", "share right")), strict=True
    ):
        by_panel = differences(rows, column)
        data = {way: {panel: by[way] for panel, by in by_panel.items() if way in by} for way in ways}
        figure_seed_values(data, ax, xlabel=f"{name} minus that of the plain run ({unit})")
        found = {panel: by["MoCa"] for panel, by in by_panel.items() if "MoCa" in by}
        said = "; ".join(f"{panel} {values.mean():+.2f}".replace("-", "−") for panel, values in found.items())
        # In two lines: in one, the titles of the two panels run into each other.
        ax.set_title(headline(f"{name} with MoCa", said, map(len, found.values())).replace(": ", ":\n", 1))
    if (legend := axes[0].get_legend()) is not None:  # one is enough for both
        legend.remove()
    return figure


def figure_layers(rows: Sequence[Row]) -> Figure:
    """The distance of every layer with and without MoCa: levels above, differences within a seed below."""
    figure, axes = plt.subplots(2, len(PANELS), figsize=(10.2, 6.0), sharex=True, squeeze=False)
    table, curves, moved = frame(rows), layer_curves(rows), layer_changes(rows)
    for above, below, panel in zip(*axes, PANELS, strict=True):
        shown = {way: found for way, found in curves[panel].items() if way != "MoCa, std 0.02"}
        if shown:
            figure_layer_curves(shown, "distance of a layer (log10)", above)
        else:
            say_missing([above])
        pair = [PANELS[panel]["plain"], PANELS[panel]["MoCa"]]
        seeds = complete_seeds(table, pair)
        means = cells(table, pair, "mir", seeds).mean(axis=1) if seeds else ()
        above.set_title(headline(panel, "MIR {:.2f}, with MoCa {:.2f}".format(*means) if seeds else "", [len(seeds)]))
        difference = moved.get(panel, np.empty((0, 0)))
        below.axhline(0, color="black", linewidth=0.8, linestyle="-", marker="")
        if len(difference):
            figure_layer_curves({"MoCa − plain": difference}, "change of the distance (log10)", below)
            below.get_legend().remove()
        below.set_title(headline(panel, _sides(difference), [len(difference)]))
        above.set_xlabel("")
    return figure


def figure_learned(rows: Sequence[Row]) -> Figure:
    """What stage 1 made of scales and shifts: mean of u, its spread over the entries, and the length of v."""
    found = learned(rows)
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.4))
    titles = {"u_mean": "mean of u", "u_sd": "spread of u (std)", "v_norm": "length of v"}
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        if found:
            figure_layer_curves({panel: by[name] for panel, by in found.items()}, title, ax)
        else:
            say_missing([ax])
        at_start = 1.0 if name == "u_mean" else 0.0
        ax.axhline(at_start, color="black", linewidth=1, linestyle=":", marker="")
        ax.set_title(f"{title}; start dotted")
    return figure


def _sides(difference: np.ndarray) -> str:
    """At how many layers the whole interval of a (seeds, K) difference lies below 0, and above; empty for few seeds."""
    if len(difference) < SEEDS_NEEDED:
        return ""
    found = [bootstrap(one) for one in difference.T]
    lower, higher = sum(one.high < 0 for one in found), sum(one.low > 0 for one in found)
    return f"lower at {lower}, higher at {higher} of {len(found)} layers"


def _does(found: Estimate, what: str) -> str:
    """For example ``lowers MIR (−0.10 [−0.15, −0.05])``."""
    if found.low <= 0 <= found.high:
        return f"leaves {what} undecided ({found.text(3)})"
    return f"{'raises' if found.low > 0 else 'lowers'} {what} ({found.text(3)})"


def lessons(rows: Sequence[Row]) -> list[str]:
    """What came out, in a few plain sentences of Markdown, from panels with `SEEDS_NEEDED` seeds."""
    said = []
    by = {column: differences(rows, column) for column in COLUMNS}
    for panel in PANELS:
        mir, accuracy, ratio = (by[column][panel].get("MoCa", ()) for column in ("mir", "accuracy", "norm_ratio"))
        if len(mir) < SEEDS_NEEDED:
            continue
        found, gained, longer = bootstrap(mir), bootstrap(accuracy), bootstrap(ratio)
        small = (
            f" That fall of MIR is smaller than the {SAME['mir']} within which two starts of MoCa count as alike."
            if found.high < 0 and abs(found.value) < SAME["mir"]
            else ""
        )
        said.append(
            f"*{panel}*: MoCa {_does(found, 'MIR')}, with the distance {_sides(layer_changes(rows)[panel])}, and "
            f"{_does(gained, 'accuracy')}. The norm ratio of layer 1 changes by {longer.text(2)}.{small}"
        )
    for column, name, best in (("accuracy", "accuracy", max), ("mir", "MIR", min)):
        for panel in RATES:
            rivals = {way: v for way, v in by[column][panel].items() if way in RATES[panel]}
            if len(rivals) == 3 and all(len(v) >= SEEDS_NEEDED for v in rivals.values()):
                most = best(rivals, key=lambda way, rivals=rivals: rivals[way].mean())
                others = [way for way in rivals if way != most]
                ahead = [
                    way for way in others if (apart := bootstrap(rivals[most] - rivals[way])).low > 0 or apart.high < 0
                ]
                clear = (
                    "the intervals of its distance to both others leave 0 out"
                    if len(ahead) == 2
                    else (f"but its distance to {listed([way for way in others if way not in ahead])} is undecided")
                )
                means = listed([f"{way} {v.mean():+.3f}".replace("-", "−") for way, v in rivals.items()])
                said.append(
                    f"At the {panel} rate {most} does most for {name} (mean changes from plain: {means}); {clear}."
                )
    for panel in RATES:
        ways = [way for way in RATES[panel] if way != "plain"]
        fell, gained = ({way: by[c][panel].get(way, ()) for way in ways} for c in ("mir", "accuracy"))
        if all(len(values) >= SEEDS_NEEDED for values in fell.values()):
            lowest = min(ways, key=lambda way, fell=fell: fell[way].mean())
            if fell[lowest].mean() < 0:
                change = bootstrap(gained[lowest]).text(3)
                said.append(
                    f"Whoever chooses by the lowest mean MIR at the {panel} rate takes {lowest}; its accuracy minus "
                    f"that of the plain run is {change}."
                )
    if not said:
        return [f"No comparison has {SEEDS_NEEDED} seeds yet, so nothing is concluded here."]
    missing = [panel for panel in PANELS if len(by["mir"][panel].get("MoCa", ())) < SEEDS_NEEDED]
    return [*said, f"Not complete, and left out: {', '.join(missing)}."] if missing else said


# ---------------------------------------------------------------------------------------------------------------------
# MIR by force


def match_moments(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pictures: Sequence[Any],
    texts: Sequence[str],
    *,
    batch_size: int = 25,
) -> moca.Calibration:
    """Set MoCa's scales and shifts so that vision has the mean and the spread of text in every entry of every layer.

    No training: layer by layer from the first, each with those before it in place, u is the ratio of the standard
    deviations of text and vision rows, and v what then brings the mean of vision to that of text. Layer K is left out,
    since no text row reads what comes out of it.

    Args:
        model: The model; MoCa is attached if it is not yet.
        processor: Its processor.
        pictures: Pictures whose rows are matched.
        texts: As many texts, likewise.
        batch_size: Pairs a forward pass.

    Returns:
        The parameters, now set.
    """
    there = any(isinstance(module, moca.Calibration) for module in model.modules())
    calibration = moca.find(model) if there else moca.attach(model)
    with torch.no_grad():
        calibration.u.fill_(1.0)
        calibration.v.fill_(0.0)
        for k in range(len(calibration.u) - 1):
            seen = token_rows.collect_rows(model, processor, pictures, texts, batch_size=batch_size)
            vision, text = seen.vision[k].double(), seen.text[k].double()
            u = text.std(dim=0) / vision.std(dim=0)
            calibration.u[k] = u
            calibration.v[k] = text.mean(dim=0) - u * vision.mean(dim=0)
    return calibration
