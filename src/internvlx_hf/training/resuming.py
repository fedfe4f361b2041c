# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The folder that a run writes, and the checkpoint that it resumes from."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..checkpoints.errors import CheckpointError
from ..checkpoints.json_files import read_json
from ..checkpoints.locks import locked
from ..checkpoints.names import RECIPE
from .arguments import InternVLXTrainingArguments
from .failures import FAILURE

logger = logging.get_logger(__name__)

# files of a model or an adapter that a run would replace
_MODEL_FILES = ("model*.safetensors", "pytorch_model*.bin", "adapter_model*", "config.json")


def find_checkpoint(arguments: InternVLXTrainingArguments) -> str | None:
    """The checkpoint to resume from: `resume_from_checkpoint` is a folder, or "last" for the newest whole one in the
    output folder.

    Raises:
        ValueError: if there is no such checkpoint, if one of its files is damaged, or if the output folder holds
            checkpoints and none is requested.
    """
    requested, out = arguments.resume_from_checkpoint, arguments.output_dir
    found = _checkpoints(Path(out))
    last = found[-1] if found else None
    if requested is None or str(requested).lower() in ("", "false", "none"):
        if last is not None:
            raise ValueError(
                f"{out} already holds {last.name}. Resume from it with `resume_from_checkpoint: last`, or choose "
                "another `output_dir`."
            )
        return None
    if str(requested).lower() in ("last", "true"):
        if last is None:
            raise ValueError(f"`resume_from_checkpoint` is {requested}, but {out} holds no checkpoint to resume from.")
        return str(_last_whole(found))
    if not (Path(requested) / TRAINER_STATE_NAME).is_file():
        raise ValueError(f"`resume_from_checkpoint` is {requested}, which is not a training checkpoint.")
    check_whole(Path(requested))
    return str(requested)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints, oldest first. The trainer's state is saved last, so an incomplete checkpoint does not have
    it.
    """
    found = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _last_whole(checkpoints: list[Path]) -> Path:
    """The newest checkpoint without a damaged file; warns of those after it."""
    problems = []
    for checkpoint in reversed(checkpoints):
        try:
            check_whole(checkpoint)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning(f"{problem} RESUMING FROM THE CHECKPOINT BEFORE, {checkpoint}.")
        if (checkpoint / FAILURE).is_file():
            logger.warning(f"{checkpoint} was saved after a failure: {(checkpoint / FAILURE).read_text().strip()}")
        return checkpoint
    raise CheckpointError(" ".join(problems))


def check_whole(checkpoint: Path) -> None:
    """Raise `CheckpointError` for a file that was cut short, as by a power loss; reads headers and JSON files only."""
    for path in sorted(checkpoint.rglob("*")):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            elif path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):  # as `torch.save` writes it
                raise ValueError("its end is missing")
        except (ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{path.name} of {checkpoint} is damaged or was cut short ({error}). Delete this checkpoint, or "
                "resume from another."
            ) from error


@contextmanager
def locked_output(arguments: InternVLXTrainingArguments) -> Iterator[None]:
    """Lock the output folder for the life of a run, whose first process holds the lock for all.

    Raises:
        BlockingIOError: if another run writes the folder; the message names its process.
    """
    if arguments.process_index:
        yield
        return
    # inside the folder, since the one around it may not be writable
    out = Path(arguments.output_dir).expanduser()
    with locked(out / ".internvlx", out):
        yield


def check_output_folder(output_dir: str, checkpoint: str | None, sources: dict[str, str | None]) -> None:
    """Check that a run replaces no model except the one that it resumes.

    Args:
        output_dir: folder that the run writes.
        checkpoint: checkpoint that the run resumes from (None: no checkpoint).
        sources: models that the run reads, by setting.

    Raises:
        ValueError: if a source is `output_dir` or lies in it, or if `output_dir` holds a model and `checkpoint` is
            elsewhere.
    """
    out = Path(output_dir).resolve()
    for setting, source in sources.items():
        if source and Path(source).is_dir() and Path(source).resolve().is_relative_to(out):
            raise ValueError(
                f"`{setting}` is {source}, which is in `output_dir` {output_dir}, where the trained model is written. "
                "Choose another `output_dir`."
            )
    if checkpoint is not None and Path(checkpoint).resolve().is_relative_to(out):
        return
    if found := sorted(path.name for pattern in _MODEL_FILES for path in out.glob(pattern)):
        raise ValueError(
            f"`output_dir` {output_dir} already holds a model ({found[-1]}), which this run would replace. Choose "
            "another `output_dir`, or continue the run that wrote it with `resume_from_checkpoint`."
        )


def finished_recipe(output_dir: str, checkpoint: str | None, steps: int) -> dict | None:
    """The record of an already finished run, which resuming from `checkpoint` left no step to train.

    Args:
        steps: steps of the run after training.

    Returns:
        The record in `output_dir`, empty if there is none of as many steps; None if steps have been trained.
    """
    if (
        checkpoint is None
        or TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step != steps
    ):
        return None
    recipe = read_json(Path(output_dir) / RECIPE)
    return recipe if recipe.get("steps") == steps else {}
