"""A checkpoint with a method on it is measured with the method, wherever its parameters stand, or refused in words."""

import copy
import json
import re

import pytest
import torch
from command import mir, refused
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES
from tiny_processors import lvlm
from transformers import AutoProcessor

from mirlib import MirlibError, score
from mirlib.align import masks, moca, norms
from mirlib.align.saved import attached
from mirlib.data import sample_images, sample_texts
from mirlib.loading import MINIATURE, load_model

LLAVA = FAMILIES[0]
PAIRS = ("-n", "6", "--batch-size", "6", "--no-progress")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(MINIATURE)


def put_on(model, method):
    """Attach a method with parameters that do something; returns the module that saves it."""
    generator = torch.Generator().manual_seed(1)
    if method == "moca":
        moca.attach(model, std=0.3, seed=1)
    elif method == "masks":
        masks.attach(model, "vision_bidirectional")
        return masks
    else:
        made = norms.attach(model, method)
        with torch.no_grad():
            for tensor in made.state_dict().values():
                tensor += torch.rand(tensor.shape, generator=generator)
        return norms
    return moca


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize(
    "family, methods",
    [(family, ("moca", "layer_norm")) for family in FAMILIES] + [(LLAVA, ("matched",)), (LLAVA, ("masks",))],
    ids=lambda each: "_and_".join(each) if isinstance(each, tuple) else each.name,
)
def test_a_checkpoint_is_loaded_with_its_methods(family, methods, processor, tmp_path):
    """Saved with the methods on, among the weights; and beside the weights of the model without them."""
    model, inputs = family.model(), family.inputs()
    plain = logits(model, inputs)
    beside, among = tmp_path / "beside", tmp_path / "among"
    model.save_pretrained(beside)
    homes = [put_on(model, method) for method in methods]
    wanted = logits(model, inputs)
    assert not torch.allclose(wanted, plain, atol=1e-4)
    for home in homes:
        home.save(model, beside)
    model.save_pretrained(among)
    for folder in (beside, among)[: 1 if methods == ("masks",) else 2]:  # masks have no parameters
        processor.save_pretrained(folder)
        loaded, _ = load_model(str(folder))
        assert attached(loaded) == [home.__name__.rpartition(".")[2] for home in homes]
        torch.testing.assert_close(logits(loaded, inputs), wanted)
        for home in homes:
            home.detach(loaded)
        torch.testing.assert_close(logits(loaded, inputs), plain)


def test_the_command_measures_the_model_with_its_methods_and_says_so(tmp_path, capsys):
    model, processor = lvlm("llava")
    images, texts = sample_images(6), sample_texts(6)

    def value():
        return score(model, processor, images, texts, num=6, batch_size=6, progress=False).value

    def measured(name, **options):
        """The parameters of LayerNorm stand among the weights, in shards; those of MoCa beside them, too."""
        model.save_pretrained(tmp_path / name, **options)
        processor.save_pretrained(tmp_path / name)
        outcome = mir(capsys, "score", tmp_path / name, *PAIRS, "--json", tmp_path / f"{name}.json")
        assert outcome.code == 0, outcome.err
        found = json.loads((tmp_path / f"{name}.json").read_text())
        return found["mir"], found["settings"].get("methods")

    plain = value()
    assert measured("plain") == (pytest.approx(plain, abs=1e-6), None)
    put_on(model, "moca").save(model, tmp_path / "with")
    put_on(model, "layer_norm")
    changed = value()
    assert abs(changed - plain) > 0.1
    assert measured("with", max_shard_size="100KB") == (pytest.approx(changed, abs=1e-6), ["moca", "norms"])
    assert not (tmp_path / "with" / "model.safetensors").is_file()
    outcome = mir(capsys, "compare", tmp_path / "plain.json", tmp_path / "with.json")
    assert "not comparable: methods differs (none in" in outcome.out and "moca norms in" in outcome.out


