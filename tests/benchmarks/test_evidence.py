"""The statistics of the studies: intervals, p-values, verdicts. The rules are in benchmarks/evidence/RULES.md."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmark_scripts import FOLDER, importable

pytestmark = [pytest.mark.integration, pytest.mark.any_transformers]

RULES = (FOLDER / "evidence/RULES.md").read_text(encoding="utf-8")
YARDSTICK = ("large", "small")


@pytest.fixture(autouse=True)
def evidence():
    with importable():
        yield


def scores(*values: float, bases: int = 8) -> list:
    from evidence.intervals import Score

    return [Score(seed, seed % bases, value) for seed, value in enumerate(values)]


def claim(kind: str = "above", **fields):
    from evidence.claims import Claim

    bound = {} if kind == "above" else {"share": 0.1, "yardstick": YARDSTICK}
    return Claim("a claim", "better", "worse", kind, **bound, **fields)


def judged(kind: str, differences, gain: float = 0.0, bases: int = 8):
    """The finding on a claim whose rows differ by `differences`; the yardstick's rows by `gain`."""
    from evidence.claims import judge

    zeros = scores(*(0.0 for _ in differences), bases=bases)
    rows = {
        "better": scores(*differences, bases=bases),
        "worse": zeros,
        "large": scores(*(gain for _ in differences), bases=bases),
        "small": zeros,
    }
    (found,) = judge([claim(kind)], rows, bases)
    return found


def around(mean: float, spread: float = 0.5) -> list[float]:
    """Eight differences with this mean."""
    return [mean + spread * deviation for deviation in (-1, 1, 0.5, 1, -1, -0.5, 0.2, -0.2)]


