"""The homework for its teacher: the answers, computed; the mistakes that the checks know; and a grader.

python tools/homework.py answers             what is right, and what the checks take for a known mistake
python tools/homework.py fingerprints        the same as the notebook holds it, when the miniature has changed
python tools/homework.py grade FILE …        runs notebooks that were handed in, and prints one line for each

A notebook that is graded runs on this machine, with all that its author wrote into it. The checks are those of the
notebook in the repository, whatever the one that was handed in holds in their place.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

SHEET = Path(__file__).resolve().parents[1] / "notebooks" / "homework.ipynb"
RIGHT = "Right."
GAIN, HALF_WIDTH = 0.3, 0.005
CALLS = (
    "check_distance(distance)",
    'check("factor", best_factor)',
    'check("pairs", pairs_needed)',
    'check("mir", mir_change)',
    'check("colours", colour_change)',
)
Answers = dict[str, dict[str, float]]


def answers() -> Answers:
    """Return, for each task with a number, the answer under `RIGHT` and known mistakes under what the check says."""
    import numpy as np

    from mirlab.model.evaluation import caption_scores
    from mirlib import modality_integration_rate
    from mirlib.baselines import norm_bounds
    from mirlib.data import sample_images, sample_texts
    from mirlib.loading import load_miniature
    from mirlib.rows import collect_rows

    model, processor = load_miniature()
    pairs = sample_images(60), sample_texts(60)
    rows = collect_rows(model, processor, *pairs)
    tokens = [np.arange(len(each[0])) for each in (rows.vision, rows.text)]
    by_pair, by_token = (
        modality_integration_rate(rows.vision, rows.text, samples=samples, confidence=0.95)
        for samples in (rows.samples, tokens)
    )
    bounds = norm_bounds(rows.vision, rows.text)
    vision, text = bounds.vision_energy, bounds.text_energy
    crossed = (vision + text - by_pair.per_layer) / 2
    factor = crossed.sum() / vision.sum()
    wide, narrow = (each.interval.standard_error / HALF_WIDTH for each in (by_pair, by_token))

    def colours() -> float:
        return caption_scores(model, processor.tokenizer, scenes=100)["colour"]

    before = colours()
    gain = model.model.multi_modal_projector.register_forward_hook(lambda *call: GAIN * call[2])
    scaled, after = collect_rows(model, processor, *pairs), colours()
    gain.remove()
    moved = modality_integration_rate(scaled.vision, scaled.text).value - by_pair.value
    on_paper = math.log10((GAIN**2 * vision - 2 * GAIN * crossed + text).sum()) - by_pair.value
    turned = "The other way round: B minus A."
    return {
        "factor": {
            RIGHT: factor,
            "The mean of the layers' factors. Sum the layers first.": (crossed / vision).mean(),
            "That makes lengths equal. Directions count, too.": float(np.sqrt(text.sum() / vision.sum())),
            "Twice as much as it should be.": 2 * factor,
        },
        "pairs": {
            RIGHT: 60 * (1.96 * wide) ** 2,
            "Count 1.96 standard errors to a side.": 60 * wide**2,
            # who forgets the root of the number, 60 * 1.96 * wide, comes so near that one hint has to serve both
            "The error falls with the root of the number of pairs.": 60 * (1.96 * narrow) ** 2,
        },
        "mir": {
            RIGHT: moved,
            turned: -moved,
            "These rows were multiplied after the model had run.": on_paper,
        },
        "colours": {
            RIGHT: after - before,
            turned: before - after,
            "A share, please, between -1 and 1.": 100 * (after - before),
        },
    }


def step(task: str, answer: float) -> int:
    """Return the answer in the steps in which the notebook's `check` counts."""
    if task == "pairs":
        answer = 100 * math.log(answer)
    return round(answer / {"factor": 0.001, "pairs": 5}.get(task, 0.01))


def fingerprints(found: Answers) -> dict[str, str]:
    """Return what the notebook's `check` looks up: what to say, by the fingerprint of the answer."""
    return {
        hashlib.sha256(f"homework {task} {step(task, value)}".encode()).hexdigest()[:10]: message
        for task, known in found.items()
        for message, value in known.items()
    }


def checks() -> str:
    """Return the code of the notebook's checks."""
    cells = nbformat.read(SHEET, as_version=4).cells
    return next(cell.source for cell in cells if "def check(" in cell.source)


def grade(path: Path) -> list[str]:
    """Run a notebook that was handed in, and return what the checks say to each of its answers.

    Args:
        path: The notebook. It is not changed.
    """
    notebook = nbformat.read(path, as_version=4)
    lines = "".join(
        f"\ntry:\n    said.append({call})\nexcept Exception as e:\n    said.append(repr(e))" for call in CALLS
    )
    last = nbformat.v4.new_code_cell(f"{checks()}\nimport json\nsaid = []{lines}\nprint(json.dumps(said))")
    notebook.cells.append(last)
    client = NotebookClient(notebook, allow_errors=True, timeout=600, resources={"metadata": {"path": path.parent}})
    client.execute()
    printed: Any = next(output for output in notebook.cells[-1].outputs if output.get("name") == "stdout")
    return json.loads(printed["text"].splitlines()[-1])


def main(words: list[str]) -> None:
    """Do what the command line asks for."""
    match words:
        case ["answers"]:
            for task, known in answers().items():
                print(task, *(f"  {value:8.3f}  {message}" for message, value in known.items()), sep="\n")
        case ["fingerprints"]:
            print(json.dumps(fingerprints(answers()), indent=4, ensure_ascii=False))
        case ["grade", *paths] if paths:
            for path in map(Path, paths):
                said = grade(path)
                print(f"{path.name}: {said.count(RIGHT)} of {len(CALLS)}", *said, sep=" | ")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
