# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx web`."""

from dataclasses import dataclass

from ..checkpoints.options import CommandParser, add_options, settings_from
from ..cost.request_budget import PageBudget
from ..processing.image_settings import ImageSettings
from ..processing.rules import setting, whole
from .model_options import ServerOptions, add_device_options, load_model


@dataclass
class PageOptions(ServerOptions):
    """Where the page is served."""

    host: str = setting("127.0.0.1", None, "address to listen on", shown="127.0.0.1, this machine only")
    port: int = setting(7860, whole(1, 2**16 - 1), "port to listen on")
    name: str | None = setting(None, None, "name of the model on the page", shown="the last part of MODEL")


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: if the model or an option is invalid. The message names it."""
    options = _parser().parse_args(arguments)
    from ..web import Limits, serve

    def load():
        from ..web.shared_model import SharedModel

        return SharedModel(load_model(options), options.name or options.model.rstrip("/").rpartition("/")[2])

    try:
        serve(load, settings_from(options, Limits), options.host, options.port)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx web",
        description="Serve a page on which a visitor uploads an image, sees its tiles and their cost under each "
        "slicing strategy, asks questions, compares two settings, and sees where the model looks. Requests are "
        "answered one after another. Uploads are deleted after an hour and when the server stops.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint's folder or Hub id; an InternVL or LLaVA checkpoint is converted once, into the cache",
    )
    add_options(parser, PageOptions, ("host", "port", "name"))
    add_options(parser.add_argument_group("initial image settings of the page"), ImageSettings)
    names = ("max_bytes", "max_tiles", "max_pixels", "max_visual_tokens", "max_prompt_tokens", "max_new_tokens")
    add_options(parser.add_argument_group("limits for a visitor"), PageBudget, names)
    add_device_options(parser)
    return parser
