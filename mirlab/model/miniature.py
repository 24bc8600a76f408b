"""The parts of the miniature LLaVA: a CLIP-style encoder, a Llama-style language model, and the two joined.

All of them are ordinary `transformers` classes with small configurations, so whatever reads a LLaVA reads this one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import LlavaForConditionalGeneration as Llava
from transformers import PreTrainedTokenizerFast as Tokenizer

from mirlab import world
from mirlab.world import language

PATCH_SIZE = 8
VISION_TOKENS = (world.IMAGE_SIZE // PATCH_SIZE) ** 2
VISION_DIM = 96
VISION_FEATURE_LAYER = -2
"""The encoder's hidden state that the projector reads, as in LLaVA the last layer but one, without its CLS token."""

ATTENTION = "eager"
"""How attention is computed in training: on a CPU the backward pass of PyTorch's fused attention is slow."""

CAPTION_TOKENS = 5 * len(world.CELLS) + 2
"""Longest full caption in tokens, with ``<s>`` and ``</s>``."""


_TOKENS = {"vocab_size": language.VOCABULARY_SIZE, "pad_token_id": language.PAD}
_TOKENS |= {"bos_token_id": language.BOS, "eos_token_id": language.EOS}


def image_processor():
    """Scale to 48 x 48 by the shorter side, crop the middle, and map pixels to [-1, 1]."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = world.IMAGE_SIZE
    scale = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return CLIPImageProcessorPil(**scale, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def pixel_values(scenes: list[world.Scene]) -> torch.Tensor:
    """Scenes as the encoder reads them: float32 (n, 3, 48, 48) in [-1, 1], what `image_processor` gives for them."""
    pixels = torch.from_numpy(world.render_batch(scenes))  # (n, 48, 48, 3)
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def new_encoder(*, dim: int = VISION_DIM, layers: int = 4, seed: int = 0) -> CLIPModel:
    """A small CLIP with random weights; its vision tower becomes the encoder, its text tower is only a teacher."""
    both = {"hidden_size": dim, "intermediate_size": 4 * dim, "num_attention_heads": 4, "hidden_act": "gelu"}
    seen = {"num_hidden_layers": layers, "image_size": world.IMAGE_SIZE, "patch_size": PATCH_SIZE}
    read = {"num_hidden_layers": 2, "max_position_embeddings": CAPTION_TOKENS, **_TOKENS}
    return _new(CLIPModel, CLIPConfig(vision_config=both | seen, text_config=both | read, projection_dim=dim), seed)


def new_language_model(*, dim: int = 128, layers: int = 5, heads: int = 4, seed: int = 0) -> LlamaForCausalLM:
    """A small Llama with random weights and tied embeddings."""
    size = {"hidden_size": dim, "intermediate_size": 3 * dim, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = LlamaConfig(**size, **_TOKENS, max_position_embeddings=1024, tie_word_embeddings=True)
    return _new(LlamaForCausalLM, config, seed)


def _new(kind: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> Any:
    config._attn_implementation = ATTENTION
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config)


def insert_identity_layers(model: LlamaForCausalLM, count: int, *, seed: int = 0) -> LlamaForCausalLM:
    """A deeper model with the same logits: `count` new layers, spread evenly, whose output projections are zero.

    They add nothing to the residual stream, yet the gradient of those projections is not zero.
    """
    old, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    deeper = new_language_model(dim=model.config.hidden_size, layers=old + count, heads=heads, seed=seed)
    weights = {k: v for k, v in model.state_dict().items() if ".layers." not in k}
    deeper.load_state_dict(weights, strict=False)  # the layers follow, one by one
    new_after = {max(1, round((i + 1) * old / (count + 1))) for i in range(count)}
    if len(new_after) != count:
        raise ValueError(f"at most {old} layers can be inserted into a model of {old}, not {count}")
    layers = iter(deeper.model.layers)
    for index, layer in enumerate(model.model.layers, start=1):
        next(layers).load_state_dict(layer.state_dict())
        if index in new_after:
            new = next(layers)
            nn.init.zeros_(new.self_attn.o_proj.weight)
            nn.init.zeros_(new.mlp.down_proj.weight)
    return deeper


def assemble(encoder: CLIPModel, llm: LlamaForCausalLM, *, seed: int = 0) -> Llava:
    """Join copies of a trained encoder and a trained language model by a fresh two-layer MLP projector, in float32."""
    settings = {"image_token_id": language.IMAGE, "image_seq_length": VISION_TOKENS}
    seen = {"vision_feature_layer": VISION_FEATURE_LAYER, "vision_feature_select_strategy": "default"}
    return join(encoder.vision_model, llm, seed=seed, **settings, **seen)


def join(tower: PreTrainedModel, llm: LlamaForCausalLM, *, seed: int, **settings: Any) -> Llava:
    """A LLaVA of copies of a vision tower and a language model (tied), with a fresh projector."""
    parts = {"vision_config": tower.config.to_dict(), "text_config": llm.config.to_dict()}
    config = LlavaConfig(**parts, tie_word_embeddings=True, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Llava(config)
    own = model.model.vision_tower
    getattr(own, "vision_model", own).load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.tie_weights()
    return model.eval()


def language_model_of(model: Llava) -> LlamaForCausalLM:
    """The language model inside a LLaVA as a model of its own (a copy, float32)."""
    with torch.random.fork_rng():
        llm = LlamaForCausalLM(model.config.text_config)
    llm.model.load_state_dict(model.model.language_model.state_dict())
    llm.lm_head.load_state_dict(model.lm_head.state_dict())
    return llm.eval()


def fingerprint(module: nn.Module, *, without: str | None = None) -> str:
    """Of all weights, rounded to float16, but those `without` a part of their name: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        if without is None or without not in name:
            digest.update(name.encode() + weight.half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def new_processor(tokenizer: Tokenizer) -> LlavaProcessor:
    """The processor of the miniature: pictures to pixels, ``<image>`` to 36 image tokens, messages to a prompt."""
    return LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=language.CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def save_miniature(model: Llava, processor: LlavaProcessor, folder: str | Path) -> Path:
    """Save model (float16 safetensors) and processor as any LLaVA is saved; the model in memory stays float32."""
    folder = Path(folder)
    dtype = model.dtype
    try:
        model.half().save_pretrained(folder)
    finally:
        model.to(dtype)
    processor.save_pretrained(folder)
    return folder
