# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Adding PVTC or LVTC to a checkpoint: the initial values of the new tensors.

`init="paper"` starts new modules at random. `init="warm"` starts them from the checkpoint's projector, InternVL2's
("pixel_shuffle") or LLaVA's ("linear"):

- PVTC's local query is the old projector. Everything that would change its output starts at zero: the outputs of the
  local attention and MLP, the global query, and the outputs of the global attention and MLP. So the projector's output
  is the same as before.
- LVTC's projectors start as the old one with the last linear layer at zero, so that they add nothing.
- If stage one sees the source's tokens, all tokens keep their positions at the expansion
  (`expanded_positions="kept"`): counted anew, they would place the text of stage two at distances from each other and
  from the image that the source never saw.
- If stage one sees other tokens and stage two as many as the source, the HR projector is the old one, last layer
  included: what the source saw of the image is there from the expansion on.
- Where sizes are added, windows of another side start as the old projector adapted to them. Sizes that shrink need no
  weights.
- Where windows get another side M, the first layer is adapted to them (`fold_windows`): a smaller window is read as if
  each of its patches were several equal ones, a larger one by the means of its blocks. So LLaVA's MLP reads a window
  by its mean patch.

`benchmarks/bench_lvtc_start.py` compares this start with others.
"""

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from math import isqrt
from typing import Any

import torch

from ..checkpoints.errors import blaming
from ..checkpoints.weights import TensorInfo
from ..modeling import InternVLXConfig, InternVLXLVTCConfig, InternVLXProjectorConfig
from ..modeling.projectors import PROJECTORS, build_projector
from ..modeling.pvtc import QUERY_MLPS
from ..modeling.setting_checks import compressing_window
from ..modeling.tile_sizes import parse_size
from ..modeling.towers import check_tower
from .options import ConversionOptions
from .tensor_tables import PROJECTOR, ROUTER, Operation, Rule

LVTC = "model.lvtc"
HR_PROJECTOR = f"{LVTC}.hr_projector"
# types of projectors that can start others -> the `query_mlp` of a PVTC that starts as one
WARM_QUERIES = {projector: query for query, projector in QUERY_MLPS.items() if projector is not None}


@dataclass
class Upgrade:
    """A change of the model during conversion.

    Args:
        rules: rules from names in the old model to names in the new one. A name may have several rules; without any it
            is kept.
        new: patterns of tensors in the new model that the checkpoint need not fill.
        zero: patterns of new tensors that start at zero.
        absent: patterns of tensors in the old model that the source need not have.
    """

    rules: list[Rule] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def rules_for(self, name: str) -> list[Rule]:
        return [rule for rule in self.rules if rule.matches(name)]

    def is_new(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.new)

    def is_absent(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.absent)

    def starts_at_zero(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.zero)


def build_upgrade(config: InternVLXConfig, options: ConversionOptions) -> tuple[InternVLXConfig, Upgrade]:
    """The configuration after an upgrade, and the upgrade of its tensors.

    Args:
        config: configuration of the old model.
        options: options that define the new model.

    Raises:
        ValueError: if the checkpoint does not allow the change.
    """
    lvtc, init = options.lvtc, options.init
    before, after, upgrade = config, copy.deepcopy(config), Upgrade()
    if options.router == "drop":
        if not config.has_router:
            raise ValueError("router='drop', but the checkpoint has no router (InternVL3.5-Flash's).")
        after.router_relative_threshold = after.router_absolute_threshold = after.tokens_per_tile = None
        upgrade.rules.append(Rule(ROUTER + ".{rest}", reason="router='drop'"))
    elif config.has_router and (lvtc or options.projector != "keep" or options.downsample_ratio is not None):
        raise ValueError(
            "The checkpoint's router (InternVL3.5-Flash) fits only the projector that it was trained with. Pass "
            "router='drop' (--router drop) to change the projector or to add LVTC."
        )
    old = before.projector_config.projector_type
    compresses = old == "linear" and (lvtc or options.projector == "pvtc")
    if options.downsample_ratio is not None:
        after.downsample_ratio = options.downsample_ratio
    elif compresses and before.downsample_ratio == 1:
        after.downsample_ratio = 1 / compressing_window(config.patch_grid)
    if lvtc:
        if config.lvtc_config is not None:
            raise ValueError("The checkpoint already has LVTC. Convert it without `lvtc`.")
        with blaming(f"lvtc={lvtc!r}"):
            start: dict[str, Any] = _lvtc_settings(before, after) if init == "warm" else {}
            start |= _expanded_ratio(after, options.tokens_per_tile or ())
            after.lvtc_config = InternVLXLVTCConfig(**start | ({} if lvtc is True else lvtc))
    if options.projector == "pvtc" and old != "pvtc":
        after.projector_config = InternVLXProjectorConfig(
            projector_type="pvtc",
            num_heads=attention_heads(config.text_config.hidden_size),
            query_mlp=WARM_QUERIES.get(old, "released") if init == "warm" else "released",
            hidden_act=before.projector_config.hidden_act,
        )
    if options.tokens_per_tile is not None or options.merge_at is not None:
        with blaming(f"tokens_per_tile={options.tokens_per_tile}, merge_at={options.merge_at}"):
            sizes, offered = options.tokens_per_tile, after.tokens_per_tile
            if offered is not None and (sizes is None or list(map(str, sizes))[: len(offered)] != offered):
                raise ValueError(f"The checkpoint already offers {offered}. Add sizes behind these, or give none.")
            after.tokens_per_tile = None if sizes is None else list(sizes)
            after.merge_layer = options.merge_at
            after.check_geometry()
    after.check_geometry()
    check_tower(after)
    _change_projector(upgrade, before, after, init)
    if lvtc:
        _add_lvtc(upgrade, before, after, init)
    _add_sizes(upgrade, before, after, init)
    if (lvtc or after.other_sides("multi_modal_projector")) and init == "warm" and not upgrade.is_new(PROJECTOR + "."):
        # the projector itself is kept as well
        upgrade.rules.insert(0, Rule(PROJECTOR + ".{rest}", (PROJECTOR + ".{rest}",)))
    return after, upgrade


def _expanded_ratio(config: InternVLXConfig, sizes: Sequence[str | int]) -> dict[str, float]:
    """LVTC's `downsample_ratio` for the sizes that grow, if there are any."""
    grown = [after for before, after in map(parse_size, sizes) if after > before]
    return {"downsample_ratio": isqrt(grown[0]) / config.patch_grid} if grown else {}


