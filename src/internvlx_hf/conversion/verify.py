# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Verifying a converted checkpoint: its files, a forward on a test image, and an independent computation of the
source.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import InternVLForConditionalGeneration, LlavaForConditionalGeneration
from transformers.utils import logging

from ..checkpoints.errors import CheckpointError
from ..checkpoints.names import LLAVA, NATIVE, OURS
from ..checkpoints.numbers import file_size
from ..checkpoints.weights import HEAD, Weights
from ..modeling import InternVLXForConditionalGeneration
from .plan import target_tensors
from .prepare import Conversion
from .slow_reference import SlowReference

logger = logging.get_logger(__name__)

# largest difference due to float32, relative to the largest value
TOLERANCE = 1e-4
MEMORY = Path("/proc/meminfo")  # exists on Linux
LOADERS: dict[str, Any] = {
    OURS: InternVLXForConditionalGeneration,
    NATIVE: InternVLForConditionalGeneration,
    LLAVA: LlavaForConditionalGeneration,
}
QUESTION = "What is in the image?"


@torch.no_grad()
def verify(conversion: Conversion, folder: Path) -> dict[str, str]:
    """Check a checkpoint that was just written.

    Args:
        conversion: the conversion that wrote it.
        folder: the checkpoint's folder.

    Returns:
        The result of each check by its name, or why it was skipped.

    Raises:
        CheckpointError: if a check fails.
    """
    checks = {"tensors": _check_tensors(conversion, folder)}
    needed = 4 * conversion.num_parameters
    if (free := _free_memory()) is not None and free < 1.2 * needed:
        checks["forward"] = f"skipped: needs {file_size(needed)} of memory in float32, {file_size(free)} are free"
        return checks
    inputs = _drawn_inputs(conversion)
    features, logits = _answers(folder, conversion.options.to, inputs)
    if not logits.isfinite().all():
        raise CheckpointError("The converted model's logits for a test image are not finite.")
    checks["forward"] = f"finite logits for a test image and {inputs['input_ids'].shape[1]} tokens"
    checks["reference"] = _compare(conversion, inputs, features, logits)
    return checks


def _check_tensors(conversion: Conversion, folder: Path) -> str:
    weights = Weights(folder)
    targets = {conversion.rename(name): info for name, info in target_tensors(conversion.config).items()}
    wrong = [
        name for name in targets.keys() | weights.tensors.keys() if not _same_shape(targets, weights.tensors, name)
    ]
    if wrong:
        raise CheckpointError(f"The written tensors differ from the planned ones: {', '.join(sorted(wrong))}.")
    for path in weights.shards:
        with weights.open(path) as tensors:
            for name, tensor in tensors:
                if not torch.stack(torch.aminmax(tensor)).isfinite().all():
                    raise CheckpointError(f"{name} was written with values that are not finite.")
    tied = ", output embeddings tied to the input's" if conversion.rename(HEAD) not in weights.tensors else ""
    return f"{len(targets)} tensors of the right shapes, all finite{tied}"


def _same_shape(targets: dict, found: dict, name: str) -> bool:
    return name in targets and name in found and targets[name].shape == found[name].shape


def _answers(folder: Path, layout: str, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Image features and logits of the last position from a checkpoint in one of the layouts `LOADERS`."""
    model = LOADERS[layout].from_pretrained(folder, dtype=torch.float32).eval()
    features = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    if layout == LLAVA:  # one tensor per image
        features = torch.stack(list(features))
    return features, model(**inputs, logits_to_keep=1).logits[0, -1]


def _drawn_inputs(conversion: Conversion) -> dict[str, torch.Tensor]:
    """The inputs of a question about a drawn image of one tile."""
    size = conversion.config.tile_size
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse([size // 8, size // 8, size // 2, size // 2], fill="red")
    draw.rectangle([size // 2, size // 2, size - size // 8, size - size // 4], fill="blue")
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    inputs = conversion.processor().apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}


def _compare(conversion: Conversion, inputs: dict, features: torch.Tensor, logits: torch.Tensor) -> str:
    """Compare with an independent computation of the source."""
    source = conversion.source
    if not conversion.starts_as_source:
        return "skipped: after this upgrade the model's answers differ from the source's"
    if source.layout == "internvl_chat":
        if source.config.projector_config.projector_type != "pixel_shuffle":
            return "skipped: there is no independent implementation of the InternVL-X release's projector"
        try:
            expected = _slowly(conversion, inputs)
        except NotImplementedError as error:
            return f"skipped: the reference implementation does not support {error}"
    else:
        expected = _answers(source.folder, source.layout, inputs)
    errors = [_relative(ours, theirs) for ours, theirs in zip((features, logits), expected, strict=True)]
    if max(errors) > TOLERANCE:
        raise CheckpointError(
            f"The converted model differs from the source: features by {errors[0]:.1e} and logits by {errors[1]:.1e} "
            f"of their largest value, expected at most {TOLERANCE:.0e}."
        )
    return (
        f"matches the source computed independently: features to {errors[0]:.1e}, logits to {errors[1]:.1e} of their "
        "largest value"
    )


def _slowly(conversion: Conversion, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    weights, dtype = conversion.weights, conversion.options.dtype_name

    # cached, since attention reads its matrices head by head
    @lru_cache(maxsize=4)
    def read(name: str) -> torch.Tensor:
        tensor = weights.read(name)
        return (tensor if dtype is None else tensor.to(getattr(torch, dtype))).float()

    slow = SlowReference(read, conversion.source.raw, set(weights.tensors))
    tokens = torch.stack([slow.project(slow.features(tile)) for tile in inputs["pixel_values"]])
    return tokens, slow.logits(inputs["input_ids"][0], conversion.config.image_token_id, tokens.flatten(0, 1))


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.reshape(theirs.shape) - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


def _free_memory() -> int | None:
    """Bytes available without swapping; None if the system does not report them."""
    if not MEMORY.is_file():
        return None
    lines = dict(line.split(":") for line in MEMORY.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
