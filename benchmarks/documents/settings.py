"""The settings of the study: pages, models, schedules, and the rows that are compared.

A page becomes one tile of 64x64 pixels, S² = 8² patches, and shows about 20 letters. The paper's 256 and 1024 tokens per tile
(M = 2 and 1) become N = 4 and 4N = 16 (M = 4 and 2).
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

TILE, PATCH = 64, 8  # pixels
GRID = TILE // PATCH  # S
WINDOW, FINE_WINDOW = 4, 2  # M of N and of 4N tokens
# pixels: the smallest and the largest width and height of a page; a letter becomes 0.86 to 1.1 times as large
SIDES = (58, 74)
LETTER, LEADING = 13, 3  # pixels: the height of a letter, and what lines have between them
WORD = r"(?:[aAI]|[A-Za-z][a-z]+)[.,;:]?"  # plain words, of which the texts are; others are left out
COMMON = 50  # times: validation and test pages have the words that occur at least as often in the training texts
LAYERS = 20  # of the language model
EXPAND_LAYER = 3 * LAYERS // 4 - 1  # k, the library's default for the paper's 3/4
QUESTION = "Read."
SEEDS = 5  # of every row; seed s starts from base s
PAGES = {
    "tile": TILE,
    "patch": PATCH,
    "sides": SIDES,
    "letter": LETTER,
    "leading": LEADING,
    "words": WORD,
    "common": COMMON,
}


def key_of(*settings: object) -> str:
    """A hash of settings, for names of files."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class TowerSchedule:
    """The vision tower before it meets the language model."""

    steps: int = 6000
    batch: int = 16
    rate: float = 1.5e-3
    pages: dict = field(default_factory=lambda: PAGES)  # with others, nothing that was trained is used again


@dataclass(frozen=True)
class BaseSchedule:
    """A base: tower and language model trained together, with a projector for each window in turn."""

    tower: TowerSchedule = TowerSchedule()
    steps: int = 1400
    windows: tuple[int, ...] = (WINDOW, FINE_WINDOW)
    easy_share: float = 0.3  # of the steps, the first, have short texts
    decay_share: float = 0.7  # of the steps, the last, in which the rates fall to 0
    step_tokens: int = 640  # the number of pages in a step depends on their tokens
    most_pages: int = 16
    rate: float = 2e-4
    tower_rate: float = 3e-4
    projector_rate: float = 2e-3
    validation_pages: int = 96


@dataclass(frozen=True)
class RunSchedule:
    """A run: new projectors (and LVTC's modules) on a base; everything but the token embeddings is trained."""

    base: BaseSchedule = BaseSchedule()
    steps: int = 200
    batch: int = 32  # pages
    decay_share: float = 0.7
    rate: float = 2e-4  # the base's rates
    tower_rate: float = 3e-4
    projector_rate: float = 2e-3
    test_pages: int = 384  # paragraphs
    control_pages: int = 64  # with random words; of the paragraphs, those for which another page is shown
    test_batch: int = 32


@dataclass(frozen=True)
class Row:
    """A row of the tables: the modules that make tokens of a page.

    Args:
        window: M: M x M patches become one token.
        tile: pixels of the tile's side, to which the page is resized.
        projector, lvtc: arguments of the library's configurations.
        is_hidden: whether text sees the image only from layer k on, in training and afterwards.
    """

    window: int = WINDOW
    tile: int = TILE
    projector: dict = field(default_factory=lambda: {"projector_type": "pixel_shuffle"})
    lvtc: dict | None = None
    is_hidden: bool = False

    @property
    def expanded_window(self) -> int:
        """M of the last layers."""
        return round(1 / self.lvtc["downsample_ratio"]) if self.lvtc else self.window

    def key(self, schedule: RunSchedule, seed: int) -> str:
        return key_of(asdict(self), asdict(schedule), seed)


PVTC = {"projector_type": "pvtc"}
LVTC = {"downsample_ratio": 1 / FINE_WINDOW}
ROWS = {
    "N": Row(),
    "4N": Row(window=FINE_WINDOW),
    "N, image downsampled": Row(window=FINE_WINDOW, tile=TILE // 2),
    "PVTC": Row(projector=PVTC),
    "LVTC": Row(lvtc=LVTC),
    "N → N, with LVTC's projectors": Row(lvtc={"downsample_ratio": 1 / WINDOW}),
    "4N, hidden before layer k": Row(window=FINE_WINDOW, is_hidden=True),
    "PVTC + LVTC": Row(projector=PVTC, lvtc=LVTC),
}

# the same code in seconds, with meaningless results
QUICK_TOWER = TowerSchedule(steps=3, batch=2)
QUICK_BASE = BaseSchedule(tower=QUICK_TOWER, steps=6, step_tokens=60, most_pages=2, validation_pages=2)
QUICK = RunSchedule(base=QUICK_BASE, steps=2, batch=2, test_pages=2, control_pages=1, test_batch=2)


def base_folder(cache: Path, number: int, schedule: BaseSchedule) -> Path:
    return cache / f"base-{number}-{key_of(asdict(schedule))}"
