# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""How the images of a vision tower are resampled and normalised."""

from pathlib import Path

from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from ..checkpoints.errors import blaming
from ..checkpoints.json_files import read_json
from ..checkpoints.names import PROCESSOR_FILES
from .field_rules import PROCESSOR_RULES, check_values

# normalisation of a family without a saved processor; ImageNet's for all others
NORMALISATION = {
    "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "siglip": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
}
PIXEL_SETTINGS = ("image_mean", "image_std", "resample", "rescale_factor", "do_rescale", "do_normalize")


def pixel_settings(folder: Path, model_type: str) -> tuple[dict, str | None]:
    """Image normalisation of a tower, as settings of `InternVLXImageProcessor`, and a note if none was saved.

    Args:
        folder: the tower's checkpoint, or one of a model that contains it.
        model_type: the tower's type.

    Raises:
        CheckpointError: if its processor has an invalid setting.
    """
    saved: dict = {}
    for name in reversed(PROCESSOR_FILES):
        found = read_json(folder / name)
        settings = found.get("image_processor", found)
        if isinstance(settings, dict):
            settings = {name: settings[name] for name in PIXEL_SETTINGS if settings.get(name) is not None}
            with blaming(folder / name):
                check_values(settings, PROCESSOR_RULES)
            saved |= settings
    family = model_type.split("_")[0].rstrip("2")
    default = NORMALISATION.get(family, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    normalisation = {name: list(values) for name, values in zip(PIXEL_SETTINGS, default, strict=False)}
    if normalisation.keys() <= saved.keys() or saved.get("do_normalize") is False:
        return normalisation | saved, None
    used = normalisation | saved
    return used, (
        f"The tower has no preprocessor_config.json with image_mean and image_std: images are normalised with "
        f"{used['image_mean']} and {used['image_std']}, the values of the type {model_type}."
    )
