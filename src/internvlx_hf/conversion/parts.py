# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The parts of a model: reading the vision tower or the language model of a checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from ..checkpoints.errors import CheckpointError, blaming, listed
from ..checkpoints.folders import check_links
from ..checkpoints.json_files import read_json
from ..checkpoints.names import LLAVA
from ..checkpoints.weights import HEAD, Weights
from ..modeling.configuration_internvlx import SUPPORTED_TEXT_MODELS
from ..modeling.setting_checks import pair
from .field_rules import CONFIG_RULES, check_values
from .joined_weights import PartWeights
from .plan import TEXT, VISION
from .sources import (
    LAYOUTS,
    REQUIRED_TEXT_FIELDS,
    VISION_ARCHITECTURES,
    chat_text_config,
    chat_vision_config,
    read_source,
)
from .tensor_tables import TEXT_TABLE, Rule, internlm2_table, source_table, vision_table

TOWER, LANGUAGE = "vision_tower", "language_model"
INTERNLM2 = "InternLM2ForCausalLM"
# prefixes of the layout internvl_chat, which a checkpoint of a single part lacks
CHAT_PREFIXES = {TOWER: "vision_model.", LANGUAGE: "language_model."}
# names of a part in checkpoints of whole models, older and newer
NATIVE_TABLES = {
    TOWER: [Rule(f"{name}.{{rest}}", (VISION + "{rest}",)) for name in ("vision_tower", "model.vision_tower")],
    LANGUAGE: [
        *(Rule(name, (HEAD,)) for name in ("language_model.lm_head.weight", HEAD)),
        *(Rule(f"{name}.{{rest}}", (TEXT + "{rest}",)) for name in ("language_model.model", "model.language_model")),
    ],
}
# prefixes of the other tensors of a whole model
OTHER_PARTS = ("projector.", "mlp1.", "multi_modal_projector.", "model.multi_modal_projector.", "model.lvtc.")
OTHER_PREFIXES = {
    TOWER: (*OTHER_PARTS, "language_model.", "model.language_model.", HEAD),
    LANGUAGE: (*OTHER_PARTS, "vision_model.", "vision_tower.", "model.vision_tower."),
}
# some tower classes, depending on the version of transformers, wrap their modules in one of this name
WRAPPER = "vision_model."


