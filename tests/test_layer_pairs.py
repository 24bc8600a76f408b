"""The map of all pairs of layers: held to `score` on its diagonal, and to NumPy and SciPy loops everywhere."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from mirlib import MirlibError, score
from mirlib.data import sample_images, sample_texts
from mirlib.layer_pairs import LayerMap, _maps, _Sums, layer_map, layer_map_cost
from mirlib.loading import load_miniature
from mirlib.plots import figure_layer_map
from mirlib.reports import describe_layers
from tests.command import mir, refused
from tests.tiny_processors import lvlm

NUM, GROUPS, DIM = 9, 5, 3


@pytest.fixture(scope="module")
def miniature():
    return load_miniature()


@pytest.fixture(scope="module")
def pairs():
    return sample_images(12), sample_texts(12)


def clouds(seed=0, lengths=(1.0, 2.0, 5.0)):
    """Rows of three layers by modality, longer in each, and their samples; one text row is an outlier in layer 1."""
    rng = np.random.default_rng(seed)
    samples = {"vision": np.repeat(np.arange(NUM), 6), "text": np.repeat(np.arange(NUM), 5)}
    rows = {
        modality: [
            length * (rng.standard_normal((len(numbers), DIM)) @ rng.standard_normal((DIM, DIM)) + side + layer)
            for layer, length in enumerate(lengths)
        ]
        for side, (modality, numbers) in enumerate(samples.items())
    }
    rows["text"][1][17] *= 40
    return rows, samples


def collected(rows, samples, groups=GROUPS):
    """The same through the two passes, in two batches, samples 0..3 and 4..8."""
    sums = _Sums(range(len(rows["text"])), NUM, groups)
    for add in (sums.add_norms, sums.add_moments):
        if add == sums.add_moments:
            sums.begin_second_pass()
        for chosen in (range(4), range(4, NUM)):
            masks = {modality: np.isin(numbers, chosen) for modality, numbers in samples.items()}
            batch = SimpleNamespace(
                samples=tuple(torch.from_numpy(samples[modality][masks[modality]]) for modality in masks),
                name_row=lambda modality, row: f"row {row}",
            )
            for layer in sums.layers:
                add(layer, *(torch.from_numpy(rows[m][layer][masks[m]]) for m in masks), batch)
    return sums


def frechet(x, y):
    covariances = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)


def by_hand(rows, samples, unit=False, without=None, halves=None):
    """(L, L) distances in loops; with ``halves`` two sets of groups of texts are held to each other."""
    group = {modality: numbers * GROUPS // NUM for modality, numbers in samples.items()}
    layers = range(len(rows["text"]))
    found = np.empty((len(layers), len(layers)))
    for i in layers:
        for j in layers:
            clouds = []
            sides = (("vision", i, None), ("text", j, None)) if halves is None else (
                ("text", i, halves[0]), ("text", j, halves[1])
            )  # fmt: skip
            for modality, layer, part in sides:
                norms = np.linalg.norm(rows[modality][layer], axis=1)
                middle = np.sort(norms)[(len(norms) - 1) // 2]
                kept = np.abs(norms - middle) <= 3 * norms.std(ddof=1)
                kept &= group[modality] != without
                if part is not None:
                    kept &= np.isin(group[modality], part)
                cloud = rows[modality][layer] / (norms[:, None] if unit else 1)
                clouds.append(cloud[kept])
            of_text = np.linalg.norm(rows["text"][j], axis=1)[group["text"] != without]
            found[i, j] = frechet(*clouds) / (1 if unit else of_text.mean() ** 2)
    return found


def test_all_three_maps_and_the_jackknife_are_those_of_loops():
    rows, samples = clouds()
    found = _maps(collected(rows, samples), 0.9, {}, progress=False)
    assert found.layers == (0, 1, 2) and found.rows == {"vision": 54, "text": 45}
    np.testing.assert_allclose(found.scale, [1 / np.linalg.norm(r, axis=1).mean() for r in rows["text"]])
    for unit, pairs in ((False, found.given), (True, found.unit)):
        distances = by_hand(rows, samples, unit)
        np.testing.assert_allclose(pairs.distances, distances, rtol=1e-9)
        replicates = [by_hand(rows, samples, unit, without=group) for group in range(GROUPS)]
        for i in range(3):
            nearest = distances[i].argmin()
            assert pairs.nearest[i] == nearest
            for j in range(3):
                excess = np.array([each[i, j] - each[i, nearest] for each in replicates])
                error = np.sqrt((GROUPS - 1) / GROUPS * ((excess - excess.mean()) ** 2).sum())
                reach = stats.t.ppf(0.9, GROUPS - 1) * error
                assert pairs.within[i, j] == (distances[i, j] - distances[i, nearest] <= reach)
    null = by_hand(rows, samples, halves=([0, 2, 4], [1, 3]))
    np.testing.assert_allclose(found.null.distances, null, rtol=1e-9)
    assert found.given.within.sum() > 3, "the jackknife decides nothing here"


def test_norms_alone_can_put_every_layer_nearest_to_the_longest_one():
    """Vision after layer i has the directions of text after layer i, and text grows: units decide, directions do not.

    With the text's own norm as the unit everything is short beside the longest text.
    """
    rng = np.random.default_rng(3)
    samples = {modality: np.repeat(np.arange(NUM), 200) for modality in ("vision", "text")}
    directions = [rng.standard_normal(DIM) + 4 * np.eye(DIM)[layer] for layer in range(3)]

    def cloud(length, direction):
        return length * (rng.standard_normal((200 * NUM, DIM)) / 2 + direction)

    lengths = {"vision": (30, 30, 30), "text": (1, 3, 10)}
    rows = {modality: list(map(cloud, of_layers, directions)) for modality, of_layers in lengths.items()}
    found = _maps(collected(rows, samples), 0.95, {}, progress=False)
    assert found.given.nearest.tolist() == [2, 2, 2]
    assert found.unit.nearest.tolist() == [0, 1, 2]
    assert found.unit.within.tolist() == np.eye(3, dtype=bool).tolist()
    assert found.to_frame().to_dict("list") == {"given": [2, 2, 2], "unit": [0, 1, 2]}
    assert found.null.nearest.tolist() == [0, 1, 2]


@pytest.mark.parametrize("family", ["miniature", "qwen2_vl"])
def test_the_diagonal_is_fid_of_score(miniature, pairs, family):
    model, processor = miniature if family == "miniature" else lvlm(family)
    options = {"num": 10, "max_text_tokens": 40, "seed": 3, "progress": False}
    measured = score(model, processor, *pairs, confidence=None, **options)
    count = measured.num_layers
    found = layer_map(model, processor, *pairs, layers=[count, 1, 2], groups=2, batch_size=3, **options)
    assert found.layers == (1, 2, count)
    expected = [measured.per_layer[layer - 1] for layer in found.layers]
    np.testing.assert_allclose(found.given.distances.diagonal(), expected, rtol=2e-6)  # batches of another size
    again = layer_map(model, processor, *pairs, layers=[count, 1, 2], groups=2, **options)
    np.testing.assert_allclose(again.given.distances.diagonal(), expected, rtol=1e-9)
    assert again.rows == measured.rows
    assert again.given.within.sum() == 3, "two groups give no interval"


def test_layer_zero_is_what_enters_the_decoder(miniature, pairs):
    model, processor = miniature
    found = layer_map(model, processor, *pairs, num=4, layers=[0], groups=2, max_text_tokens=30, progress=False)
    words = model.get_input_embeddings().weight.detach()
    assert found.given.distances.shape == (1, 1)
    assert 1 / words.norm(dim=1).max() < found.scale[0] < 1 / words.norm(dim=1).min()
    assert not model.get_decoder().layers[0]._forward_pre_hooks


def test_bad_settings_are_refused(miniature, pairs):
    for wrong, message in (
        ({"layers": [9]}, r"some of 0\.\.8"),
        ({"layers": []}, "layers must be"),
        ({"groups": 1}, "at least 2"),
        ({"num": 1}, "at least 2"),
    ):
        with pytest.raises(MirlibError, match=message):
            layer_map(*miniature, *pairs, progress=False, **({"num": 4} | wrong))


def test_the_cost_counts_what_the_bar_counts(miniature, monkeypatch):
    said = layer_map_cost(miniature[0], num=100)
    assert "9 × 9 layers, 3483 trace terms of 128 × 128 matrices" in said
    assert "243 trace terms" in layer_map_cost(miniature[0], groups=2)
    monkeypatch.setattr(miniature[0].config.text_config, "hidden_size", 4096)
    said = layer_map_cost(miniature[0], layers=[0, 4, 8])
    assert "27 trace terms of 4096 × 4096" in said and "3 GiB" in said


def test_the_figure_marks_what_it_says():
    rows, samples = clouds()
    found = _maps(collected(rows, samples), 0.9, {}, progress=False)
    within = np.array([[True, False, False], [True, False, True], [False, False, True]])
    distances = np.array([[1.0, 2, 3], [1, 200, 1.1], [5, 4, 3]])
    axes = figure_layer_map(distances, [0, 4, 8], within, name="Rows", unit="squares")
    assert axes.get_title() == "Rows: same layer nearest for 2 of 3"
    assert sorted(text.get_text() for text in axes.texts)[:2] == ["1.00", "1.00"]
    assert len(axes.patches) == 3 + within.sum()
    assert len(found.plot().axes) == 4


def test_the_layers_that_cannot_be_told_apart_are_named_and_no_others():
    within = np.array([[1, 1, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]], dtype=bool)
    pairs = SimpleNamespace(nearest=np.array([1, 1, 3]), within=within)
    lines = describe_layers(SimpleNamespace(layers=(0, 2, 4, 6, 8, 10), given=pairs, unit=pairs))
    assert lines[1] == "  rows as they are: 2 (0–2, 8–10); 2; 6 (2, 6)"


def test_the_command_draws_it_and_writes_its_numbers(capsys, tmp_path):
    drawing, numbers = tmp_path / "map.png", tmp_path / "mir.json"
    arguments = ("--num", "8", "--max-text-tokens", "30", "--no-progress")
    outcome = mir(capsys, "score", *arguments, "--layer-map", drawing, "--json", numbers)
    assert outcome.code == 0, outcome.err
    assert "trace terms of 128 × 128 matrices" in outcome.err.split("wrote")[0]
    assert "nearest text layer to vision after layers 0, 1, 2" in outcome.out
    assert drawing.stat().st_size > 10_000
    stored = json.loads(numbers.read_text())
    found = stored["layer_map"]
    assert found["layers"] == list(range(9)) and len(found["unit"]["nearest"]) == 9
    np.testing.assert_allclose(np.diagonal(found["given"]["distances"])[1:], stored["per_layer"], rtol=1e-9)


def test_the_command_refuses_before_it_measures(capsys, tmp_path):
    png = tmp_path / "a.png"
    for arguments, words in (
        (("--layer-map", tmp_path / "a.txt"), "must end in .png, .pdf or .svg"),
        (("--layer-map", tmp_path / "none" / "a.png"), "cannot write"),
        (("--layer-map", png, "--plot", png), "--plot and --layer-map are the same file"),
        (("--layer-map", png, "--preset", "authors"), "leave out it or --preset"),
        (("--layer-map", png, "--measures", "all"), "--layer-map is for MIR alone"),
    ):
        assert words in refused(capsys, "score", *arguments)


def test_a_result_survives_where_its_layer_map_fails(capsys, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MirlibError("no memory is left")

    monkeypatch.setattr("mirlib.layer_pairs.layer_map", fail)
    outcome = mir(capsys, "score", "--num", "4", "--no-progress", "--layer-map", tmp_path / "a.png")
    assert outcome.code == 2 and "MIR of the miniature" in outcome.out and "no memory is left" in outcome.err


def test_it_is_json():
    rows, samples = clouds()
    found = _maps(collected(rows, samples), 0.9, {"num": 9}, progress=False)
    assert isinstance(found, LayerMap)
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored["unit"]["distances"] == found.unit.distances.tolist() and stored["settings"] == {"num": 9}
