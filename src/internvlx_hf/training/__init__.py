# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Training InternVL-X with the HF `Trainer`."""

from .collator import InternVLXDataCollator

__all__ = ["InternVLXDataCollator"]
