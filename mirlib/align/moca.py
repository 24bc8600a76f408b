r"""MoCa, modality calibration: a scale and a shift for the vision rows at the end of every decoder layer.

Huang et al. (arXiv:2410.07167, Eq. 5) put

.. math:: \psi_k(f) = u_k \odot f + v_k, \qquad u_k, v_k \in \mathbb{R}^d

behind layer k = 1..K for the rows that are vision tokens, and for those alone. It starts at u = 1 and v = 0, where it
changes nothing, or at Normal(1, std) and Normal(0, std), and is trained in both stages with whatever else learns: 2dK
numbers, 262,144 for a language model of 32 layers and width 4096.

What the paper leaves open, and what is done here: layer K gets its scale and shift like all others, before the final
norm, although no text row reads what comes out of it (see `fuse`); the learning rate is that of whoever trains. The
vision rows are read off ``input_ids`` in every forward pass, so a prompt is calibrated as it is read and the words
that are generated, one by one from a cache, are not: they are text. A run with a cache and one without agree.

`attach` hangs the parameters on the decoder, as its child ``moca``: they are trained, moved, copied and listed in the
``state_dict`` with it. They stay in float32 in a model of half precision, where a step would be lost beside u = 1.
`detach` takes them off. `save` and `load` keep them in a file beside the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirlib.adapters import decoder_parts
from mirlib.align.files import base_of, check_not_compiled, put, read_file, write_file
from mirlib.align.precision import Float32Module
from mirlib.align.vision_rows import VisionRows
from mirlib.errors import MirlibError

__all__ = ["FILE", "Calibration", "attach", "detach", "find", "fuse", "load", "save", "switched_off"]

FILE = "moca.safetensors"
"""Name of the file that `save` writes."""

CHILD = "moca"
"""Name that it has on the decoder, and so before its weights in the ``state_dict``."""


class Calibration(Float32Module):
    """The parameters of MoCa, and the hooks through which they act.

    Args:
        layers: Number of decoder layers, K.
        dim: Their width, d.
        std: Of the first weights around u = 1 and v = 0.
        seed: Of the first weights, where ``std`` is not 0.

    Attributes:
        u: (K, d) scales, float32 at least; row k - 1 belongs to layer k. A layer on another device gets its row moved
            there.
        v: (K, d) shifts, likewise.
        active: False leaves every row as it is, see `switched_off`.

    Raises:
        MirlibError: If ``std`` is negative.
    """

    def __init__(
        self,
        layers: int,
        dim: int,
        *,
        std: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if std < 0:
            raise MirlibError(f"std is {std}; it is a standard deviation, so 0 or more")
        drawn = torch.randn(2, layers, dim, generator=torch.Generator().manual_seed(seed))
        self.u = nn.Parameter(1 + std * drawn[0])
        self.v = nn.Parameter(std * drawn[1])
        self.active = True
        self._rows: VisionRows | None = None
        self._handles: list[Any] = []
        self._fired: set[int] = set()

    def extra_repr(self) -> str:
        """K and d, for ``print(model)``."""
        return "layers={}, dim={}".format(*self.u.shape)

    @property
    def moved(self) -> tuple[int, ...]:
        """Layers, from 1, whose scale and shift are not exactly 1 and 0."""
        moved = ((self.u != 1) | (self.v != 0)).any(dim=1)
        return tuple((moved.nonzero()[:, 0] + 1).tolist())

    def forward(self, hidden: Tensor, layer: int, vision: Tensor) -> Tensor:
        """Calibrate the vision rows behind one layer.

        Args:
            hidden: (B, T, d) what the layer returned.
            layer: Its number, from 1.
            vision: (B, T) bool, true where vision stands.

        Returns:
            (B, T, d) with the dtype of ``hidden``; rows that are not vision are bit for bit as they were.
        """
        u, v = (each[layer - 1].to(hidden.device) for each in (self.u, self.v))
        return torch.where(vision.unsqueeze(-1), (hidden * u + v).to(hidden.dtype), hidden)

    # The hooks are bound methods, so that a deep copy of the model calls its own Calibration.

    def _hang(self, model: nn.Module, decoder: nn.Module, layers: list[nn.Module]) -> None:
        self._rows = VisionRows.of(model)
        for k, layer in enumerate(layers, start=1):
            # In front of all other hooks, so that `mirlib.capture` reads what the next layer reads.
            hook = layer.register_forward_hook(partial(self._after_layer, k), prepend=True)
            self._handles.append(hook)
        for module in {id(each): each for each in (model, decoder)}.values():
            self._handles.append(module.register_forward_pre_hook(self._before_pass))
            self._handles.append(module.register_forward_hook(self._after_pass))

    def _take_off(self, model: nn.Module) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._rows.release(model)
        self._rows = None

    def _after_layer(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self._fired.add(layer)
        if not self.active:
            return None
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[-1] != self.u.shape[1]:
            shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise MirlibError(
                f"MoCa: layer {layer} returned {shape}, not (batch, length, {self.u.shape[1]}); its rows cannot be "
                "calibrated. register_adapter() can name other layers"
            )
        calibrated = self(hidden, layer, self._rows.of_sequence(hidden))
        return calibrated if hidden is output else type(output)((calibrated, *output[1:]))

    def _before_pass(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._fired.clear()

    def _after_pass(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        missing = sorted(set(range(1, len(self.u) + 1)) - self._fired)
        mask = self._rows.mask
        if missing and mask is not None and mask.any():
            raise MirlibError(
                f"MoCa: the hooks of layers {missing} did not fire in a pass with vision rows, so these rows were not "
                "calibrated. A compiled model runs past hooks that were added later, and a layer that was replaced has "
                "none: attach MoCa to the model as it is run, and compile it afterwards"
            )


def attach(model: nn.Module, std: float = 0.0, seed: int = 0) -> Calibration:
    """Put a scale and a shift behind every decoder layer of a model, for its vision rows.

    Args:
        model: A Hugging Face LVLM whose vision tokens enter the decoder's sequence; changed in place.
        std: 0 starts at u = 1 and v = 0, where the model computes what it did before; the authors' class has 0.02.
        seed: Of the first weights, where ``std`` is not 0.

    Returns:
        The parameters, ``u`` and ``v`` of shape (K, d), which require a gradient. They lie on the decoder's device, in
        float32 even if it is coarser; what the layers hand on keeps the model's dtype.

    Raises:
        UndefinedMIRError: If the model has no vision rows in its decoder's sequence.
        MirlibError: If MoCa is attached already, if the model is compiled, if its layers keep several residual
            streams, or if its decoder is not recognised.

    Examples:
        >>> from mirlib.loading import load_miniature
        >>> model, _ = load_miniature()
        >>> calibration = attach(model)
        >>> calibration.u.shape == calibration.v.shape == (len(model.get_decoder().layers), 128)
        True
        >>> detach(model)
    """
    check_not_compiled(model, "MoCa")
    model = base_of(model)
    if is_attached(model):
        raise MirlibError("MoCa is attached to this model already; detach() takes it off")
    parts = decoder_parts(model)
    if parts.read is not None:
        raise MirlibError(
            f"MoCa: the layers of {model.config.model_type} keep several residual streams for each row, for which the "
            "equation says nothing; only models with one are calibrated"
        )
    layers = list(parts.layers)
    decoder = _parent(model, layers[0])
    like = next(p for p in decoder.parameters() if p.is_floating_point())
    width = model.config.get_text_config().hidden_size
    calibration = Calibration(len(layers), width, std=std, seed=seed).to(device=like.device, dtype=like.dtype)
    calibration._hang(model, decoder, layers)
    decoder.add_module(CHILD, calibration)
    return calibration


def is_attached(model: nn.Module) -> bool:
    """Whether `attach` put it on the model, or on the one that the model is a copy of."""
    return any(isinstance(module, Calibration) for module in model.modules())


def find(model: nn.Module) -> Calibration:
    """The parameters that `attach` put on a model, or on the model that it is a copy of.

    Raises:
        MirlibError: If there are none.
    """
    found = next((module for module in model.modules() if isinstance(module, Calibration)), None)
    if found is None:
        raise MirlibError("MoCa is not attached to this model; attach() does that, load() with trained parameters")
    return found


def detach(model: nn.Module) -> None:
    """Take MoCa off a model: its parameters, and all its hooks. What else was trained with it stays as it is.

    Raises:
        MirlibError: If it is not attached.
    """
    calibration = find(model)
    calibration._take_off(base_of(model))
    delattr(_parent(model, calibration), CHILD)


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Inside the ``with`` block, MoCa leaves every row as it is.

    Raises:
        MirlibError: If it is not attached.
    """
    calibration = find(model)
    before, calibration.active = calibration.active, False
    try:
        yield
    finally:
        calibration.active = before


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write the parameters of MoCa to ``moca.safetensors`` in the folder that holds the model.

    ``model.save_pretrained`` writes them, too, under the names that they have in the ``state_dict``; but a model that
    transformers loads from there has no hooks yet, passes the names over, and is not calibrated: `load` does both, and
    so does ``mir score``.

    Returns:
        The file.

    Raises:
        MirlibError: If MoCa is not attached.
    """
    return write_file(Path(folder) / FILE, "moca", find(model).state_dict(), {})


def load(model: nn.Module, folder: str | Path) -> Calibration:
    """Put the parameters that `save` wrote on a model; MoCa is attached if it is not yet.

    Args:
        model: The model, changed in place.
        folder: The folder, or the file itself.

    Returns:
        The parameters, see `attach`.

    Raises:
        MirlibError: If there is no such file, if it is damaged, or if it belongs to a model of another depth or width.
    """
    path, tensors, settings = read_file(Path(folder), FILE, "moca")
    return restore(model, tensors, settings, str(path))


def restore(model: nn.Module, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: str) -> Calibration:
    """Put saved parameters on a model; ``source`` is where they come from, for messages."""
    there = is_attached(model)
    calibration = find(model) if there else attach(model)
    try:
        put(tensors, calibration, source)
    except MirlibError:
        if not there:
            detach(model)
        raise
    return calibration


def fuse(model: nn.Module, *, only_text_is_read: bool = False) -> None:
    r"""Take MoCa off where the model without it computes the same, exactly; refuse where it does not.

    There is no approximation. Two cases are exact:

    1. Layers with u = 1 and v = 0 do nothing.
    2. Layer K, the last, if nothing but rows of text is read off the model. No layer attends to what comes out of it,
       so its scale and shift reach the final norm and the output of the vision rows themselves, and no other row.
       They get no gradient from a loss on text rows either, and stay where they started, unless weight decay moves
       them. Whoever reads the last vision row (a prompt that ends with its image, a caption that follows it at once),
       or the hidden states of layer K, as MIR does, sees the difference.

    All else has no home in the weights, accidents aside. *Proof*, for pre-norm layers with RMSNorm, if one layer
    k < K - 1 and no other has moved, and u is not 0. The decoder's weights are shared with text, which is to be read
    as before, so only what the projector puts out can change. Write f for all vision rows of a picture and c f for
    each of them times a positive number of its own. Layer j hands on f_j = f_{j-1} + F_j(f_{j-1}). Attention and MLP
    read rows through a norm, so F_j is bounded, and F_j(t f) has a limit as t grows; between the two the length of a
    row does count. It is assumed that (1) key and value of a row fix its direction, which takes maps of full column
    rank; (2) no layer makes rows of one direction of two rows that have one direction and different lengths; and
    (3) the limit of F_1 is not, up to one fixed vector, along its row for every row. Text that reads the same keys and
    values has vision rows g_j = c f_j in the plain decoder, by (1). Where layer j + 1 < K has not moved, g_j = f_j by
    (2). This holds for j = k, and for j = k - 2 if k > 1. For k > 1 the plain decoder makes g_k out of f_{k-1}, and
    g_k = u ⊙ g_k + v for all the g_k that there are: it follows that u = 1 and v = 0. For k = 1 its input is c(x) x,
    and c(x) x + F(c(x) x) = u ⊙ (x + F(x)) + v for every x. Put tx for x, divide by t, and let t grow: u ⊙ x is
    parallel to x for every x, so all entries of u are one number a, and c(tx) tends to a. What is left is
    t (c(tx) - a) x = a F(tx) - F(c(tx) tx) + v, and the right side tends to a - 1 times the limit of F, plus v. That
    is parallel to x for every x, by (3) only if a = 1, and then v = 0. Where several layers have moved, or (1) fails,
    as it may with keys and values of fewer entries than the row, that the changes undo each other is not ruled out
    here; nothing that is taken off would be exact for sure, so it is refused as well.

    For k = K - 1 a scale that is one positive number in all entries would be lost on text, since layer K alone reads
    it, through its norm; but the ε in that norm makes even this inexact, so it is refused, too.

    Args:
        model: The model, changed in place.
        only_text_is_read: Grant case 2.

    Raises:
        MirlibError: If a layer has a scale and shift that cannot be taken off; the model is left as it was. Or if MoCa
            is not attached.
    """
    calibration = find(model)
    last = len(calibration.u)
    kept = [k for k in calibration.moved if k < last or not only_text_is_read]
    if kept == [last]:
        raise MirlibError(
            f"MoCa: the scale and shift behind layer {last}, the last, change the vision rows that come out of the "
            "model, though no row of text: pass only_text_is_read=True if nothing reads those rows, or keep MoCa on"
        )
    if kept:
        raise MirlibError(
            f"MoCa: the scales and shifts behind layers {kept} act on vision rows alone, and the weights behind them "
            "are shared by all rows: nothing can hold them exactly. Keep MoCa on, and save() it beside the model"
        )
    detach(model)


def _parent(model: nn.Module, module: nn.Module) -> nn.Module:
    """The module that holds another, lists of modules passed over."""
    name = next(name for name, each in model.named_modules() if each is module)
    while True:
        name = name.rpartition(".")[0]
        parent = model.get_submodule(name)
        if not isinstance(parent, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            return parent
