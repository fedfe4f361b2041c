# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Training InternVL-X with the HF `Trainer`."""

from importlib import import_module
from typing import TYPE_CHECKING

from ..data import (
    CostGroupedSampler,
    InternVLXDataCollator,
    PackedData,
    PackedStream,
    StreamingTrainingData,
    TrainingData,
    measure_sizes,
)

if TYPE_CHECKING:
    from ..data import load_training_data
    from .merge import merge_adapter
    from .metrics import ThroughputCallback

# imported on first use: they need packages that only the extra `train` installs
_LAZY = {"ThroughputCallback": ".metrics", "load_training_data": "..data", "merge_adapter": ".merge"}

__all__ = [
    "CostGroupedSampler",
    "InternVLXDataCollator",
    "PackedData",
    "PackedStream",
    "StreamingTrainingData",
    "ThroughputCallback",
    "TrainingData",
    "load_training_data",
    "measure_sizes",
    "merge_adapter",
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
