"""Pictures of cut-outs show what their labels say, and no photograph is seen in training and asked about later."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from made_cutouts import COLOURS, made
from PIL import Image
from scipy import ndimage

from mirlab.world import cutouts
from mirlib.errors import MirlibError

NUMBERS = {"one": 1, "two": 2, "three": 3}
SINGULAR = {"bird": "bird", "birds": "bird", "fish": "fish", "tool": "tool", "tools": "tool"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return cutouts.read(made(tmp_path_factory.mktemp("cutouts") / "made"))


@pytest.fixture(scope="module")
def scenes(photographs):
    return cutouts.sample_scenes(photographs, 300)


def seen(picture):
    """(word, number, middle) of what stands on a white background, from left to right: connected pixels of a colour."""
    pixels = np.asarray(picture).astype(int)
    found = []
    for word, colour in COLOURS.items():
        there = np.abs(pixels - colour).sum(-1) < 100
        _, number = ndimage.label(there, np.ones((3, 3)))
        if number:
            found.append((word, number, there.nonzero()[1].mean()))
    return sorted(found, key=lambda group: group[2])


def said(text):
    """(word, number) from left to right, read out of a caption."""
    named = [(SINGULAR[word], NUMBERS[number]) for number, word in re.findall(r"\b(one|two|three) (\w+)", text)]
    return named[::-1] if re.search(r"right of|on the right and", text) else named


def test_a_picture_shows_what_its_scene_says(scenes, monkeypatch):
    white = Image.new("RGB", (cutouts.SIDE, cutouts.SIDE), "white")
    monkeypatch.setattr(cutouts, "_background", lambda rng: white.copy())
    for scene in scenes[:100]:
        picture = cutouts.render(scene)
        assert picture.size == (224, 224) and picture.mode == "RGB"
        assert [group[:2] for group in seen(picture)] == [(word, len(group)) for word, group in scene.groups]


def test_backgrounds_vary_and_a_scene_is_drawn_alike_every_time(scenes):
    corners = {cutouts.render(scene).getpixel((0, 0)) for scene in scenes[:20]}
    assert len(corners) > 15
    assert cutouts.render(scenes[0]).tobytes() == cutouts.render(scenes[0]).tobytes()


def test_all_arrangements_and_words_have_equal_chances_and_smaller_sets_are_prefixes(photographs, scenes):
    arrangements = Counter(tuple(len(group) for _, group in scene.groups) for scene in scenes)
    assert len(arrangements) == 6
    assert max(arrangements.values()) < 50 + 4 * np.sqrt(300 * 5 / 36)  # four standard deviations
    assert set(Counter(word for scene in scenes for word, _ in scene.groups)) == set(COLOURS)
    assert cutouts.sample_scenes(photographs, 7) == scenes[:7]
    assert cutouts.sample_scenes(photographs, 7, seed=1) != scenes[:7]
    for scene in scenes:
        assert len({word for word, _ in scene.groups}) == len(scene.groups)
        assert all(len(set(group)) == len(group) for _, group in scene.groups)


def test_every_caption_is_true(scenes):
    rng = np.random.default_rng(0)
    forms = Counter()
    for scene in scenes:
        text = cutouts.caption(scene, rng)
        assert said(text) == [(word, len(group)) for word, group in scene.groups], text
        forms[re.sub(r"\b(one|two|three) \w+", "#", text)] += 1
    assert len(forms) == 6 and min(forms.values()) > 20


def test_questions_have_one_right_answer_among_those_allowed(scenes):
    words = tuple(COLOURS)
    for kind in cutouts.KINDS:
        asked = cutouts.questions(scenes, kind, words, 40)
        assert len(asked) == 40
        for number, question in asked:
            groups = [(word, len(group)) for word, group in scenes[number].groups]
            assert question.kind == kind and question.answers.count(question.answer) == 1
            if kind == "count":
                (group,) = groups
                assert question.answers == ("one", "two", "three") and NUMBERS[question.answer] == group[1]
            elif kind == "side":
                (named,) = said(question.prompt)
                assert question.answer == ("left", "right")[groups.index(named)]
            else:
                right = [word for word in question.answers if SINGULAR[word] in dict(groups)]
                assert right == [question.answer]
                assert len(question.answers) == (2 if kind == "exist" else 3)
                assert (SINGULAR[question.answer], NUMBERS[question.prompt.split()[-1]]) in groups
    with pytest.raises(ValueError, match="kind must be one of"):
        cutouts.ask(scenes[0], "colour", words, np.random.default_rng(0))


def test_majority_answers_what_was_right_most_often_among_the_words_allowed():
    def question(answer, *answers):
        return cutouts.Question("exist", "", answers, answer)

    known = [question("b", "a", "b"), question("b", "a", "b"), question("a", "a", "c"), question("c", "c")]
    asked = [question("b", "a", "b"), question("a", "a", "b"), question("a", "a", "c"), question("c", "c", "d")]
    assert cutouts.majority(known, asked) == 0.75


# Photographs


def test_photographs_that_may_look_alike_are_held_out_together_or_not_at_all():
    names = "lion lion-2 Lion_cub apple_red apple_green red_pepper yellowpepper pepper cow owl emu yak gnu elk".split()
    paths = [Path(f"{name}.png") for name in names]
    for group in ({"lion", "lion-2", "Lion_cub"}, {"cow"}):
        assert group in [{path.stem for path in members} for members in cutouts.related(paths)]
    assert {"apple_red", "apple_green", "red_pepper", "pepper", "yellowpepper"} in [
        {path.stem for path in members}
        for members in cutouts.related(paths)  # through the part "red"
    ]
    kept, held_out = cutouts.split({"thing": paths})
    assert sorted(kept["thing"] + held_out["thing"]) == sorted(paths)
    assert 0 < len(held_out["thing"]) <= 4
    apart = [(a, b) for a in kept["thing"] for b in held_out["thing"]]
    parts = {path: {p for p in re.split("[^a-z]+", path.stem.lower()) if len(p) > 2} for path in paths}
    assert not any(parts[a] & parts[b] for a, b in apart)
    with pytest.raises(MirlibError, match="'lion' look too much alike"):
        cutouts.split({"lion": [Path(f"lion_{i}.png") for i in range(9)]})


def test_no_scene_to_train_on_shares_a_photograph_with_one_that_is_held_out(photographs):
    known, unseen = cutouts.split(photographs)
    used = [
        {path for scene in cutouts.sample_scenes(some, 200) for _, group in scene.groups for path in group}
        for some in (known, unseen)
    ]
    assert len(used[0]) == 18 and len(used[1]) == 6
    assert not any(a & b for a, b in combinations(used, 2))


def test_the_fingerprint_is_of_pixels_and_words(tmp_path, photographs):
    first = cutouts.fingerprint(photographs)
    again = cutouts.read(made(tmp_path / "same"))
    for path in again["bird"]:
        Image.open(path).save(path, compress_level=1)
    assert cutouts.fingerprint(again) == first
    changed = cutouts.read(made(tmp_path / "changed"))
    picture = Image.open(changed["bird"][0])
    picture.putpixel((20, 20), (254, 0, 0, 255))
    picture.save(changed["bird"][0])
    assert cutouts.fingerprint(changed) != first
    with pytest.raises(MirlibError, match="mir lab parts real"):
        cutouts.read(tmp_path / "nothing")