@dataclass
class ModelPart:
    """The vision tower or the language model of a checkpoint.

    Args:
        name: `TOWER` or `LANGUAGE`.
        folder: the checkpoint.
        raw: the checkpoint's config.json.
        config: configuration of the part.
        architecture: class name of the part.
        weights: tensors of the part.
        table: rules from their names to those of an `InternVLXForConditionalGeneration`.
    """

    name: str
    folder: Path
    raw: dict
    config: PretrainedConfig
    architecture: str
    weights: PartWeights
    table: list[Rule]

    @property
    def joined_table(self) -> list[Rule]:
        """The table with the names of `JoinedWeights`."""
        return [replace(rule, source=self.weights.name(rule.source)) for rule in self.table]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype with the most stored bytes."""
        sizes: dict[torch.dtype, int] = {}
        for name, info in self.weights.weights.tensors.items():
            if self.weights.owns(name):
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.num_bytes
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def note(self) -> str | None:
        """A note on the tensors of the checkpoint that are not used, None if all are."""
        unused = [name for name in self.weights.weights.tensors if not self.weights.owns(name)]
        if not unused:
            return None
        return f"{len(unused)} tensors outside the {self.name} are not used: {listed(unused, 3)}."


def read_tower(folder: Path) -> ModelPart:
    """Read the vision tower from a checkpoint of a tower or of a model that contains one.

    Raises:
        CheckpointError: if there is none, or it is not supported; the message names it.
    """
    raw, weights = _read(folder)
    with blaming(folder / "config.json"):
        if raw.get("model_type") in LAYOUTS and raw["model_type"] != LLAVA:
            return _part_of_model(TOWER, folder, raw, weights)
        if set(raw.get("architectures") or ()) & set(VISION_ARCHITECTURES):
            config = chat_vision_config(raw, pair(raw.get("image_size", 0))[0])
            grid = config.image_size[0] // config.patch_size[0]
            table = _without_prefix(vision_table(grid, grid), TOWER)
            return ModelPart(TOWER, folder, raw, config, raw["architectures"][0], _everything(TOWER, weights), table)
        return _native_tower(folder, raw, weights)


def read_language_model(folder: Path) -> ModelPart:
    """Read the language model from a checkpoint of one, of an InternVL or of a LLaVA.

    Raises:
        CheckpointError: if there is none, or it is not supported; the message names it.
    """
    raw, weights = _read(folder)
    with blaming(folder / "config.json"):
        if raw.get("model_type") in LAYOUTS:
            return _part_of_model(LANGUAGE, folder, raw, weights)
        config, table = _language_config(raw), TEXT_TABLE
        names = raw.get("architectures") or [config.model_type]
        if INTERNLM2 in names:
            table = internlm2_table(config)
        table = _without_prefix(table, LANGUAGE)
        return ModelPart(LANGUAGE, folder, raw, config, names[0], _everything(LANGUAGE, weights), table)


def _read(folder: Path) -> tuple[dict, Weights]:
    check_links(folder)
    raw = read_json(folder / "config.json")
    if not raw:
        raise CheckpointError(f"{folder} has no config.json, expected a checkpoint's folder.")
    with blaming(folder / "config.json"):
        check_values(raw, CONFIG_RULES)
    return raw, Weights(folder)


def _part_of_model(part: str, folder: Path, raw: dict, weights: Weights) -> ModelPart:
    """A part of a checkpoint in one of `LAYOUTS`."""
    source = read_source(folder, weights.tensors)
    config = source.config.vision_config if part == TOWER else source.config.text_config
    if source.layout == "internvl_chat":
        prefixes = (VISION,) if part == TOWER else (TEXT, HEAD)
        table = [rule for rule in source_table(source) if rule.source.startswith(CHAT_PREFIXES[part])]
        table = [rule for rule in table if all(target.startswith(prefixes) for target in rule.targets)]
    else:
        table = NATIVE_TABLES[part]
    architecture = source.architecture if part == LANGUAGE else config.model_type
    owned = PartWeights(part, weights, lambda name: not name.startswith(OTHER_PREFIXES[part]))
    return ModelPart(part, folder, raw, config, architecture, owned, table)


def _everything(part: str, weights: Weights) -> PartWeights:
    return PartWeights(part, weights, lambda name: True)


def _without_prefix(table: Iterable[Rule], part: str) -> list[Rule]:
    return [replace(rule, source=rule.source.removeprefix(CHAT_PREFIXES[part])) for rule in table]


def _language_config(raw: dict) -> PretrainedConfig:
    names, kind = raw.get("architectures") or [], raw.get("model_type")
    if INTERNLM2 in names:
        return chat_text_config(raw)
    if kind not in SUPPORTED_TEXT_MODELS:
        contains = ", a composite model" if isinstance(raw.get("text_config"), dict) else ""
        raise CheckpointError(
            f"model_type={kind!r}, architectures={names}{contains}: expected a language model of one of the types "
            f"{', '.join(SUPPORTED_TEXT_MODELS)} and internlm2, or a checkpoint that `convert` takes "
            f"({', '.join(LAYOUTS)})."
        )
    if missing := [name for name in REQUIRED_TEXT_FIELDS if raw.get(name) is None]:
        raise CheckpointError(f"The configuration of a {kind} lacks {', '.join(missing)}.")
    return CONFIG_MAPPING[kind].from_dict(raw)


def _native_tower(folder: Path, raw: dict, weights: Weights) -> ModelPart:
    """A tower that AutoModel builds: the whole checkpoint, or the part described by its `vision_config`."""
    config = _tower_config(raw)
    # before the model is built, whose time grows with its layers
    if config.num_hidden_layers > len(weights.tensors):
        raise CheckpointError(
            f"num_hidden_layers={config.num_hidden_layers}, but the checkpoint holds {len(weights.tensors)} tensors."
        )
    model = build_tower(config)
    table, prefixes = _tower_table(model, weights)
    owned = PartWeights(TOWER, weights, lambda name: name.startswith(prefixes))
    return ModelPart(TOWER, folder, raw, config, type(model).__name__, owned, table)


def _tower_table(model: PreTrainedModel, weights: Weights) -> tuple[list[Rule], tuple[str, ...]]:
    """The table of a tower of transformers, and the prefixes of its names in the checkpoint."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    renamed = {name: rename_source_key(name, renamings, [])[0] for name in weights.tensors}
    names = list(model.state_dict())
    own = WRAPPER if all(name.startswith(WRAPPER) for name in names) else ""
    stems = {name.removeprefix(own) for name in names}
    prefix = _prefix(stems, set(renamed.values()))
    found = {name: new.removeprefix(prefix) for name, new in renamed.items() if new.startswith(prefix)}
    found = {name: stem for name, stem in found.items() if stem in stems}
    prefixes = tuple(sorted({name.removesuffix(stem) for name, stem in found.items() if name.endswith(stem)}))
    table = [Rule(name, (VISION + own + stem,)) for name, stem in found.items() if not name.endswith(stem)]
    table += [
        Rule(f"{start}embeddings.position_ids", reason="positions are counted, not stored") for start in prefixes
    ]
    return [*table, *(Rule(start + "{rest}", (VISION + own + "{rest}",)) for start in prefixes)], prefixes


def _tower_config(raw: dict) -> Any:
    kind: Any = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"model_type={kind!r}, architectures={raw.get('architectures')}: expected a vision tower of transformers, "
            f"{', '.join(VISION_ARCHITECTURES)}, or a model that contains one."
        )
    config: Any = CONFIG_MAPPING[kind].from_dict(raw)
    config = getattr(config, "vision_config", config)
    needed = ("image_size", "patch_size", "hidden_size", "num_hidden_layers")
    if missing := [name for name in needed if not isinstance(getattr(config, name, None), int | list | tuple)]:
        raise CheckpointError(
            f"model_type={kind!r} is not a vision tower with a square grid of patches: its configuration has no "
            f"{', '.join(missing)}. Expected for example clip, siglip, dinov2 or internvl_vision."
        )
    return config


def build_tower(config: PretrainedConfig) -> PreTrainedModel:
    """Build a tower on the meta device.

    Raises:
        CheckpointError: if AutoModel cannot build one from this configuration.
    """
    try:
        with torch.device("meta"):
            return AutoModel.from_config(config)
    except Exception as error:  # transformers raises errors of any type for settings that do not fit together
        text = " ".join(str(error).split())
        raise CheckpointError(
            f"transformers cannot build a model of model_type={config.model_type!r}: {text:.300}"
        ) from error


def _prefix(stems: set[str], names: set[str]) -> str:
    """The prefix of a tower's own names, `stems`, in a checkpoint: the one under which most of them are found."""
    example = min(stems)
    found = {name.removesuffix(example) for name in names if name.endswith(example)}
    found = {prefix for prefix in found if not prefix or prefix.endswith(".")}
    if not found:
        raise CheckpointError(
            f"The checkpoint has no vision tower: expected a tensor whose name ends with {example!r}, but it holds "
            f"{listed(sorted(names), 3)}."
        )
    return max(sorted(found), key=lambda prefix: sum(f"{prefix}{stem}" in names for stem in stems))
