"""How well the miniature reads, sees and describes, always beside what a blind model reaches.

Half of all yes-no questions are answered rightly by a coin. So every measure of the whole model comes with the picture,
with another scene's picture (*permuted*), and, where that makes sense, with no picture at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM
from transformers import LlavaForConditionalGeneration as Llava
from transformers import PreTrainedTokenizerFast as Tokenizer

from mirlab import world
from mirlab.model import cells, precision, sequence, train
from mirlab.world import language

_BATCH = 128


def held_out_scenes(count: int, *, seed: int = 0, digits: float = world.DIGIT_SHARE) -> list[world.Scene]:
    """Scenes of a stream of random numbers that no training draws from, with digits in hands that none has seen."""
    rng = np.random.default_rng([seed, 99])
    return [world.sample_scene(rng, digits=digits, held_out=True) for _ in range(count)]


def questions_about(scenes: Sequence[world.Scene], kind: str) -> list[tuple[int, world.Question]]:
    """One question of a kind for each scene that allows one, with the scene's number."""
    rng = np.random.default_rng([0, 98, world.QUESTION_KINDS.index(kind)])
    asked = ((i, world.ask(scene, kind, rng)) for i, scene in enumerate(scenes))
    return [(i, question) for i, question in asked if question is not None]


# -------------------- Questions
@torch.no_grad()
def text_accuracy(
    llm: LlamaForCausalLM, tokenizer: Tokenizer, *, form: str = "chat", scenes: int = 600, permuted: bool = False
) -> dict[str, float]:
    r"""Share of right answers to questions about textual scenes, by kind of question (exact match of the one word).

    The form is ``chat`` (``USER: scene \n question ASSISTANT:``) or ``facts`` (``scene \n facts : short question``).
    Each of the held-out scenes is asked one question of each kind that it allows; `permuted` shows another scene than
    the one asked about, the blind baseline.
    """
    drawn = held_out_scenes(scenes)
    encode = language.segment_encoder(tokenizer)
    rng = np.random.default_rng([0, 97])
    accuracy = {}
    for kind in world.QUESTION_KINDS:
        asked = questions_about(drawn, kind)
        prompts = []
        for position, (index, question) in enumerate(asked):
            shown = drawn[asked[position - 1][0]] if permuted else drawn[index]
            parts = [text for text, _ in language.textual_scene(shown, rng)]
            if form == "chat":
                parts = ["USER:", *parts, "\n", f" {question.text}", " ASSISTANT:"]
            else:
                parts = [*parts, "\n facts :", f" {question.short}"]
            prompts.append([language.BOS, *(i for part in parts for i in encode(part))])
        given = []
        for batch in batches(len(prompts)):
            ids, last = padded_prompts(prompts[batch])
            hidden = llm.model(input_ids=ids, use_cache=False).last_hidden_state[torch.arange(len(ids)), last]
            given.append(llm.lm_head(hidden).argmax(-1))
        answers = torch.tensor([encode(f" {question.answer}")[0] for _, question in asked])
        accuracy[kind] = (torch.cat(given) == answers).sum().item() / len(asked)
    return accuracy


def batches(count: int) -> list[slice]:
    """What is read at a time of so many rows."""
    return [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]


@dataclass(frozen=True)
class Answers:
    """What a model answered to questions, by kind.

    `accuracy` is the share of right answers (exact match of the one word, greedy). `discrimination` is the mean
    probability of the right answer among those that the kind allows (softmax over their logits); it needs no
    fine-tuning (RADAR, arXiv 2602.12892). `count` is the number of questions.
    """

    accuracy: dict[str, float]
    discrimination: dict[str, float]
    count: dict[str, int]

    @property
    def mean_accuracy(self) -> float:
        """Mean over the kinds."""
        return float(np.mean(list(self.accuracy.values())))

    @property
    def mean_discrimination(self) -> float:
        """Mean over the kinds."""
        return float(np.mean(list(self.discrimination.values())))


