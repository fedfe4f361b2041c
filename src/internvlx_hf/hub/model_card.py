# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The model card of a checkpoint folder, from what a conversion and a training run left in it."""

import os
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import NoneType

from huggingface_hub import ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..checkpoints.checkpoint_names import CARD, NATIVE, OURS, RECIPE, REPORT
from ..checkpoints.json_fields import check_fields
from ..checkpoints.json_files import read_json
from ..checkpoints.links import resolve_inside
from ..modeling import InternVLXConfig
from ..processing import InternVLXImageProcessor
from ..processing.rvtc import TilingRule
from .card_text import TITLE, Card, CardError, renew_card
from .training_facts import RECIPE_FIELDS, TEXT, TrainingFacts, code, one_line

# what a report keeps of the source's card
SOURCE_CARD = ("language?", "license?", "license_name?", "license_link?")
# how new modules start, as the card says it
STARTS = {
    "warm": f"Each starts near what the original knows; `{REPORT}` says tensor by tensor how.",
    "paper": "They start at random: before training the model's answers mean nothing.",
}
REPORT_FIELDS = {
    "source": str,
    "base_model?": TEXT,
    "revision?": TEXT,
    "source_card?": {name: (str, [str], NoneType) for name in SOURCE_CARD},
    "language_model": {"source": str, "model_type": str},
    "options?": {"init?": str},
    "parameters": int,
    "dtype": str,
    "tokens?": {"tile_size": int, "per_tile": int, "max_tiles": int},
    "dropped_tensors": {str: str},
    "untrained_modules?": [str],
    "exact": bool,
    "notes": [str],
    "versions": {"internvlx_hf": str},
}
# (W, H) of the pictures whose costs a card tells
PICTURE_SIZES = ((336, 280), (640, 480), (800, 600), (1024, 768), (1280, 720), (1920, 1080))
USAGE = {
    OURS: """\
```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True, dtype="auto")
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
content = [{{"type": "image", "path": "picture.jpg"}}, {{"type": "text", "text": "What is in the picture?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device)
output = model.generate(**inputs, max_new_tokens=100)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

InternVL's own `model.chat(tokenizer, pixel_values, question, generation_config)` works too. `trust_remote_code=True` runs
the code in this repository; `revision="<commit>"` pins it together with the weights. Where `internvlx-hf` is installed,
`import internvlx_hf` does instead.""",
    NATIVE: """\
```python
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("{name}", dtype="auto")
```""",
}


def write_card(folder: str | Path, name: str | None = None, previous: str | None = None) -> Card:
    """Write a checkpoint folder's README.md, or renew the generated parts of one that is there.

    Args:
        folder: a checkpoint, with its `conversion_report.json` and `training_recipe.json` if it has them.
        name: what the example loads, a Hub id or a path; unset: the folder's name.
        previous: the card to renew; unset: the folder's README.md.

    Returns:
        The card. `edited` names what a person had changed and was left so.

    Raises:
        CardError: the card that is there has a damaged mark or metadata that are not valid. It is left as it is.
        ValueError, OSError: the folder is no checkpoint of ours.
    """
    folder = Path(folder)
    card = model_card(folder, name, read_card(folder) if previous is None else previous)
    _write_whole(folder / CARD, card.text)
    return card


def model_card(folder: str | Path, name: str | None = None, previous: str = "") -> Card:
    """The card that [`write_card`] writes."""
    facts = CardFacts(Path(folder))
    return renew_card(
        previous, facts.metadata(), lambda metadata: facts.sections(name or facts.folder.resolve().name, metadata)
    )


