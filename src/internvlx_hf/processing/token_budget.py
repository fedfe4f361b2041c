# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A budget of visual tokens for a request: which of its images give up tiles.

RVTC bounds the tiles of one image. A budget bounds those of all images and frames of a request together; the rule is ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from .image_settings import ImageSettings
from .rvtc import TilePlan, TilingRule

Size = tuple[int, int]  # (width, height) of an upright image


class Step(NamedTuple):
    """From one grid of an image to its next smaller one.

    Attributes:
        rule: chooses the smaller grid.
        released: tiles that the image gives up, including a thumbnail.
        share: of the pixels that the image has without a budget, the share that the smaller grid keeps.
    """

    rule: TilingRule
    released: int
    share: float


def fit_rules(
    rule: TilingRule,
    sizes: Sequence[Size],
    tokens_per_tile: int,
    max_image_tokens: int | None = None,
    num_frames: int = 0,
) -> list[TilingRule]:
    """The tiling rule of each image of a request, such that its tiles and frames take at most `max_image_tokens` tokens.

    Image i takes `rules[i].plan(*sizes[i]).num_tiles` tiles. All of this package counts the tiles of a request in this way.

    Without a budget, `rule` chooses each image's grid. If these grids take too many tokens, images take smaller ones, step by
    step. A step gives one image its next smaller grid: the one that `rule` chooses with a smaller `max_tiles`. The next step is
    the one that leaves its image the largest share of the pixels that the image has without a budget; of equal shares, the
    last image's. An image's pixels are those of its grid, on each side at most the image's own. So images that are enlarged to
    fill their grids give up tiles first, and lose nothing by it; after them, all images keep about the same share.

    The order of the steps depends on the images and `rule` only, and a smaller budget takes more of them. Hence no image has
    more tiles with a smaller budget.

    Args:
        rule: bounds the tiles of each image.
        sizes: (width, height) of each upright image.
        tokens_per_tile: visual tokens of a tile in `input_ids`, `config.image_seq_length` of the model.
        max_image_tokens: the budget (default: none).
        num_frames: frames of the request's videos. Each takes one tile, and their number is not changed.

    Returns:
        `rule`, with a smaller `max_tiles` for each image that gives up tiles.

    Raises:
        ValueError: if the smallest grids and the frames take more tokens. The message says how many they take.
    """
    ImageSettings(max_image_tokens=max_image_tokens)  # raises if it is out of range
    rules = [rule] * len(sizes)
    if max_image_tokens is None:
        return rules
    num_tiles = sum(_plan(rule, *size).num_tiles for size in sizes) + num_frames
    excess = num_tiles - max_image_tokens // tokens_per_tile
    if excess <= 0:
        return rules
    _require_possible(rule, len(sizes), tokens_per_tile, max_image_tokens, num_frames)
    steps = [_steps(rule, *size) for size in sizes]
    waiting = [(-own[0].share, -index, 0) for index, own in enumerate(steps) if own]
    heapify(waiting)
    while excess > 0:
        _, minus_index, number = heappop(waiting)
        own = steps[-minus_index]
        rules[-minus_index] = own[number].rule
        excess -= own[number].released
        if number + 1 < len(own):
            heappush(waiting, (-own[number + 1].share, minus_index, number + 1))
    return rules


def _require_possible(
    rule: TilingRule, num_images: int, tokens_per_tile: int, max_image_tokens: int, num_frames: int
) -> None:
    fewest = replace(rule, max_tiles=rule.min_tiles).plan(1, 1).num_tiles  # the same for an image of any size
    tiles = num_images * fewest + num_frames
    least = tiles * tokens_per_tile
    if least <= max_image_tokens:
        return
    counts = {"image": num_images, "frame": num_frames}
    given = " and ".join(f"{number} {kind}{'s' * (number > 1)}" for kind, number in counts.items() if number)
    hints = [f"max_image_tokens={least} or more"]
    hints += ["fewer frames (`num_frames`, `fps`)"] if num_frames else []
    hints += [f"min_patches below {rule.min_tiles}"] if num_images and rule.min_tiles > 1 else []
    raise ValueError(
        f"max_image_tokens={max_image_tokens} is too small: {given} take{'s' * (num_images + num_frames == 1)} at least {least} "
        f"visual tokens, {tiles} tile{'s' * (tiles > 1)} of {tokens_per_tile}. Expected {', or '.join(hints)}."
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
        steps.append(Step(bounded, plan.num_tiles - smaller.num_tiles, share))
        plan = smaller
    return tuple(steps)


def _pixels(rule: TilingRule, plan: TilePlan, width: int, height: int) -> int:
    """Pixels of an image in a grid. Enlarging adds none."""
    return min(width, plan.columns * rule.tile_width) * min(height, plan.rows * rule.tile_height)
