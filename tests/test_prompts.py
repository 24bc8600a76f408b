"""From images and texts to inputs: the rows of the text are exactly those of the text."""

import json
import re
import time
import unicodedata

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_processors import BUILDERS, LLAVA_TEMPLATE, SPECIAL, chat_template, llava_processor, tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from mirlib import MirlibError, prompts
from mirlib.data import sample_images, sample_texts
from mirlib.prompts import _Listener, build_prompt, encode_batch, shorten, used_template

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
    with pytest.raises(MirlibError, match=f"the text '{special}' is made of special tokens alone"):
        encode_batch(PROCESSOR, PAIR, [special, "other"])


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
    assert build_prompt(BUILDERS["qwen2_vl"](), "Hi.", "plain") == "<|image_pad|>\nHi."
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
        build_prompt(NoImages(), "Hi.")


# Templates are programs of strangers.

TEXT = "{{ c['text'] }}"
PARTS = "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}%s{% endif %}"
ENDS = "{% endfor %}{% endfor %}"


def with_text_as(expression):
    return PARTS.replace("%s", expression) + ENDS


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", r"fails \(TypeError: can only concatenate"),
        ("{{ raise_exception('roles must alternate') }}", r"fails \(TemplateError: roles must alternate\)"),
        ("{{ nothing.here.there }}", r"fails \(UndefinedError: 'nothing' is undefined\)"),
        ("{% for m in messages %}{{ m['role'] ", r"fails \(TemplateSyntaxError: unexpected end of template"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", r"fails \(RecursionError"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "changes the text"),
        (with_text_as(TEXT * 2), "writes the text 2 times, not once"),
        (with_text_as("{{ c['text'] | e }}"), "changes the text"),
        (with_text_as("{{ c['text'][:500] }}"), "changes the text"),
        (with_text_as("{{ c['text'].split() | join(' ') }}"), "changes the text"),
        (with_text_as(TEXT).replace("<image>", ""), "must .* writes 0 before it and 0 behind it"),
        (with_text_as(TEXT).replace("<image>", "<image><image>"), "must .* writes 2 before it and 0 behind it"),
        (with_text_as(TEXT).replace("messages", "messages | reverse"), "must .* writes 0 before it and 1 behind"),
        ("{{ 'x' * 1000000000 }}", r"fails \(it takes more than 512 MiB\)"),
        ("{{ 'x' | center(9000000000) }}", r"fails \(it takes more than 512 MiB\)"),
        ("{{ 'x' * 2000000 }}", r"fails \(it writes 2000000 characters\)"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_used(template, sentence):
    with pytest.raises(MirlibError, match=f"the chat template {sentence}.*--template plain"):
        encode_batch(llava_processor(chat_template=template), PAIR, TEXTS)
    rows_hold(llava_processor(chat_template=template), TEXTS, template="plain")


def test_a_template_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(prompts, "SECONDS", 1)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(
        MirlibError, match=r"the chat template takes more than 1 s for one short text; .*--template plain"
    ):
        encode_batch(llava_processor(chat_template=endless), PAIR, TEXTS)
    monkeypatch.setattr(prompts, "PATIENCE", 0.2)  # for what waits and computes nothing
    with pytest.raises(MirlibError, match="the work takes more than"):
        prompts.bounded(lambda: time.sleep(60) or "", "the work", "do less")


def test_what_was_used_in_place_of_a_template_that_is_missing():
    processor = llava_processor(chat_template=None)
    processor.tokenizer.chat_template = LLAVA_TEMPLATE  # of the language model, which knew no images
    assert used_template(processor, "chat") == "plain" == used_template(PROCESSOR, "plain")
    assert used_template(PROCESSOR, "chat") == "chat"
    rows_hold(processor, TEXTS)


# Processors do more to a prompt than they are asked.


def test_the_text_is_found_where_a_processor_adds_to_the_prompt(monkeypatch):
    """As PaliGemma's: a first token behind the image and a line break at the end, which merges with the last token."""
    processor = llava_processor(chat_template=None)
    inner = type(processor).prepare_inputs_layout

    def layout(self, images=None, text=None, **options):
        images, text, *rest = inner(self, images=images, text=text, **options)
        return images, [prompt.replace("<image>", "<image><s>") + "\n" for prompt in text], *rest

    monkeypatch.setattr(type(processor), "prepare_inputs_layout", layout)
    rows_hold(processor, TEXTS)
    rows_hold(processor, ["s", "The dog barks. " * 20])


@pytest.mark.parametrize("kind", ["Blip2", "InstructBlip"])
@pytest.mark.parametrize("template", [None, with_text_as(TEXT)])
def test_processors_that_write_the_placeholders_themselves_get_no_second_one(kind, template):
    tokenizers = [tokenizer() for _ in range(1 + (kind == "InstructBlip"))]
    processor = getattr(transformers, f"{kind}Processor")(BlipImageProcessorPil(), *tokenizers, num_query_tokens=8)
    processor.chat_template = template
    batch = rows_hold(processor, TEXTS)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (batch["input_ids"] == image).sum(dim=1).tolist() == [8, 8]
    assert not batch["text_mask"][:, :8].any()


def test_images_are_nested_for_processors_that_count_them_in_each_sample():
    """As those of Gemma 3, SmolVLM and LFM2-VL."""
    processor = llava_processor()
    seen = []

    class Counting(type(processor)):
        def __call__(self, images=None, text=None, **options):
            seen.append([len(sample) for sample in images])
            return super().__call__(images=images, text=text, **options)

    processor.__class__ = Counting
    rows_hold(processor, TEXTS)
    assert seen == [[1, 1]]


def unigram():
    """As SentencePiece makes them: NFKC, no unknown letters but an unknown token, blanks as ▁."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=[*SPECIAL, "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(sample_texts(60), trainer)
    return backend, "<unk>"


def wordpiece():
    """As BERT's: lower case, no accents, unknown words."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=[*SPECIAL, "[UNK]"], show_progress=False)
    backend.train_from_iterator(sample_texts(60), trainer)
    return backend, "[UNK]"


def byte_fallback():
    """As Llama 2's: blanks as ▁ in the normalizer, unknown letters as bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=len(names) + 300, special_tokens=names, show_progress=False)
    backend.train_from_iterator((text.replace(" ", "▁") for text in sample_texts(60)), trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state)), "<unk>"


STRANGE = [
    "The quick brown fox.", "Ünïcode, CAPITALS… and “quotes”", "emoji 😀👩\u200d👩\u200d👧 done", "שלום עולם",
    "e\u0301 NFD", "tab\tand\r\nbreaks\n\nand  two  spaces", "ﬁ ligature ½ ²", "世界 x", "x", "\u00a0no-break\u00a0a",
]  # fmt: skip


@pytest.mark.parametrize("kind", [unigram, wordpiece, byte_fallback])
def test_other_kinds_of_tokenizers_raise_no_false_alarm(kind):
    backend, unknown = TRAINED.setdefault(kind, kind())
    processor = llava_processor(chat_template=chat_template("<image>\n"))
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    processor.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token=unknown
    )
    inside = re.compile(r"[^a-z]")
    for text in STRANGE:
        batch = encode_batch(processor, PAIR, [text, "other words"])
        # What is known reads as it was written; accents, case and letters without a token may be gone.
        known = inside.sub("", text_of(processor, batch, 0).replace(unknown, "").lower())
        assert set(known) <= set(inside.sub("", unicodedata.normalize("NFKD", text).lower()))
        assert text_of(processor, batch, 1).replace(" ", "") == "otherwords"
        before = processor.tokenizer.decode(batch["input_ids"][0][: int(batch["text_mask"][0].nonzero()[0, 0])])
        assert before.replace(unknown, "").split()[-1] == "assistant"


TRAINED = {}


def test_rows_that_do_not_read_as_the_text_are_refused(monkeypatch):
    """A tokenizer whose spans are one token late is one whose rows would be silently wrong."""

    class Late(_Listener):
        def __call__(self, *args, **options):
            answer = super().__call__(*args, **options)
            self._heard[:] = [(text, Shifted(encoding)) for text, encoding in self._heard]
            return answer

    class Shifted:
        def __init__(self, encoding):
            self.ids, self.attention_mask = encoding.ids, encoding.attention_mask
            self.offsets = [(0, 0), *encoding.offsets[:-1]]

    monkeypatch.setattr("mirlib.prompts._Listener", Late)
    with pytest.raises(MirlibError, match="the text 'The quick brown fox, said the judge.' cannot be found for sure"):
        encode_batch(PROCESSOR, PAIR, TEXTS)


# What processors and tokenizers raise, and what single texts do wrong.


def test_settings_that_a_processor_lacks_are_named():
    processor = llava_processor()
    processor.patch_size = None
    with pytest.raises(MirlibError, match=r"LlavaProcessor cannot prepare its inputs \(TypeError: .*lack patch_size"):
        encode_batch(processor, PAIR, TEXTS)
    assert not isinstance(processor.tokenizer, _Listener)


def test_texts_that_cannot_be_used_are_named_with_their_source():
    class Named(str):
        source = "pairs.jsonl, line 7"

    for text, problem in (("see <image>", "holds the model's placeholder '<image>'"), ("\ud800", "half a surrogate")):
        with pytest.raises(MirlibError, match=rf"\(pairs\.jsonl, line 7\).*{problem}"):
            encode_batch(PROCESSOR, PAIR[:1], [Named(text)])


def test_a_very_long_text_is_cut_before_it_is_tokenized():
    text = "The dog barks at 3 cats. " * 400_000  # ten megabytes
    asked = []

    class Counting(_Listener):
        def __call__(self, *args, **options):
            asked.append(sum(map(len, args[:1] if isinstance(args[0], str) else args[0])))
            return super().__call__(*args, **options)

    processor = llava_processor()
    processor.tokenizer = Counting(processor.tokenizer)
    short = shorten(processor, text, 20)
    assert max(asked) < 1000 and 20 <= len(processor.tokenizer(short).input_ids) <= 21
    assert text.startswith(short)
