# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A model's own answers as training data: records that end with the user's turn get the answer that the model
gives.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..data import SampleEncoder, TrainingData
from ..data.collator import make_tiles
from ..data.encoding import VideoFrame
from ..evaluation.answering import Answer, Answerer
from ..processing import InternVLXProcessor
from ..processing.image_settings import split_by_owner
from ..processing.processing_internvlx import IGNORE_INDEX
from .bulk import BATCH_SIZE, Item, Outcome, Prompt, answer_all, earlier_keys
from .vllm_answers import VLLMAnswerer

# stands for the answer while its prompt is encoded
_ANSWER = {"role": "assistant", "content": "."}
_TRIED = 100  # records of which one must be readable before a model is loaded
_READ = 100_000  # records of which each question must have an image before a model is loaded
_START = b'{"key": "'


class TextOnlyError(ValueError):
    """A question has no image."""


class RecordJob:
    """The records of training data that have no answer yet.

    Args:
        allow_text: ask questions without an image or a video, too.
        indices: those of the records (default: all).
        known: the settings that a key may be of; the first are written.
    """

    unit = "record"

    def __init__(
        self,
        answerer: Answerer,
        data: TrainingData,
        known: Sequence[dict],
        max_new_tokens: int,
        indices: Sequence[int] | None = None,
        allow_text: bool = True,
    ):
        self.processor: InternVLXProcessor = answerer.changed_processor
        self.config: Any = getattr(answerer.model, "config", None)  # not needed to read records
        self.images_kwargs, self.own_kwargs = split_by_owner(answerer.images_kwargs)
        self.encoder = SampleEncoder(self.processor, share_tiles=data.encoder.share_tiles)
        self.data, self.known, self.max_new_tokens = data, known, max_new_tokens
        self.requests, self.allow_text = isinstance(answerer, VLLMAnswerer), allow_text
        self.indices = range(len(data)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.data.place(self.indices[index])

    def read(self, index: int) -> Item:
        sample = self.data.raw(self.indices[index])
        line, question = _read(sample, self.images_kwargs)
        if question is not None and not self.allow_text and not (line.get("images") or line.get("videos")):
            raise TextOnlyError("it has no image, expected `images` or `videos` (--allow-text asks without)")
        keys = [_key(sample, settings) for settings in self.known]
        return Item(self.name(index), line | {"key": keys[0]}, question, [bytes.fromhex(key) for key in keys])

    def measure(self, item: Item) -> tuple[int, int]:
        sample = self.encoder.measure(item.question)
        if len(sample.images) == 1 and not isinstance(sample.images[0], VideoFrame):
            item.size = self.processor.image_processor.upright_size(sample.images[0], sample.images_kwargs)
        return len(sample), sum(sample.num_tiles)

    def prompt(self, item: Item) -> Prompt:
        if self.requests:
            return Prompt([], request=self._request(item.question))
        sample = self.encoder(item.question)
        ids = _prompt_ids(sample.input_ids, sample.labels != IGNORE_INDEX)
        return Prompt(ids, make_tiles([sample], self.processor), tile_sizes=list(chain(*sample.tile_sizes)))

    def _request(self, question: dict) -> dict:
        """What vLLM takes: the ids with one placeholder for each image, the images, and the image processor's
        arguments.
        """
        ids, has_loss, images, kwargs = self.encoder.placeholders(question)
        if any(isinstance(image, VideoFrame) for image in images):
            raise ValueError("it has a video, expected images only with --engine=vllm")
        kwargs = self.own_kwargs | kwargs
        media = {"multi_modal_data": {"image": images}, "mm_processor_kwargs": kwargs} if images else {}
        return {"prompt_token_ids": _prompt_ids(ids, has_loss), **media}

    def finish(self, item: Item, answer: Answer) -> dict:
        text, line = answer.text.strip(), item.line
        if answer.finish_reason == "length":
            raise ValueError(f"its answer did not end before max_new_tokens={self.max_new_tokens}")
        if not text:
            raise ValueError("its answer is empty")
        line = line | {"messages": [*line["messages"], {"role": "assistant", "content": text}]}
        return line | {"answered_by": self.known[0] | line.get("images_kwargs", {})}

    def broken(self, item: Item) -> None:
        return None


def answer_records(
    answerer: Answerer,
    data: TrainingData,
    out: Path,
    settings: dict[str, Any],
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = 1024,
    same_settings: dict[str, Any] | None = None,
    indices: Sequence[int] | None = None,
    allow_text: bool = True,
    **more,
) -> Outcome:
    """Append a record `{"key", "messages", "images", "images_kwargs", "answered_by"}` to `out` for each record of
    `data`.

    A record that ends with the user's turn gets a greedy answer. Its prompt is that of training: the same tokens, up
    to the answer. One that ends with the assistant's turn is copied. `images_kwargs` holds the tile limits of the
    record or its data set, where it has any, with those that the answerer sets in their place. `boxes` lists the boxes
    of an answer about a single image, in its pixels. Equal records are written once. `key` is a hash of the record and
    the settings; a later run skips the keys that `out` has. Records of similar cost are answered together, so their
    order is another one.

    Nothing is written of a record that cannot be read, or whose answer is empty or longer than `max_new_tokens`: the
    next run tries it again.

    Args:
        data: records by index. Paths of images are written as absolute paths.
        settings: everything else that the answers depend on.
        same_settings: settings of earlier lines that count as `settings` (default: none).
        indices: of the records (default: all).
        allow_text: ask questions without an image or a video, too; else they have no answer.
        batch_size, more: see [`answer_all`].

    Raises:
        ValueError: if `out` has lines that this function did not write, or wrote with other settings.
    """
    known = [settings] if same_settings is None else [settings, same_settings]
    job = RecordJob(answerer, data, known, max_new_tokens, indices, allow_text)
    done = record_keys(out, known)
    return answer_all(answerer, job, out, done, batch_size, max_new_tokens=max_new_tokens, **more)


def require_questions(answerer: Answerer, data: TrainingData, allow_text: bool) -> None:
    """Read the first records, before a model is loaded.

    Args:
        allow_text: see [`answer_records`].

    Raises:
        ValueError: if none of the first hundred can be asked, or one of the first 100,000 has no image and must have
            one. The message names it, with the reason.
    """
    job, tried = RecordJob(answerer, data, [{}], 1, allow_text=allow_text), min(len(data), _TRIED)
    reasons: list[str] = []
    for index in range(min(len(job), tried if allow_text else _READ)):
        try:
            item = job.read(index)
            if index < tried and len(reasons) == index and item.question is not None:
                job.measure(item)
        except TextOnlyError as error:
            raise ValueError(f"{job.name(index)}: {error}") from error
        except (ValueError, OSError) as error:
            reasons += [f"{job.name(index)}: {error}"] if index < tried else []
        if len(reasons) == tried:
            raise ValueError(f"None of the first {tried} records can be asked: {reasons[0]}")


def record_keys(path: Path, known: Sequence[Mapping] = ()) -> set[bytes]:
    """The keys of a file's records. Raises: ValueError: see [`earlier_keys`]."""

    def settings(line: Mapping) -> Mapping | None:
        own, written = line.get("images_kwargs", {}), line.get("answered_by")
        if written is None:
            return None
        return {name: value for name, value in written.items() if name not in own} | {
            name: known[0][name] for name in own if name in known[0]
        }

    return earlier_keys(path, lambda line: (line["messages"], bytes.fromhex(line["key"]))[1], _START, known, settings)


def _read(sample: Mapping, images_kwargs: dict) -> tuple[dict, dict | None]:
    """A record's line without an answer, and the sample whose prompt asks for it; None if the record has one.

    Raises:
        ValueError: if the record is no question, or holds an image that is no file.
    """
    own = sample.get("images_kwargs", {})
    line = {"key": "", **_content(sample)} | ({"images_kwargs": own} if own else {})
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


def _prompt_ids(ids: np.ndarray, has_loss: np.ndarray) -> list[int]:
    """(L,) ids up to the last answer, whose tokens carry loss."""
    is_context = ~has_loss
    start = len(ids) - int(is_context[::-1].argmin())  # after the last label
    while start and not is_context[start - 1]:
        start -= 1
    return ids[:start].tolist()


def absolute_roots(data: TrainingData) -> None:
    """Let the paths of a dataset's images be absolute, so that a file in another folder can hold them."""
    for part in data.parts:
        part.image_root = os.path.abspath(part.image_root or ".")
