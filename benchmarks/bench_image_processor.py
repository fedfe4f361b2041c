# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Images a second of InternVLXImageProcessor against transformers' GotOcr2ImageProcessorPil, for the same tiles.

    python benchmarks/bench_image_processor.py [--repeats 15]

Both cut by aspect ratio alone (`slicing="ratio"`), into at most 6 tiles of 448 x 448 pixels and a thumbnail.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from rows import AT_LEAST, Row, run_script
from timing import print_table, time_alternately
from transformers import GotOcr2ImageProcessorPil

from internvlx_hf import InternVLXImageProcessor

SIZES = ((1920, 1080), (640, 480))
TARGETS = {"decoded": 5.0, "JPEG file": 3.5}


def photo(width: int, height: int) -> Image.Image:
    """Noise made smooth: its JPEG is of a photograph's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def compare(size: tuple[int, int], route: str, folder: Path, repeats: int) -> list[object]:
    """One row of the table; its last but one cell is the ratio, its last one the target."""
    path = folder / "picture.jpg"
    photo(*size).save(path, quality=90)
    decoded = Image.open(path)
    decoded.load()
    source = decoded if route == "decoded" else str(path)
    fast = InternVLXImageProcessor(slicing="ratio")
    exact = InternVLXImageProcessor(slicing="ratio", resize_backend="pillow")
    native = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True, max_patches=6)
    runs = {
        "fast": lambda: fast(source, return_tensors="pt"),
        "exact": lambda: exact(source, return_tensors="pt"),
        "native": lambda: native(native.fetch_images(source), return_tensors="pt"),
    }
    tiles = {name: len(run().pixel_values) for name, run in runs.items()}
    if len(set(tiles.values())) > 1:
        raise RuntimeError(f"the processors do not cut {size} into the same tiles: {tiles}")
    seconds = time_alternately(runs, repeats)
    rates = [round(1 / taken) for taken in seconds.values()]
    ratio = seconds["native"] / seconds["fast"]
    return [f"{size[0]}x{size[1]}", route, tiles["fast"], *rates, ratio, TARGETS[route]]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}, Pillow {PIL.__version__}, "
        f"{os.cpu_count()} cores; images a second, one image a call, one thread"
    )
    with tempfile.TemporaryDirectory() as folder:
        table = [compare(size, route, Path(folder), args.repeats) for size in SIZES for route in TARGETS]
    print_table(
        ["picture", "from", "tiles", "ours", "ours, Pillow's pixels", "GotOcr2 (PIL)", "ratio", "wanted"], table
    )
    return [
        Row(
            f"{cells[0]} {cells[1]}, images a second, ours / GotOcr2 (PIL)",
            cells[-2],
            target=cells[-1],
            direction=AT_LEAST,
        )
        for cells in table
    ]


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
