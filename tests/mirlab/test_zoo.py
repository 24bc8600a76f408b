"""Every measure of the gap on a model after stage 1: what each takes, and that the ledger can keep it."""

import json

import numpy as np
import pytest
import torch

from mirlab import measuring, world, zoo
from mirlab.model import evaluation, miniature
from mirlib.gaps import MEASURES
from mirlib.gaps.reading import PairMeans
from mirlib.rows import TokenRows, means_of_samples


def made_of(count, width=8, seed=0):
    """Rows of `count` samples, three of vision and two of text each, after two layers."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(count).repeat_interleave(3), torch.arange(count).repeat_interleave(2)
    vision, text = (
        [torch.randn(len(i), width, generator=generator) + shift for _ in range(3)]
        for i, shift in zip(ids, (-2, 2), strict=True)
    )
    return TokenRows(vision[1:], text[1:], *ids, vision[0], text[0])


def pairs_of(rows):
    return PairMeans(
        *(
            means_of_samples(side, ids, int(ids.max()) + 1)
            for side, ids in zip((rows.vision, rows.text), rows.samples, strict=True)
        )
    )


def test_a_model_gets_every_measure_and_json_can_hold_them(tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(zoo, "NUM", 12)
    processor = miniature.new_processor(tokenizer)
    news = measuring.collect(tiny, processor, num=12)
    found = zoo.measure(tiny, processor, news)
    json.dumps(found, allow_nan=False)
    assert list(found["gaps"]) == list(zoo.ON_ROWS)
    assert found["gaps"]["mir"]["value"] == measuring.mir_of_rows(news)["value"]


def test_measures_of_pairs_get_captions_and_measures_of_clouds_get_news():
    news, pairs, random = made_of(20, seed=1), pairs_of(made_of(15, seed=2)), pairs_of(made_of(15, seed=3))
    found = zoo.measured(news, pairs, random, permutations=5)
    for name in zoo.ON_ROWS:
        function = MEASURES[name].function
        if MEASURES[name].needs == "pairs":
            expected = function(*pairs, permutations=5)
            assert found[name]["calibrated"] == expected.calibration.value
            assert found[name]["random_weights"] == pytest.approx(np.mean(function(*random, permutations=0).per_layer))
        else:
            expected = function(news.vision, news.text, samples=news.samples)
        assert found[name]["value"] == expected.value, name


def test_captions_stand_beside_their_own_scenes(tokenizer):
    reader = zoo.captioned(miniature.new_processor(tokenizer), 5)
    assert reader.text == "alone"  # so that no picture leaks into them
    for scene, picture, text in zip(evaluation.held_out_scenes(5, seed=1000), reader.images, reader.texts, strict=True):
        assert np.array_equal(np.asarray(world.to_image(scene)), np.asarray(picture))
        assert text == world.caption(scene)
