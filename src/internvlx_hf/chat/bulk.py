# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Answers in bulk: batches of similar cost, made ahead in worker processes, and lines that a later run resumes
from.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from ..cost.measure import measure
from ..cost.memory import activation_bytes, cache_bytes
from ..data import CostGroupedSampler
from ..data.sizes import SampleSizes
from ..evaluation.answering import Answer, Answerer
from ..modeling import InternVLXConfig
from ..processing import InternVLXProcessor
from ..processing.boxes import parse_boxes

BATCH_SIZE = 8
NAMED = 10  # failures that are named at the end
_WINDOW = 100  # batches that are measured, and sorted by cost, together
_AHEAD = 2  # batches that a worker makes before they are asked for
_MEMORY_SHARE = 0.8  # of the free memory, for a batch
_MOST_WORKERS = 8


class Outcome(NamedTuple):
    """What a run did.

    Args:
        answered, copied, earlier, failed: numbers of items that it answered, that had an answer, that earlier runs
            answered, and that have none.
        failures: (name, reason) of the first that failed.
        seconds: how long answering took.
    """

    answered: int = 0
    copied: int = 0
    earlier: int = 0
    failed: int = 0
    failures: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.answered / self.seconds if self.seconds else 0.0
        more = {"had an answer": self.copied, "are from earlier runs": self.earlier}
        others = "".join(f", {count} {what}" for what, count in more.items() if count)
        return f"{self.answered} answers{others}" + (f"; {rate:.3g} a second" if self.answered else "")

    def require_all(self, what: str, where: str) -> None:
        """Raises: ValueError: if items have no answer. The message names the first of them; `what` is one item."""
        if not self.failed:
            return
        names = "; ".join(f"{name}: {reason}" for name, reason in self.failures)
        more = f"; and {self.failed - len(self.failures)} more" if self.failed > len(self.failures) else ""
        which = f"1 {what} has" if self.failed == 1 else f"{self.failed} {what}s have"
        raise ValueError(f"{which} no answer{where}: {names}{more}")


class Prompt(NamedTuple):
    """(L,) ids of a prompt, and its tiles (tiles, 3, H, W), if it has any; or `request`, what another engine takes
    instead.
    """

    input_ids: list[int]
    tiles: torch.Tensor | None = None
    request: dict | None = None
    tile_sizes: Sequence[int] = ()  # of each tile, if one has another size than the first that the model offers


@dataclass
class Item:
    """One thing to ask about.

    Args:
        name: its name in messages.
        line: what is written of it, without the answer. Empty if it could not be read.
        question: whatever its prompt is made of; None if the line is whole.
        keys: what identifies the line in a file, the form that is written first.
        size: (width, height) of its image, if it has only one: what the boxes of the answer refer to.
        error: why it has no answer.
    """

    name: str
    line: dict[str, Any] = field(default_factory=dict)
    question: Any = None
    keys: list[bytes] = field(default_factory=list)
    size: tuple[int, int] | None = None
    error: str | None = None


class Job(Protocol):
    """What is asked. Worker processes have a copy. Whatever is wrong with one item raises ValueError or OSError."""

    unit: str
    processor: InternVLXProcessor
    config: InternVLXConfig

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int) -> Item: ...

    def measure(self, item: Item) -> tuple[int, int]:
        """The prompt's tokens and tiles, from the headers of its images. Sets the item's `size`."""

    def prompt(self, item: Item) -> Prompt: ...

    def finish(self, item: Item, answer: Answer) -> dict:
        """The line with its answer."""

    def broken(self, item: Item) -> dict | None:
        """The line of an item with an error; None if nothing is written of it."""


