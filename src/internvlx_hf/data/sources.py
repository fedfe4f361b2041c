# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Loading training data in the formats that are common for vision-language models."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from transformers.utils import logging

from ..processing import InternVLXProcessor
from ..processing.rvtc import TILES_RULE
from .datasets import RecordSet, RecordStream, StreamingTrainingData, TrainingData
from .encoding import SampleEncoder
from .records import ArrowRows, JsonArray, JsonLines, Records, Rows

logger = logging.get_logger(__name__)

# InternVL's names of a dataset's image settings -> the image processor's
_IMAGE_SETTINGS = {"max_dynamic_patch": "max_patches", "min_dynamic_patch": "min_patches"}
_META_KEYS = ("root", "annotation", "repeat_time", "length", "data_augment", "media_type", *_IMAGE_SETTINGS)
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def load_training_data(
    source,
    processor: InternVLXProcessor,
    *,
    image_root: str | os.PathLike | None = None,
    split: str = "train",
    streaming: bool = False,
    max_length: int | None = None,
    on_too_long: str = "truncate",
    on_broken: str = "error",
    share_tiles: bool = False,
    teacher_processor: InternVLXProcessor | None = None,
    shuffle_buffer: int = 1000,
    endless: bool = False,
    seed: int = 0,
) -> TrainingData | StreamingTrainingData:
    """Load training data of any format, for the `Trainer` with an `InternVLXDataCollator`.

    Args:
        source: one of
            - InternVL's meta file: JSON of `{name: {"root", "annotation", "repeat_time", ...}}`. The fractional part
              of a `repeat_time` adds a fixed random choice of the records. Relative paths refer to the working
              directory, as in InternVL, or else to the meta file's folder;
            - annotations: a `.jsonl` file of records, or a `.json` file with a list of records, such as LLaVA's;
            - a folder (of Parquet, JSONL and so on, or written by `save_to_disk`) or a Hub id, for `datasets`;
            - a `datasets.Dataset` or `IterableDataset`, or a list of records.
            For records, see `sample_from_record`.
        processor: the processor of the model to train.
        image_root: folder that relative paths of images refer to (default: the folder of the annotations). A meta file
            contains its own.
        split: split of a folder or a Hub id (default: "train").
        streaming: read samples in sequence instead of by index; data on the Hub are not downloaded first (default:
            False).
        max_length, on_too_long, on_broken, share_tiles, teacher_processor: see `SampleEncoder`.
        shuffle_buffer: see `RecordStream`.
        endless, seed: see `StreamingTrainingData`.

    Raises:
        ValueError: if the source or an argument is of an unknown kind. The message names it.
        OSError: if a file cannot be read.
    """
    encoder = SampleEncoder(processor, max_length, on_too_long, on_broken, share_tiles, teacher_processor)
    root = None if image_root is None else os.fspath(image_root)
    if isinstance(source, str | os.PathLike) and not Path(source).is_file():
        source, root = _load_with_datasets(os.fspath(source), split, streaming), root or _folder(source)
    if _is("IterableDataset", source):
        records = RecordStream(_without_decoding(source), encoder, _name(source), root, shuffle_buffer)
        return StreamingTrainingData(records, seed=seed, endless=endless)
    data = TrainingData(_parts(source, root), encoder, seed)
    return StreamingTrainingData(data, seed=seed, endless=endless) if streaming else data


def _parts(source, root: str | None) -> list[RecordSet]:
    if _is("Dataset", source):
        has_transform = source.format["type"] == "custom"
        return [RecordSet((Rows if has_transform else ArrowRows)(source, _name(source)), root)]
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix == ".json" and _first_character(path) == "{":
            return _read_meta(path, root)
        return [RecordSet(_annotations(path), root or str(path.parent))]
    if isinstance(source, Sequence) and not isinstance(source, Mapping):
        return [RecordSet(Rows(source, "the list of samples"), root)]
    raise ValueError(
        f"The training data is a {type(source).__name__}, expected a path, an id on the Hub, a datasets.Dataset, a "
        "datasets.IterableDataset or a list of samples. (Of a DatasetDict, choose a split.)"
    )


def _is(kind: str, source) -> bool:
    """Whether the source is of that class of `datasets`, which files and lists do without."""
    return "datasets" in sys.modules and isinstance(source, getattr(sys.modules["datasets"], kind))


def _annotations(path: Path) -> Records:
    if path.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{path} is not a file of annotations, expected .jsonl or .json.")
    return JsonArray(path) if path.suffix == ".json" and _first_character(path) == "[" else JsonLines(path)


