# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Saving a checkpoint and stopping between two steps on a signal."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

logger = logging.get_logger(__name__)

# a terminal that closes sends SIGHUP, which Windows does not have
SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class SaveOnSignal(TrainerCallback):
    """On SIGTERM, SIGHUP or Ctrl-C, finish the step, save a checkpoint and stop; on a second one, stop at once.

    The `Trainer`'s own `enable_jit_checkpoint` may save in the middle of a step, after its random numbers were drawn,
    so that a resumed run differs from an uninterrupted one. Here the two match.

    Signals that the process ignores, such as Ctrl-C in a script's background job, are still ignored.

    All processes stop after the step in which the first one received a signal.
    """

    def __init__(self):
        self.received: int | None = None
        self._handlers: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._receive) for number in handled}

    def on_step_end(self, args, state, control, **kwargs):
        if in_any_process(self.received is not None, args.device):
            self.received = self.received or signal.SIGTERM
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def _receive(self, number: int, frame) -> None:
        self.received = number
        self.restore()
        logger.warning(f"{signal.Signals(number).name}: saving a checkpoint after this step, then stopping.")

    def restore(self) -> None:
        """Give the signals their handlers from before the training."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def in_any_process(here: bool, device: torch.device) -> bool:
    """Whether `here` is true in any process."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return here
    flag = torch.tensor(int(here), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)
