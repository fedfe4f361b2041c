# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Training InternVL-X with the HF `Trainer`."""

from importlib import import_module

from .collator import InternVLXDataCollator

# imported when they are asked for: some need what only the extra `train` installs
_LAZY = {
    "CostGroupedSampler": "sampler",
    "PackedData": "packing",
    "PackedStream": "packing",
    "StreamingTrainingData": "datasets",
    "ThroughputCallback": "metrics",
    "TrainingData": "datasets",
    "load_training_data": "sources",
    "measure_sizes": "costs",
    "merge_adapter": "merge",
}

__all__ = ["InternVLXDataCollator", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
