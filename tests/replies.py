"""What the miniature replies to a question about a picture, word by word: the page's answers are compared with it."""

from dataclasses import dataclass

import torch

from mirlab import world
from mirlab.model import evaluation, precision, sequence, train
from mirlab.world import language


@dataclass(frozen=True)
class Reply:
    """What a model replied: the likeliest word of all, and how likely each of those is that the question allows."""

    question: world.Question
    said: str
    words: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def is_right(self):
        return self.said == self.question.answer


@torch.no_grad()
def ask_pictures(model, tokenizer, scene, questions, *, picture_of=None):
    """Ask questions about a scene and its picture, or that of another scene, in the form of the chat template."""
    shown = scene if picture_of is None else picture_of
    image = model.model.multi_modal_projector(train.vision_features(model, [shown]).float())[0]  # (36, d)
    encode = language.segment_encoder(tokenizer)
    embed = model.get_input_embeddings()
    opening = sequence.words(embed(torch.tensor([language.BOS, *encode("USER:")])))
    before = sequence.join(opening, sequence.image(image))
    prompts = [[*encode("\n"), *encode(f" {question.text}"), *encode(" ASSISTANT:")] for question in questions]
    last = torch.tensor([len(before.vision) + len(prompt) - 1 for prompt in prompts])
    with precision.multiplying():
        hidden = sequence.read(model, before, sequence.words(embed(train.padded(prompts))))  # (n, length, d)
    likelihoods = model.lm_head(hidden[torch.arange(len(questions)), last].float()).softmax(-1)  # (n, vocabulary)
    replies = []
    for question, likely in zip(questions, likelihoods, strict=True):
        words = evaluation.candidates(question)
        shares = likely[[encode(f" {word}")[0] for word in words]]
        replies.append(Reply(question, tokenizer.decode(int(likely.argmax())).strip(), words, tuple(shares.tolist())))
    return replies
