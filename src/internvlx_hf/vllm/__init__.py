# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL-X in vLLM, with and without LVTC: the plug-in of vLLM's entry point `vllm.general_plugins`.

vLLM's scheduler, block tables and sampler work on one sequence, the long one, with N₂² tokens per tile. Stage one, the layers
before the expansion, runs on a part of its rows: all text, and the first N₁² rows of each tile. M-RoPE's positions mark these rows
and carry their positions in the short sequence.

- `plugin.py` registers the model.
- `options.py` sets the options that LVTC needs and refuses those that it does not support.
- `language_models.py` lists the language models.
- `processing.py` turns images into tiles and placeholders.
- `model.py` has the model with its two stages.
- `stage_one.py` has stage one's rows and attention metadata.
- `model_state.py` keeps these metadata in buffers for Model Runner V2.
- `scheduler.py` never splits an image between steps.
- `kv_groups.py` gives stage one KV cache blocks for the short sequence.
"""
