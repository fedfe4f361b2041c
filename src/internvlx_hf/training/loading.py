# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The checkpoint that a training starts from: its model and its processor, with what the settings change about them."""

from pathlib import Path

from transformers import PretrainedConfig

from ..checkpoints.folders import check_links
from ..checkpoints.weights import weight_files
from ..modeling import InternVLXConfig, InternVLXForConditionalGeneration
from ..processing import InternVLXProcessor
from .arguments import ModelArguments


def check_model_type(name_or_path: str | Path, revision: str | None = None) -> dict:
    """The configuration of an InternVL-X checkpoint, before anything large is read.

    Raises:
        ValueError: it is a model of another type, lacks weights, or leads out of its folder.
        OSError: there is no such checkpoint.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(name_or_path, revision=revision)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"{name_or_path} is neither the folder of a checkpoint nor to be had from the Hub: {reason}"
        ) from error
    if config.get("model_type") != InternVLXConfig.model_type:
        raise ValueError(
            f"{name_or_path} is a model of type {config.get('model_type')!r}, expected {InternVLXConfig.model_type!r}. "
            f"Convert it first: internvlx convert {name_or_path} OUT"
        )
    if (folder := Path(name_or_path)).is_dir():
        check_links(folder)
        weight_files(folder)
    return config


def load_processor(arguments: ModelArguments) -> InternVLXProcessor:
    """The checkpoint's processor, with the tiling that the settings ask for. It is saved with what is trained."""
    processor = InternVLXProcessor.from_pretrained(
        arguments.model_name_or_path, revision=arguments.model_revision or "main"
    )
    image_processor = processor.image_processor
    for name in ("slicing", "min_patches", "max_patches"):
        if (value := getattr(arguments, name)) is not None:
            setattr(image_processor, name, value)
    type(image_processor)(**image_processor.to_dict())  # raises where the settings contradict themselves
    return processor


def load_model(arguments: ModelArguments) -> InternVLXForConditionalGeneration:
    """The checkpoint's model.

    Raises:
        ValueError: the checkpoint lacks weights.
    """
    try:
        model, loading = InternVLXForConditionalGeneration.from_pretrained(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
            output_loading_info=True,
        )
    except ImportError as error:  # of the package that an attention needs
        raise ValueError(
            f"`attn_implementation` is {arguments.attn_implementation!r}: {error} 'sdpa' needs no package, nor does "
            "'varlen_sdpa', which is for packed rows."
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{arguments.model_name_or_path} lacks {len(missing)} weights, {missing[0]} first. Convert it again."
        )
    return model
