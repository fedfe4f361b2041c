"""The task: transcribe pages of handwritten digits and answer questions about them. Pages are tiled and tokenized once.

Detail matters (text shrinks where a whole page is squeezed into one tile) and layout matters (rows and columns are asked for). The
1,797 samples are split once into those of training, of validation and of test pages; no sample is in two of them.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from digit_pages import MAX_TILES, TILE, Kind, compose, grid
from settings import FILLED, KINDS, PATCHES, pages_key

from internvlx_hf import InternVLXImageProcessor, InternVLXProcessor

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from train import build_tokenizer

QUESTIONS = 0.3  # share of training samples that ask for a row or a column
BLOCK = (
    16  # consecutive training samples with equally many digits and one kind of question: batches need little padding
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
SPLIT_NUMBERS = {"train": 0, "validation": 1, "test": 2}
IGNORED = -100


@dataclass
class Sample:
    """A page with a question. Its ids have one placeholder per tile; see `with_tokens`."""

    input_ids: torch.Tensor  # (L,)
    labels: torch.Tensor  # (L,)
    pixel_values: torch.Tensor  # (tiles, 3, TILE, TILE) float16
    answer: str
    kind: str  # "transcription" or "question"
    digits: torch.Tensor  # (n,) of the page, in reading order
    boxes: torch.Tensor  # (n, 4) left, top, right, bottom in tiles
    grid: tuple[int, int]  # columns and rows of tiles

    def is_cut(self, side: float = 1.0) -> torch.Tensor:
        """(n,) whether borders that are `side` tiles apart cut each digit: of tiles, or of windows, which are parts of a tile."""
        low, high = self.boxes.chunk(2, 1)
        return ((high / side).ceil() - (low / side).floor() > 1).any(1)


def build_processor(slicing: str = "whole", max_tiles: int = MAX_TILES) -> InternVLXProcessor:
    """A processor with one placeholder per tile, which `with_tokens` repeats."""
    numbers = " ".join(f"Read row {n}. Read column {n}." for n in range(1, 9))
    tiling = {"max_patches": 1} if slicing == "whole" else {"max_patches": max_tiles, "slicing": slicing}
    image_processor = InternVLXImageProcessor(size={"height": TILE, "width": TILE}, **tiling)
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
    split: str,
    count: int,
    pages: str,
    slicing: str,
    seed: int,
    curriculum: float = 0.0,
    filled: float | None = None,
    max_tiles: int = MAX_TILES,
    numbers: range | None = None,
) -> list[Sample]:
    """Make `count` samples, or those of some `numbers`, deterministically. Pages and questions do not depend on the tiles.

    Args:
        pages: the kind of page, a key of `KINDS`.
        curriculum: share of the samples over which random pages gradually replace repeated ones (see `digit_pages.draw_labels`),
            which are 80 % at first, and pages of more digits join those of few.
        filled: the part of a page that has digits; at random, if None.
    """
    processor, samples = build_processor(slicing, max_tiles), []
    block = BLOCK if split == "train" else 1
    numbers = numbers or range(count)
    for first in range(0, len(numbers), 64):
        drawn = []
        for index in numbers[first : first + 64]:
            streams = [np.random.default_rng((SPLIT_NUMBERS[split], seed, *n)) for n in ([index], [index // block, 1])]
            progress = min(1.0, index / count / curriculum) if curriculum else 1.0
            drawn.append(draw_sample(KINDS[pages], split, *streams, progress, filled))
        encoded = processor.apply_chat_template(
            [conversation for conversation, _, _ in drawn],
            return_labels=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        tiles = (encoded["input_ids"] == processor.image_token_id).sum(1).tolist()
        parts = (encoded["input_ids"], encoded["labels"], encoded["attention_mask"].bool())
        pixels = encoded["pixel_values"].half().split(tiles)
        for ids, labels, is_text, pixel_values, (conversation, asked, page) in zip(*parts, pixels, drawn, strict=True):
            width, height = page.image.size
            columns_rows = grid(width, height, slicing, max_tiles)
            samples.append(
                Sample(
                    ids[is_text],
                    labels[is_text],
                    pixel_values.clone(),  # because saving a view saves the whole batch
                    conversation[1]["content"][0]["text"],
                    asked,
                    torch.tensor([int(digit) for digit in page.text if digit.isdigit()]),
                    torch.tensor(page.boxes / (2 * page.image.size) * (2 * columns_rows)),
                    columns_rows,
                )
            )
    return samples


def draw_sample(
    kind: Kind,
    split: str,
    rng: np.random.Generator,
    block_rng: np.random.Generator,
    progress: float,
    filled: float | None,
):
    """A conversation about a page, its kind, and the page. `progress`: completed share of the curriculum."""
    asked = "question" if block_rng.random() < (QUESTIONS if split == "train" else 0.5) else "transcription"
    most = [int(block_rng.integers(2, 3 + min(most - 2, int((most - 1) * progress)))) for most in kind.most]
    part = filled or list(FILLED.values())[block_rng.integers(len(FILLED))]
    page = compose(kind, split, rng, most, part, repeated=bool(rng.random() < 0.8 * (1 - progress)))
    question, answer = ask(page.text, rng, asked == "transcription")
    conversation = [
        {"role": "user", "content": [{"type": "image", "image": page.image}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return conversation, asked, page


def cached_samples(
    folder: Path, split: str, count: int, pages: str, slicing: str, seed: int, **options
) -> list[Sample]:
    """The samples of `make_samples`, cached for all runs that share them."""
    chosen = "-".join(f"{name}={value}" for name, value in options.items())
    path = folder / f"{split}-{count}-{pages}-{pages_key(pages)}-{slicing}-{seed}-{chosen}.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        samples = make_samples(split, count, pages, slicing, seed, **options)
        unfinished = path.with_suffix(f".{os.getpid()}")
        torch.save([vars(sample) for sample in samples], unfinished)
        unfinished.rename(path)
    return [Sample(**fields) for fields in torch.load(path, mmap=True)]


class Collator:
    """Batches samples for a model with `tokens` placeholders per tile, padded on the left."""

    def __init__(
        self, processor: InternVLXProcessor, tokens: int, for_generation: bool = False, for_towers: bool = False
    ):
        self.image_token_id, self.pad_id = processor.image_token_id, processor.tokenizer.pad_token_id
        self.tokens, self.for_generation, self.for_towers = tokens, for_generation, for_towers

    def __call__(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        rows = [self.with_tokens(sample) for sample in samples]
        batch = {
            name: _pad_left([row[name] for row in rows], fill)
            for name, fill in (("input_ids", self.pad_id), ("labels", IGNORED))
        }
        batch["attention_mask"] = _pad_left([torch.ones_like(row["input_ids"]) for row in rows], 0)
        batch["pixel_values"] = torch.cat([sample.pixel_values for sample in samples]).float()
        if self.for_towers:
            batch["counts"] = torch.stack([sample.digits.bincount(minlength=10) for sample in samples])
            batch["tiles"] = torch.tensor([len(sample.pixel_values) for sample in samples])
            batch["patches"] = torch.cat([patch_labels(sample) for sample in samples])
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


def patch_labels(sample: Sample) -> torch.Tensor:
    """(tiles, S²) the digit whose centre is on each patch of each tile, the thumbnail's too; 10 where there is none."""
    columns, rows = sample.grid
    tiles = lattice(sample, columns * PATCHES, rows * PATCHES).unfold(0, PATCHES, PATCHES).unfold(1, PATCHES, PATCHES)
    labels = [tiles.flatten(0, 1).flatten(1)]
    if columns * rows > 1:
        labels.append(lattice(sample, PATCHES, PATCHES).flatten()[None])
    return torch.cat(labels)


def lattice(sample: Sample, width: int, height: int) -> torch.Tensor:
    """(height, width) the digit whose centre is on each part of the page, of as many equal parts."""
    labels = torch.full((height, width), 10)
    centres = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2 / torch.tensor(sample.grid)
    x, y = (centres * torch.tensor([width, height])).long().unbind(1)
    labels[y, x] = sample.digits
    return labels


def _pad_left(rows: list[torch.Tensor], fill: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill, padding_side="left")


def share_in_place(answer: str, read: str) -> float:
    """Share of the answer's digits that are correct at their place; line ends do not count."""
    answer, read = ("".join(filter(str.isdigit, text)) for text in (answer, read))
    return sum(a == b for a, b in zip(answer, read, strict=False)) / max(len(answer), len(read))
