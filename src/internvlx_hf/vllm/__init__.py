# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL-X in vLLM, with and without LVTC: what vLLM's entry point `vllm.general_plugins` loads.

vLLM's scheduler, block tables and sampler see one sequence, the long one: N₂² tokens a tile. Stage one, the layers before the
expansion, runs on some of its rows: all text, and the first N₁² rows of each tile. M-RoPE's positions say which, and where they
stand in the short sequence.

`plugin.py` registers; `options.py` sets what LVTC needs and refuses what it cannot have; `processing.py` turns images into tiles
and placeholders; `model.py` has the two stages; `stage_one.py` has stage one's rows and attention metadata; `scheduler.py` keeps
images whole; `kv_groups.py` gives stage one blocks for the short sequence; `trace.py` records steps for tests.
"""
