# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A budget of visual tokens for a request: which of its images take fewer tokens per tile, or fewer tiles.

RVTC bounds the tiles of one image. A budget bounds those of all images and frames of a request together; the rule is
ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import product
from math import prod
from typing import Any, NamedTuple

from .image_settings import ImageSettings
from .rvtc import TilePlan, TilingRule
from .size_choices import Choice, frame_size, read_choices, tokens_before

Size = tuple[int, int]  # (width, height) of an upright image


class Step(NamedTuple):
    """From one grid of an image to its next smaller one.

    Attributes:
        rule: chooses the smaller grid.
        share: of the pixels that the image has without a budget, the share that the smaller grid keeps.
    """

    rule: TilingRule
    share: float


def plan_request(
    rule: TilingRule,
    sizes: Sequence[Size],
    offered: Sequence[str],
    tokens_per_tile: Any = None,
    max_image_tokens: int | None = None,
    num_frames: int = 0,
) -> tuple[list[TilingRule], list[Choice]]:
    """The tiling rule and the sizes of each image of a request, see [`fit_request`]. Reads no pixel.

    A budget chooses smaller sizes only if the request asks for none: those of the model's that have fewer placeholders
    than its default.

    Args:
        rule: bounds the tiles of each image.
        sizes: (width, height) of each upright image.
        offered: the sizes of a tile that the model offers, the default first.
        tokens_per_tile: the request's choice of them, see `size_choices.py` (default: none).
        max_image_tokens: the budget (default: none).
        num_frames: frames of the request's videos.

    Raises:
        ValueError: if a size is not offered, a list of them has another length than the images, or the budget is too
            small.
    """
    before = [tokens_before(size) for size in offered]
    choices = read_choices(offered[0] if tokens_per_tile is None else tokens_per_tile, offered, len(sizes))
    smaller = sorted({n for n in before if n < before[0]}, reverse=True) if tokens_per_tile is None else []
    tokens = [Tokens(before[choice.tiles], before[choice.thumbnail]) for choice in choices]
    frames = num_frames, before[frame_size(tokens_per_tile, offered)]
    rules, fitted = fit_request(rule, sizes, tokens, smaller, max_image_tokens, frames)
    chosen = [
        choice if own == given else Choice(*map(before.index, own))
        for choice, own, given in zip(choices, fitted, tokens, strict=True)
    ]
    return rules, chosen


class Tokens(NamedTuple):
    """Visual tokens of each tile of an image, and of its thumbnail."""

    tile: int
    thumbnail: int

    def of(self, plan: TilePlan) -> int:
        """Tokens of an image in a grid."""
        return plan.columns * plan.rows * self.tile + plan.has_thumbnail * self.thumbnail

    def at_most(self, tokens: int) -> "Tokens":
        return Tokens(min(self.tile, tokens), min(self.thumbnail, tokens))


def fit_rules(
    rule: TilingRule,
    sizes: Sequence[Size],
    tokens_per_tile: int,
    max_image_tokens: int | None = None,
    num_frames: int = 0,
) -> list[TilingRule]:
    """[`fit_request`] for tiles that all have `tokens_per_tile` tokens: the tiling rule of each image."""
    tokens = Tokens(tokens_per_tile, tokens_per_tile)
    return fit_request(rule, sizes, [tokens] * len(sizes), (), max_image_tokens, (num_frames, tokens_per_tile))[0]


