# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The weight files of a checkpoint: which tensors they hold, and one tensor at a time out of them."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from .json_files import read_weight_map
from .links import resolve_inside

# the first that is there is read: one file that holds everything, or an index of shards
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
FLOATING = tuple(name for name, dtype in SAFETENSORS_DTYPES.items() if dtype.is_floating_point)
# what a conversion reads beside the weights
SIDECAR_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "README.md",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message names what is wrong with it and what would be right."""


@contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `CheckpointError` that names `path`; an `OSError` that does so stays."""
    try:
        yield
    except Exception as error:  # transformers and tokenizers raise anything for what they did not expect in a file
        text = " ".join(str(error).split())
        if str(path) in text and isinstance(error, ValueError | OSError):
            raise
        text = text if isinstance(error, ValueError | StrictDataclassError) else f"{type(error).__name__}: {text}"
        raise CheckpointError(f"{path}: {text}") from error


def check_links(folder: Path) -> None:
    """Check that nothing which a conversion reads beside the weights is a link out of the checkpoint's folder.

    Raises:
        LinkError: naming the link and where it leads.
    """
    for name in SIDECAR_FILES:
        if os.path.lexists(folder / name):
            resolve_inside(folder, name)


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files that hold a checkpoint's weights; and the index that names them by tensor, None where there is one file.

    Raises:
        CheckpointError: there are none, one is missing, or the index is damaged or names a file elsewhere.
        LinkError: one is a link out of the folder.
    """
    name = next((name for name in WEIGHT_FILES if os.path.lexists(folder / name)), None)
    if name is None:
        raise CheckpointError(f"{folder} holds no weights, expected one of {', '.join(WEIGHT_FILES)}.")
    resolve_inside(folder, name)
    if not name.endswith(".json"):
        return [folder / name], None
    try:
        index = read_weight_map(folder / name)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    paths = [folder / name for name in sorted(set(index.values()))]
    if missing := [path.name for path in paths if not os.path.lexists(path)]:
        raise CheckpointError(
            f"{folder} lacks {listed(missing)}, which its index names. Download them again; the checkpoint has "
            f"{len(paths)} shards."
        )
    for path in paths:
        resolve_inside(folder, path)
    return paths, index


@dataclass(frozen=True)
class TensorInfo:
    """What a tensor is, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.meta().nbytes

    def meta(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class CheckpointFiles:
    """The shards of a checkpoint folder.

    Args:
        folder: holds safetensors files, or `.bin` files, which are read with `torch.load(weights_only=True)` only.

    Raises:
        CheckpointError: if there are no weights, a shard is missing or damaged, or index and shards disagree.
        LinkError: if a shard is a link out of the folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        paths, index = weight_files(folder)
        self.shards = {path: self._contents(path) for path in paths}
        self.tensors: dict[str, TensorInfo] = {}
        for path, contents in self.shards.items():
            if twice := sorted(contents.keys() & self.tensors.keys()):
                raise CheckpointError(f"{path} holds tensors that an earlier shard holds too: {listed(twice)}.")
            self.tensors |= contents
        self._compare_with(index)

    def _contents(self, path: Path) -> dict[str, TensorInfo]:
        if path.suffix != ".safetensors":
            with self.open(path) as tensors:
                return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors}
        try:
            with safe_open(path, framework="pt") as shard:
                slices = {name: shard.get_slice(name) for name in shard.offset_keys()}
                return {name: _info(name, part) for name, part in slices.items()}
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or cut short ({error}). Download it again.") from error
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def _compare_with(self, index: dict[str, str] | None) -> None:
        if index is None:
            return
        if missing := sorted(index.keys() - self.tensors.keys()):
            raise CheckpointError(f"The shards of {self.folder} lack tensors that the index names: {listed(missing)}.")
        if extra := sorted(self.tensors.keys() - index.keys()):
            raise CheckpointError(f"The shards of {self.folder} hold tensors that the index lacks: {listed(extra)}.")

    @contextmanager
    def open(self, path: Path) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
        """Yield an iterator over (name, tensor) of one shard. A tensor's memory is the file's, mapped, while it is open."""
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as shard:
                yield ((name, shard.get_tensor(name)) for name in shard.offset_keys())
        else:
            yield iter(_load_bin(path).items())

    def read(self, name: str) -> torch.Tensor:
        """One tensor, by name."""
        path = next(path for path, contents in self.shards.items() if name in contents)
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as shard:
                return shard.get_tensor(name)
        return _load_bin(path)[name]


def _info(name: str, part) -> TensorInfo:
    dtype = SAFETENSORS_DTYPES.get(part.get_dtype())
    if dtype is None:
        raise CheckpointError(
            f"Tensor {name} is stored as {part.get_dtype()}, expected one of {', '.join(FLOATING)}. Convert the "
            "checkpoint that has not been quantised."
        )
    return TensorInfo(tuple(part.get_shape()), dtype)


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    found = _unpickle(path)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected tensors by name.")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path} holds a {type(tensor).__name__} as {name!r:.200}, expected tensors by name alone. Save those that "
                "are the model's."
            )
        if tensor.layout != torch.strided or tensor.dtype not in SAFETENSORS_DTYPES.values():
            raise CheckpointError(
                f"{path} has the tensor {name} as {tensor.dtype}, {tensor.layout}, expected a dense one of "
                f"{', '.join(FLOATING)}. Convert the checkpoint that has not been quantised."
            )
    return found


def _unpickle(path: Path):
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
        # written in the format before zip files, which cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors, and running what it holds is refused.") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        text = " ".join(str(error).split())
        raise CheckpointError(f"{path} is damaged or cut short ({text}). Download it again.") from error


def listed(names, limit: int = 12) -> str:
    """Names for a message, the first few of them."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
