"""The configuration and the models. This folder travels inside every checkpoint as its remote code."""

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
