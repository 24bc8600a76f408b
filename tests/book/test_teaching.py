"""The teaching kit: quizzes, the lecture view, and the homework with its checks."""

import importlib.util
import math
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import nct, spearmanr
from scipy.stats import t as student_t

from mirlab import results
from mirlab.statistics import mean_interval
from mirlib import frechet_distance
from mirlib.align.eim import info_nce
from mirlib.align.weighting import cal_weights
from mirlib.authors import fast_square_root
from mirlib.errors import MirlibError
from mirlib.gaps import mutual_knn, yes_bias
from mirlib.widgets import quiz
from mirlib.widgets.questions import questions

ROOT = Path(__file__).resolve().parents[2]
QUIZZES = sorted(path.stem for path in (ROOT / "mirlib" / "widgets" / "quizzes").glob("*.toml"))
SHELL = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>a page</title></head><body>{}</body></html>'


@pytest.mark.parametrize("name", QUIZZES)
def test_a_question_has_one_right_option_and_a_reason_for_each(name):
    for question in questions(name):
        options = question["options"]
        assert question["ask"].strip() and len(options) >= 3
        assert [option.get("right", False) for option in options].count(True) == 1, question["ask"]
        assert len({option["say"] for option in options}) == len(options)
        for option in options:
            assert set(option) <= {"say", "why", "right"} and len(option["why"].split()) >= 5, option["say"]


@pytest.mark.parametrize("name", QUIZZES)
def test_a_quiz_says_all_of_it_without_a_script(name):
    shown = quiz(name).data
    asked = questions(name)
    assert "<script" not in shown and "http" not in shown
    assert shown.count("<details") == sum(len(question["options"]) for question in asked)
    assert shown.count("<strong>Yes.</strong>") == len(asked)


@pytest.mark.parametrize("name", QUIZZES)
def test_no_length_gives_the_right_option_away(name):
    for question in questions(name):
        right = [len(option["say"]) for option in question["options"] if option.get("right")]
        wrong = [len(option["say"]) for option in question["options"] if not option.get("right")]
        assert 0.7 * min(wrong) - 3 <= right[0] <= 1.3 * max(wrong) + 3, question["ask"]


def test_every_quiz_stands_on_the_page_of_quizzes_and_at_the_end_of_its_chapter():
    page = (ROOT / "book" / "quizzes.md").read_text(encoding="utf-8")
    assert [name for name in QUIZZES if f'quiz("{name}")' not in page] == []
    chapters = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks").glob("[01]*.ipynb"))]
    words = {3: "Three", 4: "Four", 5: "Five"}
    for name in set(QUIZZES) - {"ninety_minutes"}:
        asked = f"{words[len(questions(name))]} questions to check yourself: [](quiz-{name.replace('_', '-')})"
        assert sum(asked in chapter for chapter in chapters) == 1, name


def test_the_kit_is_in_the_book_and_the_teacher_finds_it():
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    page = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    for name in ("quizzes", "misconceptions", "../notebooks/homework", "cheat_sheet"):
        assert f"{{doc}}`{name}`" in page and f"/{name.split('/')[-1]}\n" in toc, name
    links = re.findall(r'href="([^"?#]+)\.html', page)
    assert len(links) == 4
    for link in links:
        place = ROOT / "book" / link
        assert place.with_suffix(".ipynb").exists() or place.with_suffix(".md").exists(), link
    assert "{doc}`teaching`" in (ROOT / "book" / "how_to_use.md").read_text(encoding="utf-8")


def test_an_unknown_quiz_is_refused_with_those_there_are():
    with pytest.raises(MirlibError, match="no quiz 'none'; take one of convergence, data_scale"):
        quiz("none")


def sorted_grains(mean, deviation):
    """The cost of the plan that matches equal ranks, from a normal distribution of mean 0 and deviation 1."""
    ranks = np.sort(np.random.default_rng(0).normal(size=200_000))
    return np.mean((mean + deviation * ranks - ranks) ** 2)


