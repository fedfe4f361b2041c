# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Variants of a model's configuration: unchanged, without LVTC, with LVTC, and as in InternVL2 and 2.5."""

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..modeling import InternVLXConfig

VARIANTS = ("own", "LVTC off", "LVTC on", "native")


def vary(config: "InternVLXConfig", variant: str) -> "InternVLXConfig":
    """One of `VARIANTS`. LVTC is the model's own, or else the default, as a conversion adds it; native is pixel
    shuffle by 2.

    Raises:
        ValueError: if the variant does not fit the model.
    """
    from ..modeling.setting_checks import compressing_window

    config = copy.deepcopy(config)
    if variant != "own":  # of the default size
        config.tokens_per_tile = config.merge_layer = None
    if variant in ("LVTC off", "native"):
        config.lvtc_config = None
    elif variant == "LVTC on" and config.lvtc_config is None:
        config.lvtc_config = {}
        if config.projector_config.projector_type == "linear":
            config.lvtc_config = {"hr_projector_type": "linear", "lr_projector_type": "linear"}
            if config.downsample_ratio == 1:
                config.downsample_ratio = 1 / compressing_window(config.patch_grid)
    if variant == "native":
        config.downsample_ratio, config.projector_config = 0.5, {"projector_type": "pixel_shuffle"}
    config.check_geometry()
    return config
