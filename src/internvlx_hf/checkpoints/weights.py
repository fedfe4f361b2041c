# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The weight files of a checkpoint: which tensors they hold, which they should hold, and reading them one at a
time.
"""

import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.modeling_utils import str_to_torch_dtype

from ..modeling import InternVLXConfig, InternVLXForConditionalGeneration
from .errors import CheckpointError, blaming, listed
from .folders import resolve_inside
from .json_files import read_weight_map
from .names import WEIGHTS

# the output embeddings, which may be tied to the input embeddings
HEAD = "lm_head.weight"
# a module's tensor of all experts of a layer -> an expert's tensors in files, as transformers saves and loads them
EXPERTS = ".mlp.experts."
EXPERT_TENSORS = {"gate_up_proj": ("gate_proj.weight", "up_proj.weight"), "down_proj": ("down_proj.weight",)}


def weight_files(folder: Path, kinds: Sequence[str] = WEIGHTS) -> tuple[list[Path], dict[str, str] | None]:
    """The files that hold a checkpoint's weights, and the index of file names by tensor, None for a single file.

    Args:
        folder: the checkpoint.
        kinds: names of single files and of indices; the first that exists is used.

    Raises:
        CheckpointError: if there are no weights, a shard is missing, or the index is damaged or names a file
            elsewhere.
        LinkError: if one is a link out of the folder.
    """
    name = next((name for name in kinds if os.path.lexists(folder / name)), None)
    if name is None:
        raise CheckpointError(f"{folder} holds no weights, expected one of {', '.join(kinds)}.")
    resolve_inside(folder, name)
    if not name.endswith(".json"):
        return [folder / name], None
    index = read_weight_map(folder / name)
    paths = [folder / name for name in sorted(set(index.values()))]
    if missing := [path.name for path in paths if not os.path.lexists(path)]:
        raise CheckpointError(f"{folder} lacks {listed(missing)} of the {len(paths)} shards that {name} names.")
    for path in paths:
        resolve_inside(folder, path.name)
    return paths, index


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.meta().nbytes

    def meta(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def model_tensors(config: InternVLXConfig) -> dict[str, TensorInfo]:
    """Name, shape and dtype of every tensor of a saved model, including tied output embeddings.

    Raises:
        CheckpointError: if the configuration does not make a model.
    """
    with blaming("config.json"), torch.device("meta"):
        model = InternVLXForConditionalGeneration(config)
    return {
        saved: TensorInfo(shape, tensor.dtype)
        for name, tensor in model.state_dict().items()
        for saved, shape in _saved_tensors(name, tuple(tensor.shape))
    }


def _saved_tensors(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in files of a module's tensor."""
    layer, experts, own_name = name.partition(EXPERTS)
    if not experts:
        yield name, shape
        return
    count, rows, columns = shape
    tensors = EXPERT_TENSORS[own_name]
    for expert in range(count):
        for tensor in tensors:
            yield f"{layer}{experts}{expert}.{tensor}", (rows // len(tensors), columns)


class Weights:
    """The weights of a checkpoint folder. Values are read on request.

    Args:
        folder: holds safetensors files, or `.bin` files, which are read with `torch.load(weights_only=True)` only.
        kinds: see [`weight_files`].

    Raises:
        CheckpointError: if there are no weights, shards are missing or damaged, or index and shards disagree. The
            message names every problem.
        LinkError: if a shard is a link out of the folder.
    """

    def __init__(self, folder: Path, kinds: Sequence[str] = WEIGHTS):
        self.folder = folder
        self.shards: dict[Path, dict[str, TensorInfo]] = {}
        paths, index = weight_files(folder, kinds)
        problems = []
        for path in paths:
            try:
                self.shards[path] = self._contents(path)
            except CheckpointError as error:
                problems.append(str(error))
        if problems := problems or list(self._disagreements(index)):
            raise CheckpointError(" ".join(problems))
        self.tensors = {name: info for contents in self.shards.values() for name, info in contents.items()}

    def _contents(self, path: Path) -> dict[str, TensorInfo]:
        if path.suffix != ".safetensors":
            return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in _load_bin(path).items()}
        try:
            with safe_open(path, framework="pt") as shard:
                found = {name: shard.get_slice(name) for name in shard.offset_keys()}
                kinds = {name: part.get_dtype() for name, part in found.items()}
                if unknown := [f"{name} ({kind})" for name, kind in kinds.items() if kind not in str_to_torch_dtype]:
                    raise CheckpointError(
                        f"{path} holds tensors of dtypes that transformers does not load: {listed(unknown)}."
                    )
                return {
                    name: TensorInfo(tuple(part.get_shape()), str_to_torch_dtype[kinds[name]])
                    for name, part in found.items()
                }
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or truncated ({error}). Download or save it again.") from error

    def _disagreements(self, index: dict[str, str] | None) -> Iterator[str]:
        if index is None:
            return
        for path, contents in self.shards.items():
            named = {name for name, file in index.items() if file == path.name}
            if missing := sorted(named - contents.keys()):
                yield f"{path} lacks tensors that the index names: {listed(missing)}."
            if extra := sorted(contents.keys() - named):
                yield f"{path} holds tensors that the index lacks: {listed(extra)}."

    @contextmanager
    def open(self, path: Path) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
        """Yield an iterator over (name, tensor) of one shard. Tensors are memory-mapped and valid while it is open."""
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


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    found = _unpickle(path)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected tensors by name.")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path} holds a {type(tensor).__name__} as {name!r:.200}, expected only tensors by name. Save the "
                "model's state dict alone."
            )
        if tensor.layout != torch.strided or tensor.is_complex():
            raise CheckpointError(
                f"{path} has the tensor {name} as {tensor.dtype}, {tensor.layout}, expected dense real numbers."
            )
    return found


def _unpickle(path: Path) -> object:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
        # the format before zip files cannot be memory-mapped
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors; its code is not run. Save the tensors alone."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle may raise any type
        text = " ".join(str(error).split())
        raise CheckpointError(f"{path} is damaged or truncated ({text}). Download or save it again.") from error
