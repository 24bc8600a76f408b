r"""C³ (connect, collapse, corrupt): vision rows are moved until their mean is that of the text, and shaken in training.

Zhang et al. (arXiv:2401.08567) take a gap for a constant: they subtract its mean from each modality (collapse), and add
Gaussian noise while the reader is trained (corrupt), so that it learns to bear what is left. A language model knows its
words where they are, so here the text stays and the vision rows take the whole way,

.. math:: x \mapsto x - \mu_v + \mu_t + \varepsilon, \qquad \varepsilon \sim \mathcal{N}(0, \sigma^2 I)
   \text{ in training, } 0 \text{ else,}

which makes the difference of the means the same as moving both. It acts where rows enter the decoder's first layer, on
vision rows alone. The paper's rows are single embeddings of CLIP, of length 1; these are tokens of any length. Nothing
is learned: the means are those of pictures and texts that you give, see `means`. What connects, the third C, is the
connector that the model has.

`attach` hangs the shift on the decoder, as its child ``c3``; `detach` takes it off; `save` and `load` keep it in a file
beside the model's own.

When to use it: as the cheapest remedy there is, and as a control: it closes the gap of the means and changes nothing
that tells two pictures apart, so that whatever a measure gains by it was never about the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirlib.adapters import decoder_parts
from mirlib.align.files import base_of, check_not_compiled, put, read_file, write_file
from mirlib.align.moca import _parent
from mirlib.align.precision import Float32Module
from mirlib.align.vision_rows import VisionRows
from mirlib.errors import MirlibError

__all__ = ["FILE", "Collapse", "attach", "detach", "find", "load", "means", "save"]

FILE = "c3.safetensors"
"""Name of the file that `save` writes."""

CHILD = "c3"
"""Name that it has on the decoder, and so before its numbers in the ``state_dict``."""


class Collapse(Float32Module):
    """The shift of the vision rows, and the hook through which it acts.

    Args:
        shift: (d,) mean of the text minus mean of the vision rows.
        noise: Standard deviation, of each entry, of what is added in training.

    Attributes:
        shift: (d,) buffer, float32 at least.
        noise: The same of ``noise``, a scalar.

    Raises:
        MirlibError: If ``noise`` is negative.
    """

    def __init__(self, shift: Tensor, noise: float = 0.0) -> None:
        super().__init__()
        if noise < 0:
            raise MirlibError(f"noise is {noise}; it is a standard deviation, so 0 or more")
        self.register_buffer("shift", shift.detach().float().clone())
        self.register_buffer("noise", torch.tensor(float(noise)))
        self._rows: VisionRows | None = None
        self._handle: Any = None

    def forward(self, hidden: Tensor, vision: Tensor) -> Tensor:
        """Move the vision rows.

        Args:
            hidden: (B, T, d) what enters the first layer.
            vision: (B, T) bool, true where vision stands.

        Returns:
            (B, T, d) with the dtype of ``hidden``; rows that are not vision are bit for bit as they were.
        """
        shift, noise = self.shift.to(hidden.device), self.noise.to(hidden.device)
        moved = hidden + shift
        if self.training:
            moved = moved + noise * torch.randn_like(moved)
        return torch.where(vision.unsqueeze(-1), moved.to(hidden.dtype), hidden)

    def _before_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = args[0] if args else kwargs["hidden_states"]
        moved = self(hidden, self._rows.of_sequence(hidden))
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})


def means(model: nn.Module, processor: Any, images: Sequence[Any], texts: Sequence[str], **options: Any) -> Any:
    """The mean vision row and the mean text row that enter the decoder's first layer.

    Args:
        model: A Hugging Face LVLM.
        processor: Its processor.
        images: N images, as for `mirlib.score`.
        texts: N texts.
        options: Of `mirlib.rows.collect_rows`, such as ``template``.

    Returns:
        Two (d,) tensors, float32.

    Raises:
        MirlibError: What `mirlib.rows.collect_rows` raises.
    """
    from mirlib.rows import collect_rows  # which knows of the methods, as this module is one of

    rows = collect_rows(model, processor, images, texts, **options)
    return tuple(side.double().mean(0).float() for side in (rows.vision_embeddings, rows.text_embeddings))


def attach(model: nn.Module, vision_mean: Tensor, text_mean: Tensor, noise: float = 0.0) -> Collapse:
    """Move the vision rows that enter the decoder until their mean is that of the text.

    Args:
        model: A Hugging Face LVLM whose vision tokens enter the decoder's sequence; changed in place.
        vision_mean: (d,) mean of its vision rows, see `means`.
        text_mean: (d,) mean of its text rows.
        noise: Standard deviation, of each entry, of the Gaussian noise that is added in training mode.

    Returns:
        What was attached.

    Raises:
        UndefinedMIRError: If the model has no vision rows in its decoder's sequence.
        MirlibError: If it is attached already, the means are not of the model's width, ``noise`` is negative, or the
            model is compiled or keeps several residual streams.

    Examples:
        >>> from mirlib.loading import load_miniature
        >>> model, _ = load_miniature()
        >>> attach(model, torch.zeros(128), torch.ones(128)).shift.sum()
        tensor(128.)
        >>> detach(model)
    """
    check_not_compiled(model, "C³")
    model = base_of(model)
    if is_attached(model):
        raise MirlibError("C³ is attached to this model already; detach() takes it off")
    parts = decoder_parts(model)
    if parts.read is not None:
        raise MirlibError(f"C³: the layers of {model.config.model_type} keep several residual streams for each row")
    width = model.config.get_text_config().hidden_size
    if vision_mean.shape != (width,) or text_mean.shape != (width,):
        shapes = f"{tuple(vision_mean.shape)} and {tuple(text_mean.shape)}"
        raise MirlibError(f"C³: the model's rows have {width} entries, and the means {shapes}")
    layer = parts.layers[0]
    decoder = _parent(model, layer)
    like = next(p for p in decoder.parameters() if p.is_floating_point())
    made = Collapse(text_mean.detach().cpu() - vision_mean.detach().cpu(), noise).to(like.device, like.dtype)
    made.train(decoder.training)
    made._rows = VisionRows.of(model)
    made._handle = layer.register_forward_pre_hook(made._before_layer, with_kwargs=True, prepend=True)
    decoder.add_module(CHILD, made)
    return made


def is_attached(model: nn.Module) -> bool:
    """Whether `attach` put it on the model, or on the one that the model is a copy of."""
    return any(isinstance(module, Collapse) for module in model.modules())


def find(model: nn.Module) -> Collapse:
    """What `attach` put on a model, or on the model that it is a copy of.

    Raises:
        MirlibError: If there is nothing.
    """
    found = next((module for module in model.modules() if isinstance(module, Collapse)), None)
    if found is None:
        raise MirlibError("C³ is not attached to this model; attach() does that, load() from a file")
    return found


def detach(model: nn.Module) -> None:
    """Take it off a model; vision rows enter the decoder as they did before.

    Raises:
        MirlibError: If it is not attached.
    """
    made = find(model)
    made._handle.remove()
    made._rows.release(base_of(model))
    delattr(_parent(model, made), CHILD)


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write shift and noise to ``c3.safetensors`` in the folder that holds the model.

    Returns:
        The file.

    Raises:
        MirlibError: If it is not attached.
    """
    return write_file(Path(folder) / FILE, "c3", find(model).state_dict(), {})


def load(model: nn.Module, folder: str | Path) -> Collapse:
    """Put what `save` wrote on a model, in the place of what it may have.

    Args:
        model: The model, changed in place.
        folder: The folder, or the file itself.

    Returns:
        What was attached.

    Raises:
        MirlibError: If there is no such file, if it is damaged, or if it belongs to a model of another width.
    """
    path, tensors, settings = read_file(Path(folder), FILE, "c3")
    return restore(model, tensors, settings, str(path))


def restore(model: nn.Module, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], source: str) -> Collapse:
    """Put a saved shift on a model; ``source`` is where it comes from, for messages."""
    there = is_attached(model)
    nothing = torch.zeros(base_of(model).config.get_text_config().hidden_size)
    made = find(model) if there else attach(model, nothing, nothing)
    try:
        put(tensors, made, source)
    except MirlibError:
        if not there:
            detach(model)
        raise
    return made
