"""Records of numbered questions, and images for them."""

import json

import numpy as np
from PIL import Image

from tiny import LVTC, TILE, tiny_config

CONFIG = tiny_config(**LVTC)


def save_picture(path, width=TILE, height=TILE, seed=0, **kwargs):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **kwargs)
    return path.name


def record(number, image=None, question="What?", answer=None):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer or f"Number {number}."}]
    return {"id": number, "conversations": turns} | ({"image": image} if image else {})


def write_lines(path, records):
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def answers(processor, samples):
    """What each sample learns to say."""
    texts = [processor.tokenizer.decode(sample.labels[sample.labels != -100]) for sample in samples]
    return [text.removesuffix("<|im_end|>") for text in texts]


def numbers(processor, samples):
    return [int(answer.removeprefix("Number ").removesuffix(".")) for answer in answers(processor, samples)]
