# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The former spelling of [`internvlx_hf.quantization`], for older imports."""

from .quantization import COMPRESSION_MODULES, UNQUANTISED_MODULES

__all__ = ["COMPRESSION_MODULES", "UNQUANTISED_MODULES"]
