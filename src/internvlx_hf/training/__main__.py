# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`accelerate launch -m internvlx_hf.training CONFIG.yaml` runs `internvlx train CONFIG.yaml` in every process."""

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
