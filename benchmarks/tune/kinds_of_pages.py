"""Three kinds of pages of large digits: with margins, printed documents, and pages of which half is empty.

A page is one of the demo's, with cells of its own layouts, enlarged to twice its size: so its digits can be read in four or six
tiles, and in one.
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.append(str(Path(__file__).parents[2] / "demo"))
from pages import CELL_HEIGHT, CELL_WIDTH, DIGIT, INKS, JITTER, PAPERS, Digits, compose_page

FACES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")  # matplotlib brings them
LAYOUTS = [(2, 4), (4, 2), (4, 4), (5, 4)]  # columns and rows of cells: 2, 2, 4 and 6 tiles in the demo's slicing
MOST = (3, 2)  # columns and rows of digits
ENLARGED = 2
SPLITS = ("train", "test")


@dataclass
class Page:
    image: Image.Image
    text: str  # one line per row of digits


@cache
def digits() -> dict[str, Digits]:
    """Handwriting of each split; no sample is in both."""
    return dict(zip(SPLITS, Digits.load(), strict=True))


@cache
def printed(face: str) -> np.ndarray:
    """(10, DIGIT, DIGIT) ink in 0…1 of the digits of a font."""
    import matplotlib

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{face}.ttf"), DIGIT)
    shapes = []
    for digit in "0123456789":
        image = Image.new("L", (DIGIT, DIGIT))
        ImageDraw.Draw(image).text((DIGIT / 2, DIGIT / 2), digit, font=font, fill=255, anchor="mm")
        shapes.append(np.asarray(image) / 255)
    return np.stack(shapes)


def block(layout: tuple[int, int], kind: str, rng: np.random.Generator) -> tuple[slice, slice]:
    """The columns and the rows of cells that have digits."""
    starts, stops = [0, 0], list(layout)
    if kind == "half empty":
        axis = int(rng.integers(2))
        half = layout[axis] // 2
        starts[axis] = int(rng.integers(2)) * half
        stops[axis] = starts[axis] + half
    for axis, most in enumerate(MOST):
        room = stops[axis] - starts[axis]
        count = int(rng.integers(1, min(most, room) + 1))
        starts[axis] += int(rng.integers(room - count + 1))
        stops[axis] = starts[axis] + count
    return slice(starts[0], stops[0]), slice(starts[1], stops[1])


def draw(kind: str, split: str, index: int) -> Page:
    """The page of that number, always the same."""
    rng = np.random.default_rng((KINDS.index(kind), SPLITS.index(split), index))
    layout = LAYOUTS[rng.integers(len(LAYOUTS))]
    columns, rows = block(layout, kind, rng)
    labels = rng.integers(10, size=(rows.stop - rows.start, columns.stop - columns.start))
    own, face = digits()[split], FACES[rng.integers(len(FACES))]
    coverage = np.zeros((layout[1] * CELL_HEIGHT, layout[0] * CELL_WIDTH, 1))
    for (row, column), label in np.ndenumerate(labels):
        left = (columns.start + column) * CELL_WIDTH + int(rng.integers(JITTER + 1))
        top = (rows.start + row) * CELL_HEIGHT
        shape = printed(face)[label] if kind == "documents" else own.shapes[rng.choice(own.of_label[label])]
        coverage[top : top + DIGIT, left : left + DIGIT, 0] = shape
    ink, paper = rng.choice(INKS), rng.choice(PAPERS) + rng.integers(-8, 4)
    pixels = paper + (ink - paper) * coverage * rng.uniform(0.8, 1.0)
    text = "\n".join("".join(map(str, row)) for row in labels)
    return Page(enlarged(Image.fromarray(np.uint8(pixels.clip(0, 255)))), text)


def draw_full(index: int, repeated: float) -> Page:
    """The training page of that number with a digit in every cell; that share of them repeats digits (see `compose_page`)."""
    rng = np.random.default_rng((len(KINDS), index))
    page = compose_page(digits()["train"], LAYOUTS[rng.integers(len(LAYOUTS))], rng, repeated=rng.random() < repeated)
    return Page(enlarged(page.image), page.text)


def enlarged(image: Image.Image) -> Image.Image:
    return image.resize([ENLARGED * side for side in image.size], Image.Resampling.BICUBIC)


KINDS = ["margins", "documents", "half empty"]
