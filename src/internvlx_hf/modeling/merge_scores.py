# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The attention that the tokens of a prompt get from its last token in one layer, whatever kernel the model's
attention has.
"""

from copy import copy
from typing import Any

import torch
from torch import nn

from .layout import Layout
from .outputs import CACHE


class _KeysAndValues(Exception):
    """What a layer would store in a cache."""


class _OneRow:
    """A cache for a layer's attention: gives away its keys and values, or replaces them by those of all rows."""

    def __init__(self, stored: tuple[torch.Tensor, torch.Tensor] | None = None):
        self.stored = stored

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_, **__) -> tuple[torch.Tensor, torch.Tensor]:
        if self.stored is None:
            raise _KeysAndValues(keys, values)
        return self.stored


@torch.no_grad()
def last_token_scores(
    layer: Any, hidden_states: torch.Tensor, inputs: dict, layout: Layout, visible: torch.Tensor
) -> torch.Tensor:
    """(B, L), the attention that each row of (B, L, D) gets from the last token of its sample, the mean over the
    layer's heads.

    Args:
        inputs: `position_embeddings`, as the layer gets them.
        layout: the rows.
        visible: (B, L) bool, which of them are no padding.

    Raises:
        ValueError: if rows are packed, or the layer's attention does not show its weights.
    """
    if layout.numbers is not None or layout.bounds:
        raise ValueError(
            "`merge_rule`='fastv' needs one prompt per row, got packed samples. Pass a batch, or use 'mean'."
        )
    attention = _with_weights(layer.self_attn)
    rows, (cos, sin) = layer.input_layernorm(hidden_states), inputs["position_embeddings"]
    visible = visible.to(rows.device)
    last = (visible * torch.arange(1, visible.shape[1] + 1, device=visible.device)).argmax(1)[:, None, None]
    try:
        attention(rows, position_embeddings=(cos, sin), attention_mask=None, **{CACHE: _OneRow()})
        raise ValueError(f"`merge_rule`='fastv' cannot read the keys of {type(layer.self_attn).__name__}. Use 'mean'.")
    except _KeysAndValues as stored:
        keys_and_values = stored.args
    cos, sin = (each.expand(len(last), -1, -1).take_along_dim(last, dim=1) for each in (cos, sin))
    hidden = torch.zeros(visible.shape, dtype=rows.dtype, device=rows.device)
    hidden = hidden.masked_fill(~visible, torch.finfo(rows.dtype).min)[:, None, None]
    _, weights = attention(
        rows.take_along_dim(last, dim=1),
        position_embeddings=(cos, sin),
        attention_mask=hidden,
        **{CACHE: _OneRow(keys_and_values)},
    )
    if weights is None:
        raise ValueError(
            f"`merge_rule`='fastv' needs attention weights, which {type(layer.self_attn).__name__} does not give. Use "
            "'mean'."
        )
    return weights[:, :, 0].float().mean(1)


def _with_weights(attention: nn.Module) -> nn.Module:
    """A module with the same parameters that computes eager attention, without hooks. The given one is left as it
    is.
    """
    eager = copy(attention)
    config = copy(attention.config)
    config._attn_implementation = "eager"  # type: ignore[union-attr]
    eager.config, eager.training = config, False  # type: ignore[assignment]
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        setattr(eager, hooks, type(getattr(attention, hooks))())
    return eager
