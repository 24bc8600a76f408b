"""A tiny random model of a family with its real processor, saved as a checkpoint folder, without any network.

The parts of a processor are those that transformers names for the family. `small_options` makes them small and fits
them to the config of the tiny model by the names of their settings; `KITS` says only what is particular to a family:
the tokens that its tokenizer names, how its prompts show a picture, settings that depend on one another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import transformers
from tiny_families import FAMILIES, PATCH, SIDE, Family, change, tiny_model, tiny_settings
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from mirlib.data import sample_texts

# Ids below are words that no text holds: the token ids that `tiny_families.shrink` leaves in a config are among them.
RESERVED = 160
SPECIAL = [
    "<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|IMAGE_PAD|>", "<|VIDEO_PAD|>", "<|VISION_START|>", "<|VISION_END|>", "<|im_start|>", "<|im_end|>",
    "<start_of_turn>", "<end_of_turn>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
    "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL",
    *(f"TILE_{tile}" for tile in range(1, 5)), "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<img>", "</img>", "<imgpad>",
    "<|image|>", "<|video|>", "<|patch|>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>",
    "<|tile_x_separator|>", "<|tile_y_separator|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>",
    "<|end_of_video|>", "<racm3:break>", "<eoss>", "|SPEAKER|", "|NEWLINE|", "<0x00>", "<0x01>", "<0x02>", "<0x03>",
    "<0x04>",
    "<|imgpad|>", "<|audio_comp_pad|>", "<|media_pad|>", "<|media_begin|>", "<|media_content|>", "<|media_end|>",
    "<|unused_200054|>", "<|unused_200053|>", "<|content_image|>", "<|content_audio_input|>",
    "<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>",
    "<im_low>", "<patch_start>", "<patch_end>", "<patch_newline>", "<|vid_frame_separator|>", "<|vid_start|>",
    "<|vid_end|>", "<so_embedding>", "<so_start>", "<so_end>", "]<]image[>[", "]<]video[>[", "]<]start of image[>[",
    "]<]end of image[>[", "<IMG_START>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>",
]  # fmt: skip
SIZE = RESERVED + len(SPECIAL) + 256 + 60

CHATML = (
    "{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{{% for c in m['content'] %}}"
    "{{% if c['type'] == 'image' %}}{}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}<|im_end|>\n"
    "{{% endfor %}}"
)
GEMMA_TEMPLATE = (
    "{{{{ bos_token }}}}{{% for m in messages %}}<start_of_turn>"
    "{{{{ 'model' if m['role'] == 'assistant' else m['role'] }}}}\n"
    "{{% for c in m['content'] %}}{{% if c['type'] == 'image' %}}{}{{% else %}}{{{{ c['text'] | trim }}}}{{% endif %}}"
    "{{% endfor %}}<end_of_turn>\n{{% endfor %}}"
)


@dataclass(frozen=True)
class Kit:
    """What is particular to the processor of one family.

    Attributes:
        names: The tokens that the tokenizer names, with blanks between: ``boi`` for ``tokenizer.boi_token``. Those in
            ``tokens`` have that string, others ``<|name|>``.
        tokens: Strings of named tokens.
        shows: How a prompt of the chat template shows a picture; None: the processor's image token.
        template: The chat template, with a place for the picture.
        plain: The prompt of a family without a chat template, with places for the picture and the text.
        image: Options of the image processor.
        video: Options of the video processor.
        options: Options of the processor.
        config: Changes to the config of the tiny model, by dotted names; a function takes the tokenizer.
        processor: The class of the processor, where transformers does not say.
        parts: The classes of other parts, where transformers does not say.
        words: Tokens that are words of the tokenizer, which puts a blank before each text, as SentencePiece does.
    """

    names: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict)
    shows: str | None = None
    template: str = CHATML
    plain: str | None = None
    image: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: str | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    reserved = ["<pad>", "<s>", "</s>", "<unk>", *(f"<reserved_{number}>" for number in range(4, RESERVED))]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[*reserved, *SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_texts(100), trainer)
    return tokenizer.to_str()


def tokenizer_of(kit: Kit) -> PreTrainedTokenizerFast:
    """A byte-level BPE that names the tokens of a family."""
    trained = json.loads(_trained())
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] not in kit.words]
    trained["model"]["ignore_merges"] = bool(kit.words)
    backend = Tokenizer.from_str(json.dumps(trained))
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if kit.words:
        backend.normalizer = normalizers.Prepend(" ")
        alone = pre_tokenizers.Split(Regex("|".join(re.escape(word) for word in kit.words)), "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([alone, whole])
    named = {f"{name}_token": kit.tokens.get(name, f"<|{name}|>") for name in kit.names.split()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        sep_token="<reserved_4>",
        extra_special_tokens=named,
    )


def small_size(size: Mapping[str, int], areas: bool) -> dict[str, int]:
    """What the size of pictures becomes; some processors give areas instead of sides."""
    if areas:
        return {"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}
    return {name: 2 * SIDE if name == "longest_edge" else SIDE for name in size}


def find(settings: Mapping[str, Any], *names: str) -> Any:
    """The first setting of one of the names, in the vision part first."""
    parts = [settings.get(name) for name in ("vision_config", "vision_encoder_config")] + [settings]
    for name in names:
        for part in parts:
            if isinstance(part, Mapping) and part.get(name) is not None:
                return part[name]
    return None


def small_options(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an image or video processor that make it small and fit it to the model."""
    default = {name: getattr(kind, name, None) for name in dir(kind)}
    options: dict[str, Any] = {}
    patch = find(settings, "patch_size")
    patch = patch[0] if isinstance(patch, (list, tuple)) else patch
    fits = {
        "patch_size": patch,
        "encoder_patch_size": patch,
        "vision_patch_size": patch,
        "merge_size": find(settings, "spatial_merge_size", "merge_size"),
        "temporal_patch_size": find(settings, "temporal_patch_size"),
        "pooling_kernel_size": find(settings, "pooling_kernel_size"),
        "image_grid_pinpoints": settings.get("image_grid_pinpoints"),
    }
    for name, value in fits.items():
        if default.get(name) is not None and value is not None:
            options[name] = {side: value for side in default[name]} if isinstance(default[name], dict) else value
    for name in ("size", "crop_size", "max_image_size", "pad_size", "high_res_size"):
        if isinstance(default.get(name), dict):
            areas = "shortest_edge" in default[name] and max(default[name].values()) > 2500
            options[name] = small_size(default[name], areas)
    if isinstance(options.get("max_image_size"), dict):
        options["max_image_size"] = {"longest_edge": SIDE}
    if default.get("min_patches") is not None:
        options |= {"min_patches": min(default["min_patches"], 2), "max_patches": 4}
    return options


