"""Every family of transformers: the table of the book, and the families themselves on tiny random models."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import transformers
from family_check import measure
from family_command import RefusedError, drive, text_window
from PIL import Image
from real_processors import KITS, processor_of
from tiny_families import CLASSES, FAMILIES, RGB, Case, Family, noise, shrink, tiny_settings
from tiny_processors import BUILDERS
from transformers import CONFIG_MAPPING, Blip2Config, OPTConfig, T5Config

from mirlib import MirlibError, UndefinedMIRError, capture, modality_integration_rate, score_batches
from mirlib.adapters import _ADAPTERS, decoder_parts
from mirlib.prompts import encode_batch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))  # the command is a script, not a part of a package

import families  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
LEDGER = {row["model_type"]: row for row in families.read_ledger()}
MEASURED = [name for name, row in LEDGER.items() if row["status"] in ("works", "adapter")]
DRIVEN = [name for name in MEASURED if "command" in LEDGER[name]]
QUICK = 2.0  # seconds that the command and the computation by hand may take in the tests
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32, and matrices of other shapes are multiplied in another order


def test_the_page_is_written_from_the_ledger():
    text = families.PAGE.read_text(encoding="utf-8")
    assert families.page(list(LEDGER.values()), text) == text, "run: python tools/families.py"


def test_the_page_lists_the_families_of_the_installed_transformers():
    text = families.PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"`([^`]+)`", text[text.index(families.BEGIN) :])
    assert sorted(listed) == sorted(LEDGER), "each family stands once"
    (made_with,) = {row["transformers"] for row in LEDGER.values()}
    assert f"Made with transformers {made_with}, " in text
    if transformers.__version__ == made_with:
        assert set(listed) == set(CLASSES), "run: python tools/families.py --run"


def test_nothing_fails_and_most_are_measured():
    assert [row for row in LEDGER.values() if row["status"] == "fails"] == []
    assert len(MEASURED) >= 60
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"[{len(MEASURED)} of the {len(LEDGER)} families](book/families.md)" in readme


def skip_unless_possible(model_type, *packages):
    if model_type not in CLASSES:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"needs the extra [families]: {', '.join(missing)}")


@pytest.mark.parametrize("model_type", MEASURED)
def test_family(model_type):
    skip_unless_possible(model_type, *filter(None, [FAMILIES.get(model_type, Family()).needs]))
    seen, row = measure(model_type), LEDGER[model_type]
    for name in ("layers", "vision_rows", "own_mask", "hidden_states", "causal"):
        assert getattr(seen, name) == row[name], name


def test_every_row_says_what_its_processor_did():
    kinds = {name: row["processor"].split(":")[0] for name, row in LEDGER.items()}
    assert {kinds[name] for name in MEASURED} <= {"command", "batch size 1 alone", "refused"}
    assert {kinds[name] for name in LEDGER if name not in MEASURED} == {"none"}
    assert sum(kind == "command" for kind in kinds.values()) >= 75
    for name in DRIVEN:
        assert LEDGER[name]["command"] == pytest.approx(LEDGER[name]["by_hand"], abs=families.TOLERANCE), name


@pytest.mark.parametrize("model_type", [name for name in DRIVEN if LEDGER[name]["driven"] < QUICK])
def test_the_command_with_a_real_processor(model_type, tmp_path):
    """MIR of a checkpoint on disk is that of its hidden states, one pair a pass, at whatever batch size."""
    row = LEDGER[model_type]
    skip_unless_possible(model_type, *row["needs"])
    alone, together, by_hand = drive(model_type, tmp_path / model_type)
    assert alone == pytest.approx(by_hand, abs=families.TOLERANCE)
    if row["processor"] == "command":
        assert together == pytest.approx(by_hand, abs=families.TOLERANCE)
    else:
        assert row["processor"] == f"batch size 1 alone: {together}"


@pytest.mark.parametrize("model_type", [name for name, row in LEDGER.items() if row["processor"].startswith("refused")])
def test_what_the_command_refuses_is_what_the_page_says(model_type, tmp_path):
    row = LEDGER[model_type]
    skip_unless_possible(model_type, *row["needs"])
    with pytest.raises(RefusedError) as raised:
        drive(model_type, tmp_path / model_type)
    assert f"refused: {raised.value}" == row["processor"]


def processor_alone(model_type, **changes):
    """The real processor of a family, without a model."""
    settings = tiny_settings(model_type, FAMILIES.get(model_type, Family()))
    return processor_of(model_type, replace(KITS[model_type], **changes), settings)


def pictures(*sizes):
    return [Image.new("RGB", size, color) for size, color in zip(sizes, ("red", "blue", "green"), strict=False)]


@pytest.mark.parametrize("model_type", ["got_ocr2", "gemma3"])
def test_pictures_reach_each_processor_in_the_lists_that_it_takes(model_type):
    """GOT-OCR takes a picture for each prompt, and a list of them for the pages of one; Gemma 3 takes lists alone."""
    processor = processor_alone(model_type)
    batch = encode_batch(processor, pictures((40, 24), (24, 40)), ["a red cat", "a blue dog on a mat"])
    assert len(batch["input_ids"]) == len(batch["pixel_values"]) == 2
    read = [
        processor.tokenizer.decode(ids[rows]) for ids, rows in zip(batch["input_ids"], batch["text_mask"], strict=True)
    ]
    assert read == ["a red cat", "a blue dog on a mat"]


@pytest.mark.parametrize("words", [(), ("|SPEAKER|",)])
def test_a_blank_that_the_tokenizer_puts_first_is_no_text(words):
    """GIT's prompt is the text alone: a tokenizer in the manner of SentencePiece begins it with a blank of its own."""
    processor = processor_alone("git", words=words)
    batch = encode_batch(processor, pictures((16, 16)), ["7 cats"])
    ids, rows = batch["input_ids"][0], batch["text_mask"][0]
    assert rows.tolist() == [not words or place > 0 for place in range(len(ids))]
    assert processor.tokenizer.decode(ids[rows]) == "7 cats"


