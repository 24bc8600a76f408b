"""Several processes that measure together: each takes its share of the samples, and all end with the same result.

They meet only between the passes, over gloo. An error in one of them is an error in all: it is written where the others
look between two batches, and all meet to learn the cause.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mirlib.errors import MirlibError, UndefinedMIRError

__all__ = ["ProcessFailedError", "Processes", "launched", "processes_of_launcher"]

# A process that died is noticed at once, by its closed connections; this is for one that is slow.
PATIENCE = timedelta(hours=6)
GRACE = 5.0  # seconds that the others wait for the process that failed to say why
_numbers = count()
_groups: dict[Any, Any] = {}


class ProcessFailedError(MirlibError):
    """Another process of the run failed, and this one ends with it.

    ``rank`` is the process that failed, None if not known; ``died`` says that it ended without a word.
    """

    def __init__(self, message: str, rank: int | None, died: bool = False) -> None:
        super().__init__(message)
        self.rank, self.died = rank, died

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.rank, self.died)


class BrokenForward(Exception):
    """An error in the middle of a forward pass in which the processes wait for each other: they cannot meet again."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def processes_of_launcher() -> tuple[int, int]:
    """``(rank, size)`` as torchrun, ``accelerate launch`` and the like set it in the environment, or ``(0, 1)``."""
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and size.isdecimal()):
        raise MirlibError(f"RANK={rank!r} and WORLD_SIZE={size!r} in the environment are no numbers of processes")
    if int(size) <= 1:
        return 0, 1
    if not int(rank) < int(size) or "RANK" not in os.environ:
        what = f"WORLD_SIZE={size} in the environment, but RANK={os.environ.get('RANK')}"
        raise MirlibError(f"{what}; start the processes with torchrun, or unset WORLD_SIZE")
    return int(rank), int(size)


@contextmanager
def launched() -> Iterator[Processes]:
    """The processes that a launcher started, joined for the time being; one process without a launcher."""
    rank, size = processes_of_launcher()
    if size == 1 or dist.is_initialized():
        yield Processes.current()
        return
    try:
        dist.init_process_group("gloo", rank=rank, world_size=size)
    except (ValueError, RuntimeError) as error:
        what = f"rank {rank} of {size} cannot join the others ({str(error).splitlines()[0]})"
        advice = "start the processes with torchrun, or set MASTER_ADDR and MASTER_PORT"
        raise MirlibError(f"{what}; {advice}") from error
    try:
        yield Processes.current()
    finally:
        _groups.clear()
        dist.destroy_process_group()


def _gloo_group() -> Any:
    """A group of all processes over gloo, apart from those that the model communicates over."""
    world = dist.group.WORLD
    if world not in _groups:
        _groups.clear()  # those of a world that is no more
        _groups[world] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _groups[world]


