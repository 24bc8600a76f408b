"""What the ledger's runs of ``eim`` say: levels, differences within a seed, segments; and what CLIP's features do.

All from the rows that are there; whether a claim holds is judged in `mirlab.first.closing.eim` and, of the features, in
`mirlab.first.closing.features`. No sentence and no title reads anything off fewer seeds than
`mirlab.first.mediation.SEEDS_NEEDED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import LlavaForConditionalGeneration

from mirlab import world
from mirlab.first import tables
from mirlab.first.closing import features as clip_features
from mirlab.first.closing.eim import ADDED, ALONE, LONGER, LOSSES, LOWERS, ORDER, PROTOCOL, SEGMENTED, TUNED
from mirlab.first.estimates import Estimate, bootstrap
from mirlab.first.figures import figure_seed_values, headline, say_missing
from mirlab.first.mediation import SEEDS_NEEDED
from mirlab.first.outcomes import NOT_MEASURED, OPPOSITE, REPRODUCED, Claim
from mirlab.first.reporting import listed
from mirlab.first.tables import Row, frame
from mirlab.model import cells as picture_cells
from mirlab.model import miniature
from mirlib.align.eim import vision_tower
from mirlib.plots import COLOURS, LINES

PUBLISHED = {
    "plain": "31.2; features changed 32.9",
    "ST": "+0.8 alone; 33.1 after features",
    "LM": "+0.6 alone",
    "IE": "+1.6 alone",
    "ST, LM": "33.5",
    "ST, LM, IE": "33.9",
    "one stage": "33.0",
}
"""BLEU-4 of ClipCap on COCO in per cent, by the arm that is nearest (Bai et al., doi 10.1371/journal.pone.0329590)."""

COLUMNS = {"accuracy": "accuracy", "mir": "MIR", "norm_ratio": "norm ratio, layer 1", "perplexity": "perplexity"}

AGAINST = (
    ("ST", "plain"),
    ("LM", "plain"),
    ("IE", "plain"),
    ("encoder", "plain"),
    ("two epochs", "plain"),
    ("ST, LM", "ST"),
    ("ST, LM, IE", "ST, LM"),
    ("ST, LM, IE", "plain"),
    ("ST, LM, IE", "one stage"),
    ("ST", "one stage"),
    ("ST, LM", "LM, ST"),
    ("IE", "encoder"),
    ("ST, LM", "two epochs"),
    ("ST", "two epochs"),
)
"""Pairs of arms, the first minus the second."""

_SAME_STAGE_ONE = {"IE": "plain", "encoder": "plain", "one stage": "plain", "ST, LM, IE": "ST, LM"}
"""Arms that differ in stage 2 alone, after MIR and perplexity are measured, by the arm whose stage 1 they share."""


def levels(rows: Iterable[Row]) -> pd.DataFrame:
    """What the paper prints, and means over the seeds that are there with their 95 % intervals, as text, by arm."""
    return _levels(rows, PROTOCOL.arms, PUBLISHED)


def _levels(rows: Iterable[Row], arms: Iterable[str], published: Mapping[str, str]) -> pd.DataFrame:
    table = frame(rows)
    lines = {}
    for arm in arms:
        here = table[table["arm"] == arm] if len(table) else table
        lines[arm] = {"paper, BLEU-4": published.get(arm, "")} | {
            shown: bootstrap(here[column].to_numpy(float)).cell(signs=False) if len(here) else ""
            for column, shown in COLUMNS.items()
        }
        lines[arm]["seeds"] = len(here)
    return pd.DataFrame(lines).T


def difference(rows: Iterable[Row], first: str, second: str, column: str) -> np.ndarray:
    """The first arm minus the second, (seeds,), of the seeds that have both."""
    return tables.difference(frame(rows), first, second, column)


def changes(rows: Sequence[Row]) -> pd.DataFrame:
    """`difference` of each pair of `AGAINST` as text; *same stage 1* where MIR and perplexity cannot differ."""
    table, lines = frame(rows), {}
    for first, second in AGAINST:
        line: dict[str, object] = {}
        for column, shown in COLUMNS.items():
            values = tables.difference(table, first, second, column)
            if column != "accuracy" and _stage_one(first) == _stage_one(second):
                line[shown] = "same stage 1"
            elif len(values):
                line[shown] = bootstrap(values).cell()
            line["seeds"] = len(values)
        if line["seeds"]:
            lines[f"{first} − {second}"] = line
    return (
        pd.DataFrame(lines).T[[*COLUMNS.values(), "seeds"]] if lines else pd.DataFrame(columns=["no pair of runs yet"])
    )


def _stage_one(arm: str) -> str:
    return _SAME_STAGE_ONE.get(arm, arm)


def figure_changes(rows: Sequence[Row]) -> Figure:
    """Differences between arms within a seed: of accuracy, and of MIR where stage 1 is not the same."""
    table = frame(rows)
    figure, axes = plt.subplots(1, 2, figsize=(10.2, 5.0), sharey=True)
    for ax, column, name, unit in zip(
        axes, ("accuracy", "mir"), ("accuracy", "MIR"), ("share right", "log10"), strict=True
    ):
        data = {
            f"{first} − {second}": {} if column == "mir" and _stage_one(first) == _stage_one(second) else {"": found}
            for first, second in AGAINST
            if len(found := tables.difference(table, first, second, column))
        }
        figure_seed_values(data, ax, xlabel=f"difference of {name} ({unit})")
        found = tables.difference(table, "ST, LM, IE", "plain", column)
        said = f"ST, LM, IE − plain {bootstrap(found).text(2)}" if len(found) else ""
        ax.set_title(headline(name, said, [len(found)]))
    return figure


SEGMENTS = {"ST": {"ST alone": "ST", "ST after LM": "LM, ST"}, "LM": {"LM alone": "LM", "LM after ST": "ST, LM"}}
"""Segments by loss, and then by what stood before them: the arm."""


def segment(rows: Iterable[Row], loss: str, arm: str) -> list[dict]:
    """What the runs of an arm kept of a segment, seed by seed: ``curve``, ``loss``, ``chance``, ``found``..."""
    rows = [row for row in rows if row["arm"] == arm]
    rows.sort(key=lambda row: row["configuration"]["seed"])
    return [row["metrics"]["before_stage_one"][loss.lower()] for row in rows]


def figure_segments(rows: Sequence[Row]) -> Figure:
    """The contrastive losses over the steps of their segments, and that of keys that cannot be told apart."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6))
    for ax, (loss, arms) in zip(axes, SEGMENTS.items(), strict=True):
        kept = {label: segment(rows, loss, arm) for label, arm in arms.items()}
        kept = {label: found for label, found in kept.items() if found}
        if not kept:
            say_missing([ax])
            ax.set_title(loss)
            continue
        for number, (label, found) in enumerate(kept.items()):
            steps = [step for step, _ in found[0]["curve"]]
            values = np.array([[value for _, value in one["curve"]] for one in found])  # (seeds, points)
            look = {"color": COLOURS[number], "linestyle": LINES[number]}
            ax.plot(steps, values.mean(axis=0), marker="", label=label, **look)
            ax.fill_between(
                steps, values.min(axis=0), values.max(axis=0), color=COLOURS[number], alpha=0.2, linewidth=0
            )
        first = next(iter(kept.values()))
        chance = first[0]["chance"]
        ax.axhline(chance, color="black", linewidth=1, linestyle=":", marker="")
        # The curves begin at chance: its name stands where they end.
        at = {"xycoords": ("axes fraction", "data"), "xytext": (-4, -3), "textcoords": "offset points"}
        ax.annotate("chance: all keys alike", (1, chance), ha="right", va="top", fontsize=8, **at)
        ax.set_xlabel("step of the segment")
        ax.set_ylabel("InfoNCE (nats)")
        ax.legend()
        share = 100 * np.mean([one["found"] for one in first])
        ax.set_title(headline(f"{loss} alone", f"{share:.0f} % find their own key", [len(first)]))
    return figure


