# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Options that commands which load a model share."""

import argparse
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..checkpoints.kinds import DTYPES
from ..checkpoints.options import add_options, settings_from
from ..conversion.options import ConversionOptions
from ..cost.estimate import ANSWER_TOKENS, TEXT_TOKENS
from ..processing.image_settings import ImageSettings
from ..processing.rules import FieldRule, choice, is_number, setting, whole

if TYPE_CHECKING:
    from ..evaluation.answering import Answerer

BATCH_SIZE = 8


UPGRADES = ("projector", "lvtc", "downsample_ratio")


def add_upgrade_options(group: argparse._ActionsContainer) -> None:
    """Add the options that change the architecture in a conversion."""
    add_options(group, ConversionOptions, UPGRADES)


def upgrade_options(options: argparse.Namespace) -> dict:
    """The settings that the options of [`add_upgrade_options`] change."""
    own = {each.name: each.default for each in fields(ConversionOptions)}
    return {name: getattr(options, name) for name in UPGRADES if getattr(options, name) != own[name]}


@dataclass
class CommonOptions:
    """Options that several commands have; each has those that it names."""

    device: str | None = setting(
        None,
        None,
        "cpu, cuda, cuda:1, mps, or auto to spread the model over all GPUs",
        shown="a GPU if there is one",
    )
    dtype: str | None = setting(
        None, choice(DTYPES), "dtype of the weights", shown="one that the device computes fast in"
    )
    attn_implementation: str | None = setting(
        None,
        None,
        "attention backend: sdpa, flash_attention_2, eager, ...",
        shown="transformers' choice",
        metavar="NAME",
    )
    revision: str | None = setting(None, None, "branch, tag or commit of the model on the Hub", shown="main")
    num_frames: int | None = setting(None, whole(1), "frames to sample from the whole video", shown="the model's")
    fps: float | None = setting(
        None,
        FieldRule("a positive number of frames per second", lambda fps: is_number(fps) and fps > 0),
        "frames to sample per second of the video, instead of a number of frames",
    )
    max_new_tokens: int = setting(
        1024, whole(1), "maximum number of tokens of an answer; `answer` leaves out records with a longer one"
    )
    batch_size: int | None = setting(
        None,
        whole(1),
        "largest batch of images or records; smaller where memory would not suffice",
        shown=f"{BATCH_SIZE}; 256 for vLLM",
    )
    engine: str = setting(
        "transformers",
        choice(("transformers", "vllm")),
        "what answers; vLLM, installed beside this package, batches requests and chooses its device itself",
    )
    shard_size: int = setting(1000, whole(1), "records of a shard with --ray")
    text_tokens: int = setting(
        TEXT_TOKENS, None, "text tokens of a prompt, including the chat template and image tags"
    )
    answer_tokens: int = setting(ANSWER_TOKENS, None, "tokens of an answer")


@dataclass
class ServerOptions:
    """Where a server listens, and what it calls its model."""

    host: str = setting("localhost", None, "address to listen on")
    port: int = setting(8000, whole(0, 2**16 - 1), "port to listen on")
    name: str | None = setting(None, None, "name of the model in requests", shown="CHECKPOINT")


FRAMES = ("num_frames", "fps")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    names = ("device", "dtype", "attn_implementation", "revision")
    add_options(parser.add_argument_group("device"), CommonOptions, names)


def device_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Choice.sensible` that [`add_device_options`] asks for."""
    return {name: getattr(options, name) for name in ("device", "dtype", "attn_implementation")}


def load_model(options: argparse.Namespace, **more: Any) -> "Answerer":
    """The model of `options`, with its settings of images, on the device that [`add_device_options`] asks for."""
    from ..chat import load_answerer

    given = settings_from(options, ImageSettings).given
    return load_answerer(options.model, options.revision, given, **more, **device_options(options))
