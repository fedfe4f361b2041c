# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The package's version. It is in this folder because the code that a checkpoint carries needs it too."""

VERSION = "0.2.0"
# minor versions, the oldest and the newest
TESTED_TRANSFORMERS = (5, 16), (5, 23)
