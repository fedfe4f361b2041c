# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Transformers' OpenAI-compatible server, for one checkpoint and with restricted access to images."""

from .server import build_app

__all__ = ["build_app"]
