"""InternVL-X (arXiv 2503.21307) for Hugging Face Transformers. Importing it registers the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

# `transformers.AutoImageProcessor` itself asks for torchvision before 5.18
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .modeling import (
    InternVLXConfig,
    InternVLXForConditionalGeneration,
    InternVLXLVTCConfig,
    InternVLXModel,
    InternVLXProjectorConfig,
)
from .modeling.configuration_internvlx import VERSION
from .processing import InternVLXImageProcessor, InternVLXProcessor

__version__ = VERSION

AutoConfig.register(InternVLXConfig.model_type, InternVLXConfig, exist_ok=True)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM):
    auto_class.register(InternVLXConfig, InternVLXForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(InternVLXConfig, image_processor_classes={"pil": InternVLXImageProcessor}, exist_ok=True)
AutoProcessor.register(InternVLXConfig, InternVLXProcessor, exist_ok=True)

__all__ = [
    "InternVLXConfig",
    "InternVLXForConditionalGeneration",
    "InternVLXImageProcessor",
    "InternVLXLVTCConfig",
    "InternVLXModel",
    "InternVLXProcessor",
    "InternVLXProjectorConfig",
]