@pytest.mark.parametrize(("name", "mean", "deviation"), [("frechet_distance", 3, 2), ("ninety_minutes", 1, 2)])
def test_the_distances_that_a_quiz_asks_for_are_those_of_sand(name, mean, deviation):
    question = next(each for each in questions(name) if "On a line" in each["ask"])
    right = next(option["say"] for option in question["options"] if option.get("right"))
    assert sorted_grains(mean, deviation) == pytest.approx(float(right), rel=0.01)
    at_random = mean**2 + 1 + deviation**2
    assert any(option["say"] == str(at_random) and "random" in option["why"] for option in question["options"])


def power(seeds, effect, deviation):
    """How often a two-sided 95 % interval leaves out zero on the effect's side, by the noncentral t distribution."""
    return float(nct.sf(student_t.ppf(0.975, seeds - 1), seeds - 1, effect / deviation * math.sqrt(seeds)))


def test_the_seeds_that_a_quiz_asks_for_give_the_power_that_it_names():
    seeds = int(right_option("real_parts", "How many seeds").split()[-1])
    assert power(seeds - 1, 0.1, 0.2) < 0.8 <= power(seeds, 0.1, 0.2)
    assert power(16, 0.1, 0.2) == pytest.approx(0.5, abs=0.04)  # "every second time"
    assert student_t.ppf(0.975, 5) * 0.2 / math.sqrt(6) == pytest.approx(0.21, abs=0.005)


def test_the_depths_that_a_quiz_compares_differ_by_what_it_says():
    question = next(each for each in questions("measuring") if "40 layers" in each["ask"])
    right = next(option["say"] for option in question["options"] if option.get("right"))
    assert float(right.split()[-1].rstrip(".")) == pytest.approx(math.log10(40 / 32), abs=0.005)


def right_option(name, words):
    question = next(each for each in questions(name) if words in each["ask"])
    return next(option["say"] for option in question["options"] if option.get("right"))


def distance_without_the_root():
    covariance = 0.01 * torch.eye(100, dtype=torch.float64)
    return float(2 * covariance.trace() - 2 * fast_square_root(covariance @ covariance).trace())


def newton_schulz_steps(kappa):
    """From single eigenvalues, until the trace has ten digits."""
    eigenvalues = np.geomspace(1, 1 / kappa, 48)
    wanted, left, steps = np.sqrt(eigenvalues), 1 - eigenvalues / np.linalg.norm(eigenvalues), 0
    while abs((wanted * np.sqrt(1 - left)).sum() / wanted.sum() - 1) > 1e-10:
        left, steps = 0.75 * left**2 + 0.25 * left**3, steps + 1
    return steps


def growth_of_the_squared_length(rate):
    weights, noise = np.random.default_rng(0).normal(size=(2, 64))
    step = rate * (noise - weights * (noise @ weights) / (weights @ weights))
    return np.sum((weights + step) ** 2) - np.sum(weights**2)


def range_of_cells(draws):
    cells = np.random.default_rng(0).normal(scale=0.02, size=(5_000, 20, draws)).mean(axis=-1)
    return np.ptp(cells, axis=1).mean()


def regret_by_mir():
    models = [(2.1, 66), (2.4, 71), (2.6, 67)]
    return max(points for _, points in models) - min(models)[1]


def neighbours_above_chance():
    """What 0.35 is worth, with the chance that strangers among thirty have."""
    strangers = np.random.default_rng(0).normal(size=(30, 2, 1, 30, 8))
    chance = np.mean([mutual_knn(*each, permutations=0, confidence=None).value for each in strangers])
    return (0.35 - chance) / (1 - chance)


def loss_beside_twins():
    keys = torch.eye(997)
    return info_nce(keys[:1], keys[[0, 0, 0, *range(997)]], torch.tensor([0])).item()


