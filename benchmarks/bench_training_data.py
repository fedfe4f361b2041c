# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Loading of training data: images per second on one core, and the share of padding in a batch.

    python benchmarks/bench_training_data.py [--repeats 7] [--only speed padding packing]

speed: two photographs that come with scikit-learn, as JPEG files of several sizes, each in a conversation, four to a batch:
    read, decode, tile (`slicing="ratio"`, at most 6 tiles of 448 x 448 pixels and a thumbnail), tokenize, collate.
    "ours": `load_training_data` and `InternVLXDataCollator`.
    "its images": the same with transformers' GotOcr2ImageProcessorPil, native InternVL's processor without torchvision.
    "its way": that image processor, and transformers' own tokenization and masking by `apply_chat_template`.
padding, packing: a set of chats, images and pages: the share of padding in random batches and in batches of similar cost,
    and how full packed rows are.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from rows import AT_LEAST, AT_MOST, Row, run_script
from sklearn.datasets import load_sample_images
from timing import print_table, time_alternately, use_one_thread
from torch.utils.data import BatchSampler, RandomSampler
from transformers import GotOcr2ImageProcessorPil

from internvlx_hf import InternVLXConfig, InternVLXImageProcessor, InternVLXProcessor
from internvlx_hf.data.packing import pack_rows
from internvlx_hf.data.sizes import SampleSizes
from internvlx_hf.training import CostGroupedSampler, InternVLXDataCollator, PackedStream, load_training_data

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
from tiny import tiny_tokenizer

# sizes of the photographs themselves, of a web page, of a screen, of a phone
SIZES = ((640, 427), (1024, 683), (1920, 1280), (4032, 2688))
BATCH = 4
TARGET, MOST_PADDING, LEAST_RANDOM = 3.0, 0.10, 0.30
ANSWER = (
    "A pagoda with a red roof stands among trees in front of a lake, and the sky above it is clear and blue. " * 3
).strip()


class NativeImages(InternVLXDataCollator):
    """Our collator with transformers' image processor. Takes samples whose images are not decoded."""

    def __init__(self, processor: InternVLXProcessor, image_processor: GotOcr2ImageProcessorPil):
        super().__init__(processor)
        self.image_processor = image_processor

    def _tiles(self, samples):
        images = [image for sample in samples for image in sample.images]
        return self.image_processor(images, return_tensors="pt").pixel_values


class NativeWay:
    """A batch by transformers alone: `apply_chat_template`, and labels from its mask."""

    def __init__(self, processor: InternVLXProcessor, image_processor: GotOcr2ImageProcessorPil):
        tokenizer = processor.tokenizer
        # native InternVL's own processor cannot be made without torchvision; its text side is ProcessorMixin's, as here
        self.processor = InternVLXProcessor(image_processor, tokenizer, chat_template=processor.chat_template)

    def __call__(self, records: list[dict]) -> dict[str, torch.Tensor]:
        conversations = []
        for record in records:
            question, answer = (turn["value"] for turn in record["conversations"])
            content = [{"type": "image", "path": record["image"]}, {"type": "text", "text": question[8:]}]
            conversations.append([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])
        batch = self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "right"},
        )
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
        return batch


