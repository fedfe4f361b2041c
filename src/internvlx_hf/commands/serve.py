# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx serve`."""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.options import CommandParser, add_options, settings_from
from ..cost.request_budget import RequestBudget
from ..processing.image_settings import ImageSettings
from ..processing.rules import setting
from .model_options import CommonOptions, ServerOptions


@dataclass
class DeviceOptions:
    """What computes the answers."""

    device: str = setting("auto", None, "cpu, cuda, cuda:1, ...")
    dtype: str = setting("auto", None, "bfloat16, float16, ...", shown="the checkpoint's")


_SEVERAL = {"type": str, "nargs": "+", "shown": "none"}


@dataclass
class AccessOptions:
    """Where images may come from."""

    image_hosts: Sequence[str] = setting(
        (), None, "hosts to download from even if they are not public", metavar="HOST", **_SEVERAL
    )
    image_folders: Sequence[str] = setting((), None, "folders to read files from", metavar="DIR", **_SEVERAL)
    no_public_images: bool = setting(False, None, "download only from the hosts of --image-hosts")
    max_image_bytes: int = setting(20_000_000, None, "size limit of a download")
    max_image_seconds: float = setting(10.0, None, "time limit of a download", shown="10")


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: if the checkpoint or an option is invalid. The message names it."""
    options = _parser().parse_args(arguments)
    if options.engine == "vllm":
        command = vllm_command(options)
        os.execv(command[0], command)
    try:
        from ..serving import build_app
    except ImportError as error:
        raise ValueError(str(error)) from error
    import uvicorn

    from ..processing import ImageAccess

    _require_ours(options.checkpoint)
    app = build_app(
        options.checkpoint,
        name=options.name,
        access=ImageAccess.for_server(
            options.image_folders,
            options.image_hosts,
            public_hosts=not options.no_public_images,
            max_bytes=options.max_image_bytes,
            max_seconds=options.max_image_seconds,
        ),
        budget=settings_from(options, RequestBudget),
        device=options.device,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        **settings_from(options, ImageSettings).given,
    )
    uvicorn.run(app, host=options.host, port=options.port)


def _require_ours(checkpoint: str) -> Path:
    """The folder of a checkpoint. Raises: ValueError: if it is not one of InternVL-X."""
    from .. import InternVLXConfig
    from ..checkpoints.folders import find_source

    folder = find_source(checkpoint)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{checkpoint} has no config.json, expected a checkpoint's folder.")
    layout = InternVLXConfig.get_config_dict(folder)[0].get("model_type")
    if layout != InternVLXConfig.model_type:
        raise ValueError(
            f"{checkpoint} is of the type {layout!r}. Convert it first: internvlx convert {checkpoint} OUT"
        )
    return folder


def vllm_command(options: argparse.Namespace) -> list[str]:
    """The command that serves the checkpoint with vLLM, with room for its largest image in a step.

    Raises:
        ValueError: if vLLM is not installed, or an option is given that it does not have.
    """
    from ..cost.loading import load_setup

    program = shutil.which("vllm")
    if program is None:
        raise ValueError("--engine=vllm needs vLLM, but there is no program vllm on the path: pip install vllm")
    defaults = vars(_parser().parse_args([options.checkpoint]))
    passed = {"checkpoint", "engine", "host", "port", "name", "dtype", *ImageSettings.names()}
    if others := [name for name, value in vars(options).items() if name not in passed and value != defaults[name]]:
        name = others[0].replace("_", "-")
        raise ValueError(f"--{name} is not for --engine=vllm, expected vLLM's own options: vllm serve --help")
    folder = _require_ours(options.checkpoint)
    setup, settings = load_setup(folder), settings_from(options, ImageSettings).given
    tiles = (options.max_patches or setup.tiling.max_tiles) + setup.tiling.use_thumbnail
    tokens = tiles * max(setup.config.image_seq_length, setup.config.expanded_image_seq_length)
    command = [program, "serve", options.checkpoint, "--host", options.host, "--port", str(options.port)]
    command += ["--max-num-batched-tokens", str(max(4096, 1024 * -(-tokens // 1024))), "--trust-remote-code"]
    command += ["--served-model-name", options.name] if options.name else []
    command += ["--dtype", options.dtype] if options.dtype != "auto" else []
    return command + (["--mm-processor-kwargs", json.dumps(settings)] if settings else [])


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx serve",
        description="Serve a checkpoint through transformers' own server, which speaks OpenAI's API: "
        "/v1/chat/completions, /v1/responses and /v1/completions, streamed or not. Requests are answered one after "
        "another.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's folder or Hub id")
    add_options(parser, CommonOptions, ("engine",))
    add_options(parser, ServerOptions)
    add_options(parser, DeviceOptions)
    add_options(parser, CommonOptions, ("attn_implementation",))
    images = parser.add_argument_group(
        "images", "Messages give images as URLs or base64. By default, images are downloaded from public hosts only."
    )
    add_options(images, ImageSettings)
    add_options(images, AccessOptions)
    limits = parser.add_argument_group(
        "limits of a request", "A request that has more is refused with its number and the limit, before any work."
    )
    add_options(limits, RequestBudget)
    return parser