def weight_of_the_middle_piece():
    seen = torch.tensor([8, 0.4, 0.2])[None, :, None] * torch.tensor([1.0, 0.0])
    return cal_weights(seen, torch.zeros_like(seen), torch.zeros(1, 3, dtype=torch.long))[0, 1].item()


def what_the_gap_pays():
    rows = np.random.default_rng(0).normal(size=(50, 3))
    far, near = (frechet_distance(rows + [shift, 0, 0], rows).total for shift in (30, 3))
    assert (far, near) == pytest.approx((900, 9))
    return 0.5 * math.log10(far) - 0.5 * math.log10(near)


CALCULATED = [
    ("matrix_square_roots", "variance 0.01", distance_without_the_root, 0.001),
    ("matrix_square_roots", "κ = 1,000,000,000", lambda: newton_schulz_steps(1e9), 1),
    ("convergence", "2.2, 2.4, 2.3", lambda: spearmanr([2.2, 2.4, 2.3, 2.1, 2.0], range(5)).statistic, 1e-9),
    ("data_scale", "16,384 pairs", lambda: round(0.03 * 16_384 / 64), 0),
    ("robustness", "twelve draws", lambda: range_of_cells(12), 0.001),
    ("recipes", "2.1, 2.4 and 2.6", regret_by_mir, 0),
    ("metric_zoo", "finds 0.35", neighbours_above_chance, 0.008),
    ("eim", "1000 captions", loss_beside_twins, 0.005),
    ("weighting_tokens", "three pieces", weight_of_the_middle_piece, 0.05),
    ("weighting_tokens", "from 900 down to 9", what_the_gap_pays, 1e-9),
]


@pytest.mark.parametrize(("name", "words", "compute", "tolerance"), CALCULATED)
def test_what_a_quiz_asks_to_be_calculated_comes_out(name, words, compute, tolerance):
    said = re.search(r"[−+]?\d[\d.,]*", right_option(name, words)).group().replace("−", "-")
    assert compute() == pytest.approx(float(said), abs=tolerance)


def test_the_other_two_answers_to_be_calculated_come_out():
    u, v = right_option("moca", "mean 2 and standard deviation 4"), np.array([-2.0, 6.0])
    assert u == "u = ½, v = 0" and (v.mean(), v.std()) == (2, 4) and ((v / 2).mean(), (v / 2).std()) == (1, 2)
    assert right_option("data_scale", "double the learning rate") == "It becomes four times as large."
    assert growth_of_the_squared_length(0.2) / growth_of_the_squared_length(0.1) == pytest.approx(4)
    assert np.mean([66, 71, 67]) == 71 - 3 and "3 by lot" in right_option("recipes", "2.1, 2.4 and 2.6")


def test_what_a_quiz_says_that_st_notices():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, 36, 16, generator=generator)
    keys, own = tokens.mean(dim=1), torch.tensor([0])
    changed = {
        "All of them become ten times": 10 * tokens[0],
        "Each becomes the mean": tokens[0].mean(dim=0).expand(36, -1),
        "They change places with each other": tokens[0].flip(0),
        "They change places with another picture's": tokens[1],
    }
    losses = {name: info_nce(rows.mean(dim=0)[None], keys, own).item() for name, rows in changed.items()}
    as_it_was = info_nce(tokens[:1].mean(dim=1), keys, own).item()
    noticed = [name for name, loss in losses.items() if loss != pytest.approx(as_it_was, abs=1e-4)]
    assert len(noticed) == 1 and right_option("eim", "loss notice").startswith(noticed[0])

    keys = keys + 3
    common = keys.mean(dim=0)
    query = keys[:1] - common
    turned = [query + share * common for share in (0, 0.1, 0.3, 1)]
    losses = [info_nce(one, keys, own).item() for one in turned]
    nearer = [torch.cosine_similarity(one, keys[:1]).item() for one in turned]
    assert losses == sorted(losses) and nearer == sorted(nearer) and losses[-1] > losses[0] + 0.5
    assert right_option("eim", "common way").startswith("It rises")


