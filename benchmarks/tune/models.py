"""Trains the models that are tuned, from the demo's: `python benchmarks/tune/models.py OUT --start out/demo/model`.

`python benchmarks/tune/replay.py OUT` tunes them.

    fixed    learns to read the three kinds of pages in the demo's own tiles, "edge" and at most 6
    varied   goes on from there with a thumbnail of the page behind its tiles, "edge" or "area" and at most 1, 3 or 6 tiles
    dial-K   is "fixed" that offers the sizes 16, 16:4 and 16:0, whose tiles have 16 tokens before layer K and 4 or none from it on

All read 16 tokens of a tile in all layers, without LVTC. Only "varied" has thumbnails: the others have to read their tiles.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from kinds_of_pages import KINDS, draw, draw_full
from safetensors.torch import load_file
from transformers import get_wsd_schedule, set_seed

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.conversion import ConversionOptions, convert_checkpoint

QUESTION = "Transcribe this page."
VARIED_SLICING, VARIED_TILES = ("edge", "area"), (1, 1, 1, 3, 6)
BATCH, LEARNING_RATE = 16, 1e-3


@dataclass(frozen=True)
class Lesson:
    """A model's training: steps, the first of them on full pages, whether slicing and tile limit vary and a thumbnail follows the
    tiles, and the model that it starts from.
    """

    steps: int
    full: int
    varies: bool = False
    start: str | None = None


LESSONS = {"fixed": Lesson(700, full=400), "varied": Lesson(450, full=200, varies=True, start="fixed")}
BOUNDARIES = {f"dial-{layer}": layer for layer in (1, 2, 3)}
SIZES = ["16", "16:4", "16:0"]
MODELS = [*LESSONS, *BOUNDARIES]


def batch(lesson: Lesson, step: int) -> tuple[list, dict]:
    """Conversations of one step, and the image settings that they are read with."""
    rng = np.random.default_rng((7, step, lesson.varies))
    kind = KINDS[rng.integers(len(KINDS))]
    numbers = range(10_000_000 * lesson.varies + step * BATCH, 10_000_000 * lesson.varies + (step + 1) * BATCH)
    if step < lesson.full:
        repeated = 0 if lesson.start else 0.8 - 1.3 * step / lesson.full
        pages = [draw_full(number, repeated) for number in numbers]
    else:
        pages = [draw(kind, "train", number) for number in numbers]
    settings = {}
    if lesson.varies:
        settings = {
            "slicing": VARIED_SLICING[rng.integers(len(VARIED_SLICING))],
            "max_patches": VARIED_TILES[rng.integers(len(VARIED_TILES))],
        }
    return [conversation(page.image, page.text) for page in pages], settings


def conversation(image, answer: str) -> list[dict]:
    asked = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def without_lvtc(demo: Path) -> tuple[InternVLXForConditionalGeneration, InternVLXProcessor]:
    """The demo's model with the projector of its later layers in all layers."""
    config = InternVLXConfig.from_pretrained(demo)
    config.downsample_ratio, config.lvtc_config = config.lvtc_config.downsample_ratio, None
    model = InternVLXForConditionalGeneration(config)
    weights = load_file(demo / "model.safetensors")
    of_projector = {
        name.replace("lvtc.hr_projector", "multi_modal_projector"): value
        for name, value in weights.items()
        if "lvtc.hr_projector" in name
    }
    model.load_state_dict({name: weights.get(name) for name in model.state_dict()} | of_projector)
    processor = InternVLXProcessor.from_pretrained(demo, image_seq_length=config.image_seq_length)
    return model, processor


def train(name: str, out: Path, demo: Path) -> None:
    """Train a model of `LESSONS` and save it with its processor."""
    lesson = LESSONS[name]
    if lesson.start is None:
        model, processor = without_lvtc(demo)
    else:
        model = InternVLXForConditionalGeneration.from_pretrained(out / lesson.start)
        processor = InternVLXProcessor.from_pretrained(out / lesson.start)
    processor.image_processor.use_thumbnail = lesson.varies
    set_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
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
    for name in MODELS:
        if (options.out / name / "processor_config.json").exists():
            continue
        if name in LESSONS:
            train(name, options.out, options.start)
        else:
            dial = ConversionOptions(tokens_per_tile=SIZES, merge_at=BOUNDARIES[name])
            convert_checkpoint(options.out / "fixed", options.out / name, dial)


if __name__ == "__main__":
    main()
