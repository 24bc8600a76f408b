"""Differences of results: against SciPy's t-tests, loops in plain Python, leave-one-out, and repetition of the draw."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mirlib import MirlibError, MIRResult, compare, modality_integration_rate
from mirlib.comparison import _weight
from mirlib.gaps import GapResult, kid
from mirlib.result import Influence, Interval, LengthSplit, Sample


def samples(numbers, texts=None):
    """A sample for each number, known by it; texts may be numbered apart."""
    texts = numbers if texts is None else texts
    return tuple(
        Sample(f"{i}.png", f"{i:016x}", f"{j + 10**6:016x}")
        for i, j in zip(map(int, numbers), map(int, texts), strict=True)
    )


def a_measure(name, value, influence=None, of=(), **settings):
    layers = np.array([value, value])
    return GapResult(name, value, layers, "lower", "rows", {}, settings=settings, influence=influence, samples=of)


def compared(value_a, influence_a, samples_a, value_b, influence_b, samples_b, confidence=0.95):
    """The difference of two values that are known with the influence of each of their samples."""
    first, second = a_measure("kid", value_a, influence_a, samples_a), a_measure("kid", value_b, influence_b, samples_b)
    return compare(first, second, confidence=confidence)


def influence_of_mean(values):
    """A mean without sample i is about ``mean − u_i``; N / (N − 1) Σ u² is then its usual variance."""
    return (values - values.mean()) / len(values)


def ends(difference):
    return difference.low, difference.high


# ---------------------------------------------------------------------------------------------------------------------
# Values with the influences of their samples


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_for_means_it_is_the_paired_and_the_unpaired_t_test(confidence):
    rng = np.random.default_rng(0)
    a = rng.normal(size=12)
    b = a + 0.3 * rng.normal(size=12)
    order = rng.permutation(12)  # the second result holds the same samples in another order
    found = compared(
        a.mean(), influence_of_mean(a), samples(range(12)),
        b.mean(), influence_of_mean(b)[order], samples(order), confidence=confidence,
    )  # fmt: skip
    paired, welch = stats.ttest_rel(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert found.shared == {"pairs": 12} and found.difference.degrees == pytest.approx(11)
    assert ends(found.difference) == pytest.approx(tuple(paired.confidence_interval(confidence)), rel=1e-12)
    assert ends(found.unpaired) == pytest.approx(tuple(welch.confidence_interval(confidence)), rel=1e-12)
    assert found.unpaired.degrees == pytest.approx(welch.df)
    assert found.difference.value == found.unpaired.value == a.mean() - b.mean()


def test_with_no_sample_in_both_nothing_is_paired():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=8), rng.normal(size=5)
    found = compared(
        a.mean(), influence_of_mean(a), samples(range(8)), b.mean(), influence_of_mean(b), samples(range(8, 13))
    )
    assert found.shared == {"pairs": 0} and found.difference == found.unpaired
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert ends(found.difference) == pytest.approx(tuple(welch), rel=1e-12)


def variance_by_loops(u, names_u, v, names_v):
    """Σ over what is in both of the squared difference, over the rest of the squares; each occurrence taken once."""
    n, m = len(u), len(v)
    free = list(range(m))
    total = 0.0
    for i in range(n):
        partner = next((j for j in free if names_v[j] == names_u[i]), None)
        own = u[i] * math.sqrt(n / (n - 1))
        if partner is None:
            total += own**2
        else:
            free.remove(partner)
            total += (own - v[partner] * math.sqrt(m / (m - 1))) ** 2
    return total + sum(v[j] ** 2 * m / (m - 1) for j in free)


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=9),
    st.lists(st.integers(0, 6), min_size=2, max_size=9),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_partial_overlap_and_duplicates_as_loops_find_them(first, second, seed):
    rng = np.random.default_rng(seed)
    by_name = rng.normal(size=(2, 7))  # equal samples have equal influences, so that it matters not which is matched
    u, v = by_name[0, first], by_name[1, second]
    found = compared(1.0, u, samples(first), 0.5, v, samples(second))
    assert found.difference.standard_error**2 == pytest.approx(variance_by_loops(u, first, v, second), rel=1e-9)
    assert found.unpaired.standard_error**2 == pytest.approx(
        (u**2).sum() * len(u) / (len(u) - 1) + (v**2).sum() * len(v) / (len(v) - 1), rel=1e-9
    )


def test_a_picture_with_another_text_is_another_sample():
    u = np.array([0.3, -0.1, -0.2])
    same, other = samples(range(3)), samples(range(3), texts=(1, 2, 0))
    assert compared(1, u, same, 1, u, same).difference.standard_error == 0
    assert compared(1, u, same, 1, u, other).shared == {"pairs": 0}
    unknown = tuple(sample._replace(text="") for sample in same)
    assert compared(1, u, unknown, 1, u, unknown).shared == {"pairs": 0}, "what is not known was called the same"


def test_the_interval_of_an_overlap_covers_the_truth_over_redrawn_samples():
    """Two means of which a third of the samples is shared: 95 % of the intervals hold 0, paired or not is no matter."""
    rng = np.random.default_rng(2)
    hits, wide, errors, drawn = 0, 0, [], []
    names = samples(range(70))
    for _ in range(2000):
        z = rng.normal(size=70)
        a, b = z[:40] + 0.2 * rng.normal(size=40), z[20:] + 0.2 * rng.normal(size=50)
        found = compared(a.mean(), influence_of_mean(a), names[:40], b.mean(), influence_of_mean(b), names[20:])
        drawn.append(found.difference.value)
        errors.append(found.difference.standard_error)
        hits += not found.difference.distinguishable
        wide += not found.unpaired.distinguishable
    assert found.shared == {"pairs": 20}
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(drawn), rel=0.05)
    assert 0.935 < hits / 2000 < 0.965 < wide / 2000


# ---------------------------------------------------------------------------------------------------------------------
# Two results of MIR


def clouds(rng, count, pull):
    """Rows of ``count`` samples in two models that read the same samples: (vision, text) of 2 layers each, and ids."""
    scene = rng.normal(size=(count, 1, 3))
    vision = scene + rng.normal(size=(count, 8, 3)) + 1
    text = 0.5 * rng.normal(size=(count, 1, 3)) + rng.normal(size=(count, 8, 3))

    def model(shift, stretch):
        layers = [stretch * vision + shift * layer for layer in (1, 2)]
        return [rows.reshape(-1, 3) for rows in layers], [(text * layer).reshape(-1, 3) for layer in (1, 1.5)]

    ids = np.repeat(np.arange(count), 8)
    return model(0.5, 1.5), model(0.5 - pull, 1.45), ids


def measured(model, ids, **options):
    found = modality_integration_rate(*model, samples=(ids, ids), confidence=0.95, outliers="none", **options)
    return replace(found, samples=samples(np.unique(ids)))


@pytest.fixture(scope="module")
def two():
    first, second, ids = clouds(np.random.default_rng(0), 40, 0.05)
    return measured(first, ids), measured(second, ids)


def test_the_paired_interval_covers_the_true_difference_over_redrawn_samples():
    """The truth is the mean over the draws, since MIR has a bias at 40 samples; its spread is what the error claims."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(160):
        first, second, ids = clouds(rng, 40, 0.05)
        found.append(compare(measured(first, ids), measured(second, ids)))
    values = np.array([one.difference.value for one in found])
    errors = np.array([one.difference.standard_error for one in found])
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=0.15)
    covered = np.mean([one.difference.low < values.mean() < one.difference.high for one in found])
    assert 0.9 < covered < 0.99
    layers = np.array([[part.value for part in one.contributions] for one in found])
    said = np.array([[part.standard_error for part in one.contributions] for one in found])
    np.testing.assert_allclose(np.sqrt((said**2).mean(axis=0)), layers.std(axis=0, ddof=1), rtol=0.15)
    assert np.median([one.unpaired.standard_error for one in found]) > 2 * np.median(errors)


