"""Three kinds of pages of digits in the demo's cells: with margins, printed documents, and pages of which half is empty."""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.append(str(Path(__file__).parents[2] / "demo"))
from pages import CELL_HEIGHT, CELL_WIDTH, DIGIT, INKS, JITTER, LAYOUTS, PAPERS, Digits

FACES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")  # matplotlib brings them
MOST = (4, 3)  # columns and rows of digits
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
        count = int(rng.integers(2, min(most, room) + 1))
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
    return Page(Image.fromarray(np.uint8(pixels.clip(0, 255))), "\n".join("".join(map(str, row)) for row in labels))


KINDS = ["margins", "documents", "half empty"]
