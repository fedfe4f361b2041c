# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Answers to records on many machines: Ray Data gives shards of them to actors, each of which runs the engine of one
process.

A shard is a range of records and a file of their answers. An actor writes it under another name and renames it once it
is whole, so a killed actor or driver leaves no unfinished `part-*.jsonl`. The next run finds what a shard has by its
records' keys.
"""

import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..checkpoints.json_files import read_json
from ..checkpoints.locks import locked
from ..checkpoints.weights import weight_files
from ..data import load_training_data
from .bulk import NAMED, Outcome, first_difference
from .loading import answerer_with, open_answerer
from .record_answers import RecordJob, absolute_roots, answer_records, record_keys

SHARD_SIZE = 1000
LOCAL = "local"
SETTINGS_FILE = "answers.json"
_TRIES = 6  # of a shard whose actors die
_MOST_BLOCKS = 4096
_CONNECT_SECONDS = 5
_STORE_BYTES = 128 * 2**20  # of a local Ray: its objects are numbers of shards


@dataclass(frozen=True)
class RayTask:
    """What the actors need to know. Paths are absolute, on a file system that all machines share.

    Args:
        model, revision, images_kwargs: see [`open_answerer`].
        data: arguments of [`load_training_data`], but for the processor.
        out: the folder of the shards.
        records: number of records.
        settings, batch_size, max_new_tokens: see [`answer_records`].
        wanted: arguments of `Choice.sensible`.
        shard_size: records of a shard.
        engine: "transformers" or "vllm".
        allow_text: see [`answer_records`].
    """

    model: str
    revision: str | None
    images_kwargs: dict
    data: dict
    out: Path
    records: int
    settings: dict[str, Any]
    batch_size: int
    max_new_tokens: int
    wanted: dict = field(default_factory=dict)
    shard_size: int = SHARD_SIZE
    engine: str = "transformers"
    allow_text: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What all shards of a folder have in common."""
        return {"shard_size": self.shard_size, **self.settings}

    @property
    def shards(self) -> int:
        return -(-self.records // self.shard_size)

    def indices(self, shard: int) -> range:
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.records))

    def path(self, shard: int) -> Path:
        return self.out / f"part-{shard:06}.jsonl"


class ShardWorker:
    """An actor. The model is loaded for the first record that has no answer."""

    def __init__(self, task: RayTask):
        self.task = task
        self.answerer, self.folder = open_answerer(
            task.model, task.revision, task.images_kwargs, say=lambda line: None
        )
        self.data = load_training_data(processor=self.answerer.processor, **task.data)
        absolute_roots(self.data)  # type: ignore[arg-type]  # not a stream

    def __call__(self, batch: dict) -> dict:
        results: list[dict] = []
        for shard in map(int, batch["shard"]):
            try:
                results.append({"shard": shard} | self.answer(shard)._asdict())
            except (ValueError, OSError) as error:  # nothing that another try would change
                results.append({"refused": str(error)})
        return {"result": list(map(json.dumps, results))}

    def answer(self, shard: int) -> Outcome:
        """Answer what a shard's file lacks.

        Raises:
            ValueError: if DATA or the shard's file is another one than at the first run.
        """
        task, path, indices = self.task, self.task.path(shard), self.task.indices(shard)
        if len(self.data) != task.records:  # type: ignore[arg-type]
            raise ValueError(f"DATA has {len(self.data)} records on {socket.gethostname()}, expected {task.records}.")  # type: ignore[arg-type]
        done = record_keys(path)
        missing = self._missing(indices, done, path)
        if not missing:
            return Outcome(earlier=len(indices))
        deaths = len(list(task.out.glob(f"{path.name}.*.partial")))  # Ray would start such a shard for ever
        if deaths >= _TRIES:
            reason = f"{deaths} actors died that answered records {indices.start} to {indices.stop - 1}"
            return Outcome(earlier=len(indices) - missing, failed=missing, failures=((path.name, reason),))
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        if path.exists():
            shutil.copyfile(path, partial)
        else:
            partial.touch()
        if self.answerer.model is None:
            self.answerer = answerer_with(self.answerer, self.folder, task.engine, task.wanted)
        names = ("settings", "batch_size", "max_new_tokens", "allow_text")
        arguments = {name: getattr(task, name) for name in names}
        if self.answerer.model.device.type != "cuda":  # the actor has one core, or the engine decodes itself
            arguments["num_workers"] = 0
        outcome = answer_records(self.answerer, self.data, partial, indices=indices, quiet=True, **arguments)  # type: ignore[arg-type]
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        return outcome

    def _missing(self, indices: range, done: set[bytes], path: Path) -> int:
        """How many records have no line.

        Raises:
            ValueError: if a line is of another record.
        """
        job = RecordJob(self.answerer, self.data, [self.task.settings], self.task.max_new_tokens, indices)  # type: ignore[arg-type]
        own, missing = set(), 0
        for index in range(len(job)):
            try:
                (key,) = job.read(index).keys
            except (ValueError, OSError):
                missing += 1
                continue
            own.add(key)
            missing += key not in done
        if strange := done - own:
            raise ValueError(
                f"{path} has {len(strange)} answers to other records than DATA has at {indices.start} to "
                f"{indices.stop - 1}: DATA has changed. Choose another folder."
            )
        return missing


