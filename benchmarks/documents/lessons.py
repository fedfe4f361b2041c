"""Training samples and test pages. All are drawn when they are asked for, each from numbers that name it."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from pages import Page, draw_page, draw_shape, draw_words, random_words
from settings import GRID, MAX_TILES, ONE_TILE, QUESTION, BaseSchedule, Row, RunSchedule

from internvlx_hf import InternVLXProcessor
from internvlx_hf.data import InternVLXDataCollator

BASE_PAGES, RUN_PAGES, TEST_PAGES, RANDOM_PAGES = range(4)  # kinds of pages, in the numbers that name them
LETTERS_PER_TOKEN = 3.5  # of the texts, about
MOST_LINES = 4  # of a page of one tile
FRAME_TOKENS = 14  # of the question and the markers around question, image and answer


def images_kwargs(slicing: str) -> dict:
    return {"max_patches": 1} if slicing == "whole" else {"max_patches": MAX_TILES, "slicing": slicing}


def sample(page: Page, slicing: str = "whole") -> dict:
    """A page as a training sample of the library."""
    messages = [*question(page.image), {"role": "assistant", "content": page.text}]
    messages[0]["content"][0] = {"type": "image"}
    return {"messages": messages, "images": [page.image], "images_kwargs": images_kwargs(slicing)}


def question(image) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]


def with_tokens(processor: InternVLXProcessor, window: int, grid: int = GRID) -> InternVLXProcessor:
    """The processor for windows of M x M patches."""
    processor = copy.copy(processor)
    processor.image_seq_length = (grid // window) ** 2
    return processor


@dataclass
class BaseLessons(torch.utils.data.Dataset):
    """The steps of a base's training. A step has one window, one shape of page and one slicing."""

    paragraphs: list[str]
    processor: InternVLXProcessor
    schedule: BaseSchedule
    seed: int

    def __len__(self) -> int:
        return self.schedule.steps

    def __getitem__(self, step: int) -> dict:
        schedule, rng = self.schedule, np.random.default_rng((BASE_PAGES, self.seed, step))
        window = schedule.windows[step % len(schedule.windows)]
        shape, slicing = ONE_TILE, "whole"
        late = step >= schedule.one_tile_share * schedule.steps
        if late and window != 1 and rng.random() < schedule.several_share:
            shape, slicing = draw_shape(rng), ("edge", "ratio", "whole")[rng.choice(3, p=(0.4, 0.4, 0.2))]
        count_tiles = self.processor.image_processor.get_number_of_image_patches
        tiles = count_tiles(shape[1], shape[0], images_kwargs(slicing))
        letters = shape[0] * shape[1] / 128
        tokens = tiles * (GRID // window) ** 2 + letters / LETTERS_PER_TOKEN + FRAME_TOKENS
        count = int(np.clip(schedule.step_tokens // tokens, 2, schedule.most_pages))
        # short texts at first, which are quicker to learn to read
        lines = [None if late else int(rng.integers(1, MOST_LINES + 1)) for _ in range(count)]
        pages = [draw_page(self.paragraphs, shape, rng, most_lines=most) for most in lines]
        return {"window": window, "samples": [sample(page, slicing) for page in pages]}


class StepCollator:
    """Collates the pages of a step of `BaseLessons` for its window."""

    def __init__(self, processor: InternVLXProcessor, windows: tuple[int, ...]):
        self.collators = {window: InternVLXDataCollator(with_tokens(processor, window)) for window in windows}

    def __call__(self, steps: list[dict]) -> dict[str, torch.Tensor]:
        (step,) = steps
        return self.collators[step["window"]](step["samples"]) | {"window": torch.tensor(step["window"])}


@dataclass
class RunLessons(torch.utils.data.Dataset):
    """The pages of a run. They depend on its seed and on the kind of its pages only, so that rows can be compared."""

    paragraphs: list[str]
    row: Row
    schedule: RunSchedule
    seed: int

    def __len__(self) -> int:
        return self.schedule.steps * self.schedule.batch_of(self.row)

    def __getitem__(self, index: int) -> dict:
        shape, step = ONE_TILE, index // self.schedule.batch_of(self.row)
        # all pages of a step have one shape, which needs the least padding
        if self.row.several_tiles and step >= self.row.one_tile_share * self.schedule.steps:
            shape = draw_shape(np.random.default_rng((RUN_PAGES, self.seed, step, 0)))
        rng = np.random.default_rng((RUN_PAGES, self.seed, index, 1))
        return sample(draw_page(self.paragraphs, shape, rng), self.row.slicing)


def evaluation_pages(paragraphs: list[str], several_tiles: bool, count: int, random: bool = False) -> list[Page]:
    """The same pages for all runs: paragraphs, or words in random order."""
    kind, choose = (RANDOM_PAGES, random_words) if random else (TEST_PAGES, draw_words)
    pages = []
    for index in range(count):
        rng = np.random.default_rng((kind, several_tiles, index))
        pages.append(draw_page(paragraphs, draw_shape(rng) if several_tiles else ONE_TILE, rng, choose))
    return pages
