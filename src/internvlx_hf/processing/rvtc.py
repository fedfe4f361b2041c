# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""RVTC, resolution-aware visual token compression (paper, section 3.3): how many tiles an image is cut into.

InternVL2 stretches every image to the grid whose aspect ratio fits best, whatever the image's own resolution. RVTC
first bounds the number of tiles R by what the image holds: by its edges or by its area, measured in tiles.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral

SLICING_STRATEGIES = ("edge", "area", "ratio")
# Of 448 x 448 pixels they are 45 times what Pillow opens, and their tokens exceed every language model's positions.
MAX_TILES = 10_000


@dataclass(frozen=True)
class TilePlan:
    """The grid an image is stretched to, and whether a thumbnail of the whole image follows its tiles."""

    columns: int
    rows: int
    has_thumbnail: bool

    @property
    def num_tiles(self) -> int:
        """Tiles the image takes, the thumbnail included."""
        return self.columns * self.rows + self.has_thumbnail


@dataclass(frozen=True)
class TilingRule:
    """Says how an image is cut into tiles; `plan(...).num_tiles` is the only count of tiles in this package.

    Args:
        tile_height, tile_width: pixels of one tile (448 in the paper).
        min_tiles, max_tiles: bounds of columns x rows, the thumbnail not counted. These are the arguments that
            transformers calls `min_patches` and `max_patches`.
        slicing: how the bound R on the tiles of a W x H image is found (paper, section 3.3).
            `"edge"`: R = min(max_tiles, ceil(W / tile_width) * ceil(H / tile_height)),
            `"area"`: R = min(max_tiles, ceil(W * H / (tile_width * tile_height))),
            `"ratio"`: R = max_tiles, InternVL2's own rule. R is never below `min_tiles`.
        use_thumbnail: append a thumbnail wherever there is more than one tile.

    Raises:
        ValueError: an argument is outside its range; the message names it and its value.
    """

    tile_height: int
    tile_width: int
    min_tiles: int = 1
    max_tiles: int = 6
    slicing: str = "edge"
    use_thumbnail: bool = True

    def __post_init__(self):
        if self.slicing not in SLICING_STRATEGIES:
            raise ValueError(f"slicing={self.slicing!r} is unknown, expected one of {', '.join(SLICING_STRATEGIES)}.")
        for name, value in (("height", self.tile_height), ("width", self.tile_width)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"size has {name}={value!r}, expected a positive number of pixels.")
        for name, value in (("min_patches", self.min_tiles), ("max_patches", self.max_tiles)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}, expected a positive number of tiles.")
            if value > MAX_TILES:
                raise ValueError(f"{name}={value}, expected at most {MAX_TILES} tiles.")
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

        Among the grids of `min_tiles` to R tiles, the one whose aspect ratio is nearest to the image's wins. Of equally
        near ones the larger wins, if the image has more than half of its pixels (InternVL2's rule).

        Raises:
            ValueError: the image has no pixels.
        """
        if width < 1 or height < 1:
            raise ValueError(f"The image measures {width}x{height} pixels (width x height), expected at least 1x1.")
        columns, rows = 1, 1
        best_difference = math.inf
        for grid_columns, grid_rows in _grids(self.min_tiles, self.budget(width, height)):
            grid_width, grid_height = grid_columns * self.tile_width, grid_rows * self.tile_height
            # both quotients are rounded to doubles before they are compared: exact fractions would give other ties
            difference = abs(width / height - grid_width / grid_height)
            is_tied = difference == best_difference
            if difference < best_difference or (is_tied and width * height > 0.5 * grid_width * grid_height):
                best_difference = difference
                columns, rows = grid_columns, grid_rows
        return TilePlan(columns, rows, has_thumbnail=self.use_thumbnail and columns * rows > 1)


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of `min_tiles` to `max_tiles` tiles, those of fewer tiles first.

    InternVL collects them in a set, for n = `min_tiles` ... `max_tiles` those of at most n columns and n rows, and sorts it
    by tiles alone. So the set's order settles which of two grids of equally many tiles comes first, and with `min_tiles`
    above 1 that decides between equally near ones: the set is filled in the same order here.
    """
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(-(-min_tiles // columns), max_tiles // columns + 1)
    ]
    grids.sort(key=lambda grid: max(min_tiles, *grid))
    return tuple(sorted(set(grids), key=lambda grid: grid[0] * grid[1]))
