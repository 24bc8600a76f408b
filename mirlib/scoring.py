"""MIR of a model: hidden states from `mirlib.hidden_states`, streamed into `mirlib.streaming`, with progress."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from mirlib.align.saved import attached
from mirlib.data import draw, load_image
from mirlib.distributed import BrokenForward, Processes, ProcessFailedError, needs_all_processes, reshard
from mirlib.errors import MirlibError, said_by, shown
from mirlib.frechet import TRACE_METHODS
from mirlib.hidden_states import LAST_LAYER, TEXT_ROWS, capture, decoder_parts, token_masks, unwrap
from mirlib.mir import MODALITIES, modality_integration_rate, resolve_settings
from mirlib.prompts import check_text, disagreements, encode_batch, first_tokens, name_of, used_template
from mirlib.result import MIRResult
from mirlib.streaming import FiniteChecks, ModalityIntegrationRate, RowGroups

__all__ = ["score", "score_batches"]

RESERVED = ("text_mask", "sample_groups", "sample_names")
DEFAULT_GROUPS = 20
ANY_TEXT = "Any text."


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


def _device(model: nn.Module) -> torch.device:
    """Where inputs go: the device of the first parameter (of the embeddings, for a model spread over devices)."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else model
    device = next(iter(embeddings.parameters()), next(model.parameters())).device
    if device.type == "meta" and hasattr(embeddings, "_hf_hook"):  # accelerate brings these weights when they are used
        return torch.device(embeddings._hf_hook.execution_device)
    return device


