# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Building a model from parts: a conversion whose tensors come from a vision tower and a language model."""

import copy
import shutil
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from ..checkpoints.atomic_folder import require_room, resolve_out
from ..checkpoints.errors import CheckpointError, blaming
from ..checkpoints.folders import (
    DOCUMENTS,
    copy_companions,
    find_companions,
    find_source,
    require_apart,
    source_name,
)
from ..checkpoints.names import REPORT
from ..checkpoints.shards import plan_shards
from ..checkpoints.weights import HEAD
from ..hub.checkpoint_folder import checkpoint_folder
from ..modeling import InternVLXConfig, InternVLXLVTCConfig, InternVLXModel, InternVLXProjectorConfig
from ..processing.image_settings import ImageSettings
from ..processing.processing_internvlx import IMAGE_TOKENS
from .convert import GIGABYTE, num_bytes, tensor_groups, write_sidecar, write_weights
from .joined_weights import JoinedWeights
from .options import ConversionOptions, InitOptions
from .parts import LANGUAGE, TOWER, ModelPart, read_language_model, read_tower
from .pixels import pixel_settings
from .plan import EMBEDDING
from .prepare import Conversion, assemble, resolve_tied_embeddings
from .report import ConversionReport, base_model, make_report, source_card
from .sources import Source, Tiling, check_parts
from .templates import TEMPLATES, adapt_template, chat_template, template_tokens
from .tensor_tables import PROJECTOR, Operation, Rule
from .tokenizers import language_tokenizer
from .upgrades import LVTC, Upgrade, attention_heads
from .verify import verify

# an extended vocabulary is padded to a multiple of this, for fast matrix products on GPUs
VOCABULARY_MULTIPLE = 64
# standard deviation of the rows of new tokens around the mean row, relative to that of the other rows
NEW_ROW_STD = 0.02
GGUF = ".gguf"
CHOOSE_TEMPLATE = f"Choose one with `template` (--template): {', '.join(TEMPLATES)}, or the path of a Jinja file."


@dataclass
class _PartSource:
    """Where a part comes from.

    Args:
        given: the folder or Hub id that was given.
        folder: the local folder of its weights.
        documents: the local folder of its model card and licences.
    """

    given: str | Path
    folder: Path
    documents: Path

    def recorded(self) -> dict[str, Any]:
        """The part's entry in the report."""
        return {
            "source": source_name(self.given),
            "base_model": base_model(self.documents),
            "revision": self.documents.name if self.documents.parent.name == "snapshots" else None,
            "source_card": source_card(self.documents),
        }


def init_checkpoint(
    out: str | Path,
    *,
    vision: str | Path,
    language: str | Path,
    options: InitOptions | None = None,
    **changes: Any,
) -> ConversionReport:
    """Make an InternVL-X checkpoint from a vision tower and a language model, the starting point of the paper's
    training.

    The parts' tensors are copied bit for bit; the projector, LVTC and the rows of added tokens are new. The weights
    are streamed one tensor at a time. `out` appears only when it is complete.

        init_checkpoint("model", vision="OpenGVLab/InternViT-300M-448px", language="internlm/internlm2-chat-1_8b")

    Args:
        out: the folder to make.
        vision: folder or Hub id of a tower, or of a model that contains one (CLIP, an InternVL).
        language: folder or Hub id of a language model or an InternVL. `FOLDER/FILE.gguf` and `OWNER/NAME/FILE.gguf`
            are read by transformers, which needs memory for the whole model.
        options: choices about the model and how to write it.
        changes: fields of [`InitOptions`] that override those of `options`.

    Returns:
        What was done, as saved in `conversion_report.json`.

    Raises:
        CheckpointError: if a part is of an unknown kind, or has tensors that are missing, unexpected, misshapen or not
            finite. It is a `ValueError`.
        FileExistsError: if `out` exists and `overwrite` is not set, or if it holds files that this package did not
            write.
        OSError: if the disk is full or another process is writing `out`.
        ValueError: if an option is invalid or does not fit the parts.
        TypeError: if there is no such option.
    """
    options = replace(options or InitOptions(), **changes)
    out = resolve_out(out)
    for source in (vision, language):
        require_apart(out, source)
    with checkpoint_folder(out, overwrite=options.overwrite) as partial:
        tower_folder = find_source(vision, options.vision_revision)
        tower_source = _PartSource(vision, tower_folder, tower_folder)
        language_source = _language_source(language, options.language_revision, partial / ".language")
        sources = {TOWER: tower_source, LANGUAGE: language_source}
        licences = {
            f"LICENSES/{part}-{Path(name).name}": path
            for part, source in sources.items()
            for name, path in find_companions(source.documents).items()
        }
        tower, language_model = read_tower(tower_source.folder), read_language_model(language_source.folder)
        conversion = _prepare(tower, language_model, options)
        shards = plan_shards(tensor_groups(conversion), int(options.max_shard_gigabytes * GIGABYTE))
        require_room(partial, num_bytes(shards))
        write_weights(conversion, partial, shards)
        write_sidecar(conversion, partial)
        shutil.rmtree(partial / ".language", ignore_errors=True)
        report = _report(conversion, options, {part: source.recorded() for part, source in sources.items()})
        if options.verify:
            report.checks = verify(conversion, partial)
        (partial / REPORT).write_text(report.to_json())
        copy_companions(licences, partial)
    return report


