"""The world: same seed, same scene; every caption and every answer checked against the scene by other means."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mirlab import world

NUMBER_WORDS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}


def scenes(number, seed=0, **options):
    rng = np.random.default_rng(seed)
    return [world.sample_scene(rng, **options) for _ in range(number)]


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


def test_a_scene_holds_shapes_or_digits():
    forms = [{thing.shape for thing in scene.things} for scene in scenes(2000)]
    assert all(held <= set(world.SHAPES) or held <= set(world.DIGITS) for held in forms)
    share = sum(held <= set(world.DIGITS) for held in forms) / len(forms)
    assert abs(share - world.DIGIT_SHARE) < 0.04  # 4 standard errors
    assert set.union(*forms) == set(world.FORMS)


@pytest.mark.parametrize("share, family", [(0.0, world.SHAPES), (1.0, world.DIGITS)])
def test_the_share_of_digits_can_be_set(share, family):
    assert {thing.shape for scene in scenes(200, digits=share) for thing in scene.things} == set(family)


def writings(drawn):
    return {(thing.shape, thing.writing) for scene in drawn for thing in scene.things if thing.shape in world.DIGITS}


def test_training_never_sees_a_held_out_handwriting():
    rng = np.random.default_rng(5)
    drawn = scenes(6000, digits=1.0)
    trained_on = writings(drawn) | writings(world.edit_scene(scene, rng) for scene in drawn)
    held_out = writings(scenes(3000, seed=1, digits=1.0, held_out=True))
    assert not trained_on & held_out
    counts = np.bincount(load_digits().target)
    for digit in world.DIGITS:
        count = counts[int(digit)]
        assert {w for d, w in held_out if d == digit} == set(range(4, count, 5))  # a fifth, and all of it in use
        assert {w for d, w in trained_on if d == digit} <= set(range(count))
        assert len({w for d, w in trained_on if d == digit}) > 0.75 * count


def test_a_digit_in_a_picture_is_the_handwriting_that_the_scene_names():
    scans, labels = load_digits(return_X_y=True)
    standard = (scans - scans.mean(1, keepdims=True)) / scans.std(1, keepdims=True)
    seen = 0
    for scene in scenes(60, digits=1.0, held_out=True):
        picture = world.render(scene).astype(float)
        for thing in scene.things:
            if thing.size != "large":
                continue
            # How much of the thing's colour each pixel around its middle has, (21, 21), brought to 8 x 8.
            middle = [24 * thing.row + 12 + thing.offset[1], 24 * thing.column + 12 + thing.offset[0]]
            window = picture[middle[0] - 10 : middle[0] + 11, middle[1] - 10 : middle[1] + 11]
            towards = np.array(world.COLOURS[thing.colour], dtype=float) - scene.background
            ink = ((window - scene.background) @ towards / (towards @ towards)).clip(0, 1)
            small = np.asarray(Image.fromarray((255 * ink).astype(np.uint8)).resize((8, 8), Image.Resampling.BOX))
            likeness = standard @ (small.ravel() - small.mean()) / small.std() / 64  # correlations
            own = likeness[labels == int(thing.shape)]
            assert own[thing.writing] > 0.85, thing
            assert own[thing.writing] > likeness.max() - 0.03, thing
            assert labels[likeness.argmax()] == int(thing.shape), thing
            seen += 1
    assert seen > 40


def test_a_picture_shows_each_shape_where_the_scene_says():
    for scene in scenes(100, digits=0.0):
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
        edited = world.edit_scene(scene, rng)
        before = {(t.cell, t.size, t.colour, t.shape) for t in scene.things}
        after = {(t.cell, t.size, t.colour, t.shape) for t in edited.things}
        assert len(before) == len(after)
        assert len(writings([scene]) ^ writings([edited])) <= 2  # nobody else's hand changes
        (old,), (new,) = before - after, after - before
        assert sum(a != b for a, b in zip(old, new, strict=True)) == 1


def test_a_full_caption_parses_back_to_the_scene():
    for scene in scenes(300):
        parsed = world.parse_caption(world.caption(scene))
        assert parsed == [(t.cell, t.shape, t.size, t.colour) for t in scene.things]


def test_parsing_passes_over_what_is_malformed():
    text = (
        "topleft circle small red . small red . topleft red small circle . circle topleft small red . topright 7 large"
    )
    assert world.parse_caption(text) == [("topleft", "circle", "small", "red")]


def test_captions_name_digits_like_shapes():
    scene = world.Scene(
        (world.Thing("7", "red", "small", "topleft", writing=3), world.Thing("0", "blue", "large", "topright"))
    )
    assert world.caption(scene) == "topleft 7 small red . topright 0 large blue ."
    assert world.caption(scene, "mid") == "a red 7 and a blue 0 ."


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
    things = [sentence.split() for sentence in caption.split(" .") if sentence]  # position, shape, size, colour
    words = question.removesuffix(" ?").split()
    singular = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross", "rings": "ring"}

    def only(shape):
        (thing,) = [t for t in things if t[1] == shape]
        return thing

    if words[:2] == ["is", "there"]:
        return "yes" if any([t[3], t[1]] == words[3:] for t in things) else "no"
    if words[:2] == ["how", "many"]:
        if words[2] == "objects":
            count = len(things)
        elif words[-1] == "objects":
            count = sum(t[3] == words[2] for t in things)
        else:
            count = sum(t[1] == singular.get(words[2], words[2]) for t in things)
        return next(word for word, number in NUMBER_WORDS.items() if number == count)
    if words[0] == "where":
        return only(words[-1])[0]
    if words[0] == "what":
        if words[-1] in ("topleft", "topright", "bottomleft", "bottomright"):
            (thing,) = [t for t in things if t[0] == words[-1]]
        else:
            thing = only(words[-1])
        return thing[{"shape": 1, "size": 2, "colour": 3}[words[1]]]
    first, second, relation = only(words[2])[0], only(words[-1])[0], words[3]
    if relation in ("left", "right"):
        truth = first.endswith(relation) and not second.endswith(relation)
    else:
        side = {"above": "top", "below": "bottom"}[relation]
        truth = first.startswith(side) and not second.startswith(side)
    return "yes" if truth else "no"


def in_full(kind: str, short: str) -> str:
    """The sentence that a question in telegram style stands for."""
    words = short.removesuffix(" ?").split()
    if kind == "exist":
        return f"is there a {words[1]} {words[0]} ?"
    if kind == "count":
        if words[1] in world.COLOURS:
            return f"how many {words[1]} objects ?"
        return f"how many {'crosses' if words[1] == 'cross' else words[1] + 's' * (words[1] in world.SHAPES)} ?"
    if kind == "where":
        return f"where is the {words[1]} ?"
    if kind.endswith("_at"):
        return f"what {words[0]} is {words[1]} ?"
    if kind == "relation":
        return f"is the {words[0]} {words[1]} {'of ' * (words[1] in ('left', 'right'))}the {words[2]} ?"
    return f"what {words[0]} is the {words[1]} ?"


@pytest.mark.parametrize("kind", world.QUESTION_KINDS)
def test_every_answer_is_right(kind):
    rng = np.random.default_rng(7)
    drawn = scenes(600) + scenes(200, digits=1.0, held_out=True)
    asked = [(scene, world.ask(scene, kind, rng)) for scene in drawn]
    asked = [(scene, question) for scene, question in asked if question is not None]
    assert len(asked) > 250
    for scene, question in asked:
        assert question.answer == answer_from_text(question.text, world.caption(scene)), (question, scene)
        assert question.kind == kind


@pytest.mark.parametrize("kind", world.QUESTION_KINDS)
def test_the_telegram_style_asks_the_same(kind):
    rng = np.random.default_rng(10)
    asked = [q for scene in scenes(400) if (q := world.ask(scene, kind, rng)) is not None]
    for question in asked:
        if question.text != "how many objects ?":
            assert in_full(kind, question.short) == question.text
        else:
            assert question.short == "count objects"


@pytest.mark.parametrize("kind", ["colour", "size", "where", "relation"])
def test_no_question_is_asked_about_a_form_that_is_there_twice(kind):
    rng = np.random.default_rng(11)
    twins = world.Scene(
        tuple(world.Thing("3", colour, "small", cell) for colour, cell in zip(world.COLOURS, world.CELLS, strict=False))
    )
    assert world.ask(twins, kind, rng) is None
    assert {world.sample_question(twins, rng).kind for _ in range(200)} == {"exist", "count", "shape_at", "colour_at"}


def test_the_kinds_of_questions_follow_their_weights():
    rng = np.random.default_rng(12)
    weights = {"where": 3.0, "count": 1.0}
    kinds = [world.sample_question(scene, rng, weights).kind for scene in scenes(800, count=1)]
    assert set(kinds) == {"where", "count"}
    assert abs(kinds.count("where") / len(kinds) - 0.75) < 0.07  # 4 standard errors are 0.06


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
