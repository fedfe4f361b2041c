# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Truncated samples: a warning at the first one, and their number after training."""

import torch
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from .run_data import RunData

logger = logging.get_logger(__name__)


class TruncationCallback(TrainerCallback):
    """Warns when the first samples have been truncated. (Of measured data, the summary before training has their
    number.)

    Args:
        data: the data of the run.
    """

    def __init__(self, data: RunData):
        self.data = data
        self._unwarned = {"evaluation": data.evaluation}
        if data.sizes is None:
            self._unwarned["training"] = data.train

    def on_step_end(self, args, state, control, **kwargs):
        self._warn(state, "training")

    def on_evaluate(self, args, state, control, **kwargs):
        self._warn(state, "evaluation")

    def _warn(self, state, use: str) -> None:
        if state.is_world_process_zero and _truncated(self._unwarned.get(use)):
            del self._unwarned[use]
            logger.warning(
                f"Samples for {use} are truncated to max_length={self.data.settings['max_length']}; their number is "
                "reported after training. Raise `max_length`, or set `on_too_long` to skip or error."
            )


def evaluate(trainer: Trainer, data: RunData) -> tuple[dict[str, float], dict[str, int]]:
    """Evaluate at the end of training, and count the truncated samples of all processes.

    Returns:
        The metrics, empty without evaluation data; and the numbers above 0, for "training" (of the samples if they
        were measured, otherwise of those that were read) and for "evaluation".
    """
    in_training, before = _truncated(data.train), _truncated(data.evaluation)
    metrics = {} if data.evaluation is None else trainer.evaluate()
    own = torch.tensor([in_training, _truncated(data.evaluation) - before], device=trainer.args.device)
    counts = dict(zip(("training", "evaluation"), trainer.accelerator.reduce(own).tolist(), strict=True))
    if data.sizes is not None and data.sizes.cut is not None:
        counts["training"] = int(data.sizes.cut.sum())
    return metrics, {use: count for use, count in counts.items() if count}


def _truncated(data) -> int:
    return 0 if data is None else data.counts["cut"]
