"""The world: same seed, same scene; every caption and every answer checked against the scene by other means."""

import numpy as np
import pytest

from mirlib.lab import world

NUMBER_WORDS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [world.sample_scene(rng) for _ in range(count)]


def test_the_same_seed_gives_the_same_scenes_and_pictures():
    assert scenes(50) == scenes(50)
    assert np.array_equal(world.render_batch(scenes(20)), world.render_batch(scenes(20)))
    assert scenes(50) != scenes(50, seed=1)


def test_pictures_of_different_scenes_differ():
    drawn = scenes(200)
    assert len({world.render(scene).tobytes() for scene in drawn}) == len(set(drawn)) == 200


def test_a_scene_is_well_formed():
    for scene in scenes(500):
        cells = [thing.cell for thing in scene.things]
        assert 1 <= len(cells) <= 4
        assert cells == sorted(set(cells), key=world.CELLS.index)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_number_of_things_can_be_fixed(count):
    assert len(world.sample_scene(np.random.default_rng(0), count=count).things) == count


def test_too_many_things_are_refused():
    with pytest.raises(ValueError, match="1 to 4 things, not 5"):
        world.sample_scene(np.random.default_rng(0), count=5)


def test_a_picture_shows_each_thing_where_the_scene_says():
    for scene in scenes(100):
        picture = world.render(scene).astype(float)
        for row in range(2):
            for column in range(2):
                cell = picture[24 * row : 24 * row + 24, 24 * column : 24 * column + 24].reshape(-1, 3)
                things = [t for t in scene.things if (t.row, t.column) == (row, column)]
                # The background is grey: its channels are equal. White is told from it by its brightness.
                marked = (np.ptp(cell, axis=1) > 60).sum() + (cell.min(axis=1) > 215).sum()
                if not things:
                    assert marked == 0
                    continue
                assert marked > 30
                target = np.array(world.COLOURS[things[0].colour])
                assert (np.abs(cell - target).max(axis=1) < 40).sum() > 25


def test_an_edit_changes_exactly_one_property():
    rng = np.random.default_rng(3)
    for scene in scenes(300):
        before = {(t.cell, t.size, t.colour, t.shape) for t in scene.things}
        after = {(t.cell, t.size, t.colour, t.shape) for t in world.edit_scene(scene, rng).things}
        assert len(before) == len(after)
        (old,), (new,) = before - after, after - before
        assert sum(a != b for a, b in zip(old, new, strict=True)) == 1


def test_a_full_caption_parses_back_to_the_scene():
    for scene in scenes(300):
        parsed = world.parse_caption(world.caption(scene))
        assert parsed == [(t.cell, t.size, t.colour, t.shape) for t in scene.things]


def test_parsing_passes_over_what_is_malformed():
    assert world.parse_caption("topleft small red circle . small red . topleft red small circle .") == [
        ("topleft", "small", "red", "circle")
    ]


def test_mid_and_brief_captions():
    scene = world.Scene(
        (
            world.Thing("circle", "red", "small", "topleft"),
            world.Thing("cross", "blue", "large", "topright"),
            world.Thing("ring", "white", "small", "bottomleft"),
        )
    )
    assert world.caption(scene, "mid") == "a red circle , a blue cross and a white ring ."
    assert world.caption(scene, "brief") == "we see three objects ."
    assert world.caption(world.Scene(scene.things[:1]), "mid") == "a red circle ."
    assert world.caption(world.Scene(scene.things[:1]), "brief") == "we see one object ."
    with pytest.raises(ValueError, match="detail must be one of full, mid, brief, not 'long'"):
        world.caption(scene, "long")


def answer_from_text(question: str, caption: str) -> str:
    """Answer a question from the caption's words alone, by rules that share nothing with the code under test."""
    things = [sentence.split() for sentence in caption.split(" .") if sentence]  # position, size, colour, shape
    words = question.removesuffix(" ?").split()
    singular = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross", "rings": "ring"}

    def only(shape):
        (thing,) = [t for t in things if t[3] == shape]
        return thing

    if words[:2] == ["is", "there"]:
        return "yes" if any(t[2:] == words[3:] for t in things) else "no"
    if words[:2] == ["how", "many"]:
        if words[2] == "objects":
            count = len(things)
        elif words[-1] == "objects":
            count = sum(t[2] == words[2] for t in things)
        else:
            count = sum(t[3] == singular[words[2]] for t in things)
        return next(word for word, number in NUMBER_WORDS.items() if number == count)
    if words[0] == "what":
        if words[-1] in ("topleft", "topright", "bottomleft", "bottomright"):
            (thing,) = [t for t in things if t[0] == words[-1]]
        else:
            thing = only(words[-1])
        return thing[{"size": 1, "colour": 2, "shape": 3}[words[1]]]
    first, second, relation = only(words[2])[0], only(words[-1])[0], words[3]
    if relation in ("left", "right"):
        truth = first.endswith(relation) and not second.endswith(relation)
    else:
        side = {"above": "top", "below": "bottom"}[relation]
        truth = first.startswith(side) and not second.startswith(side)
    return "yes" if truth else "no"


@pytest.mark.parametrize("kind", world.QUESTION_KINDS)
def test_every_answer_is_right(kind):
    rng = np.random.default_rng(7)
    asked = [(scene, world.ask(scene, kind, rng)) for scene in scenes(600)]
    asked = [(scene, question) for scene, question in asked if question is not None]
    assert len(asked) > 150
    for scene, question in asked:
        assert question.answer == answer_from_text(question.text, world.caption(scene)), (question, scene)
        assert question.kind == kind


@pytest.mark.parametrize("kind", ["exist", "relation"])
def test_yes_and_no_are_balanced(kind):
    rng = np.random.default_rng(8)
    answers = [q.answer for scene in scenes(2000) if (q := world.ask(scene, kind, rng)) is not None]
    assert abs(answers.count("yes") / len(answers) - 0.5) < 0.05  # 4 standard errors at n = 1000 are 0.06


def test_every_word_is_in_the_vocabulary():
    rng = np.random.default_rng(9)
    said = set()
    for scene in scenes(800):
        for detail in world.CAPTION_DETAILS:
            said |= set(world.caption(scene, detail).split())
        question = world.sample_question(scene, rng)
        said |= set(f"{question.text} {question.short} {question.answer}".split())
    assert said - {".", ",", "?"} <= set(world.WORDS)


def test_an_unknown_kind_of_question_is_refused():
    with pytest.raises(ValueError, match="kind must be one of exist, count"):
        world.ask(scenes(1)[0], "why", np.random.default_rng(0))
