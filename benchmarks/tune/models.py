"""Trains the models that are tuned: `python benchmarks/tune/models.py OUT`. `python benchmarks/tune/replay.py OUT` tunes them.

fixed    always saw InternVL's own slicing, "ratio", up to 6 tiles
varied   the same, trained on with every slicing and 1 to 6 tiles at most
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from kinds_of_pages import KINDS, draw
from train import TILE, build_tokenizer
from transformers import PreTrainedTokenizerFast, get_wsd_schedule, set_seed

from internvlx_hf import (
    InternVLXConfig,
    InternVLXForConditionalGeneration,
    InternVLXImageProcessor,
    InternVLXProcessor,
)
from internvlx_hf.processing.rvtc import SLICING_STRATEGIES

QUESTION = "Read the page."
MAX_TILES, BATCH = 6, 16
TEMPLATE = """\
{%- for message in messages -%}
    {%- for part in message['content'] -%}
        {%- if part['type'] == 'image' -%}{{- '<IMG_CONTEXT>' -}}
        {%- elif message['role'] == 'assistant' -%}
            {%- generation -%}{{- part['text'] + '<|im_end|>' -}}{%- endgeneration -%}
        {%- else -%}{{- part['text'] -}}{%- endif -%}
    {%- endfor -%}
{%- endfor -%}
"""


@dataclass(frozen=True)
class Lesson:
    """A model's training: steps, learning rate, whether slicing and tile limit vary, and the model that it starts from."""

    steps: int
    rate: float
    varies: bool = False
    start: str | None = None


LESSONS = {"fixed": Lesson(1000, 2e-3), "varied": Lesson(400, 1e-3, varies=True, start="fixed")}


def build_model(tokenizer: PreTrainedTokenizerFast) -> InternVLXForConditionalGeneration:
    """A model of a million parameters with 16 tokens per tile in all layers."""
    return InternVLXForConditionalGeneration(
        InternVLXConfig(
            vision_config={
                "hidden_size": 80,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 240,
                "image_size": TILE,
                "patch_size": 8,
                "use_absolute_position_embeddings": True,
                "layer_scale_init_value": 1.0,
                "initializer_range": 0.08,
            },
            text_config={
                "model_type": "qwen3",
                "vocab_size": len(tokenizer),
                "hidden_size": 128,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 32,
                "intermediate_size": 256,
                "max_position_embeddings": 1024,
                "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},
                "initializer_range": 0.05,
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
            downsample_ratio=0.5,
            projector_config={"projector_type": "pixel_shuffle"},
        )
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> InternVLXProcessor:
    images = InternVLXImageProcessor(size={"height": TILE, "width": TILE}, max_patches=MAX_TILES, slicing="ratio")
    return InternVLXProcessor(images, tokenizer, image_seq_length=16, chat_template=TEMPLATE)


def batch(lesson: Lesson, step: int) -> tuple[list, dict]:
    """Conversations of one step, and the image settings that they are read with."""
    rng, progress = np.random.default_rng((7, step, lesson.varies)), step / lesson.steps
    kind = list(KINDS)[rng.integers(len(KINDS))]
    repeated = 0.0 if lesson.start else max(0.0, 0.8 - 1.3 * progress)
    pages = [draw(kind, "train", 10_000_000 * lesson.varies + step * BATCH + i, repeated) for i in range(BATCH)]
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


def train(name: str, out: Path) -> None:
    """Train a model of `LESSONS` and save it with its processor."""
    lesson, tokenizer = LESSONS[name], build_tokenizer(QUESTION)
    processor = build_processor(tokenizer)
    set_seed(0)
    model = build_model(tokenizer)
    if lesson.start:
        model = InternVLXForConditionalGeneration.from_pretrained(out / lesson.start)
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
        if step % 50 == 0:
            print(f"{name}: step {step} of {lesson.steps}, loss {loss.item():.3f}", flush=True)
    model.eval().save_pretrained(out / name)
    processor.save_pretrained(out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the models; those that exist are kept")
    out = parser.parse_args().out
    for name in LESSONS:
        if not (out / name / "config.json").exists():
            train(name, out)


if __name__ == "__main__":
    main()
