# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The base class of projectors, and building blocks that they share.

`config` is always an `InternVLXConfig`. That class imports the projectors' files for its checks, so imports that load
transformers' models stand inside functions.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from .setting_checks import require


class Projector(nn.Module):
    """Turns a tile's features into tokens: (B, 1 + S², C), CLS first -> (B, N², D) in raster order, N = S / M.

    To add a type, write a file with its class and add the class to the list in `projectors`. Modules are initialised
    by their `reset_parameters`: torch's layers have one, and a module with its own parameters needs one.

    Attributes:
        projector_type: name in configurations.
        zero_parameters: patterns of the parameters that must be zero for the projector's output to be zero.
        is_whole: whether device maps and FSDP must not split it.
        takes_layers: whether its second argument is the patches of `projector_config.token_packer_layers`.
        shares_sizes: whether `forward` takes the window's side as its last argument, since sizes share parameters.
        is_recomputed: whether gradient checkpointing recomputes it as a whole; False if its layers are
            `GradientCheckpointingLayer`s.
        gradient_checkpointing: set by the model's `gradient_checkpointing_enable`.
        sizes: what belongs to other window sides, by side: a projector each, unless sizes share parameters. In a
            study, sharing made no difference (digits read: 39.4 and 40.9 %), so only PVTC, the largest, does.
    """

    projector_type: ClassVar[str]
    zero_parameters: ClassVar[tuple[str, ...]]
    is_whole: ClassVar[bool] = False
    takes_layers: ClassVar[bool] = False
    shares_sizes: ClassVar[bool] = False
    is_recomputed: ClassVar[bool] = True
    gradient_checkpointing = False

    def add_sizes(self, config: PretrainedConfig, sides: Sequence[int]) -> None:
        """Make it a projector for windows of these sides, too."""
        self.sizes = nn.ModuleDict({str(side): type(self)(config, side) for side in sides})

    @classmethod
    def check_config(cls, config: PretrainedConfig, side: int) -> None:
        """Check that the configuration fits this type with windows of `side`² patches.

        Raises:
            ValueError: if it does not; the message names the value and what would fit.
        """

    @classmethod
    def peak_bytes(cls, config: PretrainedConfig, side: int, element_size: int) -> int:
        """Estimated peak memory in bytes that the projector needs per tile, including its tokens."""
        raise NotImplementedError(f"{cls.__name__} lacks `peak_bytes`.")

    @classmethod
    def part_of_type(cls, config: PretrainedConfig, projector_type: str) -> str | None:
        """Name of the submodule that is a projector of this type, "" if the whole projector is, None if none is."""
        return "" if projector_type == cls.projector_type else None


def project(
    projector: nn.Module, features: torch.Tensor, layers: Sequence[torch.Tensor], side: int | None = None
) -> torch.Tensor:
    """A projector's tokens.

    Args:
        layers: the patches of other layers, (B, S², C) each, for projectors that take them.
        side: M of the windows (default: the projector's own).
    """
    sizes = getattr(projector, "sizes", {})
    is_other, takes_side = str(side) in sizes, getattr(projector, "shares_sizes", False)
    if is_other and not takes_side:
        projector = sizes[str(side)]
    inputs: tuple = (features, layers) if getattr(projector, "takes_layers", False) else (features,)
    if is_other and takes_side:
        inputs = (*inputs, side)
    is_recomputed = getattr(projector, "gradient_checkpointing", False) and getattr(projector, "is_recomputed", False)
    if is_recomputed and projector.training and torch.is_grad_enabled():
        # never reentrant: with a frozen vision tower, reentrant checkpointing computes no gradients
        return checkpoint(projector, *inputs, use_reentrant=False)
    return projector(*inputs)


def project_tiles(
    projector: nn.Module,
    features: torch.Tensor,
    layers: Sequence[torch.Tensor],
    sides: Sequence[int | None],
    others: Mapping[Any, nn.Module] = MappingProxyType({}),
) -> torch.Tensor | list[torch.Tensor]:
    """The tokens of every tile with windows of its own side, None for no tokens.

    Args:
        layers: see [`project`].
        others: projectors that take the place of `projector` for windows of some sides.

    Returns:
        (tiles, N², D) if all have one side, else a list of (N², D), with N = 0 where there are none.
    """
    if len(set(sides)) == 1:
        return project(others.get(sides[0], projector), features, layers, sides[0])
    found: dict[int, torch.Tensor] = {}
    for side in dict.fromkeys(side for side in sides if side is not None):
        index = [tile for tile, own in enumerate(sides) if own == side]
        tokens = project(others.get(side, projector), features[index], [layer[index] for layer in layers], side)
        found |= dict(zip(index, tokens, strict=True))
    none = next(iter(found.values()))[:0]
    return [found.get(tile, none) for tile in range(len(sides))]


def recomputed(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """`function(*inputs)`, which keeps only its inputs for the backward pass and recomputes the rest there.

    For large and cheap intermediate values. The function must not draw random numbers.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def tile_counts(config: PretrainedConfig, side: int) -> tuple[int, int]:
    """S² patches and N² tokens per tile for windows of `side`² patches."""
    patches = config.patch_grid**2
    return patches, patches // side**2


def require_heads(num_heads: int, projector_type: str, width: int) -> None:
    require(
        width % num_heads == 0,
        f"`projector_config.num_heads`={num_heads} does not divide the width {width} of {projector_type!r}.",
    )


def activation(config: PretrainedConfig) -> nn.Module:
    from transformers.activations import ACT2FN

    return ACT2FN[config.projector_config.hidden_act]


class MLP(nn.Module):
    """Linear, GELU, linear: (..., in_features) -> (..., out_features)."""

    def __init__(self, config: PretrainedConfig, in_features: int, out_features: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.act = activation(config)
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(hidden_states)))
