"""MIR over batches: the same number as in memory whatever the batches, and the manners of a torchmetrics metric."""

import copy
import io
import math
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    DIM,
    LAYERS,
    SAMPLES,
    TOKENS,
    agree,
    batch,
    bytes_of_state,
    feed,
    hidden_states,
    narrowing,
    same_interval,
    stream,
)
from torchmetrics import Metric, MetricCollection

from mirlib import MirlibError, ModalityIntegrationRate, modality_integration_rate
from mirlib.accumulators import RowSamples, _append, early_bounds
from mirlib.mir import NormBounds


def in_memory(vision, text, **options):
    if options.get("confidence") is not None:
        ids = torch.arange(vision.shape[1]).repeat_interleave(TOKENS)
        options |= {"samples": (ids, ids)}
    return modality_integration_rate(vision.flatten(1, 2), text.flatten(1, 2), **options)


def without_outliers(seed=0, **options):
    vision, text = hidden_states(seed, **options)
    vision[0, 2, 1] /= 30
    text[1, 3, 0] /= 30
    return vision, text


def ones(samples=SAMPLES):
    return [[i] for i in range(samples)]


# ---------------------------------------------------------------------------------------------------------------------
# The same number


@pytest.mark.parametrize("options", [{}, {"outliers": "none"}, {"normalize": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_value_in_memory(options, dtype):
    vision, text = hidden_states(dtype=dtype)
    metric = stream(vision, text, [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9, 10, 11]], **options)
    agree(metric.result(), in_memory(vision, text, **options))
    assert float(metric.compute()) == metric.result().value
    assert metric.compute().dtype == torch.float64


@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize("order", ["as it is", "backwards", "mixed"])
def test_one_pass_or_a_repair_gives_the_value_in_memory(size, order):
    """Where the first rows mislead the bounds, the layers concerned are read again, and no others."""
    vision, text = narrowing()
    samples = {"as it is": range(40), "backwards": range(40)[::-1], "mixed": np.random.default_rng(0).permutation(40)}
    samples = list(samples[order])
    batches = [samples[start : start + size] for start in range(0, 40, size)]
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, batches)
    need = metric.needs_second_pass()
    if order == "as it is" and size == 1:
        assert need.startswith("repair: in 3 of 4 sets of rows one was accepted that turned out to be an outlier")
        for method in (metric.compute, metric.result):
            with pytest.raises(
                MirlibError, match=r"another pass \(repair: .*call begin_second_pass\(\) and feed the same"
            ):
                method()
    elif size == 40:
        assert need is None
    if need is not None:
        metric.begin_second_pass()
        assert metric.needs_second_pass() is None
        feed(metric, vision, text, batches)
    result = metric.result()
    assert result.passes == (1 if need is None else 2) and result.outliers["vision"].min() >= 10
    agree(result, in_memory(vision, text))


@pytest.mark.parametrize("name", ["vision", "text"])
def test_all_long_rows_in_the_last_batch(name):
    vision, text = hidden_states(samples=40)
    (vision if name == "vision" else text)[:, 38:, 0] *= 300
    for size in (1, 4):
        metric = stream(vision, text, [range(i, i + size) for i in range(0, 40, size)])
        agree(metric.result(), in_memory(vision, text))


def test_a_repair_and_then_an_interval():
    vision, text = narrowing()
    metric = stream(vision, text, ones(40), confidence=0.95)
    result, expected = metric.result(), in_memory(vision, text, confidence=0.95)
    assert result.passes == 3 and result.interval.method == "influence"
    agree(result, expected)
    same_interval(result, expected, rel=1e-6)


def test_early_bounds_lie_within_those_of_all_rows():
    """Of the same rows, whatever their norms: what lies within is sure if no more rows come."""
    rng = np.random.default_rng(0)
    for norms in (
        rng.normal(9, 1, 500),
        np.exp(rng.normal(size=500)),
        rng.standard_t(2, 500) + 9,
        np.ones(3),
        np.ones(1),
    ):
        norms = torch.tensor(norms).abs()
        early, final = early_bounds(norms, 10**6), NormBounds.three_sigma(norms.float())
        kept = norms[~early.outliers(norms)]
        assert not final.outliers(kept).any()
    huge = torch.cat([torch.ones(10_000) + torch.linspace(0, 1, 10_000), torch.tensor([1e6])])
    assert early_bounds(huge, 100).reach < 1 < 1e4 < NormBounds.three_sigma(huge).reach


@pytest.mark.parametrize("name", ["vision", "text"])
def test_outliers_are_those_of_all_rows_not_of_a_batch(name):
    """One sample's rows are all long: within its own batch nothing stands out, among all rows it does."""
    vision, text = hidden_states(samples=40)
    (vision if name == "vision" else text)[:, 5] *= 20
    result = stream(vision, text, ones(40)).result()
    agree(result, in_memory(vision, text))
    assert result.outliers[name].tolist()[0] >= TOKENS


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(range(SAMPLES)), cuts=st.lists(st.integers(0, SAMPLES), max_size=5), seed=st.integers(0, 9)
)
def test_batch_order_and_batch_split_do_not_matter(order, cuts, seed):
    vision, text = hidden_states(seed)
    batches = [part.tolist() for part in np.split(np.array(order), sorted(cuts)) if len(part)]
    agree(stream(vision, text, batches).result(), in_memory(vision, text))