def test_kinds_of_tokens_are_asked_for_where_they_are_not_given_unasked():
    """Cosmos 3's processor names them among the inputs of its model, and returns them only on request."""
    processor = BUILDERS["qwen2_vl"]()
    processor.return_mm_token_type_ids = False
    batch = encode_batch(processor, pictures((16, 16)), ["a red cat"])
    placeholders = batch["input_ids"] == processor.image_token_id
    assert placeholders.any() and torch.equal(batch["mm_token_type_ids"].bool(), placeholders)


def test_emu3_refuses_pictures_of_different_sizes_in_one_batch():
    processor = processor_alone("emu3")
    texts = ["a red cat", "a blue dog"]
    same = encode_batch(processor, pictures((40, 24), (40, 24)), texts)
    assert len(same["pixel_values"]) == 2
    with pytest.raises(MirlibError, match=r"different sizes .*; take batch_size=1 \(--batch-size 1\)"):
        encode_batch(processor, pictures((40, 24), (24, 40)), texts)


def test_kosmos_2_5_marks_the_tokens_around_its_image_too():
    """Its processor writes -1 there, and 1 where the features of the image stand."""
    case = Case("kosmos-2.5")
    case.find_tokens()
    inputs = case.inputs()
    marks = inputs["image_embeds_position_mask"].long()
    marks[:, 2], marks[:, 3 + case.tokens] = -1, -1
    stream = layer_rows(case.model, **inputs | {"image_embeds_position_mask": marks})
    assert torch.equal(stream.positions["vision"], marks == 1)


def test_the_window_of_a_text_is_found_by_decoding():
    """The words of the text are in the prompt, too, and the window is the last run that reads as all of it."""
    words = ["A ", "cat", ". ", "A ", "cat", " sat", "\n"]
    assert text_window("".join, words, "A cat sat") == slice(3, 6)
    assert text_window("".join, words, "cat") == slice(4, 5)
    with pytest.raises(ValueError, match="empty"):
        text_window("".join, words, "A dog")


@pytest.mark.parametrize("model_type", [name for name, row in LEDGER.items() if row["status"] == "undefined"])
def test_undefined_families_say_why(model_type):
    with pytest.raises(UndefinedMIRError) as raised:
        measure(model_type)
    assert str(raised.value).startswith(LEDGER[model_type]["how"])
    assert any(reason in str(raised.value) for reason in ("encoder-decoder", "cross-attention", "language model alone"))