def write_records(folder: Path, size: tuple[int, int]) -> list[dict]:
    """Write the photographs in this size and a JSONL file of their records."""
    records = []
    for number, pixels in enumerate(load_sample_images().images * (BATCH // 2)):
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        turns = [
            {"from": "human", "value": "<image>\nWhat is to be seen here?"},
            {"from": "gpt", "value": ANSWER},
        ]
        records.append({"image": str(path), "conversations": turns})
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def measure_speed(size: tuple[int, int], repeats: int) -> list[object]:
    """One row of the table."""
    processor = InternVLXProcessor(InternVLXImageProcessor(slicing="ratio"), tiny_tokenizer())
    native = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True, max_patches=6)
    with tempfile.TemporaryDirectory() as folder:
        records = write_records(Path(folder), size)
        data = load_training_data(Path(folder) / "data.jsonl", processor)
        ours, its_images = InternVLXDataCollator(processor), NativeImages(processor, native)
        its_way = NativeWay(processor, native)
        runs = {
            "ours": lambda: ours([data[i] for i in range(BATCH)]),
            "its images": lambda: its_images([data.encode(i, decode=False) for i in range(BATCH)]),
            "its way": lambda: its_way(records),
        }
        batches = {name: run() for name, run in runs.items()}
        for batch in batches.values():
            for name in ("input_ids", "attention_mask", "labels"):
                if not torch.equal(batch[name], batches["ours"][name]):
                    raise RuntimeError(f"{name} of the ways to load {size} are not the same")
            if batch["pixel_values"].shape != batches["ours"]["pixel_values"].shape:
                raise RuntimeError(f"the ways to load {size} do not cut it into the same tiles")
        seconds = time_alternately(runs, repeats)
    tiles = len(batches["ours"]["pixel_values"]) // BATCH
    rates = [BATCH / taken for taken in seconds.values()]
    ratios = [seconds[name] / seconds["ours"] for name in ("its images", "its way")]
    return [f"{size[0]}x{size[1]}", tiles, *(f"{rate:.1f}" for rate in rates), *ratios]


def mixed_set(samples: int = 20000) -> SampleSizes:
    """Chats without images, images of 1 to 7 tiles of 256 tokens, pages of 13 tiles; texts of some hundred tokens."""
    generator = np.random.default_rng(0)
    kind = generator.choice(3, samples, p=[0.3, 0.6, 0.1])
    tiles = np.where(kind == 0, 0, np.where(kind == 1, generator.choice([1, 3, 5, 7], samples), 13))
    text = generator.lognormal(4.8, 0.9, samples).astype(int) + 30
    return SampleSizes(text + tiles * 256 + 2 * (tiles > 0), tiles)


def padding(lengths: np.ndarray, batches) -> float:
    room = sum(len(batch) * lengths[batch].max() for batch in batches)
    return float(1 - lengths.sum() / room)


def measure_padding(config: InternVLXConfig, batch_size: int) -> tuple[list[list[object]], list[Row]]:
    sizes, table, rows = mixed_set(), [], []
    orders = {
        "random": RandomSampler(sizes.tokens, generator=torch.Generator().manual_seed(0)),
        "like cost": CostGroupedSampler(sizes.costs(config), batch_size),
    }
    for name, sampler in orders.items():
        batches = [np.array(batch) for batch in BatchSampler(sampler, batch_size, drop_last=False)]
        one, two = (padding(lengths, batches) for lengths in (sizes.tokens, sizes.stage_two_tokens(config)))
        target, direction = (LEAST_RANDOM, AT_LEAST) if name == "random" else (MOST_PADDING, AT_MOST)
        row = Row(f"padding of {name} batches of {batch_size}", one, target=target, direction=direction)
        table.append([batch_size, name, one, two, f"{direction} {target}", row.verdict])
        rows.append(row)
    return table, rows


class Length:
    """A stand-in for a sample with this many tokens."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def __len__(self) -> int:
        return self.tokens


def measure_packing(budget: int) -> list[list[object]]:
    lengths = mixed_set().tokens
    kept = lengths[lengths <= budget]
    filled = PackedStream.__new__(PackedStream)
    filled.data, filled.budget = map(Length, kept.tolist()), budget
    rows = {"map-style": len(pack_rows(kept, budget)), "streaming": sum(1 for _ in filled)}
    return [[budget, name, number, float(kept.sum() / (budget * number))] for name, number in rows.items()]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=["speed", "padding", "packing"])
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    chosen = args.only or ["speed", "padding", "packing"]
    use_one_thread()
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}, Pillow {PIL.__version__}, "
        f"{os.cpu_count()} cores"
    )
    if "speed" in chosen:
        header = [
            "images",
            "tiles",
            "ours",
            "its images",
            "its way",
            "ours / its images",
            "ours / its way",
            "wanted",
        ]
        table = [[*measure_speed(size, args.repeats), TARGET] for size in SIZES]
        print("\nImages a second, in one thread\n")
        print_table(header, table)
        rows += [Row(f"{cells[0]}, ours / its way", cells[-2], target=TARGET, direction=AT_LEAST) for cells in table]
    if "padding" in chosen:
        config = InternVLXConfig(lvtc_config={})
        print("\nShare of padding, batches of a mixed set\n")
        header = ["batch", "batches", "stage one", "stage two", "wanted in stage one", ""]
        tables, found = zip(*(measure_padding(config, size) for size in (4, 8, 16)), strict=True)
        print_table(header, [cells for table in tables for cells in table])
        rows += [row for each in found for row in each]
    if "packing" in chosen:
        print("\nHow full rows are that samples are packed into\n")
        table = [cells for budget in (4096, 8192) for cells in measure_packing(budget)]
        print_table(["budget", "kind", "rows", "filled"], table)
        rows += [Row(f"filled of rows of {cells[0]}, {cells[1]}", cells[-1]) for cells in table]
    return rows


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
