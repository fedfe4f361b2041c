# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Writing safetensors shards tensor by tensor, without holding all weights in memory."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers.modeling_utils import str_to_torch_dtype

from .errors import CheckpointError
from .names import SAFE_WEIGHTS
from .weights import TensorInfo

DTYPE_NAMES = {dtype: name for name, dtype in str_to_torch_dtype.items()}
# bytes to cast, check and write at a time: few enough to stay in the CPU's cache
CHUNK = 2**20
HEADER_ALIGNMENT = 8


def plan_shards(groups: Iterable[dict[str, TensorInfo]], max_bytes: int) -> list[dict[str, TensorInfo]]:
    """Distribute tensors over shards in order, keeping groups whole: at most `max_bytes` each unless a group is
    larger.
    """
    shards: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for group in groups:
        num_bytes = sum(info.num_bytes for info in group.values())
        if shards[-1] and size + num_bytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1] |= group
        size += num_bytes
    return shards


class ShardWriter:
    """Writes a safetensors file whose tensors are announced in advance and arrive one by one, in any order.

    Args:
        path: the file to write.
        tensors: the tensors that will arrive. Wide dtypes come first in the file, so that every tensor is aligned.
    """

    def __init__(self, path: Path, tensors: dict[str, TensorInfo]):
        self.tensors = tensors
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        self.offsets, position = {}, 0
        for name, info in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
            end = position + info.num_bytes
            header[name] = {
                "dtype": DTYPE_NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [position, end],
            }
            self.offsets[name], position = position, end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % HEADER_ALIGNMENT)
        self.file = open(path, "wb", buffering=0)  # noqa: SIM115
        self.start = 8 + len(text)
        self.file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: torch.Tensor, source: str | None = None) -> None:
        """Cast a tensor to its planned dtype, check it, and write it.

        Args:
            name: one of the announced names.
            tensor: has the announced shape.
            source: name of the tensor that it was made from, for messages.

        Raises:
            CheckpointError: if a value is not finite, in the tensor or after the cast.
            OSError: if the disk is full.
        """
        info = self.tensors[name]
        self.file.seek(self.start + self.offsets[name])
        label = name if source in (None, name) else f"{source} (as {name})"
        flat = tensor.contiguous().view(-1)
        for part in flat.split(CHUNK // info.dtype.itemsize):
            cast = _cast(part, info.dtype)
            _require_finite(label, part, cast)
            self._write_all(cast.view(torch.uint8).numpy().data)

    def _write_all(self, data: memoryview) -> None:
        while data:
            data = data[self.file.write(data) :]

    def close(self) -> None:
        self.file.close()


def _cast(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if {part.dtype, dtype} == {torch.bfloat16, torch.float16}:
        part = part.float()  # exact, and twice as fast as a direct cast
    return part.to(dtype)


def _require_finite(name: str, part: torch.Tensor, cast: torch.Tensor) -> None:
    if cast.is_floating_point() and not torch.stack(torch.aminmax(cast)).isfinite().all():
        if part.isfinite().all():
            raise CheckpointError(
                f"{name} does not fit into {cast.dtype}: its largest value is {part.abs().max():.3g}. Choose another "
                "dtype."
            )
        raise CheckpointError(
            f"{name} has values that are NaN or infinite. The checkpoint is damaged; download it again."
        )


def write_index(folder: Path, shards: dict[str, dict[str, TensorInfo]]) -> None:
    """Write the index for shards of {file name: tensors}."""
    infos = [info for tensors in shards.values() for info in tensors.values()]
    metadata = {
        "total_parameters": sum(info.meta().numel() for info in infos),
        "total_size": sum(info.num_bytes for info in infos),
    }
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    (folder / SAFE_WEIGHTS[1]).write_text(json.dumps(index, indent=2) + "\n")


def shard_names(count: int) -> list[str]:
    """File names of a checkpoint with `count` shards, as in transformers."""
    if count == 1:
        return [SAFE_WEIGHTS[0]]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