def test_the_rows_that_a_quiz_says_a_mask_changes():
    """By two layers of attention with random weights."""
    rng, rows = np.random.default_rng(0), np.arange(43)
    states, weights, question = rng.normal(size=(43, 8)), rng.normal(size=(2, 8, 8)), rows >= 36
    causal = rows[:, None] >= rows
    streams = []
    for mask in (causal, causal | (question[:, None] & question)):
        stream = [states]
        for weight in weights:
            logits = np.where(mask, stream[-1] @ weight @ stream[-1].T, -np.inf)
            stream.append(stream[-1] + softmax(logits, axis=1) @ stream[-1])
        streams.append(stream)
    changed = [(abs(ours - other).max(axis=1) > 1e-9).sum() for ours, other in zip(*streams, strict=True)]
    assert right_option("masks_and_stages", "7 rows of a question") == f"{changed[1]}, then {changed[2]}"


def test_the_doubt_and_the_adaptation_that_a_quiz_weighs():
    sure = np.linspace(0.5, 0.99, 50)  # what somebody who sees perfectly gives to the right one of six words
    noisy, clean = -0.7 * np.log(sure) - 0.3 * np.log((1 - sure) / 5), -np.log(sure)
    assert sure[noisy.argmin()] == pytest.approx(0.7) and clean.argmin() == len(sure) - 1
    assert right_option("masks_and_stages", "see equally well").endswith("noisy captions.")
    asked = next(question for question in questions("masks_and_stages") if "X-rays" in question["ask"])
    before, after, direct, once, now = map(int, re.findall(r"\d+", asked["ask"]))
    fair = f"It gains {after - before} of {direct - before} points to be had, and loses {once - now} elsewhere."
    assert right_option("masks_and_stages", "X-rays") == fair
    for points in (after, before):
        assert re.search(rf"{points}/{direct}[^%]* {100 * points / direct:.0f} %", str(asked))


def test_the_errors_that_a_quiz_counts_show_no_lean():
    answers = np.arange(100)
    for wrong in (20, 30):
        found = yes_bias(answers < wrong, answers >= wrong)
        assert found.value == 0 and found.settings["hallucinated"] == found.settings["missed"] == wrong / 100
    assert right_option("weighting_tokens", "in a picture a model said") == "It sees less now."


def as_said(estimate, places=2):
    return [f"{n:+.{places}f}".replace("-", "−") for n in (estimate.value, estimate.low, estimate.high)]


def test_what_quizzes_take_from_the_ledger_stands_there():
    runs = results.load("moca")
    change = mean_interval(results.paired(runs, "MoCa", "plain", "mir"))
    asked = next(question["ask"] for question in questions("moca") if "interval" in question["ask"])
    assert all(number in asked for number in as_said(change))
    runs = results.load("eim")
    asked = next(question for question in questions("eim") if "interval" in question["ask"])
    for arm in ("ST", "two epochs"):
        change = mean_interval(results.paired(runs, arm, "plain", "mir"))
        assert all(number in asked["ask"] for number in as_said(change))
        assert results.paired(runs, arm, "plain", "norm_ratio").mean() > 0
    _, low, high = as_said(mean_interval(results.paired(runs, "ST", "two epochs", "mir")))
    assert str(asked["options"]).count(low) == str(asked["options"]).count(high) == 2
    runs = results.load("weighting")
    asked = next(question["ask"] for question in questions("weighting_tokens") if "interval" in question["ask"])
    for column, places in (("accuracy", 3), ("mir", 2)):
        change = mean_interval(results.paired(runs, "MIR as a loss, light", "matched norms", column))
        assert all(number in asked for number in as_said(change, places))
    against_plain = mean_interval(results.paired(runs, "MIR as a loss, light", "plain", "accuracy"))
    assert against_plain.low < 0 < against_plain.high
    assert (results.paired(runs, "matched norms", "plain", "accuracy") < 0).sum() == 4
    zoo = results.load("zoo").set_index(["arm", "seed"])
    by_data = zoo.index.get_level_values("arm").str.endswith("pairs")
    asked = next(question["ask"] for question in questions("metric_zoo") if "twelve models" in question["ask"])
    for rows, said in ((zoo, "0.67"), (zoo[by_data], "0.97"), (zoo[~by_data], "0.08")):
        columns = ["gap_modality_gap", "accuracy"]
        found = [-one[columns].corr(method="spearman").iloc[0, 1] for _, one in rows.groupby("seed")]
        assert f"{np.mean(found):.2f}" == said and said in asked
    kinds = results.load("robustness").filter(like="mir_kinds_").map(np.mean).mean()
    highest, lowest = kinds["mir_kinds_digits_news"], kinds["mir_kinds_photographs_scenes"]
    assert (kinds.max(), kinds.min()) == (highest, lowest) and highest - lowest == pytest.approx(0.5, abs=0.05)
    loss = results.load("captions").groupby("arm")["loss"].mean()
    assert f"{loss['brief']:.3f} {loss['plain']:.2f}" == "0.004 0.35"


