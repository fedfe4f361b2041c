"""Images, videos and messages -> a model's inputs. This folder travels inside every checkpoint as its remote code."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .image_files import ImageAccess
    from .image_processing_internvlx import InternVLXImageProcessor
    from .processing_internvlx import InternVLXProcessor
    from .video_processing_internvlx import InternVLXVideoProcessor

__all__ = ["ImageAccess", "InternVLXImageProcessor", "InternVLXProcessor", "InternVLXVideoProcessor"]

_FILES = {
    "ImageAccess": "image_files",
    "InternVLXImageProcessor": "image_processing_internvlx",
    "InternVLXProcessor": "processing_internvlx",
    "InternVLXVideoProcessor": "video_processing_internvlx",
}


def __getattr__(name: str):
    """Import a class when it is asked for: how an image is cut is known without."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)