def token_settings(settings: Mapping[str, Any], processor: Any) -> Iterator[tuple[str, int]]:
    """The token ids of a config that its processor knows."""
    tokenizer = processor.tokenizer
    for name in settings:
        stem = name.removesuffix("_id").removesuffix("_index")
        if not stem.endswith("_token") or stem in ("bos_token", "eos_token", "pad_token"):
            continue
        token = tokenizer.special_tokens_map.get(stem)
        number = getattr(processor, f"{stem}_id", None) if token is None else tokenizer.convert_tokens_to_ids(token)
        if number is None and getattr(processor, stem, None) is not None:
            number = tokenizer.convert_tokens_to_ids(str(getattr(processor, stem)))
        if isinstance(number, int):
            yield name, number


def widen(settings: dict[str, Any], vocabulary: int) -> None:
    """Room for the tokenizer's words and for sequences as long as real ones, in all parts of a config."""
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    for name, value in settings.items():
        if isinstance(value, dict):
            widen(value, vocabulary)
        elif name in ("vocab_size", "vocab_size_per_layer_input"):
            settings[name] = vocabulary
        elif name in ends and value is not None:
            settings[name] = ends[name]
        elif name == "max_position_embeddings":
            settings[name] = 2048


def class_of(names: Any) -> type:
    """The class that transformers names, of Pillow where torchvision is not installed."""
    if isinstance(names, Mapping):
        names = names.get("torchvision" if find_spec("torchvision") else "pil") or next(iter(names.values()))
    return getattr(transformers, names)


