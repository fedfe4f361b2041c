# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The folder that a run writes, and the checkpoint that it resumes from."""

from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoints.json_files import read_json
from ..checkpoints.names import RECIPE
from .arguments import InternVLXTrainingArguments

# files of a model or an adapter that a run would replace
_MODEL_FILES = ("model*.safetensors", "pytorch_model*.bin", "adapter_model*", "config.json")


def find_checkpoint(arguments: InternVLXTrainingArguments) -> str | None:
    """The checkpoint to resume from: `resume_from_checkpoint` is a folder, or "last" for the newest in the output folder.

    Raises:
        ValueError: if there is no such checkpoint, or if the output folder holds checkpoints and none is requested.
    """
    requested, out = arguments.resume_from_checkpoint, arguments.output_dir
    last = _last_checkpoint(Path(out))
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
        return str(last)
    if not (Path(requested) / TRAINER_STATE_NAME).is_file():
        raise ValueError(f"`resume_from_checkpoint` is {requested}, which is not a training checkpoint.")
    return str(requested)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. The trainer's state is saved last, so an incomplete checkpoint does not have it."""
    found = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def check_output_folder(output_dir: str, checkpoint: str | None, sources: dict[str, str | None]) -> None:
    """Check that a run replaces no model except the one that it resumes.

    Args:
        output_dir: folder that the run writes.
        checkpoint: checkpoint that the run resumes from (None: no checkpoint).
        sources: models that the run reads, by setting.

    Raises:
        ValueError: if a source is `output_dir` or lies in it, or if `output_dir` holds a model and `checkpoint` is elsewhere.
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
            f"`output_dir` {output_dir} already holds a model ({found[-1]}), which this run would replace. Choose another "
            "`output_dir`, or continue the run that wrote it with `resume_from_checkpoint`."
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
