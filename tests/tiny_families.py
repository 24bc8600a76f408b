"""A tiny random model of every image-text-to-text family of transformers, and inputs with image placeholders for it.

`shrink` turns the default config of a family into a small one by the names of its settings; `FAMILIES` says only what
is particular to a family: settings that depend on one another, and what its pixels look like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from mirlib.hidden_states import decoder_parts

# Nearly every width is the same, so that what one part hands on fits the next without a rule for each pair.
WIDTH, HEADS, HEAD, VOCABULARY, PATCH, SIDE = 64, 4, 16, 256, 4, 16
IMAGE = 7
SPARE = range(200, 250)  # ids of ordinary text, which no config names

# What a setting becomes, by its name; an integer never grows, and None stays None.
SIZES = (
    (r"(conf_)?(num_)?(hidden_|encoder_|decoder_|global_)?layers|n_layers|depth|num_decoder_layers|resampler_depth", 2),
    (r"vocab_size|vocab_size_per_layer_input", VOCABULARY),
    (r"\w*intermediate_size\w*|(encoder_|decoder_)?ffn_dim|d_ff|mlp_dim|share_expert_dim", 96),
    (r"(\w+_)?head_dim|d_kv|resampler_dim_head", HEAD),
    (r"qk_head_dim", 2 * HEAD),
    (r"\w*lora_rank|laurel_rank|hc_lowrank", 16),
    (r"(\w+_)?hidden_size|hidden_size_per_layer_input|d_model|(word_)?embed(_proj)?_dim|(vision_)?output_dim", WIDTH),
    (r"projection_(hidden_)?dim|adapter_(in|out)_dim|adapter_input_size|projector_(in|out)put_dim", WIDTH),
    (r"ple_embed_dim|output_channels|pooler_output_size|mm_embed_dim", WIDTH),
    (r"(\w+_)?num_key_value_heads|linear_num_key_heads", 2),
    (r"(\w+_)?num_(sliding_)?(attention_|value_)?heads|(encoder_|decoder_)?attention_heads", HEADS),
    (r"resampler_n?_?heads|index_n_heads", HEADS),
    (r"(moe_)?num_(local_)?experts|n_routed_experts", 4),
    (r"num_experts_per_tok|moe_k|moe_topk|top_k_experts", 2),
    (r"n_groups?|topk_group|num_nextn_predict_layers|num_mtp_layers|num_kv_shared_layers|first_k_dense_replace", 1),
    (r"(moe_num|n)_shared_experts", 1),
    (r"patch_size", PATCH),
    (r"image_size", SIDE),
    (r"max_position_embeddings|relative_attention_max_distance|max_source_positions", 512),
    (r"num_position_embeddings|position_embedding_size", 16),
    (r"sliding_window(_size)?|attention_chunk_size", 16),
)
CHOICES = {
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
    "global_attn_indexes": [1],
    "image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]],
}
# One entry a layer: transformers fills them in from the number of layers, or `kinds` below does.
PER_LAYER = re.compile(
    r"layers_block_type|no_rope_layers|layer_rope_theta|indexer_types|kv_source_layers|full_attn_idxs|moe_layers"
    r"|rope_scaling_layers|per_layer_config|activation_sparsity_pattern|mtp_\w*layer\w*|(mlp_)?layer_types"
)
TOKEN_ID = re.compile(
    r"\w*token_(id|index)s?|(image_)?(start|end|patch|newline)_id|slice_(start|end)_id|im_(start|end|newline)_id"
)
NOT_SIZES = {"id2label", "label2id", "label_names", "num_classes", "dtype", "transformers_version", "_name_or_path"}
GENERIC = NOT_SIZES | {"architectures", "is_encoder_decoder", "return_dict", "problem_type", "chunk_size_feed_forward"}


def shrink(settings: Mapping[str, Any], ids: dict[int, int] | None = None) -> dict[str, Any]:
    """The settings of a default config, made small; one layer of every kind that the default has, and at least two.

    Args:
        settings: ``config.to_dict()``.
        ids: Old to new token ids, shared by the parts of a config; special tokens keep 0, 1 and 2.
    """
    ids = {} if ids is None else ids
    small = {name: _small(name, value, settings, ids) for name, value in settings.items() if name not in GENERIC}
    small = {name: value for name, value in small.items() if not PER_LAYER.fullmatch(name)}
    types, mlps = (settings.get(name) or [] for name in ("layer_types", "mlp_layer_types"))
    length = max(len(types), len(mlps))
    kinds = list(dict.fromkeys(zip(types or [None] * length, mlps or [None] * length, strict=True)))
    if kinds:
        kinds = kinds * 2 if len(kinds) == 1 else kinds
        small.update({name: len(kinds) for name in ("num_hidden_layers", "depth") if name in small})
        columns = zip(("layer_types", "mlp_layer_types"), zip(*kinds, strict=True), strict=True)
        small.update({name: list(column) for name, column in columns if settings.get(name)})
    for name in ("image_token_id", "image_token_index"):
        if name in small and small[name] is None:
            small[name] = IMAGE
    return small


def _small(name: str, value: Any, settings: Mapping[str, Any], ids: dict[int, int]) -> Any:
    if isinstance(value, Mapping) and "model_type" in value:
        return shrink(value, ids)
    if name == "initializer_range" and value:
        return max(value, 0.02)  # some start from nearly nothing, and rounding would swallow the picture
    if value is None or isinstance(value, bool):
        return value
    if name in CHOICES:
        return CHOICES[name]
    if TOKEN_ID.fullmatch(name):
        renumber = lambda old: ids.setdefault(old, old if old < 3 else 10 + len(ids))  # noqa: E731
        return [renumber(each) for each in value] if isinstance(value, list) else renumber(value)
    if name == "num_key_value_heads" and value == settings.get("num_attention_heads"):
        return HEADS
    size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
    if size is None:
        return value
    if isinstance(value, list):
        return [min(each, size) for each in value] if all(isinstance(each, int) for each in value) else value
    return min(value, size) if isinstance(value, int) else value


Pixels = Callable[[int, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Family:
    """What is particular to one family.

    Attributes:
        settings: Changes to the small config, by dotted names.
        pixels: Makes the pixel inputs of a batch; None: by the arguments of the model.
        tokens: Placeholders a sample; None: as many as the model says that it has features.
        needs: A package without which the model cannot be built.
        untested: Why nothing is measured here, if so.
        last: How the model itself returns its last layer, see `mirlib.capture`; all but Gemma 3n return it normed.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    pixels: Pixels | None = None
    tokens: int | None = None
    needs: str | None = None
    untested: str | None = None
    last: str = "normed"


