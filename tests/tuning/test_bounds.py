"""Exact bounds on a share."""

import re

import pytest
from scipy.stats import beta

from internvlx_hf.tuning.bounds import at_least, interval, lower_bound, most_missing, needed, upper_bound
from paths import ROOT
from refusals import refusals


@pytest.mark.parametrize(("found", "count"), [(1, 1), (3, 7), (12, 12), (19, 20), (145, 149), (1, 300), (299, 300)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_bounds_are_those_of_clopper_and_pearson(found, count, confidence):
    low = beta.ppf(1 - confidence, found, count - found + 1)
    assert lower_bound(found, count, confidence) == pytest.approx(low, abs=1e-9)
    high = 1.0 if found == count else beta.ppf(confidence, found + 1, count - found)
    assert upper_bound(found, count, confidence) == pytest.approx(high, abs=1e-9)


def test_bounds_of_hand_computed_cases():
    # one of two: P(at least one) = 1 - (1 - p)² = 0.05
    assert lower_bound(1, 2) == pytest.approx(1 - 0.95**0.5)
    # two of three: P(at least two) = 3 p² (1 - p) + p³
    share = lower_bound(2, 3)
    assert 3 * share**2 * (1 - share) + share**3 == pytest.approx(0.05)
    assert lower_bound(0, 5) == 0
    assert upper_bound(5, 5) == 1
    assert at_least(0, 4, 0.3) == pytest.approx(1)


@pytest.mark.parametrize(("count", "share"), [(149, 0.98), (32, 0.91), (12, 0.78)])
def test_what_images_certify_that_all_agree(count, share):
    assert round(lower_bound(count, count), 2) == share
    assert lower_bound(count, count) == pytest.approx(0.05 ** (1 / count))


def test_how_many_images_a_promise_needs():
    assert needed(0.98) == 149
    assert lower_bound(148, 148) < 0.98 <= lower_bound(149, 149)
    for share in (0.5, 0.77, 0.9, 0.95, 0.99, 0.999):
        least = needed(share)
        assert lower_bound(least, least) >= share > lower_bound(least - 1, least - 1)


def test_how_many_may_disagree():
    assert most_missing(148, 0.98) is None
    assert most_missing(149, 0.98) == 0
    for count, share in ((300, 0.98), (60, 0.9), (500, 0.95)):
        missing = most_missing(count, share)
        assert lower_bound(count - missing, count) >= share > lower_bound(count - missing - 1, count)


def test_the_interval_has_half_of_the_doubt_on_each_side():
    assert interval(5, 20) == (lower_bound(5, 20, 0.975), upper_bound(5, 20, 0.975))


test_what_is_refused = refusals(
    (lambda: lower_bound(3, 2), "found=3 of count=2", "expected 0 to count"),
    (lambda: lower_bound(0, 0), "count=0", "at least one image"),
    (lambda: lower_bound(1, 2, 1.0), "confidence=1.0", "between 0 and 1"),
)


def test_the_page_says_how_many_images_a_promise_needs():
    page = (ROOT / "docs/tuning.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (share to keep|held-out images|images in all) \| (.*) \|$", page, re.MULTILINE))
    shares, held_out, in_all = (list(map(float, row.split(" | "))) for row in rows.values())
    assert [needed(share) for share in shares] == held_out
    assert in_all == [2 * count for count in held_out]