def test_a_difference_of_results_is_that_of_their_sample_influences(two):
    a, b = two
    found = compare(a, b)
    assert found.shared == {"pairs": 40} and found.sizes == (40, 40) and found.paired
    assert found.difference.value == a.value - b.value
    difference = a.sample_influence - b.sample_influence
    assert found.difference.standard_error == pytest.approx(math.sqrt(40 / 39 * (difference**2).sum()), rel=1e-12)
    assert found.difference.degrees == pytest.approx(39)
    alone = [math.sqrt(40 / 39 * (one.sample_influence**2).sum()) for one in two]
    assert alone == pytest.approx([one.interval.standard_error for one in two], rel=1e-12)
    assert found.unpaired.standard_error == pytest.approx(math.hypot(*alone), rel=1e-12)
    order = np.argsort(-np.abs(difference))
    assert [one.sample for one in found.samples] == [a.samples[i] for i in order]
    assert [one.value for one in found.samples] == pytest.approx(difference[order].tolist(), rel=1e-12)
    swapped = compare(b, a)
    assert ends(swapped.difference) == pytest.approx((-found.difference.high, -found.difference.low), rel=1e-12)


def test_the_order_of_the_samples_does_not_matter(two):
    a, b = two
    order = np.random.default_rng(1).permutation(40)
    influence = Influence(b.influence.vision[:, order], b.influence.text[:, order], True)
    shuffled = replace(b, influence=influence, samples=tuple(b.samples[i] for i in order))
    one, other = compare(a, b), compare(a, shuffled)
    assert ends(one.difference) == pytest.approx(ends(other.difference), rel=1e-12)
    assert [c.sample for c in one.samples] == [c.sample for c in other.samples]


