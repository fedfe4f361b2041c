# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Merging an adapter and the model that it was trained on into a full checkpoint."""

import os
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers.utils import ADAPTER_CONFIG_NAME

from ..checkpoints.atomic_folder import require_room, resolve_out
from ..checkpoints.errors import blaming, listed
from ..checkpoints.folders import (
    check_links,
    copy_companions,
    find_companions,
    find_source,
    require_apart,
    resolve_inside,
)
from ..checkpoints.names import ADAPTER_WEIGHTS, DTYPES, RECIPE
from ..hub.checkpoint_folder import checkpoint_folder
from ..processing import InternVLXProcessor
from ..processing.rules import choice
from .arguments import ModelArguments
from .loading import check_model_type, load_model
from .recipe import COMPANIONS


def merge_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> None:
    """Merge an adapter into its base model and write a full checkpoint, which does not need peft.

    The weights are added in float32, which takes the memory of the whole model in float32. `out` appears only when it
    is complete.

    Args:
        adapter: the output of LoRA training: a folder or a Hub id.
        out: the folder to make.
        base: the model that the adapter was trained on (default: the one that the adapter names).
        dtype: dtype to save in, "float32", "bfloat16" or "float16" (default: the base's).
        overwrite: replace `out` if it holds only files that this package wrote; hand-written parts of its model card
            are kept (default: False).

    Raises:
        ValueError: if `adapter` is not an adapter, does not fit its base, or holds values that are not finite.
        FileExistsError: if `out` exists and `overwrite` is not set, or if it holds files that this package did not
            write.
        OSError: if a file cannot be read, the disk is full, or another process is writing `out`.
    """
    choice(DTYPES).or_null().check("dtype", dtype)
    out = resolve_out(out)
    require_apart(out, adapter)
    with checkpoint_folder(out, overwrite=overwrite) as partial:
        folder = find_source(adapter)
        config = _adapter_config(folder)
        base = base or config.base_model_name_or_path
        if not base:
            raise ValueError(f"{folder} does not name the model that it was trained on. Name it with --base.")
        require_apart(out, base)
        base_folder = find_source(base, None if Path(base).expanduser().is_dir() else config.revision)
        companions = find_companions(base_folder, COMPANIONS) | find_companions(folder, (RECIPE,))
        stored = check_model_type(base_folder).get("dtype") or "float32"
        weights = _adapter_weights(folder)
        model = load_model(ModelArguments(str(base_folder), dtype="float32"))
        merged = _merge(model, config, weights, f"{adapter} on {base}")
        merged.to(getattr(torch, dtype or stored))
        processor = InternVLXProcessor.from_pretrained(
            folder if (folder / "processor_config.json").is_file() else base_folder
        )
        require_room(partial, sum(parameter.nbytes for parameter in merged.parameters()))
        merged.save_pretrained(partial)  # type: ignore[operator]
        processor.save_pretrained(partial)
        copy_companions(companions, partial)


def _adapter_config(folder: Path) -> PeftConfig:
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        what = "is a full checkpoint already" if (folder / "config.json").is_file() else "is not an adapter"
        raise ValueError(f"{folder} {what}: it has no adapter_config.json. Expected the output of LoRA training.")
    check_links(folder)
    with blaming(folder / ADAPTER_CONFIG_NAME):
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config.base_model_name_or_path, str | None):
            raise ValueError(
                f"base_model_name_or_path={config.base_model_name_or_path!r}, expected a folder or a Hub id."
            )
    return config


def _adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    name = next((name for name in ADAPTER_WEIGHTS if os.path.lexists(folder / name)), None)
    if name is None:
        raise ValueError(f"{folder} holds no weights of an adapter, expected {' or '.join(ADAPTER_WEIGHTS)}.")
    resolve_inside(folder, name)
    with blaming(folder / name):
        return load_peft_weights(str(folder), device="cpu")


def _merge(model: nn.Module, config: PeftConfig, weights: dict[str, torch.Tensor], what: str) -> nn.Module:
    config.inference_mode = True
    adapted = get_peft_model(model, config)
    expected = {name: tensor.shape for name, tensor in get_peft_model_state_dict(adapted).items()}
    got = {name: tensor.shape for name, tensor in weights.items()}
    if expected != got:
        wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        raise ValueError(
            f"The adapter does not fit ({what}): {len(wrong)} of its tensors are missing, unexpected or of another "
            f"shape, {listed(wrong, 3)}. Name the model that it was trained on with --base."
        )
    if damaged := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise ValueError(f"The adapter ({what}) has values that are NaN or infinite: {listed(damaged, 3)}.")
    set_peft_model_state_dict(adapted, weights)
    return adapted.merge_and_unload()