def _positions_of(model: nn.Module) -> int | None:
    """The longest sequence that the language model was made for, if its config says so."""
    config = getattr(unwrap(model), "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(config, "max_position_embeddings", None)


def _too_long(length: int, limit: int) -> str:
    return (
        f"a sequence of {length} tokens does not fit a model of {limit} positions; cut texts with max_text_tokens "
        "(--max-text-tokens), or take smaller images"
    )


@dataclass
class ModelInputs:
    """A batch taken apart: what the model gets, and our own keys.

    Attributes:
        inputs: Keyword arguments of the model, on its device and in its precision.
        text_mask: (B, T) bool, the text rows, or None.
        groups: (B,) jackknife group of each sample, or None.
        names: B names of the samples for error messages, or None.
    """

    inputs: dict[str, Any]
    text_mask: Tensor | None
    groups: Tensor | None
    names: Sequence[str] | None

    @classmethod
    def of(cls, batch: Mapping[str, Any], model: nn.Module) -> ModelInputs:
        """Take our own keys out, move the rest to the model, and leave out what only costs memory here."""
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise MirlibError("each batch must be a dict with input_ids that model(**batch) takes")
        ids = batch["input_ids"]
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
            raise MirlibError("input_ids must be a (B, T) integer tensor")
        limit = _positions_of(model)
        if limit is not None and ids.shape[1] > limit:
            raise MirlibError(_too_long(ids.shape[1], limit))
        inputs = {name: value for name, value in batch.items() if name not in (*RESERVED, "labels")}
        device = _device(model)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                inputs[name] = value.to(device, dtype if value.is_floating_point() else value.dtype)
        inner = unwrap(model)
        if hasattr(inner, "get_base_model"):  # PEFT's wrapper takes any keyword and hands it on
            inner = inner.get_base_model()
        accepted = signature(inner.forward).parameters
        inputs.setdefault("use_cache", False)
        if "logits_to_keep" in accepted:  # (B, T, vocabulary) logits would be larger than all hidden states of a layer
            inputs.setdefault("logits_to_keep", 1)
        if "use_cache" not in accepted and not any(p.kind == p.VAR_KEYWORD for p in accepted.values()):
            inputs.pop("use_cache")
        groups = batch.get("sample_groups")
        groups = None if groups is None else torch.as_tensor(groups)
        return cls(inputs, batch.get("text_mask"), groups, batch.get("sample_names"))


class _Forward:
    """Runs the batches through the model once and hands every layer's rows on.

    Args:
        model: The model.
        batches: As for `score_batches`.
        text_rows: As for `score_batches`.
        last: As for `score_batches`.
        processes: Those that measure together, each with batches of its own.
        lockstep: Whether all of them must call the model the same number of times, since its parameters are sharded.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        text_rows: str,
        last: str,
        processes: Processes,
        lockstep: bool = False,
    ) -> None:
        # Where it need not, a process must not wait for the others in a forward pass: they have other batches, or none.
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.batches, self.text_rows, self.last = batches, text_rows, last
        self.processes, self.lockstep = processes, lockstep
        self.processor = getattr(batches, "processor", None)  # for what its settings say about a failure
        self._problem: Exception | None = None

    def _steps(self, bar: Iterable[Mapping[str, Any]]) -> Iterator[tuple[ModelInputs, bool]]:
        """Each batch, and whether it counts.

        In lockstep a process that has no batch left repeats one, uncounted, until all have none; and what goes wrong
        between two forward passes, or in our own reading during one, is told to the others before the next.
        """
        if not self.lockstep:
            for raw in bar:
                self.processes.check()
                yield ModelInputs.of(raw, self.model), True
            return
        remaining, spare = iter(bar), None
        while True:
            problem, batch = self._problem, None
            self._problem = None
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

    def _call(self, batch: ModelInputs, first: int) -> None:
        where = f"sample {first}" + (f" ({shown(batch.names[0], 300)})" if batch.names else "")
        try:
            with forward_advice(self.model, len(batch.inputs["input_ids"]), where, self.processor):
                self.model(**batch.inputs)
        except Exception as error:
            if self.lockstep:  # the others wait within their forward passes, and cannot be told
                raise BrokenForward(error) from error
            raise

    def _unless_lockstep(self, work: Callable[[], None]) -> None:
        """Do ``work``; in lockstep an error waits for the end of the forward pass, for which the others wait."""
        if self._problem is not None:
            return
        try:
            work()
        except Exception as error:
            if not self.lockstep:
                raise
            self._problem = error

    def run(
        self,
        on_layer: Callable[..., None],
        groups: int,
        description: str,
        progress: bool,
        after_batch: Callable[[], None] = lambda: None,
    ) -> int:
        """One pass; returns the number of samples.

        It calls ``on_layer(k, vision, text, groups, name_row)`` while a batch runs, and ``after_batch()`` after it.
        """
        offset = getattr(self.batches, "offset", 0)
        samples = offset
        current: dict[str, Any] = {}

        def hand_on(k: int, vision: Tensor, text: Tensor) -> None:
            def work() -> None:
                self._check_rows(vision, text, current["first"], current["names"])
                group_ids = tuple(current["groups"][index] for index in current["index"]())
                on_layer(k, vision, text, group_ids, current["name_row"])

            if current["counts"]:
                self._unless_lockstep(work)

        with capture(self.model, text_rows=self.text_rows, last=self.last, on_layer=hand_on) as stream:

            def name_row(modality: str, row: int) -> str:
                index = (stream.vision_samples, stream.text_samples)[MODALITIES.index(modality)][row]
                names = current["names"]
                return f"row {row} of sample {current['first'] + int(index)}" + (f" ({names[index]})" if names else "")

            progress = progress and self.processes.leads
            bar = tqdm(self.batches, desc=description, unit="batch", disable=not progress, file=sys.stderr, leave=False)
            for number, (batch, counts) in enumerate(self._steps(bar)):
                size = batch.inputs["input_ids"].shape[0]
                assigned = torch.full((size,), number % groups) if batch.groups is None else batch.groups % groups
                current |= {
                    "counts": counts,
                    "first": samples,
                    "names": batch.names,
                    "groups": assigned.to(batch.inputs["input_ids"].device),
                    "index": lambda: (stream.vision_samples, stream.text_samples),
                    "name_row": name_row,
                }
                stream.text_mask = batch.text_mask
                self._call(batch, samples)
                self._unless_lockstep(after_batch)
                samples += size * counts
        if samples == offset and self.processes.size == 1:
            raise MirlibError("there are no batches")
        return samples - offset

    def _check_rows(self, vision: Tensor, text: Tensor, first: int, names: Sequence[str] | None) -> None:
        for modality, rows in zip(MODALITIES, (vision, text), strict=True):
            if len(rows) == 0:
                raise MirlibError(
                    f"no {modality} rows in the batch that starts at sample {first}"
                    + (f" ({names[0]})" if names else "")
                    + ": input_ids must hold the model's image placeholders, as its processor writes them, and text"
                    + _why(self.model, self.processor)
                )


@contextmanager
def memory_advice(model: nn.Module, batch_size: int) -> Iterator[None]:
    """Turn "out of memory" into a sentence that says what to do, and not what was done already."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _is_memory(error):
            raise
        ways = ["lower batch_size (--batch-size)"] if batch_size > 1 else []
        ways.append("shorten the texts (--max-text-tokens)")
        if next(model.parameters()).element_size() > 2:
            ways.append("load the model in bfloat16 (--dtype bfloat16)")
        raise MirlibError(
            f"out of memory with batch_size={batch_size}: {', or '.join(ways)} ({said_by(error)})"
        ) from error


def _is_memory(error: Exception) -> bool:
    """Whether memory ran out; torch says so on a CPU, and its libraries on a GPU, in the words of a RuntimeError."""
    signs = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in signs)


