# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The plan of a conversion, made before a value is read: what happens to each source tensor, and what fills each
target.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from transformers import PretrainedConfig

from ..checkpoints.errors import CheckpointError, listed
from ..checkpoints.weights import HEAD, TensorInfo, model_tensors
from ..modeling import InternVLXConfig
from .tensor_tables import Rule, apply, keep
from .upgrades import Upgrade

EMBEDDING = "model.language_model.embed_tokens.weight"
TEXT, VISION = "model.language_model.", "model.vision_tower."
# settings that determine the tensors' shapes
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "image_size", "patch_size", "num_channels"),
    *("attention_bias", "use_qk_norm", "norm_type"),
    *("projector_type", "num_layers", "use_local", "use_global", "use_cls_scale", "query_mlp", "mlp_ratio"),
    *("downsample_ratio", "hr_projector_type", "num_lr_projectors", "lr_projector_type"),
)


# their names in the layout internvl_chat
ALIASES = {"attention_bias": " (qkv_bias)", "use_qk_norm": " (qk_normalization)"}


@dataclass(frozen=True)
class Step:
    """How a source tensor is converted: a rule, its targets, and for each target the upgrade's rules."""

    rule: Rule
    targets: tuple[str, ...]
    upgrades: tuple[tuple[Rule, ...], ...]


