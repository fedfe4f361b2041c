# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Encoding each tile once: the thumbnail is in every grid of an image, and several questions may be about one
image.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MOST_BYTES = 2**29


class TowerMemory:
    """The features of tiles that a vision tower has encoded, the latest of them.

    Args:
        tower: the model's vision tower.
        most_bytes: of features that are kept.

    Attributes:
        encoded, remembered: how many tiles the tower has encoded, and how many came from memory.
        saved_seconds: how long those from memory took when they were encoded.
    """

    def __init__(self, tower: torch.nn.Module, most_bytes: int = MOST_BYTES):
        self.tower, self.most_bytes = tower, most_bytes
        self.encoded, self.remembered, self.saved_seconds = 0, 0, 0.0
        self._kept: OrderedDict[bytes, tuple[list, float]] = OrderedDict()
        self._bytes = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The tower encodes only tiles that it has not encoded before; afterwards it is as it was."""
        encode, own = self.tower.forward, vars(self.tower).get("forward")  # accelerate sets one of its own

        def forward(pixel_values: torch.Tensor, **kwargs):
            return self._encode(encode, pixel_values, kwargs)

        self.tower.forward = forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.tower.forward
            if own is not None:
                self.tower.forward = own

    def _encode(self, encode, pixel_values: torch.Tensor, kwargs: dict):
        wanted = repr(sorted(kwargs.items(), key=str)).encode()
        keys = [hashlib.sha256(wanted + _bytes_of(tile)).digest() for tile in pixel_values]
        missing = {key: place for place, key in enumerate(keys) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key in self._kept}
        self.saved_seconds += sum(found[key][1] for key in keys if key in found)
        self.remembered += len(keys) - len(missing)
        self.encoded += len(missing)
        kind: Any = None
        if missing:
            started = time.perf_counter()
            outputs = encode(pixel_values=pixel_values[list(missing.values())], **kwargs)
            kind, names = type(outputs), list(outputs.keys())
            seconds = (time.perf_counter() - started) / len(missing)
            for row, key in enumerate(missing):
                parts = [(name, _row(outputs[name], row)) for name in names]
                found[key] = [kind, parts], seconds
                self._keep(key, found[key])
        (kind, parts), _ = found[keys[0]]
        rows = [dict(found[key][0][1]) for key in keys]
        return kind(**{name: _joined([row[name] for row in rows]) for name, _ in parts})

    def _keep(self, key: bytes, entry: tuple[list, float]) -> None:
        self._kept[key] = entry
        self._bytes += _size(entry)
        while self._bytes > self.most_bytes:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _bytes_of(tile: torch.Tensor) -> bytes:
    return tile.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _row(value, row: int):
    """One tile of an output: of a tensor (tiles, ...), or of a tuple of such tensors."""
    return tuple(_row(each, row) for each in value) if isinstance(value, tuple | list) else value[row : row + 1]


def _joined(rows: list):
    if isinstance(rows[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
    return torch.cat(rows)


def _size(entry: tuple[list, float]) -> int:
    tensors = [each for _, value in entry[0][1] for each in (value if isinstance(value, tuple) else (value,))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
