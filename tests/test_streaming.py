"""MIR over batches: the same number as in memory whatever the batches, and the manners of a torchmetrics metric."""

import copy
import io
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import DIM, LAYERS, SAMPLES, TOKENS, agree, hidden_states
from torchmetrics import Metric, MetricCollection

from mirlib import MirlibError, ModalityIntegrationRate, modality_integration_rate
from mirlib.streaming import _append


def batch(states, chosen):
    """(K, n, tokens, d) to K matrices of the chosen samples' rows."""
    return states[:, list(chosen)].flatten(1, 2)


def in_memory(vision, text, **options):
    return modality_integration_rate(vision.flatten(1, 2), text.flatten(1, 2), **options)


def feed(metric, vision, text, batches, groups=None):
    for chosen in batches:
        ids = 0
        if groups is not None:
            ids = (torch.tensor(groups)[list(chosen)].repeat_interleave(TOKENS),) * 2
        metric.update(batch(vision, chosen), batch(text, chosen), groups=ids)


def stream(vision, text, batches, *, groups=None, metric=None, **options):
    metric = metric or ModalityIntegrationRate(LAYERS, vision.shape[-1], **options)
    feed(metric, vision, text, batches, groups)
    if metric.passes == 2:
        metric.begin_second_pass()
        feed(metric, vision, text, batches, groups)
    return metric


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


@pytest.mark.parametrize("name", ["wide_gap", "same_scale", "rank_deficient"])
def test_golden_values_in_a_stream(name):
    """Fewer rows than dimensions too, where in a stream only the singular covariances are left to work with."""
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as golden:
        vision, text = golden["vision"], golden["text"]
        metric = ModalityIntegrationRate(len(vision), vision.shape[2])
        for step in range(2):
            if step:
                metric.begin_second_pass()
            for v, t in zip(np.array_split(vision, 10, axis=1), np.array_split(text, 10, axis=1), strict=True):
                metric.update(v, t)
        result = metric.result()
        assert result.value == pytest.approx(float(golden["exact_drop_mir"]), rel=1e-9)
        assert np.allclose(result.per_layer, golden["exact_drop_fid"], rtol=1e-9)
    assert bool(result.warnings) == (name == "rank_deficient")


@pytest.mark.parametrize("name", ["wide_gap", "rank_deficient"])
def test_golden_values_by_the_polar_route(name):
    """Where the covariances are singular the exact route steps in, and the result says in which layers."""
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as golden:
        vision, text = golden["vision"], golden["text"]
        metric = ModalityIntegrationRate(len(vision), vision.shape[2], trace="polar", groups=3, confidence=0.9)
        for step in range(2):
            if step:
                metric.begin_second_pass()
            for group in range(3):
                metric.update(vision[:, group::3], text[:, group::3], groups=group)
        result = metric.result()
        assert result.value == pytest.approx(float(golden["exact_drop_mir"]), rel=1e-9)
        layers = len(golden["exact_drop_fid"])
    said = [warning for warning in result.warnings if "exact route" in warning]
    if name == "wide_gap":
        assert said == [] and 0 < result.settings["trace_error"] <= 1e-9
    else:
        where = ", ".join(str(k) for k in range(1, layers + 1))
        assert said == [f"the exact route to the trace term was taken in layers {where}: a covariance is singular"]
        assert result.settings["trace_error"] is None
    assert result.settings["trace"] == "polar" and result.interval.low < result.value < result.interval.high
    with pytest.raises(MirlibError, match="unknown route to the trace term 'fast'"):
        ModalityIntegrationRate(2, 3, trace="fast")


def test_the_second_pass_may_come_in_other_batches():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, ones())
    metric.begin_second_pass()
    feed(metric, vision, text, [range(7, 12), range(7)])
    agree(metric.result(), in_memory(vision, text))


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
    assert (
        1 < SAMPLES and max(len(getattr(metric, f"norms_{m}_1")) for m in ("vision", "text")) <= math.log2(SAMPLES) + 1
    )


def test_samples_of_unequal_length_and_batches_of_one_row():
    rng = np.random.default_rng(0)
    sizes = [(1, 9), (5, 1), (2, 2), (30, 40), (1, 1)]
    parts = [(rng.normal(size=(LAYERS, v, DIM)), rng.normal(size=(LAYERS, t, DIM))) for v, t in sizes]
    metric = ModalityIntegrationRate(LAYERS, DIM)
    for step in range(2):
        if step:
            metric.begin_second_pass()
        for v, t in parts:
            metric.update(v, t)
    whole = [np.concatenate([part[i] for part in parts], axis=1) for i in range(2)]
    agree(metric.result(), modality_integration_rate(*whole))


