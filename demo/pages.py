"""Small pages of handwritten digits, composed of scikit-learn's 1,797 samples of 8x8 pixels."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CELL_WIDTH, CELL_HEIGHT = 16, 12  # size of a digit's cell in pixels
DIGIT = 12  # width and height of a digit in pixels
JITTER = 4  # pixels by which a digit's place in its cell varies at most
# Columns and rows of digits on a page: 64x48, 128x48, 64x96 and 128x96 pixels.
LAYOUTS = [(4, 4), (8, 4), (4, 8), (8, 8)]
INKS = np.array([(32, 38, 60), (25, 25, 28), (28, 50, 110), (60, 40, 30)])
PAPERS = np.array([(252, 250, 244), (247, 241, 226), (240, 244, 247)])


@dataclass
class Page:
    image: Image.Image
    text: str  # one line per row of digits
    layout: tuple[int, int]  # columns, rows


class Digits:
    """Samples of handwritten digits: `shapes` (n, size, size), ink in 0…1, and `labels` (n,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, size: int = DIGIT):
        self.labels, self.size = labels, size
        images = [Image.fromarray(np.uint8(image * 255 / 16)) for image in images]
        self.shapes = np.stack([image.resize((size, size), Image.Resampling.BICUBIC) for image in images]) / 255
        self.of_label = [np.flatnonzero(labels == label) for label in range(10)]

    @classmethod
    def load(cls, seed: int = 0, held_out: float = 0.2) -> tuple["Digits", "Digits"]:
        """The samples of training pages and those of test pages, without overlap."""
        data = load_digits()
        order = np.random.default_rng(seed).permutation(len(data.target))
        test, train = np.split(order, [int(held_out * len(order))])
        return cls(data.images[train], data.target[train]), cls(data.images[test], data.target[test])


def compose_page(
    digits: Digits,
    layout: tuple[int, int],
    rng: np.random.Generator,
    repeated: bool = False,
    cell: tuple[int, int] = (CELL_WIDTH, CELL_HEIGHT),
) -> Page:
    """Compose a page in one ink on one paper, with each digit near the top left of its cell of `cell` (W, H) pixels.

    On a `repeated` page, all digits of the page, of each row, of each column or of each block of 4x4 (or less, if 4 does not
    divide the layout) are the same digit in different handwritings. Such pages teach a model what digits look like before it
    has to know exactly where to look.
    """
    columns, rows = layout
    height, width = (1, 1)
    if repeated:
        block = (math.gcd(rows, 4), math.gcd(columns, 4))
        height, width = [(rows, columns), (1, columns), (rows, 1), block][rng.integers(4)]
    labels = np.kron(rng.integers(10, size=(rows // height, columns // width)), np.ones((height, width), int))
    cell_width, cell_height = cell
    coverage = np.zeros((rows * cell_height, columns * cell_width, 1))
    for (row, column), label in np.ndenumerate(labels):
        slack = [min(side - digits.size, JITTER) for side in cell]
        left = column * cell_width + rng.integers(slack[0] + 1)
        top = row * cell_height + (rng.integers(slack[1] + 1) if slack[1] else 0)
        shape = digits.shapes[rng.choice(digits.of_label[label])]
        coverage[top : top + digits.size, left : left + digits.size, 0] = shape
    ink, paper = rng.choice(INKS), rng.choice(PAPERS) + rng.integers(-8, 4)
    pixels = paper + (ink - paper) * coverage * rng.uniform(0.8, 1.0)
    text = "\n".join("".join(map(str, row)) for row in labels)
    return Page(Image.fromarray(np.uint8(pixels.clip(0, 255))), text, layout)
