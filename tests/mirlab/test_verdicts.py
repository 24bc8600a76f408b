"""Verdicts on rows whose truth is known: what is planted is found, and what is not there is not."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from made_rows import index_in, measured, rows_of
from scipy import stats

from mirlab import ledger
from mirlab.first import estimates, outcomes, tables, verdicts
from mirlab.first.protocols import PROTOCOLS

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
    older = {**rows[0], "key": "of an older protocol"}
    rows += [older | {"arm": "high, 77 pairs"}, {name: value for name, value in older.items() if name != "arm"}]
    table = verdicts.frame(reversed(rows))
    assert len(table) == 75
    assert list(table["arm"].unique()) == list(PROTOCOLS["data_scale"].arms)
    one = table[(table["arm"] == "matched, 8192 pairs") & (table["seed"] == 3)].iloc[0]
    assert (one["mir"], one["parts"], one["pairs"], one["matched"], one["level"]) == (5.0, 1, 8192, True, "8192 pairs")
    assert "2 rows that are no run" in verdicts.report(PROTOCOLS["data_scale"], rows)


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
    row = rows_of("sizes", lambda arm, run: measured())[0]
    del row["arm"]
    of_an_older_protocol = {**row["configuration"], "scenes": 1}
    index_in(tmp_path)
    keep(tmp_path, [{**row, "configuration": of_an_older_protocol, "key": ledger.key_of(of_an_older_protocol)}])
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
    assert "perplexity, in-domain 0.00, +0.00 [+0.00, +0.00]" in claim.measured


def test_the_wrong_sign_is_not_reproduced_and_is_named_where_the_sign_does_not_count():
    rows = rows_of("data_scale", lambda arm, run: planted(arm, run, sign=1.0))
    claim = judged("data_scale", rows, "MIR follows the accuracy", "low")
    assert claim.verdict == "not reproduced: the opposite"
    assert claim.estimate == 1.0
    assert "the other way" in claim.measured
    better = judged("data_scale", rows, "better than loss", "low")
    assert better.verdict == "reproduced only when the sign is ignored (MIR rises with accuracy)"
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
        assert claim.outcome == "not testable here", "the other metric is perfect"
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
    assert found["high"].verdict == f"reproduced only when {sign}"
    assert "perplexity, out-of-domain rises with accuracy" in found["high"].measured


def test_the_gap_shrinks_with_depth_only_where_layer_curves_fall():
    def metrics(arm, run):
        found = planted(arm, run)
        curve = list(range(8, 0, -1)) if run.stage_one.norm_matched else [3, 2, 1, 4, 5, 6, 7, 8]
        return found | {"mir": found["mir"] | {"per_layer": curve}}

    found = judged("data_scale", rows_of("data_scale", metrics), "shrinks with depth")
    assert found["high"].verdict == found["low"].verdict == "not reproduced: the opposite"
    assert found["matched"].verdict == "reproduced"
    assert found["matched"].estimate == -1.0
    before = "the same of layer K−1, before the final norm, −0.602 [−0.602, −0.602] (not judged)"
    assert before in found["matched"].measured, "log10(2 / 8)"
    assert "final norm" in found["matched"].footnotes[0]
    assert found["matched"].runs == 5, "the arm with the most data alone"


def test_a_claim_that_holds_in_one_regime_says_so():
    def metrics(arm, run):
        return planted(arm, run, sign=-1.0 if arm.startswith("matched") else 1.0)

    found = judged("data_scale", rows_of("data_scale", metrics), "MIR follows the accuracy after")
    assert {name: claim.verdict for name, claim in found.items()} == {
        "high": "not reproduced: the opposite",
        "low": "not reproduced: the opposite",
        "matched": "reproduced",
    }
    said = "reproduced only with matched norms; not at a high rate and at a low rate (the opposite)"
    assert verdicts.overall(list(found.values())) == said


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
    assert claim.verdict == "not reproduced: undecided"


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
        falls = 3.0 + ORDER[run.stage_one.pairs] * (1 if arm.startswith("low") else -1)
        return measured(mir=-level, accuracy=0.3 + 0.1 * level + jitter, loss=falls, perplexity=falls)

    found = judged("data_scale", rows_of("data_scale", metrics), "performance saturates")
    assert found["matched"].verdict == "reproduced"
    assert "MIR by +0.000 [+0.000, +0.000] (not judged)" in found["matched"].measured
    assert "no part of the criterion" in found["matched"].footnotes[0]
    assert found["high"].verdict == "not testable here: accuracy still rises"
    assert found["high"].estimate == pytest.approx(0.1, abs=0.005)
    assert "MIR by −1.000" in found["high"].measured
    assert found["low"].verdict == "not reproduced: the opposite", (
        "that accuracy rises is no shelter for a loss that rises"
    )
    said = "reproduced only with matched norms; not at a low rate (the opposite); "
    said += "not testable here at a high rate: accuracy still rises"
    assert verdicts.overall(list(found.values())) == said


# --- outcomes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, value, high, asked, outcome",
    [
        (-0.9, -0.8, -0.7, {}, "reproduced"),
        (-0.2, -0.1, 0.0, {}, "undecided"),
        (-0.2, -0.1, 1e-17, {}, "undecided"),
        (-0.2, -0.1, -1e-17, {}, "undecided"),
        (0.1, 0.2, 0.3, {}, "the opposite"),
        (0.0, 0.2, 0.3, {}, "undecided"),
        (-0.9, -0.8, -0.7, {"reach": -0.8}, "reproduced"),
        (-0.9, -0.6, -0.1, {"reach": -0.8}, "falls short"),
        (-1.0, -0.9, 0.1, {"reach": -0.8}, "undecided"),
        (0.1, 0.2, 0.3, {"limit": 0.25}, "undecided"),
        (0.26, 0.3, 0.4, {"limit": 0.25}, "the opposite"),
        (0.1, 0.15, 0.2, {"limit": 0.25}, "reproduced"),
        (20.0, 20.0, 20.0, {"limit": 20}, "undecided"),
        (20.0, 20.0, 20.0, {"limit": 20, "closed": True}, "reproduced"),
        (0.93, 0.95, 0.97, {"limit": 0.9, "start": 1}, "falls short"),
        (1.0, 1.0, 1.0, {"limit": 0.9, "start": 1}, "the opposite"),
        (0.8, 0.95, 0.97, {"limit": 0.9, "start": 1}, "undecided"),
        (-0.1, 0.1, 0.3, {"weak": True}, "reproduced"),
        (0.1, 0.2, 0.3, {"weak": True}, "the opposite"),
        (0.1, 0.2, 0.3, {"weak": True, "premise": "it rises"}, "not testable here"),
    ],
)
def test_an_outcome_follows_from_where_the_interval_lies(low, value, high, asked, outcome):
    found = estimates.Estimate(value, low, high, 5)
    assert outcomes.Part("of", found, outcomes.BELOW, **asked).outcome == outcome
    mirrored = {key: -number if key in ("reach", "limit", "start") else number for key, number in asked.items()}
    found = estimates.Estimate(-value, -high, -low, 5)
    assert outcomes.Part("of", found, outcomes.ABOVE, **mirrored).outcome == outcome


def test_of_several_numbers_the_worst_decides_and_one_that_is_only_shown_does_not():
    def part(outcome):
        low, high = {"the opposite": (1, 2), "undecided": (-1, 1), "falls short": (-0.5, -0.2)}.get(outcome, (-2, -1))
        options = {"premise": "why", "weak": True} if outcome == "not testable here" else {}
        low, high = (1, 2) if options else (low, high)
        return outcomes.Part(outcome, estimates.Estimate((low + high) / 2, low, high, 5), -1, reach=-0.8, **options)

    ranked = ["the opposite", "not testable here", "undecided", "falls short", "reproduced"]
    shown = outcomes.shown("beside", [1.0] * 5)
    for place, outcome in enumerate(ranked):
        found = outcomes.conclude([shown, *map(part, reversed(ranked[place:]))])
        assert (found.outcome, found.decisive.name) == (outcome, outcome)


RANKED = {"perfectly": (0, 1, 2, 3), "nearly": (0, 1, 3, 2), "not at all": (1, 3, 0, 2), "half": (1, 2, 0, 3)}
"""Rank correlations 1, 0.8, 0 and 0.4 with the order of the amounts."""


def compared(mir, loss):
    """Claims that MIR ranks better than loss, by regime; both rank in a seed as `mir` and `loss` of regime and seed."""

    def metrics(arm, run):
        regime, level = arm.partition(", ")[0], ORDER[run.stage_one.pairs]
        if regime == "unlocked":
            return None
        found = {name: -RANKED[how(regime, run.seed)][level] for name, how in (("mir", mir), ("loss", loss))}
        return measured(accuracy=0.3 + 0.1 * level, **found)

    return judged("data_scale", rows_of("data_scale", metrics), "better than loss")


def test_no_better_rank_can_be_shown_over_a_metric_that_hardly_errs_and_that_is_said():
    errs = {"high": 2, "low": 3, "matched": 0}  # seeds in which loss errs: (3/5)^5 = 8 %, (2/5)^5 = 1 % of resamples
    found = compared(lambda *_: "perfectly", lambda name, seed: "nearly" if seed < errs[name] else "perfectly")
    for name, claim in found.items():
        gained = estimates.bootstrap([0.2] * errs[name] + [0.0] * (5 - errs[name]))
        assert (claim.estimate, claim.low, claim.high) == pytest.approx((gained.value, gained.low, gained.high))
        assert (claim.best.value, claim.best.low) == pytest.approx((gained.value, gained.low)), "MIR is perfect"
        assert (claim.outcome == "not testable here") == (gained.low <= 0)
    assert found["high"].verdict == "not testable here: a perfect MIR would have gained +0.08 [+0.00, +0.16]"
    assert found["low"].verdict == "reproduced"
    assert found["matched"].verdict == "not testable here: a perfect MIR would have gained +0.00 [+0.00, +0.00]"


def test_that_a_claim_is_not_testable_hides_no_contradiction():
    how = {"high": lambda seed: "not at all", "low": lambda seed: "half" if seed < 2 else "perfectly"}
    how["matched"] = how["low"]
    found = compared(
        lambda name, seed: how[name](seed),
        lambda name, seed: "nearly" if name == "matched" or not seed else "perfectly",
    )
    assert found["high"].verdict == "not reproduced: the opposite", "though a perfect MIR would not have passed"
    assert found["high"].best.low == 0
    assert "a perfect MIR would have gained +0.04 [+0.00, +0.12])" in found["high"].measured
    assert found["low"].outcome == "not testable here"
    assert found["matched"].verdict == "not reproduced: undecided", "here a perfect MIR would have passed"
    assert found["matched"].best.low == pytest.approx(0.2)
    assert "a perfect MIR" not in found["matched"].measured
    sizes = "mean absolute value, and with the sign: MIR 0.76, −0.76"
    assert sizes in found["low"].measured


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
    assert judged("warmup_or_data", rows, "Data itself", "high").verdict == "not reproduced: undecided"
    assert judged("warmup_or_data", rows, "through warm-up", "high").verdict == "reproduced"
    assert path_of(rows, "by warm-up, at equal data")["share"] == pytest.approx(1.0)
    assert path_of(rows, "by data, at equal warm-up")["estimate"] == pytest.approx(0.0, abs=1e-12)


def test_a_fall_that_is_datas_is_not_called_warm_ups():
    rows = grid_rows(lambda data, warmup, _, seed: 5 - 0.6 * data + 0.1 * seed, lambda data, warmup, noise: noise)
    assert judged("warmup_or_data", rows, "Data itself", "low").verdict == "reproduced"
    assert judged("warmup_or_data", rows, "through warm-up", "low").verdict == "not reproduced: the opposite"
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
    assert straight.verdict == late.verdict == "not reproduced: the opposite"


def test_a_second_epoch_is_judged_at_its_boundary():
    curve = [[step, 1.0 - 0.00125 * step - (0.2 if step > 256 else 0)] for step in range(1, 513)]
    flat_mir, level = lambda step: 1.0 - min(step, 256) / 400, lambda step: min(step, 256) / 4000
    flat = judged("overfitting", during("overfitting", flat_mir, level, curve), "boundary", "")
    assert flat.verdict == "reproduced"
    assert flat.estimate == pytest.approx(-(0.2 + 0.04) / 0.28)
    assert "change of accuracy over the second epoch +0.000 [+0.000, +0.000]" in flat.measured
    falls = judged("overfitting", during("overfitting", lambda step: 1.0 - step / 400, level, curve), "boundary", "")
    assert falls.verdict == "not reproduced: the opposite"
    better = judged("overfitting", during("overfitting", flat_mir, lambda step: step / 4000, curve), "boundary", "")
    assert better.verdict == "not reproduced: the opposite"
    assert better.estimate == pytest.approx(0.064)
    no_fall = [[step, 1.0 - min(step, 160) / 400] for step in range(1, 513)]
    no_drop = during("overfitting", lambda step: 1.0 - min(step, 160) / 400, level, no_fall)
    assert judged("overfitting", no_drop, "boundary", "").verdict == "not reproduced: undecided"


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
    assert judged("robustness", robust(0.9, counts) + scale, "kind of picture", "high").verdict.endswith("the opposite")
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
    assert found["high"].verdict == "reproduced"
    assert found["matched"].verdict == "not reproduced: the opposite"
    assert found["matched"].estimate == 1.0, "the number that decides is the one that fails"


def test_unlocking_is_judged_arm_by_arm_against_the_frozen_model():
    gain = {"none": 0, "lora": 0.1, "lora_merged": 0.1, "half": 0.3, "all": -0.2}
    rows = rows_of(
        "unlocking",
        lambda arm, run: measured(mir=2 - gain[arm] + 0.5 * run.seed, accuracy=0.5 + gain[arm] / 2 + 0.01 * run.seed),
    )
    found = judged("unlocking", rows, "Unlocking")
    assert found["half"].estimate == pytest.approx(-0.3)
    assert found["half"].verdict == found["lora merged"].verdict == "reproduced"
    assert found["all"].verdict == "not reproduced: the opposite"
    said = "reproduced only with LoRA and with LoRA merged and with half of the layers unlocked"
    assert verdicts.overall(list(found.values())) == f"{said}; not with all layers unlocked (the opposite)"


@pytest.mark.parametrize("values, verdict", [((3, 2, 1), "reproduced"), ((3, 1, 2), "not reproduced: the opposite")])
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


# Claims that ask for more than the rows made here hold; they are tested with rows of their own.
OTHER_ROWS = ("convergence", "overfitting", "robustness", "stages")


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name not in OTHER_ROWS])
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
        assert claim.outcome in ("reproduced", *outcomes.FAILURES, "not testable here")
        expected = {"reproduced": "reproduced", "not testable here": "not testable here: "}
        assert claim.verdict.startswith(expected.get(claim.outcome, f"not reproduced: {claim.outcome}"))


@pytest.fixture(scope="module")
def claims():
    return verdicts.judge(PROTOCOLS["data_scale"], rows_of("data_scale", planted))


def test_a_table_has_one_line_for_each_claim_and_condition(claims):
    lines = verdicts.markdown(claims, experiment=True).split("\n")
    assert lines[0].endswith("Repeat them with `mir lab run data_scale`.")
    assert "Each line has 5 seeds, 2 sets of parts (encoder and language model), 20 runs" in lines[0]
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| claim | condition | verdict | what decides |"
    assert len(table) == 2 + len(claims)
    assert all(line.count("|") == 5 for line in table)
    assert table[2].startswith(
        "| MIR follows the accuracy after stage 2 *(paper, Fig. 1)* | *high* | **reproduced** | "
    )
    assert table[3].startswith("|  | *low* | **reproduced** | "), "a claim is named once"
    norm_only = next(line for line in table if "norm-only baseline *(" in line)
    assert norm_only.startswith("| MIR ranks models better than its norm-only baseline *(ours, Fig. 1)* |")
    unlocked = next(line for line in table if "unlocked, too" in line)
    assert unlocked.endswith("; 15 runs |"), "what differs from the other lines"
    assert "runs" not in table[2]
    assert sum("taken within each seed" in line for line in lines) == 1, "said once, under the table"


def test_a_box_holds_the_table_and_nothing_else(claims):
    lines = verdicts.boxed(verdicts.markdown(claims)).split("\n")
    start, end = lines.index("```{table}"), lines.index("```")
    assert all(line.startswith("|") for line in lines[start + 3 : end])
    assert not any(line.startswith("|") for line in lines[:start] + lines[end:])
    assert lines[start + 1] == ":class: verdicts"
    assert ":class: verdicts short" in verdicts.boxed(verdicts.short(claims), "short").split("\n")


def test_a_table_without_conditions_or_judged_claims_has_no_empty_column():
    table = verdicts.markdown(verdicts.judge(PROTOCOLS["sizes"], []))
    assert table.split("\n")[0] == "| claim | verdict | what decides |"
    assert "**not measured** | 0 of 15 runs are in the ledger" in table


def test_the_short_table_says_why_and_where(claims):
    opposite = [
        replace(claim, outcome=outcomes.OPPOSITE, verdict="not reproduced: the opposite") for claim in claims[:3]
    ]
    lines = verdicts.short([*opposite[:2], claims[2]]).split("\n")
    assert lines[2:] == [
        "| Fig. 1 | MIR follows the accuracy after stage 2 | reproduced only with matched norms; "
        "not at a high rate and at a low rate (the opposite) |"
    ]
    assert verdicts.short(opposite).endswith("| not reproduced: the opposite |"), "all alike"


@pytest.mark.parametrize(
    "by_condition, said, standing",
    [
        (("reproduced", "reproduced"), "reproduced", "reproduced"),
        (("undecided", "undecided"), "not reproduced: undecided", "undecided"),
        (
            ("the opposite", "falls short"),
            "not reproduced: the opposite at a high rate, falls short with matched norms",
            "the opposite",
        ),
        (
            ("undecided", "not testable here"),
            "not reproduced: undecided at a high rate; not testable here with matched norms: why",
            "undecided",
        ),
        (
            ("not testable here", "reproduced"),
            "reproduced only with matched norms; not testable here at a high rate: why",
            "reproduced in part",
        ),
        (("not testable here", "not testable here"), "not testable here: why", "not testable here"),
        (("not measured", "falls short"), "not reproduced: falls short (high: not measured)", "undecided"),
        (("not measured", "not measured"), "not measured", "not measured"),
    ],
)
def test_what_is_said_of_a_claim_over_its_conditions_and_what_is_counted(claims, by_condition, said, standing):
    def made(condition, outcome):
        verdict = f"{outcome}: why" if outcome == "not testable here" else f"(a verdict: {outcome})"
        return replace(claims[0], condition=condition, outcome=outcome, verdict=verdict)

    group = [made(*pair) for pair in zip(("high", "matched"), by_condition, strict=True)]
    assert verdicts.overall(group) == said
    assert outcomes.standing(group) == standing
    counted = verdicts.in_short(group)
    if set(by_condition) == {"not measured"}:
        assert counted == "**Of 1 claims (0 of them ours), none is measured yet.**"
        return
    assert counted.startswith("**Of 1 claims (0 of them ours)")
    assert all(f"{by_condition.count(outcome)} {outcome}" in counted for outcome in by_condition)


def test_the_count_adds_up(claims):
    groups = verdicts.grouped(claims)
    counted = verdicts.in_short(claims)
    numbers = re.match(
        r"\*\*Of (\d+) claims \((\d+) of them ours\), (\d+) are measured: (\d+) .*?, (\d+) .*?, (\d+) under", counted
    )
    total, ours, known, every, some, none = map(int, numbers.groups())
    assert (total, ours, known) == (len(groups), 3, len(groups))
    void = sum(outcomes.standing(group) == "not testable here" for group in groups)
    assert every + some + none + void == known
    lines = re.search(r"Line by line .*?: (.*)\.", counted).group(1)
    assert sum(map(int, re.findall(r"\d+", lines))) == len(claims)
    assert verdicts.in_short([]) == "No claim was judged."
