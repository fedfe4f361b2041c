# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Kinds of checkpoints and their dtypes, in a file that imports nothing."""

# model types of transformers' own InternVL, of this package, and of transformers' LLaVA
NATIVE, OURS, LLAVA = "internvl", "internvl_x", "llava"
# for computing and saving models
DTYPES = ("float32", "float16", "bfloat16")
