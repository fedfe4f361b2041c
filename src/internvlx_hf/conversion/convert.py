# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Converting a checkpoint: plan, then one pass over its tensors, then everything that goes beside the weights."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from ..checkpoints.checkpoint_files import CheckpointError, CheckpointFiles, TensorInfo, blaming
from ..checkpoints.companions import LICENCES, copy_companions, find_companions
from ..checkpoints.json_files import read_json
from ..checkpoints.streaming import ShardWriter, plan_shards, shard_names, write_index
from ..checkpoints.whole_folder import require_room, resolve_out
from ..hub.checkpoint_folder import checkpoint_folder
from ..hub.model_card import is_hub_id
from ..modeling import InternVLXConfig
from ..processing import InternVLXImageProcessor, InternVLXProcessor
from ..processing.rvtc import MAX_TILES, SLICING_STRATEGIES
from .field_rules import (
    FLAG,
    GENERATION_RULES,
    OBJECT,
    TEXT,
    FieldRule,
    check_fields,
    check_token_ids,
    choice,
    either,
    number,
    whole,
)
from .native import native_names, save_native_sidecar
from .plan import EMBEDDING, HEAD, Plan, make_plan
from .report import ConversionReport, derived_tensors, make_report
from .sources import Source, read_source
from .tensor_tables import Rule, source_table
from .tokenizers import convert_tokenizer
from .upgrades import INITS, Upgrade, build_upgrade, initial_value
from .verify import verify as check

logger = logging.get_logger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SLICINGS = SLICING_STRATEGIES
# what a checkpoint consists of; the rest of a repository stays where it is
HUB_PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja", "README.md", *LICENCES]
GIGABYTE = 10**9
OPTION_RULES = {
    "to": choice(("internvl_x", "internvl")),
    "projector": choice(("keep", "pvtc")),
    "init": choice(INITS),
    "slicing": choice(SLICINGS).or_null(),
    "dtype": choice(DTYPES).or_null(),
    "lvtc": either(FLAG, OBJECT),
    "downsample_ratio": number(1e-3, 1).or_null(),
    "max_patches": whole(1, MAX_TILES).or_null(),
    "revision": TEXT.or_null(),
    "base_model": FieldRule(
        "a Hub id like 'owner/name'", lambda name: isinstance(name, str) and is_hub_id(name)
    ).or_null(),
    "seed": whole(-(2**62), 2**62),
    "verify": FLAG,
    "overwrite": FLAG,
}