@contextmanager
def forward_advice(model: nn.Module, batch_size: int, where: str, processor: Any = None) -> Iterator[None]:
    """Turn what a model raises in its forward pass into a sentence, with the settings that may be its cause."""
    try:
        with memory_advice(model, batch_size):
            yield
    except (MirlibError, ProcessFailedError):
        raise
    except Exception as error:
        raise MirlibError(
            f"the model's forward pass fails on the batch that starts at {where} ({said_by(error)})"
            + (
                _why(model, processor)
                or "; its inputs must be those of the processor that belongs to it, and no picture too small"
            )
        ) from error


def _why(model: nn.Module, processor: Any) -> str:
    """In which settings a model and the processor that made its batches disagree, as the end of a sentence."""
    config = getattr(unwrap(model), "config", None)
    if getattr(config, "quantization_config", None):
        return "; its weights are stored in few bits, which not every precision goes with: leave dtype (--dtype) out"
    found = "" if processor is None or config is None else disagreements(processor, config)
    return found and f"; processor and model disagree: {found}. Correct processor_config.json or config.json"


def score_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    preset: str = "paper",
    outliers: str | None = None,
    normalize: bool = True,
    text_rows: str = "text",
    last: str = "normed",
    confidence: float | None = None,
    groups: int = DEFAULT_GROUPS,
    trace: str = "exact",
    merge_processes: bool = True,
    progress: bool = True,
) -> MIRResult:
    """MIR of a model over your own batches, in constant memory.

    Args:
        model: A Hugging Face LVLM whose vision tokens enter the decoder's sequence. It is put into evaluation mode for
            the time being and left as it was.
        batches: Re-iterable (a list, a DataLoader without shuffling): dicts that ``model(**batch)`` takes, with
            ``input_ids``. Optional keys of ours: ``text_mask`` (B, T) bool, the text rows; ``sample_groups`` (B,) int,
            the jackknife group of each sample (default: by batch); ``sample_names``, B strings for error messages.
            Without ``text_mask`` every attended position that is neither vision nor a special token of the config is
            text.
        preset: See `modality_integration_rate`. The authors' presets keep every row in memory; how much is said first.
        outliers: Overrides the preset.
        normalize: Whether to apply the text-centric scale.
        text_rows: ``"text"``, or ``"after_image"`` for the authors' choice.
        last: ``"normed"`` or ``"raw"``; see `capture`.
        confidence: For example 0.95, for an interval over samples: a jackknife over ``groups`` groups, or with the
            authors' exact preset a bootstrap.
        groups: Number of jackknife groups; their moments take ``2 K groups (d + 2) d · 8`` bytes.
        trace: Route to the trace term, ``"exact"`` or, for GPUs, ``"polar"``; see `mirlib.frechet.trace_term`.
        merge_processes: In a distributed run (``torch.distributed`` is initialised), whether the batches of all
            processes count together, each process with its share; every process must then call this, gets the same
            result, and fails with an error that says where and why if another fails. A model that is sharded by FSDP
            needs this, and at least one batch in each process. False measures the batches of this process alone.
        progress: Whether to show bars on stderr.

    Returns:
        `MIRResult`.

    Raises:
        UndefinedMIRError: If MIR is undefined for the model.
        MirlibError: For values that are not finite (naming layer, modality and sample), batches without vision or text
            rows, batches that cannot be iterated twice, or too little memory.
    """
    if isinstance(batches, Iterator):
        raise MirlibError("batches are read twice: pass a list or a DataLoader, not a generator or an iterator")
    for name, value, allowed in (
        ("text_rows", text_rows, TEXT_ROWS),
        ("last", last, LAST_LAYER),
        ("trace", trace, TRACE_METHODS),
    ):
        if value not in allowed:
            raise MirlibError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
    chosen = resolve_settings(preset, outliers, None)
    parts = decoder_parts(model)
    processes = Processes.current(merge_processes)
    in_memory = chosen.outliers == "median" or chosen.sqrt != "exact"
    if in_memory and trace != "exact":
        raise MirlibError(
            f"trace={trace!r} is for moments, and preset {preset!r} keeps the rows; leave one of them out"
        )
    if in_memory and processes.size > 1:
        raise MirlibError(
            f"preset {preset!r} takes medians over all rows, which must be in the memory of one process, and there are "
            f"{processes.size}: run it in one process, or pass merge_processes=False"
        )
    lockstep = processes.size > 1 and needs_all_processes(model)
    forward = _Forward(model, batches, text_rows, last, processes, lockstep)
    with evaluating(model):
        try:
            if in_memory:
                result, samples = _score_in_memory(forward, preset, outliers, normalize, confidence, progress)
            else:
                result, samples = _score_streaming(
                    forward, len(parts.layers), preset, outliers, normalize, confidence, groups, trace, progress
                )
        finally:
            if lockstep:
                reshard(model)
    settings = {**result.settings, "text_rows": text_rows, "last": last, "samples": samples, **_describe(model)}
    if processes.size > 1:
        settings["processes"] = processes.size
    return replace(result, settings=settings)


