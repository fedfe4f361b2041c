# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""RVTC, resolution-aware visual token compression (paper, section 3.3): the number of tiles of an image.

InternVL2 stretches every image to the grid whose aspect ratio fits best, regardless of the image's resolution. RVTC
first bounds the number of tiles R by the image's resolution: by its edges or by its area, measured in tiles.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral

from .rules import choice, whole

# each rule in the words that help, reports and documentation explain it with
SLICING_WORDS = {
    "edge": "tiles that cover width and height",
    "area": "tiles that cover the image's area",
    "ratio": "InternVL's own, enlarging small images",
}
SLICING_STRATEGIES = tuple(SLICING_WORDS)
SLICING_HELP = "how an image's size limits its tiles: " + ", ".join(f"{k} ({v})" for k, v in SLICING_WORDS.items())
# At 448 x 448 pixels per tile, this is 45 times the largest image that Pillow opens, and exceeds every model's
# context.
MAX_TILES = 10_000
SLICING_RULE, TILES_RULE = choice(SLICING_STRATEGIES), whole(1, MAX_TILES)


@dataclass(frozen=True)
class TilePlan:
    """The grid that an image is stretched to, and whether a thumbnail of the whole image follows its tiles."""

    columns: int
    rows: int
    has_thumbnail: bool

    @property
    def num_tiles(self) -> int:
        """Number of tiles of the image, including the thumbnail."""
        return self.columns * self.rows + self.has_thumbnail


@dataclass(frozen=True)
class TilingRule:
    """Determines how an image is split into tiles. All of this package counts tiles by `plan(...).num_tiles`.

    Args:
        tile_height, tile_width: pixels of one tile (448 in the paper).
        min_tiles, max_tiles: bounds of columns x rows, without the thumbnail. Transformers calls these arguments
            `min_patches` and `max_patches`.
        slicing: how the bound R on the tiles of a W x H image is computed (paper, section 3.3).
            `"edge"`: R = min(max_tiles, ceil(W / tile_width) * ceil(H / tile_height)),
            `"area"`: R = min(max_tiles, ceil(W * H / (tile_width * tile_height))),
            `"ratio"`: R = max_tiles, InternVL2's own rule. R is never below `min_tiles`.
        use_thumbnail: append a thumbnail if there is more than one tile.

    Raises:
        ValueError: if an argument is outside its range. The message names it and its value.
    """

    tile_height: int
    tile_width: int
    min_tiles: int = 1
    max_tiles: int = 6
    slicing: str = "edge"
    use_thumbnail: bool = True

    def __post_init__(self):
        SLICING_RULE.check("slicing", self.slicing)
        for name, value in (("height", self.tile_height), ("width", self.tile_width)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"size has {name}={value!r}, expected a positive number of pixels.")
        for name, value in (("min_patches", self.min_tiles), ("max_patches", self.max_tiles)):
            TILES_RULE.check(name, value)
        if self.min_tiles > self.max_tiles:
            raise ValueError(
                f"min_patches={self.min_tiles} is larger than max_patches={self.max_tiles}, "
                "expected min_patches <= max_patches."
            )

    def budget(self, width: int, height: int) -> int:
        """R of the paper: the largest number of tiles that an image of `width` x `height` pixels may take."""
        if self.slicing == "edge":
            bound = math.ceil(width / self.tile_width) * math.ceil(height / self.tile_height)
        elif self.slicing == "area":
            bound = math.ceil(width * height / (self.tile_width * self.tile_height))
        else:
            bound = self.max_tiles
        return max(self.min_tiles, min(self.max_tiles, bound))

    def plan(self, width: int, height: int) -> TilePlan:
        """The tiles of an upright image of `width` x `height` pixels.

        Of the grids with `min_tiles` to R tiles, the one whose aspect ratio is nearest to the image's is chosen. Of
        equally near grids, the larger is chosen if the image has more than half of its pixels (InternVL2's rule).

        Raises:
            ValueError: if the image has no pixels.
        """
        if width < 1 or height < 1:
            raise ValueError(f"The image measures {width}x{height} pixels (width x height), expected at least 1x1.")
        columns, rows = 1, 1
        best_difference = math.inf
        for grid_columns, grid_rows in _grids(self.min_tiles, self.budget(width, height)):
            grid_width, grid_height = grid_columns * self.tile_width, grid_rows * self.tile_height
            # both quotients are rounded to doubles before the comparison: exact fractions would give other ties
            difference = abs(width / height - grid_width / grid_height)
            is_tied = difference == best_difference
            if difference < best_difference or (is_tied and width * height > 0.5 * grid_width * grid_height):
                best_difference = difference
                columns, rows = grid_columns, grid_rows
        return TilePlan(columns, rows, has_thumbnail=self.use_thumbnail and columns * rows > 1)


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of `min_tiles` to `max_tiles` tiles, sorted by number of tiles.

    For each n from `min_tiles` to `max_tiles`, InternVL adds the grids of at most n columns and n rows to a set, and
    sorts the set by number of tiles only. So the order of the set determines which of two grids of equally many tiles
    comes first, and with `min_tiles` above 1 this decides between equally near grids. The set is filled in the same
    order here.
    """
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(-(-min_tiles // columns), max_tiles // columns + 1)
    ]
    grids.sort(key=lambda grid: max(min_tiles, *grid))
    return tuple(sorted(set(grids), key=lambda grid: grid[0] * grid[1]))
