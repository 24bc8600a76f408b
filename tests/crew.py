"""What the processes of a distributed test do: each runs all cases in one process group, and writes what it found.

A case is a function of this module or another that takes ``(rank, size, folder)``. The modules are imported once, in
the server that forks the processes.
"""

import contextlib
import gc
import importlib
import io
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from PIL import Image
from tiny_models import FAMILIES
from tiny_processors import lvlm

from mirlib import score, score_batches
from mirlib.cli import main

PAIRS = 11
LIMIT = 900  # seconds; a hundred times what it takes on an idle core
OPTIONS = {"num": PAIRS, "batch_size": 2, "max_text_tokens": 12, "progress": False}
TWO_PASSES = {**OPTIONS, "num": 24}  # rows enough for an interval
WORDS = "red green blue square circle above below left of right two three small large".split()
LLAVA = FAMILIES[0]


def images(count=PAIRS):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


def texts(count=PAIRS):
    generator = np.random.default_rng(1)
    return [" ".join(generator.choice(WORDS, int(generator.integers(3, 12)))) for _ in range(count)]


BROKEN = (3, 7)


def write_images(folder):
    """Images as files, of which two cannot be read."""
    for number, image in enumerate(images(PAIRS + 2)):
        path = Path(folder, f"{number:02}.png")
        image.save(path)
        if number in BROKEN:
            path.write_bytes(path.read_bytes()[:60])


def files(folder):
    return [Path(folder, f"{number:02}.png") for number in range(PAIRS + 2)]


def model_in_float64():
    model, processor = lvlm()
    return model.double(), processor


def batches(count, seed=0):
    return [LLAVA.inputs(seed=seed + number) for number in range(count)]


def error_of(work):
    """The class and the message of what ``work`` raises, the notes among it, and how long it took."""
    began = time.monotonic()
    try:
        work()
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", []))
        return type(error).__name__, f"{error} {notes}".strip(), time.monotonic() - began
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The same number


def whole(rank, size, folder):
    return score(*model_in_float64(), images(), texts(), confidence=0.95, **OPTIONS)


def influences(rank, size, folder):
    """Enough rows for the derivative; the other cases have no interval."""
    return score(*model_in_float64(), images(24), texts(24), **TWO_PASSES)


def value_alone(rank, size, folder):
    return score(*model_in_float64(), images(), texts(), confidence=None, **OPTIONS)


def fewer_pairs_than_processes(rank, size, folder):
    return score(*model_in_float64(), images(), texts(), **{**OPTIONS, "num": 3})


def no_outlier_rule_not_normalised(rank, size, folder):
    return score(
        *model_in_float64(), images(), texts(), outliers="none", normalize=False, seed=2, confidence=None, **OPTIONS
    )


def unreadable_left_out(rank, size, folder):
    said = []
    found = score(
        *model_in_float64(), files(folder), texts(PAIRS + 2), skip_unreadable=said.append, paired=True, **OPTIONS
    )
    return found, said


def data_parallel(rank, size, folder):
    """Its forward pass sends buffers to the others, which would wait where the shares are unequal."""
    model, processor = model_in_float64()
    model = torch.nn.parallel.DistributedDataParallel(model)
    assert model.will_sync_module_buffers(), "a forward pass of it would not wait, so this shows nothing"
    return score(model, processor, images(), texts(), confidence=0.95, **OPTIONS)


def batches_of_ones_own(rank, size, folder):
    """Three batches and one."""
    mine = batches(4)[:3] if rank == 0 else batches(4)[3:]
    return score_batches(LLAVA.model().double(), mine if size > 1 else batches(4), progress=False)


def alone(rank, size, folder):
    """One process measures, the other does something else."""
    if rank:
        return None
    return score(*model_in_float64(), images(), texts(), merge_processes=False, **OPTIONS)


def command(rank, size, folder):
    """`mir score` as torchrun starts it, but for the process group, which is there already."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    out, err = io.StringIO(), io.StringIO()
    arguments = ["score", "-n", "5", "--max-text-tokens", "8", "--dtype", "float64", "--json", f"{folder}/{size}.json"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
        refused = main([*arguments, "--images", f"{folder}/nowhere"])
        unreadable = main([*arguments, "-n", "13", "--images", *map(str, files(folder))])
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        del os.environ[name]
    return (code, refused, unreadable), out.getvalue(), err.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Failing together


def unreadable(rank, size, folder):
    return error_of(lambda: score(*model_in_float64(), files(folder), texts(), **{**OPTIONS, "seed": 5}))


def not_finite(rank, size, folder):
    mine = batches(4)
    if rank == size - 1:
        mine[1]["pixel_values"][0] = float("nan")
        mine[1]["sample_names"] = ["broken.png", "good.png"]
    return error_of(lambda: score_batches(LLAVA.model(), mine, progress=False))


class Flaky(list):
    """Images that can be read while they are drawn, and of which one can no longer be read when it is measured."""

    reads = 0

    def __getitem__(self, index):
        self.reads += index == 2
        if index == 2 and self.reads == 2:
            raise RuntimeError("the disk is gone")
        return super().__getitem__(index)


def exception_in_one(rank, size, folder):
    return error_of(lambda: score(*model_in_float64(), Flaky(images(24)), texts(24), **TWO_PASSES))


class Broken:
    """In the place of what is made of a layer's moments between two passes."""

    @staticmethod
    def of(*args, **kwargs):
        raise RuntimeError("the maps are gone")


