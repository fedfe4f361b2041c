from .image_files import ImageAccess
from .image_processing_internvlx import InternVLXImageProcessor
from .processing_internvlx import InternVLXProcessor

__all__ = ["ImageAccess", "InternVLXImageProcessor", "InternVLXProcessor"]
