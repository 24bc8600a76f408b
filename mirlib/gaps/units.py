"""Which units of the decoder's MLPs vision and text excite: whether one part of the model works on both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mirlib.adapters import decoder_parts, unwrap
from mirlib.errors import MirlibError
from mirlib.forward import ReadBatch, Reader, evaluating
from mirlib.gaps.base import HIGHER, MODEL, GapResult, of_samples, register
from mirlib.gaps.reading import in_order
from mirlib.mir import MODALITIES
from mirlib.rows import means_of_samples

SHARE = 0.1
OUTPUTS = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "w2", "fc_out", "wo")
"""Names under which families keep the last map of an MLP, whose input are the activations of its units."""


def last_map(layer: nn.Module) -> nn.Module:
    """The map of a decoder layer from its MLP's units back to the residual stream; refused where it is not one."""
    modules = {name: module for name, module in layer.named_modules() if name.rpartition(".")[2] in OUTPUTS}
    found = [module for name, module in modules.items() if "attn" not in name and "attention" not in name]
    if len(found) != 1:
        there = f"Found {'several' if found else 'none'} of the names {', '.join(OUTPUTS)}"
        question = f"{type(layer).__name__}: which module maps the units of its MLP back?"
        raise MirlibError(f"{question} {there}; a mixture of experts has no units that all rows share")
    return found[0]


def shared_units(first: Tensor, second: Tensor, share: float = SHARE) -> Tensor:
    """(...) the share of u units that are among the most excited of both, from how much each is, (..., u) twice.

    Two independent choices have ``share`` in common, rounded to whole units; one that leaves none or all is refused.

    Examples:
        >>> import torch
        >>> shared_units(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([3.0, 1.0, 4.0, 2.0]), 0.5).item()
        0.5
    """
    count = round(share * first.shape[-1])
    if not 0 < count < first.shape[-1]:
        raise MirlibError(f"share {share:g} of {first.shape[-1]} units are {count}; it must leave some in and some out")
    top = [torch.zeros_like(side).scatter_(-1, side.topk(count).indices, 1.0) for side in (first, second)]
    return (top[0] * top[1]).sum(-1) / count


@register("unit_overlap", title="overlap of MLP units", needs=MODEL, direction=HIGHER)
def unit_overlap(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    share: float = SHARE,
    progress: bool = False,
    **options: Any,
) -> GapResult:
    """Share of the units most excited by a sample's vision rows that are also those most excited by its text rows.

    Do vision and text excite the same units of the MLPs? When to use it: to see whether the two modalities share the
    model's machinery even where their rows lie apart.

    A unit is excited by a set of rows by the root mean square of its activation, the input of the MLP's last map. The
    null is the share of units, which two independent choices have in common; the best to hope for is ``two_texts``, the
    overlap of a sample's text rows with those of the next.

    Model (with one dense MLP a layer), processor, N images, N texts and options are those of `mirlib.score`; so are the
    errors, and a ``share`` of the units that leaves none or all of them is refused. The result is in [0, 1], see
    `mirlib.gaps.base.of_samples`; ``settings`` also hold by layer ``two_texts`` and ``two_pictures``, the same of
    vision rows. An overlap s is an intersection over union of ``s / (2 − s)``.

    Source: after arXiv 2405.16700, whose code keeps of each weight matrix the weights that Wanda scores highest,
    ``|W| · ‖activation‖``, and takes the intersection over union. Here the weights are left out: they are the same for
    both sides and make any two inputs overlap.
    """
    inner = unwrap(model)
    layers = list(decoder_parts(inner).layers)
    batches = in_order(model, processor, images, texts, **options)
    power: list[list[list[Tensor]]] = [[[] for _ in layers] for _ in MODALITIES]  # (B, u) of each batch
    squares: dict[int, Tensor] = {}

    def keep(number: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        squares[number] = args[0].detach().float().square()

    def on_layer(k: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
        flat = squares.pop(k).flatten(0, -2)
        for of_layers, modality, owners in zip(power, MODALITIES, batch.samples, strict=True):
            rows = flat[batch.positions[modality].flatten().to(flat.device)]
            of_layers[k - 1].append(means_of_samples([rows], owners.cpu() - batch.first, batch.size)[0])

    with ExitStack() as stack:
        for k, layer in enumerate(layers, start=1):
            stack.callback(last_map(layer).register_forward_pre_hook(partial(keep, k)).remove)
        stack.enter_context(evaluating(model))
        reader = Reader(model, batches)
        reader.run(on_layer, "units", progress)
    vision, text = (list(map(torch.cat, of_layers)) for of_layers in power)  # K tensors (N, u)

    def overlap(first: list[Tensor], second: list[Tensor]) -> np.ndarray:
        return np.stack([shared_units(a, b, share).numpy() for a, b in zip(first, second, strict=True)])  # (K, N)

    found = overlap(vision, text)
    units = text[0].shape[1]
    settings: dict[str, Any] = {"samples": reader.samples, "share": share, "units": units}
    for name, side in (("two_texts", text), ("two_pictures", vision)):
        settings[name] = overlap(side, [each.roll(-1, dims=0) for each in side]).mean(1).tolist()
    settings |= {"layers": found, "null": round(share * units) / units, **batches.settings}
    return of_samples("unit_overlap", found.mean(0), {"pairs": len(texts)}, **settings)
