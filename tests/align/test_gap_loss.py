"""The gap as a loss: values against frechet_distance, gradients against finite differences, hooks on many families."""

from copy import deepcopy

import pytest
import torch
from tiny_models import FAMILIES, IMAGE

from mirlib import capture, frechet_distance
from mirlib.align.gap_loss import (
    GapLoss,
    StreamedDistance,
    differentiable_trace_sqrt,
    token_distance,
)
from mirlib.errors import MirlibError
from mirlib.frechet import trace_sqrt_product

BY_NAME = {family.name: family for family in FAMILIES}


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    return {name: family.model() for name, family in BY_NAME.items()}


def cloud(rows: int, dim: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return scale * (torch.randn(rows, dim, generator=generator, dtype=torch.float64) @ mixing + 1)


def covariance(rows: torch.Tensor) -> torch.Tensor:
    return torch.cov(rows.T)


def exact(vision: torch.Tensor, text: torch.Tensor) -> float:
    scale = 1 / text.norm(dim=1).mean()
    return frechet_distance(scale * vision, scale * text).total


def finite_difference(function, at: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Central differences of a scalar function of a matrix, along 12 random directions."""
    generator = torch.Generator().manual_seed(9)
    directions = torch.randn(12, *at.shape, generator=generator, dtype=at.dtype)
    slopes = torch.stack([(function(at + step * d) - function(at - step * d)) / (2 * step) for d in directions])
    return directions, slopes


# --- the trace term ---------------------------------------------------------------------------------------------------

SHAPES = {"regular": (30, 40), "few vision rows": (4, 40), "few text rows": (30, 4), "few of both": (4, 5)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_trace_is_that_of_frechet(shape):
    x, y = (covariance(cloud(rows, 8, seed)) for seed, rows in enumerate(shape))
    value = differentiable_trace_sqrt(x, y)
    assert value.item() == pytest.approx(trace_sqrt_product(x, y), rel=1e-6)


@pytest.mark.parametrize("side", ["vision", "text"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradient_of_the_trace_by_rows(shape, side):
    """By rows, not by entries of a covariance: a singular covariance has no derivative, what reaches the rows has."""
    rows = {
        name: cloud(count, 8, seed) for seed, (name, count) in enumerate(zip(("vision", "text"), shape, strict=True))
    }

    def value(given: torch.Tensor) -> torch.Tensor:
        return differentiable_trace_sqrt(*(covariance(r) for r in ({**rows, side: given}).values()))

    leaf = rows[side].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    directions, slopes = finite_difference(value, rows[side])
    torch.testing.assert_close((directions * gradient).sum(dim=(1, 2)), slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1e-2, 1e-5, 1e-8, 0.0])
def test_gradient_stays_bounded_as_a_covariance_becomes_singular(width):
    """The derivative by the covariance grows without bound; what reaches the rows is at most the spread of the text."""
    vision, text = cloud(60, 8, 0), cloud(60, 8, 1)
    vision[:, 3:] *= width
    leaf = vision.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(differentiable_trace_sqrt(covariance(leaf), covariance(text)), leaf)
    bound = torch.linalg.matrix_norm(covariance(text), 2).sqrt() / (len(vision) - 1) ** 0.5
    assert torch.isfinite(gradient).all()
    assert torch.linalg.matrix_norm(gradient, 2) <= bound * 1.01


def test_no_variance_at_all_gives_no_gradient():
    x = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    value = differentiable_trace_sqrt(x, torch.eye(3, dtype=torch.float64))
    value.backward()
    assert value.item() == 0
    assert torch.equal(x.grad, torch.zeros(3, 3, dtype=torch.float64))


# --- the distance, streamed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_first_batch_is_frechet_distance(shape):
    vision, text = (cloud(rows, 8, seed, scale) for seed, (rows, scale) in enumerate(zip(shape, (5, 1), strict=True)))
    assert StreamedDistance()(vision, text).item() == pytest.approx(exact(vision, text), rel=1e-6)


def test_without_fading_all_rows_count():
    vision, text = cloud(60, 6, 0, 3), cloud(45, 6, 1)
    streamed = StreamedDistance(decay=1.0)
    for i in range(3):
        value = streamed(vision[20 * i : 20 * i + 20], text[15 * i : 15 * i + 15])
    assert value.item() == pytest.approx(exact(vision, text), rel=1e-9)


def test_memory_takes_the_bias_of_small_batches_away():
    """The same cloud twice: the distance is 0, a batch of few rows says otherwise, recent batches together less so."""
    generator = torch.Generator().manual_seed(3)
    streamed = StreamedDistance(decay=0.9)
    alone, remembered = [], []
    for _ in range(40):
        vision, text = (torch.randn(20, 16, generator=generator, dtype=torch.float64) for _ in range(2))
        alone.append(StreamedDistance(decay=0)(vision, text).item())
        remembered.append(streamed(vision, text).item())
    assert torch.tensor(remembered[20:]).mean() < 0.2 * torch.tensor(alone[20:]).mean()


@pytest.mark.parametrize("batches", [1, 3])
def test_gradient_by_finite_differences(batches):
    """With a past the gradient is that of the value, times all rows that count by rows of the batch: see the module."""
    text = cloud(15, 6, 9)

    def value(vision: torch.Tensor) -> torch.Tensor:
        streamed = StreamedDistance(decay=0.5)
        for seed in range(batches - 1):
            streamed(cloud(20, 6, seed, 3), cloud(15, 6, seed + 50))
        return streamed(vision, text)

    vision = cloud(20, 6, 7, 2)
    leaf = vision.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    counted = sum(20 * 0.5**age for age in range(batches))
    directions, slopes = finite_difference(value, vision)
    torch.testing.assert_close((directions * gradient).sum(dim=(1, 2)), slopes * counted / 20, rtol=1e-5, atol=1e-7)


def test_the_past_does_not_shrink_the_gradient():
    """A long memory of the same cloud leaves the size of the gradient as it is without one."""
    vision, text = cloud(400, 4, 0, 3), cloud(400, 4, 1)
    norms = []
    for before in (0, 10):
        streamed = StreamedDistance(decay=1.0)
        for _ in range(before):
            streamed(vision, text)
        leaf = vision.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(streamed(leaf, text), leaf)
        norms.append(gradient.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.01)


def test_text_gets_no_gradient():
    vision, text = cloud(20, 5, 0).requires_grad_(), cloud(20, 5, 1).requires_grad_()
    StreamedDistance()(vision, text).backward()
    assert vision.grad.abs().sum() > 0
    assert text.grad is None


def test_descending_brings_the_clouds_together():
    text, vision = cloud(40, 5, 1), cloud(40, 5, 0, 20).requires_grad_()
    before = exact(vision.detach(), text)
    optimizer = torch.optim.Adam([vision], lr=2.0)
    for _ in range(60):
        optimizer.zero_grad()
        StreamedDistance(decay=0)(vision, text).log10().backward()
        optimizer.step()
    assert exact(vision.detach(), text) < before / 100


def test_low_precision_of_the_surroundings_does_not_matter(bfloat16):
    vision, text = cloud(40, 6, 0, 30).float(), cloud(40, 6, 1).float()
    plain = StreamedDistance()(vision, text)
    with bfloat16():
        assert torch.equal(StreamedDistance()(vision, text), plain)


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        (torch.ones(1, 3), torch.ones(5, 3), "vision: a distance needs at least 2 rows"),
        (torch.ones(5, 3), torch.full((5, 3), torch.nan), "text: the batch holds rows that are not finite"),
        (torch.ones(5, 3), torch.zeros(5, 3), "norm of all text rows is 0"),
    ],
)
def test_bad_rows_are_named(vision, text, message):
    with pytest.raises(MirlibError, match=message):
        StreamedDistance()(vision, text)


def test_decay_is_a_share():
    with pytest.raises(MirlibError, match="decay"):
        StreamedDistance(decay=1.5)


# --- on models --------------------------------------------------------------------------------------------------------


def text_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    text[:, 0] = False
    return text


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", BY_NAME)
def test_rows_are_those_of_capture(name, models):
    inputs, model = BY_NAME[name].inputs(), models[name]
    plain = model(**inputs).logits  # transformers may leave hooks of its own in the first pass
    before = hooks(model)
    kept = GapLoss(model)
    with capture(model) as stream:
        stream.text_mask = text_of(inputs)
        read = model(**inputs).logits
    assert torch.equal(read, plain)  # reading changes nothing
    rows = kept.take(text_of(inputs))
    assert len(rows) == stream.num_layers
    for (vision, text), expected_vision, expected_text in zip(rows, stream.vision, stream.text, strict=True):
        assert torch.equal(vision, expected_vision)
        assert torch.equal(text, expected_text)
        assert vision.requires_grad
    model(**inputs)
    everything = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    assert len(kept.take(everything)[0][1]) == (inputs["input_ids"] != IMAGE).sum()  # vision is never text
    kept.remove()
    assert hooks(model) == before
    assert not hasattr(model, "_mirlib_vision_rows")


@pytest.mark.parametrize("name", BY_NAME)
def test_loss_is_mir_of_the_layers_and_reaches_the_connector(name, models):
    inputs, model = BY_NAME[name].inputs(), models[name]
    gap = GapLoss(model, layers=(1, 3))
    with capture(model) as stream:
        stream.text_mask = text_of(inputs)
        model(**inputs)
    loss = gap(text=text_of(inputs))
    expected = sum(exact(stream.vision[k].double(), stream.text[k].double()) for k in (0, 2))
    assert loss.item() == pytest.approx(torch.tensor(expected).log10().item(), rel=1e-5)
    model.zero_grad()
    loss.backward()
    connector = [p for n, p in model.named_parameters() if "projector" in n or "connector" in n or "merger" in n]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in connector)
    head = model.get_output_embeddings().weight
    embedded = model.get_input_embeddings().weight
    assert head is embedded or head.grad is None  # nothing behind the last layer
    model.zero_grad()
    gap.remove()


def test_a_pass_without_gradients_is_not_kept(models):
    inputs, model = BY_NAME["llava"].inputs(), models["llava"]
    gap = GapLoss(model)
    with torch.no_grad():
        model(**inputs)
    with pytest.raises(MirlibError, match="left no hidden states"):
        gap(text=text_of(inputs))
    model(**inputs)
    gap(text=text_of(inputs))
    with pytest.raises(MirlibError, match="left no hidden states"):  # one pass, one call
        gap(text=text_of(inputs))
    gap.remove()


def test_text_of_another_shape_is_refused(models):
    inputs, model = BY_NAME["llava"].inputs(), models["llava"]
    gap = GapLoss(model, layers=(1,))
    model(**inputs)
    with pytest.raises(MirlibError, match="text has shape"):
        gap(text=text_of(inputs)[:1])
    gap.remove()


def test_a_copy_has_hooks_of_its_own(models):
    inputs, model = BY_NAME["llava"].inputs(), deepcopy(models["llava"])
    model.gap = GapLoss(model, layers=(1, 2))
    model(**inputs)  # states with a graph, which cannot be copied, wait to be taken
    copied = deepcopy(model)
    assert copied.gap is not model.gap
    with pytest.raises(MirlibError, match="left no hidden states"):
        copied.gap(text=text_of(inputs))
    copied(**inputs)
    loss = copied.gap(text=text_of(inputs))
    loss.backward()
    assert any(p.grad is not None for p in copied.model.multi_modal_projector.parameters())
    assert all(p.grad is None for p in model.model.multi_modal_projector.parameters())
    assert model.gap(text=text_of(inputs)).item() == pytest.approx(loss.item())  # its own states are still there
    copied.gap.remove()
    assert hooks(copied) == hooks(models["llava"])
    model(**inputs)
    model.gap(text=text_of(inputs))  # still hooked


def test_layers_that_are_not_there_are_named(models):
    for wrong in ((1, 4), [1.5], "12"):
        with pytest.raises(MirlibError, match="numbers from 1 to 3"):
            GapLoss(models["llava"], layers=wrong)
    assert not hasattr(models["llava"], "_mirlib_vision_rows")


# --- distances of tokens ----------------------------------------------------------------------------------------------

VISION = torch.tensor([[[3.0, 0.0], [5.0, 0.0]], [[0.0, 1.0], [9.0, 9.0]]])
TEXT = torch.tensor([[[0.0, 2.0], [0.0, 4.0]], [[0.0, 3.0], [7.0, 7.0]]])
THERE = torch.tensor([[True, True], [True, False]])


def test_token_distances_by_hand():
    unit = (2 + 4 + 3) / 3
    mean = token_distance(VISION, TEXT, THERE, THERE)
    assert mean.item() == pytest.approx((5 + 2) / 2 / unit)
    assert token_distance(VISION, TEXT, THERE.long(), THERE.long()) == mean, "a tokenizer's mask holds integers"
    nearest = token_distance(VISION, TEXT, THERE, THERE, kind="nearest")
    assert nearest.item() == pytest.approx(((13**0.5 + 29**0.5) / 2 + 2) / 2 / unit)


@pytest.mark.parametrize("kind", ["mean", "nearest"])
def test_token_distance_moves_vision_alone(kind, bfloat16):
    vision, text = VISION.clone().requires_grad_(), TEXT.clone().requires_grad_()
    with bfloat16():
        distance = token_distance(vision, text, THERE, THERE, kind=kind)
    assert distance.dtype == torch.float32
    distance.backward()
    assert vision.grad[0].abs().sum() > 0
    assert not vision.grad[1, 1].any()  # a token that is not there
    assert torch.isfinite(vision.grad).all()
    assert text.grad is None


@pytest.mark.parametrize("kind", ["mean", "nearest"])
def test_tokens_that_coincide_have_a_finite_gradient(kind):
    vision = TEXT.clone().requires_grad_()
    token_distance(vision, TEXT, kind=kind).backward()
    assert torch.isfinite(vision.grad).all()


def test_bad_tokens_are_named():
    with pytest.raises(MirlibError, match="unknown kind"):
        token_distance(VISION, TEXT, kind="median")
    with pytest.raises(MirlibError, match="they must be"):
        token_distance(VISION, TEXT[:1])
    with pytest.raises(MirlibError, match="text_mask has shape"):
        token_distance(VISION, TEXT, THERE[:1])
    with pytest.raises(MirlibError, match="pair 1 has no text tokens"):
        token_distance(VISION, TEXT, torch.tensor([[True, True], [False, False]]))