def _add_sizes(upgrade: Upgrade, before: InternVLXConfig, after: InternVLXConfig, init: str) -> None:
    """Start what belongs to other windows as the checkpoint's projector, adapted to them."""
    kind, _ = after.projectors["multi_modal_projector"]
    old = before.projector_config.projector_type
    part = PROJECTORS[kind].part_of_type(after, old) if old in WARM_QUERIES else None
    known = before.other_sides("multi_modal_projector")
    for side in (side for side in after.other_sides("multi_modal_projector") if side not in known):
        name = f"{PROJECTOR}.sizes.{side}"
        upgrade.new.append(f"{name}.*")
        if init == "warm" and part is not None:
            upgrade.rules += _reshaped(_join(name, part), before, side)


def _lvtc_settings(before: InternVLXConfig, after: InternVLXConfig) -> dict[str, Any]:
    """LVTC's settings for a warm start, where they are not its defaults."""
    kind = before.projector_config.projector_type
    types = dict.fromkeys(("hr_projector_type", "lr_projector_type"), kind) if kind == "linear" else {}
    keeps = after.downsample_ratio == before.downsample_ratio
    return types | ({"expanded_positions": "kept"} if keeps else {})


def _change_projector(upgrade: Upgrade, before: InternVLXConfig, after: InternVLXConfig, init: str) -> None:
    old, new = before.projector_config.projector_type, after.projector_config.projector_type
    same_windows = before.downsample_ratio == after.downsample_ratio
    if old == new and same_windows:
        return
    if old not in WARM_QUERIES:
        raise ValueError(
            f"The checkpoint's projector is {old!r} with downsample_ratio={before.downsample_ratio}, but only "
            "InternVL2's ('pixel_shuffle') and LLaVA's ('linear') can be changed to another ratio."
        )
    upgrade.new.append(f"{PROJECTOR}.*")
    if init == "paper":
        upgrade.rules.append(Rule(PROJECTOR + ".{rest}", reason="replaced by a new projector, init='paper'"))
    else:
        _start_as_source(upgrade, PROJECTOR, before, after)


def _add_lvtc(upgrade: Upgrade, before: InternVLXConfig, after: InternVLXConfig, init: str) -> None:
    upgrade.new.append(f"{LVTC}.*")
    if init == "paper":
        return
    old = before.projector_config.projector_type
    for name, (kind, side) in _projectors(after).items():
        if name == PROJECTOR:
            continue
        part = PROJECTORS[kind].part_of_type(after, old) if old in WARM_QUERIES else None
        if name == HR_PROJECTOR and part is not None and _is_for_stage_two(before, after):
            _start_as_source(upgrade, name, before, after)
            continue
        upgrade.zero += [f"{name}.{pattern}" for pattern in PROJECTORS[kind].zero_parameters]
        if part is not None:
            derived = _reshaped(_join(name, part), before, side)
            upgrade.rules += [rule for rule in derived if not upgrade.starts_at_zero(_example(rule))]