def test_layer_by_layer_equals_all_layers():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    for step in range(2):
        if step:
            metric.begin_second_pass()
        for chosen in ones():
            for k in (2, 1):
                metric.update_layer(k, batch(vision, chosen)[k - 1], batch(text, chosen)[k - 1])
    agree(metric.result(), in_memory(vision, text))


def test_a_large_common_offset_does_not_cancel():
    vision, text = hidden_states()
    vision, text = vision + 1e5, text + 1e5
    streamed = stream(vision, text, ones(), outliers="none", normalize=False).result()
    held = in_memory(vision, text, outliers="none", normalize=False)
    assert np.allclose(streamed.covariance_term, held.covariance_term, rtol=1e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Groups and the jackknife


def test_jackknife_written_out():
    vision, text = hidden_states(3)
    vision[0, 2, 1] /= 30  # no outliers, so that leaving samples out is all that happens
    text[1, 3, 0] /= 30
    groups = [i % 4 for i in range(SAMPLES)]
    metric = ModalityIntegrationRate(LAYERS, DIM, outliers="none", groups=4, confidence=0.9)
    stream(vision, text, [range(5), range(5, 12)], groups=groups, metric=metric)
    left_out = [
        in_memory(*(part[:, [i for i in range(SAMPLES) if groups[i] != g]] for part in (vision, text)), outliers="none")
        for g in range(4)
    ]
    expected = math.sqrt(3 * np.var([r.value for r in left_out]))
    interval = metric.result().interval
    assert interval.method == "jackknife" and interval.confidence == 0.9
    assert interval.standard_error == pytest.approx(expected, rel=1e-9)
    assert interval.high - interval.low == pytest.approx(2 * 1.6448536 * expected, rel=1e-6)


def test_groups_leave_the_value_alone_and_do_not_care_for_batches():
    vision, text = hidden_states()
    groups = [i * 5 // SAMPLES for i in range(SAMPLES)]
    make = lambda: ModalityIntegrationRate(LAYERS, DIM, groups=5, confidence=0.95)  # noqa: E731
    a = stream(vision, text, ones(), groups=groups, metric=make()).result()
    b = stream(vision, text, [range(3, 12), range(3)], groups=groups, metric=make()).result()
    agree(a, in_memory(vision, text))
    assert b.interval.standard_error == pytest.approx(a.interval.standard_error, rel=1e-9)


def test_empty_groups_are_left_out_of_the_jackknife():
    vision, text = hidden_states()
    groups = [i % 3 for i in range(SAMPLES)]
    three, ten = (
        stream(vision, text, ones(), groups=groups,
               metric=ModalityIntegrationRate(LAYERS, DIM, groups=n, confidence=0.95)).result().interval
        for n in (3, 10)
    )  # fmt: skip
    assert ten.standard_error == pytest.approx(three.standard_error, rel=1e-9)


def test_groups_that_cannot_be():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, groups=3)
    for bad, message in ((3, r"group 3 is outside 0\.\.2"), (-1, "group -1 is outside")):
        with pytest.raises(MirlibError, match=message):
            metric.update(batch(vision, [0]), batch(text, [0]), groups=bad)
    with pytest.raises(MirlibError, match=r"one number for each of 6 rows, got shape \(2,\)"):
        metric.update(batch(vision, [0]), batch(text, [0]), groups=(torch.zeros(2), torch.zeros(6)))
    one = stream(vision, text, ones(), metric=ModalityIntegrationRate(LAYERS, DIM, groups=3, confidence=0.95))
    with pytest.raises(MirlibError, match="rows of both modalities in at least 2 groups"):
        one.result()


def test_a_refused_update_leaves_the_state_as_it_was():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, groups=2)
    feed(metric, vision, text, [range(6)])
    broken = batch(vision, [7]).clone()
    broken[1, 3, 2] = math.nan
    wrong = [
        ((broken, batch(text, [7])), {}),
        ((batch(vision, [7])[:1], batch(text, [7])), {}),
        ((batch(vision, [7]), batch(text, [7])[..., :3]), {}),
        ((batch(vision, [7])[..., :3], batch(text, [7])[..., :3]), {}),
        ((batch(vision, [7]), batch(text, [7]).int()), {}),
        ((batch(vision, [7]), batch(text, [7])), {"groups": 5}),
        ((batch(vision, [7]), batch(text, [7])), {"groups": (0, torch.zeros(2))}),
    ]
    for arguments, options in wrong:
        with pytest.raises(MirlibError):
            metric.update(*arguments, **options)
    feed(metric, vision, text, [range(6, 12)])
    metric.begin_second_pass()
    feed(metric, vision, text, ones())
    agree(metric.result(), in_memory(vision, text))