@dataclass
class Group:
    """A batch. Without `inputs`, what is not asked: lines that are whole, and items that cannot be asked."""

    items: list[Item]
    inputs: dict[str, Any] = field(default_factory=dict)
    tiles: list[int] = field(default_factory=list)  # of each row
    earlier: int = 0

    def halves(self) -> "tuple[Group, Group]":
        half = len(self.items) // 2
        first = sum(self.tiles[:half])
        cuts = ("pixel_values", "tile_sizes")
        parts = []
        for rows, tiles in ((slice(None, half), slice(None, first)), (slice(half, None), slice(first, None))):
            inputs = {name: value[tiles if name in cuts else rows] for name, value in self.inputs.items()}
            inputs = {name: value for name, value in inputs.items() if len(value)}
            parts.append(replace(self, items=self.items[rows], inputs=inputs, tiles=self.tiles[rows]))
        return parts[0], parts[1]


def digest(key: Any) -> bytes:
    """16 bytes that stand for anything that JSON can hold."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).digest()


@dataclass
class Plan(IterableDataset):
    """The batches of a job, ready to be answered. Every worker process makes the same plan, and the prompts of every
    n-th batch.

    Args:
        done: digests of what needs no answer.
        batch_size: the largest number of rows of a batch.
        room: bytes that a batch may take on the device, estimated by `cost` (default: any number).
        new_tokens: the longest answer.
        element_size: bytes of an element of the cache.
    """

    job: Job
    done: set[bytes]
    batch_size: int = BATCH_SIZE
    room: float = float("inf")
    new_tokens: int = 1024
    element_size: int = 4

    def __iter__(self) -> Iterator[Group]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index, group in enumerate(self._groups()):
            if index % workers == number:
                yield self._with_inputs(group) if group.tiles else group

    def _groups(self) -> Iterator[Group]:
        done, window = set(self.done), self.batch_size * _WINDOW
        for start in range(0, len(self.job), window):
            rest, asked, sizes = Group([]), [], []
            for index in range(start, min(start + window, len(self.job))):
                item = self._read(index, done)
                if item is None:
                    rest.earlier += 1
                    continue
                size = self._measure(item)
                if size is None:
                    rest.items.append(replace(item, question=None))
                else:
                    asked.append(item)
                    sizes.append(size)
            yield rest
            if asked:
                yield from self._batches(asked, np.array(sizes))

    def _read(self, index: int, done: set[bytes]) -> Item | None:
        """The item; None if it needs no answer."""
        try:
            item = self.job.read(index)
        except (ValueError, OSError) as error:
            return Item(self.job.name(index), error=str(error))
        if not done.isdisjoint(item.keys):
            return None
        done.add(item.keys[0])
        return item

    def _measure(self, item: Item) -> tuple[int, int] | None:
        if item.question is None:
            return None
        try:
            return self.job.measure(item)
        except (ValueError, OSError) as error:
            item.error = str(error)
            return None

    def _batches(self, items: list[Item], sizes: np.ndarray) -> Iterator[Group]:
        """(n, 2) tokens and tiles of n items to batches of similar cost that fit into the memory."""
        costs = SampleSizes(*sizes.T).costs(self.job.config)
        order = list(CostGroupedSampler(costs, self.batch_size))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            fitting = max(1, int(min(len(rows), self.room // self._row_bytes(*sizes[rows].max(0)))))
            for first in range(0, len(rows), fitting):
                own = rows[first : first + fitting]
                yield Group([items[row] for row in own], tiles=sizes[own, 1].tolist())

    def _row_bytes(self, tokens: int, tiles: int) -> int:
        sizes = measure(self.job.config)
        in_stages = zip(*(tile.in_stages for tile in sizes.tiles.values()), strict=True)
        first, *later = [list(own) for own in in_stages]
        gains = [0, *(max(after - before for before, after in zip(first, own, strict=True)) for own in later)]
        lengths = [int(tokens + tiles * gain) for gain in gains]
        at_end = [length + self.new_tokens for length in lengths]
        return activation_bytes(sizes, int(tiles), lengths, self.element_size) + cache_bytes(
            sizes, at_end, self.element_size
        )

    def _with_inputs(self, group: Group) -> Group:
        prompts, items = [], []
        for item in group.items:
            try:
                prompts.append(self.job.prompt(item))
            except (ValueError, OSError) as error:
                item = replace(item, error=str(error))
            items.append(replace(item, question=None))
        asked = [item for item in items if item.error is None]
        broken = [item for item in items if item.error is not None]
        if not prompts:
            return Group(broken)
        counts = [0 if prompt.tiles is None else len(prompt.tiles) for prompt in prompts]
        if any(prompt.request for prompt in prompts):
            return Group([*asked, *broken], {"prompts": [prompt.request for prompt in prompts]}, counts)
        ids = {"input_ids": [prompt.input_ids for prompt in prompts]}
        padded = self.job.processor.tokenizer.pad(ids, padding_side="left", return_tensors="pt")
        inputs, tiles = dict(padded), [prompt.tiles for prompt in prompts if prompt.tiles is not None]
        if tiles:
            inputs["pixel_values"] = torch.cat(tiles)
        sizes = [
            size for prompt, count in zip(prompts, counts, strict=True) for size in prompt.tile_sizes or [0] * count
        ]
        if any(sizes):
            inputs["tile_sizes"] = torch.tensor(sizes)
        return Group([*asked, *broken], inputs, counts)


def answer_all(
    answerer: Answerer,
    job: Job,
    out: Path,
    done: set[bytes],
    batch_size: int = BATCH_SIZE,
    num_workers: int | None = None,
    quiet: bool = False,
    **generation_kwargs,
) -> Outcome:
    """Ask about everything of a job, and append a line of each to `out` as soon as its batch is answered.

    Memory does not grow with the number of items, but for 16 bytes of each that is done.

    Args:
        done: digests of what needs no answer.
        batch_size: the largest batch; smaller ones where `cost` estimates that the memory would not suffice.
        num_workers: processes that read and tile images ahead (default: as many as are useful here).
        quiet: show no progress.
        generation_kwargs: see [`Answerer.answer`].
    """
    plan = Plan(job, done, batch_size)
    plan.room = free_bytes(answerer.model.device)
    plan.element_size = torch.finfo(answerer.model.dtype).bits // 8
    plan.new_tokens = generation_kwargs.get("max_new_tokens") or plan.new_tokens
    workers = useful_workers(job, batch_size) if num_workers is None else num_workers
    if workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each worker warns that it was forked
    loader = DataLoader(plan, batch_size=None, num_workers=workers, prefetch_factor=_AHEAD if workers else None)
    counts, started = dict.fromkeys(Outcome._fields[:4], 0), time.perf_counter()
    failures: list[tuple[str, str]] = []
    progress = tqdm(total=len(job), desc="Answering", unit=job.unit, smoothing=0.05, disable=quiet)
    with out.open("a", encoding="utf-8") as file, progress:
        for group in loader:
            counts["earlier"] += group.earlier
            progress.total -= group.earlier
            for item, answer in _answers(answerer, group, generation_kwargs):
                line = _finished(job, item, answer)
                if item.error is not None:
                    counts["failed"] += 1
                    failures += [(item.name, item.error)] if len(failures) < NAMED else []
                else:
                    counts["copied" if answer is None else "answered"] += 1
                if line is not None:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            progress.update(len(group.items))
    return Outcome(**counts, failures=tuple(failures), seconds=time.perf_counter() - started)


def _answers(answerer: Answerer, group: Group, generation_kwargs: dict) -> Iterator[tuple[Item, Answer | None]]:
    """The answer of each item; None of an item that is not asked. What fails in a batch is asked again in its
    halves.
    """
    if not group.inputs:
        yield from ((item, None) for item in group.items)
        return
    rows = len(group.tiles)
    try:
        inputs = group.inputs
        if "prompts" not in inputs:
            inputs = {name: value.to(answerer.model.device) for name, value in inputs.items()}
        answers = answerer.complete(inputs, **generation_kwargs)
    except (ValueError, torch.OutOfMemoryError) as error:
        if rows == 1:
            yield replace(group.items[0], error=str(error)), None
        else:
            for half in replace(group, items=group.items[:rows]).halves():
                yield from _answers(answerer, half, generation_kwargs)
    else:
        yield from zip(group.items[:rows], answers, strict=True)
    yield from ((item, None) for item in group.items[rows:])


def _finished(job: Job, item: Item, answer: Answer | None) -> dict | None:
    """The line to write; sets the item's error if its answer is none."""
    if item.error is None and answer is not None:
        try:
            line = job.finish(item, answer)
        except ValueError as error:
            item.error = str(error)
        else:
            boxes = parse_boxes(answer.text, item.size) if item.size else []
            corners = [{"label": box.label, "box": [round(value, 2) for value in box[1:]]} for box in boxes]
            return line | ({"boxes": corners} if corners else {})
    return item.line if item.error is None else job.broken(item)


