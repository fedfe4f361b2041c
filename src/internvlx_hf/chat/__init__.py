# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Asking a model about images: a conversation in a terminal, or one question about many images."""

from .answers import answer_images, list_files
from .loading import Choice, load_answerer
from .session import Session, Turn

__all__ = ["Choice", "Session", "Turn", "answer_images", "list_files", "load_answerer"]