def processor_of(model_type: str, kit: Kit, settings: Mapping[str, Any]) -> Any:
    """The processor of a family, around the tiny tokenizer, fitted to the settings of its tiny model."""
    kind = getattr(transformers, kit.processor or PROCESSOR_MAPPING_NAMES[model_type])
    parts: dict[str, Any] = {}
    for name in kind.get_attributes():
        if "tokenizer" in name:
            parts[name] = tokenizer_of(kit if name == "tokenizer" else Kit())
            continue
        given = kit.parts.get(name)
        if name == "image_processor":
            part = class_of(given or IMAGE_PROCESSOR_MAPPING_NAMES[model_type])
            parts[name] = part(**small_options(part, settings) | dict(kit.image))
        elif name == "video_processor":
            part = class_of(given or VIDEO_PROCESSOR_MAPPING_NAMES[model_type])
            parts[name] = part(**small_options(part, settings) | dict(kit.video))
        else:
            parts[name] = getattr(transformers, given or "WhisperFeatureExtractor")()
    options: dict[str, Any] = {}
    accepted = signature(kind.__init__).parameters
    fits = {
        "patch_size": find(settings, "patch_size"),
        "spatial_merge_size": find(settings, "spatial_merge_size"),
        "vision_feature_select_strategy": settings.get("vision_feature_select_strategy"),
        "num_query_tokens": settings.get("num_query_tokens"),
        "img_size": SIDE,
        "downsample_factor": settings.get("downsample_factor"),
    }
    options |= {name: value for name, value in fits.items() if name in accepted and value is not None}
    if kit.plain is None and "chat_template" in accepted:
        options["chat_template"] = ""
    processor = kind(**parts, **options | dict(kit.options))
    if kit.plain is None:
        shows = kit.shows or processor.image_token
        processor.chat_template = kit.template.format(shows)
    return processor


def packages(model_type: str) -> list[str]:
    """The optional packages that the model and the real processor of a family need."""
    kit = KITS.get(model_type, Kit())
    kind = getattr(transformers, kit.processor or PROCESSOR_MAPPING_NAMES[model_type])
    pictures = kit.parts.get("image_processor") or IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
    declared = getattr(kind, "__backends", None) or getattr(kind, "_backends", ())  # the latter where one is missing
    needed = {
        "torchvision": "torchvision" in declared
        or "video_processor" in kind.get_attributes()
        or "pil" not in (pictures if isinstance(pictures, Mapping) else {"pil": pictures})
        or kind.__name__ == "FuyuProcessor",  # hands tensors to its image processor of Pillow, which takes arrays
        "num2words": kind.__name__ == "SmolVLMProcessor",
        "timm": FAMILIES.get(model_type, Family()).needs == "timm",
    }
    return [name for name, is_needed in needed.items() if is_needed]


def save(model_type: str, folder: Path) -> Any:
    """Save the tiny model of a family and its processor in a folder; return the processor as it was made."""
    kit = KITS.get(model_type, Kit())
    settings = tiny_settings(model_type, FAMILIES.get(model_type, Family()))
    change(settings, {name: value for name, value in kit.config.items() if not callable(value)})
    processor = processor_of(model_type, kit, settings)
    widen(settings, len(processor.tokenizer))
    change(settings, dict(token_settings(settings, processor)))
    made = {name: value(processor) for name, value in kit.config.items() if callable(value)}
    change(settings, made)
    tiny_model(model_type, settings).save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


def token(name: str) -> Callable[[Any], int]:
    """The id of a token, once there is a tokenizer."""
    return lambda processor: processor.tokenizer.convert_tokens_to_ids(name)


IN_VISION = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN = Kit(shows=IN_VISION)
GLM = Kit(
    shows="<|begin_of_image|><|image|><|end_of_image|>",
    processor="Glm46VProcessor",
    parts={"image_processor": "Glm46VImageProcessor", "video_processor": "Glm46VVideoProcessor"},
)
GEMMA = Kit("image boi eoi", options={"image_seq_length": 4}, template=GEMMA_TEMPLATE)
GEMMA4 = Kit(
    "image boi eoi audio boa eoa",
    image={"max_soft_tokens": 70},
    options={"image_seq_length": 70},
    template=GEMMA_TEMPLATE,
    parts={
        "image_processor": "Gemma4ImageProcessor",
        "video_processor": "Gemma4VideoProcessor",
        "feature_extractor": "Gemma4AudioFeatureExtractor",
    },
)
IDEFICS = Kit(options={"image_seq_len": 4})
OWN_PLACEHOLDERS = Kit(plain="{text}", options={"num_query_tokens": 4})
INTERNVL = Kit(
    "start_image end_image context_image video",
    {"start_image": "<img>", "end_image": "</img>", "context_image": "<image>"},
    shows="<image>\n",
    options={"image_seq_length": 4},
)
MINICPM = Kit(
    "image video image_start image_end slice_start slice_end image_id_start image_id_end",
    image={"scale_resolution": SIDE, "max_slice_nums": 4},
)
INKLING = Kit(config={"text_config.unpadded_vocab_size": lambda processor: len(processor.tokenizer)})
OMNI = "image audio video vision_bos vision_eos audio_bos audio_eos"

