"""Trains the models that are tuned, from the demo's: `python benchmarks/tune/models.py OUT --start out/demo/model`.

`python benchmarks/tune/replay.py OUT` tunes them.

    fixed    learns to read the three kinds of pages in the demo's own tiles, "edge" and at most 6
    varied   goes on from there with every slicing and 1 to 6 tiles at most
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from kinds_of_pages import KINDS, draw
from transformers import get_wsd_schedule, set_seed

from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.processing.rvtc import SLICING_STRATEGIES

QUESTION = "Transcribe this page."
MAX_TILES, BATCH = 6, 16


@dataclass(frozen=True)
class Lesson:
    """A model's training: steps, learning rate, whether slicing and tile limit vary, and the model that it starts from."""

    steps: int
    rate: float = 7e-4
    varies: bool = False
    start: str | None = None


LESSONS = {"fixed": Lesson(400, 1e-3), "varied": Lesson(120, varies=True, start="fixed")}


def batch(lesson: Lesson, step: int) -> tuple[list, dict]:
    """Conversations of one step, and the image settings that they are read with."""
    rng = np.random.default_rng((7, step, lesson.varies))
    kind = KINDS[rng.integers(len(KINDS))]
    pages = [draw(kind, "train", 10_000_000 * lesson.varies + step * BATCH + i) for i in range(BATCH)]
    settings = {}
    if lesson.varies:
        settings = {
            "slicing": SLICING_STRATEGIES[rng.integers(len(SLICING_STRATEGIES))],
            "max_patches": int(rng.integers(1, MAX_TILES + 1)),
        }
    return [conversation(page.image, page.text) for page in pages], settings


def conversation(image, answer: str) -> list[dict]:
    asked = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def train(name: str, out: Path, demo: Path) -> None:
    """Train a model of `LESSONS` and save it with its processor."""
    lesson = LESSONS[name]
    start = out / lesson.start if lesson.start else demo
    model = InternVLXForConditionalGeneration.from_pretrained(start)
    processor = InternVLXProcessor.from_pretrained(start)
    set_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lesson.rate, betas=(0.9, 0.98), weight_decay=0.05)
    warm, decay = lesson.steps // 20, int(0.4 * lesson.steps)
    schedule = get_wsd_schedule(optimizer, warm, decay, num_training_steps=lesson.steps)
    model.train()
    for step in range(lesson.steps):
        conversations, settings = batch(lesson, step)
        inputs = processor.apply_chat_template(
            conversations, return_labels=True, return_tensors="pt", processor_kwargs={"padding": True, **settings}
        )
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"{name}: step {step} of {lesson.steps}, loss {loss.item():.3f}", flush=True)
    model.eval().save_pretrained(out / name)
    processor.save_pretrained(out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the models; those that exist are kept")
    parser.add_argument("--start", type=Path, default=Path("out/demo/model"), help="the demo's model")
    options = parser.parse_args()
    for name in LESSONS:
        if not (options.out / name / "processor_config.json").exists():
            train(name, options.out, options.start)


if __name__ == "__main__":
    main()
