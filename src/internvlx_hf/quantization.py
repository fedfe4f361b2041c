# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What to leave in full precision when a checkpoint is quantised.

The names are those that transformers compares with a module's full name from its beginning: "multi_modal_projector" alone
would leave nothing out. They go into `BitsAndBytesConfig(llm_int8_skip_modules=...)` and
`TorchAoConfig(modules_to_not_convert=...)`. docs/serving.md shows both.
"""

COMPRESSION_MODULES = ("model.multi_modal_projector", "model.lvtc")
"""The projectors, LVTC's included: 8 % of the weights of a 2B or 8B model, and the source of every visual token."""

UNQUANTISED_MODULES = (*COMPRESSION_MODULES, "model.vision_tower", "lm_head")
"""The projectors, the vision tower and the head: everything but the language model's layers."""

__all__ = ["COMPRESSION_MODULES", "UNQUANTISED_MODULES"]
