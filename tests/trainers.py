"""Tiny training runs: a dataset, a trainer, and what the processes of a distributed run do with `MIRCallback`."""

import copy
import os
from pathlib import Path

import torch
from crew import shard
from tiny_processors import lvlm
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from mirlib import MirlibError, score
from mirlib.callback import MIRCallback
from mirlib.data import sample_images, sample_texts

NUM = 5
IMAGES, TEXTS = list(sample_images(8)), sample_texts(8)
MEASURED = {"num": NUM, "batch_size": 2, "max_text_tokens": 30, "seed": 3}
MANY = {**MEASURED, "images": sample_images(20), "texts": sample_texts(20), "num": 20}  # enough for an interval


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


# ---------------------------------------------------------------------------------------------------------------------
# What one process of several does; see `crew`


def _launched(rank, size):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}


def standing_still(rank, size, folder):
    _launched(rank, size)
    model, processor = tiny()
    pairs = []

    def count(module, args, inputs):
        if not module.training:
            pairs.append(len(inputs["input_ids"]))

    model.register_forward_pre_hook(count, with_kwargs=True)
    trainer = trainer_for(model, folder, ddp_backend="gloo", learning_rate=1e-9, per_device_train_batch_size=2)
    options = {"every": 1, "patience": 2, "min_delta": 1e-3, **MEASURED}
    callback = MIRCallback(processor, IMAGES, TEXTS, **options).attach(trainer)
    trainer.train()
    return callback.history, trainer.state.global_step, sum(pairs)


def _refused(rank, size, folder, images, **options):
    _launched(rank, size)
    model, processor = tiny()
    trainer = trainer_for(model, folder, ddp_backend="gloo", per_device_train_batch_size=2)
    MIRCallback(processor, images, TEXTS, **{**MEASURED, **options}).attach(trainer)
    try:
        trainer.train()
    except MirlibError as error:
        return str(error)
    return None


def bad_input(rank, size, folder):
    return _refused(rank, size, folder, IMAGES, num=99)


def one_cannot_read(rank, size, folder):
    path = Path(folder, f"{rank}-cut.png")  # each its own file, so that none reads what the other is writing
    IMAGES[0].save(path)
    path.write_bytes(path.read_bytes()[:99])
    return _refused(rank, size, folder, [path, *IMAGES[1:]], num=8)


def same_bits(rank, size, folder):
    """Runs with and without the callback: weights that differ, steps measured, whether the losses are the same."""
    runs = []
    for measured in (False, True):
        _launched(rank, size)
        model, processor = tiny()
        model.model.vision_tower.requires_grad_(False)  # its last layer is not used, which DDP would wait for
        options = {"activation_checkpointing": True, "bf16": True, "max_steps": 4, "per_device_train_batch_size": 2}
        trainer = trainer_for(model, folder, ddp_backend="gloo", **options)
        if measured:
            callback = MIRCallback(processor, IMAGES, TEXTS, every=1, **MEASURED).attach(trainer)
        trainer.train()
        runs.append((model.state_dict(), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    (plain, losses), (weights, others) = runs
    differing = [name for name, values in plain.items() if not torch.equal(values, weights[name])]
    return differing, [record["step"] for record in callback.history], losses == others and len(losses) == 2


def _whole(model):
    """The weights of a sharded model, gathered."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def sharded(generation, rank, size, folder):
    """Three steps of a model that FSDP shards, with the calls that the Trainer makes, and without them."""
    runs = []
    for measured in (False, True):
        model, processor = tiny()
        model = model.double()
        plain = copy.deepcopy(model)
        model = shard(model, generation).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        callback = MIRCallback(processor, IMAGES, TEXTS, every=2, **MEASURED)
        arguments = TrainingArguments(str(folder), report_to=[], use_cpu=True, disable_tqdm=True)
        state, control = TrainerState(max_steps=3), TrainerControl()
        data = Scenes(processor.tokenizer.convert_tokens_to_ids("<image>"))
        torch.manual_seed(rank)
        if measured:
            callback.on_train_begin(arguments, state, control, model=model)
        for step in range(1, 4):
            item = {name: value[None] for name, value in data[2 * step + rank].items()}
            item["pixel_values"] = item["pixel_values"].double()
            model(**item).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            state.global_step = step
            if measured:
                callback.on_step_end(arguments, state, control, model=model)
        runs.append((_whole(model), torch.get_rng_state(), model.training))
    (before, random, _), (after, later, training) = runs
    # rank 0 alone gets the whole weights of FSDP1 in some versions: compare and measure where they are
    differing = [name for name, values in before.items() if not torch.equal(values, after[name])]
    trained = copy.deepcopy(plain)
    trained.load_state_dict(after)
    options = {"progress": False, "merge_processes": False, **MEASURED}
    by_hand = tuple(score(m, processor, IMAGES, TEXTS, **options).value for m in (plain, trained))
    return callback.history, callback.stopped, by_hand, differing, training and torch.equal(random, later)


def sharded_1(rank, size, folder):
    return sharded(1, rank, size, folder)


def sharded_2(rank, size, folder):
    return sharded(2, rank, size, folder)
