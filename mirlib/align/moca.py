r"""MoCa, modality calibration: a scale and a shift for the vision rows at the end of every decoder layer.

Huang et al. (arXiv:2410.07167, Eq. 5) put :math:`\psi_k(f) = u_k \odot f + v_k` behind layer k = 1..K for the rows that
are vision tokens, 2dK numbers, trained in both stages with whatever else learns. Left open there, and chosen here:
layer K gets its scale and shift before the final norm; words that are generated from a cache are text, and are not
calibrated.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mirlib.align.files import Hooked, Method, open_decoder
from mirlib.align.vision_rows import VisionRows
from mirlib.errors import MirlibError

__all__ = ["FILE", "Calibration", "attach", "detach", "find", "load", "save"]

CHILD = "moca"  # its name on the decoder, and so before its weights in the state_dict


class Calibration(Hooked):
    """The parameters of MoCa, for K layers of width d, and the hooks through which they act.

    The scales ``u`` (K, d) are first drawn from Normal(1, std), the shifts ``v`` from Normal(0, std), in float32 at
    least; row k - 1 belongs to layer k, and is moved to that one's device.
    """

    def __init__(self, layers: int, dim: int, *, std: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= std < float("inf"):
            raise MirlibError(f"std is {std}; it is a standard deviation, so finite and 0 or more")
        drawn = torch.randn(2, layers, dim, generator=torch.Generator().manual_seed(seed))
        self.u = nn.Parameter(1 + std * drawn[0])
        self.v = nn.Parameter(std * drawn[1])
        self._fired: set[int] = set()

    def forward(self, hidden: Tensor, layer: int, vision: Tensor) -> Tensor:
        """Calibrate the vision rows, true in the (B, T) mask, of what a layer, from 1, returned, (B, T, d).

        The dtype is that of ``hidden``; rows that are not vision are bit for bit as they were.
        """
        u, v = (each[layer - 1].to(hidden.device) for each in (self.u, self.v))
        return torch.where(vision.unsqueeze(-1), (hidden * u + v).to(hidden.dtype), hidden)

    def hang(self, model: nn.Module, decoder: nn.Module, layers: list[nn.Module]) -> None:
        """Put the hooks on, those of layers in front of all, so that `mirlib.capture` reads what is read next."""
        self._rows = VisionRows.of(model)
        hooks = [(layer, partial(self._after_layer, k)) for k, layer in enumerate(layers, start=1)]
        self._handles = [layer.register_forward_hook(hook, prepend=True) for layer, hook in hooks]
        for module in {id(each): each for each in (model, decoder)}.values():
            self._handles.append(module.register_forward_pre_hook(self._before_pass))
            self._handles.append(module.register_forward_hook(self._after_pass))

    def _after_layer(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self._fired.add(layer)
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[-1] != self.u.shape[1]:
            shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            what = f"MoCa: layer {layer} returned {shape}, not (batch, length, {self.u.shape[1]})"
            raise MirlibError(f"{what}; its rows cannot be calibrated. register_adapter() can name other layers")
        calibrated = self(hidden, layer, self._rows.of_sequence(hidden))
        return calibrated if hidden is output else type(output)((calibrated, *output[1:]))

    def _before_pass(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._fired.clear()

    def _after_pass(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        missing = sorted(set(range(1, len(self.u) + 1)) - self._fired)
        mask = self._rows.mask
        if missing and mask is not None and mask.any():
            what = f"MoCa: the hooks of layers {missing} did not fire in a pass with vision rows"
            why = "A compiled model runs past hooks that were added later, and a layer that was replaced has none"
            way = "attach MoCa to the model as it is run, and compile it afterwards"
            raise MirlibError(f"{what}, so these rows were not calibrated. {why}: {way}")


def attach(model: nn.Module, std: float = 0.0, seed: int = 0) -> Calibration:
    """Put a scale and a shift, (K, d), behind every decoder layer of a model, in place, for its vision rows.

    They hang on the decoder as its child ``moca``: trained, moved, copied and listed in the ``state_dict`` with it, on
    its device, in float32 even if it is coarser; what the layers hand on keeps the model's dtype. An ``std`` of 0
    starts at u = 1 and v = 0, where the model computes what it did before; the authors' class has 0.02, and weights are
    then drawn by ``seed``.

    Refused are a model that has MoCa already, is compiled, keeps several residual streams for each row, has a decoder
    that is not recognised, or no vision rows in its decoder's sequence (`UndefinedMIRError`).

    Examples:
        >>> from mirlib.loading import load_miniature
        >>> model, _ = load_miniature()
        >>> attach(model).u.shape
        torch.Size([8, 128])
        >>> detach(model)
    """
    model, decoder, layers = open_decoder(model, "MoCa", is_attached(model))
    width = model.config.get_text_config().hidden_size
    calibration = Calibration(len(layers), width, std=std, seed=seed).follow(decoder)
    calibration.hang(model, decoder, layers)
    decoder.add_module(CHILD, calibration)
    return calibration


_ABSENT = "MoCa is not attached to this model; attach() does that, load() with trained parameters"
_METHOD = Method("moca", (Calibration,), _ABSENT, lambda model, settings: attach(model))
FILE = _METHOD.file
is_attached, find, detach = _METHOD.is_attached, _METHOD.find, _METHOD.detach
save, load, restore = _METHOD.save, _METHOD.load, _METHOD.restore
