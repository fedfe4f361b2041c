"""A tiny checkpoint and tiny data in a folder, and `internvlx train` on them."""

import json
import os
import random
import tempfile
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from dial_cases import dial
from internvlx_hf import InternVLXProcessor
from internvlx_hf.training.train import SETTINGS, parse_arguments, train
from tiny import LVTC, tiny_model, tiny_processor

# what is measured of data is kept in there, and not beside a person's own
CACHE = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = CACHE.name
SIZES = ((32, 32), (64, 32), (40, 70))
# dropout of everything that can drop out, so that a resumed training which lost its random numbers is another one
RANDOM = {
    "projector_config": {"drop_path_rate": 0.5},
    "text_config": {"attention_dropout": 0.2},
    "vision_config": {"hidden_dropout_prob": 0.2, "projection_dropout": 0.2},
}


def save_checkpoint(folder: Path, text: str = "qwen2", **kwargs) -> Path:
    model = tiny_model(text, **{**LVTC, **kwargs})
    model.save_pretrained(folder)
    tiny_processor(model.config, max_patches=3, slicing="edge").save_pretrained(folder)
    return folder


# without anything random, and with weights whose first gradients are not large
STEADY = {"projector_config": {"drop_path_rate": 0.0}, "text_config": {"initializer_range": 0.05}}
TRAINED = ["16", "4", "4:16", "16:4", "16:0"]  # sizes of `save_dial`


def save_dial(folder, settings=STEADY, **kwargs):
    """A checkpoint that offers several sizes of a tile, in `folder`, whose name is returned."""
    model = tiny_model(**dial(2, 3, TRAINED), **settings, **kwargs)
    model.save_pretrained(folder)
    processor = sized(model.config)
    processor.save_pretrained(folder)
    return str(folder)


def sized(config, **kwargs):
    """Its processor."""
    plain = tiny_processor(config, max_patches=3, slicing="edge")
    parts = plain.image_processor, plain.tokenizer
    return InternVLXProcessor(*parts, image_seq_length=16, offered_sizes=config.tokens_per_tile, **kwargs)


def write_data(folder: Path, samples: int = 12, seed: int = 0) -> Path:
    """A JSONL file of conversations about noisy images of three sizes, every fourth about none."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    lines = []
    for i in range(samples):
        question, images = "What is on the picture?", []
        if i % 4 != 3:
            size = generator.choice(SIZES)
            pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(i))
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{i}.png")
            question, images = f"<image>\n{question}", [str(folder / f"{i}.png")]
        answer = " ".join(["digits"] * generator.randint(1, 12))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append({"messages": messages} | ({"images": images} if images else {}))
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def write_config(folder: Path, **settings) -> str:
    """A configuration file, its checkpoint and data beside it."""
    if not (folder / "base").exists():
        save_checkpoint(folder / "base", **RANDOM)
    defaults = {
        "model_name_or_path": str(folder / "base"),
        "train_data": str(folder / "data" / "data.jsonl"),
        "output_dir": str(folder / "out"),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    if "train_data" not in settings and not (folder / "data").exists():
        write_data(folder / "data")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(defaults | settings), encoding="utf-8")
    return str(path)


def run(folder: Path, *flags: str, **settings):
    """Train; the trainer."""
    return train(*parse_arguments([write_config(folder, **settings), *flags], SETTINGS))


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "adapter_model.safetensors"
    return load_file(file if file.exists() else folder / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}
