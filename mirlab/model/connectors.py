"""What stands between encoder and language model (Table 4 of the MIR paper), and LoRA for the language model."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers import LlavaForConditionalGeneration as Llava
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from mirlab.model import miniature
from mirlab.recipes import CONNECTORS
from mirlib.align import norms

LORA_RANK = 8
_LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class QFormerConnector(nn.Module):
    """Learned queries that read the patches through two layers of a BLIP-2 Q-Former, then a linear layer."""

    def __init__(self, vision_dim: int, text_dim: int, queries: int) -> None:
        super().__init__()
        widths = {"hidden_size": vision_dim, "encoder_hidden_size": vision_dim, "intermediate_size": 4 * vision_dim}
        numbers = {"num_hidden_layers": 2, "num_attention_heads": 4, "cross_attention_frequency": 1}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = Blip2QFormerConfig(**widths, **numbers, **dropout)
        config._attn_implementation = miniature.ATTENTION
        self.queries = nn.Parameter(0.02 * torch.randn(1, queries, vision_dim))
        self.qformer = Blip2QFormerModel(config)
        self.linear = nn.Linear(vision_dim, text_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, patches, d_vision) to (n, queries, d)."""
        queries = self.queries.expand(len(features), -1, -1)
        return self.linear(self.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state)


def replace(model: Llava, connector: str = "mlp2", *, norm_matched: bool = False, seed: int = 0) -> nn.Module:
    """Give a model a fresh connector, one of `CONNECTORS`, in place, and return it; others are refused.

    `norm_matched` rescales every vision token to the mean norm of the text embeddings.
    """
    vision_dim, text_dim = model.config.vision_config.hidden_size, model.config.text_config.hidden_size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if connector == "mlp2":
            fresh: nn.Module = LlavaMultiModalProjector(model.config)
        elif connector in ("mlp1", "mlp4"):
            widths = [vision_dim] + [text_dim] * int(connector[-1])
            layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
            fresh = nn.Sequential(*[part for layer in layers for part in (layer, nn.GELU())][:-1])
        elif connector == "qformer":
            fresh = QFormerConnector(vision_dim, text_dim, miniature.VISION_TOKENS)
        else:
            raise ValueError(f"connector must be one of {', '.join(CONNECTORS)}, not {connector!r}")
    model.model.multi_modal_projector = fresh
    if norm_matched:
        norms.attach(model, "matched", projector="model.multi_modal_projector")
    return fresh


def add_lora(model: Llava, *, seed: int = 0) -> list[nn.Parameter]:
    """Put low-rank adapters beside every projection matrix of the language model, in place; their parameters."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=_LORA_TARGETS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.model.language_model)
    return [p for name, p in model.model.language_model.named_parameters() if ".lora_" in name]


def merge_lora(model: Llava) -> None:
    """Add the adapters to the weights that they stand beside, and take them away."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in list(model.model.language_model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()
                setattr(module, name, child.get_base_layer())
