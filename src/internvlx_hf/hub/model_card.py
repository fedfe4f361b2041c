# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The model card of a checkpoint folder, generated from its configuration, conversion report and training recipe."""

import hashlib
import html
import os
import re
import shutil
from pathlib import Path
from types import NoneType
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import ChainableUndefined, Environment

from ..checkpoints.folders import is_hub_id, resolve_inside
from ..checkpoints.json_files import check_fields, read_json
from ..checkpoints.names import CARD, LLAVA, NATIVE, OURS, RECIPE, REPORT
from ..checkpoints.numbers import number
from ..modeling import InternVLXConfig
from ..processing import InternVLXImageProcessor
from .card_text import Card, CardError, renew_card

# model type -> what the card calls it
KINDS = {
    OURS: "InternVL-X for Transformers",
    NATIVE: "transformers' native InternVL",
    LLAVA: "transformers' LLaVA",
}
TEMPLATE = Path(__file__).with_name("card_template.md.jinja")
TEXT, NUMBER = (str, NoneType), (int, float, NoneType)
# metadata of the source's card that a report keeps
SOURCE_CARD = ("language?", "license?", "license_name?", "license_link?")
PART = {"source": str, "base_model?": TEXT, "revision?": TEXT}
REPORT_FIELDS = {
    "source": str,
    "base_model?": TEXT,
    "revision?": TEXT,
    "source_card?": {name: (str, [str], NoneType) for name in SOURCE_CARD},
    "language_model": {"source": str, "model_type": str},
    "options?": {"init?": str},
    "parameters": int,
    "dtype": str,
    "tokens?": {"tile_size": int, "per_tile": int, "min_tiles?": int, "max_tiles": int},
    "dropped_tensors": {str: str},
    "untrained_modules?": [str],
    "exact": bool,
    "parts?": {str: PART},
    "inherited?": {"untrained_modules?": [str], "init?": TEXT, "recipe?": TEXT, "upgraded?": bool},
    "notes": [str],
    "versions": {"internvlx_hf": str},
}
DATA = [{"name": str, "samples?": (int, str, NoneType), "repeat_time?": (int, float), "hub_id?": TEXT}]
RECIPE_FIELDS = {
    "base_model?": TEXT,
    "revision?": TEXT,
    "data?": DATA,
    "evaluation_data?": DATA,
    "trained_modules?": {str: int},
    "trained_before?": [str],
    "settings?": {},
    "metrics?": {},
    "steps?": NUMBER,
    "epochs?": NUMBER,
    "tokens?": NUMBER,
    "versions?": {"internvlx_hf?": str},
}
# the Trainer's metrics about the machine and the length of the run
NOT_QUALITY = re.compile(".*(_runtime|_per_second|_flos)|epoch")


