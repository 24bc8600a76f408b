"""MIR of a model: its rows, read by `mirlib.forward`, streamed into `mirlib.streaming`, with progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mirlib.accumulators import FiniteChecks
from mirlib.align.saved import attached
from mirlib.batches import PairBatches, device_of, pair_batches
from mirlib.distributed import Processes, needs_all_processes, reshard
from mirlib.errors import MirlibError
from mirlib.forward import ReadBatch, Reader, evaluating
from mirlib.hidden_states import decoder_parts, unwrap
from mirlib.mir import modality_integration_rate, resolve_settings
from mirlib.result import MIRResult, Sample
from mirlib.streaming import ModalityIntegrationRate

__all__ = ["score", "score_batches"]


def score_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    preset: str = "paper",
    outliers: str | None = None,
    normalize: bool = True,
    text_rows: str = "text",
    last: str = "normed",
    confidence: float | None = 0.95,
    merge_processes: bool = True,
    progress: bool = True,
) -> MIRResult:
    """MIR of a model over your own batches, in constant memory; all other arguments are those of `score`.

    ``batches`` are re-iterable (a list, a DataLoader without shuffling): dicts that ``model(**batch)`` takes, with
    ``input_ids``. Optional keys of ours: ``text_mask`` (B, T) bool, the text rows (default: as ``text_rows`` says);
    ``sample_names``, B strings for messages; ``sample_ids``, B pairs of strings (default: hashes of the tensors), by
    which `mirlib.compare` knows picture and text of a sample again.

    In a distributed run (``torch.distributed`` is initialised) the batches of all processes count together: each must
    call this, and fails with an error that says where and why if another fails. A model that FSDP shards needs at least
    one batch in each of them.

    Raises:
        UndefinedMIRError: If MIR is undefined for the model.
        MirlibError: For values that are not finite (naming layer, modality and sample), batches without vision or text
            rows, batches that cannot be iterated twice, or too little memory.
    """
    if isinstance(batches, Iterator):
        raise MirlibError("batches are read twice: pass a list or a DataLoader, not a generator or an iterator")
    chosen = resolve_settings(preset, outliers, None)
    num_layers = len(decoder_parts(model).layers)
    processes = Processes.current(merge_processes)
    if chosen.in_memory and processes.size > 1:
        raise MirlibError(
            f"preset {preset!r} takes medians over all rows, which must be in the memory of one process, and there are "
            f"{processes.size}: run it in one process, or pass merge_processes=False"
        )
    lockstep = processes.size > 1 and needs_all_processes(model)
    reader = Reader(model, batches, text_rows, last, processes, lockstep)
    options = {"preset": preset, "outliers": outliers, "normalize": normalize, "confidence": confidence}
    measure = _score_in_memory if chosen.in_memory else _score_streaming
    with evaluating(model):
        try:
            result, samples = measure(reader, num_layers, options, progress)
        finally:
            if lockstep:
                reshard(model)
    settings = {**result.settings, "text_rows": text_rows, "last": last, "samples": len(samples), **_describe(model)}
    if processes.size > 1:
        settings["processes"] = processes.size
    note = getattr(unwrap(model), "mirlib_note", None)  # of `mirlib.loading.load_model`
    notes = (*result.warnings, note) if note else result.warnings
    return replace(result, settings=settings, samples=tuple(samples), warnings=notes)


def _score_streaming(
    reader: Reader, num_layers: int, options: Mapping[str, Any], progress: bool
) -> tuple[MIRResult, list[Sample]]:
    processes = reader.processes
    metric: ModalityIntegrationRate | None = None
    checks = FiniteChecks()

    def on_layer(k: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
        nonlocal metric
        if metric is None:
            metric = ModalityIntegrationRate(num_layers, vision.shape[1], **options)
        metric.update_layer(k, vision, text, batch.row_samples, batch.name_row, checks)

    def run(description: str, expected: int | None = None) -> int:
        def read() -> int:
            seen = reader.run(on_layer, description, progress, after_batch=checks.settle)
            if expected not in (None, seen):
                raise MirlibError(f"a later pass saw {seen} samples, the first {expected}; batches must not change")
            return seen

        return processes.together(read)

    seen = run(f"pass 1 of {1 if options['confidence'] is None else 2}: moments")
    found = processes.gather((reader.samples, None if metric is None else metric.dim))
    if metric is None:  # this process has no samples
        dim = next((dim for _, dim in found if dim is not None), None)
        if dim is None:
            raise MirlibError("there are no batches")
        metric = ModalityIntegrationRate(num_layers, dim, **options)
    passes = 1
    while need := metric.needs_second_pass(processes, progress=progress):
        passes += 1
        metric.begin_second_pass(processes, progress=progress)
        run(f"pass {passes}: {need.partition(':')[0]}", seen)
    return metric.result(processes, progress=progress), [sample for part, _ in found for sample in part]


def _score_in_memory(
    reader: Reader, num_layers: int, options: Mapping[str, Any], progress: bool
) -> tuple[MIRResult, list[Sample]]:
    rows: tuple[list[Any], list[Any]] = ([[] for _ in range(num_layers)], [[] for _ in range(num_layers)])
    ids: tuple[list[Tensor], list[Tensor]] = ([], [])

    def on_layer(k: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
        if k == 1 and not ids[0] and hasattr(reader.batches, "__len__"):
            row_bytes = vision.shape[1] * vision.element_size() * num_layers
            need = f"about {(len(vision) + len(text)) * row_bytes * len(reader.batches) / 2**30:.2f} GiB"
            sentence = f"preset {options['preset']!r} takes medians over rows and keeps them all: {need}"
            tqdm.write(sentence, file=sys.stderr)
        for side, values in enumerate((vision, text)):
            rows[side][k - 1].append(values.cpu())
            if k == 1:
                ids[side].append(batch.samples[side].cpu())

    reader.run(on_layer, "pass 1 of 1: rows", progress)
    for side in rows:
        for k, parts in enumerate(side):
            side[k] = torch.cat(parts)
            parts.clear()
    options = {**options, "confidence": None}
    return modality_integration_rate(*rows, samples=tuple(map(torch.cat, ids)), **options), reader.samples


def _describe(model: nn.Module) -> dict[str, Any]:
    parameter = next(model.parameters())
    model_type = getattr(getattr(unwrap(model), "config", None), "model_type", type(unwrap(model)).__name__)
    dtype, methods = str(parameter.dtype).removeprefix("torch."), attached(model)
    found = {"model_type": model_type, "dtype": dtype, "device": device_of(model).type}
    return {**found, "methods": methods} if methods else found


def score_pairs(model: nn.Module, batches: PairBatches, *, merge_processes: bool = True, **options: Any) -> MIRResult:
    """`score_batches` over drawn pairs, each process with its share; the result's settings say which."""
    processes = Processes.current(merge_processes)
    share = replace(batches, share=processes.share(len(batches.chosen)))
    result = score_batches(model, share, merge_processes=merge_processes, **options)
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
    confidence: float | None = 0.95,
    skip_unreadable: Callable[[str], None] | None = None,
    merge_processes: bool = True,
    progress: bool = True,
) -> MIRResult:
    """MIR of a model over image–text pairs, as the paper measures it.

    ``num`` images and ``num`` texts are drawn by the seed and paired at random; each pair goes in as one sequence, the
    image before the text. Memory does not grow with ``num``. In a distributed run every process calls this with the
    same arguments, reads and measures its share of the pairs, and gets the result over all of them; the model may be
    replicated, in ``DistributedDataParallel``, or sharded by FSDP.

    Args:
        model: A Hugging Face LVLM whose vision tokens enter the decoder's sequence. It is put into evaluation mode for
            the time being and left as it was.
        processor: Its processor, with a fast tokenizer.
        images: Paths, PIL images or (h, w, 3) uint8 arrays; or a sequence of `mirlib.readers`.
        texts: Non-empty strings. Never compare values over different kinds of text.
        num: Number of pairs; the paper takes 100.
        batch_size: Pairs a forward pass. It does not change the value beyond rounding.
        seed: Which images and texts, and how they are paired.
        paired: Whether ``texts[i]`` belongs to ``images[i]``; they are drawn together then. The paper pairs at random.
        preset: ``"paper"``, ``"authors"`` or ``"authors-fast"``; see `modality_integration_rate`. The authors' presets
            keep every row in memory; how much is said first.
        outliers: Overrides the preset.
        normalize: Whether to apply the text-centric scale.
        template: ``"chat"`` for the processor's chat template, ``"plain"`` for none.
        text_rows: ``"text"`` for the rows of the given text, ``"after_image"`` for the authors' choice; see `capture`.
        last: ``"normed"`` or ``"raw"``; see `capture`.
        max_text_tokens: Cut each text after so many tokens.
        confidence: Level of the interval over samples, which takes a second pass; None for the value alone. It comes
            from `mirlib.influence`; where rows are too few, and for the authors' presets, there is none.
        skip_unreadable: Called with a sentence for each image or text that cannot be used, which is then left out;
            without it the first one is an error. In a distributed run it is called in every process, for all of them.
        merge_processes: False measures in this process alone, also in a distributed run; not for a model of FSDP.
        progress: Whether to show bars on stderr, in a distributed run those of rank 0.

    Raises:
        UndefinedMIRError: If MIR is undefined for the model.
        MirlibError: For unreadable files, fewer images or texts than ``num``, sequences longer than the model's, the
            authors' presets in a distributed run, and all that `score_batches` raises.

    Source: arXiv 2410.07167, section 2.1.
    """
    batches = pair_batches(
        model, processor, images, texts, num=num, batch_size=batch_size, seed=seed, paired=paired, template=template,
        max_text_tokens=max_text_tokens, skip_unreadable=skip_unreadable, merge_processes=merge_processes,
    )  # fmt: skip
    return score_pairs(
        model, batches, preset=preset, outliers=outliers, normalize=normalize, text_rows=text_rows, last=last,
        confidence=confidence, merge_processes=merge_processes, progress=progress,
    )  # fmt: skip
