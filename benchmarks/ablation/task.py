"""The task: transcribe pages of handwritten digits and answer questions about them. Pages are tiled and tokenized once.

Detail matters (text has one size, which shrinks where a whole page is squeezed into one tile) and layout matters (rows and
columns are asked for). The 1,797 samples are split once into those of training, of validation and of test pages; no sample is
in two of them.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from internvlx_hf import InternVLXImageProcessor, InternVLXProcessor

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from pages import Digits, compose_page
from settings import KINDS, TILE, Pages
from train import build_tokenizer

MAX_TILES = 6  # as in the paper's Table 5
QUESTIONS = 0.3  # share of training samples that ask for a row or a column
BLOCK = (
    16  # consecutive training samples with the same scale and kind of question, so that batches need little padding
)
TRANSCRIBE = "Read the page."
# as short as possible, because text tokens take most of a run's time
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- for part in message['content'] -%}
        {%- if part['type'] == 'image' -%}
            {{- '<IMG_CONTEXT>' -}}
        {%- elif message['role'] == 'assistant' -%}
            {%- generation -%}{{- part['text'] + '<|im_end|>' -}}{%- endgeneration -%}
        {%- else -%}
            {{- part['text'] -}}
        {%- endif -%}
    {%- endfor -%}
{%- endfor -%}
"""
SPLITS = {"test": 0.2, "validation": 0.15, "train": 0.65}
SPLIT_NUMBERS = {"train": 0, "validation": 1, "test": 2}
SLICINGS = ("whole", "ratio", "area", "edge")  # "whole": one tile for the whole page, the paper's normal resolution
IGNORED = -100


@dataclass
class Sample:
    """A page with a question. Its ids have one placeholder per tile; see `with_tokens`."""

    input_ids: torch.Tensor  # (L,)
    labels: torch.Tensor  # (L,)
    pixel_values: torch.Tensor  # (tiles, 3, TILE, TILE) float16
    answer: str
    kind: str  # "transcription" or "question"
    counts: torch.Tensor  # (10,) how often each digit is on the page


