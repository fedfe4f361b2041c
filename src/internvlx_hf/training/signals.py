# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Stopping between two steps when the process is asked to end."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

logger = logging.get_logger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SaveOnSignal(TrainerCallback):
    """On SIGTERM or Ctrl-C, finish the step, save a checkpoint and stop; on a second one, stop at once.

    The `Trainer`'s own `enable_jit_checkpoint` may save in the middle of a step, after its random numbers were drawn: what
    resumes from there is another training. Here a resumed training is the uninterrupted one.

    A signal that the process ignores, as a script's background jobs do Ctrl-C, it goes on ignoring.

    With several processes all of them stop after the step in which the first was asked to.
    """

    def __init__(self):
        self.received: int | None = None
        self._handlers: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._receive) for number in heard}

    def on_step_end(self, args, state, control, **kwargs):
        if _anywhere(self.received is not None, args.device):
            self.received = self.received or signal.SIGTERM
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self._restore()

    def _receive(self, number: int, frame) -> None:
        self.received = number
        self._restore()
        logger.warning(f"{signal.Signals(number).name}: a checkpoint is saved after this step, then training stops.")

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _anywhere(here: bool, device: torch.device) -> bool:
    """Whether it is so in any process."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return here
    flag = torch.tensor(int(here), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)
