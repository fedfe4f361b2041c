# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`python -m internvlx_hf COMMAND` is the same as `internvlx COMMAND`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
