"""Tiny LVLMs with random weights, one for each family that the tests speak of, and inputs with image placeholders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    Qwen2VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)

VOCABULARY = 64
IMAGE = 60
VIDEO = 61
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def llava_config() -> LlavaConfig:
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=4,
    )


def llava_onevision_config() -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION),
        text_config=Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[16, 16]],
    )


def qwen2_vl_config() -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 24,
            "hidden_size": TEXT["hidden_size"],
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=58,
        vision_end_token_id=59,
    )


def _idefics3(config_class: type) -> Idefics3Config | SmolVLMConfig:
    return config_class(
        vision_config={**VISION, "patch_size": 4},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )


@dataclass(frozen=True)
class Family:
    """One family: its config, its pixel inputs for ``batch`` samples, and vision tokens per image."""

    name: str
    config: Callable[[], object]
    pixels: Callable[[int], dict[str, torch.Tensor]]
    image_tokens: int

    def model(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(self.config()).eval()

    def inputs(self, batch: int = 2, text: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
        """``<bos> image… text`` rows; the second sample is 2 tokens shorter and right-padded."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 50, (batch, 1 + self.image_tokens + text), generator=generator)
        ids[:, 0] = 1
        ids[:, 1 : 1 + self.image_tokens] = IMAGE
        attention = torch.ones_like(ids)
        if batch > 1:
            ids[1, -2:] = 0
            attention[1, -2:] = 0
        inputs = {"input_ids": ids, "attention_mask": attention, **self.pixels(batch)}
        if self.name == "qwen2_vl":
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        return inputs


def _pixels(*shape: int) -> Callable[[int], torch.Tensor]:
    return lambda batch: torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))


FAMILIES = (
    Family("llava", llava_config, lambda n: {"pixel_values": _pixels(3, 16, 16)(n)}, 4),
    Family(
        "llava_onevision",
        llava_onevision_config,
        # One base view and one tile of 2 x 2 patches, and a new-line token after each row of the tile.
        lambda n: {"pixel_values": _pixels(2, 3, 16, 16)(n), "image_sizes": torch.tensor([[16, 16]] * n)},
        4 + 4 + 2,
    ),
    Family(
        "qwen2_vl",
        qwen2_vl_config,
        # 4 x 4 patches of 4 pixels, merged 2 x 2.
        lambda n: {
            "pixel_values": _pixels(16, 3 * 2 * 4 * 4)(n).flatten(0, 1),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * n),
        },
        4,
    ),
    Family("smolvlm", lambda: _idefics3(SmolVLMConfig), lambda n: {"pixel_values": _pixels(1, 3, 16, 16)(n)}, 4),
    Family("idefics3", lambda: _idefics3(Idefics3Config), lambda n: {"pixel_values": _pixels(1, 3, 16, 16)(n)}, 4),
)