def stream_golden(golden, parts, **options):
    """The golden rows in so many batches, each of them a sample."""
    vision, text = (np.array_split(golden[name], parts, axis=1) for name in ("vision", "text"))
    metric = ModalityIntegrationRate(len(vision[0]), vision[0].shape[2], **options)
    while True:
        for v, t in zip(vision, text, strict=True):
            metric.update(v, t)
        if not metric.needs_second_pass():
            return metric.result()
        metric.begin_second_pass()


@pytest.mark.parametrize("name", ["wide_gap", "same_scale", "rank_deficient"])
def test_golden_values_in_a_stream(name):
    """Fewer rows than dimensions too, where in a stream only the singular covariances are left to work with."""
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as golden:
        result = stream_golden(golden, 10)
        assert result.value == pytest.approx(float(golden["exact_drop_mir"]), rel=1e-9)
        assert np.allclose(result.per_layer, golden["exact_drop_fid"], rtol=1e-9)
    assert bool(result.warnings) == (name == "rank_deficient")


def test_the_second_pass_may_come_in_other_batches():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    feed(metric, vision, text, ones())
    metric.begin_second_pass()
    feed(metric, vision, text, [range(7, 12), range(7)])
    agree(metric.result(), in_memory(vision, text))
    same_interval(metric.result(), stream(vision, text, ones(), confidence=0.95).result())


def test_norms_stay_in_few_pieces_and_in_their_order():
    """Thousands of small tensors that stay would keep memory from being used again."""
    chunks, lengths = [], np.random.default_rng(0).integers(1, 9, 1000).tolist()
    parts = torch.arange(sum(lengths), dtype=torch.float32).split(lengths)
    for part in parts:
        _append(chunks, part)
    assert torch.equal(torch.cat(chunks), torch.cat(parts))
    assert len(chunks) < 16
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, ones())
    for side in metric._layers[0]:
        assert len(side.norms) <= math.log2(SAMPLES) + 1 and len(side.all_norms) == SAMPLES * TOKENS


def test_samples_of_unequal_length_and_batches_of_one_row():
    rng = np.random.default_rng(0)
    sizes = [(1, 9), (5, 1), (2, 2), (30, 40), (1, 1)]
    parts = [(rng.normal(size=(LAYERS, v, DIM)), rng.normal(size=(LAYERS, t, DIM))) for v, t in sizes]
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    for step in range(2):
        if step:
            metric.begin_second_pass()
        for v, t in parts:  # each is a sample
            metric.update(v, t)
    whole = [np.concatenate([part[i] for part in parts], axis=1) for i in range(2)]
    ids = [np.repeat(np.arange(5), [size[i] for size in sizes]) for i in range(2)]
    expected = modality_integration_rate(*whole, samples=ids, confidence=0.95)
    agree(metric.result(), expected)
    assert expected.interval.method == "influence"
    same_interval(metric.result(), expected, rel=1e-6)


