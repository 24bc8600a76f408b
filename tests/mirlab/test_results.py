"""Rows become tables and findings, without a model, and with the numbers that stand in the ledger."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mirlab import commands, experiments, power, results
from mirlab.claims import Contrast, Effect
from mirlab.experiments import EXPERIMENTS, Experiment, Registry
from mirlab.ledger import Ledger, key_of
from mirlab.statistics import ABOVE, simulated, spearman_of_means, spearman_within, spread
from mirlib import MirlibError

RESULTS = Path(__file__).parents[2] / "results"


def row(seed, *, rate=0.008, mir=2.0, arm=None, method=None, **metrics):
    recipe = {"pairs": 1024, "epochs": 2, "batch": 32, "learning_rate": rate, "warmup_steps": 2}
    configuration = {"seed": seed, "parts": seed + 10, "size": "base", "stage_one": recipe, "study": "final"}
    configuration |= {"method": method} if method else {}
    measured = {
        "stage_one": {"loss": 0.9, "curve": [[10, 3.0], [20, 2.0], [30, 1.0], [64, 0.5]], "seconds": 3.0},
        "mir": {"value": mir, "norm_only": 1.5, "null": 0.7, "floor": -1.0, "norm_ratio": [100.0, 2.0]},
        "accuracy": {"mean": 0.5, "blind": 0.25},
        "accuracy_by_kind": {"exist": 0.75, "count": 0.25},
    }
    made = {"key": key_of(configuration), "experiment": "made", "configuration": configuration}
    made |= {"metrics": measured | metrics, "seconds": {"stage_one": 4.0, "all": 9.5}}
    return made | ({"arm": arm} if arm else {})


def write(folder, rows, name="made"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_reading_results_loads_no_model():
    code = "import sys, mirlab.results; print({'torch', 'transformers', 'mirlib.mir'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_row_is_a_line(tmp_path):
    moca = {"arm": "MoCa", "method": {"name": "moca", "rate": 0.1}}
    write(tmp_path, [row(1, **moca), row(0, **moca), row(0, arm="plain", mir=3.0)])
    table = results.load("made", tmp_path)
    assert table[["arm", "seed"]].values.tolist() == [["MoCa", 0], ["MoCa", 1], ["plain", 0]]
    first = table.iloc[0]
    assert (first["pairs"], first["batch"], first["learning_rate"], first["parts"]) == (1024, 32, 0.008, 10)
    assert (first["mir"], first["mir_minus_norm_only"], first["norm_ratio"]) == (2.0, 0.5, 100.0)
    assert first["log_norm_ratio"] == pytest.approx(math.log10(100))
    assert first["norm_ratios"] == [100.0, 2.0]
    assert (first["accuracy"], first["accuracy_exist"], first["accuracy_count"]) == (0.5, 0.75, 0.25)
    assert (first["seconds"], first["loss"], first["method"]) == (9.5, 0.9, "moca")
    assert table["method"].iloc[2] == "plain"
    assert results.wide(table, "mir").loc[0].to_dict() == {"MoCa": 2.0, "plain": 3.0}
    assert results.paired(table, "MoCa", "plain", "mir").to_dict() == {0: -1.0}
    assert "perplexity" not in table


def test_a_damaged_row_is_refused_and_no_ledger_is_an_empty_table(tmp_path):
    assert len(results.load("made", tmp_path)) == len(results.probes("made", tmp_path)) == 0
    damaged = row(0, arm="plain")
    damaged["configuration"]["stage_one"]["pairs"] = 4096
    write(tmp_path, [damaged])
    with pytest.raises(MirlibError, match="changed after the run"):
        results.load("made", tmp_path)


def test_probes_have_lines_of_their_own_and_the_loss_before_them(tmp_path):
    probe = {"step": 34, "mir": {"value": 4.0, "norm_only": 4.0, "norm_ratio": [10.0, 1.0]}}
    later = {"step": 60, "mir": {"value": 3.0, "norm_only": 3.0, "norm_ratio": [10.0, 1.0]}}
    write(tmp_path, [row(0, arm="watched", probes=[probe, later]), row(1, arm="plain")])
    table = results.probes("made", tmp_path)
    assert table[["arm", "step", "mir"]].values.tolist() == [
        ["watched", 34, 4.0],
        ["watched", 60, 3.0],
        ["watched", 64, 2.0],
    ]
    assert table["loss"].tolist() == [1.5, 1.0, 0.5]  # two points in the window; none, so the last one; the end's own
    assert table["accuracy"].isna().tolist() == [True, True, False]


def test_the_audits_numbers_come_out_again():
    """Correlations of arm means, and how often an oracle's mean correlation of five seeds is at most −.8."""
    table = power.first_edition("data_scale", RESULTS)
    table = table[table["arm"].str.startswith("matched, ")]
    mir, accuracy = (results.wide(table, column).to_numpy() for column in ("mir", "accuracy"))
    assert mir.shape == (5, 4)
    assert spearman_of_means(mir, accuracy) == pytest.approx(-0.8)
    drawn = simulated(spread(accuracy), seeds=5)
    assert (spearman_within(-accuracy.mean(axis=0), drawn).mean(axis=1) <= -0.8).mean() >= 0.98


