# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A budget of visual tokens for a request: its rule, for any images, slicing and budget."""

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from internvlx_hf.processing.rvtc import SLICING_STRATEGIES, TilePlan, TilingRule
from internvlx_hf.processing.token_budget import fit_rules
from refusals import refused

TOKENS = 256
sides = st.integers(1, 5000)
sizes_of_a_request = st.lists(st.tuples(sides, sides), max_size=8)
rules = st.builds(
    lambda tile, bounds, slicing, use_thumbnail: TilingRule(*tile, min(bounds), max(bounds), slicing, use_thumbnail),
    st.sampled_from([(448, 448), (224, 336)]),
    st.tuples(st.integers(1, 16), st.integers(1, 16)),
    st.sampled_from(SLICING_STRATEGIES),
    st.booleans(),
)


def plans(rule, sizes, tiles=None, frames=0) -> list[TilePlan]:
    budget = None if tiles is None else tiles * TOKENS
    fitted = fit_rules(rule, sizes, TOKENS, budget, frames)
    return [own.plan(*size) for own, size in zip(fitted, sizes, strict=True)]


def tiles_of(*arguments) -> list[int]:
    return [plan.num_tiles for plan in plans(*arguments)]


def fewest_tiles(rule) -> int:
    return rule.min_tiles + (rule.use_thumbnail and rule.min_tiles > 1)


@given(rules, sizes_of_a_request, st.integers(0, 9))
def test_a_smaller_budget_is_kept_and_gives_no_image_more_tiles(rule, sizes, frames):
    whole = tiles_of(rule, sizes)
    least = len(sizes) * fewest_tiles(rule) + frames
    before = whole
    for tiles in range(sum(whole) + frames + 1, max(least, 1) - 1, -1):
        found = tiles_of(rule, sizes, tiles, frames)
        assert sum(found) + frames <= tiles
        assert all(1 <= now <= then for now, then in zip(found, before, strict=True))
        assert found == whole or sum(whole) + frames > tiles
        before = found
    assert before == [fewest_tiles(rule)] * len(sizes)
    if least:
        with refused(f"Expected max_image_tokens={least * TOKENS} or more"):
            fit_rules(rule, sizes, TOKENS, least * TOKENS - 1, frames)


def kept(rule, plan, size) -> int:
    width, height = size
    return min(width, plan.columns * rule.tile_width) * min(height, plan.rows * rule.tile_height)


@settings(max_examples=60)
@given(rules, sizes_of_a_request, st.integers(1, 120))
@example(TilingRule(448, 448, 1, 12, "ratio"), [(1344, 1792), (900, 1000)], 12)  # [7, 5] tiles, not [7, 1]
def test_the_slow_rule_chooses_the_same_grids(rule, sizes, tiles):
    """Step by step, the image that keeps most of its pixels gives up tiles; written out without a queue."""
    tiles = max(tiles, len(sizes) * fewest_tiles(rule))
    current = whole = plans(rule, sizes)
    while sum(plan.num_tiles for plan in current) > tiles:
        best = None
        for index, (plan, size) in enumerate(zip(current, sizes, strict=True)):
            if plan.columns * plan.rows > rule.min_tiles:
                smaller = replace(rule, max_tiles=plan.columns * plan.rows - 1).plan(*size)
                share = kept(rule, smaller, size) / kept(rule, whole[index], size)
                if best is None or share >= best[0]:
                    best = share, index, smaller
        current = [best[2] if index == best[1] else plan for index, plan in enumerate(current)]
    assert current == plans(rule, sizes, tiles)


def test_equal_pages_shrink_together_from_the_last_to_the_first():
    rule = TilingRule(448, 448, 1, 12, "ratio")
    found = [tiles_of(rule, [(1344, 1792)] * 3, tiles) for tiles in (39, 38, 21, 20, 3)]
    assert found == [[13, 13, 13], [13, 13, 7], [7, 7, 7], [7, 7, 5], [1, 1, 1]]


def test_a_budget_counts_whole_tiles_and_no_budget_changes_nothing():
    rule = TilingRule(448, 448, 1, 6, "edge")
    assert fit_rules(rule, [(896, 448)] * 2, TOKENS) == [rule, rule]
    assert fit_rules(rule, [], TOKENS, 1) == []
    for tokens in (TOKENS, 2 * TOKENS - 1):
        (own,) = fit_rules(rule, [(896, 448)], TOKENS, tokens)
        assert own.plan(896, 448) == TilePlan(1, 1, has_thumbnail=False)


@pytest.mark.parametrize("tokens", [0, -1, 1.5, True, "256"])
def test_what_is_no_number_of_tokens_is_named(tokens):
    with refused("max_image_tokens=", "a whole number of at least 1"):
        fit_rules(TilingRule(448, 448), [(10, 10)], TOKENS, tokens)


def test_the_error_says_what_would_be_possible():
    hints = ("max_image_tokens=3328 or more", "fewer frames (`num_frames`, `fps`)", "min_patches below 4")
    with refused("2 images and 3 frames take at least 3328 visual tokens, 13 tiles of 256", *hints):
        fit_rules(TilingRule(448, 448, 4, 6, "ratio"), [(10, 10)] * 2, TOKENS, 3327, 3)