def test_layers_add_up_and_their_errors_are_those_of_leaving_samples_out():
    first, second, ids = clouds(np.random.default_rng(5), 40, 0.05)
    a, b = measured(first, ids), measured(second, ids)
    found = compare(a, b)
    np.testing.assert_allclose([one.value for one in found.per_layer], a.per_layer - b.per_layer, rtol=1e-12)
    assert sum(one.value for one in found.contributions) == pytest.approx(found.difference.value, rel=1e-12)
    left_out = []
    for i in range(40):
        keep = ids != i
        pair = [
            modality_integration_rate([v[keep] for v in model[0]], [t[keep] for t in model[1]], outliers="none")
            for model in (first, second)
        ]
        without = compare(*pair)
        left_out.append([[one.value for one in part] for part in (without.per_layer, without.contributions)])
    jackknife = np.sqrt(39 * np.var(left_out, axis=0))
    for row, part in zip(jackknife, (found.per_layer, found.contributions), strict=True):
        np.testing.assert_allclose([one.standard_error for one in part], row, rtol=0.1)


@pytest.mark.parametrize(
    "sums",
    [(3.0, 1.0), (2.0, 2.0), (2.0, 2.0 + 1e-9), (1.0, 1.03), (1.0, 1.0203), (0.5, 900.0), (1e25, 1e-3)],
)
def test_the_weight_of_a_layer_and_its_derivatives(sums):
    weight, *slopes = _weight(*sums)
    s, t = (np.longdouble(x) for x in sums)
    if abs(s - t) > 1e-6:
        assert weight == pytest.approx(float((np.log10(s) - np.log10(t)) / (s - t)), rel=1e-12)
    else:
        assert weight == pytest.approx(1 / (2 * math.log(10)), rel=1e-8)
    for place, slope in enumerate(slopes):
        step = 1e-5 * sums[place]
        up, down = ([x + sign * step * (i == place) for i, x in enumerate(sums)] for sign in (1, -1))
        assert slope == pytest.approx((_weight(*up)[0] - _weight(*down)[0]) / (2 * step), rel=1e-5)


