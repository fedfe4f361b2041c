# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx train`."""

from ..training.arguments import (
    DataArguments,
    InternVLXTrainingArguments,
    LoraArguments,
    ModelArguments,
    parse_arguments,
)


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`train`]."""
    settings = parse_arguments(arguments, (ModelArguments, DataArguments, LoraArguments, InternVLXTrainingArguments))
    from ..training.train import train

    train(*settings)
