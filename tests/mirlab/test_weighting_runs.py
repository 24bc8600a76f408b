"""Token weights and gap losses in a run of the laboratory, their protocol, and its judge on rows that are made up."""

import copy
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_rows import measured, rows_of

from mirlab import recipes
from mirlab.first import forcing, tables, verdicts
from mirlab.first.closing import weighting as experiment
from mirlab.first.outcomes import NOT_MEASURED, NOT_TESTABLE, OPPOSITE, REPRODUCED, UNDECIDED
from mirlab.first.protocols import PROTOCOLS
from mirlab.ledger import key_of
from mirlab.methods import PLAIN, TECHNIQUES, Batch, Training
from mirlab.methods.weighting import (
    ContrastiveAlignment,
    ForcedGap,
    ImprobableWords,
    TokenDistance,
    unseen_logits,
)
from mirlab.model import train
from mirlab.world import language
from mirlib import frechet_distance
from mirlib.align.gap_loss import token_distance
from mirlib.align.weighting import IGNORED, cal_weights, prior_weights, weighted_cross_entropy

PROTOCOL = experiment.PROTOCOL
RECIPE = recipes.StageOne(pairs=32, batch=8, warmup_steps=1, learning_rate=1e-2)
TUNE = recipes.StageTwo(images=8, batch=4)
FORCED = ForcedGap(layers=(1, 2))
CAL = ContrastiveAlignment(low=0.001, high=0.1)  # a random model hardly looks at the picture
ALL = (CAL, ImprobableWords(reference_batch=16), FORCED, TokenDistance())


def trained(model, tokenizer, method):
    """A copy of a model after four steps of stage 1, and what they left behind."""
    model = copy.deepcopy(model)
    return model, train.stage_one(model, tokenizer, RECIPE, seed=3, method=method, progress=False)


def step_of(model, tokenizer):
    """The first batch of stage 1, its logits and what a method is told, for a model that is there."""
    scenes = train.stage_one_scenes(8)
    ids = train.caption_rows(scenes, language.segment_encoder(tokenizer))
    features = train.vision_features(model, scenes).float()
    batch = Batch(np.arange(8), ids, ids != language.PAD, features)
    training = Training(model, tokenizer, RECIPE, 0, scenes, features, np.arange(8))
    return training, batch, train.caption_logits(model, ids, features)[batch.targets[:, 1:]]


