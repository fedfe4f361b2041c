# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Training InternVL-X with the HF `Trainer`."""

from importlib import import_module

from ..data.collator import InternVLXDataCollator

# imported when they are asked for: some need what only the extra `train` installs
_LAZY = {
    "CostGroupedSampler": "..data.sampler",
    "PackedData": "..data.packing",
    "PackedStream": "..data.packing",
    "StreamingTrainingData": "..data.datasets",
    "ThroughputCallback": ".metrics",
    "TrainingData": "..data.datasets",
    "load_training_data": "..data.sources",
    "measure_sizes": "..data.costs",
    "merge_adapter": ".merge",
}

__all__ = ["InternVLXDataCollator", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
