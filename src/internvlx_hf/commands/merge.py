# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx merge`."""

import argparse

from .train import require_packages


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`merge_adapter`]."""
    options = vars(_parser().parse_args(arguments))
    require_packages("merge")

    from .. import registration  # noqa: F401
    from ..training.merge import merge_adapter

    merge_adapter(**options)
    print(f"{options['out']} holds the merged model. It loads without peft.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvlx merge", description="Make a full checkpoint of what `internvlx train --lora_rank ...` left."
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="the folder of the adapter, or its id on the Hub")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("--base", help="the model that it was trained on (default: the one that the adapter names)")
    parser.add_argument("--dtype", help="dtype to save in: float32, bfloat16, float16 (default: the base's)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if internvlx wrote it")
    return parser
