"""Rewrite a checkpoint from `internvlx convert --to internvl` so that llama.cpp's converter finds all of it.

The converter reads the class from each part's configuration, and looks for the vision tower and the projector under the names
of transformers' modules. If it finds neither, it still writes a file, without tensors.
"""

import argparse
from pathlib import Path
from shutil import copytree, ignore_patterns

from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# llama.cpp's graph computes this regardless of the configuration
FIXED = {"vision_feature_layer": -1, "projector_hidden_act": "gelu"}


def prepare(native: Path, out: Path) -> None:
    """Rewrite the checkpoint.

    Raises:
        ValueError: if `native` is another model or `out` exists.
    """
    config = InternVLConfig.from_pretrained(native)
    if config.model_type != InternVLConfig.model_type:
        raise ValueError(
            f"{native} is of the type {config.model_type!r}. First: internvlx convert {native} OUT --to internvl"
        )
    for name, expected in FIXED.items():
        if getattr(config, name) != expected:
            raise ValueError(f"{native} has {name}={getattr(config, name)!r}, but llama.cpp computes {expected!r}.")
    if out.exists():
        raise ValueError(f"{out} exists already.")
    model = InternVLForConditionalGeneration.from_pretrained(native, dtype="auto")
    copytree(native, out, ignore=ignore_patterns("*.safetensors*"))
    model.config.text_config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.text_config.model_type]]
    model.config.vision_config.architectures = ["InternVisionModel"]
    model.save_pretrained(out, save_original_format=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("native", type=Path, help="the output of `internvlx convert CHECKPOINT NATIVE --to internvl`")
    parser.add_argument("out", type=Path, help="the folder to write, for llama.cpp's convert_hf_to_gguf.py")
    options = parser.parse_args()
    prepare(options.native, options.out)