def _language_source(given: str | Path, revision: str | None, workspace: Path) -> _PartSource:
    """The language model's folder; a GGUF file is dequantized into `workspace`."""
    if not str(given).endswith(GGUF):
        place = find_source(given, revision)
        return _PartSource(given, place, place)
    folder, _, file = str(given).rpartition("/")
    folder = folder or "."
    place = find_source(folder, revision, DOCUMENTS)
    if Path(folder).expanduser().is_dir() and not (place / file).is_file():
        raise FileNotFoundError(f"{given} is not a file, expected a GGUF file.")
    try:
        where: dict[str, Any] = {"gguf_file": file, "revision": revision or "main"}
        model = AutoModelForCausalLM.from_pretrained(folder, **where, **_as_dense())
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    except ImportError as error:
        raise CheckpointError(f"{given}: reading a GGUF file needs the package gguf: pip install gguf.") from error
    except Exception as error:  # transformers raises errors of any type for an unknown file
        raise CheckpointError(f"{given}: transformers cannot load it. {' '.join(str(error).split()):.300}") from error
    # although dense, it counts as a model in GGUF's format, which cannot be saved
    model.hf_quantizer = None  # type: ignore[assignment]
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(workspace)
    tokenizer.save_pretrained(workspace)
    return _PartSource(given, workspace, place)


def _as_dense() -> dict[str, Any]:
    """The argument with which transformers dequantizes a GGUF file; older versions always do."""
    settings = getattr(transformers, "GgufConfig", None)
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}


def _prepare(tower: ModelPart, language: ModelPart, options: InitOptions) -> Conversion:
    """Prepare a model from parts without reading weight values, except to compare tied embeddings."""
    notes = [note for note in (tower.note, language.note) if note]
    tokenizer, added = _tokenizer(language, options.template, notes)
    pixels, pixel_note = pixel_settings(tower.folder, tower.config.model_type)
    notes += [pixel_note] if pixel_note else []
    # with the vocabulary of the language model as it is stored
    config = _config(tower.config, language.config, options)
    check_parts(config)
    _check_features(config)
    weights = JoinedWeights([tower.weights, language.weights])
    source = Source(
        folder=language.folder,
        layout="parts",
        raw=language.raw,
        config=config,
        tiling=Tiling(
            tile_size=config.tile_size,
            settings=ImageSettings(**ImageSettings.own() | options.given),
            image_mean=pixels.pop("image_mean"),
            image_std=pixels.pop("image_std"),
            others=pixels | {"alpha": "white"},
        ),
        architecture=language.architecture,
        template=None,
        position_grid=config.patch_grid,
        notes=notes,
    )
    table = resolve_tied_embeddings(source, weights, [*tower.joined_table, *language.joined_table])
    before = copy.deepcopy(config)
    before.lvtc_config = None
    upgrade = Upgrade(new=[f"{PROJECTOR}.*", f"{LVTC}.*"], absent=[f"{PROJECTOR}.*"])
    upgrade.rules += _grow_vocabulary(config, tokenizer, added, options.seed, source.notes)
    config.image_token_id = _image_token_id(tokenizer)
    config.check_geometry()
    config.dtype = language.dtype
    conversion = assemble(_conversion_options(options), source, weights, before, config, upgrade, table, tokenizer)
    if options.dtype_name is None and tower.dtype != language.dtype:
        source.notes.append(
            f"As in their sources, the tower's tensors are stored in {tower.dtype} and the language model's in "
            f"{language.dtype}; dtype='auto' loads all in {config.dtype}."
        )
    return conversion


def _conversion_options(options: InitOptions) -> ConversionOptions:
    """The options of the equivalent conversion, whose new modules start at random."""
    shared = {each.name for each in fields(ConversionOptions)} - {"projector", "overwrite"}
    return ConversionOptions(init="paper", **{name: getattr(options, name) for name in shared & vars(options).keys()})


def _check_features(config: InternVLXConfig) -> None:
    """Encode a tile on the meta device.

    Raises:
        CheckpointError: if the projector cannot take the tower's features.
    """
    channels, size = getattr(config.vision_config, "num_channels", 3), config.tile_size
    with blaming(f"The vision tower {config.vision_config.model_type}"), torch.device("meta"), torch.no_grad():
        InternVLXModel(config).get_image_features(torch.empty(1, channels, size, size))


