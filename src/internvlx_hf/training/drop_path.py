# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Stochastic depth in the vision tower, which transformers' InternViT does not have."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel


class DropPath:
    """A forward hook that drops a residual branch (tiles, 1 + S², C) for a random share of the tiles, in training
    only.

    The layer scale after the branch does not change a zero.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):
            return self._drop(output[0]), *output[1:]
        return self._drop(output)

    def _drop(self, branch: torch.Tensor) -> torch.Tensor:
        return branch * F.dropout(branch.new_ones(len(branch), 1, 1), self.rate)


def add_drop_path(model: nn.Module, config: PreTrainedConfig, rate: float) -> None:
    """Drop residual branches of the tower's layers in training, with a rate that rises linearly from 0 to `rate`.

    Weights and saved files do not change.

    Args:
        model: a model with an InternViT among its modules.
        config: the model's configuration.
        rate: rate of the last layer.

    Raises:
        ValueError: if the vision tower is not an InternViT.
    """
    tower = next((module for module in model.modules() if isinstance(module, InternVLVisionModel)), None)
    if tower is None:
        raise ValueError(
            f"`vision_drop_path_rate` is {rate}, but the vision tower is of type {config.vision_config.model_type!r}: "  # type: ignore[attr-defined]
            "expected 'internvl_vision', or a rate of 0."
        )
    layers = tower.encoder.layer
    for layer, layer_rate in zip(layers, torch.linspace(0, rate, len(layers)).tolist(), strict=True):
        for name in ("attention", "mlp"):
            layer.get_submodule(name).register_forward_hook(DropPath(layer_rate))
