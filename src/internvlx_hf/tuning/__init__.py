# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""How much a model can save on its user's images before its answers change: `internvlx tune`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .options import TuneOptions
    from .report import Row, TuneReport
    from .run import tune

__all__ = ["Row", "TuneOptions", "TuneReport", "tune"]

_FILES = {"Row": "report", "TuneOptions": "options", "TuneReport": "report", "tune": "run"}


def __getattr__(name: str):
    """Import a name on first use, so that a command's help does not import torch."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)
