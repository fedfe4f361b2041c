# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""RVTC against the golden cases of the reference, and its rules for any size (paper, section 3.3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvlx_hf.processing.rvtc import SLICING_STRATEGIES, TilingRule
from json_files import json_of
from paths import GOLDEN as GOLDEN_ROOT
from refusals import refused

GOLDEN = json_of(GOLDEN_ROOT / "rvtc" / "cases.json")

sides = st.integers(1, 6000)
rules = st.builds(
    lambda tile_height, tile_width, bounds, slicing, use_thumbnail: TilingRule(
        tile_height, tile_width, min(bounds), max(bounds), slicing, use_thumbnail
    ),
    st.sampled_from([28, 224, 336, 448]),
    st.sampled_from([28, 224, 336, 448]),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.sampled_from(SLICING_STRATEGIES),
    st.booleans(),
)


@pytest.mark.parametrize("slicing", SLICING_STRATEGIES)
def test_all_golden_cases_exactly(slicing):
    for case in GOLDEN["cases"]:
        for max_tiles, results in case["results"].items():
            found = []
            for use_thumbnail in (False, True):
                rule = TilingRule(case["image_size"], case["image_size"], 1, int(max_tiles), slicing, use_thumbnail)
                plan = rule.plan(case["width"], case["height"])
                found.append(plan.num_tiles)
            found = [plan.columns, plan.rows, rule.budget(case["width"], case["height"]), *found]
            assert found == results[slicing], (case, max_tiles)


@given(rules, sides, sides)
def test_tiles_are_within_their_bounds(rule, width, height):
    plan = rule.plan(width, height)
    assert rule.min_tiles <= plan.columns * plan.rows <= rule.budget(width, height) <= rule.max_tiles
    assert plan.has_thumbnail == (rule.use_thumbnail and plan.columns * plan.rows > 1)
    assert plan.num_tiles == plan.columns * plan.rows + plan.has_thumbnail


@given(rules, sides, sides)
def test_no_grid_is_nearer_to_the_aspect_ratio_than_the_chosen_one(rule, width, height):
    def difference(columns, rows):
        return abs(width / height - (columns * rule.tile_width) / (rows * rule.tile_height))

    plan = rule.plan(width, height)
    budget = rule.budget(width, height)
    grids = [(c, r) for c in range(1, budget + 1) for r in range(1, budget + 1) if rule.min_tiles <= c * r <= budget]
    assert difference(plan.columns, plan.rows) == min(difference(*grid) for grid in grids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slicing": "edges"}, "slicing='edges' … one of 'edge', 'area', 'ratio'"),
        ({"min_tiles": 7}, "min_patches=7 is larger than max_patches=6"),
        ({"min_tiles": 0}, "min_patches=0 … a whole number from 1"),
        ({"max_tiles": 2.5}, "max_patches=2.5 … a whole number from 1"),
        ({"tile_height": -448}, "height=-448 … a positive"),
        ({"tile_width": None}, "width=None … a positive"),
    ],
)
def test_impossible_rules_name_the_value(arguments, message):
    with refused(message):
        TilingRule(**({"tile_height": 448, "tile_width": 448} | arguments))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5)])
def test_an_image_without_pixels_is_refused(width, height):
    with refused(f"{width}x{height} pixels"):
        TilingRule(448, 448).plan(width, height)


@pytest.mark.parametrize("slicing", ["edge", "area"])
def test_oblong_tiles_are_counted_along_their_own_sides(slicing):
    assert TilingRule(224, 448, 1, 12, slicing).budget(448, 448) == 2