def _config(vision: PretrainedConfig, text: PretrainedConfig, options: InitOptions) -> InternVLXConfig:
    settings: dict = {"projector_type": options.projector} if isinstance(options.projector, str) else options.projector
    settings = {"num_heads": attention_heads(text.hidden_size)} | settings
    with blaming(f"projector={options.projector!r}"):
        projector = InternVLXProjectorConfig(**settings)
    lvtc = None
    if options.lvtc:
        with blaming(f"lvtc={options.lvtc!r}"):
            lvtc = InternVLXLVTCConfig(**({} if options.lvtc is True else options.lvtc))
    return InternVLXConfig(
        vision_config=copy.deepcopy(vision),
        text_config=copy.deepcopy(text),
        image_token_id=0,
        downsample_ratio=options.downsample_ratio,
        vision_feature_layer=options.vision_feature_layer,
        projector_config=projector,
        lvtc_config=lvtc,
    )


def _tokenizer(
    language: ModelPart, template: str | None, notes: list[str]
) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """The language model's tokenizer with image tokens and a chat template that writes images, and the new tokens'
    ids.

    Raises:
        ValueError: if there is no such template, or if neither the language model nor `template` gives one.
    """
    named = template in TEMPLATES
    tokens = [*IMAGE_TOKENS.values(), *(template_tokens(template) if template is not None and named else ())]
    tokenizer, added = language_tokenizer(language.folder, tokens)
    if template is not None:
        tokenizer.chat_template = chat_template(template) if named else _read_template(template)
    if not tokenizer.chat_template:
        raise ValueError(f"The language model in {language.folder} has no chat template. {CHOOSE_TEMPLATE}")
    adapt_template(tokenizer, str(language.folder if template is None else template), notes, CHOOSE_TEMPLATE)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, added


def _read_template(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"template={path!r}, expected one of {', '.join(TEMPLATES)}, or the path of a Jinja file.")
    with blaming(path):
        return Path(path).read_text(encoding="utf-8")


def _image_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    return tokenizer.convert_tokens_to_ids(tokenizer.context_image_token)  # type: ignore[return-value]


def _grow_vocabulary(
    config: InternVLXConfig, tokenizer: PreTrainedTokenizerFast, added: list[int], seed: int, notes: list[str]
) -> list[Rule]:
    """Extend the configuration's vocabulary for added tokens, and return the rules that add their embedding rows."""
    text, old = config.text_config, config.text_config.vocab_size
    needed = max(_image_token_id(tokenizer), *added, 0) + 1
    if needed > old:
        text.vocab_size = -(-needed // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    rows = sorted({*added, *range(old, text.vocab_size)})
    if not rows:
        return []
    place = f"the vocabulary grew from {old} to {text.vocab_size}" if needed > old else f"in unused rows of the {old}"
    names = ", ".join(tokenizer.convert_ids_to_tokens(added))
    notes.append(f"New tokens {names} ({place}): their rows start near the mean of the other rows.")
    known = min([old, *added])
    tied = config.tie_word_embeddings
    return [
        Rule(name, (name,), fill_rows(rows, text.vocab_size, known, zlib.crc32(name.encode()) + seed))
        for name in (EMBEDDING, *(() if tied else (HEAD,)))
    ]


def fill_rows(rows: list[int], size: int, known: int, seed: int) -> Operation:
    """(V, C) embeddings -> (`size`, C) with new `rows`, drawn near the mean of the first `known`; others are kept."""

    def fill(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        filled = tensor.new_empty(size, tensor.shape[1])
        if tensor.is_meta:
            return (filled,)
        filled[: len(tensor)] = tensor
        mean, square = (
            sum(part.double().pow(power).sum(0) for part in tensor[:known].split(4096)) / known for power in (1, 2)
        )
        std = (square - mean.square()).clamp(min=0).sqrt()
        noise = torch.randn(len(rows), tensor.shape[1], generator=torch.Generator().manual_seed(seed))
        filled[rows] = (mean + NEW_ROW_STD * std * noise).to(tensor.dtype)
        return (filled,)

    return fill


def _report(conversion: Conversion, options: InitOptions, parts: dict[str, dict]) -> ConversionReport:
    names = {part: found["source"] for part, found in parts.items()}
    report = make_report(conversion, " and ".join(name.rpartition("/")[-1] for name in names.values()))
    embeddings = (EMBEDDING, HEAD)
    return replace(
        report,
        base_model=None,
        revision=None,
        source_card=_joined_card([found["source_card"] for found in parts.values()]),
        options={"vision": names[TOWER], "language": names[LANGUAGE], "init": "paper"} | options.recorded(),
        derived_tensors={name: start for name, start in report.derived_tensors.items() if name not in embeddings},
        parts=parts,
    )


def _joined_card(cards: list[dict]) -> dict:
    """Metadata of the parts' model cards combined: the values on which all agree, and the licences of all."""
    agreed = {name: value for name, value in cards[0].items() if all(card.get(name) == value for card in cards)}
    licences = list(dict.fromkeys(name for card in cards for name in _as_list(card.get("license"))))
    return agreed | ({"license": licences} if len(licences) > 1 else {})


def _as_list(value) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]