def test_one_family_can_be_both():
    """BLIP-2 with OPT reads pictures in its decoder's sequence; with T5 it is an encoder-decoder."""
    stub = SimpleNamespace(layers=[torch.nn.Identity()], config=SimpleNamespace(), norm=torch.nn.Identity())
    for language_model, undefined in ((OPTConfig(), False), (T5Config(), True)):
        config = Blip2Config(text_config=language_model.to_dict(), image_token_index=7)
        model = torch.nn.Module()
        model.config, model.get_decoder = config, lambda: stub
        if undefined:
            with pytest.raises(UndefinedMIRError, match="encoder-decoder"):
                decoder_parts(model)
        else:
            assert decoder_parts(model).vision_token_ids == (7,)


def test_gemma3n_is_read_from_its_active_stream():
    """Its vision tower is a model of the package timm; here one projection of the patches stands in for it."""

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.project = torch.nn.Conv2d(3, 64, 8, 8)

        def forward(self, pixel_values, **_):
            return SimpleNamespace(last_hidden_state=self.project(pixel_values), pooler_output=None)

    real = transformers.AutoModel.from_config
    stand_in = patch.object(
        transformers.AutoModel,
        "from_config",
        lambda config, **kwargs: Tower() if config.model_type == "gemma3n_vision" else real(config, **kwargs),
    )
    settings = {
        "vision_soft_tokens_per_image": 4, "vision_config.hidden_size": 64, "text_config.intermediate_size": 96,
        "text_config.layer_types": ["sliding_attention", "full_attention"], "text_config.num_kv_shared_layers": 0,
    }  # fmt: skip
    with stand_in, patch.dict(FAMILIES, {"gemma3n": Family(settings, noise(*RGB), last="raw")}):
        seen = measure("gemma3n")
    assert (seen.vision_rows, seen.own_mask, seen.hidden_states, seen.causal) == (4, True, True, True)


def test_features_that_are_added_between_layers_are_not_in_the_row_of_the_layer_before():
    """Qwen3-VL adds features of the picture behind layer 1: the row is the layer's output, as in its hidden states."""
    case = Case("qwen3_vl")
    case.find_tokens()
    entering = []
    layers = case.model.get_decoder().layers
    layers[1].register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    stream = layer_rows(case.model, last="raw", **case.inputs())
    where = stream.positions["vision"]
    assert (entering[0][where] != stream.vision[0]).any(dim=-1).all()
    assert torch.equal(entering[0][stream.positions["text"]], stream.text[0])


def test_the_mean_of_streams_is_what_the_head_of_glm5_next_takes():
    case = Case("glm5_next")
    case.find_tokens()
    with torch.no_grad():
        raw, normed = (layer_rows(case.model, last=last, **case.inputs()) for last in ("raw", "normed"))
        norm = case.model.get_decoder().norm
        for modality in ("vision", "text"):
            torch.testing.assert_close(norm(getattr(raw, modality)[-1]), getattr(normed, modality)[-1])


def padded(inputs, side, columns=3):
    """The inputs with padding on one side of every row, as a tokenizer would give them."""
    front, back = (columns, 0) if side == "left" else (0, columns)
    widen = {name: 0 for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")}
    return {
        name: torch.nn.functional.pad(value, (front, back), value=widen[name]) if name in widen else value
        for name, value in inputs.items()
    }


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "gemma3"])
def test_left_and_right_padding_give_the_same_mir(model_type):
    case = Case(model_type)
    case.find_tokens()
    batch = case.inputs(batch=3)
    batch["input_ids"][-1, -2:], batch["attention_mask"][-1, -2:] = 201, 1  # no padding of its own
    values = [
        score_batches(case.model, [inputs], progress=False).value
        for inputs in (batch, padded(batch, "left"), padded(batch, "right"))
    ]
    assert values[1] == pytest.approx(values[0], abs=1e-4)
    assert values[2] == pytest.approx(values[0], abs=1e-4)
    assert not torch.equal(padded(batch, "left")["input_ids"], padded(batch, "right")["input_ids"])


def layer_rows(model, last="normed", **inputs):
    """The vision and text rows of all layers, and their samples."""
    with torch.no_grad(), capture(model, last=last) as stream:
        model(**inputs)
    return stream


