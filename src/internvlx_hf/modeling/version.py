# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The package's version. It is here because a checkpoint's own code, which saves configurations too, has no package."""

VERSION = "0.2.0"