@dataclass
class Conversion:
    """Everything that is settled before the first value is read."""

    source: Source
    files: CheckpointFiles
    config: InternVLXConfig
    upgrade: Upgrade
    plan: Plan
    tokenizer: PreTrainedTokenizerFast
    options: dict
    rename: Callable[[str], str]

    @property
    def num_parameters(self) -> int:
        groups = [*self.plan.groups.values(), self.plan.new]
        return sum(info.meta().numel() for group in groups for info in group.values())

    @property
    def is_exact(self) -> bool:
        """Whether the model answers as the source does."""
        return not self.plan.new and not derived_tensors(self.plan)

    @property
    def starts_as_source(self) -> bool:
        """Whether the model answers as the source does before any training: a warm PVTC does."""
        options = self.options
        changes_tokens = options["lvtc"] or options["downsample_ratio"] is not None
        return self.is_exact or (options["init"] == "warm" and not changes_tokens)

    def image_processor(self) -> InternVLXImageProcessor:
        tiling = self.source.tiling
        return InternVLXImageProcessor(
            size={"height": tiling.tile_size, "width": tiling.tile_size},
            min_patches=tiling.min_patches,
            max_patches=tiling.max_patches,
            use_thumbnail=tiling.use_thumbnail,
            crop_to_patches=tiling.crop_to_patches,
            slicing=tiling.slicing,
            image_mean=tiling.image_mean,
            image_std=tiling.image_std,
            **({"alpha": "drop"} | tiling.others),  # InternVL takes no notice of transparency
        )


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    to: str = "internvl_x",
    projector: str = "keep",
    lvtc: bool | dict = False,
    downsample_ratio: float | None = None,
    init: str = "warm",
    slicing: str | None = None,
    max_patches: int | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    base_model: str | None = None,
    max_shard_gigabytes: float = 5,
    seed: int = 0,
    verify: bool = False,
    overwrite: bool = False,
) -> ConversionReport:
    """Convert an InternVL checkpoint to an InternVL-X checkpoint that carries its code, or back.

    With the defaults the converted model answers as the original does: same weights, same tiles. The weights are streamed,
    a tensor at a time; `out` appears when it is complete, and not at all if anything fails.

    Args:
        source: a folder, or the id of a model on the Hub.
        out: the folder to make.
        to: "internvl_x", or "internvl" for transformers' native layout (a kept projector, no LVTC).
        projector: "keep", or "pvtc" to put PVTC in the place of InternVL2's projector.
        lvtc: add LVTC: True for its defaults, or arguments of `InternVLXLVTCConfig`. The new modules need training.
        downsample_ratio: another 1 / M for the tokens of the input than the checkpoint's; the projector needs training.
        init: how new modules start: "warm", close to what the checkpoint knows, or "paper", at random.
        slicing: "ratio", "edge" or "area"; unset: as the checkpoint was made for, "ratio" for InternVL, "edge" for the
            InternVL-X release. "edge" costs fewer tokens for small images and needs no training.
        max_patches: most tiles per image; unset: the checkpoint's.
        dtype: to save in, "bfloat16", "float16" or "float32"; unset: the source's.
        revision: branch, tag or commit on the Hub.
        base_model: Hub id for the model card where `source` is a folder.
        max_shard_gigabytes: size of an output shard.
        seed: of random values.
        verify: load the result and compare it with the source computed another way; takes the model's memory in float32.
        overwrite: replace `out` if this package wrote it and it holds nothing else; what a person wrote into its model card
            stays.

    Returns:
        What was done, as it is saved in `conversion_report.json`.

    Raises:
        CheckpointError: the checkpoint is of an unknown kind, or has tensors that are missing, unexpected, misshapen or
            not finite; a shard is missing or damaged. A `ValueError`.
        FileExistsError: `out` exists, and `overwrite` is not set, or it holds what this package did not write.
        OSError: the disk is full, or another process is writing `out`.
        ValueError: an argument is unknown or does not fit the checkpoint.
    """
    for name, path in (("source", source), ("out", out)):
        if not isinstance(path, str | os.PathLike) or not str(path):
            raise ValueError(f"{name}={path!r}, expected a path.")
    options = {
        "source": source_name(source),
        "revision": revision,
        "base_model": base_model,
        "to": to,
        "projector": projector,
        "lvtc": lvtc,
        "downsample_ratio": downsample_ratio,
        "init": init,
        "slicing": slicing,
        "max_patches": max_patches,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "seed": seed,
    }
    check_options(options | {"verify": verify, "overwrite": overwrite})
    max_shard_bytes = _shard_bytes(max_shard_gigabytes)
    out = resolve_out(out)
    require_apart(out, source)
    with checkpoint_folder(out, overwrite=overwrite) as partial:
        folder = find_source(source, revision)
        licences = find_companions(folder)
        conversion = prepare(folder, options)
        shards = plan_shards(_groups(conversion), max_shard_bytes)
        require_room(partial, _num_bytes(shards))
        write_weights(conversion, partial, shards)
        if to == "internvl":
            save_native_sidecar(partial, conversion.config, conversion.tokenizer, conversion.source.tiling)
        else:
            save_sidecar(conversion, partial)
        generation_config(conversion.source, conversion.tokenizer).save_pretrained(partial)
        report = make_report(conversion)
        if verify:
            report.checks = check(conversion, partial)
        (partial / "conversion_report.json").write_text(report.to_json())
        copy_companions(licences, partial)
    return report


def require_apart(out: Path, source: str | Path) -> None:
    """Raise `FileExistsError` if a folder to make is, or holds, the one that it is made from."""
    folder = Path(source).expanduser().resolve()
    if folder.is_dir() and out in (folder, *folder.parents):
        raise FileExistsError(f"{out} holds the source {source}. Choose another folder.")


