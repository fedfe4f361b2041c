# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Options that commands which load a model share."""

import argparse

from ..processing.rvtc import SLICING_STRATEGIES


def add_image_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--slicing", choices=SLICING_STRATEGIES, help="how an image's size limits its tiles (default: the model's)"
    )
    group.add_argument(
        "--max-patches",
        type=int,
        help="maximum number of tiles per image, without the thumbnail (default: the model's)",
    )
    group.add_argument(
        "--max-image-tokens",
        type=int,
        help="visual tokens that all images and frames of a prompt share, before LVTC's expansion; the images that lose least "
        "give up tiles (default: the model's, or no limit)",
    )


def image_options(options: argparse.Namespace) -> dict:
    """The settings of images that the options of [`add_image_options`] change."""
    names = ("slicing", "max_patches", "max_image_tokens")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def add_device_options(parser: argparse.ArgumentParser) -> None:
    device = parser.add_argument_group("device")
    device.add_argument(
        "--device",
        help="cpu, cuda, cuda:1, mps, or auto to spread the model over all GPUs (default: a GPU if there is one)",
    )
    device.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="dtype of the weights (default: one that the device computes fast in)",
    )
    device.add_argument(
        "--attn-implementation",
        metavar="NAME",
        help="attention backend: sdpa, flash_attention_2, ... (default: transformers' choice)",
    )
    device.add_argument("--revision", help="branch, tag or commit of the model on the Hub (default: main)")
