# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL-X in vLLM, with tiles whose tokens change between layers: the plug-in of vLLM's entry point
`vllm.general_plugins`.

vLLM's scheduler and sampler work on one sequence, the long one, in which a tile has as many rows as it has tokens in
the stage where it has most. A stage, the layers between two boundaries, runs on a part of its rows: all text, and of
each tile the first rows, as many as it has tokens there.

- `plugin.py` registers the model.
- `options.py` sets the options that stages need and refuses those that they do not support.
- `language_models.py` lists the language models.
- `processing.py` turns images into tiles and placeholders.
- `packing.py` makes an image's tokens one tensor, as vLLM keeps it.
- `model.py` has the model with its stages.
- `tile_rows.py` has the stages' rows, and `stage_attention.py` their attention metadata.
- `model_state.py` keeps these metadata in buffers for Model Runner V2.
- `scheduler.py` never splits an image whose tokens change between steps.
- `kv_groups.py` gives each stage KV cache blocks for its own rows.
"""
