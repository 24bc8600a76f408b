"""Which of CLIP's features the connector reads: all patches or the one [CLS], before the output layer or behind it.

The laboratory reads what LLaVA reads, all patches of the last layer but one. ClipCap reads one vector, the [CLS] behind
CLIP's output layer; EIM changes that to [CLS] and all patches before the output layer (its Table 9). What stands for
these here:

- Behind the output layer. CLIP ends in a LayerNorm behind the last layer and a linear map, which is what the paper
  means by the output layer. The encoder is kept without the linear map, and nothing is lost by it here, where it is
  square: followed by the connector's first linear layer it is one linear layer, which the connector can learn as it is.
  (In ClipCap's CLIP it makes 512 numbers out of 768, and something is.) So "behind" is the last layer through the
  encoder's own ``post_layernorm``, and "before" the last layer but one without it: depth and LayerNorm change together.
- All features. The 36 patches. [CLS] is not added to them, which is LLaVA's habit too, so that a picture takes 36
  places in the sequence whatever is read.
- One feature. The [CLS], from which a `mirlab.model.connectors.PrefixConnector` makes 36 tokens that differ, as
  ClipCap's mapping network makes a prefix. The vector itself, 36 times, would be 36 equal tokens.

The change hangs on the vision tower, so that all who ask it for hidden states see the same: training and evaluation
through `mirlab.model.train.encoded`, and transformers' own code through ``get_image_features``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from mirlab import world
from mirlab.methods.base import Method, register
from mirlab.model import connectors, miniature, train
from mirlib.align import norms
from mirlib.errors import MirlibError

TOKENS = ("all", "one")


class FeatureChoice(nn.Module):
    """Writes what the connector shall read over the hidden state that it does read.

    It hangs on the vision tower as a module, and its hook is a method of it: a `copy.deepcopy` of the model has its
    own. The buffer ``choice`` tells `miniature.fingerprint` that these are other features; saved with a model it does
    not bring the hook back.
    """

    choice: Tensor

    def __init__(self, tokens: str, output_layer: bool) -> None:
        super().__init__()
        self.one, self.output_layer = tokens == "one", output_layer
        self.register_buffer("choice", torch.tensor([float(self.one), float(output_layer)]))

    def rewrite(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """A forward hook of the vision tower: its output, with another hidden state at `VISION_FEATURE_LAYER`."""
        if isinstance(output, tuple):
            raise MirlibError("the features of a vision tower are chosen by name: call it with return_dict=True")
        states = output.hidden_states
        if states is None or states[miniature.VISION_FEATURE_LAYER] is None:
            return output  # nobody asked for it
        read = states[miniature.VISION_FEATURE_LAYER]  # (n, 1 + 36, 96), [CLS] first
        if self.output_layer:
            read = getattr(tower, "vision_model", tower).post_layernorm(output.last_hidden_state)
        if self.one:
            read = read[:, :1].expand_as(read)
        states = list(states)
        states[miniature.VISION_FEATURE_LAYER] = read
        output["hidden_states"] = tuple(states)
        return output


@register
@dataclass(frozen=True)
class Features(Method):
    """Other features for the connector. ``all`` before the output layer is the plain recipe.

    Attributes:
        tokens: ``all`` patches, or the ``one`` [CLS], through a `connectors.PrefixConnector`.
        output_layer: Whether they are read behind CLIP's output layer.
        hidden: Width of the prefix connector's hidden layer.
    """

    name: ClassVar[str] = "features"

    tokens: str = "all"
    output_layer: bool = False
    hidden: int = 128

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise ValueError(f"tokens must be one of {', '.join(TOKENS)}, not {self.tokens!r}")
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {self.hidden}")

    def attach(self, model: LlavaForConditionalGeneration, *, seed: int) -> list[nn.Parameter]:
        """Hang the choice on the vision tower; for one feature, put a prefix connector where the plain MLP stands.

        Raises:
            MirlibError: Features are chosen already, or a connector of another kind would be lost.
        """
        outer, connector = model.model.vision_tower, model.model.multi_modal_projector
        tower = getattr(outer, "vision_model", outer)
        if hasattr(tower, "feature_choice"):
            raise MirlibError("features are chosen for this vision tower already: begin with a model as it was")
        if self.tokens == "one":
            if not isinstance(connector, LlavaMultiModalProjector) or norms.is_attached(model):
                there = type(norms.find(model) if norms.is_attached(model) else connector).__name__
                raise MirlibError(
                    f"one feature goes through a prefix connector, which would take the place of a {there}: use the "
                    "connector mlp2 without matched norms"
                )
            model.model.multi_modal_projector = connectors.prefix(model, hidden=self.hidden, seed=seed)
        tower.feature_choice = FeatureChoice(self.tokens, self.output_layer)
        outer.register_forward_hook(tower.feature_choice.rewrite)
        return []

    def features(
        self, model: LlavaForConditionalGeneration, scenes: list[world.Scene], chosen: np.ndarray
    ) -> torch.Tensor:
        """The features of the chosen scenes; those of the others, which a run does not read, are zero."""
        seen = train.vision_features(model, [scenes[i] for i in chosen])
        found = torch.zeros(len(scenes), *seen.shape[1:], dtype=seen.dtype)
        found[torch.from_numpy(chosen)] = seen
        return found
