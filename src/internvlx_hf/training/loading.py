# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Loading the model and the processor of the checkpoint to train, with the changes that the settings make."""

from pathlib import Path

from transformers import PretrainedConfig

from ..checkpoints.folders import check_files, refuse_revision_of_folder
from ..checkpoints.weights import weight_files
from ..modeling import InternVLXConfig, InternVLXForConditionalGeneration
from ..processing import InternVLXProcessor
from .arguments import ModelArguments


def check_model_type(name_or_path: str | Path, revision: str | None = None, convert: str = "") -> dict:
    """The configuration of an InternVL-X checkpoint, checked before any large file is read.

    Args:
        convert: options of the conversion that an error suggests.

    Raises:
        ValueError: if the model has another type, weights are missing, a link leads out of the checkpoint's folder, or
            a revision of a folder is given.
        OSError: if there is no such checkpoint.
    """
    refuse_revision_of_folder(name_or_path, revision)
    try:
        config, _ = PretrainedConfig.get_config_dict(name_or_path, revision=revision)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"{name_or_path} is neither the folder of a checkpoint nor available on the Hub: {reason}"
        ) from error
    if config.get("model_type") != InternVLXConfig.model_type:
        raise ValueError(
            f"{name_or_path} is a model of type {config.get('model_type')!r}, expected "
            f"{InternVLXConfig.model_type!r}. Convert it first: "
            f"internvlx convert {name_or_path} OUT {convert}".rstrip()
        )
    if (folder := Path(name_or_path)).is_dir():
        check_files(folder)
        weight_files(folder)
    return config


def load_processor(arguments: ModelArguments) -> InternVLXProcessor:
    """The checkpoint's processor, with the tiling of the settings. It is saved with the trained model."""
    processor = InternVLXProcessor.from_pretrained(
        arguments.model_name_or_path, revision=arguments.model_revision or "main"
    )
    processor.change_image_settings(**arguments.given)
    return processor


def load_model(arguments: ModelArguments) -> InternVLXForConditionalGeneration:
    """The checkpoint's model.

    Raises:
        ValueError: if the checkpoint lacks weights, the attention needs a package that is not installed, or a weight
            of the routers' loss is negative or given for a model without experts.
    """
    try:
        model, loading = InternVLXForConditionalGeneration.from_pretrained(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
            output_loading_info=True,
        )
    except ImportError as error:  # the attention needs a package
        raise ValueError(
            f"`attn_implementation` is {arguments.attn_implementation!r}: {error} 'sdpa' needs no package, and "
            "neither does 'varlen_sdpa', for packed rows."
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{arguments.model_name_or_path} lacks {len(missing)} weights, {missing[0]} first. Convert it again."
        )
    if arguments.router_aux_loss_coef is not None:
        _set_router_loss(model.config.text_config, arguments.router_aux_loss_coef)
    return model


def _set_router_loss(text_config: PretrainedConfig, weight: float) -> None:
    if not hasattr(text_config, "router_aux_loss_coef"):
        raise ValueError(
            f"`router_aux_loss_coef` is {weight}, but the language model {text_config.model_type!r} has no experts. "
            "Leave it unset."
        )
    if not weight >= 0:
        raise ValueError(f"`router_aux_loss_coef` is {weight}, expected 0 or more.")
    text_config.router_aux_loss_coef, text_config.output_router_logits = weight, weight > 0
