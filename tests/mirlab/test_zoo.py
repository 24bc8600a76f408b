"""The experiment zoo: it repeats runs of the ledger, measures what it says, and judges by what those runs came to."""

import json

import numpy as np
import pytest
import torch
from made_rows import index_in, measured

from mirlab import ledger, measuring, world, zoo
from mirlab.first import closing, tables, verdicts, zoo_table
from mirlab.first.closing.zoo import EXPECTED, MIR_FOLLOWS, PROTOCOL, SWEEPS
from mirlab.first.outcomes import NOT_MEASURED, REPRODUCED, UNDECIDED
from mirlab.first.protocols import PROTOCOLS
from mirlab.model import evaluation, miniature
from mirlib import MirlibError, gaps
from mirlib.gaps import MEASURES
from mirlib.gaps.reading import PairMeans
from mirlib.rows import TokenRows, means_of_samples

ARMS = list(PROTOCOL.arms)


def made_of(count, width=8, seed=0):
    """Rows of `count` samples, three of vision and two of text each, after two layers."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(count).repeat_interleave(3), torch.arange(count).repeat_interleave(2)
    vision, text = (
        [torch.randn(len(i), width, generator=generator) + shift for _ in range(3)]
        for i, shift in zip(ids, (-2, 2), strict=True)
    )
    return TokenRows(vision[1:], text[1:], *ids, vision[0], text[0])


# ---------------------------------------------------------------------------------------------------------------------
# What is run


def test_every_run_repeats_one_of_another_experiment_with_the_same_recipe():
    others = {
        ledger.key_of(run.configuration): run
        for name, protocol in PROTOCOLS.items()
        if name != "zoo"
        for run in protocol.runs
        if run.study == "final"
    }
    for run in PROTOCOL.runs:
        again = others[zoo_table.repeated_key(run)]
        changed = {key for key, value in run.configuration.items() if again.configuration[key] != value}
        assert changed == {"study"}


def test_the_sweeps_are_made_of_the_arms_and_hold_all_of_them():
    assert {arm for some in SWEEPS.values() for arm in some} == set(ARMS)
    for some in SWEEPS.values():
        assert len(some) == len(set(some)) >= 4
    assert closing.JUDGES["zoo"] is closing.zoo.judge


def pairs_of(rows):
    return PairMeans(
        *(
            means_of_samples(side, ids, rows.num_samples)
            for side, ids in zip((rows.vision, rows.text), rows.samples, strict=True)
        )
    )


def test_a_model_is_measured_with_few_pairs_and_with_many(tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(zoo, "NUM", 12)
    monkeypatch.setattr(zoo, "MANY", 36)
    monkeypatch.setattr(zoo.by_samples, "__kwdefaults__", {"num": 12, "draws": 3})
    processor = miniature.new_processor(tokenizer)
    news = measuring.collect(tiny, processor, num=12)
    found = zoo.measure(tiny, processor, news, samples=True)
    json.dumps(found, allow_nan=False)
    assert list(found["gaps"]) == list(found["samples"]) == list(zoo.ON_ROWS)
    assert found["gaps"]["mir"]["value"] == measuring.mir_of_rows(news)["value"]
    for name, value in found["samples"].items():
        assert len(value["few"]) == 3 and value["many"] is not None, name
    assert "samples" not in zoo.measure(tiny, processor, news)


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


def test_parts_of_the_samples_are_disjoint_and_numbered_from_zero():
    rows = made_of(36)
    parts = [zoo.part_of(rows, first, 12) for first in (0, 12, 24)]
    for part in parts:
        assert part.num_samples == 12 and part.vision_samples.min() == 0
    for side in ("vision", "text"):
        for k in range(2):
            assert torch.equal(torch.cat([getattr(part, side)[k] for part in parts]), getattr(rows, side)[k])
    pairs = pairs_of(rows)
    found = zoo.by_samples(rows, pairs, num=12, draws=3)
    expected = [gaps.ima(part.vision, part.text).value for part in parts]
    assert found["ima"]["few"] == expected and found["ima"]["many"] == gaps.ima(rows.vision, rows.text).value
    calibrated = gaps.svcca(*pairs, permutations=20)
    assert found["svcca"]["many"] == calibrated.calibration.value
    assert found["svcca"]["raw_many"] == calibrated.value
    part = pairs_of(parts[1])
    assert found["svcca"]["raw_few"][1] == pytest.approx(gaps.svcca(*part, permutations=0).value)
    with pytest.raises(MirlibError):  # two pairs are too few for measures of pairs, and are not passed over
        zoo.by_samples(rows, pairs, num=2, draws=1)


def test_captions_stand_beside_their_own_scenes(tokenizer):
    reader = zoo.captioned(miniature.new_processor(tokenizer), 5)
    assert reader.text == "alone"  # so that no picture leaks into them
    for scene, picture, text in zip(evaluation.held_out_scenes(5, seed=1000), reader.images, reader.texts, strict=True):
        assert np.array_equal(np.asarray(world.to_image(scene)), np.asarray(picture))
        assert text == world.caption(scene)


# ---------------------------------------------------------------------------------------------------------------------
# What is judged


def ledger_of(folder, value_of, *, missing=None):
    """A results folder where accuracy is the arm's place, and each measure is `value_of(name, place, seed)`."""
    others = {}
    index_in(folder)
    for place, settings in enumerate(PROTOCOL.arms.values()):
        for run in settings:
            accuracy = (place + 1) / 20
            others[zoo_table.repeated_key(run)] = measured(mir=2.0, accuracy=accuracy, discrimination=accuracy / 2)
            found = {name: {"value": value_of(name, place, run.seed)} for name in zoo.ON_ROWS}
            for name in zoo.CALIBRATED:
                found[name] = {"value": 99.0, "calibrated": found[name]["value"]}
            metrics = measured() | {"gaps": found, "repeats": zoo_table.repeated_key(run)}
            del metrics["accuracy"]
            ledger.Ledger(folder / "zoo.jsonl").append(row_of(run.configuration, "zoo", metrics))
    for name, protocol in PROTOCOLS.items():
        for run in protocol.runs if name != "zoo" else ():
            key = ledger.key_of(run.configuration)
            if key in others and key != missing:
                ledger.Ledger(folder / f"{name}.jsonl").append(row_of(run.configuration, name, others.pop(key)))
    return folder