def _score_streaming(
    forward: _Forward,
    num_layers: int,
    preset: str,
    outliers: str | None,
    normalize: bool,
    confidence: float | None,
    groups: int,
    trace: str,
    progress: bool,
) -> tuple[MIRResult, int]:
    processes = forward.processes
    metric: ModalityIntegrationRate | None = None

    def metric_of(dim: int) -> ModalityIntegrationRate:
        return ModalityIntegrationRate(
            num_layers,
            dim,
            preset=preset,
            outliers=outliers,
            normalize=normalize,
            groups=groups if confidence is not None else 1,
            confidence=confidence,
            trace=trace,
            distributed_available_fn=lambda: False,  # the processes meet where all of them know that they do
        )

    row_groups: tuple[RowGroups, RowGroups] | None = None
    checks = FiniteChecks()

    def on_layer(k: int, vision: Tensor, text: Tensor, group_ids: Any, name_row: Callable[[str, int], str]) -> None:
        nonlocal metric, row_groups
        if metric is None:
            metric = metric_of(vision.shape[1])
        if k == 1:
            row_groups = tuple(RowGroups(ids) for ids in group_ids)
        metric.update_layer(k, vision, text, groups=row_groups, name_row=name_row, checks=checks)

    def run(description: str) -> int:
        return processes.together(
            lambda: forward.run(on_layer, group_count, description, progress, after_batch=checks.settle)
        )

    group_count = groups if confidence is not None else 1
    one_pass = resolve_settings(preset, outliers, None).outliers == "none"
    samples = run("pass 1 of 1" if one_pass else "pass 1 of 2: norms")
    found = processes.gather((samples, None if metric is None else metric.dim))
    if metric is None:  # this process has no samples
        dim = next((dim for _, dim in found if dim is not None), None)
        if dim is None:
            raise MirlibError("there are no batches")
        metric = metric_of(dim)
    if not one_pass:
        metric.begin_second_pass(processes)
        again = run("pass 2 of 2: moments")

        def check() -> None:
            if again != samples:
                raise MirlibError(f"the second pass saw {again} samples, the first {samples}; batches must not change")

        processes.together(check)
    return metric.result(processes, progress=progress), sum(seen for seen, _ in found)


