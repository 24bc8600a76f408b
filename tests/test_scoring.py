"""MIR of whole models: the right rows, the same number however it is batched, and a model left as it was."""

import copy
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, IMAGE
from tiny_processors import BUILDERS, lvlm

from mirlib import MirlibError, MIRResult, capture, modality_integration_rate, score, score_batches, streaming
from mirlib.batches import pair_batches
from mirlib.data import draw, load_image, sample_images, sample_texts
from mirlib.hidden_states import token_masks
from mirlib.prompts import encode_batch

NUM = 8
IMAGES, TEXTS = list(sample_images(NUM)), sample_texts(NUM)
MANY = 20  # whose rows are enough for an interval
QUIET = {"progress": False, "max_text_tokens": 40}
LLAVA = FAMILIES[0]


@pytest.fixture(scope="module")
def llava():
    return lvlm("llava")


def score_llava(llava, **options):
    return score(*llava, IMAGES, TEXTS, **{"num": NUM, **QUIET, **options})


def score_many(model, processor, **options):
    return score(model, processor, sample_images(MANY), sample_texts(MANY), **{"num": MANY, **QUIET, **options})


def close(a, b, rel):
    assert a.value == pytest.approx(b.value, rel=rel)
    assert np.allclose(a.per_layer, b.per_layer, rtol=rel)
    assert a.rows == b.rows


# ---------------------------------------------------------------------------------------------------------------------
# The right rows


@pytest.mark.parametrize("family", BUILDERS)
def test_score_is_the_mir_of_the_rows_of_the_pairs(family):
    """Everything by hand, one pair at a time: what transformers returns, at the positions of image and text."""
    model, processor = lvlm(family)
    images = [IMAGES[i] for i in draw(IMAGES, 5, 3, "images")]
    texts = [TEXTS[i] for i in draw(TEXTS, 5, 4, "texts")]
    vision, text = [], []
    placeholder = model.config.image_token_id
    for image, words in zip(images, texts, strict=True):
        inputs = encode_batch(processor, [load_image(image)], [words], max_text_tokens=40)
        mask = inputs.pop("text_mask")
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states[1:]
        vision.append([layer[inputs["input_ids"] == placeholder] for layer in states])
        text.append([layer[mask] for layer in states])
    vision, text = ([torch.cat(rows) for rows in zip(*part, strict=True)] for part in (vision, text))
    expected = modality_integration_rate(vision, text)
    result = score(model, processor, IMAGES, TEXTS, num=5, seed=3, batch_size=2, **QUIET)
    close(result, expected, rel=1e-5)
    assert result.rows["vision"] == len(vision[0])


def test_after_image_takes_the_authors_rows(llava):
    """Everything after the image: template and end token included, the text itself among it, padding not."""
    model, processor = llava
    result = score_llava(llava, text_rows="after_image", template="chat")
    rows = 0
    for words in TEXTS:
        inputs = encode_batch(processor, IMAGES[:1], [words], max_text_tokens=40)
        last = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1])
        rows += inputs["input_ids"].shape[1] - last - 1
    assert result.rows["text"] == rows > score_llava(llava).rows["text"]
    assert result.settings["text_rows"] == "after_image"


def test_the_raw_last_layer_differs_in_the_last_layer_alone(llava):
    normed, raw = score_llava(llava), score_llava(llava, last="raw")
    assert np.array_equal(normed.per_layer[:-1], raw.per_layer[:-1])
    assert normed.per_layer[-1] != raw.per_layer[-1]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_batches_of_every_family(family):
    """SmolVLM's processor needs a package that is not installed; its inputs are made by hand in `tiny_models`."""
    model = family.model()
    batches = [family.inputs(seed=seed) for seed in range(4)]
    result = score_batches(model, batches, progress=False)
    assert result.num_layers == 3 and result.rows == {"vision": 8 * family.image_tokens, "text": 4 * 12}
    with torch.no_grad(), capture(model) as stream:
        parts = []
        for batch in batches:
            model(**batch)
            parts.append((stream.vision, stream.text))
    vision, text = ([torch.cat(rows) for rows in zip(*(part[i] for part in parts), strict=True)] for i in (0, 1))
    close(result, modality_integration_rate(vision, text), rel=1e-9)
    assert result.settings["model_type"] == model.config.model_type and result.settings["samples"] == 8