def row_of(configuration, name, metrics):
    return {
        "key": ledger.key_of(configuration),
        "experiment": name,
        "configuration": configuration,
        "metrics": metrics,
        "seconds": {"all": 1.0},
    }


def by_rank(name, place, seed):
    """MIR and norms rank models the wrong way round, the A-score as MIR does, and all others as accuracy does."""
    wrong = name in ("mir", "norm_only", "a_score")
    return zoo_table.integrated(name) * (-place if wrong else place)


def test_the_table_joins_each_run_with_what_the_repeated_one_came_to(tmp_path):
    rows = tables.load("zoo", ledger_of(tmp_path, by_rank))
    table = zoo_table.table(rows)
    assert len(table) == len(PROTOCOL.runs)
    assert set(zoo.ALL) <= set(table.columns)
    first = table[(table["arm"] == ARMS[2]) & (table["seed"] == 3)].iloc[0]
    assert first["accuracy"] == 3 / 20 and first["soft_discrimination"] == 3 / 40
    assert first["perceptual_score"] == pytest.approx(3 / 20 - 0.25)
    assert first["cka"] == 2.0  # the calibrated value
    assert first["mir_then"] == 2.0


def test_claims_hold_where_a_measure_ranks_as_accuracy_does_and_fail_where_it_does_not(tmp_path):
    rows = tables.load("zoo", ledger_of(tmp_path, by_rank))
    claims = {claim.paper: claim for claim in verdicts.judge(PROTOCOL, rows)}
    assert claims[MIR_FOLLOWS].outcome != REPRODUCED
    assert claims[MIR_FOLLOWS].estimate == pytest.approx(1.0)
    for name, paper in EXPECTED.items():
        assert claims[paper].source == "ours"
        if name in zoo_table.LEAKED:  # whatever these rows say of it
            assert claims[paper].outcome == NOT_MEASURED and "behind their pictures" in claims[paper].measured
            continue
        assert claims[paper].outcome == (UNDECIDED if name == "a_score" else REPRODUCED), name
        assert claims[paper].estimate == pytest.approx(0 if name == "a_score" else 2)
        assert claims[paper].seeds == 5
    assert claims[MIR_FOLLOWS].source == "paper"
    text = verdicts.report(PROTOCOL, rows)
    assert all(len(line) <= 120 for line in text.splitlines())


def test_mir_that_ranks_as_accuracy_does_is_said_to_follow_it(tmp_path):
    rows = tables.load("zoo", ledger_of(tmp_path, lambda name, place, seed: zoo_table.integrated(name) * place))
    claims = {claim.paper: claim for claim in verdicts.judge(PROTOCOL, rows)}
    assert claims[MIR_FOLLOWS].outcome == REPRODUCED
    assert not any(claims[paper].outcome == REPRODUCED for paper in EXPECTED.values())  # none can be better than that


def test_a_seed_whose_repeated_run_is_not_in_the_ledger_does_not_count(tmp_path):
    missing = zoo_table.repeated_key(PROTOCOL.arms[ARMS[0]][2])
    rows = tables.load("zoo", ledger_of(tmp_path, by_rank, missing=missing))
    assert len(zoo_table.table(rows)) == len(PROTOCOL.runs) - 1
    leaked = {EXPECTED[name] for name in EXPECTED if name in zoo_table.LEAKED}
    assert {claim.seeds for claim in verdicts.judge(PROTOCOL, rows) if claim.paper not in leaked} == {4}


def test_nothing_is_judged_without_rows():
    assert {claim.seeds for claim in verdicts.judge(PROTOCOL, [])} == {0}
    assert zoo_table.table([]).empty


def test_correlations_are_taken_within_a_seed_and_turned_so_that_better_integrated_is_up(tmp_path):
    offset = [0, 100, -50, 7, 1000]

    def shifted(name, place, seed):
        return zoo_table.integrated(name) * place + offset[seed]

    table = zoo_table.table(tables.load("zoo", ledger_of(tmp_path, shifted)))
    for name in zoo.ON_ROWS:
        assert closing.zoo.with_accuracy(table, ARMS, name, [0, 1, 2, 3, 4]).tolist() == [1.0] * 5
