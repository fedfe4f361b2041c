# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a conversion did, for people and for programs."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers


@dataclass
class ConversionReport:
    """What a conversion did, as `conversion_report.json` holds it.

    Args:
        source: folder or Hub id.
        revision: the source's commit where it is known.
        layout: layout of the source, see `sources.LAYOUTS`.
        language_model: class of the source's language model, and the model type that it became.
        options: arguments of `convert_checkpoint`.
        parameters: of the converted model.
        dtype: of the weights.
        tokens: a tile's tokens in the prompt, and behind LVTC's expansion; most tiles a picture, the thumbnail not counted.
        converted_tensors: how many of the source's tensors were converted.
        dropped_tensors: those that were not, and why.
        new_tensors: those that no source tensor filled, and how they start.
        derived_tensors: those that started from a tensor of another shape or place, and from which.
        exact: whether the model's answers are those of the source.
        notes: what else a user should know.
        versions: of this package and of the libraries.
        checks: what `verify` found.
    """

    source: str
    revision: str | None
    layout: str
    language_model: dict[str, str]
    options: dict
    parameters: int
    dtype: str
    tokens: dict[str, int]
    converted_tensors: int
    dropped_tensors: dict[str, str]
    new_tensors: dict[str, str]
    derived_tensors: dict[str, str]
    exact: bool
    notes: list[str]
    versions: dict[str, str]
    checks: dict = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def untrained_modules(self) -> list[str]:
        """Modules that the source did not have, which need training."""
        return sorted({_module(name) for name in [*self.new_tensors, *self.derived_tensors]})


def _module(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[: 3 if "lvtc" in parts else 2])


def make_report(conversion) -> ConversionReport:
    """The report of a [`Conversion`]."""
    source, config, plan = conversion.source, conversion.config, conversion.plan
    derived = derived_tensors(conversion)
    start = {True: "zero", False: "random or constant, as the model initialises it"}
    return ConversionReport(
        source=conversion.options["source"],
        revision=source_revision(conversion),
        layout=source.layout,
        language_model={"source": source.architecture, "model_type": config.text_config.model_type},
        options=dict(conversion.options),
        parameters=sum(info.meta().numel() for info in [*_written(plan), *plan.new.values()]),
        dtype=str(config.dtype).removeprefix("torch."),
        tokens={
            "per_tile": config.image_seq_length,
            "per_tile_expanded": config.expanded_image_seq_length,
            "max_tiles": source.tiling.max_patches,
        },
        converted_tensors=len(plan.steps),
        dropped_tensors=plan.dropped,
        new_tensors={name: start[conversion.upgrade.starts_at_zero(name)] for name in plan.new},
        derived_tensors=derived,
        exact=not plan.new and not derived,
        notes=source.notes,
        versions=_versions(),
    )


def _written(plan):
    return (info for group in plan.groups.values() for info in group.values())


def derived_tensors(conversion) -> dict[str, str]:
    """Target tensors that come from a tensor of the model as it was, but stand elsewhere or have another shape."""
    derived = {}
    for name, (rule, later) in conversion.plan.steps.items():
        for target, rules in zip(rule.match(name), later, strict=True):
            derived |= {new: target for next_rule in rules for new in next_rule.match(target) if new != target}
    return derived


def source_revision(conversion) -> str | None:
    """Commit of the source: a Hub snapshot's folder is named after it."""
    folder = conversion.source.folder
    if folder.parent.name == "snapshots":
        return folder.name
    return conversion.options["revision"] or conversion.source.raw.get("_commit_hash")


def _versions() -> dict[str, str]:
    from .. import __version__

    return {"internvlx_hf": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


def write_report(report: ConversionReport, folder: Path) -> None:
    """Write `conversion_report.json`."""
    (folder / "conversion_report.json").write_text(report.to_json())
