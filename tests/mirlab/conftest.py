"""What the tests of the laboratory share: one freshly trained tokenizer, and models small enough to train in a test."""

import pytest

from mirlab.model import miniature
from mirlab.world import language


@pytest.fixture(scope="session")
def tokenizer():
    return language.train_tokenizer()


@pytest.fixture(scope="session")
def encode(tokenizer):
    return language.segment_encoder(tokenizer)


@pytest.fixture
def tiny():
    """A whole model of two layers, random but for the seed."""
    return miniature.assemble(miniature.new_encoder(), miniature.new_language_model(layers=2))


@pytest.fixture(autouse=True)
def always_one_thread(one_thread):
    """The miniature's matrices are small in every test here."""
