"""MIR during training: the numbers of `score`, at the right steps, in a run that does not notice."""

import copy
import os
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing
from tiny_processors import lvlm
from torch import nn
from transformers import AutoModelForImageTextToText, Trainer, TrainerCallback, TrainingArguments

import mirlib
from mirlib import MirlibError, MirlibWarning, UndefinedMIRError, score
from mirlib.callback import MIRCallback
from mirlib.data import sample_images, sample_texts

NUM = 5
IMAGES, TEXTS = list(sample_images(8)), sample_texts(8)
MEASURED = {"num": NUM, "batch_size": 2, "max_text_tokens": 30, "seed": 3}
SCALARS = ("mir", "norm_only", "null_baseline", "mean_term", "covariance_term", "norm_ratio", "seconds")


class Scenes(torch.utils.data.Dataset):
    """Sixteen pairs of noise: an image of four tokens, and eight tokens to learn by heart."""

    def __init__(self, image_token):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(20, 300, (16, 13), generator=generator)
        self.ids[:, 0], self.ids[:, 1:5] = 1, image_token
        self.pixels = torch.randn(16, 3, 16, 16, generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index], "pixel_values": self.pixels[index]}


def tiny():
    model, processor = lvlm()
    return with_dropout(model), processor


def with_dropout(model):
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2  # so that training draws random numbers
    return model


def trainer_for(model, folder, **options):
    callbacks = options.pop("callbacks", None)
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments = TrainingArguments(str(folder), **{**settings, **options})
    data = Scenes(model.config.image_token_id)
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks)


class Reporter(TrainerCallback):
    """Keeps what a reporter such as TensorBoard's is handed."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append((state.global_step, dict(logs)))


class Snapshots(TrainerCallback):
    """Keeps the model as it was after each step."""

    def __init__(self):
        self.models = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.models[0] = copy.deepcopy(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.models[state.global_step] = copy.deepcopy(model)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run of six steps, measured before it, after every other step, with a reporter beside it."""
    model, processor = tiny()
    snapshots, reporter = Snapshots(), Reporter()
    trainer = trainer_for(model, tmp_path_factory.mktemp("run"), callbacks=[snapshots, reporter])
    callback = MIRCallback(processor, IMAGES, TEXTS, every=2, confidence=0.9, **MEASURED).attach(trainer)
    trainer.train()
    return callback, trainer, snapshots, reporter, processor


# ---------------------------------------------------------------------------------------------------------------------
# The numbers


def test_the_numbers_are_those_of_score_at_that_step(run):
    callback, _, snapshots, _, processor = run
    assert [record["step"] for record in callback.history] == [0, 2, 4, 6]
    for record in callback.history:
        by_hand = score(
            snapshots.models[record["step"]], processor, IMAGES, TEXTS, confidence=0.9, progress=False, **MEASURED
        )
        assert record["mir"] == by_hand.value
        assert record["norm_only"] == by_hand.norm_only and record["null_baseline"] == by_hand.null_baseline
        assert record["mean_term"] == by_hand.mean_term.sum()
        assert record["covariance_term"] == by_hand.covariance_term.sum()
        assert record["norm_ratio"] == by_hand.norm_ratio[0]
        assert record["per_layer"] == by_hand.per_layer.tolist()
        assert (record["low"], record["high"]) == by_hand.interval[:2]
    assert callback.latest.to_json() == by_hand.to_json(), "the last result is that of score, settings included"
    assert len({record["mir"] for record in callback.history}) == 4, "nothing moved, so the test shows nothing"


def test_the_log_history_and_every_reporter_get_the_numbers(run):
    callback, trainer, _, reporter, _ = run
    entries = [entry for entry in trainer.state.log_history if "mir" in entry]
    reported = [(step, logs) for step, logs in reporter.seen if "mir" in logs]
    assert len(entries) == len(reported) == len(callback.history)
    for record, entry, (step, logs) in zip(callback.history, entries, reported, strict=True):
        assert record["step"] == entry["step"] == step
        for name in (*SCALARS, "low", "high"):
            key = name if name == "mir" else f"mir_{name}"
            assert record[name] == entry[key] == logs[key]
            assert isinstance(logs[key], float), "reporters take single numbers"
        assert entry["mir_per_layer"] == record["per_layer"] and "mir_per_layer" not in logs
        assert entry["epoch"] == logs["epoch"] == record["step"] / 4
    losses = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [2, 4, 6], "the loss is logged as without the callback"


