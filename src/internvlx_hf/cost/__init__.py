# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a picture costs before it is run: tokens, FLOPs and memory, from a configuration and a size. Needs no weights.

setting = load_setting("internvl-x-2b")  # a preset, or a checkpoint's folder
cost = CostModel(setting).of_size(640, 480)
"""

from .estimate import Cost, CostModel
from .images import find_pictures, parse_size, picture_size
from .loading import load_setting
from .presets import PRESETS, preset, preset_tiling
from .settings import Setting, side_by_side

__all__ = [
    "PRESETS",
    "Cost",
    "CostModel",
    "Setting",
    "find_pictures",
    "load_setting",
    "parse_size",
    "picture_size",
    "preset",
    "preset_tiling",
    "side_by_side",
]
