# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Configurations of a model as it is, without and with LVTC, and as InternVL2 and 2.5 have it."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..modeling import InternVLXConfig, InternVLXLVTCConfig


def with_lvtc(config: "InternVLXConfig", lvtc: "InternVLXLVTCConfig | None") -> "InternVLXConfig":
    """The configuration with these settings of LVTC, or without it.

    Raises:
        ValueError: LVTC does not fit the model.
    """
    config = copy.deepcopy(config)
    config.lvtc_config = copy.deepcopy(lvtc)
    config.check_geometry()
    return config


def without_lvtc(config: "InternVLXConfig") -> "InternVLXConfig":
    return with_lvtc(config, None)


def with_own_or_default_lvtc(config: "InternVLXConfig") -> "InternVLXConfig":
    from ..modeling.configuration_internvlx import InternVLXLVTCConfig

    return with_lvtc(config, config.lvtc_config or InternVLXLVTCConfig())


def native_config(config: "InternVLXConfig") -> "InternVLXConfig":
    """Pixel shuffle by 2, no LVTC.

    Raises:
        ValueError: that does not fit the model.
    """
    from ..modeling.configuration_internvlx import InternVLXProjectorConfig

    config = copy.deepcopy(config)
    config.lvtc_config, config.downsample_ratio = None, 0.5
    config.projector_config = InternVLXProjectorConfig(projector_type="pixel_shuffle")
    config.check_geometry()
    return config


VARIANTS: dict[str, Callable[["InternVLXConfig"], "InternVLXConfig"]] = {
    "own": copy.deepcopy,
    "LVTC off": without_lvtc,
    "LVTC on": with_own_or_default_lvtc,
    "native": native_config,
}