# ---------------------------------------------------------------------------------------------------------------------
# Passes


def test_passes_in_the_wrong_order_are_explained():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    with pytest.raises(MirlibError, match=r"layer 1: 0 vision row\(s\); at least 2 are needed"):
        metric.begin_second_pass()
    feed(metric, vision, text, ones())
    for method in (metric.compute, metric.result):
        with pytest.raises(MirlibError, match=r"call begin_second_pass\(\), and feed the same batches again"):
            method()
    metric.begin_second_pass()
    with pytest.raises(MirlibError, match="has begun already; call reset"):
        metric.begin_second_pass()
    with pytest.raises(MirlibError, match="one pass is enough"):
        ModalityIntegrationRate(LAYERS, DIM, outliers="none").begin_second_pass()


@pytest.mark.parametrize("kind", ["nothing", "fewer rows", "more rows", "twice", "other rows", "slightly other rows"])
def test_a_second_pass_with_other_rows_is_refused(kind):
    vision, text = hidden_states()
    vision[0, 2, 1] /= 30  # nothing for the outlier rule to catch: counting outliers alone would notice nothing
    text[1, 3, 0] /= 30
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, ones())
    metric.begin_second_pass()
    if kind == "fewer rows":
        feed(metric, vision, text, ones(SAMPLES - 1))
    elif kind == "more rows":
        feed(metric, vision, text, [*ones(), [0]])
    elif kind == "twice":
        feed(metric, vision, text, ones() * 2)
    elif kind == "other rows":
        feed(metric, *hidden_states(1), ones())
    elif kind == "slightly other rows":  # as dropout or a random crop would make them
        noise = torch.randn(vision.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        feed(metric, vision * (1 + 0.05 * noise), text, ones())
    with pytest.raises(MirlibError, match="the second pass did not see the rows of the first"):
        metric.result()


def test_rounding_between_the_passes_is_forgiven():
    """Kernels on a GPU may add in another order; that is no other row."""
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, ones())
    metric.begin_second_pass()
    feed(metric, vision * (1 + 1e-8), text, ones())
    assert metric.result().value == pytest.approx(in_memory(vision, text).value, rel=1e-6)


def test_reset_forgets_everything():
    vision, text = hidden_states()
    metric = stream(*hidden_states(5), ones())
    metric.reset()
    with pytest.raises(MirlibError):
        metric.result()
    agree(stream(vision, text, ones(), metric=metric).result(), in_memory(vision, text))
    metric.reset()
    feed(metric, vision, text, [range(3)])  # half a pass, then again from the start
    metric.reset()
    agree(stream(vision, text, ones(), metric=metric).result(), in_memory(vision, text))


def test_more_batches_after_a_value_change_it():
    vision, text = hidden_states(samples=20)
    metric = ModalityIntegrationRate(LAYERS, DIM, outliers="none")
    feed(metric, vision, text, [range(10)])
    half = float(metric.compute())
    assert half == pytest.approx(in_memory(vision[:, :10], text[:, :10], outliers="none").value, rel=1e-12)
    feed(metric, vision, text, [range(10, 20)])
    assert float(metric.compute()) == pytest.approx(in_memory(vision, text, outliers="none").value, rel=1e-12)


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

    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, [range(5)])
    metric = copied(metric) if moment == "first pass" else metric
    feed(metric, vision, text, [range(5, 12)])
    metric = copied(metric) if moment == "between" else metric
    metric.begin_second_pass()
    feed(metric, vision, text, [range(5)])
    if moment == "second pass":
        original, metric = metric, copied(metric)
        feed(original, vision, text, [range(3)])  # must not reach the copy
    feed(metric, vision, text, [range(5, 12)])
    agree(metric.result(), in_memory(vision, text))


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
    stream(vision, text, ones(), metric=metric)
    assert metric.norm_sums.dtype == metric.moments_vision_1.dtype == torch.float64
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


