"""From images and texts to inputs: the rows of the text are exactly those of the text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_processors import BUILDERS, LLAVA_TEMPLATE, SPECIAL, chat_template, llava_processor
from tokenizers import normalizers

from mirlib import MirlibError
from mirlib.data import sample_images, sample_texts
from mirlib.prompts import build_prompt, encode_batch, image_token

TEXTS = ["The quick brown fox, said the judge.", "I know."]
IMAGES = list(sample_images(4))
PAIR = IMAGES[:2]


def text_of(processor, batch, row):
    ids = batch["input_ids"][row][batch["text_mask"][row]]
    return processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def rows_hold(processor, texts, **options):
    batch = encode_batch(processor, IMAGES[: len(texts)], texts, **options)
    for row, text in enumerate(texts):
        assert text_of(processor, batch, row).strip() == text.strip()
        positions = batch["text_mask"][row].nonzero()[:, 0]
        assert positions.tolist() == list(range(int(positions[0]), int(positions[-1]) + 1)), "rows with a gap"
    return batch


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_text_rows_decode_to_the_text_in_every_family(family, template):
    processor = BUILDERS[family]()
    batch = rows_hold(processor, TEXTS, template=template)
    ids, mask = batch["input_ids"], batch["text_mask"]
    assert mask.shape == ids.shape == batch["attention_mask"].shape
    assert not (mask & (batch["attention_mask"] == 0)).any(), "padding"
    special = torch.isin(ids, torch.arange(len(SPECIAL)))
    assert not (mask & special).any(), "special tokens or placeholders"
    outside = processor.tokenizer.decode(ids[0][~mask[0] & ~special[0]])
    assert not any(word in outside for word in TEXTS[0].split()), "a part of the text was left out"
    assert "judge" in processor.tokenizer.decode(ids[0][mask[0]])


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(
    "template",
    [LLAVA_TEMPLATE, chat_template("<image>"), chat_template("<image>", "</s>\n\n "), chat_template("<image>", "")],
    ids=["llava", "line break at the end", "more white space at the end", "no end token"],
)
def test_all_kinds_of_tokenizers_and_templates(trim_offsets, adds_bos, padding_side, template):
    processor = llava_processor(
        trim_offsets=trim_offsets, adds_bos=adds_bos, padding_side=padding_side, chat_template=template
    )
    batch = rows_hold(processor, TEXTS)
    assert batch["attention_mask"][1, -1] == 0, "padding belongs on the right, whatever the tokenizer's own side is"
    assert processor.tokenizer.padding_side == padding_side, "the processor was changed"


def test_a_tokenizer_that_strips_white_space():
    """The last token then ends before the prompt does."""
    processor = llava_processor(chat_template=chat_template("<image>", "\n\n"))
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    rows_hold(processor, TEXTS)


@pytest.mark.parametrize(
    "text",
    [
        "s", "/s", "<", ">", "a", "S", "ASSISTANT", "USER:", "assistant", "user\n", "image",
        "tab\tand\nbreaks\n\nand  two spaces", "x" * 2000, "  white space around \n", "\u00a0no-break\u00a0",
        "e\u0301 and é", "नमस्ते 世界 مرحبا", "emoji 😀👩\u200d👩\u200d👧 done", "😀", "a\u200bb", "\ufeffmark",
        "{{ messages }} {% raw %}", "%s {} \\n \\", "NUL \x00 inside",
    ],
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
@pytest.mark.parametrize("template", [LLAVA_TEMPLATE, chat_template("<image>")], ids=["llava", "chat"])
@pytest.mark.parametrize("trim_offsets", [False, True])
def test_odd_texts(text, template, trim_offsets):
    """Short ones too, which the template may hold as well: "s" stands in "</s>"."""
    rows_hold(llava_processor(chat_template=template, trim_offsets=trim_offsets), [text, TEXTS[0]])


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1).filter(lambda text: text.strip() and "<" not in text and "\r" not in text))
def test_any_text(text):
    """Any string at all; only surrogates, which are no characters, cannot be encoded."""
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        return
    rows_hold(PROCESSOR, [text])


PROCESSOR = llava_processor()


@pytest.mark.parametrize("special", ["</s>", "<s>", "<pad>", "<end_of_utterance>"])
def test_special_tokens_that_a_text_spells_out_are_no_text_rows(special):
    batch = encode_batch(PROCESSOR, PAIR, [f"before {special} after", "other"])
    assert text_of(PROCESSOR, batch, 0).split() == ["before", "after"]
    with pytest.raises(MirlibError, match=f"the text '{special}' cannot be found for sure among the tokens"):
        encode_batch(PROCESSOR, PAIR, ["other", special])


def test_an_unknown_word_is_text():
    processor = llava_processor(unk_token="q", chat_template=chat_template("<image>"))
    batch = encode_batch(processor, PAIR, ["q", "other"])
    assert batch["input_ids"][0][batch["text_mask"][0]].tolist() == [processor.tokenizer.unk_token_id]


@pytest.mark.parametrize("placeholder", ["<image>", "<video>"])
def test_texts_that_hold_a_placeholder_are_refused(placeholder):
    processor = BUILDERS["llava_onevision"]()
    text = f"see {placeholder} here"
    with pytest.raises(MirlibError, match=f"the text '{text}' holds the model's placeholder '{placeholder}'; leave"):
        encode_batch(processor, PAIR, [text, "other"])


def test_texts_are_cut_after_so_many_tokens():
    text = sample_texts(1)[0]
    for limit in (1, 5, 20):
        batch = encode_batch(PROCESSOR, PAIR[:1], [text], max_text_tokens=limit)
        assert text.startswith(text_of(PROCESSOR, batch, 0).strip())
        assert limit <= int(batch["text_mask"].sum()) <= limit + 1  # the first word may stand apart from its space
    whole = encode_batch(PROCESSOR, PAIR[:1], [text], max_text_tokens=10**6)
    assert text_of(PROCESSOR, whole, 0).strip() == text
    for limit in (0, -1):
        with pytest.raises(MirlibError, match=rf"--max-text-tokens\) must be at least 1, got {limit}"):
            encode_batch(PROCESSOR, PAIR[:1], [text], max_text_tokens=limit)


def test_a_text_of_a_hundred_thousand_characters():
    text = " ".join(sample_texts(250))
    text = (text * 3)[:100_000].strip()
    batch = encode_batch(PROCESSOR, PAIR[:1], [text])
    assert text_of(PROCESSOR, batch, 0).strip() == text


def test_a_batch_has_the_rows_of_its_samples_alone():
    texts = sample_texts(4)
    together = encode_batch(PROCESSOR, IMAGES, texts)
    for row, (image, text) in enumerate(zip(IMAGES, texts, strict=True)):
        alone = encode_batch(PROCESSOR, [image], [text])
        length = alone["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][row, :length], alone["input_ids"][0])
        assert torch.equal(together["text_mask"][row, :length], alone["text_mask"][0])
        assert torch.equal(together["pixel_values"][row], alone["pixel_values"][0])
        assert not together["attention_mask"][row, length:].any() and not together["text_mask"][row, length:].any()


def test_without_a_padding_token_one_text_at_a_time_works():
    processor = llava_processor(pad_token=None)
    with pytest.raises(MirlibError, match=r"no padding token.*pad_token, or take batch_size=1"):
        encode_batch(processor, PAIR, TEXTS)
    rows_hold(processor, TEXTS[:1])


def test_prompts():
    assert build_prompt(PROCESSOR, "Hi.", "plain") == "<image>\nHi."
    assert build_prompt(PROCESSOR, "Hi.") == "<s>USER: <image>\n ASSISTANT: Hi.</s>"
    assert build_prompt(llava_processor(chat_template=None), "Hi.") == "<image>\nHi."
    assert image_token(PROCESSOR) == "<image>" and image_token(BUILDERS["qwen2_vl"]()) == "<|image_pad|>"
    with pytest.raises(MirlibError, match="unknown template 'nonsense'; choose one of chat, plain"):
        build_prompt(PROCESSOR, "Hi.", "nonsense")


@pytest.mark.parametrize("change", ["upper", "replace('o', 'a')", "truncate(9)"])
def test_templates_that_change_the_text_are_refused(change):
    processor = llava_processor(chat_template=LLAVA_TEMPLATE.replace("c['text']", f"c['text'] | {change}"))
    with pytest.raises(MirlibError, match="the chat template changes the text.*template='plain'"):
        encode_batch(processor, PAIR, TEXTS)


def test_processors_that_cannot_do_it():
    class Slow:
        image_token = "<image>"
        chat_template = None

        class tokenizer:
            is_fast = False

    with pytest.raises(MirlibError, match="needs a fast tokenizer"):
        encode_batch(Slow(), PAIR, TEXTS)

    class NoImages:
        class tokenizer:
            pass

    with pytest.raises(MirlibError, match="names no image token; is it the processor of an LVLM"):
        image_token(NoImages())
