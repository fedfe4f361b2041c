# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A web page that shows the tiles of an image and their cost, and answers questions about the image."""

from .limits import Limits
from .server import serve

__all__ = ["Limits", "serve"]
