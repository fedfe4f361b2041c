# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Converting InternVL checkpoints (original, native or InternVL-X) to this package's layout and back, and building
models from a vision tower and a language model."""

from importlib import import_module
from typing import TYPE_CHECKING

from .options import ConversionOptions, InitOptions

if TYPE_CHECKING:
    from ..checkpoints.errors import CheckpointError
    from .convert import convert_checkpoint
    from .init import init_checkpoint
    from .report import ConversionReport
    from .templates import chat_template
    from .tokenizers import convert_tokenizer

# imported on first use: the options of a command need no torch
_FILES = {
    "CheckpointError": "..checkpoints.errors",
    "ConversionReport": ".report",
    "chat_template": ".templates",
    "convert_checkpoint": ".convert",
    "convert_tokenizer": ".tokenizers",
    "init_checkpoint": ".init",
}

__all__ = [
    "CheckpointError",
    "ConversionOptions",
    "ConversionReport",
    "InitOptions",
    "chat_template",
    "convert_checkpoint",
    "convert_tokenizer",
    "init_checkpoint",
]


def __getattr__(name: str):
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FILES[name], __name__), name)
