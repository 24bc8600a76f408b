"""Who is to blame: optimal maps, and the costs of single rows, which add up to the Fréchet distance."""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from command import mir, refused
from PIL import Image
from scipy.linalg import sqrtm
from tiny_processors import lvlm

from mirlib import MirlibError, accumulators, costs, score, transport_map
from mirlib.costs import as_seen
from mirlib.data import sample_images, sample_texts
from mirlib.forward import Reader
from mirlib.frechet import Moments, frechet_distance, frechet_distance_from_moments
from mirlib.mir import NormBounds
from mirlib.rows import collect_rows
from mirlib.transport import optimal_maps, row_costs, unreached_spread

pytestmark = pytest.mark.usefixtures("one_thread")
GOLDEN = Path(__file__).parent / "golden"


def cloud(n, d, seed, decay=0.7, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.arange(1, d + 1) ** -decay
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    return rows @ turn + shift


def added_up(rows, own, other, map):
    """What the Fréchet distance should be."""
    return float(row_costs(rows, own, other, map).mean()) + unreached_spread(own, other, map)


@pytest.mark.parametrize("name", ["wide_gap", "same_scale", "rank_deficient"])
@pytest.mark.parametrize("kind", ["none", "drop"])
def test_costs_add_up_to_the_golden_distances(name, kind):
    """Both ways, with rows that the outlier rule left out, and with fewer rows than dimensions."""
    data = np.load(GOLDEN / f"{name}.npz")
    for k, want in enumerate(data[f"exact_{kind}_fid"]):
        rows = [torch.from_numpy(data[side][k]).double() for side in ("vision", "text")]
        scale = 1 / float(rows[1].norm(dim=1).mean())
        rows = [values * scale for values in rows]
        if kind == "drop":
            norms = [values.norm(dim=1) for values in rows]
            rows = [v[(n - n.median()).abs() <= 3 * n.std()] for v, n in zip(rows, norms, strict=True)]
        vision, text = (Moments.of(values) for values in rows)
        maps = optimal_maps(vision.covariance, text.covariance)
        assert added_up(rows[0], vision, text, maps.forward) == pytest.approx(want, rel=1e-9)
        assert added_up(rows[1], text, vision, maps.backward) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    "n, m, d", [(900, 700, 32), (40, 700, 64), (700, 40, 64), (40, 30, 64), (2, 50, 8), (65, 64, 64)]
)
def test_costs_add_up_whatever_the_ranks(n, m, d):
    x, y = 3 * cloud(n, d, 0, shift=0.5), cloud(m, d, 1, shift=-0.2)
    own, other = Moments.of(x), Moments.of(y)
    maps = optimal_maps(own.covariance, other.covariance)
    want = frechet_distance(x, y).total
    assert added_up(x, own, other, maps.forward) == pytest.approx(want, rel=1e-9)
    assert added_up(y, other, own, maps.backward) == pytest.approx(want, rel=1e-9)
    assert (unreached_spread(own, other, maps.forward) == 0) == (n > d)
    assert (unreached_spread(other, own, maps.backward) == 0) == (m > d)


def test_each_cost_is_that_of_the_map_by_matrix_roots():
    """Row by row in NumPy, with T from three roots of SciPy's."""
    x, y = cloud(400, 12, 0, shift=0.5).numpy(), 2 * cloud(300, 12, 1).numpy()
    a, b = np.cov(x.T), np.cov(y.T)
    root = sqrtm(a).real
    inverse = np.linalg.inv(root)
    map = inverse @ sqrtm(root @ b @ root).real @ inverse
    want = [
        sum((x.mean(0) - y.mean(0) + np.sqrt(400 / 399) * ((row - x.mean(0)) - map @ (row - x.mean(0)))) ** 2)
        for row in x
    ]
    own, other = Moments.of(x), Moments.of(y)
    maps = optimal_maps(own.covariance, other.covariance)
    assert maps.forward.numpy() == pytest.approx(map, abs=1e-10)
    assert row_costs(torch.from_numpy(x), own, other, maps.forward).numpy() == pytest.approx(np.array(want), rel=1e-9)


