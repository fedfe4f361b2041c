# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The report of a conversion, for people and for programs."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import metadata_load
from yaml import YAMLError

from ..checkpoints.names import CARD, RECIPE
from ..hub.model_card import KINDS, CardFacts, file_digest
from .prepare import Conversion
from .sources import Source

# metadata of the source's model card that also applies to the converted model
CARD_FIELDS = ("language", "license", "license_name", "license_link")


@dataclass
class ConversionReport:
    """What a conversion did, as saved in `conversion_report.json`.

    Args:
        source: Hub id, or name of the folder.
        base_model: the source's id on the Hub, if known.
        revision: the source's commit, if known.
        source_card: licence and language, from the metadata of the source's model card.
        layout: layout of the source, see `sources.LAYOUTS`.
        language_model: class of the source's language model, and its model type after conversion.
        options: source and options of the conversion.
        parameters: number of parameters of the converted model.
        dtype: dtype of the weights.
        tokens: a tile's side in pixels, tokens per tile in the prompt and after LVTC's expansion, the slicing
            strategy, and the least and the most tiles per image without the thumbnail.
        converted_tensors: number of source tensors that were converted.
        dropped_tensors: source tensors that were not converted, and why.
        new_tensors: tensors that no source tensor filled, and how they start.
        derived_tensors: tensors that came from one with another name or shape, and which one.
        exact: whether the model gives the same answers as the source: no new and no derived tensors.
        notes: what else a user should know.
        versions: versions of this package and of the libraries.
        checks: results of `verify`.
        parts: for a model from parts, the entry of each part's source.
        inherited: of a source that has a report of its own: its `untrained_modules`, how they start (`init`), and the
            SHA-256 of its `training_recipe.json`, which is kept (`recipe`), and whether the source was `upgraded`
            after that training.
    """

    source: str
    base_model: str | None
    revision: str | None
    source_card: dict
    layout: str
    language_model: dict[str, str]
    options: dict
    parameters: int
    dtype: str
    tokens: dict[str, int | str]
    converted_tensors: int
    dropped_tensors: dict[str, str]
    new_tensors: dict[str, str]
    derived_tensors: dict[str, str]
    exact: bool
    notes: list[str]
    versions: dict[str, str]
    checks: dict = field(default_factory=dict)
    parts: dict[str, dict] = field(default_factory=dict)
    inherited: dict = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"untrained_modules": self.untrained_modules}, indent=2) + "\n"

    def summary(self) -> str:
        """The report in a few lines."""
        tokens = f"{self.tokens['per_tile']} tokens per tile"
        if self.tokens["per_tile_expanded"] != self.tokens["per_tile"]:
            tokens += f", {self.tokens['per_tile_expanded']} after the expansion"
        lines = [
            f"{self.source} ({self.layout}, {self.language_model['source']}): {self.parameters:,} parameters "
            f"in {self.dtype}, {tokens}",
            f"{self.converted_tensors} tensors converted, {len(self.dropped_tensors)} dropped, "
            f"{len(self.new_tensors)} new, {len(self.derived_tensors)} derived",
        ]
        lines += [f"dropped {name}: {reason}" for name, reason in self.dropped_tensors.items()]
        lines += [f"needs training: {module}" for module in self.untrained_modules]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"verified {check}: {found}" for check, found in self.checks.items()]
        return "\n".join(lines)

    @property
    def untrained_modules(self) -> list[str]:
        """Modules that the source did not have, or had untrained, which need training."""
        new = {_module(name) for name in [*self.new_tensors, *self.derived_tensors]}
        return sorted(new.union(self.inherited.get("untrained_modules", ())))


def _module(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[: 3 if "lvtc" in parts else 2])


def read_history(source: Source) -> CardFacts | None:
    """The source's own report and training recipe; None if it has neither.

    Raises:
        CheckpointError: if one of them is damaged.
    """
    facts = CardFacts(source.folder) if source.layout in KINDS else None
    return facts if facts and (facts.report or facts.recipe) else None


def make_report(conversion: Conversion, name: str, history: CardFacts | None = None) -> ConversionReport:
    """The report of a conversion; `name` is the source's."""
    source, config, plan, options = conversion.source, conversion.config, conversion.plan, conversion.options
    parts: dict[str, dict] = {}
    base, revision = base_model(source.folder) or options.base_model, source_revision(conversion)
    if history and not base and (history.base_model or history.parts):
        base, revision, parts = *history.origin, history.parts
    rule = conversion.image_processor.tiling_rule()
    start = {True: "zero", False: "random or constant, as the model initialises it"}
    return ConversionReport(
        source=name,
        base_model=base,
        revision=revision,
        source_card=(history.report.get("source_card", {}) if history else {}) | source_card(source.folder),
        layout=source.layout,
        language_model={"source": source.architecture, "model_type": config.text_config.model_type},
        options={"source": name} | options.recorded(),
        parameters=conversion.num_parameters,
        dtype=str(config.dtype).removeprefix("torch."),
        tokens={
            "tile_size": config.tile_size,
            "per_tile": config.image_seq_length,
            "per_tile_expanded": config.expanded_image_seq_length,
            "min_tiles": rule.min_tiles,
            "max_tiles": rule.max_tiles,
            "slicing": rule.slicing,
        },
        converted_tensors=len(plan.steps),
        dropped_tensors=plan.dropped,
        new_tensors={name: start[conversion.upgrade.starts_at_zero(name)] for name in plan.new},
        derived_tensors=plan.derived,
        exact=conversion.is_exact,
        notes=source.notes,
        versions=_versions(),
        parts=parts,
        inherited=_inherited(history) if history else {},
    )


def _inherited(history: CardFacts) -> dict:
    found: dict[str, Any] = {}
    if untrained := history.untrained_modules:
        found |= {"untrained_modules": untrained, "init": history.start}
    if history.recipe:
        found |= {"recipe": file_digest(history.folder / RECIPE), "upgraded": history.was_upgraded_since}
    return found


def base_model(folder: Path) -> str | None:
    """Hub id of a checkpoint in the Hub's cache, read from the folder's name; None elsewhere."""
    cached = folder.parent.parent.name
    return cached.removeprefix("models--").replace("--", "/", 1) if cached.startswith("models--") else None


def source_card(folder: Path) -> dict:
    """Metadata of the source's model card that also applies to the converted model; empty without a readable card."""
    path = folder / CARD
    try:
        metadata = (metadata_load(path) if path.is_file() else None) or {}
    except (ValueError, YAMLError):
        metadata = {}
    return {name: metadata[name] for name in CARD_FIELDS if metadata.get(name)}


def source_revision(conversion: Conversion) -> str | None:
    """Commit of the source, which is the folder's name in the Hub's cache."""
    folder = conversion.source.folder
    return folder.name if folder.parent.name == "snapshots" else conversion.source.raw.get("_commit_hash")


def _versions() -> dict[str, str]:
    from .. import __version__

    return {"internvlx_hf": __version__, "transformers": transformers.__version__, "torch": torch.__version__}
