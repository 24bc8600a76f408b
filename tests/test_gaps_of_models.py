"""The zoo on models: one pass over the pairs, a bounded part of the rows, and the command that prints it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from command import mir, refused
from tiny_processors import lvlm

from mirlib import MirlibError, gaps, score
from mirlib.data import sample_images, sample_texts
from mirlib.gaps import MEASURES
from mirlib.gaps.base import PAIRS, ROWS
from mirlib.gaps.model import rows_that_fit, score_measures
from mirlib.rows import collect_rows

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"batch_size": 4, "max_text_tokens": 20, "progress": False}
OF_ROWS = [name for name, measure in MEASURES.items() if measure.needs == ROWS]
OF_PAIRS = [name for name, measure in MEASURES.items() if measure.needs == PAIRS]


@pytest.fixture(scope="module")
def tiny():
    return lvlm("llava")


@pytest.fixture(scope="module")
def pairs():
    return sample_images(12), sample_texts(12)


@pytest.fixture(scope="module")
def rows(tiny, pairs):
    return collect_rows(*tiny, *pairs, batch_size=4, max_text_tokens=20)


# ---------------------------------------------------------------------------------------------------------------------
# A bounded part of the rows


def test_equally_many_rows_of_every_sample_are_kept_and_they_are_rows_of_the_whole(tiny, pairs, rows):
    some = collect_rows(*tiny, *pairs, batch_size=4, max_text_tokens=20, max_rows=36)
    for modality in ("vision", "text"):
        whole, part = getattr(rows, modality), getattr(some, modality)
        whole_ids, part_ids = getattr(rows, f"{modality}_samples"), getattr(some, f"{modality}_samples")
        assert part_ids.bincount().tolist() == [3] * 12  # 36 rows, 12 samples
        assert some.seen[modality] == len(whole_ids)
        for sample in range(12):
            there, kept = whole_ids == sample, part_ids == sample
            places = {
                tuple((layer_whole[there] - row).abs().sum(1).argmin().item() for row in layer_part[kept])
                for layer_whole, layer_part in zip(whole, part, strict=True)
            }
            assert len(places) == 1 and len(set(places.pop())) == 3  # three rows, the same after every layer
        for layer_whole, layer_part in zip(whole, part, strict=True):
            nearest = torch.cdist(layer_part.double(), layer_whole.double()).amin(1)
            assert float(nearest.max()) < 1e-4


def test_the_means_of_samples_are_those_of_all_their_rows(tiny, pairs, rows):
    some = collect_rows(*tiny, *pairs, batch_size=4, max_text_tokens=20, max_rows=12)
    for k in range(rows.num_layers):
        for side, modality in enumerate(("vision", "text")):
            ids = getattr(rows, f"{modality}_samples")
            expected = torch.stack([getattr(rows, modality)[k][ids == sample].mean(0) for sample in range(12)])
            torch.testing.assert_close(some.pooled[side][k], expected, rtol=1e-4, atol=1e-4)


def test_which_rows_are_kept_depends_on_the_seed_and_not_on_the_batches(tiny, pairs):
    def kept(**options):
        found = collect_rows(*tiny, *pairs, max_text_tokens=20, max_rows=24, **options)
        return found.vision_embeddings

    first = kept(batch_size=4)
    torch.testing.assert_close(kept(batch_size=5), first, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(kept(batch_size=4, seed=1), first, rtol=1e-3, atol=1e-3)


def test_without_a_bound_nothing_is_left_out_and_a_bound_above_all_rows_keeps_all(tiny, pairs, rows):
    assert rows.seen is None and rows.pooled is None
    wide = collect_rows(*tiny, *pairs, batch_size=4, max_text_tokens=20, max_rows=10**6)
    torch.testing.assert_close(wide.text[-1], rows.text[-1])
    torch.testing.assert_close(wide.vision_samples, rows.vision_samples)
    with pytest.raises(MirlibError, match="max_rows must be at least 1"):
        collect_rows(*tiny, *pairs, max_rows=0)


# ---------------------------------------------------------------------------------------------------------------------
# Measures of a model


def test_one_pass_gives_all_measures_and_mir_is_that_of_score(tiny, pairs):
    passes = []
    hook = tiny[0].register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        found = score_measures(*tiny, *pairs, num=12, **OPTIONS)
    finally:
        hook.remove()
    assert sum(passes) == 12  # each pair once, and no more
    assert list(found.results) == OF_ROWS
    assert set(found.skipped) == set(MEASURES) - set(OF_ROWS)
    assert found.skipped["cka"].startswith("needs images and the texts")
    expected = score(*tiny, *pairs, num=12, **OPTIONS)
    assert found.results["mir"].value == pytest.approx(expected.value, rel=1e-5)
    assert found.results["norm_only"].value == pytest.approx(expected.norm_only, rel=1e-5)
    assert found.settings["rows_kept"] == found.settings["rows_seen"] == dict(expected.rows)
    assert found.settings["layers"] == expected.num_layers
    json.loads(found.to_json())


def test_pairs_that_belong_together_bring_the_measures_of_pairs_from_all_their_rows(tiny, pairs, rows):
    wanted = ["cka", "rmg", "ima"]
    options = {"measures": wanted, "num": 12, "paired": True, "max_rows": 24, **OPTIONS}
    found = score_measures(*tiny, *pairs, text="after the picture", **options)
    assert list(found.results) == wanted and not found.skipped
    for name in ("cka", "rmg"):  # the drawn order of the pairs does not matter to them
        expected = MEASURES[name].function(rows.vision, rows.text, samples=rows.samples).per_layer
        assert found.results[name].per_layer == pytest.approx(expected, rel=1e-3)
        assert found.results[name].calibration.permutations == 200
    assert found.results["ima"].rows == found.settings["rows_kept"] == {"vision": 24, "text": 24}
    assert found.settings["rows_seen"]["vision"] == len(rows.vision_samples)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "idefics3"])
def test_other_families_are_measured_alike(family, pairs):
    model, processor = lvlm(family)
    found = score_measures(model, processor, *pairs, measures="ima,modality_gap", num=6, **OPTIONS)
    again = collect_rows(model, processor, *[side[:6] for side in pairs], batch_size=3, max_text_tokens=20)
    assert found.settings["layers"] == again.num_layers
    assert all(-1 <= value <= 1 for value in found.results["ima"].per_layer)
    layers = model.get_decoder().layers
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)  # nothing is left behind
    assert found.results["modality_gap"].value > 0


def test_how_many_rows_fit_follows_from_the_models_width_depth_and_precision(tiny):
    config = tiny[0].config.get_text_config()
    a_row = 2 * (config.num_hidden_layers + 1) * config.hidden_size * 4
    assert rows_that_fit(tiny[0], 100 * a_row) == 100
    assert rows_that_fit(tiny[0], 1) == 2


def test_unknown_measures_and_measures_that_cannot_be_had_are_refused_before_anything_runs(tiny, pairs):
    with pytest.raises(MirlibError, match="no measure is called 'iam'; there is all, modality_gap"):
        score_measures(*tiny, *pairs, measures="ima,iam", num=12, **OPTIONS)
    with pytest.raises(MirlibError, match="cka needs images and the texts that belong to them"):
        score_measures(*tiny, *pairs, measures="cka", num=12, **OPTIONS)
    with pytest.raises(MirlibError, match="perceptual_score needs a labelled task: pass the answers"):
        score_measures(*tiny, *pairs, measures="perceptual_score", num=12, paired=True, **OPTIONS)


def test_a_state_that_is_not_finite_is_named(tiny, pairs):
    model, processor = tiny
    weight = model.get_decoder().layers[1].mlp.down_proj.weight
    before = weight.detach().clone()
    try:
        weight.data[0, 0] = float("nan")
        with pytest.raises(MirlibError, match=r"layer 2, vision row \d+ of sample 0: the hidden state holds NaN"):
            score_measures(model, processor, *pairs, measures="ima", num=4, **OPTIONS)
    finally:
        weight.data.copy_(before)


# ---------------------------------------------------------------------------------------------------------------------
# The command

SCORE = ("score", "-n", 6, "--max-text-tokens", 20, "--no-progress")


@pytest.fixture
def command(tiny, monkeypatch):
    """`mir` with the tiny model in place of the miniature."""
    monkeypatch.setattr("mirlib.loading.load_miniature", lambda dtype: tiny)
    return mir


def test_the_command_prints_a_line_a_measure_and_what_it_left_out(command, capsys):
    outcome = command(capsys, *SCORE, "--measures", "all", "--rows", 12)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    for place, name in enumerate(OF_ROWS, start=1):
        assert lines[place].startswith(MEASURES[name].title)
        assert MEASURES[name].direction in lines[place]
    assert "12 of " in outcome.out and "MIR and FD∞ are those of the rows kept" in outcome.out
    assert re.search(r"! 12 vision rows and 12 text rows for \d+ dimensions: MIR is biased upwards", outcome.out)
    assert "biased" not in command(capsys, *SCORE, "--measures", "ima", "--rows", 12).out
    for name in (*OF_PAIRS, "perceptual_score", "soft_discrimination"):
        assert f"! left out: {name} " in outcome.out


def test_the_command_writes_json_alone_to_stdout(command, capsys, tiny):
    outcome = command(capsys, *SCORE, "--measures", "ima,mir", "--json", "-")
    found = json.loads(outcome.out)
    assert list(found["measures"]) == ["ima", "mir"]
    expected = score_measures(
        *tiny, sample_images(6, 0), sample_texts(6, 0), measures="ima,mir", num=6, batch_size=4,
        max_text_tokens=20, progress=False,
    )  # fmt: skip
    assert found["measures"]["ima"]["value"] == pytest.approx(expected.results["ima"].value, rel=1e-6)


def test_the_command_takes_pairs(command, capsys, tmp_path):
    for i, image in enumerate(sample_images(14)):
        image.convert("RGB").save(tmp_path / f"{i}.png")
    lines = [json.dumps({"image": f"{i}.png", "text": text}) for i, text in enumerate(sample_texts(14))]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = ("score", "-n", 14, "--max-text-tokens", 20, "--no-progress", "--json", tmp_path / "out.json")
    outcome = command(capsys, *options, "--pairs", tmp_path / "pairs.jsonl", "--measures", "mutual_knn,cka")
    assert outcome.code == 0, outcome.err
    assert "calibrated: 0 for them, 1 for the best" in outcome.out
    assert "pairs: texts read alone, pictures before their own texts" in outcome.out
    assert (
        "the model reads the texts once more, without the pictures, and beside it a model of random weights"
        in outcome.err
    )
    assert "random weights: the same architecture" in outcome.out
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["measures"]["mutual_knn"]
    assert found["calibration"]["null_mean"][0] == pytest.approx(10 / 13, abs=0.03)
    assert found["rows"] == {"pairs": 14}
    assert np.shape(found["calibration"]["random_weights"]) == (1, 3) and len(found["influence"]) == 14
    assert f"[{found['interval']['low']:.4g}, {found['interval']['high']:.4g}]" in outcome.out
    without = command(capsys, *options, "--pairs", tmp_path / "pairs.jsonl", "--measures", "cka", "--random-weights", 0)
    assert "random weights" not in without.err and "architecture" not in without.out


@pytest.mark.parametrize(
    "options, said",
    [
        (("--measures", "foo"), "no measure is called 'foo'"),
        (("--measures", "rmg"), "rmg needs images and the texts that belong to them (--pairs)"),
        (("--measures", "all", "--plot", "x.png"), "--plot is for MIR alone"),
        (("--measures", "all", "--preset", "authors"), "--preset is for MIR alone"),
        (("--rows", 5), "--rows means nothing without --measures"),
        (("--random-weights", 2), "--random-weights means nothing without --measures"),
        (("--measures", "ima", "--confidence", 1.5), "confidence must lie between 0 and 1"),
        (("--measures", "ima", "--rows", 0), "max_rows must be at least 1"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(options, said, command, capsys):
    assert said in refused(capsys, *SCORE, *options)


def test_many_processes_are_refused(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "keeps rows in the memory of one process" in refused(capsys, *SCORE, "--measures", "all")


def test_of_all_measures_those_that_need_more_samples_are_left_out(tiny, pairs):
    found = score_measures(*tiny, *pairs, num=2, paired=True, measures="all", progress=False)
    assert {"modality_gap", "mir"} <= set(found.results)
    assert found.skipped["probe_auc"] == (
        "cannot be had: 2 samples are too few for 5 folds with both modalities in each"
    )
    assert "2 pairs; it needs at least 11" in found.skipped["mutual_knn"]
    with pytest.raises(MirlibError, match="2 samples are too few"):
        score_measures(*tiny, *pairs, num=2, paired=True, measures="probe_auc", progress=False)


def test_a_result_without_layers_or_numbers_is_json_all_the_same():
    found = gaps.perceptual_score(np.ones(4), np.zeros(4)).to_dict()
    assert found["per_layer"] == [] and found["value"] == 1.0
    single = gaps.soft_discrimination(np.zeros((1, 2)), [0])
    assert single.value == 0.5 and single.interval is None
    assert single.settings["no_interval"] == "there is one sample alone"
    infinite = gaps.base.GapResult("fd_infinity", float("-inf"), np.array([np.nan]), "lower", "rows", {})
    assert infinite.to_dict()["value"] is None and infinite.to_dict()["per_layer"] == [None]
