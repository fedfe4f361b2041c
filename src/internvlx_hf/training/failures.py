# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Saving the steps of a training that fails."""

import time
from pathlib import Path

from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)

# marks a checkpoint that was saved after a failure, and holds its message
FAILURE = "failure.txt"


class LastWholeStep(TrainerCallback):
    """Knows the last step that was trained, and whether the optimizer is in the middle of another.

    Attributes:
        step: the last step; None before the first one and while the optimizer changes the model.
        is_common: whether all processes have failed after the same step.
    """

    def __init__(self):
        self.step: int | None = None
        self.is_common = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.step, self.is_common = None, args.world_size == 1

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.step = None

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step


def save_after_failure(trainer: Trainer, error: Exception) -> None:
    """Save a checkpoint of the last step, unless there is one, and mark it; a failure to save is logged."""
    step, watch = trainer.state.global_step, trainer.last_whole_step  # type: ignore[attr-defined]
    folder = Path(trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"  # type: ignore[arg-type]
    if watch.step != step or not watch.is_common or (folder / TRAINER_STATE_NAME).exists():
        return
    try:
        trainer._save_checkpoint(trainer.model, trial=None)  # type: ignore[arg-type]
        if trainer.args.should_save:
            text = f"{time.strftime('%F %T')}, after step {step}: {type(error).__name__}: {error}\n"
            (folder / FAILURE).write_text(text, encoding="utf-8")
            logger.warning(
                f"The training has failed after step {step}. {folder} was saved; resume with --resume_from_checkpoint "
                "last."
            )
    except Exception as another:
        logger.warning(f"The training has failed, and {folder} could not be saved: {another}")
    trainer.accelerator.wait_for_everyone()  # a launcher stops all processes when the first one ends