def test_in_half_precision_the_parameters_are_those_that_were_saved(processor, tmp_path):
    model = LLAVA.model()
    put_on(model, "moca")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_model(str(tmp_path), dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(moca.find(loaded).u, moca.find(model).u)


def _of_a_shallower_model(folder):
    save_file({"u": torch.ones(2, 32), "v": torch.zeros(2, 32)}, folder / "moca.safetensors")


def _of_a_newer_version(folder):
    save_file({}, folder / "warp.safetensors", metadata={"mirlib": "warp"})


def _cut(folder):
    path = norms.save(_with(LLAVA.model(), "matched"), folder)
    path.write_bytes(path.read_bytes()[:-3])


def _of_another_projector(folder):
    model = LLAVA.model()
    norms.attach(model, projector="model.vision_tower")
    save_file(
        {"weight": torch.ones(32), "bias": torch.zeros(32)},
        folder / norms.FILE,
        metadata={"mirlib": "norms", "settings": json.dumps({"kind": "layer_norm", "projector": "model.nowhere"})},
    )


def _without_settings(folder):
    save_file({"weight": torch.ones(32), "bias": torch.zeros(32)}, folder / norms.FILE)


def _with_settings_that_are_a_list(folder):
    save_file({}, folder / masks.FILE, metadata={"mirlib": "masks", "settings": "[1]"})


def _of_an_unknown_variant(folder):
    save_file({}, folder / masks.FILE, metadata={"mirlib": "masks", "settings": json.dumps({"variant": "x" * 200})})


def _different_beside_and_among(folder):
    model = _with(LLAVA.model(), "moca")
    model.save_pretrained(folder)
    with torch.no_grad():
        moca.find(model).v += 1
    moca.save(model, folder)


def _not_finite_among_the_weights(folder):
    model = _with(LLAVA.model(), "layer_norm")
    with torch.no_grad():
        norms.find(model).bias[3] = torch.inf
    model.save_pretrained(folder)


def _one_of_two_among_the_weights(folder):
    _with(LLAVA.model(), "moca").save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(key for key in tensors if key.endswith("moca.v"))]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _with(model, method):
    put_on(model, method)
    return model


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (_of_a_shallower_model, "moca.safetensors holds .* belongs to another model"),
        (_of_a_newer_version, "warp.safetensors belongs to the method 'warp', which this version of mirlib does not"),
        (_cut, "norms.safetensors cannot be read: .* Save it again"),
        (_of_another_projector, "has no module 'model.nowhere'"),
        (_without_settings, "unknown kind of norm None; choose one of layer_norm, matched"),
        (_with_settings_that_are_a_list, r"masks.safetensors was not written by mirlib.align.masks.save\(\)"),
        (_of_an_unknown_variant, "masks.safetensors: unknown attention mask 'x{80}'; choose one of causal"),
        (_different_beside_and_among, "moca.safetensors and the weights beside it hold different parameters"),
        (_not_finite_among_the_weights, "multi_modal_projector: bias holds values that are not finite"),
        (_one_of_two_among_the_weights, "language_model holds .* belongs to another model"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(spoil, sentence, processor, tmp_path, capsys):
    LLAVA.model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    spoil(tmp_path)
    assert re.search(sentence, refused(capsys, "score", tmp_path, *PAIRS))


def test_files_of_others_are_passed_over(processor, tmp_path):
    model = LLAVA.model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    save_file({"x": torch.ones(2)}, tmp_path / "consolidated.safetensors", metadata={"format": "pt"})
    (tmp_path / "notes.safetensors").write_bytes(b"no tensors at all")
    assert attached(load_model(str(tmp_path))[0]) == []


@pytest.mark.parametrize("method", ["moca", "layer_norm", "matched", "masks"])
def test_saved_and_loaded_onto_a_model_that_has_one(method, tmp_path):
    model, inputs = LLAVA.model(), LLAVA.inputs()
    twin = copy.deepcopy(model)
    home = put_on(model, method)
    home.save(model, tmp_path)
    wanted = logits(model, inputs)
    {"moca": moca.attach, "masks": lambda model: masks.attach(model, "causal")}.get(method, norms.attach)(twin)
    assert not torch.equal(logits(twin, inputs), wanted)
    home.load(twin, tmp_path / home.FILE)
    assert torch.equal(logits(twin, inputs), wanted)
    home.detach(twin)
    with pytest.raises(MirlibError):
        home.save(twin, tmp_path)
    with pytest.raises(MirlibError, match=r"no file .*; .*save\(\) writes it"):
        home.load(twin, tmp_path / "nowhere")
