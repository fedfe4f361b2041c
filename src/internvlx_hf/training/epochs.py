# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The epoch, told to the sampler of a resumed training."""

from transformers import TrainerCallback


class TellSamplerEpoch(TrainerCallback):
    """Sets the epoch of the sampler that orders the training data, however deep accelerate has wrapped it.

    Where several processes resume in the middle of an epoch, the `Trainer` reaches the wrappers only, and the rest of the
    epoch would come in the first one's order.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs) -> None:
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while (inner := getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)) is not None:
            sampler = inner
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(state.epoch or 0))
