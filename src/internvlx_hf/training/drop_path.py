# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Stochastic depth in the vision tower, which transformers' InternViT lacks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel


class DropPath:
    """A forward hook that leaves out a residual branch (tiles, 1 + S², C) for a random share of the tiles, in training only.

    The branch is scaled behind it, layer by layer, which leaves zero as it is.
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
    """Leave out residual branches of the tower's layers in training: at 0 in the first one, rising evenly to `rate`.

    Nothing about the weights or what is saved changes.

    Args:
        model: with an InternViT as one of its modules, or wrapped around such a model.
        config: of the model.

    Raises:
        ValueError: the tower is another one.
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