def test_pictures_and_texts_drawn_apart_are_matched_apart(two):
    """Half of the pictures are shared, and all texts, which stand beside other pictures."""
    a, b = (replace(one, influence=replace(one.influence, paired=False)) for one in two)
    b = replace(b, samples=samples(range(20, 60), texts=np.roll(np.arange(40), 7)))
    found = compare(a, b)
    assert found.shared == {"pictures": 20, "texts": 40}
    assert a.sample_influence is None and a.vision_influence.shape == (40,)
    expected = variance_by_loops(a.vision_influence, range(40), b.vision_influence, range(20, 60))
    expected += variance_by_loops(
        a.text_influence,
        range(40),
        b.text_influence,
        [sample.text and (i - 7) % 40 for i, sample in enumerate(b.samples)],
    )
    assert found.difference.standard_error**2 == pytest.approx(expected, rel=1e-12)
    assert len(found.samples) == 20 and "only 20 pictures of 40 and 40 are in both" in found.warnings[0]


def test_what_keeps_results_from_being_paired_is_said(two):
    a, b = two
    same = compare(a, b)
    cases = {
        "no sample is in both": replace(b, samples=samples(range(40, 80))),
        "the samples are not known in one of the two": replace(b, samples=()),
        "the influence of single samples is not known in one of the two": replace(b, influence=None),
        "drawn together in one and independently in the other": replace(
            b, influence=replace(b.influence, paired=False)
        ),
    }
    for words, other in cases.items():
        found = compare(a, other)
        assert not found.paired and found.samples == ()
        assert words in found.warnings[-1] and found.difference == found.unpaired
        if words != "drawn together in one and independently in the other":
            assert found.difference.standard_error == pytest.approx(same.unpaired.standard_error, rel=1e-9)
    jackknife = replace(b, influence=None, interval=Interval(0.0, 1.0, 0.9, 0.03, "jackknife"))
    error = math.hypot(a.interval.standard_error, 0.03)
    assert compare(a, jackknife).difference.standard_error == pytest.approx(error, rel=1e-12)
    assert math.isnan(compare(a, jackknife).contributions[0].low)
    bare = compare(replace(a, influence=None, interval=None), b)
    assert math.isnan(bare.difference.low) and not bare.difference.distinguishable
    assert "no interval: one of the two came without one" in bare.warnings
    assert repr(bare).startswith(f"Comparison(MIR {a.value - b.value:+.4f}, no samples")


def test_models_of_other_depth_have_a_difference_but_none_by_layer(two):
    a, b = two
    shallow = replace(
        b, per_layer=b.per_layer[:1], influence=Influence(b.influence.vision[:1], b.influence.text[:1], True),
        settings={**b.settings, "layers": 1},
    )  # fmt: skip
    found = compare(a, shallow)
    assert found.paired and found.per_layer == () and found.contributions == ()
    assert any("layers differs" in sentence for sentence in found.incomparable)


def test_what_has_no_difference_is_refused(two):
    a, b = two
    for one, message in (
        (replace(b, settings={**b.settings, "normalize": False}), "different units"),
        (replace(b, value=-math.inf), "one of the two is a MIR of -inf, which has no difference"),
        (replace(b, value=math.nan), "a MIR of nan"),
        (a_measure("kid", 0.1), "no difference between MIR and kid"),
        (3.0, "expected a result of mirlib.score or of a measure of mirlib.gaps, got float"),
    ):
        with pytest.raises(MirlibError, match=message):
            compare(a, one)
    with pytest.raises(MirlibError, match="confidence must lie between 0 and 1"):
        compare(a, b, confidence=95)


def test_sources_of_other_names_are_the_same_where_the_samples_are(two):
    told = {"images": "here"}, {"images": "there", "text_field": "title", "image_root": "b"}
    a, b = (replace(one, settings={**one.settings, **more}) for one, more in zip(two, told, strict=True))
    assert not any(name in sentence for sentence in compare(a, b).incomparable for name in ("images", "text_field"))
    moved = compare(a, replace(b, samples=samples(range(1, 41))))
    assert any("images differs" in sentence for sentence in moved.incomparable)
    assert any("text_field differs (the first known in a; title in b)" in one for one in moved.incomparable)
    assert any("image_root differs (that of the file in a; b in b)" in one for one in moved.incomparable)
    assert any("only 39 pairs of 40 and 40 are in both" in sentence for sentence in moved.warnings)


# ---------------------------------------------------------------------------------------------------------------------
# Measures of the zoo


