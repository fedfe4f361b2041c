# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Registers the classes of InternVL-X with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

# `transformers.AutoImageProcessor` itself asks for torchvision before 5.18
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .modeling import InternVLXConfig, InternVLXForConditionalGeneration
from .processing import InternVLXImageProcessor, InternVLXProcessor

AutoConfig.register(InternVLXConfig.model_type, InternVLXConfig, exist_ok=True)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM):
    auto_class.register(InternVLXConfig, InternVLXForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(InternVLXConfig, image_processor_classes={"pil": InternVLXImageProcessor}, exist_ok=True)
AutoProcessor.register(InternVLXConfig, InternVLXProcessor, exist_ok=True)