def maps_fail_in_one(rank, size, folder):
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:  # which makes those of layer 2
            patch.setattr("mirlib.streaming.LayerInfluence", Broken)
        return error_of(lambda: influences(rank, size, folder))


def all_alike(rank, size, folder):
    return error_of(lambda: score(*model_in_float64(), images(), texts(), **{**OPTIONS, "num": 99}))


def authors(rank, size, folder):
    return error_of(lambda: score(*model_in_float64(), images(), texts(), preset="authors", **OPTIONS))


def stopping_early(rank, size, folder):
    """The last process fails at once; how many of their two hundred batches did the others take?"""
    taken = []

    class Slow(list):
        def __iter__(self):
            for batch in list.__iter__(self):
                taken.append(batch)
                time.sleep(0.02)
                yield batch

    mine = Slow(batches(1) * 200)
    if rank == size - 1:
        mine[0] = {**mine[0], "input_ids": None}
    return *error_of(lambda: score_batches(LLAVA.model(), mine, progress=False)), len(taken)


def killed(rank, size, folder):
    class Deadly(list):
        def __iter__(self):
            for number, batch in enumerate(list.__iter__(self)):
                if rank == 1 and number == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

    return error_of(lambda: score_batches(LLAVA.model(), Deadly(batches(3)), progress=False))


# ---------------------------------------------------------------------------------------------------------------------
# Sharded models


def shard(model, generation):
    if generation == 1:
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        layer = type(model.get_decoder().layers[0])
        return FullyShardedDataParallel(
            model, auto_wrap_policy=ModuleWrapPolicy({layer}), device_id=torch.device("cpu"), use_orig_params=True
        )
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _sharded(generation):
    model, processor = model_in_float64()
    model = shard(model, generation)
    found = score(model, processor, images(24), texts(24), **{**OPTIONS, "num": 24})
    few = score(model, processor, images(), texts(), **{**OPTIONS, "num": 1})
    return found, few


def sharded_1(rank, size, folder):
    return _sharded(1)


def sharded_2(rank, size, folder):
    return _sharded(2)


def sharded_and_not_finite(rank, size, folder):
    """The process that finds it must not leave the others waiting in their forward passes."""
    mine = batches(3)
    if rank == size - 1:
        mine[1]["pixel_values"][0] = float("nan")
    return error_of(lambda: score_batches(shard(LLAVA.model(), 2), mine, progress=False))


def sharded_and_unreadable(rank, size, folder):
    model, processor = model_in_float64()
    model = shard(model, 2)
    return error_of(lambda: score(model, processor, Flaky(images(24)), texts(24), **TWO_PASSES))


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def work(rank, port, size, module, cases, folder):
    torch.set_num_threads(1)
    gc.freeze()  # or accelerate looks for garbage among all modules, at the end of each run
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    found = {}
    for name in cases:
        try:
            found[name] = getattr(importlib.import_module(module), name)(rank, size, folder)
        except Exception:  # the test shows it; the others may wait for ever otherwise
            found[name] = traceback.format_exc()
        Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))
        if name != "killed":
            dist.barrier()
    if "killed" not in cases:
        dist.destroy_process_group()


def preload():
    """PyTorch and transformers are imported once instead of once a process; before the first process of a test run."""
    multiprocessing.set_forkserver_preload(["streams", "crew", "trainers"])
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 does not tell the server where modules are
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()


def run(size, cases, folder, module="crew", allow_death=False):
    """What each process found: ``{case: [of rank 0, of rank 1, …]}``; without those that were killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    preload()
    context = torch.multiprocessing.start_processes(
        work, (port, size, module, cases, str(folder)), nprocs=size, start_method="forkserver", join=False
    )
    if allow_death:
        for process in context.processes:
            process.join(120)
    else:
        until = time.monotonic() + LIMIT
        while not context.join(1):
            if time.monotonic() > until:  # processes that wait for each other would wait for ever
                for process in context.processes:
                    process.kill()
                done = [list(pickle.loads(path.read_bytes())) for path in Path(folder).glob("*.pickle")]
                raise TimeoutError(f"the processes were not done after {LIMIT} s; each had done {done} of {cases}")
    ranks = [Path(folder, f"{rank}.pickle") for rank in range(size)]
    found = [pickle.loads(path.read_bytes()) for path in ranks if path.exists()]
    return {name: [of[name] for of in found if name in of] for name in cases}
