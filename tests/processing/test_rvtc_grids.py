# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""RVTC's ties and its order of grids against InternVL's own algorithm, written out slowly; and grids of many tiles."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvlx_hf.processing.rvtc import MAX_TILES, TilingRule, _grids
from refusals import refused


def reference_grids(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """As `dynamic_preprocess` of InternVL2 lists them: a set in its own order, sorted by tiles."""
    ratios = {
        (i, j)
        for n in range(min_tiles, max_tiles + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if min_tiles <= i * j <= max_tiles
    }
    return sorted(ratios, key=lambda ratio: ratio[0] * ratio[1])


def reference_grid(width: int, height: int, tile: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """`find_closest_aspect_ratio` of InternVL2."""
    best, best_difference, aspect_ratio = (1, 1), math.inf, width / height
    for ratio in reference_grids(min_tiles, max_tiles):
        difference = abs(aspect_ratio - ratio[0] / ratio[1])
        if difference < best_difference:
            best_difference, best = difference, ratio
        elif difference == best_difference and width * height > 0.5 * tile * tile * ratio[0] * ratio[1]:
            best = ratio
    return best


def grid(rule: TilingRule, width: int, height: int) -> tuple[int, int]:
    plan = rule.plan(width, height)
    return plan.columns, plan.rows


def halfway(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """The smallest size whose aspect ratio is half way between those of two grids."""
    return first[0] * second[1] + second[0] * first[1], 2 * first[1] * second[1]


def test_a_tie_at_exactly_half_the_area_keeps_the_smaller_grid():
    # 8/9 is equally near to 1x1, 2x2 and 3x3; the image has exactly half of the pixels of 3x3, and more are needed
    assert 896 * 1008 == 0.5 * 448 * 448 * 9
    assert grid(TilingRule(448, 448, 1, 12, "ratio"), 896, 1008) == (2, 2)
    assert reference_grid(896, 1008, 448, 1, 12) == (2, 2)


@pytest.mark.parametrize(("min_tiles", "max_tiles"), [(4, 4), (5, 5), (6, 7), (2, 12), (3, 6), (12, 40)])
def test_the_order_of_grids_that_are_equally_near_is_the_reference_s(min_tiles, max_tiles):
    rule = TilingRule(448, 448, min_tiles, max_tiles, "ratio")
    grids = reference_grids(min_tiles, max_tiles)
    sizes = [halfway(first, second) for first in grids for second in grids if first < second]
    scaled = [(width * scale, height * scale) for width, height in sizes for scale in (1, 7, 56)]
    for width, height in scaled[:600]:
        assert grid(rule, width, height) == reference_grid(width, height, 448, min_tiles, max_tiles), (width, height)


def test_grids_are_in_the_reference_s_order():
    for max_tiles in range(1, 33):
        for min_tiles in range(1, max_tiles + 1):
            assert list(_grids(min_tiles, max_tiles)) == reference_grids(min_tiles, max_tiles)


@settings(max_examples=200)
@given(st.tuples(st.integers(1, 24), st.integers(1, 24)), st.integers(1, 4000), st.integers(1, 4000))
def test_any_bounds_and_any_size_give_the_reference_s_grid(bounds, width, height):
    rule = TilingRule(448, 448, min(bounds), max(bounds), "ratio")
    assert grid(rule, width, height) == reference_grid(width, height, 448, min(bounds), max(bounds))


def test_the_largest_number_of_tiles_is_planned():
    plan = TilingRule(448, 448, 1, MAX_TILES, "ratio").plan(1920, 1080)
    assert (plan.columns, plan.rows) == (16, 9)


@pytest.mark.parametrize(("name", "shown"), [("min_tiles", "min_patches"), ("max_tiles", "max_patches")])
def test_more_tiles_than_any_model_reads_are_refused(name, shown):
    bounds = {"max_tiles": 10**12, name: MAX_TILES + 1}
    with refused(f"{shown}={MAX_TILES + 1}", "to 10000"):
        TilingRule(448, 448, **bounds)