def test_measures_of_the_zoo_are_compared_in_the_same_way():
    rng = np.random.default_rng(3)
    u, v = rng.normal(size=(2, 10))
    first = a_measure("kid", 0.4, u, samples(range(10)), seed=0, k=5)
    second = a_measure("kid", 0.3, v, samples(range(10)), seed=1, k=7)
    found = compare(first, second)
    assert found.quantity == "kid"
    assert found.difference.standard_error**2 == pytest.approx(variance_by_loops(u, range(10), v, range(10)), rel=1e-9)
    assert found.unpaired.standard_error**2 == pytest.approx(10 / 9 * ((u**2).sum() + (v**2).sum()), rel=1e-9)
    assert [one.value for one in found.per_layer] == pytest.approx([0.1, 0.1]) and found.contributions == ()
    assert found.incomparable == ("not comparable: k differs (5 in a; 7 in b)",)


def test_what_a_measure_found_beside_its_value_does_not_keep_two_apart():
    found = [
        {"null": x, "standard_error": [x, x], "parts": {"own": x, "layers": [x]}, "folds": [5, 5]} for x in (0.1, 0.2)
    ]
    a, b = (a_measure("kid", 0.4, **settings) for settings in found)
    assert compare(a, b).incomparable == ()
    other = a_measure("kid", 0.4, **{**found[1], "folds": [5, 6]})
    assert compare(a, other).incomparable == ("not comparable: folds differs (5 5 in a; 5 6 in b)",)


def test_a_difference_of_kid_is_that_of_leaving_samples_out():
    """Its own influences, matched by the samples, against the jackknife of the difference itself."""
    first, second, ids = clouds(np.random.default_rng(6), 30, 0.2)
    of = samples(range(30))
    a, b = (replace(kid(*model, samples=(ids, ids)), samples=of) for model in (first, second))
    found = compare(a, b)
    assert found.shared == {"pairs": 30} and found.incomparable == ()
    left_out = []
    for i in range(30):
        keep = ids != i
        one, other = (
            kid([v[keep] for v in model[0]], [t[keep] for t in model[1]], confidence=None) for model in (first, second)
        )
        left_out.append(one.value - other.value)
    assert found.difference.standard_error == pytest.approx(np.sqrt(29 * np.var(left_out)), rel=0.1)
    assert found.difference.standard_error < 0.5 * found.unpaired.standard_error


# ---------------------------------------------------------------------------------------------------------------------
# What it prints, writes and draws


def test_a_comparison_prints_and_writes_itself(two):
    found = compare(*two)
    low, high = ends(found.difference)
    assert repr(found) == f"Comparison(MIR {float(found):+.4f} [{low:+.4f}, {high:+.4f}], 40 pairs shared)"
    data = json.loads(found.to_json())
    assert data["difference"]["value"] == found.difference.value and data["shared"] == {"pairs": 40}
    assert data["contributions"]["low"] == [one.low for one in found.contributions]
    assert data["samples"][0] == [*found.samples[0].sample, found.samples[0].value]
    assert max(map(len, found.to_json().splitlines())) < 250
    assert found.difference.distinguishable == data["distinguishable"] == (low > 0 or high < 0)


# ---------------------------------------------------------------------------------------------------------------------
# Results that keep their samples


numbers = st.floats(allow_nan=True, allow_infinity=True)
hashes = st.text("0123456789abcdef", min_size=16, max_size=16)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def influences(draw, layers, count):
    paired = draw(st.booleans())
    other = count if paired else draw(st.integers(1, 4))
    sides = (draw(st.lists(numbers, min_size=layers * n, max_size=layers * n)) for n in (count, other))
    shapes = ((layers, count), (layers, other))
    return Influence(*(np.array(side).reshape(shape) for side, shape in zip(sides, shapes, strict=True)), paired)