def candidates(question: world.Question) -> tuple[str, ...]:
    """The answers that a kind of question allows; shapes and digits do not mix."""
    if question.kind == "shape_at":
        return world.DIGITS if question.answer in world.DIGITS else world.SHAPES
    known = {"count": world.NUMBERS, "size": tuple(world.SIZES), "where": world.CELLS}
    known |= dict.fromkeys(("colour", "colour_at"), tuple(world.COLOURS))
    known |= dict.fromkeys(("exist", "relation"), ("yes", "no"))
    return known[question.kind]


@torch.no_grad()
def image_answers(
    model: Llava,
    tokenizer: Tokenizer,
    *,
    scenes: int = 600,
    permuted: bool = False,
    shots: str = "none",
    digits: float = world.DIGIT_SHARE,
) -> Answers:
    """Ask questions about pictures, in the form of the chat template; zero-shot after stage 1 alone.

    Args:
        model: The whole model.
        tokenizer: Its tokenizer.
        scenes: Number of held-out scenes; each is asked one question of each kind that it allows.
        permuted: Show another scene's picture: the blind baseline.
        shots: ``none``, or two fixed solved examples before the question: ``text`` in words, as the authors' in-context
            score has them, ``image`` with their pictures.
        digits: Share of scenes whose things are handwritten digits.
    """
    if shots not in ("none", "text", "image"):
        raise ValueError(f"shots must be none, text or image, not {shots!r}")
    drawn = held_out_scenes(scenes, digits=digits)
    encode = language.segment_encoder(tokenizer)
    embed = model.get_input_embeddings()

    def embedded(*parts: str, start: bool = False) -> sequence.Embedded:
        ids = [language.BOS] * start + [i for part in parts for i in encode(part)]
        return sequence.words(embed(torch.tensor(ids)))

    image = model.model.multi_modal_projector(train.vision_features(model, drawn).float())  # (n, 36, d)
    if shots == "none":  # the pictures are read once, and all kinds of question asked behind them
        with precision.multiplying():
            begun = sequence.begin(model, embedded("USER:", start=True), sequence.image(image))
    answers = Answers({}, {}, {})
    for kind in world.QUESTION_KINDS:
        numbers, asked = zip(*questions_about(drawn, kind), strict=True)
        shown = torch.tensor(numbers).roll(int(permuted))
        if shots != "none":  # the examples are read once
            examples = sequence.join(_shots(model, embedded, kind, shots), embedded("</s>USER:"))
            examples = sequence.Embedded(examples.embeddings[None], examples.vision)
            with precision.multiplying():
                begun = sequence.begin(model, examples)
        right, probability = 0, 0.0
        prompts = question_prompts(asked, encode)
        for batch in batches(len(asked)):
            if shots == "none":
                logits = logits_behind(model, prompts[batch], behind=begun.rows(shown[batch]))
            else:
                behind = begun.rows(torch.zeros_like(shown[batch]))
                logits = logits_behind(model, prompts[batch], sequence.image(image[shown[batch]]), behind=behind)
            for row, given, question in zip(logits, logits.argmax(-1), asked[batch], strict=True):
                words = candidates(question)
                first = [encode(f" {word}")[0] for word in words]
                place = words.index(question.answer)
                right += given.item() == first[place]
                probability += row[first].softmax(0)[place].item()
        answers.accuracy[kind], answers.discrimination[kind] = right / len(asked), probability / len(asked)
        answers.count[kind] = len(asked)
    return answers


def question_prompts(questions: Sequence[world.Question], encode: Callable[[str], Sequence[int]]) -> list[list[int]]:
    """What stands behind a picture that is asked about."""
    return [[i for part in ("\n", f" {q.text}", " ASSISTANT:") for i in encode(part)] for q in questions]


def logits_behind(
    model: Llava, prompts: list[list[int]], *pieces: sequence.Embedded, behind: sequence.Begun | None = None
) -> torch.Tensor:
    """Float32 logits (n, vocabulary) of the first token after each prompt, which stands behind the pieces."""
    ids, last = padded_prompts(prompts)
    asked = sequence.words(model.get_input_embeddings()(ids))
    with precision.multiplying():
        hidden = sequence.read(model, *pieces, asked, answers_from=last + 1, behind=behind)
    hidden = hidden[torch.arange(len(ids)), last + hidden.shape[1] - ids.shape[1]].float()
    return model.lm_head(hidden).float()