@pytest.mark.browser
def test_a_keyboard_opens_one_option_at_a_time(visit, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(SHELL.format(quiz("mir").data), encoding="utf-8")
    page = visit(path.as_uri()).page
    for _ in range(2):
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    opened = page.locator("details[open]")
    assert opened.count() == 1 and "Yes." in opened.inner_text()
    groups = page.get_by_role("group", name="MIR of 2, another a MIR of 1")
    assert groups.count() == 1


CHAPTER = """<div class="bd-article"><section><h2>Unit 1</h2><p>a question</p>
<div class="cell"><pre>code alone</pre></div>
<div class="cell"><div class="cell_output"><pre>1.23</pre></div></div><p>the finding</p><p>more of it</p>
<div class="cell"><div class="cell_output"><div class="mirlib-mount"><pre>a widget</pre></div></div></div>
<div class="admonition">the next prediction</div><p>not a finding</p>
<div class="solution"><div class="cell"><div class="cell_output"><pre>4</pre></div></div></div></section>
<section><h2>What we know now</h2><p>the end</p></section></div>"""


@pytest.mark.browser
@pytest.mark.parametrize(("asked", "hidden"), [("?lecture", True), ("", False)])
def test_the_lecture_view_folds_findings_away_until_asked(visit, tmp_path, asked, hidden):
    shutil.copy(ROOT / "book" / "_static" / "lecture.js", tmp_path)
    path = tmp_path / "page.html"
    path.write_text(SHELL.format(f'<script src="lecture.js"></script>{CHAPTER}'), encoding="utf-8")
    page = visit(path.as_uri() + asked).page
    for words in ("1.23", "the finding", "more of it", "the end"):
        assert page.get_by_text(words, exact=True).is_hidden() is hidden, words
    for words in (
        "a question",
        "code alone",
        "a widget",
        "the next prediction",
        "not a finding",
        "Unit 1",
        "What we know now",
    ):
        assert page.get_by_text(words, exact=True).is_visible(), words
    if hidden:
        page.get_by_text("What happens?").first.click()
        assert page.get_by_text("more of it").is_visible() and page.get_by_text("the end").is_hidden()


@pytest.fixture(scope="module")
def homework():
    spec = importlib.util.spec_from_file_location("homework", ROOT / "tools" / "homework.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sheet(homework):
    """What the cell of the checks defines."""
    names = {"np": np}
    exec(homework.checks(), names)
    return names


@pytest.fixture(scope="module")
def answers(homework):
    return homework.answers()


def test_the_checks_of_the_homework_know_the_answers_and_the_mistakes(homework, sheet, answers):
    assert sheet["KNOWN"] == homework.fingerprints(answers)
    for task, known in answers.items():
        assert len(known) >= 3 and list(known)[0] == homework.RIGHT
        for message, value in known.items():
            assert sheet["check"](task, value) == message, (task, value)
        assert sheet["check"](task, 7 * known[homework.RIGHT]) == "Not yet."
        assert sheet["check"](task, None) == "No answer yet."


def test_the_answers_of_the_homework_are_those_of_a_plain_measurement(answers, homework):
    """By routes of their own: a search over factors for the one, the layers' own formula for the other."""
    from mirlib import modality_integration_rate
    from mirlib.data import sample_images, sample_texts
    from mirlib.loading import load_miniature
    from mirlib.rows import collect_rows

    rows = collect_rows(*load_miniature(), sample_images(60), sample_texts(60))
    factors = np.arange(0.322, 0.335, 0.002)
    values = [modality_integration_rate([c * v for v in rows.vision], rows.text).value for c in factors]
    fit = np.polyfit(factors, 10 ** np.array(values), 2)
    assert -fit[1] / (2 * fit[0]) == pytest.approx(answers["factor"][homework.RIGHT], abs=5e-4)

    changes = []
    for left_out in range(0, 60, 5):
        others = [i for i in range(60) if i != left_out]
        changes.append(modality_integration_rate(*rows.of_samples(others)).value)
    error = math.sqrt(59 * 59 / 60 * np.var(changes))  # jackknife, from every fifth pair
    assert 60 * (1.96 * error / 0.005) ** 2 == pytest.approx(answers["pairs"][homework.RIGHT], rel=0.5)


def root_of(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def with_trace(trace, divisor=1, means=True):
    """A student's distance, with a trace term of her own."""

    def distance(x, y):
        one, other = np.cov(x.T, ddof=divisor), np.cov(y.T, ddof=divisor)
        shift = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) if means else 0.0
        return shift + np.trace(one) + np.trace(other) - 2 * trace(one, other)

    return distance


def nuclear(one, other):
    return np.linalg.svd(root_of(one) @ root_of(other), compute_uv=False).sum()


WRONG = {
    "no means": with_trace(nuclear, means=False),
    "root of every entry": with_trace(lambda a, b: np.trace(np.sqrt(np.abs(a @ b)))),
    "roots multiplied": with_trace(lambda a, b: np.trace(root_of(a) @ root_of(b))),
    "no root": with_trace(lambda a, b: np.trace(a @ b)),
    "divisor n": with_trace(nuclear, divisor=0),
    "by Cholesky": with_trace(lambda a, b: np.sqrt(np.linalg.eigvals(np.linalg.cholesky(b).T @ a)).sum().real),
}


def test_a_distance_that_obeys_the_laws_is_accepted(sheet):
    check = sheet["check_distance"]
    assert check(lambda x, y: frechet_distance(x, y).total) == check(with_trace(nuclear)) == "Right."
    assert check(None) == "No answer yet."


@pytest.mark.parametrize("name", WRONG)
def test_a_distance_with_a_mistake_is_refused(sheet, name):
    assert sheet["check_distance"](WRONG[name]).startswith("Not yet: ")


def test_the_grader_runs_what_was_handed_in_with_checks_of_its_own(homework, answers, tmp_path):
    """A notebook whose author overwrote the checks, got one number right and one wrong, and left the rest open."""
    code = [
        "import numpy as np\ncheck = check_distance = lambda *answers: 'Right.'\ndistance = None",
        f"best_factor = {answers['factor'][homework.RIGHT]}",
        "pairs_needed = 12\nmir_change = None\n1 / 0",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in code])
    path = tmp_path / "one.ipynb"
    nbformat.write(notebook, path)
    said = homework.grade(path)
    assert said[:4] == ["No answer yet.", "Right.", "Not yet.", "No answer yet."] and "colour_change" in said[4]
