# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx train`."""

from collections.abc import Sequence
from importlib.util import find_spec

# packages of the extra `train` that every training needs
NEEDED = ("accelerate", "datasets", "peft", "psutil")


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see `internvlx_hf.training.train.train`."""
    require_packages("train")

    from .. import registration  # noqa: F401
    from ..training.train import SETTINGS, parse_arguments, train

    trainer = train(*parse_arguments(arguments, SETTINGS))
    if trainer.is_world_process_zero():
        out = trainer.args.output_dir
        merge = f" `internvlx merge {out} MERGED` merges it into a full checkpoint."
        is_adapter = hasattr(trainer.model, "peft_config")
        print(f"{out} holds the trained {'adapter.' + merge if is_adapter else 'model.'}")


def require_packages(command: str, names: Sequence[str] = NEEDED) -> None:
    """Raise `ValueError` if some of the packages, by default those of every training, are not installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ValueError(f"{command} needs {', '.join(missing)}: pip install {' '.join(missing)}")
