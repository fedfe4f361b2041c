"""Turning images, videos and messages into a model's inputs. Every checkpoint contains this folder as its remote
code.
"""

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
    """Import a class on first use, so that the tiling rule can be imported without the processors."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)