def fit_request(
    rule: TilingRule,
    sizes: Sequence[Size],
    tokens: Sequence[Tokens],
    smaller: Sequence[int] = (),
    max_image_tokens: int | None = None,
    frames: tuple[int, int] = (0, 0),
) -> tuple[list[TilingRule], list[Tokens]]:
    """Fit a request into a budget: each image's tiling rule and tokens per tile, such that all take at most
    `max_image_tokens`.

    Image i takes `rules[i].plan(*sizes[i]).num_tiles` tiles. All of this package counts the tiles of a request in this
    way.

    Without a budget, `rule` chooses each image's grid. If these grids take too many tokens, images change, step by
    step.

    First, tiles keep their pixels and take fewer tokens, if `smaller` has such numbers: from the last image to the
    first, each takes at most the largest of these numbers, then each takes at most the next one, and so on.

    If the smallest number is not enough, images take smaller grids. A step gives one image its next smaller grid: the
    one that `rule` chooses with a smaller `max_tiles`. The next step is the one that leaves its image the largest
    share of the pixels that the image has without a budget; of equal shares, the last image's. An image's pixels are
    those of its grid, on each side at most the image's own. So images that are enlarged to fill their grids give up
    tiles first, and lose nothing by it; after them, all images keep about the same share.

    The order of the steps depends on the images, `tokens` and `rule` only, and a smaller budget takes more of them.
    Hence no image has more tiles, or more tokens per tile, with a smaller budget.

    Args:
        rule: bounds the tiles of each image.
        sizes: (width, height) of each upright image.
        tokens: of each image, visual tokens of a tile in `input_ids`.
        smaller: numbers of tokens that a tile may have instead, in descending order; none if the request fixes its
            sizes.
        max_image_tokens: the budget (default: none).
        frames: number of frames of the request's videos, and tokens of each; neither is changed.

    Returns:
        `rule` for each image, with a smaller `max_tiles` if it gives up tiles, and the image's tokens.

    Raises:
        ValueError: if the smallest grids and the frames take more tokens. The message says how many they take.
    """
    ImageSettings(max_image_tokens=max_image_tokens)  # raises if it is out of range
    rules, tokens = [rule] * len(sizes), list(tokens)
    if max_image_tokens is None:
        return rules, tokens
    plans = [_plan(rule, *size) for size in sizes]
    used = sum(each.of(plan) for each, plan in zip(tokens, plans, strict=True)) + prod(frames)
    excess = used - max_image_tokens
    for limit, index in product(smaller, reversed(range(len(sizes)))):
        if excess <= 0:
            break
        fewer = tokens[index].at_most(limit)
        excess -= tokens[index].of(plans[index]) - fewer.of(plans[index])
        tokens[index] = fewer
    if excess > 0:
        _require_possible(rule, tokens, max_image_tokens, frames)
        _take_steps(rules, rule, sizes, tokens, excess)
    return rules, tokens


def _take_steps(
    rules: list[TilingRule], rule: TilingRule, sizes: Sequence[Size], tokens: list[Tokens], excess: int
) -> None:
    """Put smaller grids into `rules` until they save `excess` tokens."""
    steps = [_steps(rule, *size) for size in sizes]
    waiting = [(-own[0].share, -index, 0) for index, own in enumerate(steps) if own]
    heapify(waiting)
    while excess > 0:
        _, minus_index, number = heappop(waiting)
        index = -minus_index
        own = steps[index]
        before = tokens[index].of(_plan(rules[index], *sizes[index]))
        rules[index] = own[number].rule
        excess -= before - tokens[index].of(_plan(rules[index], *sizes[index]))
        if number + 1 < len(own):
            heappush(waiting, (-own[number + 1].share, minus_index, number + 1))


def _require_possible(rule: TilingRule, tokens: list[Tokens], max_image_tokens: int, frames: tuple[int, int]) -> None:
    fewest = replace(rule, max_tiles=rule.min_tiles).plan(1, 1)  # the same for an image of any size
    (num_frames, frame_tokens), num_images = frames, len(tokens)
    least = sum(each.of(fewest) for each in tokens) + num_frames * frame_tokens
    if least <= max_image_tokens:
        return
    tiles = num_images * fewest.num_tiles + num_frames
    counts = {"image": num_images, "frame": num_frames}
    given = " and ".join(f"{number} {kind}{'s' * (number > 1)}" for kind, number in counts.items() if number)
    hints = [f"max_image_tokens={least} or more"]
    hints += ["fewer frames (`num_frames`, `fps`)"] if num_frames else []
    hints += [f"min_patches below {rule.min_tiles}"] if num_images and rule.min_tiles > 1 else []
    each_tile = " or ".join(str(n) for n in sorted({n for own in tokens for n in own} | ({frame_tokens} - {0})))
    raise ValueError(
        f"max_image_tokens={max_image_tokens} is too small: {given} take{'s' * (num_images + num_frames == 1)} at "
        f"least {least} visual tokens, {tiles} tile{'s' * (tiles > 1)} of {each_tile}. Expected {', or '.join(hints)}."
    )


@lru_cache(maxsize=4096)
def _plan(rule: TilingRule, width: int, height: int) -> TilePlan:
    return rule.plan(width, height)


@lru_cache(maxsize=4096)
def _steps(rule: TilingRule, width: int, height: int) -> tuple[Step, ...]:
    """The steps of an image, from the grid that `rule` chooses down to the smallest."""
    plan = _plan(rule, width, height)
    pixels = _pixels(rule, plan, width, height)
    steps = []
    while plan.columns * plan.rows > rule.min_tiles:
        bounded = replace(rule, max_tiles=plan.columns * plan.rows - 1)
        smaller = bounded.plan(width, height)
        share = _pixels(rule, smaller, width, height) / pixels
        steps.append(Step(bounded, share))
        plan = smaller
    return tuple(steps)


def _pixels(rule: TilingRule, plan: TilePlan, width: int, height: int) -> int:
    """Pixels of an image in a grid. Enlarging adds none."""
    return min(width, plan.columns * rule.tile_width) * min(height, plan.rows * rule.tile_height)
