# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Support for serving engines: vLLM and SGLang run the base model with their own attention, cache and head."""

from functools import lru_cache

from torch import nn

from .configuration_internvlx import InternVLXConfig

# keyed by the `text_config._attn_implementation` that they set before they ask `AutoModel` for the model
ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}
# why our plug-in for an engine is not at work, by the engine's key
_plugin_errors: dict[str, str] = {}


def set_plugin_error(engine: str, error: str | None) -> None:
    """Say in the refusal of LVTC why our plug-in for the engine is not at work; None: it is."""
    _plugin_errors.pop(engine, None)
    if error is not None:
        _plugin_errors[engine] = error


def runs_in_engine(config: InternVLXConfig) -> bool:
    return config.text_config._attn_implementation in ENGINES


def find_engine(config: InternVLXConfig) -> str | None:
    """The engine that asks for a model with this configuration; None for transformers itself.

    Raises:
        ValueError: if an engine asks for a model with LVTC, or whose default size shrinks.
    """
    engine, default = ENGINES.get(config.text_config._attn_implementation), config.sizes[0]
    if engine is not None and config.lvtc_config is None and default.boundary is not None:
        raise ValueError(
            f"{engine} cannot serve a model whose tiles have {default.before} tokens before layer {default.boundary} "
            f"and {default.after} from it on ('{default}', the first of `tokens_per_tile`): it keeps one sequence "
            "length for all layers. Serve this model with transformers (`internvlx serve`), or convert it with a "
            "default that does not change."
        )
    if engine is not None and config.lvtc_config is not None:
        expanded = next(size for size in config.sizes if size.has_lvtc)
        plugin_error = _plugin_errors.get(config.text_config._attn_implementation)
        raise ValueError(
            f"{engine} cannot serve a model with LVTC: it keeps one sequence length for all layers, but from layer "
            f"{config.lvtc_config.expand_layer} on a tile takes {expanded.after} tokens instead of {expanded.before}. "
            "Serve this model with transformers (`internvlx serve`), or serve one that was converted and trained "
            "without `lvtc_config`." + (f" ({plugin_error}.)" if plugin_error else "")
        )
    return engine


def refuse_sizes(config: InternVLXConfig) -> None:
    """Raises `ValueError`: an engine serves tiles whose number of tokens does not change between layers."""
    engine = ENGINES.get(config.text_config._attn_implementation, "This engine")
    raise ValueError(
        f"{engine} serves tiles of '{config.sizes[0]}' tokens, the default of this model, whose number does not "
        "change between layers. Ask for no `tokens_per_tile`."
    )


def keep_whole(part: nn.Module) -> None:
    """Replicate a part on every rank of tensor parallelism instead of splitting it.

    vLLM merges sibling linear layers and splits them among the ranks wherever it can rewrite the forward that calls
    them, even a forward that needs all heads (`InternVLVisionAttention`) or the whole output (`PVTCMLP`). Such modules
    get a forward that vLLM cannot rewrite.
    """
    for module in part.modules():
        if sum(isinstance(child, nn.Linear) for child in module.children()) > 1:
            module.__class__ = _with_opaque_forward(type(module))  # type: ignore[arg-type]


@lru_cache
def _with_opaque_forward(module_class: type[nn.Module]) -> type[nn.Module]:
    def forward(self, *args, **kwargs):
        return module_class.forward(self, *args, **kwargs)

    return type(module_class.__name__, (module_class,), {"forward": forward, "__module__": module_class.__module__})
