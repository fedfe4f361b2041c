# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx merge`."""

from ..checkpoints.options import CommandParser, add_options
from .model_options import CommonOptions
from .train import require_packages


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`merge_adapter`]."""
    options = vars(_parser().parse_args(arguments))
    require_packages("merge")

    from .. import registration  # noqa: F401
    from ..training.merge import merge_adapter

    merge_adapter(**options)
    print(f"{options['out']} holds the merged model. It loads without peft.")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx merge",
        description="Merge a LoRA adapter, as `internvlx train --lora_rank ...` saves it, into a full checkpoint.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="the adapter's folder or Hub id")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("--base", help="the model that the adapter was trained on (default: as the adapter says)")
    add_options(parser, CommonOptions, ("dtype",), "the base model's")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if internvlx wrote it")
    return parser
