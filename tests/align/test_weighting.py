"""CAL's and PRIOR's token weights: against hand computation, and on tiny models of several families."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_families import Case
from tiny_models import FAMILIES, IMAGE, TEXT
from transformers import LlamaConfig, LlamaForCausalLM

from mirlib.align.weighting import (
    IGNORED,
    cal_weights,
    neighbour_mean,
    prior_weights,
    vision_hidden,
    weighted_cross_entropy,
)
from mirlib.errors import MirlibError, UndefinedMIRError

BY_NAME = {family.name: family for family in FAMILIES}


def labels_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = inputs["input_ids"]
    wanted = (ids != IMAGE) & inputs["attention_mask"].bool()
    wanted[:, 0] = False
    return ids.masked_fill(~wanted, IGNORED)


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    return {name: family.model() for name, family in BY_NAME.items()}


# --- pure functions ---------------------------------------------------------------------------------------------------


def test_pooling_by_hand():
    values = torch.tensor([[1.0, 5.0, 3.0, 100.0], [2.0, 4.0, 100.0, 8.0]])
    counts = torch.tensor([[True, True, True, False], [True, True, False, True]])
    expected = torch.tensor([[3.0, 3.0, 4.0, 0.0], [3.0, 3.0, 0.0, 8.0]])
    assert torch.equal(neighbour_mean(values, counts), expected)
    assert torch.equal(neighbour_mean(values, counts, width=1), values * counts)


def test_pooling_wants_an_odd_width():
    with pytest.raises(MirlibError, match="odd"):
        neighbour_mean(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), width=2)


def test_cal_weights_by_hand():
    labels = torch.tensor([[0, 2, 1, IGNORED], [1, IGNORED, IGNORED, IGNORED]])
    unseen = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    seen = unseen + torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    gains = {(0, 0): -2.0, (0, 1): 3.0, (0, 2): 9.0, (1, 0): 4.0}  # clamped: 1, 3, 5; 4
    for (row, place), gain in gains.items():
        label = labels[row, place]
        seen[row, place, label] = unseen[row, place, label] + gain
    expected = torch.tensor([[2.0, 3.0, 4.0, 0.0], [4.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(cal_weights(seen, unseen, labels), expected)


def test_cal_weights_of_a_row_do_not_depend_on_padding_or_other_rows():
    generator = torch.Generator().manual_seed(2)
    seen, unseen = (3 * torch.randn(2, 6, 5, generator=generator) for _ in range(2))
    labels = torch.randint(0, 5, (2, 6), generator=generator)
    labels[1, 4:] = IGNORED
    together = cal_weights(seen, unseen, labels)
    alone = cal_weights(seen[1:, :4], unseen[1:, :4], labels[1:, :4])
    torch.testing.assert_close(together[1:, :4], alone)


def test_prior_weights_by_hand():
    probability = torch.tensor([[0.9, 0.5, 0.1, 0.5]])
    reference = torch.stack([probability, 1 - probability], dim=-1).log()
    labels = torch.tensor([[0, 0, 0, IGNORED]])
    torch.testing.assert_close(prior_weights(reference, labels), torch.tensor([[0.1, 0.5, 0.9, 0.0]]) * 3 / 1.5)
    squared = torch.tensor([[0.01, 0.25, 0.81, 0.0]]) * 3 / 1.07
    torch.testing.assert_close(prior_weights(reference, labels, power=2), squared)
    equal = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(prior_weights(reference, labels, power=0), equal)


def test_prior_weights_of_a_caption_known_by_heart_are_equal():
    reference = torch.zeros(1, 2, 3)
    reference[..., 1] = 1000
    labels = torch.tensor([[1, 1]])
    assert torch.equal(prior_weights(reference, labels), torch.ones(1, 2))


def test_weighted_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [5.0, 1.0]]], requires_grad=True)
    labels = torch.tensor([[0, 1, IGNORED]])  # −log ¼ and −log ½
    weights = torch.tensor([[3.0, 1.0, 50.0]])
    loss = weighted_cross_entropy(logits, labels, weights)
    assert loss.item() == pytest.approx((3 * math.log(4) + math.log(2)) / 4)
    equal = weighted_cross_entropy(logits, labels, torch.full((1, 3), 7.0))
    torch.testing.assert_close(equal, F.cross_entropy(logits[0], labels[0], ignore_index=IGNORED))
    loss.backward()
    assert torch.equal(logits.grad[0, 2], torch.zeros(2))  # ignored


def test_weights_carry_no_gradient():
    seen = torch.randn(1, 3, 4, requires_grad=True)
    labels = torch.tensor([[1, 2, 3]])
    assert not cal_weights(seen, torch.zeros(1, 3, 4), labels).requires_grad
    assert not prior_weights(seen, labels).requires_grad
    weights = torch.ones(1, 3, requires_grad=True)
    weighted_cross_entropy(seen, labels, weights).backward()
    assert weights.grad is None


def test_half_precision_is_widened():
    seen, unseen = (4 * torch.randn(2, 4, 200, 500, generator=torch.Generator().manual_seed(0))).bfloat16()
    labels = torch.randint(0, 500, (4, 200), generator=torch.Generator().manual_seed(1))
    weights = cal_weights(seen, unseen, labels)
    assert torch.equal(weights, cal_weights(seen.float(), unseen.float(), labels))
    loss = weighted_cross_entropy(seen, labels, weights.bfloat16())
    assert torch.equal(loss, weighted_cross_entropy(seen.float(), labels, weights.bfloat16().float()))


def test_bad_input_is_named():
    logits, labels = torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(MirlibError, match="do not fit labels"):
        cal_weights(logits, logits, labels)
    with pytest.raises(MirlibError, match="do not fit labels"):
        weighted_cross_entropy(logits, labels, labels)
    with pytest.raises(MirlibError, match="weights of all positions"):
        weighted_cross_entropy(logits, torch.full((1, 3), IGNORED), torch.ones(1, 3))
    with pytest.raises(MirlibError, match="low must be at most high"):
        cal_weights(logits, logits, torch.zeros(1, 3, dtype=torch.long), low=5.0, high=1.0)
    with pytest.raises(MirlibError, match="power"):
        prior_weights(logits, torch.zeros(1, 3, dtype=torch.long), power=-1)


# --- on models --------------------------------------------------------------------------------------------------------


def pictures(name: str, inputs: dict[str, torch.Tensor], model: torch.nn.Module) -> list[torch.Tensor]:
    """Logits of the same words with the picture as it is, and with another."""
    with torch.no_grad():
        other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0) * 3 + 1}
        return [model(**given).logits for given in (inputs, other)]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_hidden_picture_does_not_matter(name, models):
    inputs, model = BY_NAME[name].inputs(), models[name]
    words = labels_of(inputs) != IGNORED
    shown, other = pictures(name, inputs, model)
    assert (shown[words] - other[words]).abs().max() > 1e-4  # it does where it is seen
    with vision_hidden(model):
        hidden, hidden_other = pictures(name, inputs, model)
    torch.testing.assert_close(hidden[words], hidden_other[words], rtol=1e-5, atol=1e-6)
    assert (hidden[words] - shown[words]).abs().max() > 1e-4
    assert torch.equal(hidden[:, 0], shown[:, 0])  # what stands before the picture
    again, _ = pictures(name, inputs, model)
    assert torch.equal(again, shown)  # the hooks are gone
    assert not hasattr(model, "_mirlib_vision_rows")


def test_a_picture_is_hidden_from_sliding_windows_too():
    case = Case("gemma3")  # a mask by kind of layer
    case.find_tokens()
    inputs = case.inputs()
    words = (inputs["input_ids"] != case.image_id) & inputs["attention_mask"].bool()
    with vision_hidden(case.model):
        hidden, other = pictures("gemma3", inputs, case.model)
    torch.testing.assert_close(hidden[words], other[words], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_picture_is_hidden_from_both_ways_to_attend(attention, models):
    inputs, model = BY_NAME["llava"].inputs(), models["llava"]
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        words = labels_of(inputs) != IGNORED
        with vision_hidden(model):
            hidden, other = pictures("llava", inputs, model)
            without = {k: v for k, v in inputs.items() if k != "attention_mask"}  # no mask to start from
            model(**without)
    finally:
        model.set_attn_implementation(before)
    torch.testing.assert_close(hidden[words], other[words], rtol=1e-5, atol=1e-6)


def test_hooks_are_gone_after_an_error(models):
    model = models["llava"]
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(RuntimeError, match="boom"), vision_hidden(model):
        raise RuntimeError("boom")
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before


def test_hiding_is_refused_where_there_is_no_vision():
    with pytest.raises(UndefinedMIRError), vision_hidden(LlamaForCausalLM(LlamaConfig(**TEXT))):
        pass


def test_the_gradient_goes_through_the_seen_pass_alone(models):
    inputs, model = BY_NAME["llava"].inputs(), models["llava"]
    following = labels_of(inputs)[:, 1:]
    seen = model(**inputs).logits[:, :-1]
    with vision_hidden(model):
        unseen = model(**inputs).logits[:, :-1]
    weights = cal_weights(seen, unseen, following)
    assert not weights.requires_grad
    model.zero_grad()
    weighted_cross_entropy(seen, following, weights).backward()
    projector = next(model.model.multi_modal_projector.parameters())
    assert projector.grad.abs().sum() > 0
    model.zero_grad()