def noise(*shape: int, name: str = "pixel_values") -> Pixels:
    """One tensor of (batch, *shape) normal numbers."""
    return lambda batch, generator: {name: torch.randn(batch, *shape, generator=generator)}


def with_fixed(pixels: Pixels, **fixed: Callable[[int], Tensor]) -> Pixels:
    """More inputs, made from the batch size."""
    return lambda batch, generator: pixels(batch, generator) | {name: make(batch) for name, make in fixed.items()}


def patches(*width: int, grid: tuple[int, int, int] = (1, 4, 4), **fixed: Callable[[int], Tensor]) -> Pixels:
    """All patches of the batch in one tensor, and the grid (frames, rows, columns) of each picture."""
    count = grid[0] * grid[1] * grid[2]

    def pixels(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "pixel_values": torch.randn(batch * count, *width, generator=generator),
            "image_grid_thw": torch.tensor([grid] * batch),
        }

    return with_fixed(pixels, **fixed)


def sizes(*size: int) -> Callable[[int], Tensor]:
    """The same (height, width) for each picture."""
    return lambda batch: torch.tensor([size] * batch)


def ones(*shape: int, dtype: torch.dtype = torch.bool) -> Callable[[int], Tensor]:
    """(batch, *shape) of ones, for masks."""
    return lambda batch: torch.ones(batch, *shape, dtype=dtype)


def zeros(*shape: int) -> Callable[[int], Tensor]:
    """(batch, *shape) of zeros, for inputs that have nothing to do with pictures."""
    return lambda batch: torch.zeros(batch, *shape)


