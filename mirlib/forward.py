"""One loop for all that reads a model: batches go through it, and the rows of each layer are handed on as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mirlib.accumulators import RowSamples
from mirlib.batches import ModelInputs
from mirlib.distributed import BrokenForward, Processes, ProcessFailedError
from mirlib.errors import MirlibError, said_by, shown
from mirlib.hidden_states import HiddenStateStream, capture, unwrap
from mirlib.mir import MODALITIES
from mirlib.prompts import disagreements
from mirlib.result import Sample

__all__ = ["ReadBatch", "Reader", "evaluating", "forward_advice", "memory_advice"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time being: dropout would give the two passes different rows."""
    training = {module for module in model.modules() if module.training}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class ReadBatch:
    """The batch that goes through the model: samples from number ``first`` on, their names, hashes and inputs.

    It does not count where a process of a sharded run repeats one while others still have some.
    """

    def __init__(self, stream: HiddenStateStream, batch: ModelInputs, first: int, counts: bool) -> None:
        self._stream, self.first, self.counts = stream, first, counts
        self.positions = stream.positions  # by modality, the (B, T) bool mask of where its rows stand in the sequences
        self.inputs, self.names, self.ids = batch.inputs, batch.names, batch.ids
        self.size = len(batch.inputs["input_ids"])

    @cached_property
    def samples(self) -> tuple[Tensor, Tensor]:
        """(r,) and (s,) numbers of the sample of each vision row and of each text row; the same in all layers."""
        return self._stream.vision_samples + self.first, self._stream.text_samples + self.first

    @cached_property
    def row_samples(self) -> RowSamples:
        """The same, as `ModalityIntegrationRate.update_layer` takes it."""
        return RowSamples(*self.samples, range(self.first, self.first + self.size))

    def name(self, number: int) -> str:
        """A sample in the words of an error message."""
        return f"sample {number}" + (f" ({shown(self.names[number - self.first], 300)})" if self.names else "")

    def name_row(self, modality: str, row: int) -> str:
        """A row likewise."""
        return f"row {row} of {self.name(int(self.samples[MODALITIES.index(modality)][row]))}"


