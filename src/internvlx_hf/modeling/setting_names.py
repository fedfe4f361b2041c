# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Checks of the names in a configuration, and its errors. transformers itself accepts any name."""

from dataclasses import fields
from difflib import get_close_matches
from functools import lru_cache, wraps
from typing import TypeVar

from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import GenerationConfig, PretrainedConfig

Config = TypeVar("Config", bound=PretrainedConfig)

# difflib ratio above which a name counts as misspelt: `downsampling_ratio` has 0.882 with `downsample_ratio`, but the
# names of other models have less: `image_token` has 0.880 with `image_token_id`, `image_end_token_id` 0.875.
MISSPELT = 0.881
# names that this or the last major version of transformers adds to any configuration besides its fields and properties
TRANSFORMERS_NAMES = {
    "add_cross_attention",
    "attn_implementation",
    "auto_map",
    "cross_attention_hidden_size",
    "experts_implementation",
    "finetuning_task",
    "is_decoder",
    "per_layer_config",
    "prefix",
    "pruned_heads",
    "quantization_config",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_last_hidden_states",
    "tokenizer_class",
    "torchscript",
    "transformers_weights",
    "use_bfloat16",
}


@lru_cache
def _generation_names() -> set[str]:
    return {*GenerationConfig().to_dict(), *GenerationConfig._get_default_generation_params()}


def unknown_names(config_class: type[PretrainedConfig], names) -> list[str]:
    """The names that neither the class nor transformers knows. A leading underscore marks transformers' internals."""
    known = TRANSFORMERS_NAMES | _generation_names() | {field.name for field in fields(config_class)}
    return [name for name in names if not (name in known or name.startswith("_") or hasattr(PretrainedConfig, name))]


def _nearest(name: str, known, cutoff: float = 0.6) -> str | None:
    return next(iter(get_close_matches(name.lower(), known, 1, cutoff)), None)


def _own_names(config_class: type[PretrainedConfig]) -> list[str]:
    """The fields that the class adds to those of every configuration."""
    inherited = {field.name for field in fields(PretrainedConfig)}
    return [field.name for field in fields(config_class) if field.name not in inherited]


def refuse_unknown_names(config_class: type[PretrainedConfig], names) -> None:
    for name in unknown_names(config_class, names):
        _refuse_property(config_class, name)
        known = _own_names(config_class)
        nearest = _nearest(name, known)
        raise ValueError(
            f"Unknown setting {name!r} in `{config_class.base_config_key}`. "
            + (f"Did you mean `{nearest}`?" if nearest else f"Known settings: {', '.join(known)}.")
        )


def misspelt_names(config_class: type[PretrainedConfig], names) -> dict[str, str | None]:
    """Names that are a near miss of a field, with that field; and names of properties, with None."""
    near = {name: _nearest(name, _own_names(config_class), MISSPELT) for name in unknown_names(config_class, names)}
    return {name: field for name, field in near.items() if field is not None or _is_property(config_class, name)}


def refuse_misspelt_names(config_class: type[PretrainedConfig], names) -> None:
    for name, nearest in misspelt_names(config_class, names).items():
        _refuse_property(config_class, name)
        raise ValueError(f"Unknown setting {name!r} in the configuration. Did you mean `{nearest}`?")


def _is_property(config_class: type[PretrainedConfig], name: str) -> bool:
    return isinstance(getattr(config_class, name, None), property)


def _refuse_property(config_class: type[PretrainedConfig], name: str) -> None:
    if _is_property(config_class, name):
        raise ValueError(f"{name!r} cannot be set: it is computed from other settings.")


def with_value_errors(config_class: type[Config]) -> type[Config]:
    """Turn the errors of a strict dataclass into a `ValueError` that names the field, the value and what would be
    right.
    """
    strict_setattr, strict_validate = config_class.__setattr__, config_class.validate  # type: ignore[attr-defined]
    types = {field.name: field.type for field in fields(config_class)}

    def __setattr__(self, name, value):
        try:
            strict_setattr(self, name, value)
        except StrictDataclassFieldValidationError as error:
            expected = getattr(types[name], "__name__", None) if isinstance(types[name], type) else str(types[name])
            raise ValueError(f"`{name}` must be {expected}, got {value!r}, in {config_class.__name__}.") from error

    @wraps(strict_validate)
    def validate(self):
        try:
            strict_validate(self)
        except StrictDataclassClassValidationError as error:
            raise ValueError(f"{config_class.__name__}: {error.__cause__}") from error

    config_class.__setattr__ = __setattr__  # type: ignore[method-assign]
    config_class.validate = validate  # type: ignore[attr-defined]
    return config_class