def _does(found: Estimate, what: str, verb: str) -> str:
    """For example ``raises accuracy (+0.10 [+0.05, +0.15])``; ``verb`` is the ending, s for one thing."""
    if found.low <= 0 <= found.high:
        return f"leave{verb} {what} undecided ({found.text(3)})"
    return f"{'raise' if found.low > 0 else 'lower'}{verb} {what} ({found.text(3)})"


def lessons(rows: Sequence[Row]) -> list[str]:
    """What came out, in a few plain sentences of Markdown, from pairs of arms with `SEEDS_NEEDED` seeds."""
    table, enough = frame(rows), {}
    for column in COLUMNS:
        for first, second in AGAINST:
            values = tables.difference(table, first, second, column)
            if len(values) >= SEEDS_NEEDED:
                enough[first, second, column] = bootstrap(values)
    said = []

    def say(sentence: str, first: str, second: str, column: str = "accuracy", what: str = "accuracy") -> None:
        if (first, second, column) in enough:
            ending = "" if sentence.startswith(("Segments", "ST and LM", "All three")) else "s"
            said.append(sentence.format(_does(enough[first, second, column], what, ending)))

    for loss in ("ST", "LM", "IE"):
        say(f"{loss} alone {{}}.", loss, "plain")
    say("An encoder that learns in stage 2 without IE {}.", "encoder", "plain")
    say("IE, against an encoder that learns without it, {}.", "IE", "encoder")
    say("A second epoch of stage 1 {}.", "two epochs", "plain")
    say("ST and LM in a row, against that second epoch, {}.", "ST, LM", "two epochs")
    say("All three in segments, against plain, {}.", "ST, LM, IE", "plain")
    say("Segments, against one stage with all three, {}.", "ST, LM, IE", "one stage")
    say("ST alone, against that one stage, {}.", "ST", "one stage")
    say("ST before LM, against LM before ST, {}.", "ST, LM", "LM, ST")
    say("ST alone, against that second epoch, {}.", "ST", "two epochs")
    for loss in ("ST", "LM"):
        say(f"{loss} alone {{}}.", loss, "plain", "mir", "MIR")
    say("All three in segments, against plain, {}.", "ST, LM, IE", "plain", "mir", "MIR")
    for arm, name in (("ST", "ST alone"), ("LM", "LM alone"), ("two epochs", "A second epoch")):
        say(f"{name} {{}}.", arm, "plain", "perplexity", "perplexity")
    return said or [f"No comparison has {SEEDS_NEEDED} seeds yet, so nothing is concluded here."]