def test_padding_is_no_vision_even_if_it_is_made_of_placeholders():
    ids = torch.tensor([[1, IMAGE, 5, IMAGE, IMAGE]])
    vision, text = token_masks(ids, torch.tensor([[1, 1, 1, 0, 0]]), [IMAGE], [1])
    assert vision.tolist() == [[False, True, False, False, False]]
    assert text.tolist() == [[False, False, True, False, False]]


# ---------------------------------------------------------------------------------------------------------------------
# The same number


@pytest.mark.parametrize("family", BUILDERS)
def test_batch_size_and_padding_do_not_matter(family):
    model, processor = lvlm(family)
    one, three, all_at_once = (score_many(model, processor, batch_size=n) for n in (1, 3, MANY))
    for other in (three, all_at_once):
        close(other, one, rel=1e-5)
        assert other.interval.standard_error == pytest.approx(one.interval.standard_error, rel=1e-3)


def test_the_same_seed_gives_the_same_digits(llava):
    a, b, c = (score_many(*llava, seed=seed) for seed in (1, 1, 2))
    assert a.to_json() == b.to_json()
    assert a.value != c.value
    assert a.interval.low < a.value < a.interval.high and a.interval.method == "influence"


def test_global_seeds_and_random_states_are_neither_used_nor_moved(llava):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a = score_llava(llava)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    torch.manual_seed(2)
    assert score_llava(llava).value == a.value


@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_presets_agree_with_rows_in_memory(llava, preset):
    from mirlib.rows import collect_rows

    model, processor = llava
    images = [IMAGES[i] for i in draw(IMAGES, NUM, 0, "images")]
    texts = [TEXTS[i] for i in draw(TEXTS, NUM, 1, "texts")]
    rows = collect_rows(model, processor, images, texts, max_text_tokens=40)
    expected = modality_integration_rate(rows.vision, rows.text, preset=preset)
    close(score_llava(llava, preset=preset), expected, rel=1e-5)


def test_the_authors_preset_has_no_interval_and_says_what_memory_it_takes(llava, capsys):
    assert score_llava(llava, preset="authors", confidence=0.95).interval is None
    assert "keeps them all: about 0.00 GiB" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{}, {"outliers": "none"}], ids=str)
def test_one_pass_for_the_value_and_another_for_an_interval(llava, options):
    calls = []
    handle = llava[0].register_forward_hook(lambda *_: calls.append(1))
    alone = score_many(*llava, batch_size=4, confidence=None, **options)
    assert (len(calls), alone.passes, alone.interval, alone.influence) == (5, 1, None, None)
    calls.clear()
    result = score_many(*llava, batch_size=4, **options)
    handle.remove()
    assert len(calls) == 5 * result.passes == 10
    assert result.interval.confidence == 0.95, "an interval is the rule"
    assert result.value == alone.value and result.samples == alone.samples


def test_an_interval_by_influences_is_that_of_the_rows_in_memory():
    """With rows enough for the derivative, in batches and in one go; each sample by its names and hashes."""
    from mirlib.rows import collect_rows

    images, texts = list(sample_images(30)), sample_texts(30)
    model, processor = lvlm()
    result = score(model, processor, images, texts, num=30, batch_size=7, paired=True, **QUIET)
    order = draw(range(30), 30, 0, "pairs")
    rows = collect_rows(
        model, processor, [images[i] for i in order], [texts[i] for i in order], template="chat", max_text_tokens=40
    )
    held = modality_integration_rate(rows.vision, rows.text, samples=rows.samples, confidence=0.95)
    assert result.interval.method == held.interval.method == "influence" and result.warnings == ()
    assert np.allclose(result.interval[:4], held.interval[:4], rtol=1e-4)
    for side in ("vision", "text"):
        a, b = getattr(result.influence, side), getattr(held.influence, side)
        assert a.shape == (3, 30) and np.allclose(a, b, rtol=0, atol=1e-3 * np.abs(b).max())
    assert [sample.name for sample in result.samples] == [f"image {i}" for i in order]
    again = score(model, processor, images, texts, num=10, paired=True, **QUIET)
    assert set(again.samples) < set(result.samples) and len({*result.samples}) == 30


def test_one_pair_has_a_value_and_no_interval(llava):
    result = score_llava(llava, num=1)
    assert result.interval is None and result.passes == 1 and np.isfinite(result.value)
    assert "there is no interval: it needs at least 2 samples" in result.warnings
    assert score_llava(llava, num=1, preset="authors").interval is None


