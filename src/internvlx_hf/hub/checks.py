# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Checks that a folder is a complete checkpoint, which will load from the repository that it is pushed to."""

import ast
from collections.abc import Iterator
from pathlib import Path

from ..checkpoints.errors import listed
from ..checkpoints.folders import auto_map, check_files, checkpoint_files, code_files, weight_map
from ..checkpoints.json_files import check_fields, read_json
from ..checkpoints.names import CODE_MAPS, PICKLED_WEIGHTS, PROCESSOR_FILES, SAFE_SHARDS, SAFE_WEIGHTS
from ..checkpoints.weights import HEAD, Weights, model_tensors
from ..modeling import InternVLXConfig
from ..processing import InternVLXProcessor
from .folder import FolderError, card_to_push, real_files
from .model_card import CardFacts

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
LAYERS = {"num_hidden_layers?": int}
MODEL_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForCausalLM")


def check_folder(folder: str | Path) -> None:
    """Check that a folder is a complete checkpoint, without reading weights or running its code.

    Raises:
        FolderError: if it is not; the message lists every problem.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FolderError(f"{folder} is not a folder, expected a checkpoint's folder.")
    if (folder / "adapter_config.json").is_file():
        raise FolderError(
            f"{folder} holds a LoRA adapter (adapter_config.json), which does not load by itself. Merge it into a "
            f"checkpoint first: internvlx merge {folder} OUT"
        )
    # each group runs only if the groups before found nothing, so that a missing file is reported once
    for checks in (
        (_model_type,),
        (_links,),
        (_weight_files, _processor_files, _code),
        (_depth,),
        (_tensors, _processor, _card),
    ):
        if problems := [problem for check in checks for problem in _problems(check, folder)]:
            raise FolderError("\n  ".join([f"{folder} cannot be pushed:", *problems]))


def _problems(check, folder: Path) -> Iterator[str]:
    try:
        yield from check(folder)
    except (ValueError, OSError) as error:
        yield str(error)


def _model_type(folder: Path) -> Iterator[str]:
    CardFacts(folder)
    yield from ()


def _links(folder: Path) -> Iterator[str]:
    problems = real_files(folder, checkpoint_files(folder))[1]
    yield from problems
    if not problems:
        check_files(folder)


def _is_ours(folder: Path) -> bool:
    return read_json(folder / "config.json").get("model_type") == InternVLXConfig.model_type


# -- weights


def _weight_files(folder: Path) -> Iterator[str]:
    single, index = (folder / name for name in SAFE_WEIGHTS)
    shards = {path.name for path in folder.glob(SAFE_SHARDS)}
    if single.is_file() and (index.is_file() or shards):
        yield (
            f"There are both {single.name} and {listed(sorted(shards)) or index.name}. `from_pretrained` reads the "
            "first and ignores the others: delete the outdated files."
        )
        return
    if index.is_file():
        for name in sorted(shards - set(weight_map(folder).values())):
            yield f"{name} is not named by {index.name}: it is left over from another checkpoint."
    elif not single.is_file() and (pickled := [name for name in PICKLED_WEIGHTS if (folder / name).is_file()]):
        yield f"{listed(pickled)}: pickles are not pushed. Load the model and save it again."
    Weights(folder, SAFE_WEIGHTS)


def _depth(folder: Path) -> Iterator[str]:
    """Refuse more layers than there are tensors: loading such a model's configuration alone would take minutes."""
    config, num_tensors = read_json(folder / "config.json"), len(Weights(folder, SAFE_WEIGHTS).tensors)
    check_fields(config, dict.fromkeys(("text_config?", "vision_config?"), LAYERS), folder / "config.json")
    for part in ("text_config", "vision_config"):
        if (layers := config.get(part, {}).get("num_hidden_layers", 0)) > num_tensors:
            yield (
                f"config.json has {part}.num_hidden_layers={layers}, but the weights hold only {num_tensors} tensors."
            )


def _tensors(folder: Path) -> Iterator[str]:
    """Compare the stored tensors with those of the configured model."""
    if not _is_ours(folder) or "quantization_config" in read_json(folder / "config.json"):
        return
    config, stored = InternVLXConfig.from_pretrained(folder), Weights(folder, SAFE_WEIGHTS).tensors
    wanted, tied = model_tensors(config), {HEAD} if config.tie_word_embeddings else set()
    if missing := sorted(wanted.keys() - stored.keys() - tied):
        yield f"The weights lack tensors of the model that config.json describes: {listed(missing)}."
    if extra := sorted(stored.keys() - wanted.keys()):
        yield f"The weights hold tensors that the model of config.json does not have: {listed(extra)}."
    for name in sorted(wanted.keys() & stored.keys()):
        if wanted[name].shape != stored[name].shape:
            yield (
                f"The tensor {name} has the shape {stored[name].shape}, but config.json makes it {wanted[name].shape}."
            )


# -- processor


def _processor_files(folder: Path) -> Iterator[str]:
    for name in TOKENIZER_FILES:
        if not (folder / name).is_file():
            yield f"{name} is missing: save the processor into the folder as well, `processor.save_pretrained(...)`."
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        yield f"{PROCESSOR_FILES[0]} is missing: save the processor into the folder as well."


def _processor(folder: Path) -> Iterator[str]:
    if not _is_ours(folder):
        return
    config, processor = InternVLXConfig.from_pretrained(folder), _load_processor(folder)
    size = processor.image_processor.size
    for what, ours, models in (
        ("tokens per tile", processor.image_seq_length, config.image_seq_length),
        ("image token id", processor.image_token_id, config.image_token_id),
        ("tile size", (size["height"], size["width"]), (config.tile_size, config.tile_size)),
    ):
        if ours != models:
            yield f"Processor and model do not fit: {what} is {ours} in the processor and {models} in config.json."


def _load_processor(folder: Path) -> InternVLXProcessor:
    try:
        return InternVLXProcessor.from_pretrained(folder)
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # for files that transformers does not check
        raise ValueError(f"The processor of {folder} does not load: {type(error).__name__}: {error}") from error


# -- remote code


def _code(folder: Path) -> Iterator[str]:
    """Check the files that every `auto_map` names, and the files that these import."""
    if not _is_ours(folder):
        return
    maps = {name: auto_map(folder / name) for name in CODE_MAPS}
    for file, wanted in (("config.json", MODEL_CLASSES), (PROCESSOR_FILES[0], ("AutoProcessor",))):
        if (folder / file).is_file() and (missing := [name for name in wanted if name not in maps[file]]):
            yield f"{file} has no auto_map for {', '.join(missing)}: the model would not load without this package."
    classes: dict[str, set[str]] = {}
    for file, references in maps.items():
        for reference in references.values():
            module, _, name = reference.rpartition(".")
            if "--" in module:
                yield f"{file} loads {name} from another repository ({reference}), expected code in the folder."
            elif not module.isidentifier():
                yield f"{file} has {reference!r} in its auto_map, expected 'module.Class' of a module in the folder."
            else:
                classes.setdefault(f"{module}.py", set()).add(name)
    for file in sorted(code_files(folder)):
        if not (folder / file).is_file():
            yield f"{file} is missing: it belongs to the code that travels with the checkpoint."
            continue
        try:
            tree = ast.parse((folder / file).read_bytes())
        except (SyntaxError, ValueError) as error:
            yield f"{file} is not valid Python: {error}"
            continue
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        if missing := sorted(classes.get(file, set()) - defined):
            yield f"{file} does not define {', '.join(missing)}."


# -- card


def _card(folder: Path) -> Iterator[str]:
    card_to_push(folder, "owner/name")
    yield from ()