def _score_in_memory(
    forward: _Forward,
    preset: str,
    outliers: str | None,
    normalize: bool,
    confidence: float | None,
    progress: bool,
) -> tuple[MIRResult, int]:
    _announce_memory(forward, preset)
    rows: dict[tuple[str, int], list[Tensor]] = {}
    ids: dict[str, list[Tensor]] = {modality: [] for modality in MODALITIES}
    seen = 0

    def on_layer(k: int, vision: Tensor, text: Tensor, sample_ids: Any, name_row: Callable[[str, int], str]) -> None:
        for modality, values, samples in zip(MODALITIES, (vision, text), sample_ids, strict=True):
            rows.setdefault((modality, k), []).append(values.cpu())
            if k == 1:
                ids[modality].append(samples.cpu())

    class Numbered:
        """The batches again, with each sample in a group of its own, so that the rows know their sample."""

        processor = forward.processor

        def __iter__(self) -> Iterator[Mapping[str, Any]]:
            nonlocal seen
            seen = 0
            for batch in forward.batches:
                size = len(batch["input_ids"])
                yield {**batch, "sample_groups": torch.arange(seen, seen + size)}
                seen += size

        def __len__(self) -> int:
            return len(forward.batches)

    samples = _Forward(forward.model, Numbered(), forward.text_rows, forward.last, forward.processes).run(
        on_layer, sys.maxsize, "pass 1 of 1: rows", progress
    )
    layers = max(k for _, k in rows)
    stacked = {modality: [torch.cat(rows.pop((modality, k))) for k in range(1, layers + 1)] for modality in MODALITIES}
    result = modality_integration_rate(
        stacked["vision"],
        stacked["text"],
        preset=preset,
        outliers=outliers,
        normalize=normalize,
        samples=tuple(torch.cat(ids[modality]) for modality in MODALITIES),
        confidence=confidence,
    )
    return result, samples


def _announce_memory(forward: _Forward, preset: str) -> None:
    """Say on stderr what keeping the rows will take, from the masks of the first batch."""
    first = next(iter(forward.batches), None)
    if first is None:
        raise MirlibError("there are no batches")
    batch = ModelInputs.of(first, forward.model)
    parts = decoder_parts(forward.model)
    masks = token_masks(
        batch.inputs["input_ids"],
        batch.inputs.get("attention_mask"),
        parts.vision_token_ids,
        text_rows=forward.text_rows,
        text_mask=batch.text_mask,
        vision_mask=None if parts.vision_mask is None else parts.vision_mask(batch.inputs),
    )
    rows = sum(int(mask.sum()) for mask in masks)
    text_config = unwrap(forward.model).config.get_text_config()
    size = next(forward.model.parameters()).element_size()
    try:
        count = len(forward.batches)
    except TypeError:
        return
    need = rows * count * len(parts.layers) * text_config.hidden_size * size
    tqdm.write(
        f"preset {preset!r} takes medians over rows and keeps them all: about {need / 2**30:.2f} GiB", file=sys.stderr
    )


def _describe(model: nn.Module) -> dict[str, Any]:
    parameter = next(model.parameters())
    config = getattr(unwrap(model), "config", None)
    return {
        "model_type": getattr(config, "model_type", type(unwrap(model)).__name__),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": _device(model).type,
        **({"methods": methods} if (methods := attached(model)) else {}),
    }


