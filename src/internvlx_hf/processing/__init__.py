from .image_processing_internvlx import InternVLXImageProcessor
from .processing_internvlx import InternVLXProcessor

__all__ = ["InternVLXImageProcessor", "InternVLXProcessor"]
