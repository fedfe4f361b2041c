# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Asking a model under several settings. Each answer is stored as soon as it is given, so that a later run goes on."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..chat.bulk import earlier_keys
from ..checkpoints.numbers import counted
from ..evaluation.answering import Answerer, count_generated, generation_arguments
from ..processing.boxes import decode_answer
from .items import Item
from .settings import OWN, Costs, Setting, named, under
from .tower import TowerMemory

# tokens of the model's own distribution that are stored for each token of its answer; the rest counts as one
LIKELIEST = 16
_SMALLEST = 1e-12  # probability


@dataclass(frozen=True)
class Agreement:
    """How an answer compares with the one under the model's own settings.

    Args:
        same: whether the texts are equal.
        common: tokens up to the first difference; of equal answers, all.
        divergence: KL divergence from the model's own distribution per token, up to and including the first token that
            differs. The model's own is known for its likeliest tokens, so that this is a lower bound.
    """

    same: bool
    common: int
    divergence: float


class Asker:
    """Asks a model, and keeps its answers in a JSON Lines file.

    An answer's key is a hash of the images' pixels, the conversation, the tiles that a setting gives these images, and
    the model. So settings that cut an image alike share its answer.

    Args:
        answerer: the model with its own settings.
        costs: of the items that it is asked.
        file: where answers are read and stored.
        model: what identifies the model and how it generates; part of each key.
        batch_size: items per batch.
        generation: arguments of `generate`; no sampling.

    Raises:
        ValueError: if the file has lines that this class did not write.
    """

    def __init__(
        self,
        answerer: Answerer,
        costs: Costs,
        file: Path,
        model: Mapping[str, Any],
        batch_size: int = 1,
        **generation,
    ):
        self.answerer, self.costs, self.file = answerer, costs, file
        self.batch_size, self.generation = batch_size, generation
        self.model = {**model, **generation}
        self.memory = TowerMemory(answerer.model.model.vision_tower)
        self.asked = 0
        self._stored: dict[str, dict[str, Any]] = {}
        earlier_keys(file, self._store, b'{"key": "')

    def key(self, setting: Setting, item: Item, reading: str | None = None) -> str:
        tiles = self.costs.tiles(setting, item)
        text = json.dumps([item.key, tiles, self.model, reading], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _store(self, line: Mapping[str, Any]) -> bytes:
        """Keep a line of the file. Raises: KeyError: if it is none of this class's."""
        self._stored[line["key"]] = {**line, "ids": line["ids"], "seconds": line["seconds"]}
        return line["key"].encode()

    def answer(self, setting: Setting, item: Item, reading: str | None = None) -> dict[str, Any]:
        """The stored line of an answer. Raises: KeyError: if the model was not asked."""
        return self._stored[self.key(setting, item, reading)]

    def ask(self, settings: Sequence[Setting], items: Sequence[Item], what: str) -> None:
        """Ask about each item under the model's own settings and then under others, unless the answer is stored."""
        everything = list(dict.fromkeys([OWN, *settings]))
        missing = {self.key(setting, item) for setting in everything for item in items} - self._stored.keys()
        if not missing:
            return
        with tqdm(total=len(missing), desc=what, unit="answer") as progress:
            for batch in _batches(items, self.batch_size):
                for setting in everything:
                    pending = [item for item in batch if self.key(setting, item) not in self._stored]
                    if pending:
                        with self.memory.in_use():
                            self._ask(setting, pending)
                        progress.update(len(pending))

    def ask_again(self, items: Sequence[Item]) -> str:
        """Ask under the model's own settings in other batches and, on a CPU, on another number of threads.

        Returns:
            The name of this second reading.
        """
        size = 1 if self.batch_size > 1 else min(4, max(2, len(items)))
        threads = None
        if self.answerer.model.device.type == "cpu":
            threads = 1 if torch.get_num_threads() > 1 else 2
        reading = f"in batches of {size}" + (f", on {counted(threads, 'thread')}" if threads else "")
        pending = [item for item in items if self.key(OWN, item, reading) not in self._stored]
        with (
            _threads(threads),
            tqdm(total=len(pending), desc="Noise floor", unit="answer", disable=not pending) as bar,
        ):
            for batch in _batches(pending, size):
                self._ask(OWN, batch, reading)
                bar.update(len(batch))
        return reading

    def compare(self, setting: Setting, item: Item, reading: str | None = None) -> Agreement:
        """An answer beside the one under the model's own settings. Both must have been given."""
        own, other = self.answer(OWN, item), self.answer(setting, item, reading)
        same = own["answer"] == other["answer"]
        if own["key"] == other["key"]:
            return Agreement(True, len(own["ids"]), 0.0)
        divergences = other.get("divergences") or [0.0]
        common = len(own["ids"]) if same else _common(own["ids"], other["ids"])
        return Agreement(same, common, sum(divergences) / len(divergences))

    @torch.inference_mode()
    def _ask(self, setting: Setting, items: Sequence[Item], reading: str | None = None) -> None:
        model, tokenizer = self.answerer.model, self.answerer.processor.tokenizer
        started, saved = time.perf_counter(), self.memory.saved_seconds
        arguments = generation_arguments(self.generation)
        if model.generation_config.pad_token_id is None:
            arguments["pad_token_id"] = tokenizer.pad_token_id
        with under(setting, self.answerer) as asked:
            images = [item.open() for item in items]
            inputs = asked.inputs([item.messages for item in items], add_generation_prompt=True, images=images)
            output = model.generate(**inputs, **arguments, return_dict_in_generate=True, output_logits=True)
        seconds = time.perf_counter() - started + self.memory.saved_seconds - saved
        rows = output.sequences[:, inputs["input_ids"].shape[1] :]
        with self.file.open("a", encoding="utf-8") as file:
            for place, (item, row) in enumerate(zip(items, rows, strict=True)):
                ids = row[: count_generated(row, tokenizer.pad_token_id)]
                logits = torch.stack([step[place] for step in output.logits[: len(ids)]]).float().log_softmax(-1)
                line = {
                    "key": self.key(setting, item, reading),
                    "image": item.name,
                    "setting": reading or named(setting),
                    "tiles": self.costs.tiles(setting, item),
                    "answer": decode_answer(tokenizer, ids).strip(),
                    "ids": ids.tolist(),
                    "finish_reason": asked.finish_reason(ids, **arguments),
                    "seconds": round(seconds / len(items), 4),
                }
                if setting == OWN and reading is None:
                    line["likeliest"] = _likeliest(logits)
                else:
                    line["divergences"] = _divergences(self.answer(OWN, item), line["ids"], logits)
                self._store(line)
                print(json.dumps(line, ensure_ascii=False), file=file, flush=True)
        self.asked += len(items)


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Run torch on so many threads, or as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _likeliest(logits: torch.Tensor) -> list[list]:
    """For (n, V) log-probabilities the ids and log-probabilities of each row's likeliest tokens."""
    values, ids = logits.topk(min(LIKELIEST, logits.shape[1]))
    return [ids.tolist(), [[round(value, 4) for value in row] for row in values.tolist()]]


def _common(ids: Sequence[int], others: Sequence[int]) -> int:
    """The number of leading ids that are equal."""
    pairs = zip(ids, others, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(others)))


def _divergences(own: Mapping[str, Any], ids: Sequence[int], logits: torch.Tensor) -> list[float]:
    """KL(own || other) of each token while the answers' tokens are the same, and of the first that differs.

    Over the own distribution's likeliest tokens and the rest as one, which is at most the divergence over all tokens.

    Args:
        own: the line of the own answer.
        ids: of the other answer.
        logits: (n, V) log-probabilities of the other answer's tokens.
    """
    count = min(_common(own["ids"], ids) + 1, len(own["ids"]), len(ids))
    if not count:
        return []
    places, values = (torch.tensor(part[:count]) for part in own["likeliest"])
    p, q = values.double().exp(), logits[:count].cpu().double().gather(1, places).exp()
    p, q = (torch.cat([each, (1 - each.sum(1, keepdim=True))], 1).clamp(min=_SMALLEST) for each in (p, q))
    return [round(value, 6) for value in (p * (p / q).log()).sum(1).clamp(min=0).tolist()]