def test_layer_by_layer_equals_all_layers():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    for chosen in ones():
        for k in (2, 1):
            metric.update_layer(k, batch(vision, chosen)[k - 1], batch(text, chosen)[k - 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchmetrics warns where it has seen no update
        assert float(metric.compute()) == metric.result().value
    agree(metric.result(), in_memory(vision, text))


def test_layer_by_layer_with_an_interval():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    for step in range(2):
        if step:
            metric.begin_second_pass()
        for chosen in ones():
            for k in (1, 2):
                metric.update_layer(k, batch(vision, chosen)[k - 1], batch(text, chosen)[k - 1])
    same_interval(metric.result(), stream(vision, text, ones(), confidence=0.95).result())


def test_a_large_common_offset_does_not_cancel():
    vision, text = hidden_states()
    vision, text = vision + 1e5, text + 1e5
    streamed = stream(vision, text, ones(), outliers="none", normalize=False).result()
    held = in_memory(vision, text, outliers="none", normalize=False)
    assert np.allclose(streamed.covariance_term, held.covariance_term, rtol=1e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Intervals


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"outliers": "none"}, {"normalize": False}], ids=str)
def test_influences_are_those_in_memory(options, dtype):
    vision, text = hidden_states(dtype=dtype)
    metric = stream(vision, text, [range(5), [5], range(6, 12)], confidence=0.9, **options)
    result, expected = metric.result(), in_memory(vision, text, confidence=0.9, **options)
    assert result.passes == 2 and result.interval.method == "influence" and result.interval.degrees == SAMPLES - 1
    assert result.influence.vision.shape == result.influence.text.shape == (LAYERS, SAMPLES) and result.warnings == ()
    same_interval(result, expected, rel=1e-5)
    agree(result, expected)


def test_influence_of_a_sample_is_what_leaving_it_out_changes():
    """Of 300 samples each matters little, and then the derivative is what happens."""
    vision, text = without_outliers(samples=300)
    result = stream(vision, text, ones(300), confidence=0.95, outliers="none").result()
    for sample in (0, 17, 200):
        rest = [i for i in range(300) if i != sample]
        without = in_memory(vision[:, rest], text[:, rest], outliers="none").per_layer
        change = result.influence.vision[:, sample] + result.influence.text[:, sample]
        scale = np.abs(result.influence.vision + result.influence.text).max(axis=1)
        assert np.abs(result.per_layer - without - change).max() < 0.03 * scale.min()
    for side in (result.influence.vision, result.influence.text):
        assert (np.abs(side.sum(axis=1)) < 1e-5 * np.abs(side).max(axis=1)).all(), "together they change nothing"


def test_samples_have_any_numbers_and_come_in_any_order():
    vision, text = hidden_states()
    expected = stream(vision, text, ones(), confidence=0.95).result()
    order = np.random.default_rng(0).permutation(SAMPLES)
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    for step in range(2):
        if step:
            metric.begin_second_pass()
        for sample in order[:: 1 if step == 0 else -1]:
            metric.update(batch(vision, [sample]), batch(text, [sample]), samples=(10**12 - sample, 10**12 - sample))
    same_interval(metric.result(), expected, order=order)


def test_a_sample_without_rows_of_one_kind_keeps_its_place():
    """And one without any, where the caller says that it is there."""
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    rows, ids = batch(vision, range(SAMPLES)), torch.arange(SAMPLES).repeat_interleave(TOKENS)
    words, places = batch(text, range(1, SAMPLES)), torch.arange(1, SAMPLES).repeat_interleave(TOKENS)
    samples = RowSamples(ids, places, range(SAMPLES + 1))
    for step in range(2):
        if step:
            metric.begin_second_pass()
        metric.update(rows, words, samples=samples)
    influence = metric.result().influence
    assert influence.vision.shape == influence.text.shape == (LAYERS, SAMPLES + 1)
    assert (influence.text[:, 0] == 0).all() and (influence.vision[:, 0] != 0).all()
    assert (influence.vision[:, SAMPLES] == 0).all() and (influence.text[:, SAMPLES] == 0).all()


def test_intervals_leave_the_value_alone_and_do_not_care_for_batches():
    vision, text = hidden_states()
    a, b, c = (
        stream(vision, text, batches, confidence=level).result()
        for batches, level in ((ones(), 0.95), ([range(12)], 0.95), ([range(4), range(4, 12)], None))
    )
    for result in (a, b, c):
        agree(result, in_memory(vision, text))
    same_interval(a, b)
    assert c.interval is None and c.influence is None and c.passes == 1 and a.passes == 2


