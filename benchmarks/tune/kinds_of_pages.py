"""Three kinds of pages of digits: with margins, printed documents, and pages of which half is empty."""

import sys
from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).parents[1]
sys.path += [str(BENCHMARKS / "ablation"), str(BENCHMARKS.parent / "demo")]
from digit_pages import Kind, Page, compose  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

MARGINS = Kind(sides=(40, 150), digits=(12, 16), most=(3, 3), avoids_borders=True)
WORDS, LINES = (1, 2), (1, 3)  # numbers of a line, and lines of a document: the fewest and the most
SIZES = (11, 13)  # of printed digits, pixels
PAPER, INK = (246, 246, 242), (30, 32, 38)
SPLIT_NUMBERS = {"train": 0, "test": 1}


def margins(split: str, rng: np.random.Generator) -> Page:
    """Handwritten digits at random places."""
    return compose(MARGINS, split, rng)


def half_empty(split: str, rng: np.random.Generator) -> Page:
    """The same on one half of the page, cut across or down."""
    return compose(MARGINS, split, rng, filled=0.5)


def document(split: str, rng: np.random.Generator) -> Page:
    """Lines of printed numbers, as of a receipt. `split` changes nothing: there are too many to meet twice."""
    import matplotlib

    face = ("DejaVuSans", "DejaVuSansMono")[rng.integers(2)]
    size = int(rng.choice(SIZES))
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{face}.ttf"), size)
    lines = [
        " ".join(str(rng.integers(10, 100)) for _ in range(rng.integers(WORDS[0], WORDS[1] + 1)))
        for _ in range(rng.integers(LINES[0], LINES[1] + 1))
    ]
    width, height = (int(side) for side in np.exp(rng.uniform(np.log(64), np.log(150), 2)))
    image = Image.new("RGB", (width, height), PAPER)
    draw, pitch = ImageDraw.Draw(image), size + 5
    left = rng.integers(2, max(3, width - 5 * size))
    top = rng.integers(2, max(3, height - len(lines) * pitch))
    for row, line in enumerate(lines):
        draw.text((left, top + row * pitch), line, font=font, fill=INK)
    return Page(image, "\n".join(lines), np.zeros((0, 4)))


KINDS = {"margins": margins, "documents": document, "half empty": half_empty}


def draw(kind: str, split: str, index: int) -> Page:
    """The page of that number, always the same."""
    rng = np.random.default_rng((list(KINDS).index(kind), SPLIT_NUMBERS[split], index))
    return KINDS[kind](split, rng)