def test_duplicated_and_one_pixel_images(llava):
    same = [IMAGES[0]] * NUM
    result = score(*llava, same, TEXTS, num=NUM, **QUIET)
    assert np.isfinite(result.value)
    tiny = [image.resize((1, 1)) for image in IMAGES]
    assert np.isfinite(score(*llava, tiny, TEXTS, num=NUM, **QUIET).value)


def test_all_kinds_of_image_sources_are_one(llava, tmp_path):
    paths = []
    for number, image in enumerate(IMAGES):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    expected = score_llava(llava).value
    for sources in (paths, [str(path) for path in paths], [np.asarray(image) for image in IMAGES], tuple(IMAGES)):
        assert score(*llava, sources, TEXTS, num=NUM, **QUIET).value == expected


def test_progress_goes_to_stderr_alone(llava, capsys, monkeypatch):
    monkeypatch.setitem(streaming._BAR, "delay", 0)  # else a model as small as this has no third bar
    score_many(*llava, progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "pass 1 of 2: moments" in captured.err and "pass 2: interval" in captured.err
    assert "adding up" in captured.err
    score_llava(llava, progress=True, confidence=None)
    captured = capsys.readouterr()
    assert captured.out == "" and "pass 1 of 1: moments" in captured.err and "pass 2" not in captured.err
    score_llava(llava)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_result_of_a_score_survives_its_file(llava):
    result = score_llava(llava, confidence=0.9, num=np.int64(6), seed=np.int64(2))
    again = MIRResult.from_dict(json.loads(result.to_json()))
    assert again.value == result.value and again.settings["num"] == 6 and again.settings["seed"] == 2
    assert {"preset", "model_type", "dtype", "samples", "template", "max_text_tokens", "batch_size"} <= set(
        again.settings
    )


# ---------------------------------------------------------------------------------------------------------------------
# The model afterwards


def test_the_model_is_left_as_it_was(llava):
    model = copy.deepcopy(llava[0])
    model.train()
    layer = model.get_decoder().layers[1]
    layer.eval()  # a part that its owner keeps in evaluation mode
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.ones_like(parameters[1])
    foreign = layer.register_forward_hook(lambda *_: None)

    def look():
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [parameter.grad is None for parameter in model.parameters()],
            [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
            {name: value.clone() for name, value in model.state_dict().items()},
            model.config.to_dict(),
            torch.is_grad_enabled(),
        )

    def same(a, b):
        return a[:4] == b[:4] and a[5:] == b[5:] and all(torch.equal(a[4][name], b[4][name]) for name in a[4])

    before = look()
    score_llava((model, llava[1]))
    assert same(look(), before)
    with pytest.raises(MirlibError):
        score_llava((model, llava[1]), num=NUM + 1)
    broken = [{**LLAVA.inputs(), "pixel_values": torch.zeros(5)}]
    with pytest.raises(Exception):  # noqa: B017 whatever the model raises
        score_batches(model, broken, progress=False)
    assert same(look(), before), "after an error"
    foreign.remove()


def test_no_graph_is_kept(llava):
    """Gradients would hold every activation of every batch."""
    seen = []
    handle = llava[0].get_decoder().layers[0].register_forward_hook(lambda m, a, out: seen.append(out))
    score_llava(llava, num=2)
    handle.remove()
    assert not any((out[0] if isinstance(out, tuple) else out).requires_grad for out in seen)


def test_dropout_is_switched_off_and_on_again():
    config = LLAVA.config()
    config.text_config.attention_dropout = 0.5
    model = type(LLAVA.model())(config).train()
    batches = [LLAVA.inputs(seed=seed) for seed in range(3)]
    a, b = (score_batches(model, batches, progress=False).value for _ in "ab")
    assert a == b and model.training


def test_labels_and_caches_cost_nothing(llava):
    model, seen = LLAVA.model(), []
    batches = [LLAVA.inputs(seed=seed) for seed in range(3)]
    expected = score_batches(model, batches, progress=False).value
    handle = model.register_forward_pre_hook(lambda m, a, kw: seen.append(kw), with_kwargs=True)
    labelled = [{**batch, "labels": batch["input_ids"]} for batch in batches]
    assert score_batches(model, labelled, progress=False).value == expected
    handle.remove()
    assert all("labels" not in kw and kw["use_cache"] is False and kw["logits_to_keep"] == 1 for kw in seen)
    assert all("labels" in batch for batch in labelled), "the caller's batches were changed"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_precisions(llava, dtype):
    model = copy.deepcopy(llava[0]).to(dtype)
    result = score_llava((model, llava[1]))
    assert result.value == pytest.approx(score_llava(llava).value, abs=0.05)
    assert result.settings["dtype"] == str(dtype).removeprefix("torch.")


def test_wrapped_models(llava):
    expected = score_batches(LLAVA.model(), [LLAVA.inputs(seed=s) for s in range(3)], progress=False)
    wrapped = torch.nn.DataParallel(LLAVA.model())
    for preset in ("paper", "authors"):
        result = score_batches(wrapped, [LLAVA.inputs(seed=s) for s in range(3)], preset=preset, progress=False)
        assert result.settings["model_type"] == "llava"
        if preset == "paper":
            assert result.value == expected.value


# ---------------------------------------------------------------------------------------------------------------------
# Batches of one's own


def batches_of(count=4, **changes):
    return [{**LLAVA.inputs(seed=seed), **changes} for seed in range(count)]


def test_a_data_loader_is_read_twice():
    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return batches_of()[index]

    loader = torch.utils.data.DataLoader(Items(), batch_size=None)
    expected = score_batches(LLAVA.model(), batches_of(), progress=False)
    assert score_batches(LLAVA.model(), loader, progress=False).value == expected.value


@pytest.mark.parametrize("make", [iter, lambda batches: (b for b in batches), lambda batches: map(dict, batches)])
def test_generators_are_refused(make):
    with pytest.raises(MirlibError, match="batches are read twice: pass a list or a DataLoader, not a generator"):
        score_batches(LLAVA.model(), make(batches_of()), progress=False)


def test_batches_that_change_between_the_passes_are_refused():
    class Shrinking:
        left = 12

        def __iter__(self):
            self.left -= 1
            return iter(batches_of(self.left))

    with pytest.raises(MirlibError, match="a later pass saw 20 samples, the first 22; batches must not change"):
        score_batches(LLAVA.model(), Shrinking(), progress=False)

    class Random:
        seed = 0

        def __iter__(self):
            for _ in range(10):
                self.seed += 1
                yield LLAVA.inputs(seed=self.seed)

    with pytest.raises(MirlibError, match="a later pass did not see the rows of the first"):
        score_batches(LLAVA.model(), Random(), progress=False)


def test_names_in_the_place_of_sequences(llava, tmp_path):
    for images, texts in ((sample_images(2), "captions.txt"), (tmp_path, sample_texts(2))):
        with pytest.raises(MirlibError, match="expected a sequence, got one name or text; mirlib.readers.open_"):
            score(*llava, images, texts, num=2)


def test_a_batch_that_lost_its_pictures(llava):
    model, processor = llava
    batch = next(iter(pair_batches(model, processor, sample_images(2), sample_texts(2), num=2)))
    batch.pop("pixel_values")
    with pytest.raises(MirlibError, match="places for pictures and no pictures"):
        score_batches(model, [batch], confidence=None)


def test_no_batches():
    for preset in ("paper", "authors"):
        with pytest.raises(MirlibError, match="there are no batches"):
            score_batches(LLAVA.model(), [], preset=preset, progress=False)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("text", "each batch must be a dict with input_ids"),
        ({"pixel_values": torch.zeros(1)}, "each batch must be a dict with input_ids"),
        ((torch.ones(2),), "each batch must be a dict with input_ids"),
        ({"input_ids": [[1, 2]]}, r"input_ids must be a \(B, T\) integer tensor"),
        ({"input_ids": torch.tensor([1, 2])}, r"input_ids must be a \(B, T\) integer tensor"),
        ({"input_ids": torch.ones(1, 3)}, r"input_ids must be a \(B, T\) integer tensor"),
    ],
    ids=str,
)
@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_batches_that_are_none(batch, message, preset):
    with pytest.raises(MirlibError, match=message):
        score_batches(LLAVA.model(), [batch], preset=preset, progress=False)


