"""Nothing makes the host wait for a GPU once a layer: counted on the CPU by the operations that would.

Reading a number from a device, finding the rows of a mask, and cutting by a mask all wait until the device has caught
up. A batch may do so a few times, however many layers the model has. Where rows wait for the outlier rule, it does so
once a layer and modality besides.
"""

import pytest
import torch
from tiny_models import FAMILIES, TEXT, llava_config
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText

from mirlib import MirlibError, ModalityIntegrationRate, score_batches
from mirlib.accumulators import FiniteChecks, RowSamples

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


DIMS = {"value": 32, "influence": 16}  # of some 50 rows of each modality


def model_of(layers, dim):
    config = llava_config()
    config.text_config.num_hidden_layers = layers
    config.text_config.hidden_size = dim
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval()


def waits_of(model, batches, **options):
    generator = torch.Generator().manual_seed(0)
    inputs = [
        FAMILIES[0].inputs(seed=seed) | {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
        for seed in range(batches)
    ]
    ends = []

    class Counted(list):
        """Waits between the first batch of a pass and its end: adding up waits in every layer, and may."""

        def __iter__(self):
            before = len(waits.found)
            yield from super().__iter__()
            ends.append(len(waits.found) - before)

    with Waits() as waits:
        result = score_batches(model, Counted(inputs), progress=False, **options)
    return result, ends


@pytest.mark.parametrize("way", DIMS)
@pytest.mark.parametrize("outliers", ["none", "drop"])
def test_waits_of_a_batch_do_not_grow_with_the_layers(way, outliers):
    """But for the rows that are set aside: the host must know how many, once a layer and modality.

    Where bounds are drawn anew, in a batch whenever a third more rows are in, it waits a few times more.
    """
    options = {"outliers": outliers, "confidence": None if way == "value" else 0.95}
    added = {}
    for layers in (2, 5):
        model = model_of(layers, DIMS[way])
        (few, before), (result, after) = waits_of(model, 6, **options), waits_of(model, 7, **options)
        assert result.passes == few.passes == len(after) == (1 if way == "value" else 2)
        assert way == "value" or result.interval.method == way
        added[layers] = [b - a for a, b in zip(before, after, strict=True)]
    for of_pass, (two, five) in enumerate(zip(added[2], added[5], strict=True)):
        assert 0 < two <= 15
        sorting = 0 if outliers == "none" or of_pass else 2 * (5 - 2)
        assert five - two <= sorting, f"pass {of_pass + 1}"


def test_the_counter_sees_what_waits():
    x = torch.randn(4, 3)
    with Waits() as waits:
        float(x.sum())
        bool((x > 0).all())
        x[x[:, 0] > 0]
        x[x[:, 0] < 2].tolist()
        x[torch.tensor([0, 1])]
    assert waits.found.count("_local_scalar_dense") >= 2 and waits.found.count("index") == 2


def test_update_layer_waits_for_nothing_once_samples_and_checks_are_shared():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(6, 4, generator=generator) for _ in "ab"]
    metric = ModalityIntegrationRate(3, 4, outliers="none", confidence=0.95)
    for step in range(2):
        if step:
            metric.begin_second_pass()
        for number, rows in enumerate(batches):
            samples = RowSamples(torch.arange(6) // 2 + 3 * number, 3 * number, range(3 * number, 3 * number + 3))
            checks = FiniteChecks()
            metric.update_layer(1, rows, 2 * rows, samples, checks=checks)
            with Waits() as waits:
                for layer in (2, 3):
                    metric.update_layer(layer, rows, 2 * rows, samples, checks=checks)
            assert waits.found == []
            checks.settle()
    result = metric.result()
    assert result.rows == {"vision": 12, "text": 12} and result.interval.method == "influence"


def test_rows_are_set_aside_with_one_wait_a_layer_and_modality():
    rows = torch.randn(5, 120, 4, generator=torch.Generator().manual_seed(0))
    metric, samples = ModalityIntegrationRate(5, 4), RowSamples(0, 0)
    metric.update(rows, rows, samples)
    with Waits() as waits:  # too few to draw the bounds anew
        metric.update(rows[:, :20], rows[:, :20], samples)
    assert waits.found.count("nonzero") == 2 * 5 and len(waits.found) <= 2 * 5 + 2
    assert all(side.aside for layer in metric._layers for side in layer), "nothing was set aside"


def test_one_batch_of_all_layers_waits_once_without_an_outlier_rule():
    rows = torch.randn(5, 12, 4, generator=torch.Generator().manual_seed(0))
    metric = ModalityIntegrationRate(5, 4, outliers="none")
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
    """Before its first rows a layer holds nothing; they may lie on any device (here: one without numbers)."""
    metric = ModalityIntegrationRate(2, 8, outliers="none")
    rows = torch.ones(5, 8, device="meta")
    metric.update_layer(1, rows, rows, RowSamples(0, 0), checks=FiniteChecks())
    (vision, text), second = metric._layers
    assert vision.device.type == text.device.type == vision.sums.device.type == "meta"
    assert [each.packed.untyped_storage().nbytes() for each in (vision.running, vision.unit)] == [8 * 10 * 8] * 2
    assert text.unit is None and all(side.running is None for side in second)
    assert TEXT["num_hidden_layers"] == 3  # the shared configuration was not changed


def test_samples_are_found_once_and_refused_where_they_do_not_fit():
    samples = RowSamples(torch.tensor([20, 7, 20, 20]), 7)
    places, cpu = {7: 0, 20: 1}, torch.device("cpu")
    assert samples.numbers == [7, 20]
    assert (
        samples.index(0, places, 4, cpu).tolist() == [1, 0, 1, 1]
        and samples.index(1, places, 3, cpu).tolist() == [0] * 3
    )
    assert samples.index(0, places, 4, cpu) is samples.index(0, places, 4, cpu)
    samples.check((4, 3))
    with pytest.raises(MirlibError, match=r"one number for each of 3 vision rows, got shape \(4,\)"):
        samples.check((3, 3))
    assert RowSamples(torch.tensor([2]), 5, range(1, 6)).numbers == [1, 2, 3, 4, 5], "also those without rows"