def answer_on_ray(address: str, task: RayTask, weights: Path) -> Outcome:
    """Answer all records of a task, in shards. A later call with the same task answers what is missing.

    Args:
        address: of a Ray cluster (`host:port`, `ray://host:port` or `auto`), or [`LOCAL`], which starts one of this
            machine's cores.
        weights: folder of the model's weights, for the memory of an actor without a GPU.

    Raises:
        ValueError: if the cluster cannot be reached, the folder holds other files or answers of other settings, or
            DATA has changed.
        BlockingIOError: if another run writes the folder.
    """
    _require_own(task)
    with _connected(address) as ray:
        task.out.mkdir(exist_ok=True)
        with locked(task.out / ".answers", task.out):
            _claim(task)
            _remove_partial(task.out)
            before = {shard for shard in range(task.shards) if task.path(shard).exists()}
            try:
                return _collect(task, _results(ray, task, weights), before)
            finally:
                _remove_partial(task.out)


def _results(ray, task: RayTask, weights: Path) -> Iterator[dict]:
    """What became of each shard, as it ends."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    on_gpu = gpus and not str(task.wanted.get("device") or "cuda").startswith("cpu")
    own = {"num_gpus": 1} if on_gpu else {"num_cpus": 1, "memory": _actor_bytes(weights)}
    most = max(1, gpus if on_gpu else cpus)
    shards = ray.data.from_items(
        [{"shard": shard} for shard in range(task.shards)], override_num_blocks=min(task.shards, _MOST_BLOCKS)
    )
    answers = shards.map_batches(
        ShardWorker,
        fn_constructor_args=(task,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=most, max_size=most),
        **own,
    )
    for row in answers.iter_rows():
        yield json.loads(row["result"])


def _collect(task: RayTask, results: Iterator[dict], before: set[int]) -> Outcome:
    """What became of all shards, where `before` lists those that had a file when this run began."""
    counts, started = dict.fromkeys(Outcome._fields[:4], 0), time.perf_counter()
    failures: list[tuple[str, str]] = []
    with tqdm(total=task.records, desc="Answering", unit="record", smoothing=0.05) as progress:
        for result in results:
            if "refused" in result:
                raise ValueError(result["refused"])
            if result["shard"] not in before:  # else of an actor of this run that died before it could tell
                result |= {"answered": result["answered"] + result["earlier"], "earlier": 0}
            for name in counts:
                counts[name] += result[name]
            failures += [(name, reason) for name, reason in result["failures"]]
            progress.total -= result["earlier"]
            progress.update(sum(counts[name] for name in ("answered", "copied", "failed")) - progress.n)
    return Outcome(**counts, failures=tuple(failures[:NAMED]), seconds=time.perf_counter() - started)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected for the duration. Raises: ValueError: if there is none at the address."""
    require_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    more = {"num_cpus": os.cpu_count(), "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **(more if address == LOCAL else {}))
    except (ConnectionError, RuntimeError, OSError) as error:
        raise ValueError(_unreachable(address, error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def require_reachable(address: str) -> None:
    """Raises: ValueError: if nothing answers at the address of a Ray cluster."""
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 2**16:
        raise ValueError(
            f"--ray={address!r}, expected host:port, ray://host:port, auto, or nothing for a Ray of this machine."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(_unreachable(address, error)) from error


def _unreachable(address: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return (
        f"--ray={address!r}: no Ray cluster can be reached there ({reason:.200}). `ray status` shows a cluster's "
        "address."
    )


def _claim(task: RayTask) -> None:
    """Write what the folder's answers depend on, unless it is there. Raises: ValueError: see `_require_own`."""
    _require_own(task)
    path = task.out / SETTINGS_FILE
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(task.identity, indent=1))
        os.replace(partial, path)


def _require_own(task: RayTask) -> None:
    """Raises: ValueError: if the folder of the shards has other files, or answers of other settings."""
    path = task.out / SETTINGS_FILE
    if not path.exists():
        names = {each.name for each in task.out.iterdir()} if task.out.exists() else set()
        names -= {name for name in names if name.startswith(".answers") or name == f"{path.name}.partial"}
        if names:
            raise ValueError(f"{task.out} holds {min(names)!r}, which no earlier run wrote. Choose another folder.")
        return
    if different := first_difference(task.identity, read_json(path)):
        raise ValueError(f"{task.out} has answers with {different}. Choose another folder.")


def _remove_partial(folder: Path) -> None:
    for path in folder.glob("part-*.jsonl.*.partial"):
        path.unlink(missing_ok=True)


def _actor_bytes(weights: Path) -> int:
    """Memory of an actor on a CPU: weights in float32, and half as much for the rest."""
    return 6 * sum(path.stat().st_size for path in weight_files(weights)[0]) // 2
