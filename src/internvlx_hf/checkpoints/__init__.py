# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint folders: `folders` finds them, `json_files` and `weights` read and check them, `atomic_folder` writes
them.
"""
