# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Training data: records, conversations, encoding, packing, sampling, collation."""

from typing import TYPE_CHECKING

from .collator import InternVLXDataCollator
from .conversations import sample_from_record
from .datasets import StreamingTrainingData, TrainingData
from .encoding import SampleEncoder, TrainingSample
from .packing import PackedData, PackedStream
from .sampler import CostGroupedSampler
from .samples import BrokenSampleError
from .sizes import measure_sizes

if TYPE_CHECKING:
    from .sources import load_training_data

__all__ = [
    "BrokenSampleError",
    "CostGroupedSampler",
    "InternVLXDataCollator",
    "PackedData",
    "PackedStream",
    "SampleEncoder",
    "StreamingTrainingData",
    "TrainingData",
    "TrainingSample",
    "load_training_data",
    "measure_sizes",
    "sample_from_record",
]


def __getattr__(name: str):
    if name == "load_training_data":  # `datasets` comes with the extra `train`
        from .sources import load_training_data

        return load_training_data
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
