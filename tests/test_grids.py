"""Grids of pictures: each vision row is where the model, without attention between patches, sees a change."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from real_processors import packages, save
from tiny_families import PATCH, Case
from tiny_models import FAMILIES as TINY
from tiny_processors import lvlm
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mirlib.grids import find_grid
from mirlib.hidden_states import capture, decoder_parts
from mirlib.prompts import encode_batch

pytestmark = pytest.mark.usefixtures("one_thread")


def make_local(model: nn.Module) -> None:
    """Switch the attention between patches off: what enters the decoder for a patch then depends on it alone."""
    for name, module in model.named_modules():
        inside = any(word in name for word in ("vision", "visual")) and "attn" in name
        if inside and name.rpartition(".")[2] in ("out_proj", "o_proj", "proj"):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def entering(model, inputs):
    """The vision rows of each picture where they enter layer 1, and its grid."""
    rows = []
    with torch.no_grad(), capture(model) as stream:
        hook = stream.parts.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        model(**inputs)
        hook.remove()
        vision = stream.positions["vision"]
    return [states[where] for states, where in zip(rows[0], vision, strict=True)], stream.parts.grid(inputs, vision)


def painted(size, grid, cell):
    """A grey picture with a white spot in the middle of a cell."""
    height, width = size[1] / grid.rows, size[0] / grid.columns
    row, column = divmod(cell, grid.columns)
    pixels = np.full((size[1], size[0], 3), 110, np.uint8)
    top, left = (row + 0.25) * height, (column + 0.25) * width
    pixels[round(top) : round(top + height / 2), round(left) : round(left + width / 2)] = (255, 30, 200)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "family, size, shape",
    [
        ("llava", (16, 16), (4, 4)),
        ("vipllava", (16, 16), (4, 4)),
        ("paligemma", (64, 32), (4, 4)),
        ("gemma3", (64, 32), (2, 2)),
        ("qwen2_vl", (32, 16), (2, 4)),
        ("qwen2_5_vl", (16, 32), (4, 2)),
        ("qwen3_vl", (32, 24), (3, 4)),
        ("qwen3_vl_moe", (32, 24), (3, 4)),
        ("idefics3", (64, 32), (2, 4)),
        ("idefics3", (32, 64), (4, 2)),
        ("smolvlm", (64, 32), (2, 4)),
        ("llava_next", (64, 32), (4, 8)),
        ("llava_next", (32, 64), (8, 4)),
        ("llava_next", (64, 20), (2, 8)),
        ("llava_onevision", (64, 32), (4, 8)),
        ("mistral3", (32, 16), (2, 4)),
    ],
)
def test_a_spot_changes_the_row_of_its_cell(family, size, shape, tmp_path):
    missing = [package for package in packages(family) if find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    save(family, tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    make_local(model.eval())
    check_cells(model, lambda picture: encode(processor, [picture]), size, shape)


def encode(processor, pictures):
    batch = encode_batch(processor, pictures, ["Two words."] * len(pictures))
    batch.pop("text_mask")
    return batch


def check_cells(model, inputs_of, size, shape):
    """A spot in the middle of each cell of the grid changes the row that is said to be there most."""
    (before,), (grid,) = entering(model, inputs_of(Image.new("RGB", size, (110, 110, 110))))
    assert shape == (grid.rows, grid.columns)
    placed = np.flatnonzero(grid.cells >= 0)
    assert sorted(grid.cells[placed]) == list(range(grid.rows * grid.columns))
    for cell in range(grid.rows * grid.columns):
        (after,), _ = entering(model, inputs_of(painted(size, grid, cell)))
        change = (after - before).norm(dim=1).numpy()
        assert grid.cells[placed[change[placed].argmax()]] == cell


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_merged_patches_stand_line_by_line(family):
    """The same for Qwen's patches, cut and put in order by its own image processor, without the rest of it."""
    case = Case(family)
    make_local(case.model)
    cut = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, temporal_patch_size=2, min_pixels=16, max_pixels=768)
    case.tokens = 12

    def inputs_of(picture):
        return case.inputs(batch=1) | dict(cut(picture, return_tensors="pt"))

    check_cells(case.model, inputs_of, (32, 24), (3, 4))


def test_tiles_of_onevision_are_those_of_its_processor():
    model, processor = lvlm("llava_onevision")
    processor.image_processor.image_grid_pinpoints = [[16, 32], [32, 16], [32, 32]]
    model.config.image_grid_pinpoints = model.model.config.image_grid_pinpoints = [[16, 32], [32, 16], [32, 32]]
    make_local(model)
    check_cells(model, lambda picture: encode(processor, [picture]), (32, 16), (2, 4))


def test_pictures_of_a_batch_have_their_own_grids(tmp_path):
    save("llava_next", tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    pictures = [Image.new("RGB", size) for size in ((64, 32), (32, 64), (40, 40))]
    rows, grids = entering(model.eval(), encode(processor, pictures))
    assert [(grid.rows, grid.columns) for grid in grids] == [(4, 8), (8, 4), (8, 8)]
    assert [len(grid.cells) for grid in grids] == [len(states) for states in rows]


def test_rows_that_are_too_many_or_too_few_have_no_grid():
    model = next(family for family in TINY if family.name == "llava").model()
    rule = decoder_parts(model).grid
    mask = torch.tensor([[False, True, True, True, True], [False, False, True, True, True]])
    square, nothing = rule({}, mask)
    assert (square.rows, square.columns, square.cells.tolist()) == (2, 2, [0, 1, 2, 3]) and nothing is None


def test_a_picture_of_which_no_whole_line_is_left_has_no_grid():
    vision = SimpleNamespace(image_size=16, patch_size=4)
    config = SimpleNamespace(model_type="llava_next", image_grid_pinpoints=[(16, 32), (32, 16)], vision_config=vision)
    rule = find_grid(SimpleNamespace(config=config))
    whole, mask = 4 * 4, torch.ones(1, 4 * 4 + 4 * 9, dtype=torch.bool)
    (found,) = rule({"image_sizes": torch.tensor([[16, 32]])}, mask)
    assert (found.rows, found.columns) == (4, 8)
    assert rule({"image_sizes": torch.tensor([[4, 4000]])}, mask[:, :whole]) == [None]


def test_a_line_of_patches_ends_where_a_run_ends():
    """As in the sequences of Mistral 3: [IMG] [IMG] [IMG] [IMG_BREAK] [IMG] [IMG] [IMG] [IMG_END]."""
    mask = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 1, 1, 0, 0, 0]]).bool()
    rule = find_grid(SimpleNamespace(config=SimpleNamespace(model_type="mistral3")))
    found, ragged = rule({}, mask)
    assert (found.rows, found.columns, found.cells.tolist()) == (2, 3, list(range(6))) and ragged is None


def test_a_family_without_a_rule_has_no_grid():
    assert find_grid(SimpleNamespace(config=SimpleNamespace(model_type="blip-2"))) is None
