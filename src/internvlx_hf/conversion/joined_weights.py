# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The weights of several checkpoints, read as one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.weights import TensorInfo, Weights

SEPARATOR = ":"


@dataclass(frozen=True)
class PartWeights:
    """The tensors of a checkpoint that belong to one part of a model.

    Args:
        part: name of the part.
        weights: weights of the whole checkpoint.
        owns: whether a tensor of this name belongs to the part.
    """

    part: str
    weights: Weights
    owns: Callable[[str], bool]

    def name(self, name: str) -> str:
        """A tensor's name in the joined weights."""
        return f"{self.part}{SEPARATOR}{name}"


class JoinedWeights:
    """The tensors of several parts, with the interface of [`Weights`]; names begin with the part's name."""

    def __init__(self, parts: list[PartWeights]):
        self.parts = {part.part: part for part in parts}
        self.shards: dict[Any, dict[str, TensorInfo]] = {
            (part.part, path): {part.name(name): info for name, info in contents.items() if part.owns(name)}
            for part in parts
            for path, contents in part.weights.shards.items()
        }
        self.tensors = {name: info for contents in self.shards.values() for name, info in contents.items()}

    def open(self, shard: Any) -> AbstractContextManager[Iterator[tuple[str, torch.Tensor]]]:
        """See [`Weights.open`]."""
        return self._open(*shard)

    @contextmanager
    def _open(self, name: str, path: Path) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
        part = self.parts[name]
        with part.weights.open(path) as tensors:
            yield ((part.name(name), tensor) for name, tensor in tensors)

    def read(self, name: str) -> torch.Tensor:
        part, _, own_name = name.partition(SEPARATOR)
        return self.parts[part].weights.read(own_name)