@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_batches_without_vision_or_text_say_which_sample(preset):
    model = LLAVA.model()
    no_vision = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "sample_names": ["a.png"]}
    with pytest.raises(MirlibError, match=r"no vision rows in the batch that starts at sample 2.*image placeholders"):
        score_batches(model, [LLAVA.inputs(), no_vision], preset=preset, progress=False)
    with pytest.raises(MirlibError, match=r"sample 0 \(a.png\)"):
        score_batches(model, [no_vision], preset=preset, progress=False)
    no_text = LLAVA.inputs()
    no_text["text_mask"] = torch.zeros_like(no_text["input_ids"], dtype=torch.bool)
    with pytest.raises(MirlibError, match="no text rows in the batch that starts at sample 0"):
        score_batches(model, [no_text], preset=preset, progress=False)


def test_a_text_mask_of_ones_own():
    batches = batches_of()
    for batch in batches:
        batch["text_mask"] = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        batch["text_mask"][:, 6:8] = True
    assert score_batches(LLAVA.model(), batches, progress=False).rows["text"] == 16
    batches[0]["text_mask"] = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(MirlibError, match=r"text_mask has shape \(1, 3\)"):
        score_batches(LLAVA.model(), batches, progress=False)


@pytest.mark.parametrize(
    ("key", "wrong", "message"),
    [
        ("sample_ids", [("p", "t")], "sample_ids must be a list with a pair of strings for each of the 2 samples"),
        ("sample_ids", ["abc", "abd"], "sample_ids must be a list with a pair of strings"),
        ("sample_ids", [("p", 1), ("q", 2)], "sample_ids must be a list with a pair of strings"),
        ("sample_ids", torch.arange(4).reshape(2, 2), "sample_ids must be a list"),
        ("sample_ids", 7, "sample_ids must be a list"),
        ("sample_names", ["a.png"], "sample_names must be a list with a string for each of the 2 samples"),
        ("sample_names", "ab", "sample_names must be a list"),
        ("sample_names", [1, 2], "sample_names must be a list"),
        ("text_mask", np.ones((2, 8), dtype=bool), "text_mask must be a .B, T. bool tensor, got ndarray"),
    ],
    ids=str,
)
def test_what_a_batch_says_of_its_samples_must_fit_them(key, wrong, message):
    with pytest.raises(MirlibError, match=message):
        score_batches(LLAVA.model(), [{**batches_of()[0], key: wrong}], progress=False)


