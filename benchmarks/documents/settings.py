"""The settings of the study: pages, models, schedules, and the rows that are compared.

A tile of 64x64 pixels has S² = 8² patches and shows about 30 letters. The paper's 256 and 1024 tokens per tile (M = 2 and 1)
become N = 4 and 4N = 16 (M = 4 and 2): about 8 and 2 letters a token.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field

TILE, PATCH = 64, 8  # pixels
GRID = TILE // PATCH  # S
WINDOW, FINE_WINDOW = 4, 2  # M of N and of 4N tokens
MAX_TILES = 6  # as in the paper's Table 5
QUESTION = "Read."
SEEDS = 5  # of every row; seed s starts from base s
ONE_TILE = (TILE, TILE)
# the pages of one and more tiles, width and height in pixels, and their shares; letters have the same size on all
SHAPES = {
    (64, 48): 0.25,
    (64, 64): 0.15,
    (96, 64): 0.20,
    (96, 96): 0.15,
    (120, 80): 0.15,
    (64, 128): 0.10,
}


@dataclass(frozen=True)
class Settings:
    def settings(self) -> dict:
        return asdict(self)

    @property
    def key(self) -> str:
        """A hash of all fields and of the pages' sizes, for names of files."""
        settings = [self.settings(), TILE, PATCH, list(SHAPES.items())]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class TowerSchedule(Settings):
    """The vision tower before it meets the language model."""

    steps: int = 1500
    batch: int = 16
    rate: float = 1.5e-3


@dataclass(frozen=True)
class BaseSchedule(Settings):
    """A base: tower and language model trained together, with a projector for each window in turn."""

    tower: TowerSchedule = TowerSchedule()
    steps: int = 1800
    windows: tuple[int, ...] = (4, 2, 1)
    one_tile_share: float = 0.25  # of the steps, the first, have pages of one tile only
    several_share: float = 0.5  # of the other steps with windows 4 and 2 have pages of several tiles
    step_tokens: int = 640  # the number of pages in a step depends on their tokens
    most_pages: int = 16
    rate: float = 2e-4
    tower_rate: float = 3e-4
    projector_rate: float = 2e-3
    validation_pages: int = 48


@dataclass(frozen=True)
class RunSchedule(Settings):
    """A run: new projectors (and LVTC's modules) on a base; everything but the token embeddings is trained."""

    base: BaseSchedule = BaseSchedule()
    steps: int = 300
    batch: int = 8  # pages of one tile
    several_batch: int = 6  # pages of several tiles, which have more text
    rate: float = 2e-4  # the base's rates
    tower_rate: float = 3e-4
    projector_rate: float = 2e-3
    test_pages: int = 96  # paragraphs; a third as many with random words, and with another page shown
    test_batch: int = 32

    def batch_of(self, row: "Row") -> int:
        return self.several_batch if row.several_tiles else self.batch


@dataclass(frozen=True)
class Row(Settings):
    """A row of the tables: the pages, how they are cut into tiles, and the modules that make tokens of them."""

    several_tiles: bool = False
    slicing: str = "whole"  # one tile for the whole page, or RVTC's ratio, area or edge
    window: int = WINDOW  # M
    tile: int = TILE
    projector: dict = field(default_factory=lambda: {"projector_type": "pixel_shuffle"})
    lvtc: dict | None = None
    one_tile_share: float = 0.0  # of the steps, the first, have pages of one tile, whatever comes later


PVTC = {"projector_type": "pvtc"}
LVTC = {"downsample_ratio": 1 / FINE_WINDOW}
ONE_TILE_ROWS = {
    "N": Row(),
    "4N": Row(window=FINE_WINDOW),
    "N, image downsampled": Row(window=FINE_WINDOW, tile=TILE // 2),
    "PVTC": Row(projector=PVTC),
    "LVTC": Row(lvtc=LVTC),
    "PVTC + LVTC": Row(projector=PVTC, lvtc=LVTC),
}
LATER = 0.5  # with pages of several tiles from the first step, 300 steps do not suffice to begin to read
SEVERAL_TILES_ROWS = {
    "one tile": Row(True, one_tile_share=LATER),
    "ratio": Row(True, "ratio", one_tile_share=LATER),
    "edge": Row(True, "edge", one_tile_share=LATER),
    "PVTC + LVTC + edge": Row(True, "edge", projector=PVTC, lvtc=LVTC, one_tile_share=LATER),
}
GROUPS = {"one_tile": ONE_TILE_ROWS, "several_tiles": SEVERAL_TILES_ROWS}

# the same code in seconds, with meaningless results
QUICK_TOWER = TowerSchedule(steps=3, batch=2)
QUICK_BASE = BaseSchedule(tower=QUICK_TOWER, steps=6, step_tokens=60, most_pages=2, validation_pages=2)
QUICK = RunSchedule(base=QUICK_BASE, steps=2, batch=2, several_batch=2, test_pages=2, test_batch=2)