def test_intervals_and_p_values_are_those_of_scipy():
    from evidence.intervals import interval, p_inside

    values = [1.0, 2.5, 4.0, 3.0, 0.2]
    known, test = interval(values), stats.ttest_1samp(values, 0)
    expected = test.confidence_interval(0.95)
    assert (known.low, known.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert (known.mean, known.count) == (pytest.approx(np.mean(values)), 5)
    assert p_inside(values, 0, math.inf) == pytest.approx(test.pvalue, rel=1e-9)
    below = stats.ttest_1samp(values, 3, alternative="less").pvalue
    assert p_inside(values, 0, 3) == pytest.approx(2 * below, rel=1e-9)  # the nearer bound, doubled


def test_without_variance_an_interval_is_a_point_and_with_one_seed_the_whole_line():
    from evidence.intervals import interval, p_inside

    assert (interval([0.3] * 4).low, interval([0.3] * 4).high) == (0.3, 0.3)
    assert p_inside([0.3] * 4, 0, math.inf) == 0
    assert p_inside([0.0] * 4, 0, math.inf) == 1
    assert (interval([2.0]).low, interval([2.0]).high) == (-math.inf, math.inf)
    assert p_inside([2.0], 0, math.inf) == 1


def test_differences_are_taken_seed_by_seed():
    from evidence.intervals import base_means, paired_differences

    found = paired_differences(scores(30, 50, 70, 20), scores(20, 45, 60))
    assert [difference.value for difference in found] == [10, 5, 10]
    assert base_means(paired_differences(scores(3, 4, 5, 6, bases=3), scores(1, 1, 1, 1, bases=3))) == {
        0: 3.5,
        1: 3,
        2: 4,
    }
    assert paired_differences(scores(1)[:1], scores(1, 2)[1:]) == []


def test_runs_that_are_no_pairs_are_refused():
    from evidence.intervals import Score, paired_differences

    with pytest.raises(ValueError, match="bases 0 and 1 for seed 0"):
        paired_differences([Score(0, 0, 1.0)], [Score(0, 1, 1.0)])
    with pytest.raises(ValueError, match="two for seed 0"):
        paired_differences([*scores(1.0), *scores(2.0)], scores(1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="seed 1 should be a finite number"):
        scores(1.0, value)


def test_holm_adjusts_the_smallest_most_and_never_reverses_an_order():
    from evidence.intervals import holm

    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("kind", "differences", "gain", "verdict"),
    [
        ("above", around(3), 0, "appears"),
        ("above", around(-3), 0, "the other way"),
        ("above", around(0.1, 0.3), 0, "does not"),
        ("above", around(0.5, 0.2), 0, "does not"),  # surely above 0, and surely by less than a point
        ("above", around(0.3, 2), 0, "not told apart"),
        ("about", around(1), 30, "appears"),
        ("about", around(-1), 30, "appears"),
        ("about", around(5), 30, "does not"),
        ("about", around(-5), 30, "the other way"),
        ("about", around(2.9), 30, "not told apart"),
        ("about", around(0.1, 0.3), 0, "appears"),  # no bound is below a point
        ("about", around(1.5, 0.1), 0, "does not"),
        ("not below", around(5), 30, "appears"),
        ("not below", around(-1), 30, "appears"),
        ("not below", around(-5), 30, "the other way"),
        ("not below", around(-2.9), 30, "not told apart"),
        ("above", [0.0] * 8, 0, "does not"),
        ("above", [2.0] * 8, 0, "appears"),
    ],
)
def test_verdicts_follow_the_rules(kind, differences, gain, verdict):
    found = judged(kind, differences, gain)
    assert found.bound == max(1, 0.1 * gain)
    assert found.verdict == verdict
    assert found.is_decided == (verdict != "not told apart") == (found.p < 0.05)


def test_the_unit_of_an_interval_is_the_base():
    differences = [4.0, 4.2, -0.1, 4.1, 4.3, -0.1, 4.0, 4.2]  # seeds 2 and 5 are those of base 2
    found = judged("above", differences, bases=3)
    assert found.values == pytest.approx([4.1 / 3 + 8 / 3, 12.7 / 3, -0.1])
    assert (found.interval.count, found.verdict) == (3, "not told apart")
    assert judged("above", differences).verdict == "appears"  # a base each


def test_a_claim_about_rows_that_tiles_cut_differently_is_refused():
    from evidence.claims import judge

    rows = {"better": scores(1.0), "worse": scores(0.0)}
    assert judge([claim()], rows, 1, {"better": 4.9, "worse": 0.0})
    with pytest.raises(ValueError, match=r"'a claim' compares rows .* cut 32\.5 and 0\.0 % .* at most 5 points"):
        judge([claim()], rows, 1, {"better": 32.5, "worse": 0.0})


def test_a_claim_without_all_of_its_bases_has_no_verdict():
    found = judged("above", [3.0, 3.1, 3.2, 3.0, 3.1])
    assert (found.verdict, len(found.values), found.p, found.is_complete) == (None, 5, 1, False)
    assert judged("above", []).interval is None
    assert judged("above", [3.0]).verdict is None


def test_bases_beyond_the_plan_do_not_count_and_the_yardstick_needs_its_own():
    from evidence.claims import judge

    (found,) = judge([claim()], {"better": scores(*range(1, 11)), "worse": scores(*[0.0] * 10)}, 8)
    assert len(found.values) == 8
    assert found.verdict == "appears"
    rows = {name: scores(*[0.0] * 8) for name in ("better", "worse", "small")} | {"large": scores(*[30.0] * 6)}
    (found,) = judge([claim("about")], rows, 8)
    assert (found.verdict, len(found.values)) == (None, 6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "below"}, "got 'below'"),
        ({"kind": "about"}, "needs a yardstick and a share"),
        ({"kind": "not below", "share": 2.0, "yardstick": YARDSTICK}, "between 0 and 1"),
        ({"share": 0.1, "yardstick": YARDSTICK}, "takes neither"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(fields, message):
    from evidence.claims import Claim

    with pytest.raises(ValueError, match=message):
        Claim("a claim", "better", "worse", **fields)


def test_holm_counts_all_claims_of_a_study():
    from evidence.claims import adjust

    found = adjust([judged("above", around(1.1, 1.5)), judged("above", around(3)), judged("above", [3.0])])
    assert [finding.verdict for finding in found] == ["appears", "appears", None]
    assert found[1].adjusted_p == pytest.approx(3 * found[1].p)
    assert found[0].adjusted_p == pytest.approx(2 * found[0].p)
    assert [finding.survives_holm for finding in found] == [False, True, False]


@pytest.mark.parametrize(
    ("kind", "truth", "false"),
    [
        ("above", 0.0, {"appears", "the other way"}),
        ("above", 1.0, {"does not", "the other way"}),
        ("about", 1.0, {"appears", "does not"}),
        ("not below", -1.0, {"appears", "the other way"}),
    ],
)
def test_at_a_bound_about_5_percent_of_the_verdicts_are_false(kind, truth, false):
    """800 studies, so a rate of 5 % has a standard error of 0.8 %."""
    rng = np.random.default_rng(0)
    verdicts = [judged(kind, rng.normal(truth, 1, 8).tolist()).verdict for _ in range(800)]
    rate = sum(verdict in false for verdict in verdicts) / len(verdicts)
    assert (0.01 if kind == "above" and truth else 0.02) < rate < 0.065


def test_tables_show_the_verdict_or_how_many_seeds_there_are():
    from evidence.claims import adjust
    from evidence.tables import findings_table, summary

    found = adjust([judged("above", around(3)), judged("not below", around(-1), 30), judged("above", [3.0, 3.2])])
    full, loss, partial = findings_table(found).splitlines()[2:]
    assert full == (
        "| a claim | appears |  | +3.0 [+2.7, +3.3] | +2.5, +3.5, +3.2, +3.5, +2.5, +2.8, +3.1, +2.9 | above | 1.0 | < 0.001 | < 0.001 |"
    )
    assert "| −1.0 [−1.3, −0.7] |" in loss
    assert "| not below | 3.0 |" in loss
    assert "| 2 of 8 bases |" in partial
    assert partial.endswith("|  |  |")
    text = summary(found)
    assert "3 claims: 2 *appears*, 0 *does not*" in text
    assert "1 without all of their bases" in text
    assert "2 of the 2 that decide something survive" in text
    assert summary([judged("above", [])]).endswith("1 without all of their bases.")


def test_numbers_have_a_sign_but_for_zero():
    from evidence.tables import plus_minus, signed

    assert [signed(value) for value in (1.25, -1.25, -0.04, 0.0)] == ["+1.2", "−1.2", "0.0", "0.0"]
    assert plus_minus([1.0, 2.0, 3.0]) == "2.0 ± 2.5"
    assert plus_minus([1.0]) == "1.0"