def test_mir_that_was_measured_again_and_again_comes_as_lists(tmp_path):
    kinds = {"digits": {"news": [1.0, 1.1], "code": [2.0]}}
    write(tmp_path, [row(0, arm="plain", kinds=kinds, counts={"5": [3.0, 3.5]}, gaps={"ima": {"value": 0.2}})])
    first = results.load("made", tmp_path).iloc[0]
    assert (first["mir_kinds_digits_news"], first["mir_kinds_digits_code"]) == ([1.0, 1.1], [2.0])
    assert (first["mir_counts_5"], first["gap_ima"]) == ([3.0, 3.5], 0.2)


# ---------------------------------------------------------------------------------------------------------------------
# Experiments


def experiment(name="made", claims=(), **options):
    arms = {"new": (), "plain": ()}
    return Experiment(name, "Does it?", "It does.", "Table 2", "Whether.", arms, claims, **options)


def test_outcomes_join_ledger_and_claims(tmp_path, monkeypatch):
    falls = Contrast("MIR falls", "paper, Table 2", "new", "plain", "mir")
    early = Contrast("it fell early", "ours", "new", "new, step 34", "mir")
    never = Contrast("loss falls", "ours", "new", "plain", "loss")
    probes = [{"step": 34, "mir": {"value": 9.0, "norm_only": 4.0, "norm_ratio": [10.0]}}]
    rows = [row(seed, rate=0.1, arm="new", mir=1 + 0.01 * seed**2, probes=probes) for seed in range(6)]
    write(tmp_path, rows + [row(seed, arm="plain", mir=2 + 0.02 * seed) for seed in range(6)])
    declared = experiment(claims=(falls, early, never))
    (tmp_path / "ceilings.json").write_text('{"made": {"loss falls": 0.4}}')
    monkeypatch.setattr(results, "EXPERIMENTS", {"made": declared})
    findings = results.outcomes("made", tmp_path)
    assert [f.outcome for f in findings] == ["reproduced", "reproduced", "not testable here"]
    assert findings[0].estimate.value == pytest.approx(sum(1 + 0.01 * s**2 - 2 - 0.02 * s for s in range(6)) / 6)
    assert findings[2].ceiling == 0.4


def test_an_experiment_may_add_columns(tmp_path, monkeypatch):
    claim = Effect("layer 1 is long", "ours", {"new": 1}, "excess", ABOVE)
    declared = experiment(
        claims=(claim,),
        derive=lambda table: table.assign(excess=[ratios[0] / ratios[-1] - 1 for ratios in table["norm_ratios"]]),
    )
    monkeypatch.setattr(results, "EXPERIMENTS", {"made": declared})
    assert results.outcomes("made", tmp_path)[0].outcome == "not measured"
    write(tmp_path, [row(seed, arm="new") for seed in range(6)])
    (finding,) = results.outcomes("made", tmp_path)
    assert (finding.outcome, finding.estimate.value) == ("reproduced", 49)


def test_an_experiment_that_contradicts_itself_is_refused():
    claim = Contrast("MIR falls", "ours", "new", "plain", "mir")
    with pytest.raises(ValueError, match="claims twice: MIR falls"):
        experiment(claims=(claim, claim))
    with pytest.raises(ValueError, match="arms that it has not: old"):
        experiment(claims=(Contrast("MIR falls", "ours", "new", "old", "mir"),))