def _shots(model: Llava, embedded: Callable[..., sequence.Embedded], kind: str, shots: str) -> sequence.Embedded:
    """Two solved examples of a kind, the same for every model and question."""
    rng = np.random.default_rng([world.QUESTION_KINDS.index(kind), 96])
    parts: list[sequence.Embedded] = []
    while len(parts) < 6:
        scene = world.sample_scene(rng, digits=0.0)
        question = world.ask(scene, kind, rng)
        if question is None:
            continue
        parts.append(embedded("</s>USER:") if parts else embedded("USER:", start=True))
        if shots == "text":
            parts.append(embedded(*(text for text, _ in language.textual_scene(scene, rng))))
        else:
            shown = model.model.multi_modal_projector(train.vision_features(model, [scene]).float())
            parts.append(sequence.image(shown[0]))
        parts.append(embedded("\n", f" {question.text}", " ASSISTANT:", f" {question.answer}"))
    return sequence.join(*parts)


def padded_prompts(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as a rectangle (n, length), padded on the right, and the index of each one's last token (n,)."""
    return train.padded(prompts), torch.tensor([len(prompt) - 1 for prompt in prompts])


# -------------------- Captions
@torch.no_grad()
def caption_scores(
    model: Llava, tokenizer: Tokenizer, *, image: str = "own", scenes: int = 1000, detail: str = "full"
) -> dict[str, float]:
    """Scores on held-out captions, each word predicted from the right words before it.

    They are ``loss`` (nats a token), ``perplexity``, and for full captions the share of ``size``, ``colour``, ``shape``
    and ``position`` words predicted rightly. The image is ``own``, ``permuted`` (another scene's picture) or ``none``;
    others are refused.
    """
    if image not in ("own", "permuted", "none"):
        raise ValueError(f"image must be own, permuted or none, not {image!r}")
    drawn = held_out_scenes(scenes)
    features = None if image == "none" else train.vision_features(model, drawn).roll(int(image == "permuted"), dims=0)
    ids = train.caption_rows(drawn, language.segment_encoder(tokenizer), detail=detail)
    found = []
    for batch in batches(scenes):
        with precision.multiplying():
            shown = None if features is None else features[batch].float()
            found.append(train.caption_losses(model, ids[batch], shown))
    losses, predicted = map(torch.cat, zip(*found, strict=True))
    loss = losses.mean().item()
    scores = {"loss": loss, "perplexity": float(np.exp(loss))}
    if detail == "full":
        hit, targets = predicted == ids[:, 1:], ids[:, 1:]
        for slot, name in enumerate(world.CAPTION_SLOTS):
            places = torch.arange(slot, targets.shape[1] - 1, 5)  # a sentence has five tokens, the dot being the last
            there = (targets[:, places] != language.PAD) & (targets[:, places] != language.EOS)
            scores[name] = hit[:, places][there].float().mean().item()
    return scores


@torch.no_grad()
def write_captions(model: Llava, tokenizer: Tokenizer, features: torch.Tensor) -> list[str]:
    """Captions that the model writes by itself, word by word (24 at most), for vision features (n, 36, 96)."""
    embed = model.get_input_embeddings()
    prompt = sequence.join(
        sequence.words(embed(torch.tensor([language.BOS]))),
        sequence.image(model.model.multi_modal_projector(features.float())),
        sequence.words(embed(torch.tensor(tokenizer.encode("\n", add_special_tokens=False)))),
    )
    attended = torch.ones(prompt.embeddings.shape[:2], dtype=torch.long)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": language.PAD}
    with sequence.announced(model, prompt):
        output = model.generate(inputs_embeds=prompt.embeddings, attention_mask=attended, **options)
    return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]