def assert_same_rows(stream, alone, sample):
    """The rows of one sample of a batch are those of the sample alone."""
    for modality in ("vision", "text"):
        mine = getattr(stream, f"{modality}_samples") == sample
        for together, single in zip(getattr(stream, modality), getattr(alone, modality), strict=True):
            torch.testing.assert_close(together[mine], single, **TOLERANCE)


def sequence(*parts):
    """Token ids of one sample: an int is that many words, a pair (id, count) that many placeholders."""
    pieces = [
        torch.full((part[1],), part[0]) if isinstance(part, tuple) else 200 + torch.arange(part) for part in parts
    ]
    return torch.cat(pieces)


def stack(rows):
    """Rows of different lengths, padded on the right, and their attention mask."""
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


def test_grids_of_different_sizes_in_one_batch():
    """Qwen2.5-VL: one picture of 4 x 4 patches, one of 4 x 8, which take 4 and 8 placeholders."""
    case = Case("qwen2_5_vl")
    grids = torch.tensor([[1, 4, 4], [1, 4, 8]])
    counts = grids.prod(dim=1)
    pixels = torch.randn(int(counts.sum()), 2 * 3 * 4 * 4, generator=torch.Generator().manual_seed(0))
    rows = [sequence(3, (case.image_id, int(count) // 4), 5) for count in counts]
    text = stack(rows)
    kinds = (text["input_ids"] == case.image_id).int()
    stream = layer_rows(case.model, **text, mm_token_type_ids=kinds, pixel_values=pixels, image_grid_thw=grids)
    assert torch.bincount(stream.vision_samples).tolist() == [4, 8]
    for sample, own in enumerate(pixels.split(counts.tolist())):
        ids = rows[sample][None]
        alone = layer_rows(
            case.model,
            input_ids=ids,
            mm_token_type_ids=(ids == case.image_id).int(),
            pixel_values=own,
            image_grid_thw=grids[[sample]],
        )
        assert_same_rows(stream, alone, sample)


def test_tiles_of_different_sizes_in_one_batch():
    """LLaVA-NeXT: a wide picture (two tiles) and a square one (four); unpadding makes their row counts differ."""
    case = Case("llava_next")
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randn(tiles, *RGB, generator=generator) for tiles in (3, 5)]
    sizes = torch.tensor([[16, 32], [32, 32]])
    streams = []
    with torch.no_grad():
        features = case.model.get_image_features(
            torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True), image_sizes=sizes
        ).pooler_output
    counts = [len(rows) for rows in features]
    assert counts[0] < counts[1]
    rows = [sequence(3, (case.image_id, count), 5) for count in counts]
    stream = layer_rows(
        case.model,
        **stack(rows),
        pixel_values=torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True),
        image_sizes=sizes,
    )
    assert torch.bincount(stream.vision_samples).tolist() == counts
    for sample in range(2):
        alone = layer_rows(
            case.model,
            input_ids=rows[sample][None],
            pixel_values=pixels[sample][None],
            image_sizes=sizes[[sample]],
        )
        streams.append(alone)
        assert_same_rows(stream, alone, sample)


def test_two_pictures_in_one_sample():
    """Text between two pictures is text, and changing the second picture leaves the rows of the first alone."""
    case = Case("llava")
    case.find_tokens()
    ids = sequence(2, (case.image_id, case.tokens), 3, (case.image_id, case.tokens), 4)[None]
    pixels = torch.randn(2, *RGB, generator=torch.Generator().manual_seed(0))
    first = layer_rows(case.model, input_ids=ids, pixel_values=pixels)
    other = pixels.clone()
    other[1] += 1
    second = layer_rows(case.model, input_ids=ids, pixel_values=other)
    assert len(first.vision[0]) == 2 * case.tokens and len(first.text[0]) == 2 + 3 + 4
    same = [(a == b).all(dim=-1) for a, b in zip(first.vision, second.vision, strict=True)]
    for layer in same:
        assert layer[: case.tokens].all() and not layer[case.tokens :].any()


