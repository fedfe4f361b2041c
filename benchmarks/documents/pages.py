"""Pages of printed text, of one tile and of several, with their letters' places."""

import functools
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from settings import SHAPES

FACES = ("DejaVuSansMono", "DejaVuSansMono-Bold")  # matplotlib brings them
SIZES = (13,)  # of letters, in pixels
LEADING = 3  # pixels between lines
LARGEST_SHIFT = 1  # pixels of the text from the page's upper left corner, where there is room


@dataclass
class Page:
    """An image, its lines of text, and where its letters are: `advance` pixels each, lines `pitch` pixels apart."""

    image: Image.Image
    lines: list[str]
    left: float
    top: float
    advance: float
    pitch: float

    @property
    def text(self) -> str:
        return " ".join(self.lines)

    def letters_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The index in `text` of the letter at each of the points (x, y); -1 where there is none."""
        x, y = np.broadcast_arrays(x, y)
        columns = np.floor((x - self.left) / self.advance).astype(int)
        rows = np.floor((y - self.top) / self.pitch).astype(int)
        starts = np.cumsum([0, *(len(line) + 1 for line in self.lines)])
        lengths = np.array([len(line) for line in self.lines] + [0])
        inside = (rows >= 0) & (rows < len(self.lines))
        rows = np.where(inside, rows, len(self.lines))
        inside &= (columns >= 0) & (columns < lengths[rows])
        return np.where(inside, starts[rows] + columns, -1)


@functools.cache
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{face}.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def wrap(words: list[str], columns: int, rows: int) -> list[str]:
    """The lines that the first words fill: at most `rows` of at most `columns` letters. Longer words are left out."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".lstrip()
        if len(word) > columns:
            continue
        if len(longer) <= columns:
            lines[-1] = longer
        elif len(lines) == rows:
            break
        else:
            lines.append(word)
    return lines


def draw_words(paragraphs: list[str], letters: int, rng: np.random.Generator) -> list[str]:
    """Consecutive words, at least `letters` long together, from anywhere in a paragraph; at its end another one follows."""
    words = paragraphs[rng.integers(len(paragraphs))].split()
    words = words[rng.integers(len(words)) :]
    while sum(map(len, words)) < letters:
        words += paragraphs[rng.integers(len(paragraphs))].split()
    return words


def random_words(paragraphs: list[str], letters: int, rng: np.random.Generator) -> list[str]:
    """Words drawn one by one from all paragraphs: their order says nothing."""
    words: list[str] = []
    while sum(map(len, words)) < letters:
        some = paragraphs[rng.integers(len(paragraphs))].split()
        words.append(some[rng.integers(len(some))])
    return words


def draw_page(
    paragraphs: list[str],
    shape: tuple[int, int],
    rng: np.random.Generator,
    choose=draw_words,
    faces: tuple[str, ...] = FACES,
    sizes: tuple[int, ...] = SIZES,
    most_lines: int | None = None,
) -> Page:
    """A page of `shape` (width, height) with text in a random face and size, dark on light, with some noise.

    The text fills the page, or `most_lines` lines of it.
    """
    face, size = faces[rng.integers(len(faces))], int(sizes[rng.integers(len(sizes))])
    letters = font(face, size)
    advance, pitch = letters.getlength("m"), size + LEADING
    width, height = shape
    columns, rows = int(width // advance), min(height // pitch, most_lines or height)
    lines = [""]
    while not lines[0]:  # no word was short enough
        lines = wrap(choose(paragraphs, columns * rows, rng), columns, rows)
    left = int(rng.integers(min(LARGEST_SHIFT, width - columns * advance) + 1))
    top = int(rng.integers(min(LARGEST_SHIFT, height - len(lines) * pitch) + 1))
    paper, ink = rng.integers(205, 256, 3), rng.integers(0, 90, 3)
    image = Image.new("RGB", shape, tuple(int(level) for level in paper))
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        baseline = top + row * pitch + size - 1
        draw.text((left, baseline), line, font=letters, fill=tuple(int(level) for level in ink), anchor="ls")
    noise = rng.normal(0, rng.uniform(0, 6), (height, width, 1)).astype(np.float32)
    image = Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).astype(np.uint8))
    return Page(image, lines, left, top, advance, pitch)


def draw_shape(rng: np.random.Generator) -> tuple[int, int]:
    return list(SHAPES)[rng.choice(len(SHAPES), p=list(SHAPES.values()))]
