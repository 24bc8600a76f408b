r"""C³ (connect, collapse, corrupt): vision rows are moved until their mean is that of the text, and shaken in training.

Zhang et al. (arXiv:2401.08567) take a gap for a constant: they subtract its mean from each modality, and add Gaussian
noise in training. A language model knows its words where they are, so here the vision rows that enter the first layer
take the whole way, :math:`x \mapsto x - \mu_v + \mu_t + \varepsilon`. When to use it: as a control, since it closes the
gap of the means and changes nothing that tells two pictures apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirlib.align.files import Hooked, Method, base_of, open_decoder
from mirlib.align.vision_rows import VisionRows
from mirlib.errors import MirlibError

__all__ = ["FILE", "Collapse", "attach", "detach", "find", "load", "means", "save"]

CHILD = "c3"  # its name on the decoder, and so before its numbers in the state_dict


class Collapse(Hooked):
    """The (d,) shift of the vision rows, the noise that is added in training, and the hook through which they act."""

    def __init__(self, shift: Tensor, noise: float = 0.0) -> None:
        super().__init__()
        if not 0 <= noise < float("inf"):
            raise MirlibError(f"noise is {noise}; it is a standard deviation, so finite and 0 or more")
        self.register_buffer("shift", shift.detach().float().clone())
        self.register_buffer("noise", torch.tensor(float(noise)))

    def forward(self, hidden: Tensor, vision: Tensor) -> Tensor:
        """Move the vision rows, true in the (B, T) mask, of what enters the first layer, (B, T, d), and no others."""
        shift, noise = self.shift.to(hidden.device), self.noise.to(hidden.device)
        moved = hidden + shift
        if self.training:
            moved = moved + noise * torch.randn_like(moved)
        return torch.where(vision.unsqueeze(-1), moved.to(hidden.dtype), hidden)

    def hang(self, model: nn.Module, layer: nn.Module) -> None:
        """Put the hook on."""
        self._rows = VisionRows.of(model)
        self._handles = [layer.register_forward_pre_hook(self._before_layer, with_kwargs=True, prepend=True)]

    def _before_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = args[0] if args else kwargs["hidden_states"]
        moved = self(hidden, self._rows.of_sequence(hidden))
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})


def means(model: nn.Module, processor: Any, images: Sequence[Any], texts: Sequence[str], **options: Any) -> Any:
    """The mean vision row and the mean text row that enter the decoder's first layer, (d,) float32 tensors.

    Arguments, options and errors are those of `mirlib.rows.collect_rows`.
    """
    from mirlib.rows import collect_rows  # which knows of the methods, as this module is one of

    rows = collect_rows(model, processor, images, texts, **options)
    return tuple(side.double().mean(0).float() for side in (rows.vision_embeddings, rows.text_embeddings))


def attach(model: nn.Module, vision_mean: Tensor, text_mean: Tensor, noise: float = 0.0) -> Collapse:
    """Move the vision rows that enter the decoder until their mean is that of the text; returns what was attached.

    The model, a Hugging Face LVLM, is changed in place. The means of its vision rows and of its text rows are (d,), of
    the model's width and finite, see `means`; ``noise`` is the standard deviation, 0 or more and finite, of the
    Gaussian noise that is added to each entry in training mode. Other numbers are refused, and a model that has C³
    already, is compiled, keeps several residual streams for each row, or has no vision rows in its decoder's sequence
    (`UndefinedMIRError`).

    Examples:
        >>> import torch
        >>> from mirlib.loading import load_miniature
        >>> model, _ = load_miniature()
        >>> attach(model, torch.zeros(128), torch.ones(128)).shift.sum()
        tensor(128.)
        >>> detach(model)
    """
    model, decoder, layers = open_decoder(model, "C³", is_attached(model))
    width = model.config.get_text_config().hidden_size
    if vision_mean.shape != (width,) or text_mean.shape != (width,):
        shapes = f"{tuple(vision_mean.shape)} and {tuple(text_mean.shape)}"
        raise MirlibError(f"C³: the model's rows have {width} entries, and the means {shapes}")
    if not (vision_mean.isfinite().all() and text_mean.isfinite().all()):
        raise MirlibError("C³: a mean holds NaN or infinity; take the rows in bfloat16 or float32")
    made = Collapse(text_mean.detach().cpu() - vision_mean.detach().cpu(), noise).follow(decoder)
    made.hang(model, layers[0])
    decoder.add_module(CHILD, made)
    return made


def _blank(model: nn.Module, settings: Any) -> Collapse:
    nothing = torch.zeros(base_of(model).config.get_text_config().hidden_size)
    return attach(model, nothing, nothing)


_METHOD = Method("c3", (Collapse,), "C³ is not attached to this model; attach() does that, load() from a file", _blank)
FILE = _METHOD.file
is_attached, find, detach = _METHOD.is_attached, _METHOD.find, _METHOD.detach
save, load, restore = _METHOD.save, _METHOD.load, _METHOD.restore
