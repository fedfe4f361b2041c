# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVLXImageProcessor against transformers' GotOcr2ImageProcessor on torchvision and on Pillow, for the same tiles.

    python benchmarks/bench_image_processor.py [--repeats 15]

All use `slicing="ratio"`, at most 6 tiles of 448 x 448 pixels and a thumbnail. In each turn a processor runs twice and the
second run counts, so that none pays for memory that another returned to the system.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision_overlay
import transformers
from PIL import Image
from rows import AT_LEAST, Row, run_script
from timing import print_table, time_alternately, use_one_thread
from transformers import GotOcr2ImageProcessorPil

from internvlx_hf import InternVLXImageProcessor

SIZES = ((640, 480), (1920, 1080), (3000, 2000), (4000, 3000))
# times as fast as transformers' processor on torchvision, and on Pillow
TARGETS = {
    "torchvision": {
        ((640, 480), "JPEG"): 1.1,
        ((1920, 1080), "JPEG"): 1.4,
        ((4000, 3000), "JPEG"): 1.8,
        **{(size, "tensor"): 1.0 for size in SIZES},
    },
    "Pillow": {((640, 480), "decoded"): 4.5, ((1920, 1080), "decoded"): 4.5, ((3000, 2000), "decoded"): 3.8},
}
RIVALS = tuple(TARGETS)
COLUMNS = ("ours", "ours, draft", "ours, exact")


def photo(width: int, height: int) -> Image.Image:
    """Smooth noise, whose JPEG file is as large as a photograph's."""
    pixels = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def sources(size: tuple[int, int], folder: Path) -> dict[str, object]:
    """The same image in every form of input."""
    path = folder / "photo.jpg"
    photo(*size).save(path, quality=90)
    decoded = Image.open(path)
    decoded.load()
    return {
        "JPEG": str(path),
        "decoded": decoded,
        "tensor": torch.from_numpy(np.array(decoded)).movedim(-1, 0).contiguous(),
    }


def processors() -> dict[str, Callable]:
    settings = {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "max_patches": 6}
    natives = {"Pillow": GotOcr2ImageProcessorPil(**settings)}
    if not torchvision_overlay.PROBLEM:
        natives = {"torchvision": transformers.GotOcr2ImageProcessor(**settings)} | natives
    ours = {
        "ours": InternVLXImageProcessor(slicing="ratio"),
        "ours, draft": InternVLXImageProcessor(slicing="ratio", jpeg_draft=True),
        "ours, exact": InternVLXImageProcessor(slicing="ratio", resize_backend="pillow"),
    }
    return ours | natives


def compare(size: tuple[int, int], route: str, source, repeats: int) -> tuple[list[object], list[Row]]:
    """A row of the table, and the ratios."""
    chosen = processors()
    if route != "JPEG":
        del chosen["ours, draft"]
    if route != "decoded":
        del chosen["ours, exact"]
    runs = {  # transformers' own processors accept no path
        name: lambda process=process: process(process.fetch_images(source), return_tensors="pt")
        for name, process in chosen.items()
    }
    tiles = {name: len(run().pixel_values) for name, run in runs.items()}
    if len(set(tiles.values())) > 1:
        raise RuntimeError(f"the processors do not cut {size} into the same tiles: {tiles}")
    seconds = time_alternately(runs, repeats, settled=True)
    ratios = {rival: seconds[rival] / seconds["ours"] if rival in seconds else None for rival in RIVALS}
    times = [f"{1000 * seconds[name]:.1f}" if name in seconds else "-" for name in (*COLUMNS, *RIVALS)]
    name = f"{size[0]}x{size[1]} {route}"
    rows = [
        Row(
            f"{name}, times as fast as on {rival}",
            ratio,
            target=TARGETS[rival].get((size, route)),
            direction=AT_LEAST,
            note=torchvision_overlay.PROBLEM if ratio is None else "",
        )
        for rival, ratio in ratios.items()
    ]
    cells = [cell for row in rows for cell in row.cells()[1:4]]
    return [name, tiles["ours"], *times, *cells], rows


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    use_one_thread()
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}, Pillow {PIL.__version__}, "
        f"{torchvision_overlay.PROBLEM or 'torchvision ' + version('torchvision')}, {os.cpu_count()} cores; "
        "milliseconds for one image, one thread"
    )
    table, rows = [], []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            for route, source in sources(size, Path(folder)).items():
                cells, compared = compare(size, route, source, args.repeats)
                table.append(cells)
                rows += compared
    header = ["image", "tiles", *COLUMNS, *(f"GotOcr2 ({rival})" for rival in RIVALS)]
    print_table([*header, *(cell for rival in RIVALS for cell in (f"{rival} / ours", "target", "verdict"))], table)
    return rows


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