def test_the_history_as_a_table(run):
    callback = run[0]
    frame = callback.to_frame()
    assert frame.index.tolist() == [0, 2, 4, 6] and frame.index.name == "step"
    assert frame.loc[4, "mir"] == callback.history[2]["mir"]
    assert frame.loc[6, "layer_3"] == callback.history[3]["per_layer"][2]
    assert list(frame.columns) == [
        *SCALARS[:-1], "low", "high", "seconds", "layer_1", "layer_2", "layer_3",
    ]  # fmt: skip
    assert MIRCallback(None, IMAGES, TEXTS).to_frame().empty


# ---------------------------------------------------------------------------------------------------------------------
# The run does not notice


@pytest.mark.parametrize(
    "options",
    [{}, {"activation_checkpointing": True}, {"bf16": True}, {"gradient_accumulation_steps": 2}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_a_run_with_the_callback_ends_with_the_same_bits(options, tmp_path):
    runs = []
    for measured in (False, True):
        model, processor = tiny()
        trainer = trainer_for(model, tmp_path, **options)
        if measured:
            callback = MIRCallback(processor, IMAGES, TEXTS, every=1, **MEASURED).attach(trainer)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((model, losses, torch.get_rng_state()))
    (plain, plain_losses, plain_random), (model, losses, random) = runs
    assert [record["step"] for record in callback.history] == list(range(7))
    assert losses == plain_losses and len(losses) == 3
    assert torch.equal(random, plain_random)
    for (name, before), after in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(before, after), name


class DrawingNorm(nn.Module):
    """Draws in evaluation mode, too, as a model with its own code may."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x) + 0 * torch.randn_like(x)


def test_modes_gradients_and_random_state_are_left_alone(tmp_path):
    model, processor = tiny()
    model.model.language_model.norm = DrawingNorm(model.model.language_model.norm)
    trainer = trainer_for(model, tmp_path)
    callback = MIRCallback(processor, IMAGES, TEXTS, **MEASURED).attach(trainer)
    model.train()
    model.model.vision_tower.eval()
    model.lm_head.requires_grad_(False)
    model(**{name: value[None] for name, value in trainer.train_dataset[0].items()}).loss.backward()
    before = [(m.training, [(p.requires_grad, p.grad) for p in m.parameters(recurse=False)]) for m in model.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=model)
    after = [(m.training, [(p.requires_grad, p.grad) for p in m.parameters(recurse=False)]) for m in model.modules()]
    assert len(callback.history) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert [mode for mode, _ in before] == [mode for mode, _ in after]
    for (_, earlier), (_, later) in zip(before, after, strict=True):
        assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(earlier, later, strict=True))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert gradient is None or torch.equal(parameter.grad, gradient)


# ---------------------------------------------------------------------------------------------------------------------
# When it measures


def test_without_attach_the_numbers_stay_in_the_log_history(tmp_path):
    model, processor = tiny()
    reporter = Reporter()
    callback = MIRCallback(processor, IMAGES, TEXTS, every=4, at_start=False, **MEASURED)
    trainer = trainer_for(model, tmp_path, callbacks=[reporter, callback])
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "mir" in entry]
    assert [entry["step"] for entry in entries] == [4, 6], "every fourth step, and the last one"
    assert [entry["mir"] for entry in entries] == [record["mir"] for record in callback.history]
    assert entries[0]["epoch"] == 1.0
    assert not any("mir" in logs for _, logs in reporter.seen)


def test_a_reporter_that_would_get_nothing_is_named(tmp_path):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path)
    callback = MIRCallback(processor, IMAGES, TEXTS, **MEASURED)
    trainer.args.report_to = ["tensorboard"]  # as TrainingArguments has it; the package itself is not needed
    with pytest.warns(MirlibWarning, match=r"will not reach tensorboard.*attach\(trainer\)"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=model)


def test_after_each_evaluation(tmp_path):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path, eval_strategy="steps", eval_steps=2)
    options = {"every": 3, "at_start": False, **MEASURED}
    callback = MIRCallback(processor, IMAGES, TEXTS, at_evaluation=True, **options).attach(trainer)
    assert callback.attach(trainer) is callback
    assert trainer.callback_handler.callbacks.count(callback) == 1
    trainer.train()
    assert [record["step"] for record in callback.history] == [2, 3, 4, 6], "step 6 once, though due twice"


def test_a_run_that_stands_still_is_stopped(tmp_path, caplog):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path, learning_rate=1e-9, max_steps=50)
    callback = MIRCallback(processor, IMAGES, TEXTS, every=2, patience=3, min_delta=1e-3, **MEASURED).attach(trainer)
    trainer.train()
    assert trainer.state.global_step == 6, "three changes, of which the first starts at step 0"
    assert callback.stopped.startswith("training stops after step 6: MIR moved by ")
    assert callback.stopped.endswith(" over the last 3 measurements, less than min_delta=0.001")
    assert callback.stopped in caplog.text


def test_a_run_that_moves_is_not_stopped(tmp_path):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path)
    callback = MIRCallback(processor, IMAGES, TEXTS, every=1, patience=1, min_delta=1e-6, **MEASURED).attach(trainer)
    trainer.train()
    assert trainer.state.global_step == 6 and callback.stopped is None


def test_going_there_and_back_is_no_standing_still():
    callback = MIRCallback(None, IMAGES, TEXTS, patience=2, min_delta=0.1)
    control, state = type("Control", (), {"should_training_stop": False})(), type("State", (), {"global_step": 9})()
    state.is_world_process_zero = True
    for values, stops in (((1.0, 2.0, 1.0), False), ((2.0, 1.0, 1.05), False), ((9.0, 1.0, 1.05, 1.0), True)):
        callback.history = [{"mir": value} for value in values]
        callback._stop_if_still(state, control)
        assert control.should_training_stop == stops, values


@pytest.mark.parametrize("restored", [False, True], ids=["plain", "restore_callback_states"])
def test_a_run_that_resumes_goes_on_with_its_history(restored, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": restored}
    measured = {"every": 2, "patience": 4, "min_delta": 1e-9, **MEASURED}
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path, **options)
    whole = MIRCallback(processor, IMAGES, TEXTS, **measured).attach(trainer)
    trainer.train()
    # The trainer itself does not find the weights of a LLaVA in its checkpoint, whose names are those of the hub.
    model = with_dropout(AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint-4"))
    again = trainer_for(model, tmp_path, **options)
    callback = MIRCallback(processor, IMAGES, TEXTS, **measured).attach(again)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [record["step"] for record in callback.history] == [0, 2, 4, 6]
    assert callback.history[:3] == whole.history[:3], "read from the checkpoint, seconds and all"
    assert list(callback.history[0]) == list(whole.history[0])
    assert callback.history[3]["mir"] == whole.history[3]["mir"]
    assert np.isfinite(callback.to_frame().to_numpy()).all()
    assert sum("mir" in entry for entry in again.state.log_history) == 4


# ---------------------------------------------------------------------------------------------------------------------
# Wrapped models


def test_a_model_with_lora(tmp_path):
    from peft import LoraConfig, get_peft_model

    model, processor = tiny()
    bare = score(model, processor, IMAGES, TEXTS, progress=False, **MEASURED)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    trainer = trainer_for(adapted, tmp_path, learning_rate=0.1)
    callback = MIRCallback(processor, IMAGES, TEXTS, every=3, **MEASURED).attach(trainer)
    trainer.train()
    assert callback.history[0]["mir"] == pytest.approx(bare.value, rel=1e-6), "a fresh adapter adds nothing"
    by_hand = score(adapted, processor, IMAGES, TEXTS, progress=False, **MEASURED)
    assert callback.history[-1]["mir"] == by_hand.value
    merged = score(adapted.merge_and_unload(), processor, IMAGES, TEXTS, progress=False, **MEASURED)
    assert callback.history[-1]["mir"] == pytest.approx(merged.value, rel=1e-3)
    assert abs(merged.value - bare.value) > 0.1


def test_a_model_that_is_sharded_is_refused(tmp_path):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path)
    MIRCallback(processor, IMAGES, TEXTS, **MEASURED).attach(trainer)
    model.lm_head.weight.ds_id = 7  # how DeepSpeed marks a parameter whose values lie elsewhere
    with pytest.raises(MirlibError, match="sharded over processes .* mirlib.score"):
        trainer.train()
    assert trainer.state.global_step == 0


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def train_in_process(rank, port, folder):
    """One process of two: a run that stops early, and one with bad input; what it found is written to ``folder``."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    found = []
    for measured in (MEASURED, {**MEASURED, "num": 99}):
        model, processor = tiny()
        settings = {"ddp_backend": "gloo", "learning_rate": 1e-9, "per_device_train_batch_size": 2}
        trainer = trainer_for(model, folder, **settings)
        options = {"every": 1, "patience": 2, "min_delta": 1e-3, **measured}
        callback = MIRCallback(processor, IMAGES, TEXTS, **options).attach(trainer)
        try:
            trainer.train()
            found.append((callback.history, trainer.state.global_step, callback.latest is not None))
        except MirlibError as error:
            found.append(str(error))
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


def test_the_main_process_measures_and_all_stop_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(train_in_process, (port, tmp_path), nprocs=2, start_method="spawn")
    (first, refused), (second, refused_too) = (
        pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in (0, 1)
    )
    history, steps, measured = first
    assert [record["step"] for record in history] == [0, 1, 2] and steps == 2 and measured
    assert second == (history, 2, False), "the other process has the numbers of the first, and stops with it"
    by_hand = score(*tiny(), IMAGES, TEXTS, progress=False, **MEASURED)
    assert history[0]["mir"] == pytest.approx(by_hand.value, rel=1e-6), "rows counted twice"
    assert refused == refused_too and refused.startswith("99 images were asked for, there are 8")


# ---------------------------------------------------------------------------------------------------------------------
# Bad input is refused before the first step


@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 9}, "9 images were asked for, there are 8"),
        ({"preset": "nonsense"}, "unknown preset 'nonsense'"),
        ({"text_rows": "nonsense"}, "unknown text_rows"),
        ({"max_text_tokens": None, "texts": [*TEXTS[:-1], "word " * 600] * 2, "num": 8}, "does not fit"),
        ({"texts": ["", *TEXTS]}, "a text is empty"),
        ({"images": ["no.png"] * 8}, "no such image: no.png"),
        ({"template": "nonsense"}, "template"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_ends_the_run_before_its_first_step(options, message, at_start, tmp_path):
    options = {**MEASURED, "num": 8, "images": IMAGES, "texts": TEXTS, **options}
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path)
    images, texts = options.pop("images"), options.pop("texts")
    MIRCallback(processor, images, texts, at_start=at_start, **options).attach(trainer)
    with pytest.raises(MirlibError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_model_without_vision_rows(tmp_path):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path)
    callback = MIRCallback(processor, IMAGES, TEXTS, **MEASURED)
    model.config.image_token_id = None
    with pytest.raises(UndefinedMIRError):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be at least 1 step"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"min_delta": 0}, "min_delta must be above 0"),
        ({"min_delta": float("nan")}, "min_delta must be above 0"),
        ({"confidence": 95}, "confidence must lie between 0 and 1"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(MirlibError, match=message):
        MIRCallback(None, IMAGES, TEXTS, **options)


def test_an_option_that_score_does_not_take():
    with pytest.raises(TypeError, match="nonsense"):
        MIRCallback(None, IMAGES, TEXTS, nonsense=1)


def test_importing_the_library_does_not_import_the_trainer():
    code = (
        "import sys, mirlib; early = 'transformers.trainer_callback' in sys.modules; print(early, mirlib.MIRCallback)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False <class 'mirlib.callback.MIRCallback'>\n"
    assert mirlib.MIRCallback is MIRCallback and "MIRCallback" in dir(mirlib)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mirlib.nonsense