class Processes:
    """The ``size`` processes of a run, seen from one of them, number ``rank`` from 0."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self._group, self._store = rank, size, group, None
        if size > 1:
            # A prefix of its own: what failed in an earlier measurement is no failure of this one.
            world = dist.distributed_c10d._get_default_store()
            self._store = dist.PrefixStore(f"mirlib/{next(_numbers)}", world)

    @classmethod
    def current(cls, together: bool = True) -> Processes:
        """Those of ``torch.distributed``'s default group, all of which call this; this one alone without a group."""
        if not (together and dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), _gloo_group())

    @property
    def leads(self) -> bool:
        """Whether this is the process that shows progress, prints and writes."""
        return self.rank == 0

    def share(self, items: int) -> range:
        """The numbers of the items that this process takes: neighbours, and as many as the others or one fewer."""
        return range(self.rank * items // self.size, (self.rank + 1) * items // self.size)

    def together(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns here, once it is done everywhere; an error in one process is an error in all.

        Raises:
            ProcessFailedError: If another process failed; the message says which and why.
            Exception: What ``work`` raised here, naming this process unless all failed alike.
        """
        if self.size == 1:
            return work()
        value, problem = None, None
        try:
            value = work()
        except BrokenForward as broken:
            self._tell()
            raise self._with_rank(broken.cause) from broken.cause
        except ProcessFailedError as error:
            if error.died:
                raise
        except Exception as error:
            problem = error
            self._tell()
        found = self.gather(None if problem is None else _describe(problem))
        failed = [rank for rank, text in enumerate(found) if text is not None]
        if not failed:
            return value
        if problem is not None and len(failed) == self.size and len(set(found)) == 1:
            raise problem
        if failed[0] == self.rank:
            raise self._with_rank(problem) from problem
        raise ProcessFailedError(f"{self._name(failed[0])}: {found[failed[0]]}", failed[0]) from problem

    def check(self) -> None:
        """Stop with a `ProcessFailedError` if another process has failed; called between two batches."""
        if self.size > 1 and self._ask(lambda: self._store.check(["failed"])):
            raise ProcessFailedError("another process failed", None)

    def said(self) -> None:
        """Let the others go, once this process has said why it failed."""
        if self._store is not None:
            self._ask(lambda: self._store.set("said", "yes"))

    def wait_until_said(self) -> None:
        """Give the process that failed the time to say why: launchers end all processes when the first one ends."""
        until = time.monotonic() + GRACE
        while self._store is not None and time.monotonic() < until:
            if self._ask(lambda: self._store.check(["said"]), lost=True):
                return
            time.sleep(0.05)

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {self.size}"

    def _with_rank(self, problem: Exception) -> Exception:
        if type(problem) in (MirlibError, UndefinedMIRError):
            problem = type(problem)(f"{self._name(self.rank)}: {problem}")
        else:
            problem.add_note(f"This was in {self._name(self.rank)}.")
        problem.rank = self.rank  # told apart from what fails in all of them
        return problem

    def _tell(self) -> None:
        self._ask(lambda: self._store.compare_set("failed", "", f"{self.rank}"))

    @staticmethod
    def _ask(question: Callable[[], Any], lost: Any = False) -> Any:
        """The store's answer; ``lost`` once the process that holds the store is gone."""
        try:
            return question()
        except RuntimeError:
            return lost

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        """Where a connection breaks, say which process is gone."""
        try:
            yield
        except RuntimeError as error:  # also DistBackendError, its subclass
            missing: list[int] = []
            with suppress(RuntimeError):
                self._store.set(f"alive/{self.rank}", "yes")
                others = [f"alive/{rank}" for rank in range(self.size)]
                until = time.monotonic() + 1.0
                while time.monotonic() < until and not self._store.check(others):
                    time.sleep(0.05)
                missing = [rank for rank, name in enumerate(others) if not self._store.check([name])]
            rank = missing[0] if len(missing) == 1 else None
            who = f"rank {', '.join(map(str, missing))} of {self.size}" if missing else "one of the other processes"
            what = "ended without a word: it was killed or crashed, perhaps for want of memory"
            raise ProcessFailedError(f"{who} {what}", rank, died=True) from error

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of the ranks, in every process."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self._exchanging():
            dist.all_gather_object(found, value, group=self._group)
        return found

    def concatenate(self, values: Tensor) -> Tensor:
        """(rows, n) tensors of all processes side by side, on the CPU, by rank; each process has its own n."""
        return torch.cat(self.gather(values.detach().cpu()), dim=1)

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes, in every process, on the device of the values."""
        return torch.stack(self.gather(values.detach().cpu())).sum(dim=0).to(values.device)

    def hand_out(self, value: Any, owner: int) -> Any:
        """What the process ``owner`` has, in every process; what the others give is not looked at."""
        box = [value if owner == self.rank else None]
        with self._exchanging():
            dist.broadcast_object_list(box, src=owner, group=self._group)
        return box[0]

    def merge_moments(self, packed: Tensor, owner: int) -> Tensor | None:
        """The moments of all processes merged, in the process ``owner``; None in the others.

        They are packed, (d + 2, d) float64: scatter, mean, and the count in the corner. No process holds another's.
        """
        if self.size == 1:
            return packed
        dim = packed.shape[1]
        head = packed[dim:].cpu()  # (2, d): mean and count
        means, counts = self.concatenate(head.reshape(1, -1)).reshape(self.size, 2, dim).unbind(dim=1)
        total = counts[:, 0].sum()
        mean = (counts[:, :1] * means).sum(dim=0) / total.clamp(min=1)  # about which all scatters are summed
        shift = (head[0] - mean) * head[1, 0].sqrt()
        scatter = torch.addr(packed[:dim].cpu(), shift, shift)
        with self._exchanging():
            dist.reduce(scatter, dst=owner, group=self._group)
        if owner != self.rank:
            return None
        corner = torch.zeros(dim, dtype=packed.dtype)
        corner[0] = total
        return torch.cat([scatter, mean[None], corner[None]]).to(packed.device)


def _describe(problem: Exception) -> str:
    text = str(problem).strip()
    return text if isinstance(problem, MirlibError) else f"{type(problem).__name__}: {text}".removesuffix(": ")


def needs_all_processes(model: nn.Module) -> bool:
    """Whether the parameters are sharded by FSDP, so that all processes must call the model together; else refused."""
    meshes = [parameter.device_mesh for parameter in model.parameters() if hasattr(parameter, "device_mesh")]
    names = [name for mesh in meshes for name in getattr(mesh, "mesh_dim_names", None) or ()]
    by_fsdp = any(_is_one_of(module, "FullyShardedDataParallel", "FSDPModule") for module in model.modules())
    same_inputs, how = "mirlib.score with merge_processes=False, in every process", None
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        instead = "measure the checkpoints instead, with mirlib.score in one process"
        how = f" by DeepSpeed ZeRO-3, which is not supported: {instead}"
    elif any("tp" in name or "tensor" in name for name in names):
        how = f" by tensor parallelism, where all processes need the same inputs: {same_inputs}"
    elif meshes and not by_fsdp:
        how = f", and not by FSDP: {same_inputs}, gives all of them the same inputs"
    if how is not None:
        raise MirlibError(f"the parameters are sharded over processes{how}")
    return by_fsdp


def _is_one_of(module: nn.Module, *names: str) -> bool:
    """By name; FSDP2's ``fully_shard`` makes a module an ``FSDPModule`` besides what it is."""
    return any(kind.__name__ in names for kind in type(module).__mro__)


def reshard(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass leaves gathered: the values of before the next step."""
    for module in model.modules():
        if _is_one_of(module, "FSDPModule"):
            module.reshard()