@dataclass
class Plan:
    """How a checkpoint is converted.

    Args:
        steps: how each source tensor is converted, by name.
        groups: target tensors that each source tensor fills, by its name.
        dropped: why source tensors are left out, by name.
        new: target tensors that no source tensor fills.
        dtype: the dtype to state in the model's configuration.
    """

    steps: dict[str, Step] = field(default_factory=dict)
    groups: dict[str, dict[str, TensorInfo]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    new: dict[str, TensorInfo] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def convert(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and values of the target tensors that a source tensor fills."""
        step = self.steps[name]
        parts = apply(step.rule, name, tensor)
        for target, part, upgrades in zip(step.targets, parts, step.upgrades, strict=True):
            if not upgrades:
                yield target, part
            for rule in upgrades:
                yield from zip(rule.targets_of(target), apply(rule, target, part), strict=True)

    @property
    def derived(self) -> dict[str, str]:
        """Targets that come from a tensor with another name or shape in the old model, with that tensor's name."""
        pairs = [pair for step in self.steps.values() for pair in zip(step.targets, step.upgrades, strict=True)]
        return {
            new: target
            for target, upgrades in pairs
            for rule in upgrades
            for new in rule.targets_of(target)
            if new != target or rule.operation is not keep
        }


def target_tensors(config: InternVLXConfig) -> dict[str, TensorInfo]:
    """Shape and dtype of every tensor in a saved model with this configuration."""
    tensors = model_tensors(config)
    if config.tie_word_embeddings:
        tensors.pop(HEAD)
    return tensors


def make_plan(
    table: list[Rule],
    before: InternVLXConfig,
    tensors: dict[str, TensorInfo],
    *,
    upgrade: Upgrade | None = None,
    after: InternVLXConfig | None = None,
    dtype: torch.dtype | None = None,
) -> Plan:
    """Match a source's tensors with those of the target.

    Args:
        table: rules from source names to names in the old model.
        before: configuration of the old model.
        tensors: tensors of the source.
        upgrade: rules from names in the old model to names in the new one, and which of its tensors are new.
        after: configuration of the new model.
        dtype: dtype to write; None: as stored.

    Raises:
        CheckpointError: if tensors are missing, unexpected, of the wrong shape or not floating-point; the message
            names them.
    """
    upgrade, after = upgrade or Upgrade(), after or before
    plan = Plan()
    unexpected = [name for name in tensors if not _match(plan, table, name)]
    _check_dtypes(plan, tensors)
    _check_depth(plan, before)
    _check_source(plan, table, before, tensors, unexpected, upgrade)
    _add_upgrades(plan, upgrade)
    for name in plan.steps:
        converted = plan.convert(name, tensors[name].meta())
        plan.groups[name] = {target: TensorInfo(tuple(meta.shape), dtype or meta.dtype) for target, meta in converted}
    _find_new(plan, upgrade, after, dtype)
    return plan


def _match(plan: Plan, table: list[Rule], name: str) -> bool:
    """Find the rule of the table for a tensor and add it to the plan."""
    for rule in table:
        if rule.matches(name):
            targets = rule.targets_of(name)
            if rule.reason:
                plan.dropped[name] = rule.reason
            else:
                plan.steps[name] = Step(rule, targets, ((),) * len(targets))
            return True
    return False


def _check_dtypes(plan: Plan, tensors: dict[str, TensorInfo]) -> None:
    """Check that all tensors to convert are floating-point with at least 16 bits."""
    dtypes = {name: tensors[name].dtype for name in plan.steps}
    wrong = [
        f"{name} ({dtype})" for name, dtype in dtypes.items() if dtype.itemsize < 2 or not dtype.is_floating_point
    ]
    if wrong:
        raise CheckpointError(
            f"Not all weights are floating-point numbers of at least 16 bits: {listed(wrong)}. Convert the checkpoint "
            "that has not been quantized."
        )


def _check_depth(plan: Plan, config: InternVLXConfig) -> None:
    """Refuse more layers than there are tensors, before building such a model takes long."""
    targets = [target for step in plan.steps.values() for target in step.targets]
    for part, prefix in (("text_config", TEXT), ("vision_config", VISION)):
        layers = getattr(config, part).num_hidden_layers
        stored = sum(target.startswith(prefix) for target in targets)
        if layers > stored:
            name = prefix.split(".")[1]
            raise CheckpointError(
                f"config.json says num_hidden_layers={layers} of the {name} ({part}), but the checkpoint holds only "
                f"{stored} tensors of it."
            )


def _check_source(
    plan: Plan,
    table: list[Rule],
    config: InternVLXConfig,
    tensors: dict[str, TensorInfo],
    unexpected: list[str],
    upgrade: Upgrade,
) -> None:
    """Check that a source's tensors, renamed and split, are those of the model that its config.json describes."""
    targets, misshapen, filled = target_tensors(config), [], set()
    for name in plan.steps:
        for target, meta in plan.convert(name, tensors[name].meta()):
            shape = tuple(meta.shape)
            if target not in targets:
                unexpected.append(name)
            elif shape != targets[target].shape:
                misshapen.append(
                    f"{name} {tensors[name].shape}, as {target} {shape} instead of {targets[target].shape}"
                )
            filled.add(target)
    missing = [_source_name(table, name) for name in targets if name not in filled and not upgrade.is_absent(name)]
    problems = {"missing": list(dict.fromkeys(missing))}
    problems |= {"unexpected": list(dict.fromkeys(unexpected)), "misshapen": misshapen}
    if any(problems.values()):
        found = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(
            f"The checkpoint's tensors do not fit its config.json. {found}. It says of the language model "
            f"{_sizes(config.text_config)}; of the vision tower {_sizes(config.vision_config)}; of the projector "
            f"{_sizes(config.projector_config)}; lvtc_config: {_sizes(config.lvtc_config) or 'none'}."
        )


def _sizes(config: PretrainedConfig | None) -> str:
    return ", ".join(
        f"{name}{ALIASES.get(name, '')}={getattr(config, name)}" for name in SIZES if hasattr(config, name)
    )


def _source_name(table: list[Rule], target: str) -> str:
    """A tensor's name in the source; the last matching rule counts, since native checkpoints have older names too."""
    names = [name for rule in table if (name := rule.source_of(target))]
    return names[-1] if names else target


def _add_upgrades(plan: Plan, upgrade: Upgrade) -> None:
    for name, step in list(plan.steps.items()):
        upgrades = tuple(tuple(upgrade.rules_for(target)) for target in step.targets)
        if reasons := [rules[0].reason for rules in upgrades if rules and rules[0].reason]:
            plan.dropped[name] = reasons[0]
            del plan.steps[name]
        else:
            plan.steps[name] = replace(step, upgrades=upgrades)


def _find_new(plan: Plan, upgrade: Upgrade, after: InternVLXConfig, dtype: torch.dtype | None) -> None:
    targets = target_tensors(after)
    filled = {target: info for group in plan.groups.values() for target, info in group.items()}
    wrong = [name for name, info in filled.items() if name not in targets or targets[name].shape != info.shape]
    wrong += [name for name in targets if name not in filled and not upgrade.is_new(name)]
    if wrong:
        raise CheckpointError(f"The upgrade leaves tensors that do not fit the new model: {listed(wrong)}.")
    declared = after.dtype if isinstance(after.dtype, torch.dtype) else None
    plan.dtype = dtype or declared or next(iter(filled.values())).dtype
    plan.new = {name: TensorInfo(info.shape, plan.dtype) for name, info in targets.items() if name not in filled}
