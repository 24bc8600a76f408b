"""What a reader does by hand: the curve that grows, and answers that are the model's own."""

import base64
import io
from dataclasses import replace
from types import SimpleNamespace

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image
from replies import ask_pictures

from mirlab import live, world
from mirlab.model import evaluation
from mirlib.loading import load_miniature


@pytest.fixture(scope="module")
def miniature():
    return load_miniature()


# ---------------------------------------------------------------------------------------------------------------------
# The curve


def test_the_curve_keeps_every_loss_and_measures_now_and_then():
    found = iter([0.9, 0.8, 0.7])
    with live.LiveCurve(lambda: {"value": next(found), "null": 0.95}, every=3) as curve:
        for step in range(1, 8):
            assert not curve(step, 10.0 - step), "a true value would end the training"
    assert curve.data == {
        "losses": [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0],
        "mir": {1: 0.9, 3: 0.8, 6: 0.7},
        "zeroed_rows": 0.95,
    }


def test_the_curve_leaves_one_figure_in_a_notebook_however_often_it_was_drawn():
    code = """
import io
from PIL import Image
from mirlab.live import LiveCurve
from mirlib import plots
drawn, as_png = [], plots.as_png
def counted(draw):
    drawn.append(len(curve.losses))
    return as_png(draw)
plots.as_png = counted
with LiveCurve(lambda: {"value": 0.5}, every=2, seconds=0) as curve:
    for step in range(1, 6):
        curve(step, 1 / step)
"""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("drawn")],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbclient.NotebookClient(notebook, timeout=None).execute()
    figure, drawn = (cell.outputs for cell in notebook.cells)
    assert drawn[0]["data"]["text/plain"] == "[1, 2, 3, 4, 5, 5]"
    assert [output.output_type for output in figure] == ["display_data"]
    assert Image.open(io.BytesIO(base64.b64decode(figure[0]["data"]["image/png"]))).width > 400


def test_a_busy_machine_draws_less_often(monkeypatch):
    clock, drawn = [0.0], []

    def slow(_):
        clock[0] += 2
        drawn.append(len(curve.losses))
        return b"a picture"

    monkeypatch.setattr("mirlib.plots.as_png", slow)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: SimpleNamespace(update=lambda _: None))
    with live.LiveCurve(seconds=1.0) as curve:
        for step in range(1, 41):
            clock[0] += 1
            curve(step, 1.0)
    assert drawn == [1, 19, 37, 40], "two seconds of drawing, then eighteen of training; and one picture at the end"


# ---------------------------------------------------------------------------------------------------------------------
# Answers


RED_SQUARE = world.Thing("square", "red", "large", "bottomleft", (1, -1))
BLUE_CIRCLE = world.Thing("circle", "blue", "small", "topright", (-5, 5))


def test_questions_of_a_scene_are_true_and_the_same_each_time():
    scene = world.Scene((BLUE_CIRCLE, RED_SQUARE))
    questions = live.questions_of(scene)
    assert questions == live.questions_of(scene)
    assert {q.kind for q in questions} == set(world.QUESTION_KINDS)
    truth = {q.text: q.answer for q in questions}
    assert truth["what colour is the square ?"] == "red"
    assert truth["where is the circle ?"] == "topright"
    assert len(truth) == len(questions)


def test_answers_are_those_that_the_evaluation_counts(miniature):
    model, processor = miniature
    counted = evaluation.image_answers(model, processor.tokenizer, scenes=60)
    scenes = evaluation.held_out_scenes(60)
    for kind in ("exist", "colour_at", "size"):
        asked = evaluation.questions_about(scenes, kind)
        replies = [ask_pictures(model, processor.tokenizer, scenes[i], [question])[0] for i, question in asked]
        right = np.mean([reply.is_right for reply in replies])
        among = [r.probabilities[r.words.index(r.question.answer)] / sum(r.probabilities) for r in replies]
        assert len(replies) == counted.count[kind]
        # Both multiply in bfloat16, in batches of other sizes: a close call may fall the other way.
        assert right == pytest.approx(counted.accuracy[kind], abs=1.5 / len(replies))
        assert np.mean(among) == pytest.approx(counted.discrimination[kind], abs=0.01)


def test_another_picture_changes_the_answer_but_not_the_question(miniature):
    model, processor = miniature
    scene, other = (world.Scene((replace(RED_SQUARE, colour=colour),)) for colour in ("red", "yellow"))
    (question,) = [q for q in live.questions_of(scene) if q.kind == "colour_at"]
    (own,) = ask_pictures(model, processor.tokenizer, scene, [question])
    (blind,) = ask_pictures(model, processor.tokenizer, scene, [question], picture_of=other)
    (its_own,) = ask_pictures(model, processor.tokenizer, other, [question])
    assert blind.probabilities == its_own.probabilities != own.probabilities
