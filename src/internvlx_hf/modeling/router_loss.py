# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The load-balancing loss of a mixture of experts: transformers' own, over the rows that stand for tokens.

With LVTC, every layer counts the rows that it routes: N₁² of a tile in stage one, N₂² in stage two, no padding in
either.
"""

from bisect import bisect

import torch
from torch import nn
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func
from transformers.utils import ModelOutput

from .configuration_internvlx import InternVLXConfig
from .lvtc_layout import Plan


def balancing_loss(
    config: InternVLXConfig,
    layers: nn.ModuleList,
    outputs: ModelOutput,
    attention_mask: torch.Tensor | None,
    plan: Plan | None,
) -> torch.Tensor:
    """The load-balancing loss of a forward.

    Args:
        layers: the language model's layers, of which some have experts.
        outputs: the language model's; `router_logits` are a tensor (rows, experts) for each of these layers.
        attention_mask: (B, seen + L), 1 for tokens and 0 for padding. Any other mask counts all rows.
        plan: that of a model whose tiles change between layers.

    Raises:
        ValueError: if reentrant gradient checkpointing cuts the router's logits off.
    """
    hidden_states, router_logits = outputs["last_hidden_state"], outputs["router_logits"]
    if hidden_states.requires_grad and not router_logits[-1].requires_grad:
        raise ValueError(
            "The load-balancing loss (`output_router_logits`) has no gradient with reentrant gradient checkpointing. "
            "Set `gradient_checkpointing_kwargs={'use_reentrant': False}`."
        )
    visible = None
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        visible = attention_mask[:, -hidden_states.shape[1] :]
    text = config.text_config
    stages = [None if visible is None else visible.flatten().nonzero().squeeze(1)]
    stages += [row_map.is_token.flatten().nonzero().squeeze(1) for row_map in plan.row_maps] if plan else []
    counted = []
    routed = [index for index, layer in enumerate(layers) if hasattr(layer.mlp, "experts")]
    for index, logits in zip(routed, router_logits, strict=True):
        rows = stages[bisect(config.boundaries, index) if len(stages) > 1 else 0]
        counted.append(logits if rows is None else logits[rows.to(logits.device)])
    return load_balancing_loss_func(tuple(counted), text.num_experts, text.num_experts_per_tok)  # type: ignore