def test_it_is_a_metric():
    metric = ModalityIntegrationRate(LAYERS, DIM)
    assert isinstance(metric, Metric)
    assert metric.higher_is_better is False and metric.is_differentiable is False and metric.full_state_update is False
    assert metric.passes == 2 and ModalityIntegrationRate(LAYERS, DIM, outliers="none").passes == 1
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
    collection = MetricCollection(
        {"mir": ModalityIntegrationRate(LAYERS, DIM), "raw": ModalityIntegrationRate(LAYERS, DIM, normalize=False)}
    )
    for step in range(2):
        if step:
            for metric in collection.values(copy_state=True):
                metric.begin_second_pass()
        for chosen in ones():
            collection.update(batch(vision, chosen), batch(text, chosen))
    values = collection.compute()
    assert float(values["mir"]) == pytest.approx(in_memory(vision, text).value, rel=1e-12)
    assert float(values["raw"]) == pytest.approx(in_memory(vision, text, normalize=False).value, rel=1e-12)


def test_forward_of_one_pass_gives_the_value_of_the_batch_and_keeps_the_sum():
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM, outliers="none")
    for chosen in (range(6), range(6, 12)):
        value = metric(batch(vision, chosen), batch(text, chosen))
        expected = in_memory(vision[:, list(chosen)], text[:, list(chosen)], outliers="none").value
        assert float(value) == pytest.approx(expected, rel=1e-12)
    agree(metric.result(), in_memory(vision, text, outliers="none"))


@pytest.mark.parametrize("second", [False, True])
def test_forward_of_two_passes_is_refused_and_harms_nothing(second):
    """A batch has no value of its own where the outlier rule needs all norms first."""
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, ones() if second else ones(6))
    if second:
        metric.begin_second_pass()
    with pytest.raises(MirlibError, match=r"update\(\)"):
        metric(batch(vision, [0]), batch(text, [0]))
    if second:
        feed(metric, vision, text, ones())
    else:
        feed(metric, vision, text, [range(6, 12)])
        metric.begin_second_pass()
        feed(metric, vision, text, ones())
    agree(metric.result(), in_memory(vision, text))


def test_merge_state_of_one_pass():
    vision, text = hidden_states()
    a, b = (ModalityIntegrationRate(LAYERS, DIM, outliers="none") for _ in "ab")
    feed(a, vision, text, [range(4)])
    feed(b, vision, text, [range(4, 12)])
    a.merge_state(b)
    agree(a.result(), in_memory(vision, text, outliers="none"))


def test_arguments_that_cannot_be_streamed():
    for options, message in (
        ({"preset": "authors"}, "needs all rows in memory"),
        ({"preset": "authors-fast"}, "needs all rows in memory"),
        ({"outliers": "median"}, "needs all rows in memory"),
        ({"preset": "nonsense"}, "unknown preset 'nonsense'; choose one of"),
        ({"confidence": 0.95}, "needs groups=2 or more"),
        ({"confidence": 1.5, "groups": 3}, "between 0 and 1"),
        ({"groups": 0}, "must be at least 1"),
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


def bytes_of_state(metric):
    return {
        name: sum(part.numel() * part.element_size() for part in (value if isinstance(value, list) else [value]))
        for name, value in metric.metric_state.items()
    }


@pytest.mark.parametrize("outliers", ["drop", "none"])
def test_nothing_grows_with_the_samples_but_the_norms(outliers):
    small, large = (bytes_of_state(stream(*hidden_states(samples=n), ones(n), outliers=outliers)) for n in (12, 48))
    for name, size in small.items():
        if name.startswith("norms_"):
            # 4 bytes a token a layer, and none at all where no outlier rule will ask for them
            assert (size, large[name]) == ((4 * 12 * TOKENS, 4 * 48 * TOKENS) if outliers == "drop" else (0, 0)), name
        else:
            assert size == large[name], name


def test_state_bytes_are_what_the_moments_take():
    metric = ModalityIntegrationRate(3, 5, groups=4)
    assert metric.state_bytes == sum(size for name, size in bytes_of_state(metric).items() if "moments" in name)


def test_rows_are_not_kept_alive():
    """The norms are computed into tensors of their own; a view would hold the whole batch."""
    vision, text = hidden_states()
    metric = ModalityIntegrationRate(LAYERS, DIM)
    feed(metric, vision, text, ones())
    for norms in metric.norms_vision_1:
        assert norms.untyped_storage().nbytes() == norms.numel() * 4