def singles():
    """The samples of `batches_of` one by one."""
    return [
        {name: value[i : i + 1] for name, value in batch.items()} for batch in batches_of() for i in range(2)
    ]  # fmt: skip


def test_samples_are_known_again_by_their_contents_or_by_ids_of_ones_own():
    model, options = LLAVA.model(), {"confidence": None, "progress": False}
    first, again = (score_batches(model, batches_of(), **options).samples for _ in "ab")
    assert first == again and len({sample.text for sample in first}) == 8
    assert [sample.name for sample in first] == [f"sample {i}" for i in range(8)]
    other = batches_of()
    other[2]["pixel_values"] = other[2]["pixel_values"] + 1
    changed = score_batches(model, other, **options).samples
    assert [a.picture == b.picture for a, b in zip(first, changed, strict=True)] == [True] * 4 + [False] * 2 + [
        True
    ] * 2
    named = [
        {**batch, "sample_ids": [("p", f"t{i}"), ("q", f"u{i}")], "sample_names": ["a.png", "b.png"]}
        for i, batch in enumerate(batches_of(2))
    ]
    assert [tuple(sample) for sample in score_batches(model, named, **options).samples] == [
        ("a.png", "p", "t0"), ("b.png", "q", "u0"), ("a.png", "p", "t1"), ("b.png", "q", "u1"),
    ]  # fmt: skip


def test_a_sample_without_rows_keeps_its_place_among_the_influences():
    """With the authors' rows a sample of text alone has none; a sample too many or too few would shift the others."""
    batches = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        batches.append({**LLAVA.inputs(seed=seed), "pixel_values": torch.randn(2, 3, 16, 16, generator=generator)})
    batches[3]["input_ids"][1, 1:5] = 7  # no image
    batches[3]["pixel_values"] = batches[3]["pixel_values"][:1]
    result = score_batches(LLAVA.model(), batches, text_rows="after_image", progress=False)
    influence = result.influence.vision + result.influence.text
    assert influence.shape == (3, 60) and len(result.samples) == 60
    assert (influence[:, 7] == 0).all() and (np.delete(influence, 7, axis=1) != 0).all()


