# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What the two stages ask of the `Trainer` beyond what it does: learning rates by module, a frozen tower, cheap evaluation."""

import torch
from torch import nn
from transformers import Trainer

from .parameters import set_learning_rates


class InternVLXTrainer(Trainer):
    """A `Trainer` for [`InternVLXTrainingArguments`]; a plain one with the collator trains the same model."""

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            super().create_optimizer(model)
            if self.args.learning_rates:
                set_learning_rates(self.optimizer, self.model if model is None else model, self.args.learning_rates)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As the `Trainer`'s; a frozen vision tower drops nothing out, an evaluation forms the logits of its loss only."""
        if model.training:
            if (tower := frozen_tower(self.model)) is not None:
                tower.eval()
        elif self.args.prediction_loss_only:
            inputs = {**inputs, "logits_to_keep": 1}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def frozen_tower(model: nn.Module) -> nn.Module | None:
    """The vision tower, if nothing in it is trained."""
    tower = next((module for name, module in model.named_modules() if name.endswith("model.vision_tower")), None)
    if tower is None or any(parameter.requires_grad for parameter in tower.parameters()):
        return None
    return tower