def test_no_interval_of_one_sample():
    vision, text = hidden_states(samples=12)
    one = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    one.update(batch(vision, range(12)), batch(text, range(12)))
    assert one.needs_second_pass() is None
    result = one.result()
    assert result.interval is None and result.passes == 1
    assert result.warnings == ("there is no interval: it needs at least 2 samples",)
    agree(result, in_memory(vision, text))


def test_samples_that_cannot_be():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    with pytest.raises(MirlibError, match=r"one number for each of 6 vision rows, got shape \(2,\)"):
        metric.update(batch(vision, [0]), batch(text, [0]), samples=(torch.zeros(2).int(), torch.zeros(6).int()))
    words = ["a.png"] * 6, ["a.txt"] * 6
    for bad in ((0.5, 1), (torch.ones(6), 1), (torch.ones(2, 3).int(), 1), (True, 0), words, (None, 1), (2**64, 1)):
        with pytest.raises(MirlibError, match="expected a whole number for each row"):
            metric.update(batch(vision, [0]), batch(text, [0]), samples=bad)
    for bad in (3, "ab", (1, 2, 3), {"vision": 1, "text": 2}):
        with pytest.raises(MirlibError, match="samples: expected a pair"):
            metric.update(batch(vision, [0]), batch(text, [0]), samples=bad)
    feed(metric, vision, text, ones())
    metric.begin_second_pass()
    with pytest.raises(MirlibError, match="sample 99 was not in the first pass; feed the same batches again"):
        metric.update(batch(vision, [0]), batch(text, [0]), samples=(99, 99))
    feed(metric, vision, text, ones())
    same_interval(metric.result(), in_memory(vision, text, confidence=0.95), rel=1e-5)


def test_batches_that_are_samples_must_come_as_they_came():
    """Else an interval over other samples would come out, and nobody would notice."""
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    for chosen in ones():
        metric.update(batch(vision, chosen), batch(text, chosen))
    metric.begin_second_pass()
    for chosen in (range(5), range(5, 12)):
        metric.update(batch(vision, chosen), batch(text, chosen))
    with pytest.raises(MirlibError, match="each batch counts as a sample, and 2 came instead of 12"):
        metric.result()


def test_a_refused_update_leaves_the_state_as_it_was():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    feed(metric, vision, text, [range(6)])
    broken = batch(vision, [7]).clone()
    broken[1, 3, 2] = math.nan
    wrong = [
        ((broken, batch(text, [7])), {}),
        ((batch(vision, [7])[:1], batch(text, [7])), {}),
        ((batch(vision, [7]), batch(text, [7])[..., :3]), {}),
        ((batch(vision, [7])[..., :3], batch(text, [7])[..., :3]), {}),
        ((batch(vision, [7]), batch(text, [7]).int()), {}),
        ((batch(vision, [7]), batch(text, [7])), {"samples": 5}),
        ((batch(vision, [7]), batch(text, [7])), {"samples": (0, torch.zeros(2).int())}),
    ]
    for arguments, options in wrong:
        with pytest.raises(MirlibError):
            metric.update(*arguments, **options)
    feed(metric, vision, text, [range(6, 12)])
    metric.begin_second_pass()
    feed(metric, vision, text, ones(6))
    for arguments, options in wrong:
        with pytest.raises(MirlibError):
            metric.update(*arguments, **options)
    feed(metric, vision, text, [range(6, 12)])
    expected = in_memory(vision, text, confidence=0.95)
    agree(metric.result(), expected)
    same_interval(metric.result(), expected, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Passes


def test_passes_in_the_wrong_order_are_explained():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    for method in (metric.begin_second_pass, metric.needs_second_pass, metric.result):
        with pytest.raises(MirlibError, match=r"layer 1: 0 vision row\(s\); at least 2 are needed"):
            method()
    feed(metric, vision, text, ones())
    assert metric.needs_second_pass() == "interval: by influence, which needs the moments first"
    with pytest.raises(
        MirlibError, match=r"a pass is missing \(interval: .*call begin_second_pass\(\) and feed the same"
    ):
        metric.result()
    assert float(metric.compute()) == pytest.approx(in_memory(vision, text).value, rel=1e-12), "the value is known"
    metric.begin_second_pass()
    assert metric.needs_second_pass() is None
    with pytest.raises(MirlibError, match="no second pass is needed; call compute.*or reset"):
        metric.begin_second_pass()
    alone = ModalityIntegrationRate(LAYERS, DIM)
    feed(alone, vision, text, ones())
    with pytest.raises(MirlibError, match="no second pass is needed"):
        alone.begin_second_pass()


def test_moments_and_bounds_of_a_layer():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, ones())
    for k in (1, 2):
        for side, (states, moments) in enumerate(zip((vision, text), metric.moments(k), strict=True)):
            rows = states[k - 1].flatten(0, 1)
            bounds = NormBounds.three_sigma(rows.norm(dim=1))
            assert metric.bounds(k)[side] == pytest.approx(bounds)
            rows = rows[~bounds.outliers(rows.norm(dim=1))].numpy()
            assert moments.count == len(rows) and np.allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
            assert np.allclose(moments.covariance, np.cov(rows.T), rtol=1e-12)
    agree(metric.result(), in_memory(vision, text))
    unread = ModalityIntegrationRate(LAYERS, DIM)
    feed(unread, *narrowing(), ones(40))
    with pytest.raises(MirlibError, match="known after the first pass, and a repair"):
        unread.moments(1)