def test_video_tokens_and_samples_of_text_alone_beside_samples_with_images():
    batch = LLAVA.inputs()
    batch["input_ids"][1, 1:5] = 7  # the second sample has no image
    batch["pixel_values"] = batch["pixel_values"][:1]
    result = score_batches(LLAVA.model(), [batch, LLAVA.inputs(seed=1)], progress=False)
    assert result.rows == {"vision": 4 + 8, "text": 12 + 4 + 12}


@pytest.mark.parametrize("name", ["text_rows", "last", "preset", "outliers"])
def test_unknown_names_list_the_choices_before_any_forward_pass(name):
    model = LLAVA.model()
    model.forward = None
    with pytest.raises(MirlibError, match="nonsense.*choose one of"):
        score_batches(model, batches_of(), progress=False, **{name: "nonsense"})


def test_sequences_longer_than_the_model_are_refused(llava):
    """Rotary positions would go on without an error, where the model was never trained."""
    model, processor = llava
    limit = model.config.get_text_config().max_position_embeddings
    word = " the"
    images, options = IMAGES[:2], {"num": 2, "progress": False}
    before_text = encode_batch(processor, images[:1], ["the"])["input_ids"].shape[1] - 1
    fits = [word * (limit - before_text)] * 2
    assert np.isfinite(score(model, processor, images, fits, **options).value)
    with pytest.raises(
        MirlibError, match=rf"a sequence of {limit + 1} tokens does not fit a model of {limit} positions"
    ):
        score(model, processor, images, [word * (limit - before_text + 1)] * 2, **options)
    # The first word has lost its blank, so that it may be two tokens: the tokenizer learns from the Python at hand.
    with pytest.raises(MirlibError, match=rf"a text of ({limit}|{limit + 1}) tokens does not fit .*--max-text-tokens"):
        score(model, processor, images, [word * limit] * 2, **options)
    with pytest.raises(MirlibError, match="does not fit"):
        score(model, processor, images, [word * 25_000] * 2, **options)
    assert np.isfinite(score(model, processor, images, [word * 25_000] * 2, max_text_tokens=30, **options).value)


# ---------------------------------------------------------------------------------------------------------------------
# Memory

MEMORY = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from tiny_processors import lvlm
    from mirlib import score
    from mirlib.data import sample_images, sample_texts
    model, processor = lvlm("llava")
    def peak(num, **options):
        score(
            model, processor, sample_images(num), sample_texts(num), num=num, batch_size=5, progress=False,
            max_text_tokens=400, **options,
        )
        # ru_maxrss would begin with the peak of the process that started this one.
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(peak(50, confidence=0.95), peak(200, confidence=0.95), peak(200, preset="authors"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from Linux's /proc")
def test_memory_does_not_grow_with_the_samples():
    """Peaks of a fresh process, in KiB; the authors' preset, which keeps all rows, shows what growth looks like."""
    program = textwrap.dedent(MEMORY).format(tests=str(Path(__file__).parent))
    found = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    small, large, keeping = (int(number) for number in found.stdout.split())
    assert large < 1.05 * small, f"{small} KiB for 50 samples, {large} KiB for 200"
    assert large - small < 0.6 * (keeping - large), f"{large - small} KiB more, where all rows are {keeping - large}"


# What processors, models and single samples do wrong.


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("num_additional_image_tokens", 0, "num_additional_image_tokens is 0 in the processor and 1 in the model"),
        (
            "vision_feature_select_strategy",
            "full",
            "vision_feature_select_strategy is full in the processor and default",
        ),
        ("patch_size", 4, "patch_size is 4 in the processor and 8 in the model"),
    ],
)
def test_settings_in_which_processor_and_model_disagree_are_named(name, value, sentence):
    model, processor = lvlm("llava")
    setattr(processor, name, value)
    with pytest.raises(MirlibError, match=rf"the model's forward pass fails on .* sample 0 .*{sentence}") as caught:
        score(model, processor, IMAGES[:2], TEXTS[:2], num=2, progress=False)
    assert isinstance(caught.value.__cause__, (ValueError, RuntimeError))


def test_a_placeholder_that_the_model_does_not_know_is_named(llava):
    model, processor = lvlm("llava")
    model.config.image_token_id = 250
    with pytest.raises(MirlibError, match="image_token_id is 3 in the processor and 250 in the model"):
        score(model, processor, IMAGES[:2], TEXTS[:2], num=2, progress=False)