def placed_patches(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Kosmos-2.5: row, column and pixels of each of 4 x 4 patches."""
    where = corners(batch).flip(-1).float() + 1
    pixels = torch.randn(batch, 16, WIDTH, generator=generator)
    return {"flattened_patches": torch.cat([where, pixels], dim=-1)}


def pooled(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Molmo2: 4 x 4 patches a picture, and which four of them make a token."""
    square = torch.tensor([0, 1, 4, 5])
    tokens = torch.cat([16 * sample + corner + square for sample in range(batch) for corner in (0, 2, 8, 10)])
    return {
        "pixel_values": torch.randn(batch, 16, PATCHED, generator=generator),
        "image_token_pooling": tokens.reshape(-1, 4),
        "image_grids": torch.tensor([[2, 2, 0, 0]] * batch),
        "image_num_crops": torch.ones(batch, dtype=torch.long),
    }


def strip(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """MiniCPM-V: the patches of all pictures side by side in one strip of one patch's height, and their grids."""
    return {
        "pixel_values": torch.randn(1, 3, PATCH, batch * 16 * PATCH, generator=generator),
        "target_sizes": torch.tensor([[4, 4]] * batch, dtype=torch.int32),
    }


def corners(batch: int) -> Tensor:
    """(batch, 16, 2): column and row of each of 4 x 4 patches."""
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    return torch.stack([columns, rows], dim=-1).reshape(1, 16, 2).repeat(batch, 1, 1)


def rope(*sections: int, part: str = "text_config", **more: Any) -> dict[str, Any]:
    """Multimodal rotary positions that fit the small heads: the sections add up to half of the rotated dimensions."""
    return {
        f"{part}.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}
    }


RGB = (3, SIDE, SIDE)
PATCHED = 3 * PATCH * PATCH
TILES = Family(pixels=with_fixed(noise(5, *RGB), image_sizes=sizes(32, 32)))  # a whole view and 2 x 2 tiles
SIZED = Family(pixels=with_fixed(noise(*RGB), image_sizes=sizes(SIDE, SIDE)))
GLM = Family(rope(4, 2, 2))
QWEN = Family(rope(4, 2, 2) | {"vision_start_token_id": 20, "vision_end_token_id": 21})
GEMMA = Family({"mm_tokens_per_image": 4})
GEMMA4_VISION = {
    "model_type": "gemma4_vision", "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD, "patch_size": PATCH,
    "pooling_kernel_size": 2, "position_embedding_size": 64,
}  # fmt: skip
QFORMER = {
    "qformer_input_ids": lambda batch: torch.full((batch, 4), 50),
    "qformer_attention_mask": ones(4, dtype=torch.long),
}
VQ = {"vq_config.base_channels": 32, "vq_config.channel_multiplier": [1, 1, 1], "image_token_id": None}
MINICPM = Family({"insert_layer_id": 0}, strip)

FAMILIES: dict[str, Family] = {
    "apertus1p5": Family(
        {
            "vision_config.codebook_size": 32, "vision_config.embed_dim": 32, "vision_config.latent_channels": 32,
            "vision_config.base_channels": 32, "vision_config.channel_multiplier": [1, 1, 1],
            "vision_config.num_res_blocks": 1, "vision_config.resolution": SIDE, "image_token_offset": 20,
            "audio_token_offset": 52, "audio_config.codebook_size": 32, "audio_config.codebook_dim": WIDTH,
        },
        SIZED.pixels,
    ),
    "aria": Family({"projector_patch_to_query_dict": {16: 4}}),
    "blip-2": Family({"num_query_tokens": 4, "qformer_config.hidden_size": WIDTH}, tokens=4),
    "chameleon": Family(
        {
            **VQ, "vq_config.resolution": SIDE, "vq_config.num_embeddings": 32, "vq_config.embed_dim": 32,
            "vq_config.latent_channels": 32,
            # A code of the picture is a word: IMGIMG, its digits as letters, Z.
            "vocabulary_map": {"<image>": IMAGE}
            | {f"IMGIMG{''.join(chr(65 + int(digit)) for digit in str(code))}Z": 20 + code for code in range(32)},
        },
    ),
    "cohere_compass": Family(
        {"text_config.layer_types": ["sliding_attention", "full_attention"],
         "text_config.rope_parameters": {kind: rope(4, 2, 2)["text_config.rope_parameters"] for kind in
                                         ("full_attention", "sliding_attention")}}
    ),
    "deepseek_ocr2": Family(
        {
            "text_config.mlp_layer_types": ["dense", "sparse"], "text_config.num_experts_per_tok": 2,
            "text_config.n_group": 1, "text_config.topk_group": 1,
            "vision_config.sam_config.downsample_channels": [WIDTH, WIDTH],
        },
        noise(3, 64, 64),
    ),
    "deepseek_vl_hybrid": Family(
        pixels=with_fixed(noise(*RGB), high_res_pixel_values=lambda batch: torch.zeros(batch, *RGB))
    ),
    "emu3": Family(
        {
            **VQ, "vq_config.codebook_size": 128, "vq_config.hidden_size": 32,
            "vocabulary_map": {"<image>": IMAGE, "<|extra_200|>": 9}
            | {f"<|visual token {code:06d}|>": 20 + code for code in range(128)},
        },
        SIZED.pixels,
    ),
    "cosmos3_edge": GLM,
    "diffusion_gemma": Family(
        {
            "vision_config": GEMMA4_VISION, "canvas_length": 8, "text_config.num_experts": 4,
            "text_config.top_k_experts": 2, "text_config.moe_intermediate_size": 96,
        },
        with_fixed(
            noise(16, PATCHED), image_position_ids=corners, decoder_input_ids=lambda batch: torch.full((batch, 8), 210)
        ),
        tokens=4,
    ),
    "ernie4_5_vl_moe": Family(rope(3, 3, 2)),
    "fast_vlm": Family(
        {
            "vision_config.initializer_range": 0.3, "vision_config.model_args": {
                "inference_mode": True, "layers": [1] * 5, "embed_dims": [8, 8, 16, 32, 32], "mlp_ratios": [2] * 5,
                "layer_scale_init_value": 1.0,
            },
        },
        noise(3, 128, 128), needs="timm",
    ),
    "fuyu": Family(pixels=noise(16, PATCHED, name="image_patches")),
    "gemma3": GEMMA,
    "gemma3n": Family(
        {
            "vision_soft_tokens_per_image": 4, "vision_config.hidden_size": 64, "text_config.intermediate_size": 96,
            "vision_config.architecture": "test_convnext", "text_config.num_kv_shared_layers": 0,
            "text_config.layer_types": ["sliding_attention", "full_attention"],
        },
        noise(3, 64, 64), needs="timm", last="raw",
    ),
    "gemma4": Family(
        {"vision_config": GEMMA4_VISION}, with_fixed(noise(16, PATCHED), image_position_ids=corners), tokens=4
    ),
    "gemma4_unified": Family(
        {
            "vision_config": {
                "model_type": "gemma4_unified_vision", "patch_size": PATCH, "mm_embed_dim": WIDTH,
                "model_patch_size": PATCH, "pooling_kernel_size": 1, "output_proj_dims": WIDTH,
            },
        },
        with_fixed(noise(16, PATCHED), image_position_ids=corners),
        tokens=16,
    ),
    "glm46v": GLM,
    "glm4v": GLM,
    "glm4v_moe": Family(rope(2, 1, 1, partial_rotary_factor=0.5)),
    "glm_ocr": GLM,
    "glmga": GLM,
    "granite4_vision": Family(
        {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1] * 4, "downsample_rate": "1/2"}, TILES.pixels
    ),
    "granite_docling": Family(pixels=with_fixed(noise(1, *RGB), pixel_attention_mask=ones(1))),
    "hy_v4_vl": Family(rope(4, 2, 2) | {"vision_config.max_image_size": 64}),
    "hunyuan_vl": Family(rope(2, 2, 2, 2) | {"text_config.head_dim": HEAD, "vision_config.max_image_size": 64}),
    "idefics2": Family({"perceiver_config.resampler_n_latents": 4}, noise(1, *RGB), tokens=4),
    "idefics3": Family(pixels=noise(1, *RGB), tokens=4),
    "inkling2": Family(pixels=patches(2 * PATCH, 2 * PATCH, 3, grid=(1, 2, 2))),
    "inkling2_loop": Family(pixels=patches(2 * PATCH, 2 * PATCH, 3, grid=(1, 2, 2))),
    "inkling_mm_model": Family({"vision_config.n_layers": 2}, noise(2, PATCH, PATCH, 3)),
    "instructblip": Family({"num_query_tokens": 4}, with_fixed(noise(*RGB), **QFORMER), tokens=4),
    "instructblipvideo": Family(
        {"num_query_tokens": 4, "video_token_index": IMAGE}, with_fixed(noise(2, *RGB), **QFORMER), tokens=8
    ),
    "janus": Family({"vq_config.base_channels": 32, "vq_config.channel_multiplier": [1, 1, 1]}),
    "kimi_k25": Family(pixels=patches(3, PATCH, PATCH)),
    "kosmos-2": Family({"latent_query_num": 4}, tokens=4),
    "kosmos-2.5": Family({"latent_query_num": 4}, placed_patches, tokens=4),
    "lfm2_vl": Family(
        {"text_config.layer_types": ["conv", "full_attention"]},
        with_fixed(
            noise(16, PATCHED), spatial_shapes=sizes(4, 4), pixel_attention_mask=ones(16, dtype=torch.long)
        )
    ),
    "lighton_ocr": SIZED,
    "llama4": Family(
        {"vision_config.intermediate_size": 4 * WIDTH},
        untested="transformers 5.24.0 asks its language model for an output (image_outputs) that it does not have"
        if transformers.__version__ == "5.24.0" else None,
    ),
    "llava_next": TILES,
    "llava_next_video": TILES,
    "llava_onevision": TILES,
    "minicpm_ocr": MINICPM,
    "minicpmv4_6": MINICPM,
    "minicpmv4_7": MINICPM,
    "mistral3": SIZED,
    "mistral_large4": SIZED,
    "molmo2": Family({"adapter_config.vision_feature_layer": [1, 0], "vision_config.image_size": [SIDE, SIDE]}, pooled),
    "muse_glimmer": Family({"out_hidden_size": 4 * WIDTH}, patches(2 * PATCHED)),
    "muse_spark": Family(
        {
            "out_hidden_size": 4 * WIDTH, "audio_config.patch_sizes": [4, 2], "audio_config.hidden_sizes": [32, WIDTH],
            "audio_config.depths": [1, 1],
        },
        patches(2 * PATCHED),
    ),
    "nemotron_h_omni": Family(
        pixels=lambda batch, generator: {
            "pixel_values": torch.randn(batch * 16, PATCHED, generator=generator),
            "image_grid_hw": sizes(4, 4)(batch),
        },
    ),
    "paddleocr_vl": Family(rope(4, 2, 2), patches(3, PATCH, PATCH)),
    "perception_lm": Family(
        {
            "vision_config.architecture": "vit_pe_core_large_patch14_336", "vision_config.model_args": {
                "embed_dim": WIDTH, "img_size": [SIDE, SIDE], "patch_size": PATCH, "depth": 2, "num_heads": HEADS,
                "global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1, "ref_feat_shape": [4, 4],
            },
        },
        noise(1, *RGB), needs="timm",
    ),
    "pi0": Family(
        pixels=with_fixed(
            noise(1, *RGB), pixel_attention_mask=ones(1), state=zeros(32), noise=zeros(50, 32), timestep=zeros()
        ),
        tokens=16,
    ),
    "qwen2_5_omni_thinker": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen2_vl": QWEN,
    "qwen3_omni_moe_thinker": QWEN,
    "qwen4_exp": Family(
        rope(4, 2, 2)
        | {
            "text_config.indexer_n_heads": HEADS, "text_config.indexer_kv_heads": 1,
            "text_config.indexer_head_dim": HEAD, "text_config.indexer_budget": 64,
            "text_config.indexer_compress_ratio": 4,
        },
    ),
    "shieldgemma2": GEMMA,
    "smolvlm": Family(pixels=noise(1, *RGB)),
    "step3p7": Family({"text_config.sliding_window": 16}),
    "unlimited_ocr": Family({"vision_config.sam_config.downsample_channels": [WIDTH, WIDTH]}, noise(3, 64, 64)),
    "video_llama_3": Family(pixels=patches(PATCHED, image_merge_sizes=lambda batch: torch.full((batch,), 2))),
    "vipllava": Family({"vision_feature_layers": [-1, -2], "vision_feature_layer": [-1, -2]}),
}  # fmt: skip


def model_class(model_type: str) -> type[nn.Module]:
    """The class that transformers names for a model type."""
    return getattr(transformers, CLASSES[model_type])


def tiny_settings(model_type: str, family: Family) -> dict[str, Any]:
    """The settings of a small config of a family."""
    settings = shrink(CONFIG_MAPPING[model_type]().to_dict())
    change(settings, family.settings)
    settings.pop("model_type", None)
    return settings


def change(settings: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put in other values, by dotted names."""
    for name, value in changes.items():
        *path, last = name.split(".")
        place = settings
        for part in path:
            place = place[part]
        place[last] = value


def tiny_model(model_type: str, settings: dict[str, Any]) -> nn.Module:
    """A small random model of a family, in evaluation mode."""
    torch.manual_seed(0)
    model = model_class(model_type)(CONFIG_MAPPING[model_type](**settings)).eval()
    # Some projections start at zero, and would let nothing of the picture through.
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model


class Case:
    """A tiny model of a family and its inputs.

    Attributes:
        model: The model.
        tokens: Placeholders of the picture of one sample.
    """

    def __init__(self, model_type: str) -> None:
        self.family = FAMILIES.get(model_type, Family())
        self.model = tiny_model(model_type, tiny_settings(model_type, self.family))
        self.accepted = signature(self.model.forward).parameters
        self.tokens = 0

    def pixels(self, batch: int, seed: int) -> dict[str, Tensor]:
        """The pixel inputs of a batch, one picture a sample."""
        generator = torch.Generator().manual_seed(1000 + seed)
        if self.family.pixels is not None:
            return self.family.pixels(batch, generator)
        if "image_grid_thw" not in self.accepted:
            return noise(*RGB)(batch, generator)
        vision = self.model.config.vision_config
        frames = getattr(vision, "temporal_patch_size", 1) or 1
        return patches(frames * PATCHED)(batch, generator)

    def inputs(self, batch: int = 2, seed: int = 0, text: int = 7) -> dict[str, Tensor]:
        """``<bos> 2 words, the picture, text``; the last sample is 2 tokens shorter and padded on the right."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(SPARE.start, SPARE.stop, (batch, 3 + self.tokens + text), generator=generator)
        ids[:, 0] = 1
        ids[:, 3 : 3 + self.tokens] = self.image_id
        attention = torch.ones_like(ids)
        if batch > 1:
            ids[-1, -2:], attention[-1, -2:] = 0, 0
        kinds = {name: (ids == self.image_id).int() for name in self.accepted if name.endswith("token_type_ids")}
        if self.model.config.model_type == "paligemma":
            kinds = {"token_type_ids": torch.zeros_like(ids)}  # all of it is the prefix, which sees itself whole
        if "image_embeds_position_mask" in self.accepted:
            kinds["image_embeds_position_mask"] = ids == self.image_id
        return {"input_ids": ids, "attention_mask": attention, **kinds, **self.pixels(batch, seed)}

    @property
    def image_id(self) -> int:
        """The placeholder's id."""
        config = self.model.config
        named = [getattr(config, name, None) for name in ("image_token_id", "image_token_index", "image_patch_id")]
        found = (*named, *decoder_parts(self.model).vision_token_ids, IMAGE)
        return next(i for i in found if i is not None)

    def find_tokens(self) -> None:
        """Ask the model how many placeholders a picture takes, by the features that it counts them against."""
        if self.family.tokens is not None or not decoder_parts(self.model).vision_token_ids:
            self.tokens = self.family.tokens or 0
            return
        self.tokens = 1
        inputs = self.inputs()
        with torch.no_grad(), PlaceholderMasks(self.model) as seen:
            try:
                self.model(**inputs)
            except Exception as error:  # one placeholder is too few: the model says so after it has counted
                if not seen.features:
                    raise error
        self.tokens = seen.features[0] // len(inputs["input_ids"])


class PlaceholderMasks:
    """Listens to ``get_placeholder_mask`` of a model: how many features it was given and which mask it returned."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [module for module in model.modules() if hasattr(module, "get_placeholder_mask")]
        self.features: list[int] = []
        self.masks: list[Tensor] = []

    def __enter__(self) -> PlaceholderMasks:
        for module in self.modules:
            module.__dict__["get_placeholder_mask"] = self._listen(module.get_placeholder_mask)
        return self

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            del module.__dict__["get_placeholder_mask"]

    def _listen(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def listening(*args: Any, **kwargs: Any) -> Any:
            given = signature(method).bind(*args, **kwargs).arguments
            for name, value in given.items():
                if name.endswith("features") and value is not None:
                    value = torch.cat(list(value)) if isinstance(value, (list, tuple)) else value
                    self.features.append(value.numel() // value.shape[-1])
            result = method(*args, **kwargs)
            every = result if isinstance(result, tuple) else (result,)
            every = [mask[..., 0] if mask.ndim == 3 else mask for mask in every if mask is not None]
            self.masks.append(torch.stack(torch.broadcast_tensors(*every)).any(dim=0))
            return result

        return listening
