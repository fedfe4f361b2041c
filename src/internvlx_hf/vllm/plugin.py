# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The plug-in's entry point. vLLM calls it in each of its processes, for any model."""

from ..modeling import engines

ARCHITECTURE = "InternVLXForConditionalGeneration"
# Minor versions. The oldest one and TESTED run in the tests. NEWEST was compared with TESTED by `make check-vllm`.
OLDEST, TESTED, NEWEST = (0, 31), (0, 32), (0, 33)


def register() -> None:
    """Register the model with vLLM. It can be called several times.

    Nothing is registered with an unsupported version of vLLM. vLLM's transformers backend then serves checkpoints
    without LVTC, and checkpoints with LVTC are refused. A version that did not run in the tests gets a warning.
    """
    from vllm import __version__

    reason = version_error(__version__)
    engines.set_plugin_error("vllm", reason)
    if reason is not None:
        return
    from vllm.logger import init_logger
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from .options import InternVLXOptions

    if warning := version_warning(__version__):
        init_logger(f"vllm.{__name__}").warning_once(warning)  # vLLM shows the loggers below its own
    ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.model:InternVLXForVLLM")
    MODELS_CONFIG_MAP[ARCHITECTURE] = InternVLXOptions


def version_error(version: str) -> str | None:
    """The reason why a version of vLLM is not supported, or None if it is supported."""
    if OLDEST <= _minor(version) <= NEWEST:
        return None
    return f"internvlx-hf serves LVTC in vLLM {_name(OLDEST)}.0 to {_name(NEWEST)}.x, and this is vLLM {version}"


def version_warning(version: str) -> str | None:
    """What to know about a supported version of vLLM that did not run in the tests, or None if it did."""
    if _minor(version) <= TESTED:
        return None
    return (
        f"internvlx-hf was tested with vLLM {_name(OLDEST)}.0 to {_name(TESTED)}.x, and this is vLLM {version}. All "
        "that it uses of vLLM has the same signatures there, but some of the code behind them changed: compare a few "
        "answers with those of `internvlx serve`."
    )


def _minor(version: str) -> tuple[int, ...]:
    """(0, 33) of 0.33.1+cpu; () if it is not a release."""
    numbers = version.split("+")[0].split(".")[:2]
    return tuple(map(int, numbers)) if all(number.isdigit() for number in numbers) else ()


def _name(minor: tuple[int, ...]) -> str:
    return ".".join(map(str, minor))
