"""Records of numbered questions, and images for them."""

import json

from transformers import TrainingArguments

from image_cases import random_image
from tiny import LVTC, TILE, tiny_config

CONFIG = tiny_config(**LVTC)


def save_picture(path, width=TILE, height=TILE, seed=0, **kwargs):
    random_image(width, height, seed=seed).save(path, **kwargs)
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


def training_arguments(folder, **settings):
    """Three steps on a CPU that leave nothing but their log."""
    quiet = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    defaults = {"max_steps": 3, "learning_rate": 1e-3, "remove_unused_columns": False}
    # or accelerate would cut streamed batches up
    defaults["accelerator_config"] = {"dispatch_batches": False}
    return TrainingArguments(output_dir=str(folder), **quiet | defaults | settings)
