# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What to leave in full precision when a checkpoint is quantised.

The names are those that transformers compares with a module's full name from its beginning: "multi_modal_projector" alone
would leave nothing out. They go into `BitsAndBytesConfig(llm_int8_skip_modules=...)` and
`TorchAoConfig(modules_to_not_convert=...)`. docs/serving.md shows both.
"""

# PVTC or another projector, and LVTC's: 8 % of the weights of a 2B or 8B model, and every visual token comes out of them
COMPRESSION_MODULES = ("model.multi_modal_projector", "model.lvtc")

# Those, the vision tower and the head: all but the language model's layers.
UNQUANTISED_MODULES = (*COMPRESSION_MODULES, "model.vision_tower", "lm_head")

__all__ = ["COMPRESSION_MODULES", "UNQUANTISED_MODULES"]