def hooks(model):
    """On the model and its decoder; transformers may have left some of its own on the encoder."""
    modules = [model, *model.model.language_model.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


# In training


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_a_method_moves_the_connector_otherwise_and_nothing_else(method, tiny, tokenizer):
    plain_model, _ = trained(tiny, tokenizer, PLAIN)
    model, history = trained(tiny, tokenizer, method)
    before, plain, after = (dict(each.state_dict()) for each in (tiny, plain_model, model))
    assert after.keys() == before.keys()
    connector = [name for name in after if "multi_modal_projector" in name]
    assert not any(torch.equal(after[name], plain[name]) for name in connector)
    assert all(torch.equal(after[name], before[name]) for name in after if name not in connector)
    assert np.isfinite(history.losses).all()
    assert json.loads(json.dumps([history.before, history.after])) == [history.before, history.after]


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_stage_two_is_that_of_the_plain_recipe(method, tiny, tokenizer):
    model, _ = trained(tiny, tokenizer, method)
    losses = []
    for way in (PLAIN, method):
        tuned = copy.deepcopy(model)
        losses.append(train.stage_two(tuned, tokenizer, TUNE, seed=3, method=way, progress=False).losses)
    assert losses[0] == losses[1]


def test_cal_weighs_the_words_of_a_step(tiny, tokenizer):
    training, batch, logits = step_of(tiny, tokenizer)
    labels = batch.ids[:, 1:].masked_fill(~batch.targets[:, 1:], IGNORED)
    seen = train.caption_logits(tiny, batch.ids, batch.features)
    weights = cal_weights(seen, unseen_logits(tiny, batch), labels, low=0.001, high=0.1)
    assert weights[labels != IGNORED].std() > 0
    expected = weighted_cross_entropy(seen, labels, weights)
    torch.testing.assert_close(CAL.caption_loss(training, batch, logits), expected)


def test_a_hidden_picture_does_not_matter_and_words_keep_their_places(tiny, tokenizer):
    _, batch, _ = step_of(tiny, tokenizer)
    other = Batch(batch.numbers, batch.ids, batch.targets, batch.features.flip(0) + 1)
    unseen = unseen_logits(tiny, batch)
    torch.testing.assert_close(unseen, unseen_logits(tiny, other), rtol=1e-5, atol=1e-5)
    seen = train.caption_logits(tiny, batch.ids, batch.features)
    assert unseen.shape == seen.shape
    assert (unseen - seen).abs().max() > 1e-3
    without = train.caption_logits(tiny, batch.ids, None)  # the words move up to the start
    assert (unseen - without).abs().max() > 1e-3


def test_the_reference_of_prior_learns_the_captions_and_the_model_does_not(tiny, tokenizer):
    before = copy.deepcopy(tiny.state_dict())
    training, batch, logits = step_of(tiny, tokenizer)
    method = ImprobableWords(reference_batch=1, reference_rate=1e-2)
    said = method.before_stage_one(training)
    assert said["reference_last_loss"] <= said["reference_first_loss"]  # eight steps: the two means are of the same
    reference = training.memory["reference"]
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    labels = batch.ids[:, 1:].masked_fill(~batch.targets[:, 1:], IGNORED)

    def loss(model):
        found = train.caption_logits(model, batch.ids, None)
        return F.cross_entropy(found.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    assert loss(reference) < loss(tiny) - 0.5
    weights = prior_weights(train.caption_logits(reference, batch.ids, None), labels)
    expected = weighted_cross_entropy(train.caption_logits(tiny, batch.ids, batch.features), labels, weights)
    torch.testing.assert_close(method.caption_loss(training, batch, logits), expected)


def test_the_gap_loss_is_mir_of_the_batch(tiny, tokenizer):
    method = ForcedGap(weight=0.5, layers=(1, 2))
    method.attach(tiny, seed=0)
    training, batch, logits = step_of(tiny, tokenizer)
    loss = method.caption_loss(training, batch, logits)
    embed = tiny.get_input_embeddings()
    with torch.no_grad():
        image = tiny.model.multi_modal_projector(batch.features)
        embedded = torch.cat([embed(torch.full((8, 1), language.BOS)), image, embed(batch.ids)], dim=1)
        states = tiny.model.language_model(inputs_embeds=embedded, output_hidden_states=True).hidden_states
    total = 0.0
    for hidden in states[1:]:
        vision, text = hidden[:, 1:37].flatten(0, 1), hidden[:, 37:][batch.targets]
        scale = 1 / text.norm(dim=1).mean()
        total += frechet_distance(scale * vision, scale * text).total
    expected = F.cross_entropy(logits, batch.labels).item() + 0.5 * np.log10(total)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_gap_loss_falls_and_its_hooks_go(tiny, tokenizer):
    strong = ForcedGap(weight=100.0, layers=(1, 2), decay=0.0)
    model, history = trained(tiny, tokenizer, strong)
    assert history.losses[-1] < history.losses[0] - 10  # a tenth of a unit of MIR
    assert history.after["mir_of_batches"] == pytest.approx(history.losses[-1] / 100, abs=0.1)
    assert not hasattr(model, "_mirlib_gap_loss")
    assert not hasattr(model, "_mirlib_vision_rows")
    assert hooks(model) == hooks(tiny) == 0


def test_the_distance_of_tokens_is_that_of_the_connector_and_the_words(tiny, tokenizer):
    training, batch, logits = step_of(tiny, tokenizer)
    words = tiny.get_input_embeddings()(batch.ids)
    apart = token_distance(tiny.model.multi_modal_projector(batch.features), words, batch.targets)
    plain = F.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(TokenDistance(weight=0.3).caption_loss(training, batch, logits), plain + 0.3 * apart)


# The protocol


def test_the_runs_differ_in_the_method_and_in_nothing_else():
    assert {TECHNIQUES[name] for name in ("cal", "prior", "gap", "regap")} == {type(method) for method in ALL}
    keys = [key_of(run.configuration) for run in PROTOCOL.runs]
    assert len(set(keys)) == len(keys)
    methods = {}
    for name, runs in PROTOCOL.arms.items():
        regime, _, what = name.partition(", ")
        for run, plain in zip(runs, PROTOCOL.arms[f"{regime}, plain"], strict=True):
            found, expected = run.configuration, plain.configuration
            methods[name] = found.pop("method", None)
            expected["stage_one"]["norm_matched"] = what == "matched norms"
            assert found == expected
    assert methods["high, gap, light"]["weight"] < methods["high, gap, strong"]["weight"]
    assert methods["low, gap, strong"] == methods["high, gap, strong"]


def test_few_runs_are_new():
    others = {key_of(run.configuration) for name in ("data_scale", "warmup_or_data") for run in PROTOCOLS[name].runs}
    shared = {name for name, runs in PROTOCOL.arms.items() if all(key_of(r.configuration) in others for r in runs)}
    assert shared == {"high, plain", "low, plain", "high, matched norms", "low, matched norms"}
    assert sum(len(runs) for name, runs in PROTOCOL.arms.items() if name not in shared) <= 40


# The judge

MIR = {
    "high, plain": 3.7, "high, matched norms": 1.0, "high, gap, light": 2.0, "high, gap, strong": 1.0,
    "high, CAL": 3.8, "high, PRIOR": 3.7, "high, ReGap": 3.0,
    "low, plain": 1.2, "low, matched norms": 1.0, "low, gap, light": 1.1, "low, gap, strong": 1.4, "low, CAL": 1.2,
}  # fmt: skip
ACCURACY = {
    "high, plain": 0.50, "high, matched norms": 0.60, "high, gap, light": 0.55, "high, gap, strong": 0.58,
    "high, CAL": 0.52, "high, PRIOR": 0.48, "high, ReGap": 0.49,
    "low, plain": 0.55, "low, matched norms": 0.45, "low, gap, light": 0.55, "low, gap, strong": 0.60, "low, CAL": 0.55,
}  # fmt: skip


def made(arm, run, lost=0.0):
    """Levels of `MIR` and `ACCURACY`; what differs by nothing differs by noise of both signs."""
    noise = (run.seed - 2) * 1e-3
    own = noise if arm in ("low, gap, light", "low, CAL") else 0
    return measured(MIR[arm] + noise, ACCURACY[arm] + noise + own - lost * (arm == "high, ReGap"))


@pytest.fixture(scope="module")
def outcomes():
    claims = verdicts.judge(PROTOCOL, rows_of("weighting", made))
    return {(claim.paper, claim.condition): claim for claim in claims}


def test_every_claim_of_the_protocol_is_judged(outcomes):
    assert {paper for paper, _ in outcomes} == set(PROTOCOL.criteria)
    assert all(claim.seeds == 5 for claim in outcomes.values())
    ours = {paper for (paper, _), claim in outcomes.items() if claim.source == "ours"}
    assert set(PROTOCOL.criteria) - ours == {experiment.CAL, experiment.PRIOR, experiment.REGAP}


@pytest.mark.parametrize(
    ("paper", "condition", "outcome"),
    [
        (experiment.LOWERS, "high, gap, light", REPRODUCED),
        (experiment.LOWERS, "high, gap, strong", REPRODUCED),
        (experiment.LOWERS, "low, gap, light", REPRODUCED),
        (experiment.LOWERS, "low, gap, strong", OPPOSITE),
        (experiment.HELPS, "high, gap, strong", REPRODUCED),
        (experiment.HELPS, "low, gap, light", UNDECIDED),
        (experiment.HELPS, "low, gap, strong", NOT_TESTABLE),
        (experiment.RANKS, "high", REPRODUCED),
        (experiment.RANKS, "low", OPPOSITE),
        (experiment.RESCALED, "high, gap, strong", OPPOSITE),
        (experiment.RESCALED, "low, gap, strong", REPRODUCED),
        (experiment.CAL, "high", REPRODUCED),
        (experiment.CAL, "low", UNDECIDED),
        (experiment.PRIOR, "high", OPPOSITE),
        (experiment.REGAP, "high", REPRODUCED),
    ],
)
def test_the_judge_finds_what_was_put_into_the_rows(outcomes, paper, condition, outcome):
    assert outcomes[paper, condition].outcome == outcome


def test_differences_are_those_of_the_rows(outcomes):
    assert outcomes[experiment.LOWERS, "high, gap, light"].estimate == pytest.approx(-1.7)
    assert outcomes[experiment.HELPS, "high, gap, strong"].estimate == pytest.approx(0.08)
    assert outcomes[experiment.RESCALED, "low, gap, strong"].estimate == pytest.approx(0.15)


def test_what_is_lost_beyond_the_tolerance_counts():
    rows = rows_of("weighting", lambda arm, run: made(arm, run, lost=0.05))
    (claim,) = (c for c in verdicts.judge(PROTOCOL, rows) if c.paper == experiment.REGAP)
    assert claim.outcome == OPPOSITE


def test_four_seeds_are_not_enough():
    claims = verdicts.judge(PROTOCOL, rows_of("weighting", made, seeds=range(4)))
    assert {claim.outcome for claim in claims} == {NOT_MEASURED}


# The chapter's numbers


@pytest.fixture(scope="module")
def rows():
    return rows_of("weighting", made)


def test_a_change_is_that_from_the_plain_run_of_the_same_seed(rows):
    table = tables.frame(rows)
    assert forcing.change(table, "high, gap, light", "mir") == pytest.approx([-1.7] * 5)
    assert forcing.change(table, "low, CAL", "accuracy") == pytest.approx([-0.002, -0.001, 0, 0.001, 0.002])
    assert len(forcing.change(tables.frame([]), "low, CAL", "mir")) == 0


def test_levels_are_means_and_changes_what_they_differ_by(rows):
    table = forcing.levels(rows)
    assert sorted(table.index) == sorted(tuple(name.split(", ", 1)) for name in PROTOCOL.arms)
    assert table.loc[("high", "plain"), "MIR"] == "3.70"
    assert set(table["seeds"]) == {5}
    assert set(forcing.levels([])["seeds"]) == {0}
    table = forcing.changes(rows)
    assert len(table) == len(PROTOCOL.arms) - 2  # the plain runs are what the others are held against
    assert table.loc[("high", "gap, strong"), "MIR"] == "−2.70 [−2.70,\u00a0−2.70]"
    assert table.loc[("high", "gap, strong"), "accuracy"] == "+0.080 [+0.080,\u00a0+0.080]"
    assert set(forcing.changes([])["MIR"]) == {""}


def test_sentences_say_what_the_intervals_say(rows):
    said = forcing.reading(rows)
    assert "At the high rate the strong loss moves MIR by −2.70" in said[1]
    assert "It raises the accuracy, +0.080" in said[1]
    assert "the loss of ReGap moves MIR by −0.70" in said[2]
    assert "these seeds cannot tell, +0.000 [−0.001, +0.001]" in said[3]  # low, light
    assert said[5] == (
        "From plain over light to strong, at the high rate, MIR goes 3.70 → 2.00 → 1.00 and accuracy 0.500 → 0.550 → "
        "0.580."
    )
    assert "differ by +0.00 [+0.00, +0.00] in MIR and by −0.020 [−0.020, −0.020] in accuracy" in said[6]
    assert said[-2].startswith("CAL moves accuracy by +0.020") and "at the low rate" in said[-2]
    assert said[-1].startswith("PRIOR moves accuracy by −0.020") and "low" not in said[-1]
    few = forcing.reading(rows_of("weighting", made, seeds=range(3)))
    assert all("not measured yet (3 of 5 seeds)" in sentence for sentence in few)


@pytest.fixture(scope="module")
def with_rivals(rows):
    """Others at the level of the plain runs, but a long warm-up at the low rate, which is as good as the light loss."""

    def other(arm, run):
        low = arm.startswith("low, 2048 pairs, 124 ")
        noise = (run.seed - 2) * 1e-3
        return measured(accuracy=(0.55 if low else 0.50) + 2 * noise, ratio=0.5 if "LayerNorm" in arm else 10.0)

    return [*rows, *rows_of("warmup_or_data", other), *rows_of("moca", other)]


def test_the_light_loss_stands_beside_its_rivals(with_rivals):
    table = forcing.rivals(with_rivals)
    assert list(table.index) == list(forcing.RIVALS)
    assert table.loc["MoCa, high rate"].tolist() == ["1.00", "10.0", "0.500", "+0.050 [+0.049,\u00a0+0.051]", "5 of 5"]
    assert table.iloc[0, -2:].tolist() == ["", ""]
    said = forcing.beside(with_rivals)
    undecided = next(sentence for sentence in said if "holds 0" in sentence)
    assert undecided.endswith("plain, low rate, long warm-up.") and "MoCa" not in undecided
    assert "lies below 0 against: strong gap loss, high rate" in " ".join(said)
    assert any("between 0.548 and 0.552 in accuracy, the plain ones at the same rate between 0.498" in s for s in said)
    advised = forcing.advice(verdicts.judge(PROTOCOL, rows_of("weighting", made)), with_rivals)
    assert "plain, low rate, long warm-up: +0.000" in advised[1]


def test_lengths_are_told_apart_only_where_some_run_has_them(with_rivals):
    longer = forcing.beside(with_rivals)[-1]  # the made runs of the chapter have a norm ratio of 1
    assert longer.startswith("Vision tokens about as long as with the light loss, without it: plain, high rate")
    rows = copy.deepcopy(with_rivals)
    for row in rows:
        if row["experiment"] == "weighting" and "method" in row["configuration"]:
            row["metrics"]["mir"]["norm_ratio"] = [4.0] * 8
    said = forcing.beside(rows)[-1]
    assert "the norm ratio of layer 1 is 4.0, and the accuracy 0.550" in said
    assert "longer (at least 10.0; accuracy 0.500 to 0.550) or shorter (at most 1.0;" in said


def test_rivals_without_runs_are_not_measured(rows):
    table = forcing.rivals(rows)
    assert table.loc["MoCa, high rate", "MIR"] == "not measured"
    assert table.loc["plain, low rate", "in seeds"] == "0 of 5"
    assert forcing.beside(rows) == ["Not all of these runs are in the ledger yet."]
    assert set(forcing.rivals([])["MIR"]) == {"not measured"}


def test_figures_draw_the_arms_that_are_there(rows):
    figure = forcing.figure_forced_arms(rows)
    mir = figure.axes[0]
    assert [label.get_text() for label in mir.get_yticklabels()][:2] == ["plain", "matched norms"]
    assert mir.get_title().splitlines() == [
        "high rate",
        "light loss: MIR −1.70, accuracy +0.050",
        "strong loss: MIR −2.70, accuracy +0.080",
    ]
    assert [len(ax.get_yticks()) for ax in figure.axes] == [7] * 4  # one line an arm, the same in all panels
    against = forcing.figure_forced_against(rows)
    marks = {line.get_label(): line for line in against.axes[0].lines if not line.get_label().startswith("_")}
    assert marks["gap, strong"].get_xdata()[0] == pytest.approx(1.0)
    assert marks["gap, strong"].get_ydata()[0] == pytest.approx(0.58)
    assert set(marks) == {"plain", "matched norms", "gap, light", "gap, strong", "ReGap"}
    assert against.axes[0].get_title().endswith("above plain in accuracy: matched norms; gap, light; gap, strong")
    assert against.axes[1].get_title().endswith("above plain in accuracy: gap, strong")
    assert forcing.figure_forced_arms([]).axes[0].get_title() == "high rate"
    forcing.figure_forced_against([])
    plt.close("all")


def test_advice_follows_the_outcomes(rows):
    said = forcing.advice(verdicts.judge(PROTOCOL, rows))
    assert "2 of 4 settings (the light loss at the high rate and the strong loss at the high rate)" in said[0]
    assert any(sentence.startswith("CAL: reproduced only at a high rate") for sentence in said)
    assert not any("CAL" in sentence and "no reason" in sentence for sentence in said)
    assert any("without costing accuracy: reproduced (MIR changes by −0.700" in sentence for sentence in said)
    assert any(sentence.startswith("PRIOR: not reproduced: the opposite") for sentence in said)

    def worse(arm, run):
        found = made(arm, run)
        found["accuracy"]["mean"] -= 0.2 * ("gap" in arm)
        return found

    said = forcing.advice(verdicts.judge(PROTOCOL, rows_of("weighting", worse)))
    assert "worse models in" in said[0] and "In no setting" in said[1]
    (nothing,) = forcing.advice(verdicts.judge(PROTOCOL, []))
    assert "no advice" in nothing
