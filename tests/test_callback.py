"""MIR during training: the numbers of `score`, at the right steps, in a run that does not notice."""

import copy
import gc
import random
import re
import subprocess
import sys

import crew
import numpy as np
import pytest
import torch
from torch import nn
from trainers import IMAGES, MANY, MEASURED, TEXTS, tiny, trainer_for, with_dropout
from transformers import AutoModelForImageTextToText, TrainerCallback

import mirlib
from mirlib import MirlibError, MirlibWarning, UndefinedMIRError, score
from mirlib.callback import MIRCallback

SCALARS = ("mir", "norm_only", "zeroed_rows", "mean_term", "covariance_term", "norm_ratio", "seconds")


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


@pytest.fixture(scope="module", autouse=True)
def modules_are_no_garbage():
    """At the end of each run accelerate looks for garbage, among all that was ever imported: half of a run's time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run of six steps, measured before it, after every other step, with a reporter beside it."""
    model, processor = tiny()
    snapshots, reporter = Snapshots(), Reporter()
    trainer = trainer_for(model, tmp_path_factory.mktemp("run"), callbacks=[snapshots, reporter])
    callback = MIRCallback(processor, every=2, confidence=0.9, **MANY).attach(trainer)
    trainer.train()
    return callback, trainer, snapshots, reporter, processor


# ---------------------------------------------------------------------------------------------------------------------
# The numbers


def test_the_numbers_are_those_of_score_at_that_step(run):
    callback, _, snapshots, _, processor = run
    assert [record["step"] for record in callback.history] == [0, 2, 4, 6]
    for record in callback.history:
        by_hand = score(snapshots.models[record["step"]], processor, confidence=0.9, progress=False, **MANY)
        assert record["mir"] == by_hand.value
        assert record["norm_only"] == by_hand.norm_only and record["zeroed_rows"] == by_hand.zeroed_rows
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


@pytest.mark.parametrize("confidence", [None, 0.95])
def test_an_interval_only_where_it_is_asked_for_since_it_takes_a_second_pass(confidence, tmp_path):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path)
    passed = []
    model.register_forward_pre_hook(lambda *_: passed.append(1))
    options = MANY | ({} if confidence is None else {"confidence": confidence})
    callback = MIRCallback(processor, **options)
    callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=model)
    (record,) = callback.history
    assert callback.latest.passes == len(passed) / 10 == (1 if confidence is None else 2)
    assert ("low" in record) == ("high" in record) == (confidence is not None)
    if confidence is None:
        assert callback.latest.interval is None
    else:
        assert record["low"] < record["mir"] < record["high"] and callback.latest.interval.confidence == confidence
    before = len(passed)
    callback._try(model)
    assert len(passed) == before + 2, "two batches, once"


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
        trainer = trainer_for(model, tmp_path, max_steps=3, logging_steps=1, **options)
        if measured:
            callback = MIRCallback(processor, IMAGES, TEXTS, every=1, **MEASURED).attach(trainer)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((model, losses, torch.get_rng_state()))
    (plain, plain_losses, plain_random), (model, losses, random) = runs
    assert [record["step"] for record in callback.history] == list(range(4))
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


def looks(model):
    """All that a measurement might leave behind in a model and around it."""
    return {
        "checkpointing": [getattr(module, "gradient_checkpointing", None) for module in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
            for m in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
    }


def test_checkpointing_caches_hooks_and_configs_are_left_alone(tmp_path):
    model, processor = tiny()
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()  # a hook of transformers
    model.config.use_cache = model.config.text_config.use_cache = True
    model.model.vision_tower.requires_grad_(False)
    trainer = trainer_for(model.train(), tmp_path)
    callback = MIRCallback(processor, IMAGES, TEXTS, confidence=0.9, **MEASURED).attach(trainer)
    model(**{name: value[None] for name, value in trainer.train_dataset[0].items()})  # sets hooks of transformers' own
    before = looks(model)
    assert any(before["checkpointing"]) and not all(before["requires_grad"]), "nothing there that could be undone"
    callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=model)
    assert len(callback.history) == 1
    after = looks(model)
    for name, value in before.items():
        assert after[name] == value, name
    plain = score(tiny()[0], processor, IMAGES, TEXTS, progress=False, confidence=0.9, **MEASURED)
    assert callback.history[0]["mir"] == plain.value, "checkpointing changes no number"