def cost(rows: Iterable[Row]) -> str:
    """What a segment costs beside the stage 1 behind it, in a sentence; empty where no run kept its time."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        for name, found in row["metrics"].get("before_stage_one", {}).items():
            if "seconds" in found:
                shares.setdefault(name, []).append(found["seconds"] / row["metrics"]["stage_one"]["seconds"])
    each = [f"{name.upper()} took {np.median(some):.0%} of that time" for name, some in sorted(shares.items())]
    return f"Beside an epoch of stage 1, {listed(each)} (median over runs).".replace("%", " %") if each else ""


def by_seed(rows: Iterable[Row]) -> list[str]:
    """How far the plain runs lie apart, and what the segments and a second epoch add to the worse and the better ones.

    No claim hangs on it.
    """
    table = frame(rows)
    arms = ["plain", "ST", "LM", "two epochs"]
    seeds = tables.complete_seeds(table, arms)
    if len(seeds) < SEEDS_NEEDED:
        return []
    plain, *others = tables.cells(table, arms, "accuracy", seeds)
    blind = tables.cells(table, ["plain"], "blind", seeds)[0]
    order = np.argsort(plain)

    def series(values: np.ndarray, signs: bool) -> str:
        shown = (round(value, 2) + 0.0 for value in values[order])  # no minus before a zero
        return ", ".join(f"{value:{'+' if signs else ''}.2f}".replace("-", "−") for value in shown)

    gains = "; ".join(f"{arm} {series(other - plain, True)}" for arm, other in zip(arms[1:], others, strict=True))
    return [
        f"The plain runs, from the worst seed to the best, reach {series(plain, False)} in accuracy; with the picture "
        f"hidden they reach {blind.mean():.2f}.",
        f"What is added to each of them, in the same order: {gains}.",
    ]


def _told(claim: Claim) -> str:
    """The deciding number of a claim, for brackets."""
    return Estimate(claim.estimate, claim.low, claim.high, claim.seeds).text(3)


def advice(claims: Iterable[Claim], choices: Iterable[Claim]) -> list[str]:
    """What follows for a reader who trains a model.

    Args:
        claims: Those of `mirlab.first.closing.eim`.
        choices: Those of `mirlab.first.closing.features`.
    """
    found = {(claim.paper, claim.condition): claim for claim in claims}
    if any(claim.outcome == NOT_MEASURED for claim in found.values()):
        return ["Not all runs are in the ledger yet: no advice."]
    said = [f"**One loss.** Added alone, {_apart([found[ALONE, loss] for loss in LOSSES], 'the accuracy')}."]
    if found[ALONE, "ST"].outcome == REPRODUCED:
        said[0] += " ST is by far the cheapest: if you try one, try it first."
    added, longer, tuned, segmented, order = (found[paper, ""] for paper in (ADDED, LONGER, TUNED, SEGMENTED, ORDER))
    if added.outcome != REPRODUCED:
        said.append(f"**One after the other.** Not every stage that is added pays: {added.measured}.")
    said += [
        f"**Two segments or a longer stage 1.** ST and LM in a row, against a second epoch: {_no_more(longer)}. The "
        "epoch needs no keys.",
        f"**IE.** Against an encoder that learns without it: {_no_more(tuned)}. If you open yours, begin without IE.",
        f"**Order.** ST, LM and then IE, against one stage: {_no_more(segmented)}. ST before LM, against LM before ST: "
        f"{_no_more(order)}.",
    ]
    lower = [claim for claim in found.values() if claim.paper == LOWERS]
    said.append(f"**MIR.** Of the segments, {_apart(lower, 'MIR', up=OPPOSITE, down=REPRODUCED)}.")
    choices = [claim for claim in choices if claim.outcome != NOT_MEASURED]
    more = [claim for claim in choices if claim.paper == clip_features.MORE]
    before = [claim for claim in choices if claim.paper == clip_features.BEFORE]
    if more and before:
        each = ("; ".join(f"{claim.condition}: {_no_more(claim)}" for claim in some) for some in (more, before))
        said.append("**Features.** All patches instead of one vector, {}. The layer before the last, {}.".format(*each))
    return said


def _apart(claims: Sequence[Claim], what: str, up: str = REPRODUCED, down: str = OPPOSITE) -> str:
    """Claims of a change by what came out: which raised it, which lowered it, which are undecided."""
    parts = []
    for outcome, words in ((up, "raised"), (down, "lowered")):
        some = [f"{claim.condition} ({_told(claim)})" for claim in claims if claim.outcome == outcome]
        if some:
            parts.append(f"{'; '.join(some)} {words} {what}")
    unclear = [f"{claim.condition} ({_told(claim)})" for claim in claims if claim.outcome not in (up, down)]
    if unclear:
        parts.append(f"what these did to {what} the seeds cannot tell: {'; '.join(unclear)}")
    return ". ".join([parts[0], *(part[0].upper() + part[1:] for part in parts[1:])])


def _no_more(claim: Claim) -> str:
    """A claim of more accuracy in a few words: better, worse or undecided, with its number."""
    word = {REPRODUCED: "better", OPPOSITE: "worse"}.get(claim.outcome, "undecided")
    return f"{word} ({_told(claim)})"


# ---------------------------------------------------------------------------------------------------------------------
# CLIP's features: what a model makes of them (the runs of ``eim_features``), and what they hold (Table 9 of the paper)

FEATURES_PUBLISHED = {
    clip_features.ALL_BEFORE: "32.9",
    clip_features.ALL_BEHIND: "31.8",
    clip_features.ONE_BEFORE: "31.6",
    clip_features.ONE_BEHIND: "31.2",
}
"""BLEU-4 of ClipCap on COCO in per cent, by the arm that is nearest. The paper's "all" has [CLS] with the patches, and
its output layer is the linear map alone."""


def feature_levels(rows: Iterable[Row]) -> pd.DataFrame:
    """`levels` of the arms of ``eim_features``."""
    return _levels(rows, clip_features.PROTOCOL.arms, FEATURES_PUBLISHED)


FEATURES_AGAINST = {
    "all − one, before": clip_features.AGAINST[clip_features.MORE, "before the output layer"],
    "all − one, behind": clip_features.AGAINST[clip_features.MORE, "behind the output layer"],
    "before − behind, all": clip_features.AGAINST[clip_features.BEFORE, "with all features"],
    "before − behind, one": clip_features.AGAINST[clip_features.BEFORE, "with one feature"],
    "all before − one behind": clip_features.AGAINST[clip_features.WHOLE, ""],
}
"""The comparisons of ``eim_features`` by what stands beside them in a figure."""


def figure_features(rows: Sequence[Row]) -> Figure:
    """Differences between the arms of ``eim_features`` within a seed, of accuracy and of MIR."""
    table, whole = frame(rows), "all before − one behind"
    figure, axes = plt.subplots(1, 2, figsize=(10.2, 2.9), sharey=True)
    for ax, column, name, unit in zip(
        axes, ("accuracy", "mir"), ("accuracy", "MIR"), ("share right", "log10"), strict=True
    ):
        found = {label: tables.difference(table, *pair, column) for label, pair in FEATURES_AGAINST.items()}
        data = {label: {"": values} for label, values in found.items() if len(values)}
        figure_seed_values(data, ax, xlabel=f"difference of {name} ({unit})")
        said = f"the whole change {bootstrap(found[whole]).text(2)}" if whole in data else ""
        ax.set_title(headline(name, said, map(len, found.values())))
    return figure


def feature_lessons(rows: Sequence[Row]) -> list[str]:
    """What came out of ``eim_features``, in a few plain sentences of Markdown; as `lessons`."""
    table, said = frame(rows), []
    sentences = {
        (clip_features.MORE, "before the output layer"): "Before the output layer, all features instead of one {}",
        (clip_features.MORE, "behind the output layer"): "Behind it, all features instead of one {}",
        (clip_features.BEFORE, "with all features"): "Reading all features before the output layer and not behind it "
        "{}",
        (clip_features.BEFORE, "with one feature"): "Reading one feature before the output layer and not behind it {}",
        (clip_features.WHOLE, ""): "The whole change {}",
    }
    for claim, sentence in sentences.items():
        pair = clip_features.AGAINST[claim]
        found = {column: tables.difference(table, *pair, column) for column in ("accuracy", "mir")}
        if len(found["accuracy"]) >= SEEDS_NEEDED:
            ending = "" if claim[0] == clip_features.MORE else "s"
            accuracy = _does(bootstrap(found["accuracy"]), "accuracy", ending)
            mir = _does(bootstrap(found["mir"]), "MIR", ending)
            said.append(f"{sentence.format(accuracy)}, and {mir}.")
    return said or [f"No comparison has {SEEDS_NEEDED} seeds yet, so nothing is concluded here."]


def held_and_used(probed: pd.DataFrame, choices: Iterable[Claim]) -> list[str]:
    """What a probe finds in the patches and in [CLS], and beside it whether models that read the patches do better.

    Args:
        probed: From `probe_features`.
        choices: Claims of `mirlab.first.closing.features`.
    """
    found = {(claim.paper, claim.condition): claim for claim in choices}
    said = []
    for where in ("before", "behind"):
        cls, patches = probed.loc[f"[CLS], {where}"], probed.loc[f"patches cell by cell, {where}"]
        more = [name for name in probed if patches[name] > cls[name]]
        shares = "; ".join(f"{name} {patches[name]:.0%} against {cls[name]:.0%}" for name in probed).replace("%", " %")
        sentence = (
            f"{where.capitalize()} the output layer the patches tell {listed(more) or 'nothing'} better than [CLS] "
            f"does ({shares} right)."
        )
        claim = found[clip_features.MORE, f"{where} the output layer"]
        if claim.outcome != NOT_MEASURED:
            what = {REPRODUCED: "does better", OPPOSITE: "does worse"}.get(claim.outcome, "may do better or worse")
            sentence += f" A model that reads them {what} than one that reads [CLS] ({_told(claim)} in accuracy)."
        said.append(sentence)
    return said


def patches_longer(rows: Iterable[Row], feature_rows: Iterable[Row]) -> str:
    """A model that reads all patches, after a second epoch, beside one vector after one; empty with too few seeds.

    No claim hangs on it, and the two have not had the same training.

    Args:
        rows: Of ``eim``, whose arm *two epochs* reads all patches.
        feature_rows: Of ``eim_features``.
    """
    table = frame([*rows, *feature_rows])
    lead = tables.difference(table, "two epochs", clip_features.ONE_BEHIND, "accuracy")
    if len(lead) < SEEDS_NEEDED:
        return ""
    return (
        "The arm *two epochs* above reads all patches as well. After its second epoch it differs from one vector "
        f"behind the output layer, after one epoch, by {bootstrap(lead).text(3)} in accuracy. What a second epoch does "
        "for one vector was not measured."
    )


def extremes(rows: Iterable[Row], feature_rows: Iterable[Row]) -> str:
    """Which arms of both experiments have the lowest and the highest MIR, and where they stand in accuracy.

    Args:
        rows: Of ``eim``.
        feature_rows: Of ``eim_features``, whose first arm is the plain one of ``eim`` and counts once.

    Returns:
        A sentence; empty where an arm has too few seeds.
    """
    table = frame([*rows, *feature_rows])
    arms = [*PROTOCOL.arms, *(arm for arm in clip_features.PROTOCOL.arms if arm != clip_features.ALL_BEFORE)]
    if not len(table) or any((table["arm"] == arm).sum() < SEEDS_NEEDED for arm in arms):
        return ""
    means = table.groupby("arm")[["mir", "accuracy"]].mean().loc[arms].round(6)
    low, high = means["mir"].min(), means["mir"].max()

    def told(value: float) -> str:
        """The arms with this MIR; those that share their stage 1 share it."""
        some = means[np.isclose(means["mir"], value)]
        ranks = [int((means["accuracy"] > accuracy).sum()) + 1 for accuracy in some["accuracy"]]
        each = [
            f"*{arm}* ({accuracy:.3f}, place {rank} of {len(means)})"
            for (arm, accuracy), rank in zip(some["accuracy"].items(), ranks, strict=True)
        ]
        return listed(each)

    return (
        f"**MIR and accuracy.** By their means, the lowest MIR of all arms on this page is {low:.2f}, and the accuracy "
        f"with it: {told(low)}. The highest is {high:.2f}: {told(high)}."
    )


@torch.no_grad()
def probe_features(model: LlavaForConditionalGeneration, *, scenes: int = 1200, seed: int = 0) -> pd.DataFrame:
    """How much of a picture a linear probe reads from the [CLS] token, or from the patches, of a model's encoder.

    Before the output layer is the layer that the connector reads, behind it as in `mirlab.methods.features`.

    Ridge regression on three quarters of the scenes, to what stands in each of the four cells; share right on the
    rest. It asks what is there, not what a language model would make of it.

    Args:
        model: The model; its projector and language model are not used.
        scenes: Number of scenes.
        seed: Of the scenes.

    Returns:
        Share right, by feature (rows) and by ``size``, ``colour``, ``shape`` (columns); the last row is the share of
        the most frequent answer.
    """
    drawn = [world.sample_scene(np.random.default_rng([seed, 38, i])) for i in range(scenes)]
    known = 3 * scenes // 4
    pictures = miniature.pixel_values(drawn)
    tower = vision_tower(model)
    seen = tower(pictures, output_hidden_states=True)
    before = seen.hidden_states[miniature.VISION_FEATURE_LAYER]
    behind = tower.post_layernorm(seen.last_hidden_state)
    features = {
        "[CLS], behind": behind[:, 0],
        "[CLS], before": before[:, 0],
        "mean of the patches, before": before[:, 1:].mean(dim=1),
        "patches cell by cell, behind": picture_cells.cell_means(behind[:, 1:]),
        "patches cell by cell, before": picture_cells.cell_means(before[:, 1:]),
    }
    truth = picture_cells.cell_labels(drawn)  # (n, 4, 3)
    sizes = [len(words) for words in picture_cells.LABELS.values()]
    told = torch.cat(
        [torch.nn.functional.one_hot(truth[..., i], size).double() for i, size in enumerate(sizes)], dim=-1
    )
    lines = {}
    for name, found in features.items():
        by_cell = found.ndim == 3
        x = found.double() if by_cell else found.double()[:, None].expand(-1, 4, -1)  # (n, 4, d)
        guesses = torch.empty(scenes - known, 4, told.shape[-1], dtype=torch.float64)
        for cell in range(4):
            guesses[:, cell] = _ridge(x[:known, cell], told[:known, cell], x[known:, cell])
        lines[name] = [
            (one.argmax(dim=-1) == truth[known:, :, i]).double().mean().item()
            for i, one in enumerate(guesses.split(sizes, dim=-1))
        ]
    frequent = [torch.bincount(truth[:known, :, i].flatten()).argmax() for i in range(len(sizes))]
    lines["always the most frequent"] = [
        (truth[known:, :, i] == answer).double().mean().item() for i, answer in enumerate(frequent)
    ]
    return pd.DataFrame(lines, index=list(picture_cells.LABELS)).T


def _ridge(x: torch.Tensor, y: torch.Tensor, new: torch.Tensor, strength: float = 1e-3) -> torch.Tensor:
    """Predictions for new features (m, d) of a ridge regression with intercept from (n, d) to (n, c)."""
    centre, mean = x.mean(dim=0), y.mean(dim=0)
    x = x - centre
    gram = x.T @ x
    gram += strength * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return (new - centre) @ torch.linalg.solve(gram, x.T @ (y - mean)) + mean