KINDS = ["nothing", "fewer rows", "more rows", "twice", "other rows", "slightly other rows"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["influence", "repair"])
def test_a_later_pass_with_other_rows_is_refused(kind, way):
    """Without outliers: counting them alone would notice nothing."""
    options = {} if way == "repair" else {"confidence": 0.95}
    make = {"influence": without_outliers, "repair": narrowing}
    vision, text = make[way](0)
    samples = vision.shape[1]
    metric = ModalityIntegrationRate(LAYERS, vision.shape[-1], **options)
    feed(metric, vision, text, ones(samples))
    assert way in metric.needs_second_pass()
    metric.begin_second_pass()
    if kind == "fewer rows":
        feed(metric, vision, text, ones(samples - 1))
    elif kind == "more rows":
        feed(metric, vision, text, [*ones(samples), [0]])
    elif kind == "twice":
        feed(metric, vision, text, ones(samples) * 2)
    elif kind == "other rows":
        feed(metric, *(2 * states for states in make[way](1)), ones(samples))
    elif kind == "slightly other rows":  # as dropout or a random crop would make them
        noise = torch.randn(vision.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        feed(metric, vision * (1 + 0.05 * noise), text, ones(samples))
    with pytest.raises(MirlibError, match="a later pass did not see the rows of the first"):
        metric.result()
    if way == "repair":
        with pytest.raises(MirlibError, match="a later pass did not see the rows of the first"):
            metric.compute()


def test_rows_that_come_after_a_repair_was_summed_up_are_noticed():
    vision, text = narrowing()
    metric = stream(vision, text, ones(40))
    metric.compute()
    feed(metric, vision, text, [[0]])
    for method in (metric.compute, metric.result):
        with pytest.raises(MirlibError, match="a later pass did not see the rows of the first"):
            method()


def test_rounding_between_the_passes_is_forgiven():
    """Kernels on a GPU may add in another order; that is no other row."""
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    feed(metric, vision, text, ones())
    metric.begin_second_pass()
    feed(metric, vision * (1 + 1e-8), text, ones())
    same_interval(metric.result(), stream(vision, text, ones(), confidence=0.95).result(), rel=1e-6)
    assert metric.result().value == pytest.approx(in_memory(vision, text).value, rel=1e-12)


def test_reset_forgets_everything():
    vision, text = hidden_states()
    expected = stream(vision, text, ones(), confidence=0.95).result()
    metric = stream(*hidden_states(5), ones(), confidence=0.95)
    metric.reset()
    with pytest.raises(MirlibError):
        metric.result()
    same_interval(stream(vision, text, ones(), metric=metric).result(), expected)
    for step in range(2):  # half a pass, or one and a half, then again from the start
        metric.reset()
        feed(metric, vision, text, ones() if step else [range(3)])
        if step:
            metric.begin_second_pass()
            feed(metric, vision, text, [range(3)])
    metric.reset()
    stream(vision, text, ones(), metric=metric)
    agree(metric.result(), in_memory(vision, text))
    same_interval(metric.result(), expected)


@pytest.mark.parametrize("options", [{}, {"outliers": "none"}], ids=str)
def test_more_batches_after_a_value_change_it(options):
    """What waits is decided for the sum alone, and waits on."""
    vision, text = hidden_states(samples=20)
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95, **options)
    feed(metric, vision, text, [range(10)])
    half = float(metric.compute())
    assert half == pytest.approx(in_memory(vision[:, :10], text[:, :10], **options).value, rel=1e-12)
    feed(metric, vision, text, [range(10, 20)])
    whole = in_memory(vision, text, confidence=0.95, **options)
    assert float(metric.compute()) == pytest.approx(whole.value, rel=1e-12)
    metric.begin_second_pass()
    feed(metric, vision, text, ones(20))
    agree(metric.result(), whole)
    same_interval(metric.result(), whole, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Manners of a metric


@pytest.mark.parametrize("method", ["pickle", "deepcopy", "torch.save", "clone"])
@pytest.mark.parametrize("moment", ["first pass", "between", "second pass"])
def test_copies_go_on_where_the_original_stood(method, moment):
    vision, text = hidden_states()

    def copied(metric):
        if method == "pickle":
            return pickle.loads(pickle.dumps(metric))
        if method == "torch.save":
            buffer = io.BytesIO()
            torch.save(metric, buffer)
            buffer.seek(0)
            return torch.load(buffer, weights_only=False)
        return metric.clone() if method == "clone" else copy.deepcopy(metric)

    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    feed(metric, vision, text, [range(5)])
    if moment == "first pass":
        original, metric = metric, copied(metric)
        feed(original, 9 * vision, text, [range(3)])  # must not reach the copy
    feed(metric, vision, text, [range(5, 12)])
    metric = copied(metric) if moment == "between" else metric
    metric.begin_second_pass()
    feed(metric, vision, text, [range(5)])
    if moment == "second pass":
        original, metric = metric, copied(metric)
        feed(original, vision, text, [range(3)])
    feed(metric, vision, text, [range(5, 12)])
    agree(metric.result(), in_memory(vision, text))
    same_interval(metric.result(), stream(vision, text, ones(), confidence=0.95).result())


@pytest.mark.parametrize("method", ["half", "float", "to", "set_dtype", "bfloat16"])
def test_the_state_stays_in_double_precision(method):
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    if method == "to":
        metric = metric.to(torch.float16)
    elif method == "set_dtype":
        metric = metric.set_dtype(torch.float16)
    else:
        metric = getattr(metric, method)()
    feed(metric, vision.half(), text.half(), ones(3))
    for side in (side for layer in metric._layers for side in layer):
        assert {side.sums.dtype, side.running.packed.dtype} == {torch.float64}
    metric.reset()
    stream(vision, text, ones(), metric=metric)
    agree(metric.result(), in_memory(vision, text))


def test_inside_a_module_in_half_precision():
    """Lightning modules hold metrics as children and are cast as a whole."""
    vision, text = hidden_states()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)
            self.mir = ModalityIntegrationRate(LAYERS, DIM)

    model = Model().half()
    assert model.layer.weight.dtype == torch.float16
    agree(stream(vision, text, ones(), metric=model.mir).result(), in_memory(vision, text))
    value = model.mir.compute()
    for dtype in (torch.bfloat16, torch.float32):
        assert torch.equal(model.to(dtype).mir.compute(), value) and value.dtype == torch.float64