def test_video_rows_are_vision_rows():
    """Qwen2-VL: a video of two frames beside a picture; the model's masks for both together are the vision rows."""
    case = Case("qwen2_vl")
    config = case.model.config
    rows = [sequence(2, (config.image_token_id, 4), 5), sequence(2, (config.video_token_id, 8), 1)]
    text = stack(rows)
    kinds = (text["input_ids"] == config.image_token_id) + 2 * (text["input_ids"] == config.video_token_id)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        **text,
        "mm_token_type_ids": kinds.int(),
        "pixel_values": torch.randn(16, 96, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "pixel_values_videos": torch.randn(32, 96, generator=generator),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }
    first = layer_rows(case.model, **inputs)
    second = layer_rows(case.model, **inputs | {"pixel_values_videos": inputs["pixel_values_videos"] + 1})
    assert torch.bincount(first.vision_samples).tolist() == [4, 8]
    changed = (first.vision[0] != second.vision[0]).any(dim=-1)
    assert changed.tolist() == (first.vision_samples == 1).tolist()


@pytest.mark.parametrize(
    ("changed", "section", "cell"),
    [
        ({}, "all checks held", "| sliding, full | "),
        ({"status": "adapter"}, "not like the others", "| `llava` | by an adapter | command |"),
        ({"own_mask": False, "causal": False}, "not like the others", "| `llava` | no mask, no causal | command |"),
        ({"changed": 0.5}, "not like the others", "| `llava` | pixels 50% | command |"),
        ({"processor": "refused: no"}, "not like the others", "| `llava` | - | refused: no |"),
        ({"processor": "batch size 1 alone: so"}, "not like", "| `llava` | - | batch size 1 alone: so |"),
        ({"status": "undefined", "how": "llava sees nothing"}, "Not measured", "| `llava` | undefined: sees nothing |"),
        ({"status": "package", "how": "timm"}, "Not measured", "| `llava` | needs the package timm |"),
        ({"status": "fails", "how": "an error"}, "Not measured", "| `llava` | fails: an error |"),
    ],
)
def test_where_a_family_stands_on_the_page(changed, section, cell):
    rows = [LEDGER["gemma3"], LEDGER["llava"] | {"kinds": "sliding, full"} | changed]
    sections = families.table(rows).split("\n### ")
    (found,) = (part for part in sections if "`llava`" in part)
    assert section in found.splitlines()[0] and cell in found


def test_the_page_counts_what_the_processors_did():
    kinds = ("command", "command", "refused: no", "refused: never", "batch size 1 alone: odd")
    rows = [LEDGER["llava"] | {"model_type": f"family{i}", "processor": kind} for i, kind in enumerate(kinds)]
    text = families.table(rows)
    assert "Of the 5, **2 were driven by the command with their real processors**; 1 at batch size 1 alone" in text
    assert "; 2 the command refuses with its processor. Made with" in text


def test_the_adapter_of_the_page_runs(capsys):
    """The code of the page prints the MIR of the rows that its model has, and the page shows it."""
    text = families.PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)\n```", text, re.DOTALL)
    scope: dict = {}
    try:
        exec(compile(code, str(families.PAGE), "exec"), scope)
    finally:
        _ADAPTERS.pop("my_lvlm", None)
    printed = capsys.readouterr().out.strip()
    assert float(printed) == pytest.approx(float(shown), abs=0.011), "initial weights may differ between versions"
    model, ids = scope["model"], scope["ids"]
    assert len(ids) == 40
    with torch.no_grad():
        rows = model.words(ids)
        rows[ids == 99] = model.eye(scope["patches"]).flatten(0, 1)
        layers = []
        for block in model.blocks:
            rows = block(rows)
            layers.append(rows)
        layers[-1] = model.last_norm(rows)
    vision, text = ([layer[where] for layer in layers] for where in (ids == 99, ids != 99))
    assert printed == f"{modality_integration_rate(vision, text).value:.2f}"


def test_shrinking_keeps_one_layer_of_every_kind():
    settings = CONFIG_MAPPING["qwen3_5_moe"]().to_dict()
    small = shrink(settings)["text_config"]
    assert set(small["layer_types"]) == set(settings["text_config"]["layer_types"])
    assert small["num_hidden_layers"] == len(small["layer_types"]) < settings["text_config"]["num_hidden_layers"]
