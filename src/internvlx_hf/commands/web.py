# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx web`."""

from .model_options import add_budget_options, add_device_options, add_image_options, budget_options, load_model
from .parser import CommandParser


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: if the model or an option is invalid. The message names it."""
    options = _parser().parse_args(arguments)
    if not 0 < options.port < 2**16:
        raise ValueError(f"--port={options.port}, expected 1 to 65535.")
    from ..web import Limits, serve

    given = {name: getattr(options, name) for name in ("max_bytes", "max_tiles")}
    limits = Limits(**{name: value for name, value in given.items() if value is not None}, **budget_options(options))

    def load():
        from ..web.shared_model import SharedModel

        return SharedModel(load_model(options), options.name or options.model.rstrip("/").rpartition("/")[2])

    try:
        serve(load, limits, options.host, options.port)
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
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    parser.add_argument("--name", help="name of the model on the page (default: the last part of MODEL)")
    images = parser.add_argument_group("initial image settings of the page")
    add_image_options(images)
    limits = parser.add_argument_group("limits for a visitor")
    limits.add_argument("--max-bytes", type=int, help="size of an upload (default: 20000000)")
    limits.add_argument("--max-tiles", type=int, help="tiles of an image (default: 40)")
    add_budget_options(limits, ("max_pixels", "max_visual_tokens", "max_prompt_tokens", "max_new_tokens"))
    add_device_options(parser)
    return parser
