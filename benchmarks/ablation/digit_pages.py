"""Pages of handwritten digits at random places, scales and margins, on paper of a continuous range of sizes.

Sizes are no multiples of a tile or of a window. On pages of several tiles, no border of a tile cuts a digit, whichever slicing is
used: a slicing of more tiles would cut more, and accuracy would tell of the pages and not of the slicing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from internvlx_hf.processing.rvtc import SLICING_STRATEGIES, TilingRule

TILE, MAX_TILES = 64, 6  # pixels of a tile; tiles of a page without its thumbnail, as in the paper's Table 5
SPLITS = {"test": 0.2, "validation": 0.15, "train": 0.65}  # shares of the handwriting samples
INKS = np.array([(32, 38, 60), (25, 25, 28), (28, 50, 110), (60, 40, 30)])
PAPERS = np.array([(252, 250, 244), (247, 241, 226), (240, 244, 247)])
SPACE = 1.15  # of a digit: the side of the place in which it lies at random
TRIES = 200  # places tried on paper of one size


@dataclass(frozen=True)
class Kind:
    """A kind of page.

    Args:
        sides: the smallest and the largest width and height, pixels.
        digits: the smallest and the largest side of a digit, pixels.
        most: columns and rows of digits at most; fewer where they do not fit.
        avoids_borders: whether the digits keep clear of every slicing's borders.
        base_times: a base reads pages of this kind for so many times the schedule's steps.
    """

    sides: tuple[int, int]
    digits: tuple[int, int]
    most: tuple[int, int]
    avoids_borders: bool = False
    base_times: int = 1


@dataclass
class Page:
    image: Image.Image
    text: str  # one line per row of digits
    boxes: np.ndarray  # (digits, 4) left, top, right, bottom in pixels


def grid(width: int, height: int, slicing: str, max_tiles: int = MAX_TILES) -> tuple[int, int]:
    """Columns and rows of tiles of a page; `"whole"`, the paper's normal resolution, is one tile."""
    if slicing == "whole":
        return 1, 1
    plan = TilingRule(TILE, TILE, max_tiles=max_tiles, slicing=slicing).plan(width, height)
    return plan.columns, plan.rows


def borders(length: int, parts: int) -> np.ndarray:
    """The borders between `parts` equal parts of a side."""
    return length * np.arange(1, parts) / parts


def cut_by(starts: np.ndarray, ends: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Whether any of `lines` lies inside each interval."""
    return ((starts[:, None] < lines) & (lines < ends[:, None])).any(1)


@cache
def handwriting(split: str, size: int) -> list[np.ndarray]:
    """The split's samples of each digit, ink in 0…1, `size` pixels wide and high. No sample is in two splits."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    bounds = np.round(np.cumsum(list(SPLITS.values()))[:-1] * len(order)).astype(int)
    part = dict(zip(SPLITS, np.split(order, bounds), strict=True))[split]
    images = [
        Image.fromarray(np.uint8(data.images[i] * 255 / 16)).resize((size, size), Image.Resampling.BICUBIC)
        for i in part
    ]
    shapes = np.stack(images) / 255
    return [shapes[data.target[part] == label] for label in range(10)]


def places(
    rng: np.random.Generator, count: int, side: float, low: float, high: float, lines: np.ndarray
) -> np.ndarray | None:
    """The starts of `count` random intervals of `side` in (low, high) that neither overlap nor contain a line; None if none was found."""
    slack = max(0.0, high - low - count * side)
    for _ in range(TRIES):
        starts = low + np.sort(rng.uniform(0, slack, count)) + side * np.arange(count)
        if not cut_by(starts, starts + side, lines).any():
            return starts
    return None


def draw_labels(rng: np.random.Generator, columns: int, rows: int, repeated: bool) -> np.ndarray:
    """Digits (rows, columns). On a `repeated` page those of the page, of each row or of each column are the same.

    Such pages teach a model what digits look like before it has to know exactly where to look.
    """
    shape = [(1, 1), (rows, 1), (1, columns)][rng.integers(3)] if repeated else (rows, columns)
    return np.broadcast_to(rng.integers(10, size=shape), (rows, columns))


def compose(
    kind: Kind,
    split: str,
    rng: np.random.Generator,
    most: Sequence[int] | None = None,
    filled: float = 1.0,
    repeated: bool = False,
) -> Page:
    """A random page of a kind, in one ink on one paper.

    Args:
        most: columns and rows of digits at most, instead of the kind's.
        filled: the part of the page, cut across or down, that has digits. The rest is blank.
    """
    while True:
        size = int(rng.integers(kind.digits[0], kind.digits[1] + 1))
        sides = [round(side) for side in np.exp(rng.uniform(*np.log(kind.sides), 2))]
        is_cut = np.arange(2) == rng.integers(2)
        grids = [grid(*sides, slicing) for slicing in SLICING_STRATEGIES] if kind.avoids_borders else [(1, 1)]
        starts = []
        for axis, (side, limit) in enumerate(zip(sides, most or kind.most, strict=True)):
            length = side * (filled if is_cut[axis] else 1.0)
            low = rng.uniform(0, side - length)
            lines = np.concatenate([borders(side, parts[axis]) for parts in grids])
            count = min(limit, int(length / (SPACE * size)))
            starts.append(places(rng, count, SPACE * size, low, low + length, lines))
        if all(found is not None and len(found) for found in starts):
            return render(draw_labels(rng, len(starts[0]), len(starts[1]), repeated), split, rng, sides, size, starts)


def render(
    labels: np.ndarray, split: str, rng: np.random.Generator, sides: list[int], size: int, starts: list
) -> Page:
    """The page of `labels` (rows, columns) whose places start at `starts`, of the columns and of the rows."""
    coverage, boxes = np.zeros((sides[1], sides[0], 1)), []
    for (row, column), label in np.ndenumerate(labels):
        left, top = (int(start + rng.uniform(0, SPACE * size - size)) for start in (starts[0][column], starts[1][row]))
        shapes = handwriting(split, size)[label]
        coverage[top : top + size, left : left + size, 0] = shapes[rng.integers(len(shapes))]
        boxes.append((left, top, left + size, top + size))
    ink, paper = rng.choice(INKS), rng.choice(PAPERS) + rng.integers(-8, 4)
    pixels = paper + (ink - paper) * coverage * rng.uniform(0.8, 1.0)
    text = "\n".join("".join(map(str, row)) for row in labels)
    return Page(Image.fromarray(np.uint8(pixels.clip(0, 255))), text, np.array(boxes))
