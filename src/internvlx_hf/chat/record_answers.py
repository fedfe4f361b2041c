# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A model's own answers as training data: records that end with the user's turn get the answer that the model gives."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers.utils import logging

from ..data import SampleEncoder, TrainingData, TrainingSample
from ..data.collator import make_tiles
from ..evaluation.answering import Answerer
from ..processing.image_settings import split_by_owner
from ..processing.processing_internvlx import IGNORE_INDEX
from .answers import batches, read_lines, write_line

logger = logging.get_logger(__name__)
# stands for the answer while its prompt is encoded
_ANSWER = {"role": "assistant", "content": "."}


class Counts(NamedTuple):
    """How many records this run answered, how many had an answer, how many are from earlier runs, how many failed."""

    answered: int
    copied: int
    earlier: int
    failed: int


def answer_records(
    answerer: Answerer,
    data: TrainingData,
    out: Path,
    settings: dict[str, Any],
    batch_size: int = 1,
    max_new_tokens: int = 1024,
    same_settings: dict[str, Any] | None = None,
) -> Counts:
    """Append a record `{"key", "messages", "images", "images_kwargs", "answered_by"}` to `out` for each record of `data`.

    A record that ends with the user's turn gets a greedy answer. Its prompt is that of training: the same tokens, up to the
    answer. One that ends with the assistant's turn is copied. `images_kwargs` holds the tile limits of the record or its data set,
    where it has any, with those that the answerer sets in their place. Equal records are written once. `key` is a hash of the record and
    the settings; a later run skips the keys that `out` has.

    Nothing is written of a record that cannot be read, or whose answer is empty or longer than `max_new_tokens`: a warning
    names its place, and the next run tries it again.

    Args:
        data: records by index. Paths of images are written as absolute paths.
        settings: everything else that the answers depend on.
        same_settings: settings of earlier lines that count as `settings` (default: none).

    Raises:
        ValueError: if `out` has lines that this function did not write.
    """
    done = {line["key"] for line in read_lines(out, lambda line: (line["key"], line["messages"]), b'{"key": "')}
    counts = dict.fromkeys(Counts._fields, 0)
    images_kwargs, _ = split_by_owner(answerer.images_kwargs)
    encoder = SampleEncoder(answerer.changed_processor, share_tiles=data.encoder.share_tiles)

    def failed(index: int, reason: object) -> None:
        counts["failed"] += 1
        logger.warning(f"{data.place(index)}: {reason}. Not written.")

    with out.open("a", encoding="utf-8") as file, tqdm(total=len(data), desc="Answering", unit="record") as progress:
        for batch in batches(range(len(data)), batch_size):
            pending: list[tuple[int, dict, TrainingSample]] = []
            for index in batch:
                try:
                    sample = data.raw(index)
                    line, question = _read(sample, settings, images_kwargs)
                    if line["key"] in done or (same_settings is not None and _key(sample, same_settings) in done):
                        counts["earlier"] += 1
                    elif question is None:
                        write_line(file, line)
                        counts["copied"] += 1
                    else:
                        pending.append((index, line, encoder(question)))
                    done.add(line["key"])
                except (ValueError, OSError) as error:
                    failed(index, error)
            samples = [sample for _, _, sample in pending]
            answers = answerer.complete(_prompts(samples, answerer), max_new_tokens=max_new_tokens) if samples else []
            for (index, line, _), answer in zip(pending, answers, strict=True):
                text = answer.text.strip()
                if answer.finish_reason == "length":
                    failed(index, f"its answer did not end before max_new_tokens={max_new_tokens}")
                elif not text:
                    failed(index, "its answer is empty")
                else:
                    line["messages"] = [*line["messages"], {"role": "assistant", "content": text}]
                    write_line(file, line | {"answered_by": settings | line.get("images_kwargs", {})})
                    counts["answered"] += 1
            progress.update(len(batch))
    return Counts(**counts)


def _read(sample: Mapping, settings: dict[str, Any], images_kwargs: dict) -> tuple[dict, dict | None]:
    """A record's line without an answer, and the sample whose prompt asks for it; None if the record has one.

    Raises:
        ValueError: if the record is no question, or holds an image that is no file.
    """
    own = sample.get("images_kwargs", {})
    line = {"key": _key(sample, settings), **_content(sample)} | ({"images_kwargs": own} if own else {})
    last = line["messages"][-1] if line["messages"] else None
    role = last.get("role") if isinstance(last, Mapping) else None
    if role not in ("user", "assistant"):
        raise ValueError(f"its last turn is {last!r:.100}, expected one of the user or the assistant")
    if role == "assistant":
        return line, None
    kwargs = own | images_kwargs
    if own:
        line["images_kwargs"] = {name: kwargs[name] for name in own}
    return line, {**sample, "messages": [*sample["messages"], _ANSWER], "images_kwargs": kwargs}


def _content(sample: Mapping) -> dict[str, Any]:
    media = {name: sample[name] for name in ("images", "videos") if sample.get(name)}
    return {"messages": sample["messages"], **media}


def _key(sample: Mapping, settings: dict[str, Any]) -> str:
    try:
        text = json.dumps([_content(sample), sample.get("images_kwargs"), settings], sort_keys=True)
    except TypeError as error:
        raise ValueError("it holds an image that is no file, expected the path or the URL of each") from error
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _prompts(samples: Sequence[TrainingSample], answerer: Answerer) -> dict[str, torch.Tensor]:
    """The samples up to their last answers, padded on the left."""
    processor, rows = answerer.processor, []
    for sample in samples:
        is_context = sample.labels == IGNORE_INDEX
        start = len(sample) - int(is_context[::-1].argmin())  # after the last label
        while start and not is_context[start - 1]:
            start -= 1
        rows.append(sample.input_ids[:start].tolist())
    batch = dict(processor.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt"))
    if (tiles := make_tiles(list(samples), processor)) is not None:
        batch["pixel_values"] = tiles
    return {name: tensor.to(answerer.model.device) for name, tensor in batch.items()}


def absolute_roots(data: TrainingData) -> None:
    """Let the paths of a dataset's images be absolute, so that a file in another folder can hold them."""
    for part in data.parts:
        part.image_root = os.path.abspath(part.image_root or ".")
