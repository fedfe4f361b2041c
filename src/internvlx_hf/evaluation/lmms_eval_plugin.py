# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What lmms-eval's registry loads from the entry point `lmms_eval.models`: the name `internvlx` and its two classes."""


def manifest():
    """`--model internvlx`: messages with images in their place, or with `--force_simple` images before the text."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = f"{__package__}.lmms_eval_models"
    return ModelManifest(
        model_id="internvlx",
        simple_class_path=f"{module}.InternVLXSimple",
        chat_class_path=f"{module}.InternVLXChat",
        aliases=("internvl_x",),
    )
