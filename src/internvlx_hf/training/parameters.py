# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Choosing the parameters to train, and their learning rates, by the names of modules.

A *pattern* is a dotted name as in `model.named_modules()`. It stands for that module or parameter and everything in
it. A part of a pattern may contain `*` (any text within the part) or be a range of layers that includes both ends:
`model.language_model.layers.0-11`, `model.language_model.layers.*.self_attn.*_proj`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from ..processing.rules import nearest

PROJECTOR_MODULES = ("model.multi_modal_projector", "model.lvtc")
ROUTER = "model.tile_router"
# what peft adds to the names of a model that it wraps
_PEFT_PREFIX = re.compile(
    r"^base_model\.model\.|\.(?:modules_to_save|lora_[A-Za-z_]+)\.[^.]+(?=\.)|\.base_layer(?=\.)"
)


def plain_name(name: str) -> str:
    """A parameter's name in the model without peft. An adapter's weights get the name of their module."""
    return _PEFT_PREFIX.sub("", name)


def matches(pattern: str, name: str) -> bool:
    """Whether the dotted `name` is the module or parameter that `pattern` stands for, or part of it."""
    patterns, parts = pattern.split("."), name.split(".")
    return len(patterns) <= len(parts) and all(map(_matches_part, patterns, parts))


def _matches_part(pattern: str, part: str) -> bool:
    layers = re.fullmatch(r"(\d+)-(\d+)", pattern)
    if layers:
        return part.isdecimal() and int(layers[1]) <= int(part) <= int(layers[2])
    return fnmatchcase(part, pattern)


def require_matches(model: nn.Module, patterns: Iterable[str], setting: str) -> None:
    """Check that every pattern matches a parameter.

    Raises:
        ValueError: if one does not. The message names the pattern, its setting, and the module with the nearest name.
    """
    names = [plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            known = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
            near = nearest(pattern, sorted(known))
            hint = f" Did you mean {near}?" if near else f" The model has {', '.join(_parts(names))}."
            raise ValueError(f"`{setting}` names {pattern!r}, which matches no parameter of the model.{hint}")


def _parts(names: Iterable[str]) -> list[str]:
    """The parts of the model: `model.vision_tower`, ..., `lm_head`."""
    return list(dict.fromkeys(part_of(name) for name in names))


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: `model.vision_tower`, `model.lvtc`, `lm_head`, ..."""
    parts = name.split(".")
    return ".".join(parts[:2] if parts[0] == "model" else parts[:1])


def choose_trainable(
    model: nn.Module, stage: int, freeze: Iterable[str] | None = None, train: Iterable[str] | None = None
) -> None:
    """Set `requires_grad` of all parameters: True for those of the stage, without `freeze`, with `train`.

    Args:
        model: a model that is not wrapped by peft.
        stage: 1 for the projectors (paper: "finetune only the projector module"), including LVTC's; 2 for everything.
        freeze: patterns of parameters not to train (default: none).
        train: patterns of further parameters to train, which override `freeze` (default: none).

    Raises:
        ValueError: if a pattern matches nothing, or nothing is left to train.
    """
    freeze, train = list(freeze or ()), list(train or ())
    require_matches(model, freeze, "freeze")
    require_matches(model, train, "train")
    chosen = set(model.parameters()) if stage == 2 else _matching_parameters(model, PROJECTOR_MODULES)
    chosen -= _matching_parameters(model, [ROUTER])  # only `generate` runs it
    chosen = chosen - _matching_parameters(model, freeze) | _matching_parameters(model, train)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in chosen)
    if not chosen:
        raise ValueError(f"Nothing is left to train: stage {stage} with freeze={freeze} and train={train}.")


def _matching_parameters(model: nn.Module, patterns: Iterable[str]) -> set[nn.Parameter]:
    """The parameters that match a pattern. A tied parameter matches by any of its names."""
    named = model.named_parameters(remove_duplicate=False)
    return {parameter for name, parameter in named if any(matches(pattern, name) for pattern in patterns)}


@dataclass
class PartSize:
    """Numbers of parameters of one part of the model."""

    part: str
    trained: int
    total: int


def part_sizes(model: nn.Module) -> list[PartSize]:
    """Numbers of parameters of each part of the model. Parameters that peft adds count towards their part."""
    sizes: dict[str, PartSize] = {}
    for name, parameter in model.named_parameters():
        if ".original_module." in name:  # peft trains a copy of this module
            continue
        size = sizes.setdefault(part_of(plain_name(name)), PartSize(part_of(plain_name(name)), 0, 0))
        count = _numel(parameter)
        size.total += count
        size.trained += count * parameter.requires_grad
    return list(sizes.values())


def _numel(parameter: nn.Parameter) -> int:
    # DeepSpeed's ZeRO-3 leaves an empty tensor and stores the number of values
    return getattr(parameter, "ds_numel", parameter.numel())


def trainable_table(model: nn.Module) -> str:
    """A table of the trained parameters, for the console."""
    sizes = part_sizes(model)
    total = PartSize("all", sum(size.trained for size in sizes), sum(size.total for size in sizes))
    rows = [("module", "trained", "of", "")]
    rows += [
        (size.part, f"{size.trained:,}", f"{size.total:,}", f"{size.trained / max(size.total, 1):.1%}")
        for size in (*sizes, total)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def half_precision_share(model: nn.Module) -> float:
    """The share of the trained numbers that are stored in float16 or bfloat16."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    half = sum(_numel(parameter) for parameter in trained if parameter.dtype in (torch.float16, torch.bfloat16))
    return half / max(sum(map(_numel, trained)), 1)


def set_learning_rates(optimizer: torch.optim.Optimizer, model: nn.Module, rates: dict[str, float]) -> None:
    """Split an optimizer's groups before the first step: the parameters of each pattern get a group with its rate.

    Every group keeps its weight decay and gets a `name`. Schedules scale all groups equally.

    Args:
        optimizer: an optimizer of parameters of `model`.
        model: the model.
        rates: learning rates by pattern. The last pattern that matches a parameter counts.

    Raises:
        ValueError: if a pattern matches no trained parameter.
    """
    require_matches(model, rates, "learning_rates")
    pattern_of = {}
    for name, parameter in model.named_parameters():
        for pattern in rates:
            if matches(pattern, plain_name(name)):
                pattern_of[parameter] = pattern
    used = set()
    for group in list(optimizer.param_groups):
        group["name"] = "base"
        for pattern, rate in rates.items():
            members = [parameter for parameter in group["params"] if pattern_of.get(parameter) == pattern]
            if members:
                used.add(pattern)
                group["params"] = [p for p in group["params"] if pattern_of.get(p) != pattern]
                settings = {key: value for key, value in group.items() if key != "params"}
                optimizer.add_param_group({**settings, "params": members, "lr": rate, "name": pattern})
    if idle := [pattern for pattern in rates if pattern not in used]:
        raise ValueError(f"`learning_rates` names {', '.join(idle)}, but no parameter of it is trained at that rate.")
