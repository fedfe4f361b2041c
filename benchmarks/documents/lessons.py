"""Training samples and test pages. All are drawn when they are asked for, each from numbers that name it."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from pages import Page, draw_page, draw_words, random_words
from settings import GRID, QUESTION, BaseSchedule, RunSchedule

from internvlx_hf import InternVLXProcessor
from internvlx_hf.data import InternVLXDataCollator

BASE_PAGES, RUN_PAGES, TEST_PAGES, RANDOM_PAGES = range(4)  # kinds of pages, in the numbers that name them
ANSWER_TOKENS = 8  # of a page's text, about
MOST_LINES = 4  # of a page
FRAME_TOKENS = 14  # of the question and the markers around question, image and answer


ONE_TILE = {"max_patches": 1}


def sample(page: Page) -> dict:
    """A page as a training sample of the library."""
    messages = [*question(page.image), {"role": "assistant", "content": page.text}]
    messages[0]["content"][0] = {"type": "image"}
    return {"messages": messages, "images": [page.image], "images_kwargs": ONE_TILE}


def question(image) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]


def with_tokens(processor: InternVLXProcessor, window: int, grid: int = GRID) -> InternVLXProcessor:
    """The processor for windows of M x M patches."""
    processor = copy.copy(processor)
    processor.image_seq_length = (grid // window) ** 2
    return processor


@dataclass
class BaseLessons(torch.utils.data.Dataset):
    """The steps of a base's training. A step has one window."""

    paragraphs: list[str]
    processor: InternVLXProcessor
    schedule: BaseSchedule
    seed: int

    def __len__(self) -> int:
        return self.schedule.steps

    def __getitem__(self, step: int) -> dict:
        schedule, rng = self.schedule, np.random.default_rng((BASE_PAGES, self.seed, step))
        window = schedule.windows[step % len(schedule.windows)]
        tokens = (GRID // window) ** 2 + ANSWER_TOKENS + FRAME_TOKENS
        count = int(np.clip(schedule.step_tokens // tokens, 2, schedule.most_pages))
        # short texts at first, which are quicker to learn to read
        is_easy = step < schedule.easy_share * schedule.steps
        lines = [int(rng.integers(1, MOST_LINES)) if is_easy else None for _ in range(count)]
        pages = [draw_page(self.paragraphs, rng, most_lines=most) for most in lines]
        return {"window": window, "samples": [sample(page) for page in pages]}


class StepCollator:
    """Collates the pages of a step of `BaseLessons` for its window."""

    def __init__(self, processor: InternVLXProcessor, windows: tuple[int, ...]):
        self.collators = {window: InternVLXDataCollator(with_tokens(processor, window)) for window in windows}

    def __call__(self, steps: list[dict]) -> dict[str, torch.Tensor]:
        (step,) = steps
        return self.collators[step["window"]](step["samples"]) | {"window": torch.tensor(step["window"])}


@dataclass
class RunLessons(torch.utils.data.Dataset):
    """The pages of a run. They depend on its seed only, so that rows can be compared."""

    paragraphs: list[str]
    schedule: RunSchedule
    seed: int

    def __len__(self) -> int:
        return self.schedule.steps * self.schedule.batch

    def __getitem__(self, index: int) -> dict:
        return sample(draw_page(self.paragraphs, np.random.default_rng((RUN_PAGES, self.seed, index))))


def evaluation_pages(paragraphs: list[str], count: int, random: bool = False) -> list[Page]:
    """The same pages for all runs: paragraphs, or words in random order."""
    kind, choose = (RANDOM_PAGES, random_words) if random else (TEST_PAGES, draw_words)
    return [draw_page(paragraphs, np.random.default_rng((kind, index)), choose) for index in range(count)]
