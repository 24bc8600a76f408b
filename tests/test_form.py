"""The form of a notebook: the same number as `score`, and a sentence where something is wrong."""

import io
from pathlib import Path

import pytest
from PIL import Image

import mirlib
from mirlib.data import sample_images, sample_texts
from mirlib.form import NO_KERNEL, ScoreForm
from mirlib.loading import load_miniature

pytestmark = pytest.mark.usefixtures("one_thread")
MINIATURE = Path(mirlib.__file__).parent / "miniature"


@pytest.fixture
def folder(tmp_path):
    for number, image in enumerate(sample_images(12)):
        image.resize((48, 48)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_the_form_says_what_score_finds(folder):
    form = ScoreForm()
    form.pictures.value, form.checkpoint.value = f" {folder} ", str(MINIATURE)
    form.button.click()
    paths = sorted(folder.iterdir())
    want = mirlib.score(*load_miniature(), paths, sample_texts(12), num=12, progress=False)
    assert form.result.value == pytest.approx(want.value, abs=1e-9)
    assert form.said.value.startswith(f"MIR {want.value:.3f}, 95% interval {want.interval.low:.3f} to ")
    assert "12 pairs, 8 layers." in form.said.value, "there are fewer pictures than pairs were asked for"
    assert Image.open(io.BytesIO(form.curve.value)).size[0] > 300
    assert form.curve.layout.display is None and not form.button.disabled


def test_what_is_wrong_is_said_and_the_last_number_does_not_stay(folder):
    form = ScoreForm()
    form.pairs.value = 3
    form.button.click()
    assert form.result is not None, "the miniature, on the pictures that come along"
    form.pictures.value = str(folder / "<nowhere>")
    form.button.click()
    assert form.result is None and "&lt;nowhere&gt;" in form.said.value and form.curve.layout.display == "none"
    assert not form.button.disabled
    for field, value in ((form.pictures, "~nosuchuser/pictures"), (form.checkpoint, "x" * 300)):
        form.pictures.value = form.checkpoint.value = ""
        field.value = value
        form.result, form.said.value = "the last one", "Measuring"
        form.button.click()
        assert form.result is None and "Measuring" not in form.said.value


def test_a_page_without_a_kernel_shows_a_sentence():
    data = ScoreForm()._repr_mimebundle_()
    assert data["text/html"] == NO_KERNEL and "application/vnd.jupyter.widget-view+json" in data