def test_each_cost_in_closed_form_where_the_covariances_commute():
    """Along common axes the map stretches each axis by the ratio of the standard deviations."""
    x = cloud(500, 6, 3)
    stretch = torch.tensor([0.1, 0.5, 1.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    axes = torch.linalg.eigh(torch.cov(x.T))[1]
    y = (x @ axes) * stretch @ axes.T + 2
    own, other = Moments.of(x), Moments.of(y)
    paid = row_costs(x, own, other, optimal_maps(own.covariance, other.covariance).forward)
    along = (x - x.mean(0)) @ axes
    shift = (x.mean(0) - y.mean(0)) @ axes
    want = ((shift + (500 / 499) ** 0.5 * along * (1 - stretch)) ** 2).sum(1)
    assert paid.numpy() == pytest.approx(want.numpy(), rel=1e-9)


def test_a_row_that_stands_still_costs_nothing():
    x = cloud(50, 5, 0)
    own = Moments.of(x)
    maps = optimal_maps(own.covariance, own.covariance)
    assert float(row_costs(x, own, own, maps.forward).max()) < 1e-20
    assert unreached_spread(own, own, maps.forward) == 0


def test_half_precision_rows_are_read_in_float64():
    x, y = cloud(300, 8, 0).to(torch.bfloat16), cloud(200, 8, 1).to(torch.bfloat16)
    own, other = Moments.of(x), Moments.of(y)
    maps = optimal_maps(own.covariance, other.covariance)
    want, _ = frechet_distance_from_moments(own, other)
    assert row_costs(x, own, other, maps.forward).dtype == torch.float64
    assert added_up(x, own, other, maps.forward) == pytest.approx(want.total, rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# The costs of a model's rows


@pytest.fixture(scope="module")
def tiny():
    """A tiny model, its processor, pictures and texts."""
    return *lvlm("llava"), sample_images(12), sample_texts(12)


def adds_up(parts, unreached):
    """(K,) mean over the rows that are kept, plus what they cannot reach."""
    return np.nanmean(np.concatenate(parts, axis=1), axis=1) + unreached


@pytest.mark.parametrize("options", [{}, {"num": 2}, {"outliers": "none"}, {"template": "plain", "last": "raw"}])
def test_costs_of_a_model_add_up_to_its_distances(tiny, options):
    """With 2 pairs, 8 vision rows in 32 dimensions cannot reach all of the text."""
    options = {"num": 12, "max_text_tokens": 40, "progress": False, **options}
    found = transport_map(*tiny, batch_size=5, **options)
    result = score(*tiny, batch_size=3, confidence=None, **options)
    assert adds_up(found.vision, found.unreached["vision"]) == pytest.approx(result.per_layer, rel=1e-9)
    assert adds_up(found.text, found.unreached["text"]) == pytest.approx(result.per_layer, rel=1e-9)
    assert found.per_layer == pytest.approx(result.per_layer, rel=1e-9)
    assert (found.unreached["vision"] > 0).all() == (options["num"] == 2)
    for name, table in (("vision", found.vision), ("text", found.text)):
        assert sum(values.shape[1] for values in table) == result.rows[name]
        dropped = sum(np.isnan(values).sum(axis=1) for values in table)
        assert dropped.tolist() == result.outliers[name].tolist()
        assert all((values[~np.isnan(values)] >= 0).all() for values in table)


def by_hand(own, other):
    """The cost of each row, by matrix roots and NumPy, NaN for those outside three standard deviations."""
    kept = []
    for rows in (own, other):
        norms = np.linalg.norm(rows, axis=1).astype(np.float32).astype(np.float64)
        middle = np.sort(norms)[(len(norms) - 1) // 2]
        kept.append(np.abs(norms - middle) <= 3 * norms.std(ddof=1))
    return costs_by_hand(own, kept[0], other[kept[1]])


def costs_by_hand(own, kept, other):
    x = own[kept]
    a, b = np.cov(x.T), np.cov(other.T)
    root = sqrtm(a).real
    inverse = np.linalg.inv(root)
    away = np.eye(len(a)) - inverse @ sqrtm(root @ b @ root).real @ inverse
    paid = [
        sum((x.mean(0) - other.mean(0) + np.sqrt(len(x) / (len(x) - 1)) * away @ (row - x.mean(0))) ** 2) for row in own
    ]
    return np.where(kept, paid, np.nan)


def test_costs_of_rows_are_those_of_the_rows_in_memory():
    """A second way to each number: all rows kept, maps by matrix roots; the null map between every other text."""
    model, processor = lvlm("llava")
    images, texts = sample_images(24), sample_texts(24)
    found = transport_map(model, processor, images, texts, num=24, batch_size=5, paired=True, progress=False)
    order = list(found.images)
    rows = collect_rows(model, processor, [images[i] for i in order], [texts[i] for i in order], progress=False)
    for k in range(rows.num_layers):
        vision, text = (values.double().numpy() for values in (rows.vision[k], rows.text[k]))
        scale = 1 / np.linalg.norm(text, axis=1).mean()
        vision, text = vision * scale, text * scale
        for parts, want in ((found.vision, by_hand(vision, text)), (found.text, by_hand(text, vision))):
            assert np.concatenate(parts, axis=1)[k] == pytest.approx(want, rel=1e-4, nan_ok=True)  # float32 rows
        kept = ~np.isnan(by_hand(text, vision))
        first = rows.text_samples.numpy() % 2 == 0
        want = costs_by_hand(text[first], kept[first], text[~first & kept])
        null = np.concatenate(found.null, axis=1)[k]
        assert np.isnan(null[~first]).all()
        assert null[first] == pytest.approx(want, rel=1e-4, nan_ok=True)
        level = found.null_level(k + 1)
        assert level.mean == pytest.approx(np.nanmean(want), rel=1e-4)
        assert level.high == pytest.approx(np.nanquantile(want, 0.95), rel=1e-4)
    assert found.null_level().mean == pytest.approx(sum(found.null_level(k + 1).mean for k in range(3)), rel=0.05)


@pytest.mark.parametrize("whose", ["all", "the halves'"])
def test_a_wrong_early_decision_is_repaired(tiny, monkeypatch, whose):
    options = {"num": 12, "batch_size": 4, "progress": False}
    want = transport_map(*tiny, **options)
    passes, run = [], Reader.run
    monkeypatch.setattr(Reader, "run", lambda self, *args: (passes.append(args[1]), run(self, *args))[1])
    if whose == "all":
        monkeypatch.setattr(accumulators, "early_bounds", lambda norms, samples: NormBounds(float(norms.median()), 1e9))
    else:
        wrong = type("Wrong", (accumulators.Side,), {"accepted_outlier": lambda side, bounds: True})
        monkeypatch.setattr(costs, "Side", wrong)
    found = transport_map(*tiny, **options)
    assert [name.partition(":")[2] for name in passes] == [" moments", " repair", " costs"]
    for name in ("vision", "text", "null"):
        for values, expected in zip(getattr(found, name), getattr(want, name), strict=True):
            assert values == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_pictures_of_different_sizes_keep_their_own_grids():
    model, processor = lvlm("qwen2_vl")
    images = [Image.new("RGB", size, "teal") for size in ((16, 16), (16, 24), (24, 16))] * 4
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 255, (*image.size[::-1], 3), dtype=np.uint8)) for image in images]
    found = transport_map(model, processor, images, sample_texts(12), num=12, progress=False)
    result = score(model, processor, images, sample_texts(12), num=12, confidence=None, progress=False)
    for number, (values, grid) in enumerate(zip(found.vision, found.grids, strict=True)):
        width, height = images[found.images[number]].size
        assert (grid.rows, grid.columns) == (height // 8, width // 8)
        assert values.shape == (3, grid.rows * grid.columns)
        assert sorted(grid.cells) == list(range(values.shape[1]))
    assert adds_up(found.vision, found.unreached["vision"]) == pytest.approx(result.per_layer, rel=1e-9)


def test_words_pictures_and_ranks_are_named(tiny):
    found = transport_map(*tiny, num=12, max_text_tokens=9, progress=False)
    texts = tiny[3]
    for words, values in zip(found.words, found.text, strict=True):
        assert values.shape[1] == len(words)
        assert any(text.strip().startswith("".join(words).strip()) for text in texts)
    assert found.names == tuple(f"image {number}" for number in found.images)
    means = [found.patch_costs(number).mean() for number in found.ranking()]
    assert means == sorted(means, reverse=True)
    assert found.ranking(2)[0] == max(range(12), key=lambda i: np.nanmean(found.vision[i][1]))


def test_one_pair_has_no_null_map(tiny):
    found = transport_map(*tiny, num=1, progress=False)
    assert np.isnan(found.null_level().mean) and np.isnan(found.unreached["null"]).all()
    assert np.isfinite(found.vision[0]).any()


@pytest.mark.parametrize("layer", [0, -1, 99])
def test_layers_are_numbered_from_one(tiny, layer):
    found = transport_map(*tiny, num=1, batch_size=1, progress=False)
    for ask in (found.ranking, found.null_level, lambda layer: found.patch_costs(0, layer)):
        with pytest.raises(MirlibError, match=rf"layer {layer}: layers are numbered 1\.\."):
            ask(layer)


def test_presets_that_replace_rows_are_refused(tiny):
    with pytest.raises(MirlibError, match="needs all rows in memory"):
        transport_map(*tiny, preset="authors", progress=False)


def test_the_model_sees_the_middle_that_its_processor_cuts_out():
    _, processor = lvlm("llava")
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    assert as_seen(processor, wide).shape == (20, 20, 3)
    assert (as_seen(processor, wide) == (0, 0, 255)).all()
    assert as_seen(lvlm("qwen2_vl")[1], wide).shape == (20, 60, 3)


@pytest.mark.parametrize("layer", [None, 2])
def test_the_figure_says_what_patches_and_words_cost(tiny, layer):
    model, processor, images, _ = tiny
    found = transport_map(*tiny, num=12, progress=False)
    ranking = found.ranking(layer)
    pictures = {int(i): as_seen(processor, images[found.images[i]]) for i in (*ranking[:2], *ranking[-2:])}
    ax = found.plot(pictures, layer)
    every = np.concatenate([found.patch_costs(i, layer) for i in range(12)])
    level = found.null_level(layer)
    title = ax.get_title(loc="left")
    assert f"costs {np.nanmean(every):.3g} to move" in title and f"a word {level.mean:.2g} to" in title
    said = [text.get_text() for text in ax.texts]
    assert f"{np.nanmean(found.patch_costs(ranking[0], layer)):.3g} a patch" in said[0]
    assert {"dearest", "cheapest"} < set(said) and any(f"{level.high:.2g}" in text for text in said)
    assert len(ax.images) == 4 * 3 + 1  # picture, its grey and its colours; and the words
    without = replace(found, grids=(None,) * 12).plot(pictures, layer)
    assert len(without.images) == 4 * 2 + 1
    plt.close("all")


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_draws_a_map_after_the_result(capsys, tmp_path):
    out, drawn = tmp_path / "result.json", tmp_path / "map.png"
    outcome = mir(
        capsys, "score", "-n", 6, "--no-interval", "--json", out, "--map", drawn, "--no-progress",
        "--max-text-tokens", 20,
    )  # fmt: skip
    assert outcome.code == 0 and drawn.stat().st_size > 10_000
    lines = outcome.err.splitlines()
    said = [
        next(i for i, line in enumerate(lines) if word in line) for word in ("reads the pairs twice", "wrote", "drew")
    ]
    assert said == sorted(said) and Image.open(drawn).width > 600


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--map", "map.txt"], "must end in .png"),
        (["--map", "one.png", "--plot", "one.png"], "--plot and --map are the same file"),
        (["--map", "map.png", "--preset", "authors"], "--map needs --preset paper"),
        (["--map", "map.png", "--measures", "all"], "--map is for MIR alone"),
        (["--map", "nowhere/map.png"], "nowhere"),
        (["--map", "-"], "cannot draw -: the name must end in .png"),
        (["--layer-map", "-"], "cannot draw -: the name must end in .png"),
        (["--plot", "-"], "cannot draw -: the name must end in .png"),
    ],
)
def test_maps_that_cannot_be_are_refused_before_the_work(capsys, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, "score", "-n", 4, *arguments)
