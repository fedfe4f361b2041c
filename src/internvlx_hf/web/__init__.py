# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A page that shows the tiles of an image and what they cost, and answers questions about it."""

from .limits import Limits
from .server import serve

__all__ = ["Limits", "serve"]