@st.composite
def results(draw):
    layers, count = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rows = st.lists(numbers, min_size=layers, max_size=layers).map(np.array)
    counts = st.lists(st.integers(0, 99), min_size=layers, max_size=layers).map(np.array)
    per_layer = np.array(draw(st.lists(st.floats(0, 1e300), min_size=layers, max_size=layers)))
    influence = draw(st.none() | influences(layers, count))
    known = influence is None or influence.text.shape[1] == count
    return MIRResult(
        value=math.log10(per_layer.sum()) if per_layer.any() else -math.inf,
        per_layer=per_layer,
        **{name: draw(rows) for name in ("mean_term", "covariance_term", "norm_ratio", "scale", "bias")},
        norm_only=draw(st.floats(allow_nan=False, allow_infinity=False) | st.just(-math.inf)),
        zeroed_rows=draw(st.floats(allow_nan=False, allow_infinity=False) | st.just(-math.inf)),
        outliers={"vision": draw(counts), "text": draw(counts)},
        rows={"vision": draw(st.integers(0, 2**40)), "text": 7},
        interval=draw(
            st.none()
            | st.builds(
                Interval, numbers, numbers, st.floats(0.01, 0.99), numbers, st.sampled_from(["influence", "jackknife"]),
                st.none() | st.floats(0.5, 1e6),
            )
        ),  # fmt: skip
        settings=draw(st.dictionaries(names, st.booleans() | st.integers() | names | st.lists(names), max_size=3)),
        warnings=tuple(draw(st.lists(names, max_size=2))),
        influence=influence,
        samples=tuple(draw(st.lists(st.builds(Sample, names, hashes, hashes), min_size=count, max_size=count)))
        if known
        else (),
        length=draw(st.none() | st.builds(LengthSplit, numbers, numbers, numbers)),
        passes=draw(st.integers(1, 3)),
    )  # fmt: skip


def equal(a, b):
    """Equal to the last bit, NaN included."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.shape == b.shape and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, Influence):
        return all(equal(getattr(a, name), getattr(b, name)) for name in ("vision", "text", "paired"))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


@given(results())
@settings(max_examples=80, deadline=None)
def test_every_result_comes_back_from_json_as_it_was(result):
    text = result.to_json()
    again = MIRResult.from_dict(json.loads(text))
    for name in MIRResult.__dataclass_fields__:
        assert equal(getattr(result, name), getattr(again, name)), name
    assert again.to_json() == text


def test_json_has_a_line_for_each_list_of_numbers_and_each_sample(two):
    lines = two[0].to_json().splitlines()
    assert len(lines) < 80 + 2 * 2 + 40
    assert f'    ["0.png", "{0:016x}", "{10**6:016x}"],' in lines
    assert any(line.startswith('  "per_layer": [') and line.endswith("],") for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("influence"), "'influence' is missing"),
        (lambda data: data.pop("samples"), "'samples' is missing"),
        (lambda data: data.pop("length"), "'length' is missing"),
        (lambda data: data.pop("passes"), "'passes' is missing"),
        (lambda data: data.update(passes=-1), "'passes' must be a count, and is -1"),
        (lambda data: data.update(length={"forced": 0.1}), "'equalised' is missing"),
        (lambda data: data["influence"].update(paired=1), "'paired' must be true or false, and is 1"),
        (lambda data: data["influence"].pop("text"), "'text' is missing"),
        (lambda data: data["influence"]["vision"].pop(), "influence of vision must hold a list for each of 2"),
        (lambda data: data["influence"]["vision"][1].pop(), "influence of vision must hold a list for each of 2"),
        (lambda data: data["influence"]["vision"].__setitem__(0, 3), r"'vision\[0\]' must be a list, and is 3"),
        (lambda data: data["influence"]["text"][0].__setitem__(3, "much"), "must be a finite number or null"),
        (lambda data: data["influence"].update(text=[[1.0], [1.0]]), "paired, but not of as many images as texts"),
        (lambda data: data["samples"].pop(), "samples names 39 and influence holds 40"),
        (lambda data: data["samples"].__setitem__(2, ["a", "b"]), "'samples.2.' must be a list of a name and two"),
        (lambda data: data["interval"].update(degrees=0), "'degrees' must be a number above 0 or null"),
    ],
)  # fmt: skip
def test_damaged_samples_are_refused(change, message, two):
    data = json.loads(two[0].to_json())
    change(data)
    with pytest.raises(MirlibError, match=message):
        MIRResult.from_dict(data)