def _first_character(path: Path) -> str:
    with open(path, encoding="utf-8-sig", errors="replace") as file:  # the reader rejects other encodings
        while character := file.read(1):
            if not character.isspace():
                return character
    raise ValueError(f"{path} is empty, expected annotations.")


def _read_meta(path: Path, root: str | None) -> list[RecordSet]:
    """InternVL's meta file, or a JSONL file with the suffix .json, whose first record looks the same."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=partial(_without_repeats, path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return [RecordSet(JsonLines(path), root or str(path.parent))]
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}, expected InternVL's meta file.") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not InternVL's meta file: {error}.") from error
    if root is not None:
        raise ValueError(
            f"image_root={root} with the meta file {path}, expected none: the file states where images are."
        )
    if not meta:
        raise ValueError(f"{path} is empty, expected InternVL's meta file or annotations.")
    return [_meta_part(f"{path}, {name!r}", entry, path.parent) for name, entry in meta.items()]


def _without_repeats(path: Path, pairs: list[tuple]) -> dict:
    settings = dict(pairs)
    if len(settings) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} sets {repeated!r} twice, expected each name once.")
    return settings


def _meta_part(place: str, entry, folder: Path) -> RecordSet:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("annotation"), str):
        raise ValueError(f"{place} is {entry!r:.100}, expected settings with an `annotation` file.")
    unknown = [key for key in entry if key not in _META_KEYS]
    if unknown:
        raise ValueError(f"{place} sets {unknown[0]!r}, which is unknown here, expected only {', '.join(_META_KEYS)}.")
    if entry.get("data_augment"):
        raise ValueError(f"{place} sets data_augment={entry['data_augment']!r}, but images are not augmented here.")
    if entry.get("media_type", "image") not in ("image", "video", "text"):
        raise ValueError(f"{place} sets media_type={entry['media_type']!r}, expected image, video or text.")
    repeat = entry.get("repeat_time", 1)
    if not isinstance(repeat, int | float) or isinstance(repeat, bool) or not 0 <= repeat < float("inf"):
        raise ValueError(f"{place} sets repeat_time={repeat!r}, expected a number of at least 0.")
    images_kwargs = {_IMAGE_SETTINGS[key]: value for key, value in entry.items() if key in _IMAGE_SETTINGS}
    for key, value in images_kwargs.items():
        TILES_RULE.check(f"{place} sets {key}", value)
    root, annotation = entry.get("root") or "", _resolve_path(entry["annotation"], folder)
    if not isinstance(root, str):
        raise ValueError(f"{place} has the root {root!r:.100}, expected a folder.")
    if not os.path.isfile(annotation):
        kind = "is not a regular file" if os.path.exists(annotation) else "does not exist"
        raise ValueError(f"{place} has the annotation {entry['annotation']!r:.200}, which {kind}.")
    return RecordSet(
        _annotations(annotation), str(_resolve_path(root, folder)) if root else str(folder), repeat, images_kwargs
    )


def _resolve_path(path: str, folder: Path) -> Path:
    # unlike pathlib's, `os.path.exists` also accepts an impossible path
    return Path(path) if os.path.exists(path) else folder / path


def _load_with_datasets(name: str, split: str, streaming: bool):
    path = Path(name)
    if path.suffix in (".json", ".jsonl") or not (path.exists() or _HUB_ID.fullmatch(name)):
        raise FileNotFoundError(f"{name} does not exist, expected a file of annotations or a folder.")
    import datasets
    import pyarrow.parquet

    if path.is_dir() and any((path / file).exists() for file in ("dataset_info.json", "dataset_dict.json")):
        data = datasets.load_from_disk(name)
        if isinstance(data, datasets.DatasetDict):
            if split not in data:
                raise ValueError(f"{name} has no split {split!r}, expected one of {', '.join(data)}.")
            data = data[split]
        return data.to_iterable_dataset(num_shards=max(1, min(64, len(data)))) if streaming else data
    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else ():
        try:
            pyarrow.parquet.read_metadata(file)
        except (pyarrow.ArrowException, OSError) as error:  # the error of `datasets` does not name the file
            raise ValueError(f"{file} is not a whole Parquet file: {error}") from error
    return datasets.load_dataset(name, split=split, streaming=streaming)


def _folder(source: str | os.PathLike) -> str | None:
    return os.fspath(source) if Path(source).is_dir() else None


def _name(data) -> str:
    name = getattr(data.info, "dataset_name", None) or "the dataset"
    return f"{name} ({data.split})" if data.split else name


def _without_decoding(stream):
    """The stream with images as bytes or paths: the encoder decodes them and names the sample of a broken image."""
    return stream if stream.features is None else stream.decode(False)