def _start_as_source(upgrade: Upgrade, name: str, before: InternVLXConfig, after: InternVLXConfig) -> None:
    """Start the projector `name` with the output of the checkpoint's, up to the size of its windows."""
    kind, side = _projectors(after)[name]
    part = PROJECTORS[kind].part_of_type(after, before.projector_config.projector_type)
    upgrade.rules += _reshaped(_join(name, part), before, side)
    if part:
        zero = [pattern for pattern in PROJECTORS[kind].zero_parameters if not pattern.startswith(part)]
        upgrade.zero += [f"{name}.{pattern}" for pattern in zero]


def _is_for_stage_two(before: InternVLXConfig, after: InternVLXConfig) -> bool:
    """Whether the source's number of tokens is that of stage two, and not of stage one."""
    size = next(size for size in after.sizes if size.has_lvtc)
    return before.image_seq_length == size.after != size.before


def _projectors(config: InternVLXConfig) -> dict[str, tuple[str, int]]:
    return {f"model.{name}": projector for name, projector in config.projectors.items()}


def _example(rule: Rule) -> str:
    return rule.targets[0].format(kind="weight", rest="weight")


def _join(name: str, part: str | None) -> str:
    return f"{name}.{part}" if part else name


def _reshaped(name: str, before: InternVLXConfig, new: int) -> list[Rule]:
    """Rules from the checkpoint's projector, `PROJECTOR`, to `name`, with windows of `new`² patches."""
    _, old = _projectors(before)[PROJECTOR]
    return [  # LLaVA's projector has no norm
        Rule(PROJECTOR + ".layer_norm.{kind}", (name + ".layer_norm.{kind}",), fold_windows(old, new, total=False)),
        Rule(PROJECTOR + ".linear_1.weight", (name + ".linear_1.weight",), fold_windows(old, new, total=True)),
        Rule(PROJECTOR + ".linear_1.bias", (name + ".linear_1.bias",)),
        Rule(PROJECTOR + ".linear_2.{kind}", (name + ".linear_2.{kind}",)),
    ]


def fold_windows(old: int, new: int, *, total: bool) -> Operation:
    """Weights for windows of old x old patches -> for windows of new x new: (..., old² · C) -> (..., new² · C).

    The result treats a smaller window as if each of its patches were several equal ones, and a larger one by block
    means.

    Args:
        total: preserve the sum of the weights over a window; otherwise their mean.
    """

    def fold(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if old == new:
            return (tensor,)
        grid = tensor.unflatten(-1, (old, old, -1)).float()
        if new < old:
            grid = grid.unflatten(-2, (new, -1)).unflatten(-4, (new, -1)).mean((-4, -2))
        else:
            grid = grid.repeat_interleave(new // old, -3).repeat_interleave(new // old, -2)
        scale = (old / new) ** 2 if total else 1
        return ((grid * scale).flatten(-3).to(tensor.dtype),)

    return fold


class InitialValues:
    """Initial values of new tensors: zero if the upgrade says so, else as the model itself initialises them.

    Args:
        config: configuration of the new model.
        seed: determines random values together with a tensor's name.
    """

    def __init__(self, config: InternVLXConfig, upgrade: Upgrade, seed: int):
        self.upgrade, self.seed = upgrade, seed
        with torch.device("meta"):
            self.projectors = {
                f"model.{name}.": build_projector(config, kind, 1 / side, config.other_sides(name))
                for name, (kind, side) in config.projectors.items()
            }

    def __call__(self, name: str, info: TensorInfo) -> torch.Tensor:
        if self.upgrade.starts_at_zero(name):
            return torch.zeros(info.shape, dtype=info.dtype)
        prefix = next(prefix for prefix in self.projectors if name.startswith(prefix))
        module_name, _, own_name = name.removeprefix(prefix).rpartition(".")
        module = copy.deepcopy(self.projectors[prefix].get_submodule(module_name))
        reset_parameters = getattr(module, "reset_parameters", None)
        if reset_parameters is None:  # an RMSNorm
            return torch.ones(info.shape, dtype=info.dtype)
        module.to_empty(device="cpu", recurse=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(name.encode()) + self.seed)
            reset_parameters()
        return getattr(module, own_name).detach().to(info.dtype)


def attention_heads(width: int) -> int:
    """The paper's 16 heads, or the largest smaller number that divides the width."""
    return max(heads for heads in range(1, 17) if width % heads == 0)