def test_it_is_a_metric():
    metric = ModalityIntegrationRate(LAYERS, DIM)
    assert isinstance(metric, Metric)
    assert metric.higher_is_better is False and metric.is_differentiable is False and metric.full_state_update is False
    assert "ModalityIntegrationRate" in repr(metric)


def test_in_a_metric_collection():
    vision, text = hidden_states()
    collection = MetricCollection(
        {
            "mir": ModalityIntegrationRate(LAYERS, DIM, outliers="none"),
            "raw": ModalityIntegrationRate(LAYERS, DIM, outliers="none", normalize=False),
        }
    )
    for chosen in ones():
        collection.update(batch(vision, chosen), batch(text, chosen))
    values = collection.compute()
    assert float(values["mir"]) == pytest.approx(in_memory(vision, text, outliers="none").value, rel=1e-12)
    raw = in_memory(vision, text, outliers="none", normalize=False).value
    assert float(values["raw"]) == pytest.approx(raw, rel=1e-12)


def test_two_passes_in_a_metric_collection():
    vision, text = hidden_states()
    options = {"confidence": 0.95}
    collection = MetricCollection(
        {
            "mir": ModalityIntegrationRate(LAYERS, DIM, **options),
            "raw": ModalityIntegrationRate(LAYERS, DIM, normalize=False, **options),
        }
    )
    for step in range(2):
        if step:
            for metric in collection.values(copy_state=True):
                metric.begin_second_pass()
        for chosen in ones():
            collection.update(batch(vision, chosen), batch(text, chosen))
    values = collection.compute()
    for name, normalize in (("mir", True), ("raw", False)):
        expected = in_memory(vision, text, normalize=normalize, confidence=0.95)
        assert float(values[name]) == pytest.approx(expected.value, rel=1e-12)
        same_interval(collection[name].result(), expected, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"outliers": "none"}], ids=str)