class Reader:
    """Runs the batches through the model once and hands each layer's rows on; ``samples`` are those of the latest pass.

    ``batches``, ``text_rows`` and ``last`` are as for `score_batches`, ``processes`` measure together, each with
    batches of its own, and in ``lockstep``, since the parameters are sharded, call the model the same number of times.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        text_rows: str = "text",
        last: str = "normed",
        processes: Processes | None = None,
        lockstep: bool = False,
    ) -> None:
        # Where it need not, a process must not wait for the others in a forward pass: they have other batches, or none.
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.batches, self.text_rows, self.last = batches, text_rows, last
        self.processes, self.lockstep = processes or Processes(), lockstep
        self.processor = getattr(batches, "processor", None)  # for what its settings say about a failure
        self.samples: list[Sample] = []
        self._problem: Exception | None = None

    def _steps(self, bar: Iterable[Mapping[str, Any]]) -> Iterator[tuple[ModelInputs, bool]]:
        """Each batch, and whether it counts."""
        if not self.lockstep:
            for raw in bar:
                self.processes.check()
                yield ModelInputs.of(raw, self.model), True
            return
        # A process that has no batch left repeats one, uncounted, until all have none; and what goes wrong between two
        # forward passes, or in our own reading during one, is told to the others before the next.
        remaining, spare = iter(bar), None
        while True:
            problem, self._problem, batch = self._problem, None, None
            if problem is None:
                try:
                    raw = next(remaining, None)
                    if raw is not None:
                        spare, batch = raw, ModelInputs.of(raw, self.model)
                    elif spare is None:
                        spare = self._spare()
                except Exception as error:
                    problem = error
            states = self.processes.gather("failed" if problem is not None else "done" if batch is None else "more")
            if problem is not None:
                raise problem
            if "failed" in states:
                raise ProcessFailedError("another process failed", states.index("failed"))
            if "more" not in states:
                return
            yield ModelInputs.of(spare, self.model) if batch is None else batch, batch is not None

    def _spare(self) -> Mapping[str, Any]:
        if not hasattr(self.batches, "spare"):
            raise MirlibError("no batches here, and a model that is sharded over processes needs one in each of them")
        return self.batches.spare

    def _call(self, batch: ReadBatch) -> None:
        try:
            with forward_advice(self.model, batch.size, batch.name(batch.first), self.processor):
                self.model(**batch.inputs)
        except Exception as error:
            if self.lockstep:  # the others wait within their forward passes, and cannot be told
                raise BrokenForward(error) from error
            raise

    def _unless_lockstep(self, work: Callable[[], None]) -> None:
        """Do ``work``; in lockstep an error waits for the end of the forward pass, for which the others wait."""
        try:
            if self._problem is None:
                work()
        except Exception as error:
            if not self.lockstep:
                raise
            self._problem = error

    def run(
        self,
        on_layer: Callable[[int, Tensor, Tensor, ReadBatch], None],
        description: str,
        progress: bool,
        after_batch: Callable[[], None] = lambda: None,
    ) -> int:
        """One pass over the batches; returns the number of samples.

        ``on_layer`` is called with ``(k, vision, text, batch)``, the rows of layer k, while a batch goes through,
        ``after_batch`` after it.

        Raises:
            MirlibError: If there are no batches, a batch has no rows of a modality, or the forward pass fails.
        """
        first = offset = getattr(self.batches, "offset", 0)
        self.samples = []
        current: ReadBatch | None = None

        def hand_on(k: int, vision: Tensor, text: Tensor) -> None:
            def work() -> None:
                self._check_rows(vision, text, current)
                on_layer(k, vision, text, current)

            if current.counts:
                self._unless_lockstep(work)

        with capture(self.model, text_rows=self.text_rows, last=self.last, on_layer=hand_on) as stream:
            progress = progress and self.processes.leads
            bar = tqdm(self.batches, desc=description, unit="batch", disable=not progress, file=sys.stderr, leave=False)
            for inputs, counts in self._steps(bar):
                current = ReadBatch(stream, inputs, first, counts)
                stream.text_mask = inputs.text_mask
                self._call(current)
                self._unless_lockstep(after_batch)
                if counts:
                    first += current.size
                    names = current.names or [f"sample {number}" for number in range(current.first, first)]
                    self.samples += [Sample(name, *ids) for name, ids in zip(names, current.ids, strict=True)]
        if first == offset and self.processes.size == 1:
            raise MirlibError("there are no batches")
        return first - offset

    def _check_rows(self, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
        for modality, rows in zip(MODALITIES, (vision, text), strict=True):
            if len(rows) == 0:
                raise MirlibError(
                    f"no {modality} rows in the batch that starts at {batch.name(batch.first)}: input_ids must hold "
                    "the model's image placeholders, as its processor writes them, and text"
                    f"{_why(self.model, self.processor)}"
                )


# In whose words torch says so on a CPU, and its libraries on a GPU, in a RuntimeError.
_MEMORY_SIGNS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@contextmanager
def memory_advice(model: nn.Module, batch_size: int) -> Iterator[None]:
    """Turn "out of memory" into a sentence that says what to do, and not what was done already."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(sign in str(error) for sign in _MEMORY_SIGNS):
            raise
        ways = ["lower batch_size (--batch-size)"] if batch_size > 1 else []
        ways.append("shorten the texts (--max-text-tokens)")
        if next(model.parameters()).element_size() > 2:
            ways.append("load the model in bfloat16 (--dtype bfloat16)")
        advice = ", or ".join(ways)
        raise MirlibError(f"out of memory with batch_size={batch_size}: {advice} ({said_by(error)})") from error


@contextmanager
def forward_advice(model: nn.Module, batch_size: int, where: str, processor: Any = None) -> Iterator[None]:
    """Turn what a model raises in its forward pass into a sentence, with the settings that may be its cause."""
    try:
        with memory_advice(model, batch_size):
            yield
    except MirlibError:
        raise
    except Exception as error:
        why = _why(model, processor)
        why = why or "; its inputs must be those of the processor that belongs to it, and no picture too small"
        what = "the model's forward pass fails on the batch that starts at"
        raise MirlibError(f"{what} {where} ({said_by(error)}){why}") from error


def _why(model: nn.Module, processor: Any) -> str:
    """In which settings a model and the processor that made its batches disagree, as the end of a sentence."""
    config = getattr(unwrap(model), "config", None)
    if getattr(config, "quantization_config", None):
        return "; its weights are stored in few bits, which not every precision goes with: leave dtype (--dtype) out"
    found = "" if processor is None or config is None else disagreements(processor, config)
    return found and f"; processor and model disagree: {found}. Correct processor_config.json or config.json"
