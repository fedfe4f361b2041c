# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Loading a model for chat: find or convert the checkpoint, and choose the device and dtype that suit the machine."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from huggingface_hub.constants import HF_HOME
from transformers import AutoModel, AutoProcessor, PretrainedConfig

from ..checkpoints.folders import find_source, source_name
from ..checkpoints.names import CARD, LLAVA, NATIVE, OURS, REPORT, is_known, is_weights
from ..checkpoints.weights import weight_files
from ..conversion import convert_checkpoint
from ..evaluation.answering import Answerer

# model types that are converted first: InternVL's original checkpoints and transformers' native ones, and LLaVA's
CONVERTIBLE = ("internvl_chat", NATIVE, LLAVA)
# the largest share of the free memory for float32 weights on a CPU
MEMORY_SHARE = 0.6

Say = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """Where and how a model runs.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" to let accelerate spread the model over all GPUs.
        dtype: dtype of the weights.
        attn_implementation: attention backend (default: transformers' choice).
    """

    device: str
    dtype: torch.dtype
    attn_implementation: str | None = None

    @classmethod
    def sensible(
        cls, folder: Path, device: str | None = None, dtype: str | None = None, attn_implementation: str | None = None
    ) -> "Choice":
        """Choose what is not given: a GPU if there is one, and a dtype that the device computes fast in.

        "auto" without a GPU is the CPU. On a CPU, the dtype is float32 if the weights fit into the free memory,
        because few CPUs compute fast in bfloat16, and bfloat16 otherwise.

        Raises:
            ValueError: if the device cannot be used here.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if device == "auto" and not torch.accelerator.is_available():
            device = "cpu"
        if device != "auto":
            _require_device(device)
        return cls(device, _dtype(folder, device) if dtype is None else getattr(torch, dtype), attn_implementation)

    def __str__(self) -> str:
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')}"


def _require_device(name: str) -> None:
    try:
        torch.empty(0, device=torch.device(name))
    except Exception as error:  # torch raises errors of any type for a device that this build or machine lacks
        reason = " ".join(str(error).split())
        raise ValueError(f"--device={name!r} cannot be used here: {reason:.200}") from error


def _dtype(folder: Path, device: str) -> torch.dtype:
    if device.startswith("mps"):
        return torch.float16
    if device != "cpu":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    stored = str(PretrainedConfig.get_config_dict(folder)[0].get("dtype") or "float32")
    element_size = 4 if stored == "float32" else 2
    in_float32 = sum(path.stat().st_size for path in weight_files(folder)[0]) * 4 // element_size
    return torch.float32 if in_float32 < MEMORY_SHARE * psutil.virtual_memory().available else torch.bfloat16


def open_answerer(
    model: str, revision: str | None = None, images_kwargs: dict | None = None, say: Say = print
) -> tuple[Answerer, Path]:
    """An answerer that has its processor, but no model yet, and the folder to load it from; arguments as for
    `load_answerer`.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint is of another kind or has no `config.json`, if the image settings are invalid, or
            if a folder is given with a revision.
    """
    if revision is not None and Path(model).expanduser().is_dir():
        raise ValueError(f"--revision={revision!r} is for a model on the Hub, but {model} is a folder.")
    folder = source = find_source(model, revision)
    if not (folder / "config.json").is_file():
        hint = " Merge the adapter first: internvlx merge" if (folder / "adapter_config.json").is_file() else ""
        raise ValueError(f"{model} has no config.json, expected a checkpoint's folder.{hint}")
    kind = PretrainedConfig.get_config_dict(folder)[0].get("model_type")
    if kind in CONVERTIBLE:
        folder = converted(model, folder, revision, say)
    elif kind != OURS:
        raise ValueError(f"{model} is a model of type {kind!r}, expected one of {', '.join((OURS, *CONVERTIBLE))}.")
    version = _version(source)
    answerer = Answerer(None, AutoProcessor.from_pretrained(str(folder)), images_kwargs)
    answerer.version = version
    return answerer, folder


def load_model(answerer: Answerer, folder: Path, **wanted: str | None) -> Choice:
    """Load the model of an answerer. Returns: where and how it runs. Raises: ValueError: if the device cannot be used
    here.
    """
    choice = Choice.sensible(folder, **wanted)
    attention = {} if choice.attn_implementation is None else {"attn_implementation": choice.attn_implementation}
    place = {"device_map": "auto"} if choice.device == "auto" else {}
    answerer.model = AutoModel.from_pretrained(str(folder), dtype=choice.dtype, **place, **attention).eval()
    if not place:
        answerer.model.to(choice.device)
    return choice


def answerer_with(
    answerer: Answerer, folder: Path, engine: str, wanted: dict, say: Say = lambda line: None
) -> Answerer:
    """An answerer with its model in transformers or in vLLM.

    Args:
        engine: "transformers" or "vllm", which chooses the device itself.
        wanted: arguments of [`Choice.sensible`].
    """
    if engine == "vllm":
        from .vllm_answers import VLLMAnswerer

        return VLLMAnswerer(
            answerer, folder, **{name: value for name, value in wanted.items() if name == "dtype" and value}
        )
    say(str(load_model(answerer, folder, **wanted)))
    return answerer


def load_answerer(
    model: str,
    revision: str | None = None,
    images_kwargs: dict | None = None,
    say: Say = print,
    **wanted: str | None,
) -> Answerer:
    """Load an InternVL-X model, or convert an InternVL or LLaVA model and load the result.

    Args:
        model: the folder or Hub id of InternVL-X, or of InternVL 2, 2.5, 3, 3.5 or LLaVA, which is converted into the
            cache.
        images_kwargs: see [`Answerer`].
        say: called with each line of information for the user.
        wanted: arguments of [`Choice.sensible`].

    Raises:
        FileNotFoundError, ValueError: as [`open_answerer`] and [`load_model`].
    """
    answerer, folder = open_answerer(model, revision, images_kwargs, say)
    say(f"{source_name(model)} on {load_model(answerer, folder, **wanted)}")
    return answerer


def converted(model: str, folder: Path, revision: str | None, say: Say) -> Path:
    """The folder of a checkpoint's conversion, which is made once and kept in the cache."""
    out = cache_folder() / f"{source_name(model).replace('/', '--')}-{_fingerprint(folder.iterdir())}"
    if not (out / REPORT).is_file():
        say(f"Converting {source_name(model)} once, into {out}")
        out.parent.mkdir(parents=True, exist_ok=True)
        convert_checkpoint(folder, out, overwrite=out.exists(), base_model=model if not Path(model).is_dir() else None)
    return out


def cache_folder() -> Path:
    """The cache of converted checkpoints: `$INTERNVLX_CACHE`, or `internvlx` in `$HF_HOME`."""
    return Path(os.environ.get("INTERNVLX_CACHE") or Path(HF_HOME) / "internvlx").expanduser()


def _version(folder: Path) -> dict[str, str]:
    """A checkpoint's commit in the Hub's cache; of another folder, a hash that changes with the files that a model is
    read from.
    """
    if folder.parent.name == "snapshots":
        return {"revision": folder.name}
    names = (path for path in folder.iterdir() if is_weights(path.name) or is_known(path.name))
    return {"files": _fingerprint(path for path in names if path.name != CARD)}


def _fingerprint(paths: Iterable[Path]) -> str:
    """A hash that changes with any of the files, by their places, sizes and times."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        status = path.stat()
        digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:12]