def test_forward_gives_the_value_of_the_batch_and_keeps_the_sum(options):
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, **options)
    for chosen in (range(6), range(6, 12)):
        value = metric(batch(vision, chosen), batch(text, chosen))
        expected = in_memory(vision[:, list(chosen)], text[:, list(chosen)], **options).value
        assert float(value) == float(metric._forward_cache) == pytest.approx(expected, rel=1e-12)
    agree(metric.result(), in_memory(vision, text, **options))


def test_forward_in_a_second_pass_and_of_a_batch_without_a_value():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, confidence=0.95)
    feed(metric, vision, text, ones())
    with pytest.raises(MirlibError, match="1 vision row"):
        metric(batch(vision, [0])[:, :1], batch(text, [0]))
    metric.begin_second_pass()
    for sample in range(SAMPLES):
        value = metric(batch(vision, [sample]), batch(text, [sample]), samples=(sample, sample))
        expected = in_memory(vision[:, [sample]], text[:, [sample]]).value
        assert float(value) == pytest.approx(expected, rel=1e-9)
    same_interval(metric.result(), in_memory(vision, text, confidence=0.95), rel=1e-5)


def test_states_are_not_merged_by_hand():
    """Silence would be worse: torchmetrics' own way sees no state here, and would merge nothing."""
    vision, text = hidden_states()
    a, b = (ModalityIntegrationRate(LAYERS, DIM) for _ in "ab")
    feed(a, vision, text, [range(4)])
    feed(b, vision, text, [range(4, 12)])
    with pytest.raises(MirlibError, match="cannot be merged: feed all batches to one, or let processes"):
        a.merge_state(b)


def test_arguments_that_cannot_be_streamed():
    for options, message in (
        ({"preset": "authors"}, "needs all rows in memory"),
        ({"preset": "authors-fast"}, "needs all rows in memory"),
        ({"outliers": "median"}, "needs all rows in memory"),
        ({"preset": "nonsense"}, "unknown preset 'nonsense'; choose one of"),
        ({"confidence": 1.5}, "between 0 and 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"dim": 0}, "must be at least 1"),
    ):
        with pytest.raises(MirlibError, match=message):
            ModalityIntegrationRate(**{"num_layers": 2, "dim": 3, **options})
    assert ModalityIntegrationRate(2, 3, preset="authors", outliers="drop").outliers == "drop"


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        (torch.ones(3, 5, DIM), torch.ones(3, 5, DIM), "expected 2 layers, got 3"),
        (torch.ones(2, 5, DIM), torch.ones(1, 5, DIM), "vision has 2 layers and text has 1"),
        (torch.ones(2, 5, DIM), torch.ones(2, 5, 7), "layer 1: vision rows have 4 dimensions and text rows 7"),
        (torch.ones(2, 5, 7), torch.ones(2, 5, 7), "layer 1: vision rows have 7 dimensions, the metric was made for 4"),
        (torch.ones(2, 0, DIM), torch.ones(2, 5, DIM), r"vision, layer 1: empty array of shape \(0, 4\)"),
        (torch.ones(2, 5, DIM), torch.ones(2, 5, DIM).int(), "text, layer 1: expected floating-point"),
        (torch.ones(2, 5, DIM), torch.ones(2, 5, DIM) * 1j, "text, layer 1: expected floating-point"),
        ([torch.ones(5, DIM), torch.ones(6, DIM)], torch.ones(2, 5, DIM), r"vision: layer 2 has shape \(6, 4\)"),
        (torch.full((2, 5, DIM), math.inf), torch.ones(2, 5, DIM), "layer 1, vision row 0 of the batch: .*infinity"),
        (torch.ones(2, 5, DIM), torch.full((2, 5, DIM), math.nan), "layer 1, text row 0 of the batch: .*NaN"),
    ],
)
def test_batches_that_are_refused(vision, text, message):
    with pytest.raises(MirlibError, match=message):
        ModalityIntegrationRate(LAYERS, DIM).update(vision, text)


