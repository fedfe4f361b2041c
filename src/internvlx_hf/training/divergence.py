# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Noticing that a training has diverged, alike in all processes."""

import torch
from torch import nn
from transformers import Trainer

from .signals import in_any_process

# float16's gradients may overflow in the first steps, but no loss does
MOST_STEPS = 3


class DivergedError(ValueError):
    """The loss or the model is no longer finite."""


class DivergenceCheck:
    """Counts the steps in a row whose loss is not finite."""

    def __init__(self):
        self.steps = 0
        self._is_finite: torch.Tensor | bool = True  # on the device until the step ends

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of one of the step's batches."""
        self._is_finite = loss.detach().isfinite().all() & self._is_finite

    def end_step(self, trainer: Trainer) -> None:
        """Raises: DivergedError: in the third step in a row, before the optimizer's."""
        is_damaged = in_any_process(not self._is_finite, trainer.args.device)
        self.steps, self._is_finite = self.steps + 1 if is_damaged else 0, True
        if self.steps == MOST_STEPS:
            last, rate = trainer.state.global_step + 1, max(group["lr"] for group in trainer.optimizer.param_groups)  # type: ignore[union-attr]
            raise DivergedError(
                f"The training has diverged: the loss was NaN or infinite in steps {last - MOST_STEPS + 1} to {last}, "
                f"at a learning rate of {rate:.3g}. The model was not saved. Lower the learning rate, or resume from "
                "an earlier checkpoint with other data or settings."
            )


def damaged_parameters(trainer: Trainer) -> str:
    """The number of trained parameters that are not finite and the first one's name; "" if all are finite."""
    trained = {name: each for name, each in trainer.model.named_parameters() if each.requires_grad}  # type: ignore[union-attr]
    names = [name for name, parameter in trained.items() if not _is_finite(parameter)]
    # only a sharded model differs between processes, and only there all of them save
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if is_sharded and in_any_process(bool(names), trainer.args.device) and not names:
        return "parameters in other processes"
    return f"{len(names)} of {len(trained)} trained parameters ({names[0]} first)" if names else ""


def _is_finite(parameter: nn.Parameter) -> bool:
    """Whether this process's share of a parameter is finite, in ZeRO-3 and FSDP too."""
    tensor = getattr(parameter, "ds_tensor", parameter).detach()
    tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