def test_an_image_size_that_the_model_does_not_know_is_named():
    model, processor = lvlm("llava")
    processor.image_processor.size = {"shortest_edge": 24}
    processor.image_processor.crop_size = {"height": 24, "width": 24}
    with pytest.raises(MirlibError, match="the image size is 24 in the processor and 16 in the model"):
        score(model, processor, IMAGES[:2], TEXTS[:2], num=2, progress=False)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("The tensor has a non-zero number of elements, but its data is not allocated yet."), False),
        (RuntimeError("allocator was not initialised"), False),
        (KeyError("alloc"), False),
    ],
)
def test_only_memory_that_ran_out_gives_advice_about_memory(error, said):
    model, processor = lvlm("llava")

    def fail(*_):
        raise error

    model.get_decoder().layers[0].register_forward_pre_hook(fail)
    with pytest.raises(MirlibError) as caught:
        score(model, processor, IMAGES[:2], TEXTS[:2], num=2, batch_size=1, progress=False)
    sentence = str(caught.value)
    assert sentence.startswith("out of memory with batch_size=1: shorten") is said
    assert said or f"({type(error).__name__}: {error})" in sentence
    assert "--batch-size" not in sentence, "advice that was taken already"


def narrow(*sizes):
    return [IMAGES[0].resize(size) for size in sizes]


@pytest.mark.parametrize("paired", [False, True])
def test_a_picture_that_the_processor_refuses_is_left_out_and_named(paired):
    """Qwen2-VL's own limit: no picture 200 times as long as it is wide."""
    model, processor = lvlm("qwen2_vl")
    images = narrow((40, 40), (900, 4), (48, 32), (3, 700), (32, 32))
    texts = TEXTS[:5]
    with pytest.raises(MirlibError, match=r"image \d: .*aspect ratio must be smaller than 200"):
        score(model, processor, images, texts, num=5, paired=paired, progress=False)
    skipped = []
    options = {"paired": paired, "progress": False, "skip_unreadable": skipped.append}
    result = score(model, processor, images, texts, num=3, **options)
    assert result.settings["samples"] == 3
    score(model, processor, images, texts, num=3, seed=3, **options)
    assert {sentence[:8] for sentence in skipped} == {"image 1:", "image 3:"}
    with pytest.raises(MirlibError, match="4 (images|pairs) were asked for, there are 5, 3 of them usable"):
        score(model, processor, images, texts, num=4, **options)


def test_texts_that_cannot_be_used_are_left_out_and_named(llava):
    model, processor = llava
    limit = model.config.get_text_config().max_position_embeddings
    wrong = ["see <image>", " the" * limit, "\ud83d", "The dog. " * 1_000_000]
    skipped = []
    texts = [*TEXTS[:2], *wrong]
    score(model, processor, IMAGES[:2], texts, num=2, seed=1, progress=False, skip_unreadable=skipped.append)
    with pytest.raises(MirlibError, match="6 texts were asked for, there are 6, 2 of them usable"):
        score(model, processor, IMAGES[:6], texts, num=6, progress=False, skip_unreadable=skipped.append)
    for said in (
        "placeholder '<image>'",
        rf"a text of ({limit}|{limit + 1}) tokens",
        "half a surrogate",
        " or more tokens does not fit",
    ):
        assert any(re.search(said, sentence) for sentence in skipped), said


def test_a_fault_of_the_processor_is_said_once_and_not_of_every_picture():
    model, processor = lvlm("llava")
    processor.patch_size = None
    skipped = []
    with pytest.raises(MirlibError, match="LlavaProcessor cannot prepare its inputs .*lack patch_size"):
        score(model, processor, IMAGES[:2], TEXTS[:2], num=2, progress=False, skip_unreadable=skipped.append)
    assert not skipped


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_template_that_was_used_is_recorded(batch_size):
    model, processor = lvlm("llava")
    options = {"num": 4, "batch_size": batch_size, "progress": False}
    plain = score(model, processor, IMAGES[:4], TEXTS[:4], template="plain", **options)
    chat = score(model, processor, IMAGES[:4], TEXTS[:4], **options)
    processor.chat_template = None
    none = score(model, processor, IMAGES[:4], TEXTS[:4], **options)
    assert [each.settings["template"] for each in (plain, chat, none)] == ["plain", "chat", "plain"]
    assert none.value == plain.value != chat.value
