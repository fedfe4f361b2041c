# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The engine behind `internvlx answer` and `chat --jsonl`: images per second beside a bare loop over batches.

The images are the two photographs that come with scikit-learn, as JPEG files of eight sizes, and the model is small and random. "bare":
a loop that knows all costs, sorts all images by them, and for each batch of eight opens, processes and generates. "engine":
`answer_images`, with its worker processes, its file, its progress. "one at a time": a batch of one. They take turns in one process, by
the wall's clock, and each turn is compared with the bare loop's: other programs disturb all of them. CPU seconds are those of all
processes, which tell more on a machine that others use.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/bench_bulk.py [--images 96] [--turns 5] [--new-tokens 24]
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path

import PIL.Image
import torch
from rows import AT_LEAST, Row, run_script
from sklearn.datasets import load_sample_images
from timing import print_table
from transformers.utils import logging

from internvlx_hf.chat import answer_images
from internvlx_hf.chat.answers import ImageJob
from internvlx_hf.evaluation.answering import Answerer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
from internvlx_hf import InternVLXForConditionalGeneration
from tiny import tiny_config, tiny_processor

QUESTION, BATCH, TARGET = "What is to be seen here?", 8, 0.95
SIZES = ((200, 134), (320, 214), (448, 299), (640, 427), (800, 534), (1024, 683), (1280, 853), (1920, 1280))
TILE = 112


def small_answerer() -> Answerer:
    torch.manual_seed(0)
    config = tiny_config(
        text_config={
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 8,
            "max_position_embeddings": 4096,
        },
        vision_config={
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "image_size": TILE,
            "patch_size": 14,
        },
    )
    model = InternVLXForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return Answerer(model, tiny_processor(config, max_patches=12, slicing="edge"))


def write_images(folder: Path, count: int) -> list[str]:
    photos, paths = load_sample_images().images, []
    for number in range(count):
        path = folder / f"{number:04}.jpg"
        size = SIZES[number * 5 % len(SIZES)]
        PIL.Image.fromarray(photos[number % 2]).resize(size, PIL.Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(str(path))
    return paths


def bare_loop(answerer: Answerer, images: list[str], new_tokens: int) -> None:
    job = ImageJob(answerer, images, QUESTION, None, [{}])
    order = sorted(range(len(images)), key=lambda index: job.measure(job.read(index)))
    for start in range(0, len(order), BATCH):
        conversations = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "path": images[index]}, {"type": "text", "text": QUESTION}],
                }
            ]
            for index in order[start : start + BATCH]
        ]
        answerer.answer(conversations, max_new_tokens=new_tokens)


def measure(args: argparse.Namespace) -> list[Row]:
    logging.set_verbosity_error()
    answerer = small_answerer()
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), args.images)
        turn = iter(range(10**6))

        def engine(batch_size: int = BATCH, **more) -> None:
            out = Path(folder) / f"{next(turn)}.jsonl"
            outcome = answer_images(
                answerer, images, QUESTION, out, {}, batch_size, max_new_tokens=args.new_tokens, **more
            )
            if outcome.answered != len(images):
                raise RuntimeError(f"{outcome} of {len(images)} images")

        runs: dict[str, Callable[[], None]] = {
            "bare": lambda: bare_loop(answerer, images, args.new_tokens),
            "engine": engine,
            "engine without workers": lambda: engine(num_workers=0),
            "one at a time": lambda: engine(1, num_workers=0),
        }
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for number in range(args.turns + 1):
            for name, run in runs.items():
                start, computed = time.perf_counter(), computed_seconds()
                run()
                if number:  # the first round warms up
                    turns[name].append((time.perf_counter() - start, computed_seconds() - computed))
    wall, computed = ({name: [turn[k] for turn in each] for name, each in turns.items()} for k in (0, 1))
    ratios = {name: statistics.median(map(truediv, wall["bare"], each)) for name, each in wall.items()}
    work = {name: statistics.median(each) for name, each in computed.items()}
    print_table(
        [
            "",
            "images a second",
            "of the bare loop, median of the turns",
            "CPU seconds",
            "of the bare loop's",
            "seconds of the turns",
        ],
        [
            [
                name,
                f"{len(images) / statistics.median(wall[name]):.2f}",
                f"{ratios[name]:.3f}",
                f"{work[name]:.2f}",
                f"{work[name] / work['bare']:.3f}",
                " ".join(f"{each:.2f}" for each in wall[name]),
            ]
            for name in runs
        ],
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    note = f"{args.images} images, median of {args.turns} turns, {torch.get_num_threads()} threads, {cores} cores"
    return [
        Row("images per second, of the bare loop's", ratios["engine"], "", TARGET, AT_LEAST, note),
        Row("the same without workers", ratios["engine without workers"]),
        Row("CPU seconds of the engine, of the bare loop's", work["engine"] / work["bare"]),
        Row("one at a time, of the bare loop's", ratios["one at a time"]),
    ]


def computed_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--images", type=int, default=96)
    arguments.add_argument("--turns", type=int, default=5)
    arguments.add_argument("--new-tokens", type=int, default=24)
    return arguments


if __name__ == "__main__":
    run_script(__doc__, measure, parser())