def test_experiments_are_imported_when_they_are_asked_for(tmp_path, monkeypatch):
    package = tmp_path / "made_experiments"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_shared.py").touch()
    (package / "second.py").write_text("EXPERIMENT = 'second'\n")
    (package / "first.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("made_experiments", [str(package)])
    assert list(registry) == ["first", "second"]
    assert registry["second"] == "second"
    assert "other" not in registry
    with pytest.raises(RuntimeError, match="imported"):
        registry["first"]


def test_every_declared_experiment_is_called_as_its_file():
    assert isinstance(EXPERIMENTS, Registry)
    for name in experiments.EXPERIMENTS:
        assert EXPERIMENTS[name].name == name


def test_ranges_of_kinds_are_those_of_the_runs_that_have_them_and_not_of_their_probes():
    run = {
        "mir_kinds_scenes_news": [1.0, 1.2, 1.1],
        "mir_kinds_scenes_code": [1.4, 1.6, 1.5],
        "mir_kinds_scans_news": [2.0, 2.2, 2.1],
        "mir_kinds_scans_code": [2.4, 2.6, 2.5],
        "mir_template_chat": [1.0, 1.0, 1.0],
        "mir_template_plain": [0.9, 0.9, 0.9],
        "mir_relevance_own": [1.0],
        "mir_relevance_other": [1.02],
        "mir_seen_seen": [1.0],
        "mir_seen_unseen": [1.0],
    }
    found = EXPERIMENTS["robustness"].derive(pd.DataFrame([run, {"mir": 1.0}]))
    wanted = {"pictures": 1.0, "texts": 0.4, "template": 0.1, "relevance": 0.02, "seen": 0.0}
    for name, value in wanted.items():
        assert found[f"range_{name}"].iloc[0] == pytest.approx(value)
        assert np.isnan(found[f"range_{name}"].iloc[1])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_ledger_as_it_is_can_be_judged(name):
    """Half of the runs may be there: each claim has a word, and no column is asked for that runs do not have."""
    found = results.outcomes(name, RESULTS)
    assert [finding.claim for finding in found] == list(EXPERIMENTS[name].claims)


def test_no_run_stands_on_a_set_that_failed_the_gate():
    failed = {row["seed"] for row in Ledger(RESULTS / "parts.jsonl").rows() if row["failures"]}
    assert failed and not failed & set(commands.sets())


MEASURED = {"leaning", "long_tokens", "probes", "robustness", "zoo"}
"""What is asked of a run beside the plain questions; it changes no training."""

VARIED = {
    "captions": {"detail"},
    "connectors": {"connector"},
    "data_scale": {"pairs", "warmup_steps"},
    "eim": {"method", "epochs", "warmup_steps"},
    "hallucination": {"method", "norm_matched"},
    "masks": {"method", "unlock"},
    "moca": {"method", "norm_matched"},
    "operating_point": {"batch", "learning_rate", "pairs", "warmup_steps"},
    "overfitting": {"epochs", "pairs"},
    "real": {"pairs", "warmup_steps"},
    "recipes": {"learning_rate", "scheduler", "warmup_steps"},
    "stages": {"method", "pairs", "warmup_steps", "unlock", "unlock_encoder", "stage two, images"},
    "unlocking": {"unlock"},
    "warmup_or_data": {"pairs", "warmup_steps"},
    "weighting": {"method", "norm_matched"},
    "zoo": {"batch", "learning_rate", "pairs", "scheduler", "warmup_steps"},
}


def settings(run):
    """All settings of a run's training, each as text; those of the second stage with its name before them."""
    flat = dict(run.configuration)
    flat |= flat.pop("stage_one")
    flat |= {f"stage two, {name}": value for name, value in flat.pop("stage_two", {}).items()}
    return {name: str(value) for name, value in flat.items() if name not in MEASURED}


@pytest.mark.parametrize("name", [name for name, declared in EXPERIMENTS.items() if declared.claims])
def test_arms_differ_in_what_is_asked_and_in_nothing_else(name):
    declared, different = EXPERIMENTS[name], set()
    for claim in declared.claims:
        first, *others = (
            [(run.seed, run.parts) for run in declared.arms[arm.partition(", step ")[0]]] for arm in claim.arms
        )
        assert all(other == first for other in others), "arms are compared seed by seed"
    arms = [[settings(run) for run in runs] for runs in declared.arms.values()]
    for runs in arms[1:]:
        for ours, theirs in zip(runs, arms[0], strict=False):
            different |= {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    assert different - {"parts"} == VARIED.get(name, set())
    assert ("parts" in different) == (name == "eim"), "two groups of arms, each on six sets"