KITS: dict[str, Kit] = {
    "apertus1p5": Kit(
        "image audio boi eoi image_wrapper eol boa eoa",
        image={"spatial_factor": 4, "size": {"min_pixels": 256, "max_pixels": 1024}},
    ),
    "aria": Kit(  # its processor always makes pictures of 980 pixels
        "image",
        options={"size_conversion": {980: 4}},
        config={
            "vision_config.image_size": 980, "vision_config.patch_size": 98, "projector_patch_to_query_dict": {100: 4}
        },
    ),
    "blip-2": OWN_PLACEHOLDERS,
    "chameleon": Kit(
        options={"image_seq_length": 16}, plain="<image>\n{text}", config={"vocabulary_map.<image>": token("<image>")}
    ),
    "cohere2_vision": Kit("boi eoi image img_line_break", image={"patch_size": 2}),
    "cosmos3_omni": Kit(
        shows=IN_VISION,
        processor="Qwen3VLProcessor",
        parts={"image_processor": "Qwen2VLImageProcessor", "video_processor": "Qwen3VLVideoProcessor"},
    ),
    "deepseek_ocr2": Kit(  # its model has 144 or 256 queries
        image={"size": {"height": 256, "width": 256}, "tile_size": 192, "max_patches": 2},
        options={"patch_size": 4, "downsample_ratio": 4},
    ),
    "deepseek_vl": Kit("image", options={"num_image_tokens": 16}),
    "deepseek_vl_hybrid": Kit("image", options={"num_image_tokens": 16}),
    "diffusion_gemma": GEMMA4,
    "dots3_note": Kit(image={"temporal_patch_size": 1}),
    "emu3": Kit(
        "image boi eoi image_wrapper eof",
        {"image": "<image>"},
        image={"min_pixels": SIDE * SIDE, "max_pixels": 4 * SIDE * SIDE},
        config={"vocabulary_map.<image>": token("<image>"), "vq_config.channel_multiplier": [1, 1, 1, 1]},
    ),
    "ernie4_5_vl_moe": Kit(
        "image image_end image_start video video_end video_start", video={"draw_on_frames": False}
    ),
    "fast_vlm": Kit(
        processor="LlavaProcessor",
        parts={"image_processor": "CLIPImageProcessor"},
        image={"size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128}},
        options={"patch_size": 64},
        shows="<image>\n",
    ),
    "fuyu": Kit(plain="{text}", words=("|SPEAKER|", "|NEWLINE|")),
    "gemma3": GEMMA,
    "gemma3n": Kit(
        "image boi eoi audio boa eoa",
        image={"size": {"height": 64, "width": 64}},
        options={"image_seq_length": 4},
        template=GEMMA_TEMPLATE,
        parts={"feature_extractor": "Gemma3nAudioFeatureExtractor"},
    ),
    "gemma4": GEMMA4,
    "gemma4_unified": replace(
        GEMMA4,
        parts=dict(
            image_processor="Gemma4UnifiedImageProcessor",
            video_processor="Gemma4UnifiedVideoProcessor",
            feature_extractor="Gemma4UnifiedAudioFeatureExtractor",
        ),
    ),
    "git": Kit(plain="{text}"),
    "glm4v": replace(GLM, processor=None, parts={}),
    "glm4v_moe": replace(
        GLM, processor=None, parts={"image_processor": "Glm4vImageProcessor", "video_processor": "Glm4vVideoProcessor"}
    ),
    "glm46v": replace(GLM, processor=None, parts={}),
    "glm5_next": replace(GLM, processor=None, parts={}),
    "glm_ocr": GLM,
    "glmga": replace(GLM, parts={}),
    "got_ocr2": Kit(image={"size": {"height": 256, "width": 256}}, config={"vision_config.image_size": 256}),
    "granite4_vision": Kit(options={"downsample_rate": "1/2", "num_additional_image_tokens": 1}),
    "granite_docling": Kit(options={"image_seq_len": 1}),
    "hunyuan_vl": Kit("image image_start image_end", shows="<|image_start|><|image|><|image_end|>"),
    "hy_v4_vl": QWEN,
    "idefics2": IDEFICS,
    "idefics3": IDEFICS,
    "inkling2": replace(INKLING, image={"size": {"height": 8, "width": 8}}),
    "inkling2_loop": replace(INKLING, image={"size": {"height": 8, "width": 8}}),
    "inkling_mm_model": replace(INKLING, image={"size": {"height": 4, "width": 4}}),
    "instructblip": OWN_PLACEHOLDERS,
    "instructblipvideo": OWN_PLACEHOLDERS,
    "internvl": INTERNVL,
    "janus": Kit("image boi eoi", options={"num_image_tokens": 16}),
    "kosmos-2": Kit(
        plain="{text}",
        processor="Kosmos2Processor",
        parts={"image_processor": "CLIPImageProcessor"},
        options={"num_patch_index_tokens": 4},
        config={"latent_query_num": 64},
    ),
    "kosmos-2.5": Kit(
        "image boi eoi",
        {"image": "<image>"},
        plain="{text}",
        processor="Kosmos2_5Processor",
        options={"num_image_tokens": 4},
        image={"patch_size": {"height": PATCH, "width": PATCH}},
        config={"vision_config.patch_embed_hidden_size": 3 * PATCH * PATCH},
    ),
    "lfm2_vl": Kit(image={"tile_size": SIDE, "min_image_tokens": 1, "max_image_tokens": 4, "max_tiles": 4}),
    "lighton_ocr": Kit("image image_break image_end"),
    "llama4": Kit(config={"image_token_index": token("<|patch|>")}),
    "llava": Kit(options={"num_additional_image_tokens": 1}, shows="<image>\n"),
    "llava_next": Kit(options={"num_additional_image_tokens": 1}, shows="<image>\n"),
    "llava_next_video": Kit(options={"num_additional_image_tokens": 1}, shows="<image>\n"),
    "llava_onevision": Kit(options={"num_image_tokens": 16}),
    "minicpm_ocr": MINICPM,
    "minicpmv4_6": MINICPM,
    "minicpmv4_7": MINICPM,
    "molmo2": Kit(
        image={"max_crops": 2, "overlap_margins": [1, 1]}, config={"image_patch_id": token("<im_patch>")}
    ),
    "ovis2": Kit(
        options={"image_seq_length": 16},
        config={
            "image_token_id": token("<IMG_ATOM>"),
            "visual_indicator_token_ids": lambda processor: processor.tokenizer.convert_tokens_to_ids(
                ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
            ),
        },
    ),
    "paddleocr_vl": Kit("image"),
    "paligemma": Kit(image={"image_seq_length": 16}, plain="<image>\n{text}"),
    "perception_lm": Kit(
        "image video", image={"tile_size": SIDE}, options={"patch_size": PATCH, "pooling_ratio": 1}
    ),
    "pi0": Kit(image={"image_seq_length": 16}, plain="<image>\n{text}"),
    "pp_chart2table": Kit(
        shows=f"<img>{'<imgpad>' * 256}</img>\n",
        image={"size": {"height": 256, "width": 256}},
        config={"vision_config.image_size": 256, "image_token_id": token("<imgpad>")},
    ),
    "qianfan_ocr": INTERNVL,
    "qwen2_5_omni_thinker": Kit(
        OMNI,
        processor="Qwen2_5OmniProcessor",
        parts={"image_processor": "Qwen2VLImageProcessor", "video_processor": "Qwen2VLVideoProcessor"},
    ),
    "qwen2_5_vl": QWEN,
    "qwen2_vl": QWEN,
    "qwen3_5": QWEN,
    "qwen3_5_moe": QWEN,
    "qwen3_omni_moe_thinker": Kit(
        OMNI,
        processor="Qwen3OmniMoeProcessor",
        parts={"image_processor": "Qwen2VLImageProcessor", "video_processor": "Qwen2VLVideoProcessor"},
    ),
    "qwen3_vl": QWEN,
    "qwen3_vl_moe": replace(QWEN, parts={"image_processor": "Qwen2VLImageProcessor"}),
    "qwen4_exp": QWEN,
    "shieldgemma2": GEMMA,
    "smolvlm": IDEFICS,
    "step3p7": Kit(image={"patch_size": SIDE, "max_image_size": 2 * SIDE}),
    "unlimited_ocr": Kit(
        image={"size": {"height": 64, "width": 64}, "tile_size": 64}, options={"patch_size": 4, "downsample_ratio": 4}
    ),
    "video_llava": Kit(image={"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}),
}  # fmt: skip