def test_layers_are_numbered_from_one():
    metric = ModalityIntegrationRate(LAYERS, DIM)
    for layer in (0, 3, -1):
        with pytest.raises(MirlibError, match=f"layer {layer}.*1..2"):
            metric.update_layer(layer, torch.ones(3, DIM), torch.ones(3, DIM))


def test_text_of_norm_zero():
    metric = ModalityIntegrationRate(LAYERS, DIM, outliers="none")
    metric.update(torch.ones(2, 5, DIM), torch.zeros(2, 5, DIM))
    with pytest.raises(MirlibError, match="layer 1: every text row has norm zero"):
        metric.compute()


def test_one_row_is_not_enough():
    metric = ModalityIntegrationRate(LAYERS, DIM, outliers="none")
    metric.update(torch.ones(2, 1, DIM), torch.ones(2, 5, DIM))
    with pytest.raises(MirlibError, match=r"layer 1: 1 vision row\(s\); at least 2 are needed"):
        metric.compute()


@pytest.mark.parametrize("options", [{}, {"outliers": "none"}, {"confidence": 0.95}], ids=str)
@pytest.mark.parametrize("dim", [DIM, 150])
def test_nothing_grows_with_the_samples_but_norms_and_what_waits(options, dim):
    small, large = (bytes_of_state(stream(*hidden_states(samples=n, dim=dim), ones(n), **options)) for n in (12, 48))
    norms = 0 if options.get("outliers") == "none" else 4 * TOKENS * 2 * LAYERS  # 4 bytes a token a layer
    assert (small.pop("norms", 0), large.pop("norms", 0)) == (12 * norms, 48 * norms)
    waiting = large.pop("aside", 0)
    assert waiting <= 0.1 * 48 * TOKENS * 2 * LAYERS * (dim + 1) * 8, "far fewer than all rows"
    small.pop("aside", 0)
    if "confidence" in options and dim == DIM:  # three numbers a sample, and two slopes, of each layer and modality
        assert (small.pop("_influences"), large.pop("_influences")) == (12 * 96 + 64, 48 * 96 + 64)
        assert "moments" not in large, "the maps take the place of the moments"
    assert small == large and large


def test_bytes_of_the_moments():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, ones())
    assert bytes_of_state(metric)["moments"] == 3 * LAYERS * (DIM + 2) * DIM * 8


def test_rows_are_not_kept_alive():
    """Norms and what waits are tensors of their own; a view would hold the whole batch."""
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, [range(4), range(4, 12)])
    waiting = 0
    for side in (side for layer in metric._layers for side in layer):
        for kept in (*side.norms, *(part for pair in side.aside for part in pair)):
            assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
        waiting += sum(len(rows) for rows, _ in side.aside)
    assert 0 < waiting < 2 * LAYERS * SAMPLES * TOKENS


def test_what_waits_keeps_the_precision_of_the_model():
    vision, text = hidden_states(dtype=torch.bfloat16)
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, ones())
    assert {rows.dtype for layer in metric._layers for side in layer for rows, _ in side.aside} == {torch.bfloat16}
