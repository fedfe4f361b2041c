# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Options that commands which load a model share."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from fractions import Fraction

from ..checkpoints.options import add_option
from ..cost.request_budget import RequestBudget
from ..processing.image_settings import ImageSettings


def add_image_options(
    group: argparse._ActionsContainer, default: str | None = "the model's", without: Sequence[str] = ()
) -> None:
    """Add an option for each field of [`ImageSettings`], but for some."""
    for each in fields(ImageSettings):
        if each.name not in without:
            add_option(group, each, default)


def image_options(options: argparse.Namespace) -> ImageSettings:
    """The settings of images that the options of [`add_image_options`] change."""
    return ImageSettings(**{name: getattr(options, name) for name in ImageSettings.names()})


def add_budget_options(group: argparse._ActionsContainer, names: Sequence[str] = ()) -> None:
    """Add an option for each limit of a [`RequestBudget`], or for those of `names`."""
    for limit in fields(RequestBudget):
        if not names or limit.name in names:
            default = "the model's positions" if limit.default is None else limit.default
            group.add_argument(
                f"--{limit.name.replace('_', '-')}", type=int, help=f"{limit.metadata['of']} (default: {default})"
            )


def budget_options(options: argparse.Namespace) -> dict:
    """The limits that the options of [`add_budget_options`] change."""
    given = {limit.name: getattr(options, limit.name, None) for limit in fields(RequestBudget)}
    return {name: value for name, value in given.items() if value is not None}


def add_upgrade_options(group: argparse._ActionsContainer) -> None:
    """Add the options that change the architecture in a conversion."""
    group.add_argument(
        "--projector",
        choices=("keep", "pvtc"),
        help="keep the projector, or upgrade to PVTC, which needs training (default: keep)",
    )
    group.add_argument(
        "--lvtc",
        nargs="?",
        type=_lvtc_settings,
        const=True,
        metavar="JSON",
        help="add LVTC, which needs training, optionally with fields of its configuration, such as '{\"expand_layer\": 17}' "
        "(default: not added)",
    )
    group.add_argument(
        "--downsample-ratio",
        type=read_ratio,
        metavar="1/M",
        help="downsampling of the first layers' tokens: M x M patches become one token. A change needs training (default: "
        "the source's; 1/2 or, if 2 does not divide the grid of patches, 1/3 or 1/4 for PVTC or LVTC in a LLaVA)",
    )


def upgrade_options(options: argparse.Namespace) -> dict:
    """The settings that the options of [`add_upgrade_options`] change."""
    names = ("projector", "lvtc", "downsample_ratio")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def read_ratio(text: str) -> float:
    """The value of `"1/3"` or `"0.5"`."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a ratio, expected one such as 1/3 or 0.5.") from None


def _lvtc_settings(text: str) -> dict | bool | None:
    try:
        settings = json.loads(text)
    except ValueError:
        settings = text
    if settings is None or isinstance(settings, dict | bool):
        return settings
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a JSON object such as '{{\"expand_layer\": 17}}'. Put a plain --lvtc last."
    )


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
