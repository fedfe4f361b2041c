# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Names of the modules to leave in full precision when a checkpoint is quantized.

Pass them to `BitsAndBytesConfig(llm_int8_skip_modules=...)` or `TorchAoConfig(modules_to_not_convert=...)`, as
docs/serving.md shows. transformers compares them with the beginning of a module's full name, so
"multi_modal_projector" alone would match nothing.
"""

COMPRESSION_MODULES = ("model.multi_modal_projector", "model.lvtc", "model.tile_router")
"""The projectors, LVTC's included, and a router of tiles: 8 % of the weights of a 2B or 8B model, and the source of
every visual token.
"""

UNQUANTIZED_MODULES = (*COMPRESSION_MODULES, "model.vision_tower", "lm_head")
"""The projectors, the vision tower and the head: everything but the language model's layers."""

__all__ = ["COMPRESSION_MODULES", "UNQUANTIZED_MODULES"]
