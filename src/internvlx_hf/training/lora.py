# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""LoRA with peft: choosing the layers to adapt and adding the adapters."""

import re

from torch import nn
from transformers import PreTrainedModel

from .arguments import LoraArguments
from .parameters import PROJECTOR_MODULES

LAYERS = {"text": "model.language_model.layers", "vision": "model.vision_tower"}


def linear_targets(model: PreTrainedModel, vision: bool = False) -> str:
    """A regular expression for the full names of the linear layers to adapt.

    The names come from the model: a llama has `q_proj`, a phi3 `qkv_proj`, and a bare `q_proj` would also match the
    vision tower. Embeddings, the head and the projectors are not targets.

    Args:
        model: a model without adapters.
        vision: also adapt the vision tower (default: False).
    """
    paths = [LAYERS["text"]] + ([LAYERS["vision"]] if vision else [])
    return "|".join(re.escape(path) + _linear_pattern(model.get_submodule(path)) for path in paths)


def _linear_pattern(module: nn.Module) -> str:
    """A regular expression for a module's linear layers, except those in torch's own attention (as in SigLIP's
    pooling), which reads its layers' weights without calling the layers."""
    children = dict(module.named_modules())
    fused = [re.escape(name) for name, child in children.items() if isinstance(child, nn.MultiheadAttention)]
    others = f"(?!({'|'.join(fused)})\\.)" if fused else ""
    names = dict.fromkeys(name.rpartition(".")[2] for name, child in children.items() if isinstance(child, nn.Linear))
    return f"\\.{others}.*\\.({'|'.join(names)})"


def projector_names(model: PreTrainedModel) -> list[str]:
    """The projectors that the model has. They are trained in full and saved with the adapter, since they may be
    new.
    """
    children = dict(model.model.named_children())
    names = [name.rpartition(".")[2] for name in PROJECTOR_MODULES]
    return [name for name in names if children.get(name) is not None]


def lora_scale(arguments: LoraArguments) -> float:
    """peft's `lora_alpha`."""
    return 2 * arguments.lora_rank if arguments.lora_alpha is None else arguments.lora_alpha


def add_lora(model: PreTrainedModel, arguments: LoraArguments, model_revision: str | None = None):
    """A `PeftModel` in which only the adapters and the projectors are trained.

    Raises:
        ValueError: if the settings contradict each other or name modules that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    if arguments.lora_target_modules and arguments.lora_vision:
        raise ValueError(
            "`lora_vision` adds to the default targets, but `lora_target_modules` replaces them: set one."
        )
    modules_to_save = arguments.lora_modules_to_save
    if modules_to_save is None:
        modules_to_save = projector_names(model)
    known = {name.rpartition(".")[2] for name, _ in model.named_modules()} | {
        name for name, _ in model.named_modules()
    }
    if missing := [name for name in modules_to_save if name not in known]:
        raise ValueError(f"`lora_modules_to_save` names {', '.join(missing)}, which the model does not have.")
    targets = arguments.lora_target_modules or linear_targets(model, arguments.lora_vision)
    if not any(re.fullmatch(targets, name) for name, _ in model.named_modules()):
        raise ValueError(f"`lora_target_modules` is {targets!r}, which matches no module's full name.")
    config = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=lora_scale(arguments),  # type: ignore[arg-type]
        lora_dropout=arguments.lora_dropout,
        target_modules=targets,
        modules_to_save=modules_to_save or None,
        revision=model_revision,
    )
    return get_peft_model(model, config)
