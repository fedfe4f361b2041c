# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A model's configuration as it is, without and with LVTC, and as InternVL2 and 2.5 have it."""

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..modeling import InternVLXConfig

VARIANTS = ("own", "LVTC off", "LVTC on", "native")


def vary(config: "InternVLXConfig", variant: str) -> "InternVLXConfig":
    """One of `VARIANTS`. LVTC is the model's own, or the default one where it has none; native is pixel shuffle by 2.

    Raises:
        ValueError: the variant does not fit the model.
    """
    config = copy.deepcopy(config)
    if variant in ("LVTC off", "native"):
        config.lvtc_config = None
    elif variant == "LVTC on" and config.lvtc_config is None:
        config.lvtc_config = {}
    if variant == "native":
        config.downsample_ratio, config.projector_config = 0.5, {"projector_type": "pixel_shuffle"}
    config.check_geometry()
    return config