def _shard_bytes(gigabytes: float) -> int:
    if not (isinstance(gigabytes, int | float) and 0 < gigabytes < math.inf):
        raise ValueError(f"max_shard_gigabytes={gigabytes!r}, expected a positive number.")
    return int(gigabytes * GIGABYTE)


def check_options(options: dict) -> None:
    """Check the options of a conversion that can be judged without its source.

    Raises:
        ValueError: naming the option, its value and what would be right.
    """
    for name, rule in OPTION_RULES.items():
        value = options[name]
        if not (rule.holds(value) or (value is None and rule.optional)):
            raise ValueError(f"{name}={value!r:.200}, expected {rule.expected}.")


def find_source(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint; what is not a folder is taken for a Hub id and downloaded.

    Raises:
        FileNotFoundError: there is no such folder, and it cannot be had from the Hub.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
        raise FileNotFoundError(
            f"{source} is not a folder, expected a checkpoint's folder or a Hub id like 'owner/name'."
        )
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=HUB_PATTERNS))
    except Exception as error:
        raise FileNotFoundError(
            f"{source} is no folder here, and downloading it from the Hub failed: {error}"
        ) from error


def prepare(folder: Path, options: dict) -> Conversion:
    """Settle everything about a conversion without reading a weight's values (but for tied embeddings).

    Args:
        options: the arguments of `convert_checkpoint` by name.
    """
    files = CheckpointFiles(folder)
    source = read_source(folder, files.tensors)
    tokenizer = convert_tokenizer(folder)
    _settle_image_token(source, tokenizer)
    table = _settle_tying(source, files)
    dtype = DTYPES.get(options["dtype"])
    config, upgrade = build_upgrade(
        source.config, **{name: options[name] for name in ("projector", "lvtc", "downsample_ratio", "init")}
    )
    rename = native_names(config) if options["to"] == "internvl" else str
    plan = make_plan(table, source.config, files.tensors, upgrade=upgrade, after=config, dtype=dtype)
    if dtype is not None or config.dtype is None:
        config.dtype = dtype or next(iter(next(iter(plan.groups.values())).values())).dtype
    config.text_config.dtype = config.vision_config.dtype = config.dtype
    config.architectures = ["InternVLXForConditionalGeneration"]
    _settle_tiling(source, options)
    conversion = Conversion(source, files, config, upgrade, plan, tokenizer, options, rename)
    conversion.image_processor()  # raises where the tiling contradicts itself
    generation_config(source, tokenizer)
    return conversion


def _settle_image_token(source: Source, tokenizer: PreTrainedTokenizerFast) -> None:
    token = tokenizer.convert_tokens_to_ids(tokenizer.context_image_token)
    vocabulary = source.config.text_config.vocab_size
    if source.layout != "internvl_chat" and token != source.config.image_token_id:
        raise CheckpointError(
            f"config.json says image_token_id={source.config.image_token_id}, but the tokenizer's "
            f"{tokenizer.context_image_token} is {token}."
        )
    if token >= vocabulary:
        raise CheckpointError(
            f"The tokenizer's {tokenizer.context_image_token} is {token}, outside the model's vocabulary of {vocabulary}."
        )
    source.config.image_token_id = token


def _settle_tying(source: Source, files: CheckpointFiles) -> list[Rule]:
    """Find out whether output and input embeddings are one tensor: by what is stored, since configs contradict it."""
    table, config = source_table(source), source.config
    names = {target: name for name in files.tensors for rule in table for target in rule.match(name) or ()}
    if config.tie_word_embeddings and HEAD in names and EMBEDDING in names:
        head, embedding = names[HEAD], names[EMBEDDING]
        config.tie_word_embeddings = torch.equal(files.read(head), files.read(embedding))
        if config.tie_word_embeddings:
            table = [Rule(head, reason=f"equal to {embedding}, to which the config ties it"), *table]
        else:
            source.notes.append(
                "The config ties the output to the input embeddings, but the stored ones differ: both are kept."
            )
    config.text_config.tie_word_embeddings = config.tie_word_embeddings
    return table