def split_digits(size: int = 12) -> dict[str, Digits]:
    """The samples of handwritten digits of each split, `size` pixels wide and high."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    bounds = np.round(np.cumsum(list(SPLITS.values()))[:-1] * len(order)).astype(int)
    return {
        name: Digits(data.images[part], data.target[part], size)
        for name, part in zip(SPLITS, np.split(order, bounds), strict=True)
    }


def build_processor(slicing: str = "whole", tile: int = TILE) -> InternVLXProcessor:
    """A processor with one placeholder per tile, which `with_tokens` repeats."""
    numbers = " ".join(f"Read row {n}. Read column {n}." for n in range(1, 9))
    tiling = {"max_patches": 1} if slicing == "whole" else {"max_patches": MAX_TILES, "slicing": slicing}
    image_processor = InternVLXImageProcessor(size={"height": tile, "width": tile}, **tiling)
    tokenizer = build_tokenizer(f"{TRANSCRIBE} {numbers}")
    return InternVLXProcessor(image_processor, tokenizer, image_seq_length=1, chat_template=CHAT_TEMPLATE)


def ask(text: str, rng: np.random.Generator, transcription: bool) -> tuple[str, str]:
    """A question about a page that says `text`, and its answer."""
    rows = text.split("\n")
    if transcription:
        return TRANSCRIBE, text
    lines = {"row": rows, "column": ["".join(column) for column in zip(*rows, strict=True)]}
    direction = ("row", "column")[rng.integers(2)]
    number = rng.integers(len(lines[direction]))
    return f"Read {direction} {number + 1}.", lines[direction][number]


def make_samples(
    split: str, count: int, pages: str, slicing: str, tile: int, seed: int, curriculum: float = 0.0
) -> list[Sample]:
    """Make `count` samples, deterministically. Pages and questions do not depend on `slicing` and `tile`.

    Args:
        pages: the kind of page, a key of `KINDS`.
        tile: side of a tile in pixels.
        curriculum: share of the samples over which random pages gradually replace repeated ones (see `compose_page`), which
            are 80 % at first, and large pages join small ones.
    """
    kind = KINDS[pages]
    digits, processor, samples = split_digits(kind.digit)[split], build_processor(slicing, tile), []
    block = BLOCK if split == "train" else 1
    for first in range(0, count, 64):
        drawn = []
        for index in range(first, min(first + 64, count)):
            rng, block_rng = (
                np.random.default_rng((SPLIT_NUMBERS[split], seed, *numbers))
                for numbers in ([index], [index // block, 1])
            )
            drawn.append(
                draw_sample(
                    kind, digits, rng, block_rng, index / count / curriculum if curriculum else 1.0, split == "train"
                )
            )
        encoded = processor.apply_chat_template(
            [conversation for conversation, _, _ in drawn],
            return_labels=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        tiles = (encoded["input_ids"] == processor.image_token_id).sum(1).tolist()
        rows = zip(
            encoded["input_ids"],
            encoded["labels"],
            encoded["attention_mask"].bool(),
            encoded["pixel_values"].half().split(tiles),
            drawn,
            strict=True,
        )
        for ids, labels, is_text, pixel_values, (conversation, asked, counts) in rows:
            answer = conversation[1]["content"][0]["text"]
            # clones, because saving a view saves the whole batch
            samples.append(Sample(ids[is_text], labels[is_text], pixel_values.clone(), answer, asked, counts))
    return samples


def draw_sample(
    pages: Pages,
    digits: Digits,
    rng: np.random.Generator,
    block_rng: np.random.Generator,
    progress: float,
    train: bool = False,
) -> tuple[list[dict], str, torch.Tensor]:
    """A conversation about a page, its kind, and the counts of digits. `progress`: completed share of the curriculum."""
    kind = "question" if block_rng.random() < (QUESTIONS if train else 0.5) else "transcription"
    # the curriculum goes from small to large pages, too
    shares = np.array(list(pages.layouts.values()))[: 1 + int(2 * len(pages.layouts) * progress)]
    layout = list(pages.layouts)[block_rng.choice(len(shares), p=shares / shares.sum())]
    page = compose_page(digits, layout, rng, repeated=bool(rng.random() < 0.8 * (1 - progress)), cell=pages.cell)
    question, answer = ask(page.text, rng, kind == "transcription")
    conversation = [
        {"role": "user", "content": [{"type": "image", "image": page.image}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return conversation, kind, torch.tensor([page.text.count(digit) for digit in "0123456789"])


def cached_samples(
    folder: Path, split: str, count: int, pages: str, slicing: str, tile: int, seed: int, curriculum: float = 0.0
) -> list[Sample]:
    """The samples of `make_samples`, cached for all runs that share them."""
    path = folder / f"{split}-{count}-{pages}-{KINDS[pages].key()}-{slicing}-{tile}-{seed}-{curriculum}.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        samples = make_samples(split, count, pages, slicing, tile, seed, curriculum)
        unfinished = path.with_suffix(f".{os.getpid()}")
        torch.save([vars(sample) for sample in samples], unfinished)
        unfinished.rename(path)
    return [Sample(**fields) for fields in torch.load(path, mmap=True)]


class Collator:
    """Batches samples for a model with `tokens` placeholders per tile, padded on the left."""

    def __init__(
        self, processor: InternVLXProcessor, tokens: int, for_generation: bool = False, with_counts: bool = False
    ):
        self.image_token_id, self.pad_id = processor.image_token_id, processor.tokenizer.pad_token_id
        self.tokens, self.for_generation, self.with_counts = tokens, for_generation, with_counts

    def __call__(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        rows = [self.with_tokens(sample) for sample in samples]
        batch = {
            name: _pad_left([row[name] for row in rows], fill)
            for name, fill in (("input_ids", self.pad_id), ("labels", IGNORED))
        }
        batch["attention_mask"] = _pad_left([torch.ones_like(row["input_ids"]) for row in rows], 0)
        batch["pixel_values"] = torch.cat([sample.pixel_values for sample in samples]).float()
        if self.with_counts:
            batch["counts"] = torch.stack([sample.counts for sample in samples])
            batch["tiles"] = torch.tensor([len(sample.pixel_values) for sample in samples])
        if self.for_generation:
            del batch["labels"]
        return batch

    def with_tokens(self, sample: Sample) -> dict[str, torch.Tensor]:
        """The sample as the processor gives it with `image_seq_length=tokens`; for generation, without the answer."""
        ids, labels = sample.input_ids, sample.labels
        if self.for_generation:
            prompt = int((labels != IGNORED).nonzero()[0])
            ids, labels = ids[:prompt], labels[:prompt]
        repeats = torch.where(ids == self.image_token_id, self.tokens, 1)
        return {"input_ids": ids.repeat_interleave(repeats), "labels": labels.repeat_interleave(repeats)}


def _pad_left(rows: list[torch.Tensor], fill: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill, padding_side="left")


def share_in_place(answer: str, read: str) -> float:
    """Share of the answer's digits that are correct at their place; line ends do not count."""
    answer, read = ("".join(filter(str.isdigit, text)) for text in (answer, read))
    return sum(a == b for a, b in zip(answer, read, strict=False)) / max(len(answer), len(read))
