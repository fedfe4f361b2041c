# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What an image will cost: tokens, FLOPs and memory, from a model's configuration and the image's size, without
weights.

setup = load_setup("internvl-x-2b")  # a preset, or a checkpoint's folder
cost = CostModel(setup).of_size(640, 480)
"""

from .estimate import Cost, CostModel
from .images import find_images, parse_size, read_image_size
from .loading import load_setup
from .presets import PRESETS, preset, preset_tiling
from .setups import ModelSetup, side_by_side

__all__ = [
    "PRESETS",
    "Cost",
    "CostModel",
    "ModelSetup",
    "find_images",
    "load_setup",
    "parse_size",
    "preset",
    "preset_tiling",
    "read_image_size",
    "side_by_side",
]

# former names, which still import
Setting, load_setting, find_pictures, picture_size = ModelSetup, load_setup, find_images, read_image_size