def write_card(folder: str | Path, name: str | None = None, previous: str | None = None) -> Card:
    """Write a checkpoint folder's README.md, or renew the generated parts of an existing one.

    Args:
        folder: a checkpoint, with its `conversion_report.json` and `training_recipe.json` if it has them.
        name: the Hub id or path that the example loads (default: the folder's name).
        previous: the card to renew (default: the folder's README.md).

    Returns:
        The card. `edited` names the parts that a person had changed and that were kept.

    Raises:
        CardError: if the existing card has a damaged mark or invalid metadata; it is not changed.
        ValueError, OSError: if the folder is not a checkpoint of this package.
    """
    folder = Path(folder)
    card = model_card(folder, name, read_card(folder) if previous is None else previous)
    path, part = folder / CARD, folder / f".{CARD}.{os.getpid()}"
    try:
        part.write_text(card.text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return card


def model_card(folder: str | Path, name: str | None = None, previous: str = "") -> Card:
    """The card that [`write_card`] writes."""
    facts, name = CardFacts(folder), name or Path(folder).resolve().name
    return renew_card(previous, facts.metadata(), lambda metadata: facts.sections(name, metadata))


def read_card(folder: str | Path) -> str:
    """A folder's README.md; empty if there is none.

    Raises:
        CardError: if it is not UTF-8 text.
        LinkError: if it is a broken link or a link out of the folder. It is a `ValueError`.
    """
    path = Path(folder) / CARD
    if not os.path.lexists(path):
        return ""
    try:
        return resolve_inside(folder, CARD).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CardError(f"{path} is not UTF-8 text: {error}") from error


class CardFacts:
    """Facts about a checkpoint folder, for its card.

    Raises:
        ValueError: if config.json is missing or describes another kind of model, or if a report is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        config = read_json(self.folder / "config.json")
        self.kind = config.get("model_type")
        if self.kind not in KINDS:
            found = f"model_type={self.kind!r}" if config else "no config.json"
            known = " or ".join(map(repr, KINDS))
            raise ValueError(f"{folder} has {found}, expected a checkpoint of model type {known}.")
        self.report = read_json(self.folder / REPORT)
        if self.report:
            check_fields(self.report, REPORT_FIELDS, self.folder / REPORT)
        self.recipe = read_json(self.folder / RECIPE)
        check_fields(self.recipe, RECIPE_FIELDS, self.folder / RECIPE)

    @property
    def was_trained_before(self) -> bool:
        """Whether the recipe is that of the conversion's source, so that the conversion came after the training."""
        digest = self.report.get("inherited", {}).get("recipe")
        return bool(self.recipe) and digest == file_digest(self.folder / RECIPE)

    @property
    def was_upgraded_since(self) -> bool:
        """Whether a conversion after the training changed the model's answers."""
        inherited = self.report.get("inherited", {})
        return self.was_trained_before and (not self.report["exact"] or inherited.get("upgraded", False))

    @property
    def origin(self) -> tuple[str | None, str | None]:
        """Hub id of the model that this one was made from, and its revision."""
        records = (self.report, self.recipe) if self.was_trained_before else (self.recipe, self.report)
        found = ((record.get("base_model"), record.get("revision")) for record in records)
        return next((origin for origin in found if is_hub_id(origin[0])), (None, None))

    @property
    def base_model(self) -> str | None:
        return self.origin[0]

    @property
    def parts(self) -> dict[str, dict]:
        """Sources of the vision tower and the language model, for a model from parts."""
        parts = self.report.get("parts") or {}
        return parts if {"vision_tower", "language_model"} <= parts.keys() else {}

    @property
    def base_models(self) -> list[str]:
        """Hub ids of all models that this one was made from."""
        names = [self.base_model] if self.base_model else [part.get("base_model") for part in self.parts.values()]
        return list(dict.fromkeys(filter(is_hub_id, names)))

    @property
    def untrained_modules(self) -> list[str]:
        """Modules that a conversion added and that have not been trained since."""
        trained = tuple(f"{name}." for name in self.trained_since)
        return [name for name in self.report.get("untrained_modules", []) if not f"{name}.".startswith(trained)]

    @property
    def trained_since(self) -> set[str]:
        """Modules that trainings since the conversion have trained."""
        if self.was_trained_before:
            return set()
        return {*self.recipe.get("trained_modules", {}), *self.recipe.get("trained_before", [])}

    @property
    def start(self) -> str | None:
        """How the untrained modules start, the `init` of the conversions that added them: "paper" if any starts at
        random.
        """
        inherited = self.report.get("inherited", {})
        old = set(self.untrained_modules).intersection(inherited.get("untrained_modules", ()))
        starts = [inherited.get("init")] if old else []
        if self.report and not self.report["exact"]:
            starts.append(self.report.get("options", {}).get("init"))
        return "paper" if "paper" in starts else starts[0] if starts else None

    @property
    def quality(self) -> dict[str, float]:
        """Training metrics about the model's quality, without those about the machine. A later upgrade makes them
        void.
        """
        if self.was_upgraded_since:
            return {}
        metrics = self.recipe.get("metrics", {}).items()
        return {name: x for name, x in metrics if type(x) in (int, float) and not NOT_QUALITY.fullmatch(name)}

    @property
    def title(self) -> str:
        base = one_line((self.base_model or self.report.get("source", "")).rpartition("/")[-1])
        kind = KINDS[self.kind or OURS]
        if self.recipe:
            return f"{base}, trained as {kind}" if base else f"{kind}, trained"
        return f"{base}, {'joined as' if self.parts else 'converted to'} {kind}" if base else kind

    def metadata(self) -> dict:
        """Metadata for the Hub, with the names of `huggingface_hub`."""
        hub_ids = [entry.get("hub_id") for entry in self.recipe.get("data", [])]
        datasets = [name for name in dict.fromkeys(hub_ids) if is_hub_id(name, needs_owner=False)]
        results = self._eval_results()
        source = self.report.get("source_card", {})
        return ModelCardData(
            library_name="transformers",
            pipeline_tag="image-text-to-text",
            base_model=self.base_model or self.base_models or None,
            base_model_relation="finetune" if self.base_model else None,
            datasets=datasets or None,
            tags=[
                "llava" if self.kind == LLAVA else "internvl",
                "vision-language",
                *(["internvl_x", "custom_code"] if self.kind == OURS else []),
            ],
            eval_results=results or None,
            model_name=self.title if results else None,
            **{name: value for name, value in source.items() if f"{name}?" in SOURCE_CARD},
        ).to_dict()

    def _eval_results(self) -> list[EvalResult]:
        """Metrics of the evaluation data, as the Hub lists them."""
        data = self.recipe.get("evaluation_data", [])
        hub_id = data[0].get("hub_id") if data else None
        return [
            EvalResult(
                task_type="image-text-to-text",
                dataset_type=hub_id if is_hub_id(hub_id, needs_owner=False) else "custom",
                dataset_name=", ".join(entry["name"] for entry in data),
                metric_type=metric.removeprefix("eval_"),
                metric_value=value,
            )
            for metric, value in self.quality.items()
            if data and re.match("eval_.", metric)
        ]

    def sections(self, name: str, metadata: dict) -> dict[str, str]:
        """Markdown by section, in the template's order; sections without content are empty.

        Args:
            name: the Hub id or path that the example loads.
            metadata: the card's metadata, including manual values.
        """
        config = InternVLXConfig.from_pretrained(self.folder) if self.kind == OURS else None
        licence = metadata.get("license_name") or metadata.get("license")
        per_tile = config.image_seq_length if config else self.report.get("tokens", {}).get("per_tile")
        environment = Environment(undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"code": code, "line": one_line, "number": lambda value: one_line(number(value))}
        environment.tests["hub_id"] = is_hub_id
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        context = template.new_context(
            vars(self)
            | {
                "facts": self,
                "name": name,
                "config": config,
                "processor": self._image_processor(),
                "per_tile": per_tile,
                "expanded": config.expanded_image_seq_length if config else per_tile,
                "licence": ", ".join(map(str, licence)) if isinstance(licence, list) else licence,
                "licence_link": metadata.get("license_link"),
            }
        )
        return {
            section: re.sub("\n{3,}", "\n\n", "".join(render(context)).strip())
            for section, render in template.blocks.items()
        }

    def _image_processor(self) -> InternVLXImageProcessor | None:
        """The folder's image processor, or one that tiles like transformers' own; None if its settings are not
        known.
        """
        try:
            if self.kind == OURS:
                return InternVLXImageProcessor.from_pretrained(self.folder)
            if tokens := self.report.get("tokens"):
                size = {"height": tokens["tile_size"], "width": tokens["tile_size"]}
                bounds: dict[str, Any] = {
                    "slicing": "ratio",
                    "min_patches": tokens.get("min_tiles", 1),
                    "max_patches": tokens["max_tiles"],
                }
                return InternVLXImageProcessor(size=size, **bounds)
        except ValueError as error:
            raise ValueError(f"The image processor of {self.folder}: {error}") from error
        return None


def file_digest(path: Path) -> str:
    """The SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_line(value) -> str:
    """A value, escaped for the card's text or a table cell, which a bar, a tag or a line break would corrupt."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", "\\|")


def code(value) -> str:
    """A value as inline code. HTML is not interpreted there, but a backtick would end it."""
    return f"`{' '.join(str(value).split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