def first_difference(wanted: Mapping, found: Mapping) -> str | None:
    """The first setting of a run that differs from those of an earlier one, for messages; None if all are equal. A
    setting that is not there equals None.
    """
    for name in (*wanted, *found):
        if wanted.get(name) != found.get(name):
            return f"{name}={found.get(name)!r}, this run has {wanted.get(name)!r}"
    return None


def free_bytes(device: torch.device) -> float:
    """Bytes that a batch may take on a device."""
    if device.type == "cpu":
        return _MEMORY_SHARE * psutil.virtual_memory().available
    if device.type != "cuda":
        return float("inf")
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _MEMORY_SHARE * (torch.cuda.mem_get_info(device)[0] + held)


def useful_workers(job: Job, batch_size: int) -> int:
    """Processes that make batches ahead: one for each core but one, as many as there are batches and as shared memory
    holds.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rule = job.processor.image_processor.tiling_rule()
    batch = batch_size * (rule.max_tiles + 1) * 3 * rule.tile_width * rule.tile_height * 4
    fitting = (
        shutil.disk_usage("/dev/shm").free // ((_AHEAD + 1) * batch) if os.path.isdir("/dev/shm") else _MOST_WORKERS
    )
    return int(max(0, min(cores - 1, _MOST_WORKERS, len(job) // batch_size - 1, fitting)))


def earlier_keys(
    path: Path,
    key: Callable[[Mapping], bytes | None],
    start: bytes,
    known: Sequence[Mapping] = (),
    settings: Callable[[Mapping], Mapping | None] = lambda line: None,
) -> set[bytes]:
    """The digests of the lines of an earlier run. An incomplete last line is removed from the file.

    Args:
        key: returns what identifies a line; None if a line is no answer.
        start: how every line begins.
        known: the settings that a line may be of (default: any).
        settings: returns those of a line; None if it does not depend on settings.

    Raises:
        ValueError: if a line was not written by the same command, or was written with other settings.
    """
    found: set[bytes] = set()
    allowed = json.loads(json.dumps(known))  # as a line has them
    if not path.exists():
        return found
    length = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                if not line.startswith(start[: len(line)]):
                    raise ValueError(
                        f"{path} ends with {line[:80]!r}, which this command did not write. Choose another file."
                    )
                break
            length += len(line)
            try:
                content = json.loads(line)
                found.add(key(content))  # type: ignore[arg-type]
                written = settings(content) if known else None
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(
                    f"{path}, line {number} was not written by this command: {line[:80]!r}. Choose another file."
                ) from None
            different = [] if written is None else [first_difference(own, written) for own in allowed]
            if different and all(different):
                raise ValueError(f"{path}, line {number} was written with {different[0]}. Choose another file.")
    if length < path.stat().st_size:
        os.truncate(path, length)
    return found - {None}  # type: ignore[operator]
