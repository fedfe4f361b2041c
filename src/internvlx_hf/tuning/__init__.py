# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""How much a model can save on its user's images before its answers change: `internvlx tune`."""

from .options import TuneOptions
from .report import Row, TuneReport
from .run import tune

__all__ = ["Row", "TuneOptions", "TuneReport", "tune"]