def test_tensorboard_draws_the_curves(tmp_path):
    """What the event file holds, read back by TensorBoard's own reader."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed: pip install it"
    )
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path, report_to=["tensorboard"], max_steps=2)
    callback = MIRCallback(processor, IMAGES, TEXTS, every=1, **MEASURED).attach(trainer)
    trainer.train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = accumulator.EventAccumulator(str(folder)).Reload()
    for tag, name in (("train/mir", "mir"), ("train/mir_norm_only", "norm_only"), ("train/mir_seconds", "seconds")):
        curve = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in curve] == [0, 1, 2]
        assert [value for _, value in curve] == pytest.approx([record[name] for record in callback.history], rel=1e-6)


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


def test_attaching_twice_adds_it_once(tmp_path):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path)
    callback = MIRCallback(processor, IMAGES, TEXTS, **MEASURED).attach(trainer)
    assert callback.attach(trainer) is callback
    assert trainer.callback_handler.callbacks.count(callback) == 1


def test_a_run_that_stands_still_is_stopped(tmp_path, caplog):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path, learning_rate=1e-9, max_steps=50)
    callback = MIRCallback(processor, IMAGES, TEXTS, every=2, patience=3, min_delta=1e-3, **MEASURED).attach(trainer)
    trainer.train()
    assert trainer.state.global_step == 6, "three changes, of which the first starts at step 0"
    assert callback.stopped.startswith("training stops after step 6: MIR moved by ")
    assert callback.stopped.endswith(" over the last 3 measurements, less than min_delta=0.001")
    assert callback.stopped in caplog.text


class StopsAt(TrainerCallback):
    """As EarlyStoppingCallback does, by the same flag."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 2


def test_the_last_step_is_measured_where_something_else_stops_the_run(tmp_path):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path, max_steps=8)
    callback = MIRCallback(processor, IMAGES, TEXTS, every=5, **MEASURED).attach(trainer)
    trainer.add_callback(StopsAt())
    trainer.train()
    assert [record["step"] for record in callback.history] == [0, 2]


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


def test_a_model_that_deepspeed_shards_is_refused(tmp_path):
    model, processor = tiny()
    trainer = trainer_for(model, tmp_path)
    MIRCallback(processor, IMAGES, TEXTS, **MEASURED).attach(trainer)
    model.lm_head.weight.ds_id = 7  # how DeepSpeed marks a parameter whose values lie elsewhere
    with pytest.raises(MirlibError, match="sharded over processes by DeepSpeed ZeRO-3.* mirlib.score in one process"):
        trainer.train()
    assert trainer.state.global_step == 0


# ---------------------------------------------------------------------------------------------------------------------
# Several processes

CASES = ("standing_still", "bad_input", "one_cannot_read", "same_bits", "sharded_1", "sharded_2")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """``{case: [what the first process found, what the second found]}``"""
    return crew.run(2, CASES, tmp_path_factory.mktemp("processes"), module="trainers")


def test_the_processes_measure_together_and_stop_together(processes):
    first, second = processes["standing_still"]
    history, steps, pairs = first
    assert [record["step"] for record in history] == [0, 1, 2] and steps == 2
    assert second[:2] == (history, 2), "both have the same numbers, seconds and all, and stop at the same step"
    assert (pairs, second[2]) == (2 * 3, 3 * 3), "of five pairs two and three, once, at each of three steps"
    by_hand = score(*tiny(), IMAGES, TEXTS, progress=False, **MEASURED)
    assert history[0]["mir"] == pytest.approx(by_hand.value, rel=1e-5), "rows counted twice, or left out"


def test_a_failure_in_a_process_ends_the_run_of_all(processes):
    assert processes["bad_input"][0] == processes["bad_input"][1]
    assert processes["bad_input"][0].startswith("99 images were asked for, there are 8")
    for found in processes["one_cannot_read"]:
        assert re.match(r"rank [01] of 2: cannot read the image .*cut\.png", found), found
    assert processes["one_cannot_read"][0] == processes["one_cannot_read"][1]


def test_a_run_in_processes_ends_with_the_same_bits(processes):
    """With checkpointed activations and bfloat16 under DistributedDataParallel, measured at every step or never."""
    for differing, steps, losses in processes["same_bits"]:
        assert steps == [0, 1, 2, 3, 4] and differing == [] and losses


@pytest.mark.parametrize("generation", [1, 2])
def test_a_model_that_fsdp_shards(generation, processes):
    """The Trainer itself shards on accelerators alone, so the loop is written out; see `trainers.sharded`."""
    for history, other, by_hand, differing, untouched in processes[f"sharded_{generation}"]:
        assert [record["step"] for record in history] == [0, 2, 3]
        assert history == processes[f"sharded_{generation}"][0][0]
        assert history[0]["mir"] == pytest.approx(by_hand[0], rel=1e-9), "of the model before it was sharded"
        assert history[2]["mir"] == pytest.approx(by_hand[1], rel=1e-9), "of the weights that were trained"
        assert abs(by_hand[0] - by_hand[1]) > 1e-3, "nothing moved, so this shows nothing"
        assert other is None and differing == [] and untouched


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


def test_importing_the_library_does_not_import_what_takes_seconds():
    code = (
        "import sys, mirlib.cli; heavy = {'transformers', 'torchmetrics'}; print(heavy & {*sys.modules}); "
        "mirlib.score; print('transformers.trainer_callback' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\nFalse\n"
    assert mirlib.MIRCallback is MIRCallback and "MIRCallback" in dir(mirlib)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mirlib.nonsense
