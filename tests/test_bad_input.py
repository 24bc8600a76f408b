"""Bad input, line by line of the design's table: an error that says what, where and what to do, never a traceback.

The messages for arrays are tested in test_frechet.py, test_mir.py and test_streaming.py, those for files in
test_data.py; here they are followed through the command and through whole models.
"""

import json
import os
import shutil
import time
import zipfile

import numpy as np
import pytest
import torch
import transformers
from command import mir, refused
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES
from tiny_processors import lvlm

from mirlib import MirlibError, UndefinedMIRError, modality_integration_rate, score, score_batches
from mirlib.data import sample_images, sample_texts
from mirlib.loading import check_name
from mirlib.planning import plan

LLAVA = FAMILIES[0]
IMAGES, TEXTS = list(sample_images(3)), sample_texts(3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model, processor = lvlm("llava")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "images").mkdir()
    for number, image in enumerate(IMAGES):
        image.save(folder / "images" / f"{number}.png")
    (folder / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy of the folder, to be damaged."""
    return shutil.copytree(saved / "model", tmp_path / "model")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def arguments(saved, model, *options):
    return [
        "score", model, "--images", saved / "images", "--texts", saved / "texts.txt", "--num", 3, "--no-progress",
        *options,
    ]  # fmt: skip


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


# ---------------------------------------------------------------------------------------------------------------------
# NaN or infinity in a hidden state


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("modality", ["vision", "text"])
def test_a_hidden_state_that_is_not_finite_in_memory(value, modality):
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(3, 20, 4)) for name in ("vision", "text")}
    rows[modality][1, 13, 2] = value
    with pytest.raises(MirlibError, match=f"layer 2, {modality} row 13: the hidden state holds NaN or infinity"):
        modality_integration_rate(**rows)
    samples = np.repeat(np.arange(100, 105), 4)
    with pytest.raises(MirlibError, match=rf"layer 2, {modality} row 13 \(sample 103\)"):
        modality_integration_rate(**rows, samples=(samples, samples))


@pytest.mark.parametrize("modality", ["vision", "text"])
@pytest.mark.parametrize(("preset", "second_pass"), [("paper", False), ("paper", True), ("authors", False)])
def test_a_hidden_state_that_is_not_finite_in_a_model(modality, preset, second_pass):
    """One number of one row of the sixth sample, after layer 2."""
    model = LLAVA.model()
    batches = [{**LLAVA.inputs(seed=s), "sample_names": [f"{s}-a.png", f"{s}-b.png"]} for s in range(16)]
    position = {"vision": 3, "text": 7}[modality]
    calls = []

    def break_it(module, args, output):
        calls.append(1)
        if len(calls) == (16 + 3 if second_pass else 3):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[1, position, 5] = float("nan")
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
        return None

    model.get_decoder().layers[1].register_forward_hook(break_it)
    message = rf"layer 2, {modality} row \d+ of sample 5 \(2-b.png\): the hidden state holds NaN or infinity"
    if preset == "authors":
        message = rf"layer 2, {modality} row \d+ \(sample 5\): the hidden state holds NaN or infinity"
    with pytest.raises(MirlibError, match=message):
        score_batches(model, batches, preset=preset, progress=False)


def test_weights_that_are_not_finite_through_the_command(saved, checkpoint, capsys):
    def spoil(weights):
        name = next(n for n in weights if "language_model" in n and "layers.1.mlp.down_proj" in n)
        weights[name][3, 4] = float("nan")

    change_weights(checkpoint, spoil)
    sentence = refused(capsys, *arguments(saved, checkpoint))
    assert (
        sentence.startswith("layer 2, vision row 0 of sample 0 (") and ".png): the hidden state holds NaN" in sentence
    )
    assert "float16 overflows, bfloat16 does not" in sentence


# ---------------------------------------------------------------------------------------------------------------------
# Arrays: rows, dimensions, layers, kinds


V, T = (np.random.default_rng(0).normal(size=shape) for shape in ((2, 9, 3), (2, 8, 3)))
ARRAYS = {
    "one row": (V[:, :1], T, r"vision, layer 1: 1 row(s); a covariance needs at least 2"),
    "one text row": (V, T[:, :1], r"text, layer 1: 1 row(s); a covariance needs at least 2"),
    "text of norm zero": (V, T * 0, "layer 1: every text row has norm zero"),
    "other d": (V[..., :2], T, "layer 1: vision rows have 2 dimensions and text rows 3; they must be equal"),
    "other K": (V[:1], T, "vision has 1 layers and text has 2; they must be equal"),
    "integers": (V.astype(int), T, "vision, layer 1: expected floating-point numbers, got dtype int64"),
    "complex numbers": (V, T * 1j, "text, layer 1: expected floating-point numbers, got dtype complex128"),
    "no rows": (V[:, :0], T, "vision, layer 1: empty array of shape (0, 3)"),
    "no layers": (V[:0], T[:0], "vision: no layers"),
    "no dimensions": (V[..., :0], T[..., :0], "vision, layer 1: empty array of shape (9, 0)"),
    "one layer without a list": (V[0], T[0], "vision: expected K arrays of rows, one a layer, got one array of shape"),
    "four dimensions": (V[None], T, "vision: expected K arrays of rows, one a layer, got one array of shape"),
    "a number": (np.float64(3), T, "vision: expected K arrays of rows, one a layer"),
    "words": (np.array([[["a"]]]), T, "vision, layer 1: expected floating-point numbers, got dtype <U1"),
    "not finite": (
        V,
        np.where(np.arange(8)[:, None] == 5, np.nan, T),
        "layer 1, text row 5: the hidden state holds NaN",
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_through_library_and_command(name, capsys, tmp_path):
    vision, text, message = ARRAYS[name]
    with pytest.raises(MirlibError) as caught:
        modality_integration_rate(vision, text)
    assert str(caught.value).startswith(message)
    np.savez(tmp_path / "a.npz", vision=vision, text=text)
    assert refused(capsys, "features", tmp_path / "a.npz").startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array(1.0), "expected K arrays of rows"),
        ({"a": V}, "expected K arrays of rows, one a layer, got dict"),
        (None, "got NoneType"),
        ("text", "got str"),
        (3.0, "got float"),
        ((row for row in V), "got generator"),
        ([V[0], V[1][:5]], r"vision: layer 2 has shape \(5, 3\), layer 1 has \(9, 3\); all layers of a model"),
        ([V[0].tolist(), [[1.0], [2.0, 3.0]]], "vision, layer 2: not a matrix of rows"),
        ([V[0], None], "vision, layer 2: expected floating-point numbers"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_what_is_no_list_of_layers(values, message):
    with pytest.raises(MirlibError, match=message):
        modality_integration_rate(values, T)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"garbage", "cannot read the arrays"),
        ("a.npz", b"", "cannot read the arrays"),
        ("a.npz", b"PK\x03\x04 no zip", "cannot read the arrays"),
        ("a.safetensors", b"garbage", "cannot read the arrays"),
        ("a.txt", b"1 2 3", "expected .npz or .safetensors"),
        ("a.npy", b"\x93NUMPY", "expected .npz or .safetensors"),
    ],
)
def test_files_that_hold_no_arrays(name, content, message, capsys, tmp_path):
    (tmp_path / name).write_bytes(content)
    sentence = refused(capsys, "features", tmp_path / name)
    assert sentence.startswith(f"{tmp_path / name}: ") and message in sentence


def test_files_that_hold_too_little_or_code(capsys, tmp_path):
    np.savez(tmp_path / "a.npz", vision=V)
    assert "no array text; it needs vision (K, r, d) and text (K, s, d)" in refused(
        capsys, "features", tmp_path / "a.npz"
    )
    np.savez(tmp_path / "b.npz", vision=np.array([V, None], dtype=object), text=T)
    assert "cannot read the arrays (ValueError: Object arrays" in refused(capsys, "features", tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", vision=V, text=T)
    whole = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "c.npz").write_bytes(whole[: len(whole) // 2])
    assert "cannot read the arrays" in refused(capsys, "features", tmp_path / "c.npz")
    assert refused(capsys, "features", tmp_path / "missing.npz") == f"no such file: {tmp_path / 'missing.npz'}"
    assert "a folder, not a file" in refused(capsys, "features", tmp_path)
    np.savez(tmp_path / "d.npz", vision=V, text=T, vision_samples=np.arange(3), text_samples=np.arange(8))
    assert "whole numbers, one a row" in refused(capsys, "features", tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", vision=V, text=T)
    assert "an interval needs samples" in refused(capsys, "features", tmp_path / "e.npz", "--confidence", 0.9)
    np.savez(tmp_path / "f.npz", vision=V, text=T, vision_samples=np.arange(V.shape[1]))
    assert "there is one alone; give both, or none" in refused(capsys, "features", tmp_path / "f.npz")


def write_safetensors(path, dtype, shape, size):
    """Two arrays of zeros, with a header of our own: safetensors itself writes no other."""
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [number * size, (number + 1) * size]}
        for number, name in enumerate(("vision", "text"))
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 * size))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_eight_bit_floats_are_refused(dtype, capsys, tmp_path):
    write_safetensors(tmp_path / "a.safetensors", dtype, [2, 5, 3], 30)
    sentence = refused(capsys, "features", tmp_path / "a.safetensors")
    assert sentence.startswith("vision, layer 1: eight-bit numbers (torch.float8_e") and "convert them" in sentence


def test_a_type_of_the_future_is_refused(capsys, tmp_path):
    write_safetensors(tmp_path / "a.safetensors", "F3", [2, 5, 3], 30)
    assert "cannot read the arrays (" in refused(capsys, "features", tmp_path / "a.safetensors")


def write_npz(path, header, content=b"", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in ("vision", "text"):
            head = f"{header}\n".encode()
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + content)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(2, 10000000000000, 3)", "vision claims shape (2, 10000000000000, 3) of float64, and holds 480 bytes"),
        ("(-2, 10, 3)", "vision claims shape (-2, 10, 3)"),
        ("(2, 10, 4)", "and holds 480 bytes"),
        ("(2, 10, 3", "cannot read the arrays ("),
        (f"({'9' * 5000}, 1, 1)", "cannot read the arrays ("),
    ],
)
def test_what_a_header_claims_is_held_against_the_file(shape, message, capsys, tmp_path):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
    write_npz(tmp_path / "a.npz", header, bytes(8 * 2 * 10 * 3))
    sentence = refused(capsys, "features", tmp_path / "a.npz")
    assert sentence.startswith(f"{tmp_path / 'a.npz'}: ") and message in sentence and len(sentence) < 500


def test_a_bomb_is_not_unpacked(capsys, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("vision", "text"):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f8", "fortran_order": False, "shape": (2, 9_000_000, 2)}
                )
                for _ in range(18):
                    file.write(bytes(16_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 3e6
    assert "vision unpacks to 0.3 GiB, more than 20 times the size" in refused(capsys, "features", tmp_path / "a.npz")


@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_wide_rows_take_no_matrix_of_their_width(preset, tmp_path, capsys):
    """A (d, d) matrix would be 28.8 GB; the right value is that of the plane that the rows lie in."""
    rng = np.random.default_rng(0)
    narrow = {"vision": rng.normal(size=(1, 2, 4)), "text": rng.normal(size=(1, 2, 4))}
    wide = {name: np.concatenate([rows, np.zeros((1, 2, 59_996))], axis=2) for name, rows in narrow.items()}
    np.savez(tmp_path / "a.npz", **wide)
    found = json.loads(mir(capsys, "features", tmp_path / "a.npz", "--preset", preset, "--json", "-").out)
    expected = modality_integration_rate(**narrow, preset=preset)
    assert found["mir"] == pytest.approx(expected.value, rel=1e-12)
    assert found["zeroed_rows"] == pytest.approx(expected.zeroed_rows, rel=1e-12)
    sentence = refused(capsys, "features", tmp_path / "a.npz", "--preset", "authors-fast")
    assert "would take 80 GiB for matrices of 60000 x 60000 numbers; use preset 'authors' or 'paper'" in sentence


def test_more_layers_than_any_model_has(capsys, tmp_path):
    np.savez(tmp_path / "a.npz", vision=np.zeros((1_800_000, 2, 1)), text=T)
    started = time.process_time()
    assert refused(capsys, "features", tmp_path / "a.npz").startswith("vision: 1800000 layers, more than any model has")
    assert time.process_time() - started < 3, "it looked at each of them first"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v * 1e160, "layer 1, vision row 0: the hidden state is finite, but too large to be squared (up to"),
        (lambda v: np.where(np.arange(9)[:, None] == 4, 1e308, v), "vision row 4: the hidden state is finite, but too"),
        (lambda v: v * 1e120, "layer 1: the distance is no finite number"),
    ],
)
def test_finite_numbers_are_not_called_infinite(change, message, capsys, tmp_path):
    np.savez(tmp_path / "a.npz", vision=change(V), text=T * 1e-120)
    sentence = refused(capsys, "features", tmp_path / "a.npz")
    assert message in sentence and "NaN" not in sentence


@pytest.mark.parametrize("change", [np.asfortranarray, lambda a: a.astype(">f8"), lambda a: a.astype("g")])
def test_other_layouts_of_the_same_numbers(change, capsys, tmp_path):
    np.savez(tmp_path / "a.npz", vision=change(V), text=change(T))
    found = json.loads(mir(capsys, "features", tmp_path / "a.npz", "--json", "-").out)
    assert found["mir"] == modality_integration_rate(V, T).value


# ---------------------------------------------------------------------------------------------------------------------
# Images and texts


def test_unreadable_images_through_library_and_command(saved, capsys, tmp_path):
    images = shutil.copytree(saved / "images", tmp_path / "images")
    whole = (images / "0.png").read_bytes()
    (images / "broken.png").write_bytes(whole[: len(whole) // 2])
    model, processor = lvlm("llava")
    sources, texts = sorted(images.iterdir()), [*TEXTS, TEXTS[0]]
    with pytest.raises(MirlibError, match=r"cannot read the image .*broken\.png: image file is truncated"):
        score(model, processor, sources, texts, num=4, progress=False)
    said = []
    result = score(model, processor, sources, texts, num=3, skip_unreadable=said.append, progress=False)
    assert result.settings["samples"] == 3
    with pytest.raises(MirlibError, match=r"4 images were asked for, there are 4, 3 of them usable; lower num"):
        score(model, processor, sources, texts, num=4, skip_unreadable=said.append, progress=False)
    assert said and all("broken.png" in sentence for sentence in said)
    command = ["score", saved / "model", "--images", images, "--texts", saved / "texts.txt", "--no-progress"]
    # All four are asked for, so that the broken one is certainly drawn.
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    command[5] = tmp_path / "texts.txt"
    assert "broken.png" in refused(capsys, *command, "--num", 4)


def test_unreadable_texts_through_the_command(saved, capsys, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "good.txt").write_text(TEXTS[0])
    for name, content, message in (
        ("empty.txt", b" \n ", "empty.txt: the text is empty"),
        ("latin.txt", "café".encode("latin-1"), "latin.txt: not UTF-8 text (byte 3)"),
    ):
        (texts / name).write_bytes(content)
        command = [
            "score",
            saved / "model",
            "--images",
            saved / "images",
            "--texts",
            texts,
            "--num",
            1,
            "--no-progress",
        ]
        assert message in refused(capsys, *command)
        outcome = mir(capsys, *command, "--skip-unreadable")
        assert outcome.code == 0 and sum(message in line for line in outcome.err.splitlines()) == 1
        (texts / name).unlink()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["good", " \n", "fine"], "a text is empty"),
        (["good", 3, "fine"], "expected a text, got int"),
        (["good", None, "fine"], "expected a text, got NoneType"),
        (["good", b"bytes", "fine"], "expected a text, got bytes"),
        (["see <image>", "good", "fine"], "placeholder '<image>'; leave it out"),
    ],
)
def test_texts_in_memory(texts, message):
    model, processor = lvlm("llava")
    with pytest.raises(MirlibError, match=message):
        score(model, processor, IMAGES, texts, num=3, progress=False)
    if "placeholder" not in message:
        said = []
        result = score(model, processor, IMAGES, texts, num=2, skip_unreadable=said.append, progress=False)
        assert result.settings["samples"] == 2


def test_a_text_of_special_tokens_alone_has_no_rows():
    model, processor = lvlm("llava")
    with pytest.raises(MirlibError, match="the text '</s>' is made of special tokens alone"):
        score(model, processor, IMAGES, ["</s>"] * 3, num=3, progress=False)
    skipped = []
    texts = [*TEXTS, " </s> <s>", "</s>"]
    for batch_size in (1, 4):  # a pair without text rows must not count, whatever it shares a batch with
        with pytest.raises(MirlibError, match="5 texts were asked for, there are 5, 3 of them usable"):
            score(
                model, processor, IMAGES * 2, texts, num=5, batch_size=batch_size, progress=False,
                skip_unreadable=skipped.append,
            )  # fmt: skip
    assert len(skipped) == 4


def test_fewer_than_were_asked_for(saved, capsys):
    model, processor = lvlm("llava")
    with pytest.raises(MirlibError, match=r"5 images were asked for, there are 3; lower num \(--num\)"):
        score(model, processor, IMAGES, TEXTS * 2, num=5, progress=False)
    with pytest.raises(MirlibError, match=r"5 texts were asked for, there are 3; lower num \(--num\)"):
        score(model, processor, IMAGES * 2, TEXTS, num=5, progress=False)
    command = arguments(saved, saved / "model", "--num", 5)
    assert refused(capsys, *command) == "5 images were asked for, there are 3; lower num (--num)"
    for option, message in (
        ("--images", "no such file or folder: nowhere"),
        ("--texts", "no such file or folder: nowhere"),
    ):
        assert refused(capsys, *arguments(saved, saved / "model", option, "nowhere")) == message


# ---------------------------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num", 0], "num and batch_size must be at least 1"),
        (["--num", -3], "num and batch_size must be at least 1"),
        (["--batch-size", 0], "num and batch_size must be at least 1"),
        (["--seed", -1], "seed (--seed) must be at least 0, got -1"),
        (["--confidence", 2], "confidence must lie between 0 and 1, got 2.0"),
        (["--confidence", -0.5], "confidence must lie between 0 and 1"),
        (["--max-text-tokens", 0], "max_text_tokens (--max-text-tokens) must be at least 1"),
        (["--device", "nonsense"], "device 'nonsense' cannot be used here"),
        (["--device", "cuda:9"], "device 'cuda:9' cannot be used here"),
        (["--device", "meta"], "device 'meta' cannot be used here"),
        (["--json", "nowhere/out.json"], "cannot write nowhere/out.json: there is no folder"),
        (["--json", "."], "cannot write .: it is a folder"),
        (["--plot", "nowhere/out.png"], "cannot write nowhere/out.png: there is no folder"),
        (["--plot", "out.txt"], "cannot draw out.txt: the name must end in .png, .pdf or .svg"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options, message, saved, capsys):
    assert refused(capsys, *arguments(saved, saved / "model", *options)).startswith(message)


@pytest.mark.parametrize(
    "options", [["--num", "many"], ["--preset", "best"], ["--dtype", "int8"], ["--nonsense"], ["--text-rows", "x"]]
)
def test_options_that_argparse_refuses(options, saved, capsys):
    outcome = mir(capsys, *arguments(saved, saved / "model", *options))
    assert outcome.code == 2 and outcome.out == "" and "usage: mir" in outcome.err


def test_a_result_that_cannot_be_written_is_not_lost(capsys, monkeypatch, tmp_path):
    np.savez(tmp_path / "a.npz", vision=V, text=T)

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "out.json"))

    (tmp_path / "out.json").write_text("of yesterday")
    monkeypatch.setattr("pathlib.Path.write_text", full)
    outcome = mir(capsys, "features", tmp_path / "a.npz", "--json", tmp_path / "out.json")
    assert outcome.code == 2 and "MIR of" in outcome.out
    said, *stored, last = outcome.err.splitlines()
    assert last == f"mir: cannot write {tmp_path / 'out.json'}: No space left on device"
    assert said == "mir: this was to be written:" and json.loads("\n".join(stored))["rows"] == {"vision": 9, "text": 8}
    assert (tmp_path / "out.json").read_text() == "of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "out.json"]


EMPTY = [
    (["score", "--pairs", ""], "--pairs"),
    (["score", "--images", "a", ""], "--images"),
    (["score", "--texts", " \t"], "--texts"),
    (["score", ""], "MODEL"),
    (["score", "--measures="], "--measures"),
    (["score", "--json", ""], "--json"),
    (["features", "a.npz", "--plot", ""], "--plot"),
    (["features", ""], "FILE"),
    (["compare", "a.json", ""], "RESULT.json"),
    (["lab", "show", "base", "--results", ""], "--results"),
]


@pytest.mark.parametrize(("arguments", "name"), EMPTY)
def test_an_unset_variable_of_the_shell_means_no_default(arguments, name, capsys):
    assert refused(capsys, *arguments).startswith(f"{name} is empty: give it a value, or leave it out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", 10**12], "1000000000000 were asked for"),
        (["-n", 10**12, "--texts", "texts.txt"], "1000000000000 images were asked for, there are 3"),
        (["-n", "9" * 5000], "argument --num/-n: expected a whole number of at most 18 digits, got 9"),
        (["-n", "1e12"], "expected a whole number of at most 18 digits, got 1e12"),
        (["--confidence", "nan"], "confidence must lie between 0 and 1, got nan"),
        (["--confidence", "x" * 5000], "argument --confidence: expected a number, got x"),
        (["--device", "\x1b[31m"], r"device '\x1b[31m' cannot be used here"),
    ],
)
def test_numbers_without_measure_are_refused_at_once(options, message, saved, capsys, monkeypatch):
    monkeypatch.chdir(saved)
    started = time.process_time()
    sentence = refused_after_usage(capsys, "score", "--no-progress", *options)
    assert message in sentence and len(sentence) < 600 and time.process_time() - started < 5


def refused_after_usage(capsys, *arguments):
    """A refusal, behind the usage where the options could not be read."""
    outcome = mir(capsys, *arguments)
    assert outcome.code == 2 and outcome.out == "" and outcome.err.splitlines()[-1].startswith("mir: ")
    return outcome.err.splitlines()[-1].removeprefix("mir: ")


# ---------------------------------------------------------------------------------------------------------------------
# Outputs


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A folder with stored hidden states, and it is the working folder."""
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", vision=V, text=T)
    return tmp_path


def test_what_cannot_be_written_is_said_before_the_measurement(stored, capsys, monkeypatch):
    monkeypatch.setattr("mirlib.cli.read_arrays", None)  # who comes so far has begun to measure
    (stored / "folder").mkdir()
    (stored / "loop.json").symlink_to("loop.json")
    (stored / "hard.npz").hardlink_to("a.npz")
    (stored / "soft.json").symlink_to("a.npz")
    (stored / "locked.json").write_text("")
    monkeypatch.setattr("mirlib.files.os.access", lambda path, _: path.name != "locked.json")  # root may write anything
    for options, message in (
        (["--json", "nowhere/r.json"], f"cannot write nowhere/r.json: there is no folder {stored / 'nowhere'}"),
        (["--json", "folder"], "cannot write folder: it is a folder"),
        (["--json", "loop.json"], "cannot write loop.json: "),
        (["--json", f"{'x' * 300}.json"], "File name too long"),
        (["--json", "locked.json"], "cannot write locked.json: the file is read-only"),
        (["--json", "/proc/r.json"], "cannot write /proc/r.json: "),
        (["--plot", "/sys/r.png"], "cannot write /sys/r.png: "),
        (["--json", "a.npz"], "cannot write a.npz: that would destroy what is to be measured (a.npz)"),
        (["--json", "hard.npz"], "cannot write hard.npz: that would destroy"),
        (["--json", "soft.json"], "cannot write soft.json: that would destroy"),
        (["--json", "r.png", "--plot", "./r.png"], "--json and --plot are the same file, r.png"),
        (["--plot", "r.gif"], "the name must end in .png, .pdf or .svg"),
    ):
        assert message in refused(capsys, "features", "a.npz", *options)
    before = ["a.npz", "folder", "hard.npz", "locked.json", "loop.json", "soft.json"]
    assert sorted(path.name for path in stored.iterdir()) == before


def test_no_input_of_a_measurement_is_overwritten(saved, capsys):
    for options in (
        ["--json", saved / "texts.txt"],
        ["--json", saved / "model" / "config.json"],
        ["--plot", saved / "images" / "0.png"],
    ):
        before = options[1].read_bytes()
        assert "that would destroy what is to be measured" in refused(
            capsys, *arguments(saved, saved / "model", *options)
        )
        assert options[1].read_bytes() == before


def test_no_picture_that_records_name_is_overwritten(saved, capsys, tmp_path):
    picture = tmp_path / "a.png"
    shutil.copy(saved / "images" / "0.png", picture)
    (tmp_path / "pairs.jsonl").write_text('{"image": "a.png", "text": "A dog."}\n')
    before = picture.read_bytes()
    command = ["score", saved / "model", "--pairs", tmp_path / "pairs.jsonl", "-n", 1, "--no-progress"]
    for option in ("--json", "--plot"):
        assert "would destroy a picture" in refused(capsys, *command, option, picture)
        assert picture.read_bytes() == before


def test_a_picture_that_is_not_there_is_left_out_in_a_second_run_too(saved, capsys, tmp_path):
    """Its first run left a file to write over, for whose sake all pictures that records name are looked at."""
    shutil.copy(saved / "images" / "0.png", tmp_path / "a.png")
    lines = [f'{{"image": "{name}.png", "text": "A dog."}}' for name in ("nowhere", "a", "elsewhere")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    command = ["score", saved / "model", "--pairs", tmp_path / "pairs.jsonl", "-n", 1, "--no-progress"]
    for _ in range(2):
        outcome = mir(capsys, *command, "--skip-unreadable", "--json", tmp_path / "r.json")
        assert outcome.code == 0 and (tmp_path / "r.json").exists(), outcome.err


def test_a_result_takes_the_place_of_an_older_one(stored, capsys):
    (stored / "elsewhere.json").write_text("older, and longer than what comes" * 200)
    (stored / "elsewhere.json").chmod(0o640)
    (stored / "r.json").symlink_to("elsewhere.json")
    assert mir(capsys, "features", "a.npz", "--json", "r.json").code == 0
    assert (stored / "r.json").is_symlink() and json.loads((stored / "elsewhere.json").read_text())["schema"] == 2
    assert (stored / "elsewhere.json").stat().st_mode & 0o777 == 0o640
    assert mir(capsys, "features", "a.npz", "--json", "/dev/null").code == 0


def test_names_reach_the_terminal_without_their_escapes(stored, capsys):
    name = "\x1b]0;title\x07.npz"
    shutil.copy("a.npz", name)
    outcome = mir(capsys, "features", name, "--json", "\x1b[31mr.json")
    assert outcome.code == 0 and "\x1b" not in outcome.out + outcome.err and r"\x1b]0;title\x07.npz" in outcome.out
    for command in (
        ["features", "\x1b.npz"],
        ["compare", "\x1b.json"],
        ["score", "\x1b/\x1b"],
        ["lab", "show", "\x1b"],
    ):
        assert r"\x1b" in refused(capsys, *command)


# ---------------------------------------------------------------------------------------------------------------------
# Models in which MIR is undefined


def test_a_model_without_vision_rows():
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    for call in (
        lambda: score(model, None, IMAGES, TEXTS, num=2),
        lambda: score_batches(model, [{"input_ids": torch.ones(1, 3, dtype=torch.long)}]),
    ):
        with pytest.raises(UndefinedMIRError, match="names no image token .* MIR is undefined for it"):
            call()


def mllama():
    return transformers.MllamaConfig(
        vision_config={
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_global_layers": 1,
            "attention_heads": 2, "vision_output_dim": 16, "image_size": 16, "patch_size": 8,
            "supported_aspect_ratios": [[1, 1]], "intermediate_layers_indices": [0],
        },
        text_config={
            "vocab_size": 700, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "cross_attention_layers": [1], "pad_token_id": 0,
        },
        image_token_index=60,
    )  # fmt: skip


def test_cross_attention_through_the_command(saved, checkpoint, capsys):
    """Llama 3.2 Vision reads its images through cross-attention layers."""
    transformers.AutoModelForImageTextToText.from_config(mllama()).save_pretrained(checkpoint)
    sentence = refused(capsys, *arguments(saved, checkpoint))
    assert (
        "mllama feeds what its encoder sees to its decoder by cross-attention layers" in sentence
        and "MIR is undefined" in sentence
    )


@pytest.mark.parametrize("config", [transformers.LlamaConfig, transformers.T5Config, transformers.CLIPConfig])
def test_models_of_another_kind_through_the_command(config, saved, checkpoint, capsys):
    (checkpoint / "config.json").write_text(config().to_json_string())
    assert "no image-text-to-text model of this type, so MIR cannot be measured" in refused(
        capsys, *arguments(saved, checkpoint)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_folders_of_training_that_are_no_checkpoints_say_what_to_do(saved, capsys, tmp_path):
    llava = {"model_type": "llava_llama", "mm_vision_tower": "clip", "mm_projector_type": "mlp2x_gelu"}
    for number, (config, file, message) in enumerate(
        [
            (None, "adapter_config.json", "an adapter alone (LoRA, PEFT)"),
            (llava, "adapter_config.json", "an adapter alone (LoRA, PEFT)"),
            (llava, "mm_projector.bin", "a projector alone, without its vision encoder"),
            (llava, "pytorch_model-00001-of-00002.bin", "convert it with convert_llava_weights_to_hf.py"),
            (llava, "model.safetensors", "(model_type llava_llama), which transformers cannot load; convert"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / file).write_text("{}")
        if config:
            (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(MirlibError) as planned:
            plan(str(folder))
        for sentence in (refused(capsys, *arguments(saved, folder)), str(planned.value)):
            assert sentence.startswith(f"{folder}: ") and message in sentence
    own_code, merged = {**llava, "auto_map": {}}, {"model_type": "llava"}
    for config, file in ((own_code, "notes.txt"), (merged, "adapter_config.json")):
        folder = tmp_path / f"with {file}"
        folder.mkdir()
        for name in ("model.safetensors", file):
            (folder / name).write_text("")
        (folder / "config.json").write_text(json.dumps(config))
        check_name(str(folder))  # what brings its own code, or has its weights beside an adapter, may do


def test_a_missing_checkpoint(saved, capsys, tmp_path):
    assert refused(capsys, *arguments(saved, tmp_path / "nowhere")) == f"no such folder: {tmp_path / 'nowhere'}"
    assert refused(capsys, *arguments(saved, "nowhere")) == "no such folder: nowhere"
    for no_checkpoint in (saved / "images", saved / "texts.txt"):
        assert "no config.json there, so it is no checkpoint folder" in refused(
            capsys, *arguments(saved, no_checkpoint)
        )


@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.999])
def test_damaged_weights(keep, saved, checkpoint, capsys):
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    sentence = refused(capsys, *arguments(saved, checkpoint))
    assert sentence.startswith(f"{checkpoint}: the weights are damaged (") and sentence.endswith("download them again")


def test_weights_that_are_missing_would_be_random(saved, checkpoint, capsys):
    dropped = []

    def drop(weights):
        for name in sorted(weights)[3:5]:
            weights.pop(name)
            dropped.append(name)

    change_weights(checkpoint, drop)
    sentence = refused(capsys, *arguments(saved, checkpoint))
    assert "the checkpoint is incomplete, 2 weights are missing" in sentence and "they would be random" in sentence
    assert any(name.rsplit(".", 2)[-2] in sentence for name in dropped)


def test_weights_of_another_shape(saved, checkpoint, capsys):
    change_config(checkpoint, lambda config: config["text_config"].update(vocab_size=900))
    assert "a weight has another shape than config.json says" in refused(capsys, *arguments(saved, checkpoint))


def test_a_missing_shard(saved, checkpoint, capsys):
    lvlm("llava")[0].save_pretrained(checkpoint, max_shard_size="40KB")
    (checkpoint / "model.safetensors").unlink(missing_ok=True)
    shard = sorted(checkpoint.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refused(capsys, *arguments(saved, checkpoint))


def test_no_weights(saved, checkpoint, capsys):
    (checkpoint / "model.safetensors").unlink()
    assert (
        refused(capsys, *arguments(saved, checkpoint))
        == f"{checkpoint}: there are no weights in the folder (*.safetensors)"
    )


def test_pickle_is_refused_until_it_is_allowed(saved, checkpoint, capsys):
    """A pickle runs what it likes when it is opened; this one would leave a file behind."""
    (checkpoint / "model.safetensors").unlink()
    torch.save(lvlm("llava")[0].state_dict(), checkpoint / "pytorch_model.bin")
    sentence = refused(capsys, *arguments(saved, checkpoint))
    assert "its weights are pickle files, which can run code" in sentence and "--allow-pickle" in sentence
    outcome = mir(capsys, *arguments(saved, checkpoint, "--allow-pickle"))
    assert outcome.code == 0, outcome.err


def test_a_malicious_pickle_runs_in_neither_case(saved, checkpoint, capsys, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (checkpoint / "model.safetensors").unlink()
    torch.save({"weight": Payload()}, checkpoint / "pytorch_model.bin")
    for options in ([], ["--allow-pickle"]):
        refused(capsys, *arguments(saved, checkpoint, *options))
        assert not (tmp_path / "owned").exists()


def test_code_in_the_checkpoint_is_not_run_unless_trusted(saved, checkpoint, capsys, tmp_path):
    (checkpoint / "theirs.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w').write('x')\n")
    change_config(
        checkpoint,
        lambda config: config.update(
            model_type="theirs", auto_map={"AutoConfig": "theirs.C", "AutoModelForImageTextToText": "theirs.M"}
        ),
    )
    sentence = refused(capsys, *arguments(saved, checkpoint))
    assert "brings its own code; pass --trust-remote-code if you trust it" in sentence
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("patterns", [["*token*"], ["*processor*"], ["*token*", "*processor*"]])
def test_a_checkpoint_without_its_processor(patterns, saved, checkpoint, capsys):
    for pattern in patterns:
        for path in checkpoint.glob(pattern):
            path.unlink()
    sentence = refused(capsys, *arguments(saved, checkpoint))
    assert sentence.startswith(f"{checkpoint}: there is no ") and "copy or download it again" in sentence
    assert ("there is no tokenizer.json" in sentence) == ("*token*" in patterns)
    assert ("there is no processor_config.json" in sentence) == ("*processor*" in patterns)


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", "{}"), ("processor_config.json", "[]")])
def test_a_file_beside_the_weights_that_is_damaged(name, content, saved, checkpoint, capsys):
    (checkpoint / name).write_text(content)
    assert refused(capsys, *arguments(saved, checkpoint)) == (
        f"{checkpoint}: {name} is damaged; copy or download it again"
    )


@pytest.mark.parametrize("content", ["{", "[]", "", '{"model_type": "nonsense"}', "\x00\x01"])
def test_a_damaged_config(content, saved, checkpoint, capsys):
    (checkpoint / "config.json").write_text(content)
    assert refused(capsys, *arguments(saved, checkpoint)).startswith(f"{checkpoint}: ")


# ---------------------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["GPU", "host"])
@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_out_of_memory_names_the_batch_size_and_what_lowers_it(error, preset):
    model, processor = lvlm("llava")

    def fail(*_):
        raise error

    model.get_decoder().layers[1].register_forward_hook(fail)
    with pytest.raises(
        MirlibError, match=r"out of memory with batch_size=2: lower batch_size \(--batch-size\)"
    ) as caught:
        score(model, processor, IMAGES, TEXTS, num=3, batch_size=2, preset=preset, progress=False)
    assert "--max-text-tokens" in str(caught.value) and "--dtype bfloat16" in str(caught.value)
    with pytest.raises(MirlibError) as caught:
        score(model.bfloat16(), processor, IMAGES, TEXTS, num=3, batch_size=1, preset=preset, progress=False)
    assert "--batch-size" not in str(caught.value) and "--dtype" not in str(caught.value), "that was done already"


def test_the_cpu_allocators_own_error_counts_as_out_of_memory():
    model, processor = lvlm("llava")

    def fail(*_):
        torch.empty(10**15)  # what PyTorch raises for this on a CPU is a plain RuntimeError

    model.get_decoder().layers[1].register_forward_hook(fail)
    with pytest.raises(MirlibError, match="out of memory with batch_size=2"):
        score(model, processor, IMAGES, TEXTS, num=3, batch_size=2, progress=False)


def test_other_errors_of_a_model_are_not_called_out_of_memory():
    model, processor = lvlm("llava")

    def fail(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.get_decoder().layers[1].register_forward_hook(fail)
    with pytest.raises(MirlibError, match=r"forward pass fails .* \(RuntimeError: mat1 and mat2 shapes cannot"):
        score(model, processor, IMAGES, TEXTS, num=3, progress=False)


def test_out_of_memory_through_the_command(saved, capsys, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "forward", fail)
    sentence = refused(capsys, *arguments(saved, saved / "model", "--batch-size", 3))
    cause = "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
    assert sentence.startswith("out of memory with batch_size=3: lower batch_size (--batch-size)") and cause in sentence


def test_an_interrupted_run_says_so(saved, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "forward", stop)
    outcome = mir(capsys, *arguments(saved, saved / "model"))
    assert outcome.code == 130 and outcome.out == "" and outcome.err.rstrip().endswith("mir: interrupted")


# ---------------------------------------------------------------------------------------------------------------------
# mir compare


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a result written by --json"),
        (b"", "not a result written by --json"),
        (b"\xff\xfe", "not a result written by --json"),
        (b"[]", "not a result of `mir score` or `mir features` (schema None)"),
        (b"3", "not a result of"),
        (b'{"schema": 99}', "(schema 99)"),
        (b'{"schema": 2}', "not a complete result: 'per_layer'"),
    ],
)
def test_files_that_are_no_results(content, message, capsys, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    sentence = refused(capsys, "compare", tmp_path / "a.json")
    assert sentence.startswith(f"{tmp_path / 'a.json'}: ") and message in sentence


def result_with(**changes):
    whole = modality_integration_rate(V, T).to_dict()
    return {key: value for key, value in (whole | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mir": "NaN"}, "'mir' must be a finite number or null, and is 'NaN'"),
        ({"mir": 10**400}, "'mir' must be a finite number or null, and is 1000"),
        ({"mir": True}, "'mir' must be a finite number or null, and is True"),
        ({"per_layer": [1.0, "2"]}, "'per_layer[1]' must be a finite number or null, and is '2'"),
        ({"per_layer": [1.0, [2.0]]}, "'per_layer[1]' must be a finite number or null, and is list"),
        ({"per_layer": 3}, "'per_layer' must be a list, and is 3"),
        ({"per_layer": []}, "it must be one a layer"),
        ({"bias": [1.0]}, "bias holds 1 numbers and per_layer 2"),
        ({"outliers": {"vision": [0, 0]}}, "outliers must name vision and text, and names ['vision']"),
        ({"outliers": {"vision": [0, -1], "text": [0, 0]}}, "'vision[1]' must be a count, and is -1"),
        ({"rows": {"vision": 2**70, "text": 1}}, "'vision' must be a count, and is 1180591620717411303424"),
        ({"rows": []}, "'rows' must be an object with keys, and is list"),
        ({"interval": 3}, "'interval' must be an object with keys, and is 3"),
        ({"interval": {"low": 1}}, "'high' is missing"),
        ({"settings": None}, "'settings' must be an object with keys, and is None"),
        ({"settings": {"images": [["a"]]}}, "'settings' must be an object of values and lists of values"),
        ({"warnings": "few rows"}, "'warnings' must be a list, and is 'few rows'"),
        ({"scale": ...}, "'scale' is missing"),
    ],
)
def test_results_that_were_changed(changes, message, capsys, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(result_with(**changes)))
    sentence = refused(capsys, "compare", tmp_path / "a.json")
    assert sentence.startswith(f"{tmp_path / 'a.json'}: not a complete result: ") and message in sentence


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "9" * 5000, '{"schema": 2, "mir": NaN}', "\ufeff{}", '{"schema": "\x1b"}']
)
def test_what_json_itself_cannot_read(content, capsys, tmp_path):
    (tmp_path / "a.json").write_text(content)
    sentence = refused(capsys, "compare", tmp_path / "a.json")
    assert sentence.startswith(f"{tmp_path / 'a.json'}: not a ") and sentence.isprintable() and len(sentence) < 400


def test_pipes_and_devices_are_not_waited_for(capsys, tmp_path):
    os.mkfifo(tmp_path / "a.json")
    assert refused(capsys, "compare", tmp_path / "a.json") == f"{tmp_path / 'a.json'}: not a file"
    assert refused(capsys, "compare", "/dev/zero") == "/dev/zero: not a file"
    os.mkfifo(tmp_path / "a.npz")
    assert refused(capsys, "features", tmp_path / "a.npz") == f"no such file: {tmp_path / 'a.npz'}"


def test_results_that_are_not_there(capsys, tmp_path):
    assert (
        refused(capsys, "compare", tmp_path / "no.json")
        == f"cannot read {tmp_path / 'no.json'}: No such file or directory"
    )
    assert refused(capsys, "compare", tmp_path) == f"cannot read {tmp_path}: Is a directory"
    assert mir(capsys, "compare").code == 2