def written_scores(
    model: Llava, tokenizer: Tokenizer, *, permuted: bool = False, scenes: int = 300
) -> dict[str, float]:
    """How right the captions are that the model writes by itself.

    ``exact`` is the share of captions right to the last word, ``f1`` the F1 of the things named (position, size, colour
    and shape all right) against the things there.
    """
    drawn = held_out_scenes(scenes)
    captions = write_captions(model, tokenizer, train.vision_features(model, drawn).roll(int(permuted), dims=0))
    right = named = there = exact = 0
    for scene, text in zip(drawn, captions, strict=True):
        truth, claims = {thing.words for thing in scene.things}, set(world.parse_caption(text))
        right, named, there = right + len(truth & claims), named + len(claims), there + len(truth)
        exact += text == world.caption(scene)
    return {"exact": exact / len(drawn), "f1": 2 * right / (named + there)}


# -------------------- Real English, and the encoder
@torch.no_grad()
def english_loss(llm: LlamaForCausalLM, tokenizer: Tokenizer, *, kind: str) -> dict[str, float]:
    """Loss on real texts (`language.ENGLISH_KINDS`) that the model never read: nats a token and bits a character.

    Windows of held-out texts that repeat what stands in texts that were read are left out, see `language.unread`.
    """
    losses, tokens, characters = 0.0, 0, 0
    for topic in language.english_texts(kind, held_out=True):
        ids = torch.tensor(tokenizer.backend_tokenizer.encode(topic, add_special_tokens=False).ids)
        windows = ids[: len(ids) // 128 * 128].reshape(-1, 128)
        unread = [language.unread(tokenizer.decode(window)) for window in windows]
        windows = windows[torch.tensor(unread, dtype=torch.bool)][:32]
        if not len(windows):  # a short text, or one that repeats what was read
            continue
        inputs = torch.cat([torch.full((len(windows), 1), language.BOS), windows], dim=1)
        logits = llm(input_ids=inputs, use_cache=False).logits[:, :-1]
        losses += F.cross_entropy(logits.flatten(0, 1), windows.flatten(), reduction="sum").item()
        tokens += windows.numel()
        characters += sum(map(len, tokenizer.batch_decode(windows)))
    return {"loss": losses / tokens, "bits_per_character": float(losses / np.log(2) / characters)}


@torch.no_grad()
def probe_accuracy(model: Llava, *, scenes: int = 3000, test: int = 600) -> dict[str, float]:
    """What the frozen vision features hold: a ridge regression reads what is in a cell from the cell's own nine tokens.

    Of things, the shares whose ``size``, ``colour``, ``shape`` (of the drawn ones) and ``digit`` (in hands that the
    encoder never saw) it names rightly; of cells (``cell``), that of which it says rightly whether something is there.
    """
    rng = np.random.default_rng([0, 95])
    drawn = [world.sample_scene(rng, held_out=i >= scenes) for i in range(scenes + test)]
    features = cells.cell_tokens(train.vision_features(model, drawn).float()).flatten(0, 1)  # (n * 4 cells, 9 * 96)
    fitted = scenes * len(world.CELLS)
    mean, spread = features[:fitted].mean(0), features[:fitted].std(0).clamp(min=1e-3)
    x, new = ((part - mean) / spread for part in (features[:fitted], features[fitted:]))
    solve = torch.linalg.solve(x.T @ x + 0.01 * fitted * torch.eye(x.shape[1]), x.T)
    labels = dict(zip(cells.LABELS, cells.cell_labels(drawn).flatten(0, 1).unbind(-1), strict=True))
    accuracy = {}
    for name, truth in labels.items():
        nothing = len(cells.LABELS[name]) - 1
        y = F.one_hot(truth[:fitted], nothing + 1).float()
        guess, there = new @ (solve @ (y - y.mean(0))) + y.mean(0), truth[fitted:] != nothing
        hit = guess[:, :nothing].argmax(-1) == truth[fitted:]
        hits = {name: hit[there]}
        if name == "shape":
            digit = truth[fitted:] >= len(world.SHAPES)
            hits = {"shape": hit[there & ~digit], "digit": hit[there & digit]}
            hits["cell"] = (guess.argmax(-1) != nothing) == there
        accuracy |= {part: right.float().mean().item() for part, right in hits.items()}
    return accuracy
