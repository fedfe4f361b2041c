# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The plug-in's entry point. vLLM calls it in each of its processes, for any model."""

from ..modeling import engines

ARCHITECTURE = "InternVLXForConditionalGeneration"
OLDEST, NEWEST = (0, 31), (0, 32)  # minor versions, both tested


def register() -> None:
    """Register the model with vLLM. It can be called several times.

    Nothing is registered with an unsupported version of vLLM. vLLM's transformers backend then serves checkpoints without LVTC,
    and checkpoints with LVTC are refused.
    """
    from vllm import __version__

    reason = version_error(__version__)
    engines.set_plugin_error("vllm", reason)
    if reason is not None:
        return
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from .options import InternVLXOptions

    ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.model:InternVLXForVLLM")
    MODELS_CONFIG_MAP[ARCHITECTURE] = InternVLXOptions


def version_error(version: str) -> str | None:
    """The reason why a version of vLLM is not supported, or None if it is supported."""
    numbers = version.split("+")[0].split(".")[:2]
    if all(number.isdigit() for number in numbers) and OLDEST <= tuple(map(int, numbers)) <= NEWEST:
        return None
    oldest, newest = (".".join(map(str, minor)) for minor in (OLDEST, NEWEST))
    return f"internvlx-hf serves LVTC in vLLM {oldest}.0 to {newest}.x, and this is vLLM {version}"
