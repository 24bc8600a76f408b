"""Real Hugging Face processors around a tiny byte-level BPE, for the models of `tiny_models`, without any network.

torchvision is not installed, so the Pillow image processors are named by their modules, and video processors, which
need it, are left out. SmolVLM's processor needs one more package (num2words) and is Idefics3's for images.
"""

from __future__ import annotations

from functools import cache

import torch
import transformers
from tiny_models import FAMILIES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mirlib.data import sample_texts

SPECIAL = [
    "<pad>", "<s>", "</s>", "<image>", "<video>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<row_1_col_1>",
]  # fmt: skip

LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
)


def chat_template(image: str, end: str = "</s>") -> str:
    """A template in the manner of Qwen2-VL and SmolVLM, which ends with a line break after its last special token."""
    return (
        "{% for m in messages %}<s>{{ m['role'] }}\n{% for c in m['content'] %}"
        f"{{% if c['type'] == 'image' %}}{image}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{end}\n"
        "{% endfor %}"
    )


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sample_texts(300),
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer.to_str()


def tokenizer(*, trim_offsets: bool = False, adds_bos: bool = False, **options: object) -> PreTrainedTokenizerFast:
    """A fresh tokenizer of 700 entries.

    Args:
        trim_offsets: Whether character spans leave out white space, as in the tokenizers of GPT-2 and Llama 3.
        adds_bos: Whether ``<s>`` is put before every text, as in Llama's.
        options: Passed to `PreTrainedTokenizerFast`.
    """
    backend = Tokenizer.from_str(_trained())
    steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if adds_bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]))
    backend.post_processor = processors.Sequence(steps)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    options = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **options}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def _image_options(side: int) -> dict[str, object]:
    return {"size": {"height": side, "width": side}, "do_convert_rgb": True}


def llava_processor(**options: object) -> transformers.LlavaProcessor:
    template = options.pop("chat_template", LLAVA_TEMPLATE)
    return transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer(**options),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _without_video(processor: type) -> type:
    """The processor class, with nothing where its video processor would be: images and texts never reach that."""

    class WithoutVideo(processor):
        def check_argument_for_proper_class(self, argument_name: str, argument: object) -> object:
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    WithoutVideo.__name__ = processor.__name__
    return WithoutVideo


def _llava_onevision() -> transformers.LlavaOnevisionProcessor:
    return _without_video(transformers.LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(**_image_options(16), image_grid_pinpoints=[[16, 16]]),
        tokenizer(),
        None,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        image_token="<image>",
        video_token="<video>",
        chat_template=chat_template("<image>\n"),
    )


def _qwen2_vl() -> transformers.Qwen2VLProcessor:
    return _without_video(transformers.Qwen2VLProcessor)(
        Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=16 * 16, max_pixels=16 * 24
        ),
        tokenizer(),
        None,
        chat_template=chat_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )


SMALL = {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": False}


def _idefics3() -> transformers.Idefics3Processor:
    template = chat_template("<image>", "<end_of_utterance>")
    return transformers.Idefics3Processor(
        Idefics3ImageProcessorPil(**SMALL), tokenizer(), image_seq_len=4, chat_template=template
    )


BUILDERS = {
    "llava": llava_processor,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "idefics3": _idefics3,
}
IMAGE_TOKENS = {"qwen2_vl": "<|image_pad|>"}


def lvlm(family: str = "llava", **options: object) -> tuple[torch.nn.Module, transformers.ProcessorMixin]:
    """A tiny model with random weights and the processor whose tokens it knows."""
    processor = BUILDERS[family](**options)
    config = next(f for f in FAMILIES if f.name == family).config()
    config.text_config.vocab_size = len(processor.tokenizer)
    config.image_token_id = SPECIAL.index(IMAGE_TOKENS.get(family, "<image>"))
    for name, token in (
        ("video_token_id", "<video>" if family != "qwen2_vl" else "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ):
        if hasattr(config, name):
            setattr(config, name, SPECIAL.index(token))
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval(), processor