def read_card(folder: str | Path) -> str:
    """A folder's README.md; empty where there is none.

    Raises:
        CardError: it is not UTF-8 text.
        LinkError: it is a link out of the folder or to nothing. A `ValueError`.
    """
    path = Path(folder) / CARD
    if not os.path.lexists(path):
        return ""
    try:
        return resolve_inside(folder, CARD).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CardError(f"{path} is not UTF-8 text: {error}") from error


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or as it was."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", delete=False
    ) as file:
        try:
            file.write(text)
            file.close()
            # a temporary file is its owner's alone
            os.chmod(file.name, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_report(path: Path, report: dict) -> None:
    """Raises: ValueError: something is missing that a card needs, or it is of another kind."""
    check_fields(report, REPORT_FIELDS, path)
    if report.get("untrained_modules"):
        init = report.get("options", {}).get("init")
        if init not in STARTS:
            raise ValueError(f"{path}: options.init is {init!r}, expected one of {', '.join(map(repr, STARTS))}.")
    for name, number in report.get("tokens", {}).items():
        if type(number) is int and number < 1:
            raise ValueError(f"{path}: tokens.{name} is {number}, expected at least 1.")


@dataclass
class CardFacts:
    """What a checkpoint folder tells about itself.

    Args:
        folder: the checkpoint.

    Raises:
        ValueError: config.json is missing or of another kind of model, or a report is damaged.
    """

    folder: Path
    kind: str = field(init=False)
    report: dict = field(init=False)
    training: TrainingFacts | None = field(init=False)

    def __post_init__(self):
        config = read_json(self.folder / "config.json")
        self.kind = config.get("model_type")
        if self.kind not in USAGE:
            found = f"model_type={self.kind!r}" if config else "no config.json"
            raise ValueError(f"{self.folder} has {found}, expected a checkpoint of model type {OURS!r} or {NATIVE!r}.")
        self.report = read_json(self.folder / REPORT)
        if self.report:
            _check_report(self.folder / REPORT, self.report)
        recipe = read_json(self.folder / RECIPE)
        check_fields(recipe, RECIPE_FIELDS, self.folder / RECIPE)
        self.training = TrainingFacts(recipe) if recipe else None

    @cached_property
    def config(self) -> InternVLXConfig:
        return InternVLXConfig.from_pretrained(self.folder)

    @property
    def base_model(self) -> str | None:
        """Hub id of what this model comes from."""
        candidates = [self.training.base_model if self.training else None, self.report.get("base_model")]
        return next((name for name in candidates if is_hub_id(name)), None)

    @property
    def untrained_modules(self) -> list[str]:
        """Modules that a conversion made anew and that no training has seen since."""
        modules = self.report.get("untrained_modules", [])
        return [name for name in modules if not (self.training and self.training.has_trained(name))]

    def metadata(self) -> dict:
        """What the Hub reads, by `huggingface_hub`'s names."""
        known = {name.rstrip("?") for name in SOURCE_CARD}
        source = {name: value for name, value in self.report.get("source_card", {}).items() if name in known}
        is_ours = self.kind == OURS
        training = self.training
        data = ModelCardData(
            library_name="transformers",
            pipeline_tag="image-text-to-text",
            base_model=self.base_model,
            base_model_relation="finetune" if self.base_model else None,
            datasets=training.hub_datasets or None if training else None,
            tags=["internvl", "vision-language", *(["internvl_x", "custom_code"] if is_ours else [])],
            eval_results=training.eval_results or None if training else None,
            model_name=self.title if training and training.eval_results else None,
            **source,
        )
        return data.to_dict()

    @property
    def title(self) -> str:
        base = one_line((self.base_model or self.report.get("source") or "").rpartition("/")[-1])
        kind = "transformers' native InternVL" if self.kind == NATIVE else "InternVL-X for Transformers"
        if self.training:
            return f"{base}, trained as {kind}" if base else f"{kind}, trained"
        return f"{base}, converted to {kind}" if base else kind

    def sections(self, name: str, metadata: dict) -> dict[str, str]:
        """Markdown by section, in order; a section that has nothing to say is empty.

        Args:
            name: what the example loads.
            metadata: of the card, a person's included.
        """
        training = self.training
        return {
            TITLE: f"# {self.title}",
            "summary": self._summary(),
            "untrained": self._untrained(),
            "data": training.data_section() if training else "",
            "recipe": training.recipe_section() if training else "",
            "metrics": training.metrics_section() if training else "",
            "cost": self._cost(),
            "use": "## Use\n\n" + USAGE[self.kind].format(name=name),
            "licence": self._licence(metadata),
        }

    def _summary(self) -> str:
        paragraphs = [self._conversion(), self.training.summary() if self.training else "", self._architecture()]
        return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)

    def _conversion(self) -> str:
        report = self.report
        if not report:
            return ""
        revision = f" at revision {code(report['revision'])}" if report.get("revision") else ""
        lines = [
            f"Converted from {code(report.get('base_model') or report['source'])}{revision} by internvlx-hf "
            f"{one_line(report['versions']['internvlx_hf'])}: {_millions(report['parameters'])} parameters in "
            f"{one_line(report['dtype'])}, language model {code(report['language_model']['source'])} as "
            f"{code(report['language_model']['model_type'])}."
        ]
        if report["exact"] and not self.training:
            lines.append("The weights are those of the original, and so are the answers to the same tiles.")
            if self.kind == OURS:
                lines[-1] += (
                    " The image processor turns pictures upright and resizes them by torch, at most one level of 255 from "
                    "Pillow; `do_exif_transpose=False, resize_backend='pillow'` give the original's very pixels."
                )
        if dropped := report["dropped_tensors"]:
            lines.append(
                "Tensors left out: " + "; ".join(f"{code(k)} ({one_line(v)})" for k, v in dropped.items()) + "."
            )
        return "\n\n".join([*lines, *report["notes"]])

    def _architecture(self) -> str:
        if self.kind != OURS:
            return ""
        config, lvtc = self.config, self.config.lvtc_config
        text = (
            f"Vision tower `{config.vision_config.model_type}`, projector `{config.projector_config.projector_type}`, "
            f"language model `{config.text_config.model_type}` of {config.text_config.num_hidden_layers} layers"
        )
        if lvtc is not None:
            text += (
                f"; LVTC expands each tile from {config.image_seq_length} to {config.expanded_image_seq_length} tokens "
                f"before layer {lvtc.expand_layer}"
            )
        return f"{text}. The model is described in [InternVL-X](https://arxiv.org/abs/2503.21307)."

    def _untrained(self) -> str:
        if not self.untrained_modules:
            return ""
        modules = "\n".join(f"- {code(module)}" for module in self.untrained_modules)
        init = self.report["options"]["init"]
        text = STARTS[init]
        if init == "warm" and any(name.startswith("model.lvtc.") for name in self.untrained_modules):
            text += (
                " With LVTC that is not enough: the last layers see other tokens than they know, and before training the "
                "answers say little of the model."
            )
        return f"## Not trained yet\n\nThese modules need training:\n\n{modules}\n\n{text}"

    def _cost(self) -> str:
        tiling = self._tiling()
        if tiling is None:
            return ""
        tile_size, max_tiles, slicing, num_tiles, per_tile, expanded = tiling
        grows = expanded != per_tile
        after = f", and {expanded} in the layers after LVTC's expansion" if grows else ""
        header = ["picture", "tiles", "tokens", *(["after the expansion"] if grows else [])]
        rows = [header, ["---"] * len(header)]
        for width, height in PICTURE_SIZES:
            tiles = num_tiles(height, width)
            cells = [f"{width}x{height}", tiles, tiles * per_tile, *([tiles * expanded] if grows else [])]
            rows.append([str(cell) for cell in cells])
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return (
            f"## What a picture costs\n\nA tile of {tile_size}x{tile_size} pixels takes {per_tile} tokens{after}. A picture "
            f"is cut into at most {max_tiles} tiles (slicing `{slicing}`), and a thumbnail if there is more than one.\n\n"
            f"{table}"
        )

    def _image_processor(self) -> InternVLXImageProcessor:
        try:
            return InternVLXImageProcessor.from_pretrained(self.folder)
        except ValueError as error:
            raise ValueError(f"The image processor of {self.folder}: {error}") from error

    def _tiling(self) -> tuple | None:
        """Tile side, most tiles, slicing, a function that counts tiles, and tokens a tile in the two stages."""
        if self.kind == OURS:
            processor = self._image_processor()
            tokens = (self.config.image_seq_length, self.config.expanded_image_seq_length)
            count = processor.get_number_of_image_patches
            return processor.size["height"], processor.max_patches, processor.slicing, count, *tokens
        if tokens := self.report.get("tokens"):
            # transformers' own processor cuts as InternVL did
            rule = TilingRule(tokens["tile_size"], tokens["tile_size"], max_tiles=tokens["max_tiles"], slicing="ratio")
            per_tile = tokens["per_tile"]
            return (
                tokens["tile_size"],
                tokens["max_tiles"],
                "ratio",
                lambda height, width: rule.plan(width, height).num_tiles,
                per_tile,
                per_tile,
            )
        return None

    def _licence(self, metadata: dict) -> str:
        licence, base = metadata.get("license_name") or metadata.get("license"), self.base_model
        of_base = f" The terms of [{base}](https://huggingface.co/{base}) hold for what comes from it." if base else ""
        code = " The code in this repository is Apache-2.0." if self.kind == OURS else ""
        if licence:
            names = one_line(", ".join(map(str, licence)) if isinstance(licence, list) else licence)
            link = metadata.get("license_link")
            weights = f"Weights: {f'[{names}]({one_line(link)})' if link else f'`{names}`'}."
        else:
            weights = "Which licence the weights have is not known: name it in this card's metadata (`license: ...`)."
        return f"## Licence\n\n{weights}{of_base}{code}"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"


def is_hub_id(name: str | None) -> bool:
    """Whether a name can be a repository's on the Hub, owner and all."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return name is not None and name.count("/") == 1