class PairBatches:
    """Re-iterable batches of image–text pairs: images are opened and processed when their turn comes.

    Args:
        processor: The model's processor.
        images: All images that there are.
        texts: All texts that there are.
        chosen: The numbers of the image and of the text of each pair.
        groups: Number of jackknife groups.
        settings: What `score` was asked for; ``batch_size``, ``template`` and ``max_text_tokens`` are read here.
        share: Which of the pairs these batches hold; all if left out.

    Attributes:
        offset: The number of the first pair in these batches.
    """

    def __init__(
        self,
        processor: Any,
        images: Sequence[Any],
        texts: Sequence[str],
        chosen: Sequence[tuple[int, int]],
        groups: int,
        settings: Mapping[str, Any],
        share: range | None = None,
    ) -> None:
        self.processor, self.images, self.texts, self.chosen = processor, images, texts, chosen
        self.groups, self.settings, self.batch_size = groups, settings, settings["batch_size"]
        self.prompt = {name: settings[name] for name in ("template", "max_text_tokens")}
        self.share = range(len(chosen)) if share is None else share
        self.offset = self.share.start

    def __len__(self) -> int:
        return math.ceil(len(self.share) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(self.share.start, self.share.stop, self.batch_size):
            yield self._batch(range(start, min(start + self.batch_size, self.share.stop)))

    def part(self, share: range) -> PairBatches:
        """The batches of some of the pairs, in the jackknife groups that they have among all."""
        return PairBatches(self.processor, self.images, self.texts, self.chosen, self.groups, self.settings, share)

    def first(self, batches: int) -> PairBatches:
        """The first pairs of all, ``batches`` batches of them."""
        pairs = self.chosen[: batches * self.batch_size]
        return PairBatches(self.processor, self.images, self.texts, pairs, min(self.groups, len(pairs)), self.settings)

    @property
    def spare(self) -> dict[str, Any]:
        """A batch to go through the model with where others still have some and this process has none."""
        return self._batch(range(1))

    def _batch(self, pairs: range) -> dict[str, Any]:
        sources = [self.images[self.chosen[pair][0]] for pair in pairs]
        texts = [self.texts[self.chosen[pair][1]] for pair in pairs]
        names = [_name(source, self.chosen[i][0]) for i, source in zip(pairs, sources, strict=True)]
        return self._encoded([load_image(source) for source in sources], texts, names) | {
            # Neighbours share a group, so that a batch is one or two products of matrices, not four.
            "sample_groups": torch.tensor([pair * self.groups // len(self.chosen) for pair in pairs]),
            "sample_names": names,
        }

    def _encoded(self, images: Sequence[Any], texts: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
        """The inputs of a batch; where it is refused, the sample that is refused alone is named."""
        try:
            return encode_batch(self.processor, images, texts, **self.prompt)
        except MirlibError:
            for image, text, name in zip(images, texts, names, strict=True):
                with _naming(name):
                    encode_batch(self.processor, [image], [text], **self.prompt)
            raise


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of a sample before what is wrong with it."""
    try:
        yield
    except MirlibError as error:
        raise MirlibError(f"{shown(name, 300)}: {error}") from error


def _name(image: Any, index: int) -> str:
    name = image if isinstance(image, (str, Path)) else getattr(image, "filename", "")
    return str(name) or f"image {index}"


def pair_batches(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    num: int = 100,
    batch_size: int = 4,
    seed: int = 0,
    paired: bool = False,
    template: str = "chat",
    max_text_tokens: int | None = None,
    groups: int = DEFAULT_GROUPS,
    skip_unreadable: Callable[[str], None] | None = None,
    merge_processes: bool = True,
) -> PairBatches:
    """The pairs that `score` measures, drawn and checked, as batches for `score_pairs`; see `score`.

    Raises:
        UndefinedMIRError: If MIR is undefined for the model.
        MirlibError: For unreadable files, fewer images or texts than ``num``, texts longer than the model's, and a
            processor or chat template that fails.
    """
    if num < 1 or batch_size < 1:
        raise MirlibError(f"num and batch_size must be at least 1, got {num} and {batch_size}")
    if paired and len(images) != len(texts):
        raise MirlibError(f"paired: {len(images)} images and {len(texts)} texts; there must be a text for each image")
    decoder_parts(model)
    processes = Processes.current(merge_processes)

    limit = _positions_of(model)
    prompt = {"template": used_template(processor, template), "max_text_tokens": max_text_tokens}
    # What any image and text meet is no fault of one: it must not count as unreadable, sample for sample.
    advice = "an ordinary picture is refused, so the fault is in its settings (processor_config.json)"
    encode_batch(processor, [Image.new("RGB", (336, 336), "gray")], [ANY_TEXT], advice=advice, **prompt)
    any_text = len(first_tokens(processor.tokenizer, ANY_TEXT, 1))
    longest = 1  # of the chosen images with their templates, in tokens

    def check_image(index: int, text: str = ANY_TEXT) -> None:
        """Images are processed here only if one may be left out: it takes as long as for the measurement itself."""
        nonlocal longest
        image = load_image(images[index])
        if skip_unreadable is not None:
            with _naming(_name(images[index], index)):
                length = encode_batch(processor, [image], [text], **prompt)["input_ids"].shape[1]
                if limit is not None and length > limit:
                    raise MirlibError(_too_long(length, limit))
            longest = max(longest, length - any_text)

    def check_words(index: int, beside: int = 1) -> None:
        text = texts[index]
        check_text(processor, text)
        if limit is not None and len(text) > (limit - beside) // 4:  # a character is four tokens at the most
            length = len(first_tokens(processor.tokenizer, text.strip(), limit))
            more = " or more" if length >= 2 * limit else ""  # only the beginning of a very long text was read
            length = min(length, max_text_tokens or length)
            if length + beside > limit:
                raise MirlibError(
                    f"a text of {length}{more} tokens does not fit a model of {limit} positions; cut texts with "
                    f"max_text_tokens (--max-text-tokens): {name_of(text)}"
                )

    def check_pair(index: int) -> None:
        check_words(index)
        check_image(index, texts[index])

    drawn = partial(_draw, num=num, processes=processes, skip_unreadable=skip_unreadable)
    if paired:
        chosen = [(i, i) for i in drawn(len(images), seed=seed, what="pairs", check=check_pair)]
    else:
        chosen_images = drawn(len(images), seed=seed, what="images", check=check_image)
        chosen_texts = drawn(len(texts), seed=seed + 1, what="texts", check=lambda index: check_words(index, longest))
        chosen = list(zip(chosen_images, chosen_texts, strict=True))
    settings = {
        "num": num,
        "batch_size": batch_size,
        "seed": seed,
        **prompt,
    }
    if paired:
        settings["paired"] = True
    return PairBatches(processor, images, texts, chosen, min(groups, num), settings)


def _draw(
    items: int,
    *,
    num: int,
    seed: int,
    what: str,
    check: Callable[[int], None],
    processes: Processes,
    skip_unreadable: Callable[[str], None] | None,
) -> list[int]:
    """What `mirlib.data.draw` draws, each process reading its share of the items that come into question."""

    def problem_with(index: int) -> str | None:
        try:
            check(index)
        except MirlibError as error:
            if skip_unreadable is None:
                raise
            return str(error)
        return None

    verdicts: dict[int, str | None] = {}
    if processes.size > 1:
        order = draw(range(items), items, seed, what)
        usable = 0
        while usable < num and len(verdicts) < items:  # the first num, then as many as turned out to be unusable
            candidates = order[len(verdicts) : len(verdicts) + num - usable]
            mine = candidates[processes.rank :: processes.size]
            found = processes.together(lambda mine=mine: {index: problem_with(index) for index in mine})
            for part in processes.gather(found):
                verdicts |= part
            usable = sum(problem is None for problem in verdicts.values())

    def is_usable(index: int) -> bool:
        problem = verdicts[index] if index in verdicts else problem_with(index)
        if problem is not None:
            skip_unreadable(problem)
        return problem is None

    return draw(range(items), num, seed, what, is_usable)


def score_pairs(model: nn.Module, batches: PairBatches, *, merge_processes: bool = True, **options: Any) -> MIRResult:
    """`score_batches` over drawn pairs, each process with its share; the result's settings say which."""
    processes = Processes.current(merge_processes)
    share = batches.part(processes.share(len(batches.chosen)))
    result = score_batches(model, share, groups=batches.groups, merge_processes=merge_processes, **options)
    return replace(result, settings={**result.settings, **batches.settings})


def score(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    num: int = 100,
    batch_size: int = 4,
    seed: int = 0,
    paired: bool = False,
    preset: str = "paper",
    outliers: str | None = None,
    normalize: bool = True,
    template: str = "chat",
    text_rows: str = "text",
    last: str = "normed",
    max_text_tokens: int | None = None,
    confidence: float | None = None,
    groups: int = DEFAULT_GROUPS,
    trace: str = "exact",
    skip_unreadable: Callable[[str], None] | None = None,
    merge_processes: bool = True,
    progress: bool = True,
) -> MIRResult:
    """MIR of a model over image–text pairs, as the paper measures it.

    ``num`` images and ``num`` texts are drawn by the seed and paired at random; each pair goes in as one sequence, the
    image before the text. Memory does not grow with ``num``.

    In a distributed run (``torch.distributed`` is initialised, as under torchrun) every process calls this with the
    same arguments, reads and measures its share of the pairs, and gets the result over all of them, equal to that of
    one process but for rounding. It does not matter whether the model is replicated, wrapped in
    ``DistributedDataParallel``, or sharded by FSDP; on the GPUs, each process has its model on its own. If one process
    fails, all raise an error that says which and why.

    Args:
        model: A Hugging Face LVLM whose vision tokens enter the decoder's sequence.
        processor: Its processor, with a fast tokenizer.
        images: Paths, PIL images or (h, w, 3) uint8 arrays; or a sequence of `mirlib.readers`.
        texts: Non-empty strings. Never compare values over different kinds of text.
        num: Number of pairs; the paper takes 100.
        batch_size: Pairs a forward pass. It does not change the value beyond rounding.
        seed: Which images and texts, and how they are paired.
        paired: Whether ``texts[i]`` belongs to ``images[i]``, so that they are drawn together. The paper pairs at
            random, and finds the same value either way.
        preset: ``"paper"``, ``"authors"`` or ``"authors-fast"``; see `modality_integration_rate`.
        outliers: Overrides the preset.
        normalize: Whether to apply the text-centric scale.
        template: ``"chat"`` for the processor's chat template, ``"plain"`` for none.
        text_rows: ``"text"`` for the rows of the given text, ``"after_image"`` for the authors' choice.
        last: ``"normed"`` or ``"raw"``; see `capture`.
        max_text_tokens: Cut each text after so many tokens.
        confidence: For example 0.95, for an interval over samples.
        groups: Number of jackknife groups, at most ``num``.
        trace: Route to the trace term, ``"exact"`` or, for GPUs, ``"polar"``; see `mirlib.frechet.trace_term`.
        skip_unreadable: Called with a sentence for each image or text that cannot be used, which is then left out;
            without it the first one is an error. In a distributed run it is called in every process, for all of them.
        merge_processes: In a distributed run, whether the processes share the pairs. False measures all pairs in this
            process alone, and no other has to call this.
        progress: Whether to show bars on stderr; in a distributed run, those of the process with rank 0.

    Returns:
        `MIRResult`.

    Raises:
        UndefinedMIRError: If MIR is undefined for the model.
        MirlibError: For unreadable files, fewer images or texts than ``num``, sequences longer than the model's, for
            the authors' presets in a distributed run, and all that `score_batches` raises.

    Source: arXiv 2410.07167, section 2.1.
    """
    batches = pair_batches(
        model,
        processor,
        images,
        texts,
        num=num,
        batch_size=batch_size,
        seed=seed,
        paired=paired,
        template=template,
        max_text_tokens=max_text_tokens,
        groups=groups,
        skip_unreadable=skip_unreadable,
        merge_processes=merge_processes,
    )
    return score_pairs(
        model,
        batches,
        preset=preset,
        outliers=outliers,
        normalize=normalize,
        text_rows=text_rows,
        last=last,
        confidence=confidence,
        trace=trace,
        merge_processes=merge_processes,
        progress=progress,
    )
