# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The projectors by name: PVTC, InternVL2's own, and the others in the paper's Figure 7."""

from collections.abc import Sequence

from transformers import PretrainedConfig

from .ldpv2 import LDPv2Projector
from .linear_projector import LinearProjector
from .pixel_shuffle import PixelShuffleProjector
from .projector import Projector
from .pvtc import PVTCProjector
from .setting_checks import window_size
from .token_packer import TokenPackerProjector

_CLASSES: tuple[type[Projector], ...] = (
    PVTCProjector,
    PixelShuffleProjector,
    LinearProjector,
    TokenPackerProjector,
    LDPv2Projector,
)
PROJECTORS = {projector_class.projector_type: projector_class for projector_class in _CLASSES}


def build_projector(
    config: PretrainedConfig, projector_type: str, downsample_ratio: float, other_sides: Sequence[int] = ()
) -> Projector:
    """Build a projector: (B, 1 + S², C) features, CLS first -> (B, N², D), N = S · downsample_ratio.

    Args:
        other_sides: sides of further windows that it can be asked for, see [`projector.project`].
    """
    side = window_size(downsample_ratio, config.patch_grid, "downsample_ratio")
    projector = PROJECTORS[projector_type](config, side)
    if other_sides:
        projector.add_sizes(config, other_sides)
    return projector
