# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The entry point `lmms_eval.models`, which registers the name `internvlx` and its two classes with lmms-eval."""


def manifest():
    """The classes for `--model internvlx`: chat by default, simple with `--force_simple`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = f"{__package__}.lmms_eval_models"
    return ModelManifest(
        model_id="internvlx",
        simple_class_path=f"{module}.InternVLXSimple",
        chat_class_path=f"{module}.InternVLXChat",
        aliases=("internvl_x",),
    )
