"""Pages of printed text at a random place on paper of a random size, with their letters' places."""

import functools
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from settings import LEADING, LETTER, SIDES

FACES = ("DejaVuSansMono", "DejaVuSansMono-Bold")  # matplotlib brings them


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

    def share_cut(self, parts: int) -> float:
        """The share of its letters that a border cuts, if it is cut into `parts` equal parts across and down."""
        places = [
            (row, column) for row, line in enumerate(self.lines) for column, letter in enumerate(line) if letter != " "
        ]
        steps, sides = np.array((self.pitch, self.advance)), np.array(self.image.size[::-1]) / parts
        low = ((self.top, self.left) + steps * places) / sides
        high = low + (steps - (LEADING, 0)) / sides
        return float((np.ceil(high) - np.floor(low) > 1).any(1).mean())

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
    rng: np.random.Generator,
    choose=draw_words,
    faces: tuple[str, ...] = FACES,
    most_lines: int | None = None,
) -> Page:
    """A page with text in a random face, dark on light, with some noise.

    Lines are at most as long and as many as the paper has room for, less a random part of a letter and of a line, or `most_lines`. The
    text lies anywhere on the paper.
    """
    face = faces[rng.integers(len(faces))]
    letters = font(face, LETTER)
    advance, pitch = letters.getlength("m"), LETTER + LEADING
    width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    columns, rows = (int(side / step - rng.uniform()) for side, step in ((width, advance), (height, pitch)))
    lines = [""]
    while not lines[0]:  # no word was short enough
        lines = wrap(choose(paragraphs, columns * rows, rng), columns, min(rows, most_lines or rows))
    room = width - max(map(len, lines)) * advance, height - len(lines) * pitch
    left, top = (int(rng.uniform(0, free)) for free in room)
    paper, ink = rng.integers(205, 256, 3), rng.integers(0, 90, 3)
    image = Image.new("RGB", (width, height), tuple(int(level) for level in paper))
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        baseline = top + row * pitch + LETTER - 1
        draw.text((left, baseline), line, font=letters, fill=tuple(int(level) for level in ink), anchor="ls")
    noise = rng.normal(0, rng.uniform(0, 6), (height, width, 1)).astype(np.float32)
    image = Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).astype(np.uint8))
    return Page(image, lines, left, top, advance, pitch)
