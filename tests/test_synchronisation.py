"""Nothing makes the host wait for a GPU once a layer: counted on the CPU by the operations that would.

Reading a number from a device, finding the rows of a mask, and cutting by a mask all wait until the device has caught
up. A batch may do so a few times, however many layers the model has.
"""

import pytest
import torch
from tiny_models import FAMILIES, TEXT, llava_config
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText

from mirlib import MirlibError, ModalityIntegrationRate, score_batches
from mirlib.streaming import FiniteChecks, RowGroups

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


class Waits(TorchDispatchMode):
    """Counts the operations for which a host would wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masks or any(name.startswith(waiting) for waiting in WAITING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def model_of(layers):
    config = llava_config()
    config.text_config.num_hidden_layers = layers
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval()


def waits_of(model, batches, confidence):
    """Each batch holds a sample of either of two groups, so that the end does not grow with the batches."""
    inputs = [FAMILIES[0].inputs(seed=seed) | {"sample_groups": torch.tensor([0, 1])} for seed in range(batches)]
    with Waits() as waits:
        score_batches(model, inputs, progress=False, confidence=confidence, groups=2)
    return len(waits.found)


@pytest.mark.parametrize("confidence", [None, 0.95], ids=["no interval", "interval"])
def test_waits_of_a_batch_do_not_grow_with_the_layers(confidence):
    """The end waits in every layer, and may: it is there once. So look at what one more batch adds."""
    added = {}
    for layers in (2, 5):
        model = model_of(layers)
        added[layers] = waits_of(model, 3, confidence) - waits_of(model, 2, confidence)
    assert added[2] == added[5]
    assert 0 < added[2] <= 2 * 15  # in two passes


def test_the_counter_sees_what_waits():
    x = torch.randn(4, 3)
    with Waits() as waits:
        float(x.sum())
        bool((x > 0).all())
        x[x[:, 0] > 0]
        x[x[:, 0] < 2].tolist()
        x[torch.tensor([0, 1])]
    assert waits.found.count("_local_scalar_dense") >= 2 and waits.found.count("index") == 2


def test_update_layer_waits_for_nothing_once_groups_and_checks_are_shared():
    rows = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    metric = ModalityIntegrationRate(3, 4, groups=2)
    groups = (RowGroups(torch.arange(12) % 2), RowGroups(1))
    for step in range(2):
        if step:
            metric.begin_second_pass()
        checks = FiniteChecks()
        with Waits() as waits:
            for layer in (1, 2, 3):
                metric.update_layer(layer, rows, 2 * rows, groups=groups, checks=checks)
        assert waits.found == []
        checks.settle()
    assert metric.result().rows == {"vision": 12, "text": 12}


def test_one_batch_of_all_layers_waits_once():
    rows = torch.randn(5, 12, 4, generator=torch.Generator().manual_seed(0))
    metric = ModalityIntegrationRate(5, 4)
    with Waits() as waits:
        metric.update(rows, rows)
    assert len(waits.found) <= 2


def test_checks_name_the_first_layer_that_broke():
    rows, broken = torch.ones(6, 3), torch.ones(6, 3)
    broken[4, 1] = float("nan")
    metric, checks = ModalityIntegrationRate(3, 3), FiniteChecks()
    for layer, (vision, text) in enumerate([(rows, rows), (rows, broken), (broken, broken)], start=1):
        metric.update_layer(layer, vision, text, name_row=lambda m, row: f"token {row} ({m})", checks=checks)
    with pytest.raises(MirlibError, match=r"layer 2, text token 4 \(text\): the hidden state holds NaN"):
        checks.settle()
    checks.settle()  # nothing is left


def test_state_takes_memory_where_the_rows_are_and_when_they_come():
    """Before its first rows a layer holds one number; they may lie on any device (here: one without numbers)."""
    metric = ModalityIntegrationRate(2, 8, outliers="none", groups=3)
    assert metric.moments_vision_1.untyped_storage().nbytes() == 8
    rows = torch.ones(5, 8, device="meta")
    metric.update_layer(1, rows, rows, checks=FiniteChecks())
    assert metric.moments_vision_1.device.type == "meta" and metric.norm_sums.device.type == "meta"
    assert metric.moments_vision_1.untyped_storage().nbytes() == 3 * 10 * 8 * 8
    assert metric.moments_vision_2.untyped_storage().nbytes() == 8
    assert TEXT["num_hidden_layers"] == 3  # the shared configuration was not changed


def test_groups_are_found_once_and_refused_where_they_do_not_fit():
    groups = RowGroups(torch.tensor([2, 0, 2, 2]))
    assert [(g, index.tolist()) for g, index in groups.parts] == [(0, [1]), (2, [0, 2, 3])]
    assert groups.on(torch.device("cpu")) is groups.on(torch.device("cpu"))
    assert RowGroups(torch.tensor([1, 1])).parts == [(1, None)] == RowGroups(1).parts
    with pytest.raises(MirlibError, match=r"one number for each of 3 rows, got shape \(4,\)"):
        groups.check(3, 5)
    with pytest.raises(MirlibError, match=r"group 2 is outside 0\.\.1"):
        groups.check(4, 2)
