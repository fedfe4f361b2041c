# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A full checkpoint made of an adapter and the model that it was trained on."""

from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import nn

from ..conversion.checkpoint_files import listed
from ..conversion.convert import DTYPES, find_source
from ..conversion.streaming import refuse_existing, whole_folder
from ..hub import write_card
from ..processing import InternVLXProcessor
from .arguments import ModelArguments
from .loading import check_model_type, load_model
from .recipe import RECIPE_NAME, copy_companions


def merge_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint that answers as the adapter on its base does, and needs no peft.

    The sums are formed in float32, which takes the model's size in it. `out` appears when it is complete.

    Args:
        adapter: what LoRA training left: a folder, or a Hub id.
        out: the folder to make.
        base: the model that the adapter was trained on; unset: the one that the adapter names.
        dtype: of the written weights, "float32", "bfloat16" or "float16"; unset: as the base has them.
        overwrite: replace `out` if it is a checkpoint.

    Raises:
        ValueError: `adapter` is none, or does not fit its base, or holds values that are not finite.
        FileExistsError: `out` exists, and `overwrite` is not set or it is not a checkpoint.
        OSError: something cannot be read, or the disk is full.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}, expected one of {', '.join(map(repr, DTYPES))}.")
    out = Path(out).expanduser().resolve()
    refuse_existing(out, overwrite)
    folder = find_source(adapter)
    if out in (folder.resolve(), *folder.resolve().parents):
        raise FileExistsError(f"{out} holds the adapter {folder}. Choose another folder.")
    config = _adapter_config(folder)
    base = base or config.base_model_name_or_path
    if not base:
        raise ValueError(f"{folder} does not say which model it was trained on. Name it with --base.")
    base_folder = find_source(base, config.revision)
    stored = check_model_type(base_folder).get("dtype") or "float32"
    model = load_model(ModelArguments(str(base_folder), dtype="float32"))
    merged = _merge(model, config, load_peft_weights(str(folder), device="cpu"), f"{adapter} on {base}")
    merged.to(DTYPES[dtype or stored])
    processor = InternVLXProcessor.from_pretrained(
        folder if (folder / "processor_config.json").is_file() else base_folder
    )
    num_bytes = sum(parameter.nbytes for parameter in merged.parameters())
    with whole_folder(out, overwrite=overwrite, num_bytes=num_bytes) as partial:
        merged.save_pretrained(partial)
        processor.save_pretrained(partial)
        copy_companions(base_folder, partial)
        copy_companions(folder, partial, (RECIPE_NAME,))
        write_card(partial, out.name)


def _adapter_config(folder: Path) -> PeftConfig:
    if not (folder / "adapter_config.json").is_file():
        what = "is a full checkpoint already" if (folder / "config.json").is_file() else "is no adapter"
        raise ValueError(f"{folder} {what}: it has no adapter_config.json. Expected what training with LoRA left.")
    return PeftConfig.from_pretrained(str(folder))


def _merge(model: nn.Module, config: PeftConfig, weights: dict[str, torch.Tensor], what: str) -> nn.Module:
    config.inference_mode = True
    adapted = get_peft_model(model, config)
    expected = {name: tensor.shape for name, tensor in get_peft_model_state_dict(adapted).items()}
    got = {name: tensor.shape for name, tensor in weights.items()}
    if expected != got:
        wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        raise ValueError(
            f"The adapter does not fit ({what}): {len(wrong)} of its tensors are missing, unexpected or of another shape, "
            f"{listed(wrong, 3)}. Name the model that it was trained on with --base."
        )
    if damaged := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise ValueError(f"The adapter ({what}) has values that are NaN or infinite: {listed(damaged, 3)}.")
    set_peft_model_state_dict(adapted, weights)
    return adapted.merge_and_unload()
