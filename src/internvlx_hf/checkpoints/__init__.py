# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint folders: finding, reading, checking and writing them."""
