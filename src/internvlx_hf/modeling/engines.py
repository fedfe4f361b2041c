# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What serving engines get: vLLM and SGLang run the base model and bring attention, cache and head of their own."""

from functools import lru_cache

from torch import nn

from .configuration_internvlx import InternVLXConfig

# by what they set `text_config._attn_implementation` to before they ask `AutoModel` for the model
ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}


def runs_in_engine(config: InternVLXConfig) -> bool:
    return config.text_config._attn_implementation in ENGINES


def find_engine(config: InternVLXConfig) -> str | None:
    """The engine that asks for a model of this configuration, None for transformers itself.

    Raises:
        ValueError: an engine asks for a model with LVTC.
    """
    engine = ENGINES.get(config.text_config._attn_implementation)
    if engine is not None and config.lvtc_config is not None:
        raise ValueError(
            f"{engine} cannot serve a model with LVTC: it keeps one sequence length for all layers, but from layer "
            f"{config.lvtc_config.expand_layer} on a tile takes {config.expanded_image_seq_length} tokens instead of "
            f"{config.image_seq_length}. Serve this model with transformers (`internvlx serve`), or serve one that was "
            "converted and trained without `lvtc_config`."
        )
    return engine


def keep_whole(part: nn.Module) -> None:
    """Keep a part as it is on every rank of tensor parallelism.

    vLLM merges sibling linear layers and splits them among the ranks wherever it can rewrite the forward that calls them,
    also where that counts on all heads (`InternVLVisionAttention`) or on a whole output (`PVTCMLP`). These modules get a
    forward that has nothing to rewrite.
    """
    for module in part.modules():
        if sum(isinstance(child, nn.Linear) for child in module.children()) > 1:
            module.__class__ = _with_opaque_forward(type(module))  # type: ignore[arg-type]


@lru_cache
def _with_opaque_forward(module_class: type[nn.Module]) -> type[nn.Module]:
    def forward(self, *args, **kwargs):
        return module_class.forward(self, *args, **kwargs)

    return type(module_class.__name__, (module_class,), {"forward": forward, "__module__": module_class.__module__})
