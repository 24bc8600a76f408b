"""Verdicts on rows whose truth is known: what is planted is found, and what is not there is not."""

import json
import re

import numpy as np
import pytest
from made_rows import measured, rows_of
from scipy import stats

from mirlib.lab import estimates, ledger, tables, verdicts
from mirlib.lab.protocols import PROTOCOLS

ORDER = {512: 0, 2048: 1, 8192: 2, 16_384: 3}


def judged(name, rows, words, condition=None):
    """The claims whose text holds these words, by condition; or the one with this condition."""
    found = {c.condition: c for c in verdicts.judge(PROTOCOLS[name], rows) if words in c.paper}
    assert found, f"no claim says {words!r}"
    return found if condition is None else found[condition]


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [[3, 1, 2, 4, 5], [1, 1, 2, 2, 3], [2, 2, 2, 2, 1]])
def test_spearman_is_that_of_scipy_also_with_ties(y):
    x = [5, 3, 3, 1, 0]
    assert estimates.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_a_constant_series_ranks_nothing(recwarn):
    assert estimates.spearman([1, 2, 3], [7, 7, 7]) == 0.0
    assert estimates.spearman([0.1, 0.1], [1, 2]) == 0.0
    assert not recwarn


def test_the_bootstrap_agrees_with_scipy_on_the_mean():
    values = np.random.default_rng(3).normal(size=12)
    found = estimates.bootstrap(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert found.seeds == 12
    assert found == estimates.bootstrap(values), "the resampling has a seed"


def test_the_bootstrap_of_five_is_as_narrow_as_its_description_says():
    rng = np.random.default_rng(0)
    hits = [found.low <= 0 <= found.high for found in map(estimates.bootstrap, rng.normal(size=(400, 5)))]
    assert 0.77 < np.mean(hits) < 0.88


def test_a_ratio_resamples_both_of_a_seed_together():
    unit = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = estimates.bootstrap(np.array([0.3 * unit, unit]), estimates.ratio_of_means)
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_frame_has_one_line_a_run_and_leaves_out_what_is_no_run_of_the_protocol():
    rows = rows_of("data_scale", lambda arm, run: measured(mir=run.seed + ORDER[run.stage_one.pairs]))
    rows.append({**rows[0], "key": "of an older protocol"})
    table = verdicts.frame(reversed(rows))
    assert len(table) == 75
    assert list(table["arm"].unique()) == list(PROTOCOLS["data_scale"].arms)
    one = table[(table["arm"] == "matched, 8192 pairs") & (table["seed"] == 3)].iloc[0]
    assert (one["mir"], one["parts"], one["pairs"], one["matched"], one["level"]) == (5.0, 1, 8192, True, "8192 pairs")
    assert "1 rows that are no run" in verdicts.report(PROTOCOLS["data_scale"], rows)


def test_a_summary_holds_each_arms_mean_and_says_where_there_is_none():
    rows = rows_of("sizes", lambda arm, run: None if arm == "large" else measured(mir=float(run.seed)))
    found = verdicts.summary(PROTOCOLS["sizes"], rows, ["mir", "accuracy"])
    assert list(found["runs"]) == [5, 5, 0]
    assert found.loc["small", "mir"] == 2.0
    assert found.loc["small", "mir_low"] < 2.0 < found.loc["small", "mir_high"]
    assert np.isnan(found.loc["large", "mir"])


def test_rows_from_the_ledger_judge_as_those_in_memory(tmp_path):
    rows = rows_of("sizes", lambda arm, run: measured(mir={"small": 3, "base": 2, "large": 1}[arm] + 0.01 * run.seed))
    for row in rows:
        ledger.Ledger(tmp_path / "sizes.jsonl").append(json.loads(json.dumps(row)))
    read = verdicts.load("sizes", tmp_path)
    assert verdicts.judge(PROTOCOLS["sizes"], read) == verdicts.judge(PROTOCOLS["sizes"], rows)
    assert verdicts.load("connectors", tmp_path / "elsewhere") == []


def keep(folder, rows):
    for row in rows:
        ledger.Ledger(folder / f"{row['experiment']}.jsonl").append(json.loads(json.dumps(row)))


def test_a_run_that_another_experiment_made_counts_as_found_and_its_minutes_where_it_was_made(tmp_path):
    keep(tmp_path, rows_of("sizes", lambda arm, run: measured(mir=3.0) if arm in ("small", "base") else None))
    old = {**rows_of("sizes", lambda arm, run: measured())[0], "key": "of an older protocol"}
    keep(tmp_path, [old])
    assert tables.counted("sizes", tmp_path) == (10, 15, 10 * 2.0 / 60)
    assert tables.counted("captions", tmp_path) == (5, 30, 0.0), "full captions, norms matched: base of sizes"
    assert tables.counted("robustness", tmp_path) == (0, 10, 0.0)
    lent = tables.load_runs("captions", tmp_path)
    assert [(row["experiment"], row["copied_from"]) for row in lent] == [("captions", "sizes")] * 5
    assert list(tables.frame(lent)["mir"]) == [3.0] * 5
    assert tables.load("captions", tmp_path) == lent

    own = rows_of("captions", lambda arm, run: measured(mir=1.0) if arm == "matched, full" else None, seeds=[0, 1])
    copied = {**own[1], "copied_from": "sizes"}
    keep(tmp_path, [own[0], copied])
    assert tables.counted("captions", tmp_path) == (5, 30, 2.0 / 60), "a row of its own comes before another's"
    assert sorted(tables.frame(tables.load("captions", tmp_path))["mir"]) == [1.0, 1.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_is_judged_is_what_the_protocol_says_word_for_word(name):
    protocol = PROTOCOLS[name]
    claims = verdicts.judge(protocol, [])
    assert {claim.paper: claim.criterion for claim in claims} == protocol.criteria
    for claim, criterion in protocol.criteria.items():
        assert f"“{claim}”" in protocol.reproduced_when
        assert criterion in protocol.reproduced_when
        assert criterion.replace(" ", "") in re.sub(r"\s", "", verdicts.report(protocol, []))


# --- data_scale -------------------------------------------------------------------------------------------------------


def planted(arm, run, *, sign=-1.0):
    """MIR in perfect order with accuracy, loss in another one."""
    level = ORDER[run.stage_one.pairs]
    accuracy = 0.3 + 0.1 * level + 0.01 * run.seed
    return measured(mir=sign * level + 0.1 * run.seed, accuracy=accuracy, loss=[0.5, 0.9, 0.4, 0.8][level])


def test_a_planted_correlation_is_reproduced():
    claim = judged("data_scale", rows_of("data_scale", planted), "MIR follows the accuracy", "matched")
    assert claim.verdict == "reproduced"
    assert (claim.estimate, claim.low, claim.high) == (-1.0, -1.0, -1.0)
    assert (claim.seeds, claim.parts, claim.runs) == (5, 2, 20)
    assert claim.command == "mir lab run data_scale"


def test_the_difference_to_another_metric_is_paired_within_seed():
    claim = judged("data_scale", rows_of("data_scale", planted), "better than loss", "high")
    loss = stats.spearmanr([0.5, 0.9, 0.4, 0.8], [0, 1, 2, 3]).statistic
    assert claim.estimate == pytest.approx(1 - abs(loss))
    assert claim.verdict == "reproduced"


def test_a_metric_that_does_not_move_counts_as_no_correlation():
    claim = judged("data_scale", rows_of("data_scale", planted), "better than perplexity", "high")
    assert claim.estimate == 1.0
    assert "perplexity, in-domain +0.00 [+0.00, +0.00]" in claim.measured


def test_the_wrong_sign_is_not_reproduced_and_is_named_where_the_sign_does_not_count():
    rows = rows_of("data_scale", lambda arm, run: planted(arm, run, sign=1.0))
    claim = judged("data_scale", rows, "MIR follows the accuracy", "low")
    assert claim.verdict == "not reproduced"
    assert claim.estimate == 1.0
    assert "the other way" in claim.measured
    better = judged("data_scale", rows, "better than loss", "low")
    assert better.verdict == "reproduced only when the rate is low and the sign is ignored (MIR rises with accuracy)"
    assert "difference of absolute correlations with accuracy" in better.measured
    assert "wrong sign: MIR rises with accuracy" in better.measured


def test_the_wrong_sign_of_another_metric_is_named_and_grants_nothing():
    def metrics(arm, run):
        level = ORDER[run.stage_one.pairs]
        return measured(mir=-level, accuracy=level, loss=level, discrimination=-level)

    rows = rows_of("data_scale", metrics)
    for words, wrong in (("loss", "loss (last 50 steps) rises"), ("soft discrimination", "soft discrimination falls")):
        claim = judged("data_scale", rows, f"better than {words}", "high")
        assert f"wrong sign: {wrong} with accuracy)" in claim.measured
        assert claim.verdict == "not reproduced"
        assert claim.estimate == 0.0, "both absolute correlations are 1"
    assert "wrong sign" not in judged("data_scale", rows, "better than perplexity", "high").measured


def test_out_of_domain_perplexity_is_compared_with_in_domain_and_both_signs_are_named():
    def metrics(arm, run):
        level = ORDER[run.stage_one.pairs]
        inside, outside = (level, [1, 0, 3, 2][level]) if arm.startswith("high") else (-level, -[1, 0, 3, 2][level])
        return measured(accuracy=level, perplexity=inside, outside=outside)

    found = judged("data_scale", rows_of("data_scale", metrics), "out of domain")
    assert found["high"].estimate == found["low"].estimate == pytest.approx(1 - 0.6)
    assert found["low"].verdict == "reproduced"
    sign = "the sign is ignored (perplexity, in-domain rises with accuracy)"
    assert found["high"].verdict == f"reproduced only when the rate is high and {sign}"
    assert "perplexity, out-of-domain rises with accuracy" in found["high"].measured


def test_the_gap_shrinks_with_depth_only_where_layer_curves_fall():
    def metrics(arm, run):
        found = planted(arm, run)
        curve = list(range(8, 0, -1)) if run.stage_one.norm_matched else [3, 2, 1, 4, 5, 6, 7, 8]
        return found | {"mir": found["mir"] | {"per_layer": curve}}

    found = judged("data_scale", rows_of("data_scale", metrics), "shrinks with depth")
    assert found["high"].verdict == found["low"].verdict == "not reproduced"
    assert found["matched"].verdict == "reproduced only when norms are matched"
    assert found["matched"].estimate == -1.0
    assert found["matched"].runs == 5, "the arm with the most data alone"


def test_a_claim_that_holds_in_one_regime_says_so():
    def metrics(arm, run):
        return planted(arm, run, sign=-1.0 if arm.startswith("matched") else 1.0)

    found = judged("data_scale", rows_of("data_scale", metrics), "MIR follows the accuracy after")
    assert {name: claim.verdict for name, claim in found.items()} == {
        "high": "not reproduced",
        "low": "not reproduced",
        "matched": "reproduced only when norms are matched",
    }
    assert verdicts.overall(list(found.values())) == "reproduced only when norms are matched"


def test_no_correlation_gives_an_interval_about_zero():
    rng = np.random.default_rng(5)
    rows = rows_of("recipes", lambda arm, run: measured(mir=rng.normal(), accuracy=rng.uniform()))
    claim = judged("recipes", rows, "ranks recipes", "high")
    here = [
        (r["metrics"]["mir"]["value"], r["metrics"]["accuracy"]["mean"], r["configuration"]["seed"]) for r in rows[:30]
    ]
    by_hand = [
        stats.spearmanr(*zip(*[(m, a) for m, a, s in here if s == seed], strict=True)).statistic for seed in range(5)
    ]
    assert claim.estimate == pytest.approx(np.mean(by_hand))
    assert claim.low < claim.estimate < claim.high
    assert claim.verdict == "not reproduced"


def test_fewer_than_five_seeds_are_not_judged():
    def metrics(arm, run):
        return None if (arm, run.seed) == ("high, 512 pairs", 2) else planted(arm, run)

    found = judged("data_scale", rows_of("data_scale", metrics), "MIR follows the accuracy after")
    assert found["high"].verdict == "not measured"
    assert np.isnan(found["high"].estimate)
    assert (found["high"].seeds, found["high"].runs) == (4, 19)
    assert found["high"].measured.startswith("19 of 20 runs are in the ledger; 4 of 5 seeds")
    assert verdicts.overall(list(found.values())) == "reproduced (high: not measured)"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_empty_ledger_measures_nothing(name):
    claims = verdicts.judge(PROTOCOLS[name], [])
    assert claims
    assert {claim.verdict for claim in claims} == {"not measured"}
    assert f"{name} (" in verdicts.report(PROTOCOLS[name], [])


def test_saturation_needs_a_loss_that_still_falls():
    def metrics(arm, run):
        level = min(ORDER[run.stage_one.pairs], 2) if arm.startswith("matched") else ORDER[run.stage_one.pairs]
        jitter = 0.001 * (-1) ** (run.seed + ORDER[run.stage_one.pairs])
        falls = 3.0 - ORDER[run.stage_one.pairs]
        return measured(mir=-level, accuracy=0.3 + 0.1 * level + jitter, loss=falls, perplexity=falls)

    found = judged("data_scale", rows_of("data_scale", metrics), "performance saturates")
    assert found["matched"].verdict == "reproduced only when norms are matched"
    assert found["high"].verdict == "not reproduced"
    assert found["high"].estimate == pytest.approx(0.1, abs=0.005)


# --- warmup_or_data ---------------------------------------------------------------------------------------------------


def grid_rows(mir, ratio):
    """MIR and log10 of the norm ratio as functions of (data 0 or 1, warm-up 0, 1 or 2, noise of the run)."""

    def metrics(arm, run):
        data, warmup = run.stage_one.pairs == 8192, {8: 0, 31: 1, 124: 2}[run.stage_one.warmup_steps]
        noise = np.random.default_rng([run.seed, data, warmup]).normal()
        log_ratio = ratio(data, warmup, noise)
        return measured(mir=mir(data, warmup, log_ratio, run.seed), ratio=10**log_ratio)

    return rows_of("warmup_or_data", metrics)


def path_of(rows, path, series="high"):
    found = verdicts.mediation(rows)
    return found[(found["series"] == series) & (found["path"] == path)].iloc[0]


def test_a_fall_that_is_warm_ups_alone_is_found_out():
    rows = grid_rows(lambda data, warmup, _, seed: 5 - 0.8 * warmup + 0.1 * seed, lambda data, warmup, noise: noise)
    assert judged("warmup_or_data", rows, "3 % of the steps", "high").estimate == pytest.approx(-0.8)
    assert judged("warmup_or_data", rows, "3 % of the steps", "high").verdict == "reproduced"
    assert judged("warmup_or_data", rows, "Data itself", "high").verdict == "not reproduced"
    assert judged("warmup_or_data", rows, "through warm-up", "high").verdict == "reproduced"
    assert path_of(rows, "by warm-up, at equal data")["share"] == pytest.approx(1.0)
    assert path_of(rows, "by data, at equal warm-up")["estimate"] == pytest.approx(0.0, abs=1e-12)


def test_a_fall_that_is_datas_is_not_called_warm_ups():
    rows = grid_rows(lambda data, warmup, _, seed: 5 - 0.6 * data + 0.1 * seed, lambda data, warmup, noise: noise)
    assert judged("warmup_or_data", rows, "Data itself", "low").verdict == "reproduced"
    assert judged("warmup_or_data", rows, "through warm-up", "low").verdict == "not reproduced"
    assert path_of(rows, "by data, at equal warm-up", "low")["share"] == pytest.approx(1.0)


def test_a_planted_way_through_the_norm_ratio_is_recovered():
    rows = grid_rows(
        lambda data, warmup, log_ratio, seed: 2 * log_ratio - 0.3 * data - 0.1 * warmup + seed,
        lambda data, warmup, noise: 2 - 0.5 * data - 0.25 * warmup + 0.05 * noise,
    )
    through, left = (path_of(rows, f"{path}, of the whole change") for path in ("through the norm ratio", "left"))
    whole = path_of(rows, "whole change, proportional warm-up")
    assert left["estimate"] == pytest.approx(-0.4, abs=1e-9)
    assert through["estimate"] + left["estimate"] == pytest.approx(whole["estimate"])
    assert through["share"] + left["share"] == pytest.approx(1.0)
    assert left["low"] == pytest.approx(left["high"], abs=1e-9), "without other noise the coefficient is exact"
    of_data = path_of(rows, "left, of the effect of data at fixed warm-up")
    assert of_data["estimate"] == pytest.approx(-0.3, abs=1e-9)


def test_the_way_through_the_norm_ratio_is_what_least_squares_takes_from_the_effect_of_data():
    rng = np.random.default_rng(8)
    rows = grid_rows(
        lambda data, warmup, log_ratio, seed: log_ratio - 0.2 * data + 0.3 * rng.normal(),
        lambda data, warmup, noise: 1 - 0.4 * data - 0.2 * warmup + 0.2 * noise,
    )
    table = verdicts.frame(rows)
    table = table[table["series"] == "high"]
    dummies = [table["pairs"] == 8192, table["warmup_steps"] == 31, table["warmup_steps"] == 124]
    dummies += [table["seed"] == seed for seed in range(5)]
    plain = np.column_stack(dummies).astype(float)
    adjusted = np.column_stack([plain, np.log10(table["norm_ratio"])])
    without, with_ratio = (np.linalg.lstsq(x, table["mir"].to_numpy(), rcond=None)[0][0] for x in (plain, adjusted))
    found = path_of(rows, "through the norm ratio, of the effect of data at fixed warm-up")
    assert found["estimate"] == pytest.approx(without - with_ratio, abs=1e-9)
    assert path_of(rows, "effect of data at fixed warm-up")["estimate"] == pytest.approx(without, abs=1e-9)


def test_shares_are_missing_where_there_is_no_change_to_share_out():
    rows = grid_rows(lambda data, warmup, _, seed: float(np.cos(17 * (seed + 3 * data + 7 * warmup))), lambda *_: 0.0)
    whole = path_of(rows, "whole change, proportional warm-up")
    assert whole["low"] < 0 < whole["high"]
    assert np.isnan(whole["share"])
    assert path_of(rows, "through the norm ratio, of the whole change")["estimate"] == 0.0, "a ratio that stands still"


def test_mediation_leaves_out_a_regime_with_missing_seeds():
    rows = grid_rows(lambda data, warmup, _, seed: -1.0 * warmup, lambda data, warmup, noise: noise)
    rows = [
        row for row in rows if row["configuration"]["stage_one"]["norm_matched"] or row["configuration"]["seed"] < 4
    ]
    assert set(verdicts.mediation(rows)["series"]) == {"matched", "matched high"}


# --- during, robustness -----------------------------------------------------------------------------------------------


def during(name, mir_at, accuracy_at=lambda step: step / 1000, curve=None):
    def metrics(arm, run):
        last = run.stage_one.schedule.steps
        found = measured(mir_at(last), accuracy_at(last))
        found["probes"] = [{"step": step, **measured(mir_at(step), accuracy_at(step))} for step in run.probes]
        found["stage_one"]["curve"] = curve or [[step, 1.0] for step in range(1, last + 1)]
        return found

    return rows_of(name, metrics)


def test_a_steep_then_flat_fall_converges_and_a_straight_one_does_not():
    steep = judged("convergence", during("convergence", lambda step: 2 * np.exp(-step / 60)), "steeply", "high")
    straight = judged("convergence", during("convergence", lambda step: 2 - step / 200), "steeply", "high")
    late = judged("convergence", during("convergence", lambda step: 2 - (step / 256) ** 2), "steeply", "high")
    assert steep.verdict == "reproduced"
    assert straight.verdict == late.verdict == "not reproduced"


def test_a_second_epoch_is_judged_at_its_boundary():
    curve = [[step, 1.0 - 0.00125 * step - (0.2 if step > 256 else 0)] for step in range(1, 513)]
    flat_mir, level = lambda step: 1.0 - min(step, 256) / 400, lambda step: min(step, 256) / 4000
    flat = judged("overfitting", during("overfitting", flat_mir, level, curve), "boundary", "")
    assert flat.verdict == "reproduced"
    assert flat.estimate == pytest.approx(-(0.2 + 0.04) / 0.28)
    assert "change of accuracy over the second epoch +0.000 [+0.000, +0.000]" in flat.measured
    falls = judged("overfitting", during("overfitting", lambda step: 1.0 - step / 400, level, curve), "boundary", "")
    assert falls.verdict == "not reproduced"
    better = judged("overfitting", during("overfitting", flat_mir, lambda step: step / 4000, curve), "boundary", "")
    assert better.verdict == "not reproduced"
    assert better.estimate == pytest.approx(0.064)
    no_fall = [[step, 1.0 - min(step, 160) / 400] for step in range(1, 513)]
    no_drop = during("overfitting", lambda step: 1.0 - min(step, 160) / 400, level, no_fall)
    assert judged("overfitting", no_drop, "boundary", "").verdict == "not reproduced"


def robust(span, counts):
    def metrics(arm, run):
        kinds = {p: {t: [1 + span * (p == "scans")] * 3 for t in ("news", "code")} for p in ("scenes", "scans")}
        pair = [[1.0] * 3, [1.0] * 3]
        return {
            "stage_one": {"loss": 1.0, "curve": [[1, 1.0]], "seconds": 1.0},
            "mir": measured()["mir"],
            "kinds": kinds,
            "template": dict(zip(("chat", "plain"), pair, strict=True)),
            "relevance": dict(zip(("own", "other"), pair, strict=True)),
            "seen": dict(zip(("seen", "unseen"), pair, strict=True)),
            "counts": counts,
        }

    return rows_of("robustness", metrics)


def test_robustness_is_measured_in_the_difference_between_the_models_of_data_scale():
    counts = {"1": [0.5, 1.5], "10": [0.9, 1.1], "20": [1.0, 1.01], "1000": [1.0, 1.0]}
    scale = rows_of("data_scale", planted)  # MIR from -3 to 0: the unit is 3
    rows = robust(0.6, counts) + scale
    claim = judged("robustness", rows, "kind of picture", "matched")
    assert claim.estimate == pytest.approx(0.2)
    assert claim.verdict == "reproduced"
    assert judged("robustness", robust(0.9, counts) + scale, "kind of picture", "high").verdict == "not reproduced"
    assert judged("robustness", rows, "kind of text", "high").estimate == 0.0
    samples = judged("robustness", rows, "20 samples", "high")
    assert samples.estimate == 10, "0.14 is less than a twentieth of 3"
    assert samples.verdict == "reproduced"


def test_without_data_scale_robustness_has_no_unit():
    claims = verdicts.judge(PROTOCOLS["robustness"], robust(0.1, {"1000": [1.0, 1.0]}))
    assert {claim.verdict for claim in claims} == {"not measured"}


def test_samples_needed_looks_at_spread_and_mean():
    counts = {"1": [0.0, 1.0], "5": [0.3, 0.3], "20": [0.5, 0.52], "1000": [0.5, 0.5]}
    assert verdicts.samples_needed(counts, unit=1.0) == 20
    assert verdicts.samples_needed({"1": [0.0, 1.0], "1000": [0.0, 1.0]}, unit=1.0) is None


# --- recipes and designs ----------------------------------------------------------------------------------------------


def test_captions_need_both_correlations():
    level = {"brief": 0, "mid": 1, "full": 2}

    def metrics(arm, run):
        order = level[run.stage_one.detail]
        better = order if arm.startswith("high") else -order
        return measured(mir=-order + 0.1 * run.seed, accuracy=0.5 + 0.1 * better)

    found = judged("captions", rows_of("captions", metrics), "Longer captions")
    assert found["high"].verdict == "reproduced only when the rate is high"
    assert found["matched"].verdict == "not reproduced"
    assert found["matched"].estimate == 1.0, "the number that decides is the one that fails"


def test_unlocking_is_judged_arm_by_arm_against_the_frozen_model():
    gain = {"none": 0, "lora": 0.1, "lora_merged": 0.1, "half": 0.3, "all": -0.2}
    rows = rows_of(
        "unlocking",
        lambda arm, run: measured(mir=2 - gain[arm] + 0.5 * run.seed, accuracy=0.5 + gain[arm] / 2 + 0.01 * run.seed),
    )
    found = judged("unlocking", rows, "Unlocking")
    assert found["half"].estimate == pytest.approx(-0.3)
    assert found["half"].verdict == "reproduced only when half of the layers learn"
    assert found["lora merged"].verdict == "reproduced only when LoRA is merged"
    assert found["all"].verdict == "not reproduced"


@pytest.mark.parametrize("values, verdict", [((3, 2, 1), "reproduced"), ((3, 1, 2), "not reproduced")])
def test_sizes_need_both_differences(values, verdict):
    mir = dict(zip(("small", "base", "large"), values, strict=True))
    rows = rows_of("sizes", lambda arm, run: measured(mir=mir[arm] + 0.01 * run.seed))
    (claim,) = verdicts.judge(PROTOCOLS["sizes"], rows)
    assert claim.verdict == verdict


def test_signs_of_the_recipes():
    change = {"base": 0, "warm-up 5%": -0.1, "linear": 0, "rate x 3": 0.4, "rate / 2": -0.2, "rate x 0.3": -0.4}
    rows = rows_of("recipes", lambda arm, run: measured(mir=change[arm.partition(", ")[2]] + run.seed, accuracy=0.5))
    assert judged("recipes", rows, "higher learning rate", "high").verdict == "reproduced"
    assert judged("recipes", rows, "longer warm-up", "matched").estimate == pytest.approx(-0.1)
    assert judged("recipes", rows, "ranks recipes", "high").estimate == 0.0, "an accuracy that stands still"


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in PROTOCOLS if name not in ("convergence", "overfitting", "robustness")]
)
def test_a_report_fits_120_columns_and_every_verdict_has_an_interval(name):
    rng = np.random.default_rng(2)
    rows = rows_of(
        name, lambda arm, run: measured(mir=rng.normal(), accuracy=rng.uniform(), perplexity=20 * rng.uniform())
    )
    text = verdicts.report(PROTOCOLS[name], rows)
    assert max(map(len, text.splitlines())) <= 120
    assert f"{len(rows)} of {len(PROTOCOLS[name].runs)} runs" in text
    for claim in verdicts.judge(PROTOCOLS[name], rows):
        assert claim.low <= claim.estimate <= claim.high
        assert re.search(r"\[[+−][\d.]+, [+−][\d.]+\]", claim.measured)
        assert claim.verdict in ("reproduced", "not reproduced") or claim.verdict.startswith("reproduced only when ")


def test_a_table_has_one_line_for_each_claim_of_the_paper():
    claims = verdicts.judge(PROTOCOLS["data_scale"], rows_of("data_scale", planted))
    table = verdicts.markdown(claims, experiment=True).splitlines()
    assert len(table) == 2 + len({claim.paper for claim in claims})
    assert all(line.count("|") == 6 for line in table)
    assert "`mir lab run data_scale`" in table[2]