def _settle_tiling(source: Source, options: dict) -> None:
    for name in ("slicing", "max_patches"):
        if options[name] is not None:
            setattr(source.tiling, name, options[name])


def _groups(conversion: Conversion) -> list[dict[str, TensorInfo]]:
    """Target tensors in the order in which they will be written, those of one source tensor together."""
    plan, rename = conversion.plan, conversion.rename
    stored = [
        plan.groups[name] for contents in conversion.files.shards.values() for name in contents if name in plan.steps
    ]
    groups = [*stored, *({name: info} for name, info in plan.new.items())]
    return [{rename(name): info for name, info in group.items()} for group in groups]


def _num_bytes(shards: list[dict[str, TensorInfo]]) -> int:
    return sum(info.num_bytes for tensors in shards for info in tensors.values())


def write_weights(conversion: Conversion, folder: Path, shards: list[dict[str, TensorInfo]]) -> None:
    """One pass over the source's tensors, each converted, checked and written at once; then the new ones."""
    files = dict(zip(shard_names(len(shards)), shards, strict=True))
    writers = {file: ShardWriter(folder / file, tensors) for file, tensors in files.items()}
    writer_of = {name: writers[file] for file, tensors in files.items() for name in tensors}
    try:
        with _one_thread(), tqdm(total=_num_bytes(shards), unit="B", unit_scale=True, desc="Converting") as progress:
            for source, target, tensor in _tensors(conversion):
                name = conversion.rename(target)
                writer_of[name].write(name, tensor, source)
                progress.update(writer_of[name].tensors[name].num_bytes)
    finally:
        for writer in writers.values():
            writer.close()
    if len(files) > 1:
        write_index(folder, files)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from sharing out pieces that take less time than waking a thread, tens of times on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tensors(conversion: Conversion) -> Iterator[tuple[str | None, str, torch.Tensor]]:
    """Source name, target name and value of everything that is to be written."""
    plan = conversion.plan
    for path in conversion.files.shards:
        with conversion.files.open(path) as tensors:
            for name, tensor in tensors:
                if name in plan.steps:
                    for target, part in plan.convert(name, tensor):
                        yield name, target, part
    std = getattr(conversion.config.text_config, "initializer_range", 0.02)
    for name, info in plan.new.items():
        yield None, name, initial_value(name, info, conversion.upgrade, std, conversion.options["seed"])


def save_sidecar(conversion: Conversion, folder: Path) -> None:
    """Write the configuration and the processor, with their code."""
    config = conversion.config
    config.save_pretrained(folder)
    processor = InternVLXProcessor(
        conversion.image_processor(),
        conversion.tokenizer,
        config.image_seq_length,
        conversion.tokenizer.chat_template,
    )
    processor.save_pretrained(folder)


def generation_config(source: Source, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """The source's generation settings; the chat template's end marker always stops.

    Raises:
        CheckpointError: a setting is impossible.
    """
    path = source.folder / "generation_config.json"
    if raw := read_json(path):
        with blaming(path):
            check_fields(raw, GENERATION_RULES)
            check_token_ids(raw, source.config.text_config.vocab_size)
            config = GenerationConfig.from_dict(raw)
            config.validate(strict=True)
    else:
        config = GenerationConfig.from_model_config(source.config)
    config._from_model_config = False
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stops = [stop for stop in [*stops, stop_token(tokenizer)] if stop is not None]
    config.eos_token_id = list(dict.fromkeys(stops))
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return config


def stop_token(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The token with which the chat template ends a turn."""
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "."}], tokenize=False)
    special = set(tokenizer.added_tokens_decoder)
    ids = [token for token in tokenizer(turn, add_special_tokens=False)["input_ids"] if token in special]
    return ids[-1] if ids else None


def source_name(source: str | Path) -> str:
    """A Hub id, or a folder's name without its path, which is private."""
    folder = Path(source).expanduser()
    return folder.absolute().name if folder.is_dir() else str(source)
