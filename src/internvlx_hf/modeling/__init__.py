"""The configuration and the models. This folder travels inside every checkpoint as its remote code."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_internvlx import InternVLXConfig, InternVLXLVTCConfig, InternVLXProjectorConfig
    from .modeling_internvlx import InternVLXForConditionalGeneration, InternVLXModel, InternVLXPreTrainedModel

__all__ = [
    "InternVLXConfig",
    "InternVLXForConditionalGeneration",
    "InternVLXLVTCConfig",
    "InternVLXModel",
    "InternVLXPreTrainedModel",
    "InternVLXProjectorConfig",
]


def __getattr__(name: str):
    """Import a class on first use: a configuration does not need the models."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file = "configuration_internvlx" if name.endswith("Config") else "modeling_internvlx"
    return getattr(import_module(f".{file}", __name__), name)
