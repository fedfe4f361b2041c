# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx web`."""

import argparse

from ..processing.rvtc import SLICING_STRATEGIES


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: the model or an option is not what it should be; names it."""
    options = _parser().parse_args(arguments)
    if not 0 < options.port < 2**16:
        raise ValueError(f"--port={options.port}, expected 1 to 65535.")
    from ..chat import load_answerer
    from ..web import Limits, serve

    changed = {"slicing": options.slicing, "max_patches": options.max_patches}
    bounds = {name: getattr(options, name) for name in ("max_bytes", "max_pixels", "max_tiles", "max_new_tokens")}
    limits = Limits(**{name: value for name, value in bounds.items() if value is not None})

    def load():
        from ..web.shared_model import SharedModel

        answerer = load_answerer(
            options.model,
            options.revision,
            {name: value for name, value in changed.items() if value is not None},
            device=options.device,
            dtype=options.dtype,
            attn_implementation=options.attn_implementation,
        )
        return SharedModel(answerer, options.name or options.model.rstrip("/").rpartition("/")[2])

    try:
        serve(load, limits, options.host, options.port)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvlx web",
        description="Serve a page: drop an image, see the tiles that each slicing makes and what they cost, ask and watch "
        "the answer, compare two settings, see where the model looks. Requests are answered one after another; uploads "
        "are deleted after an hour and at the end.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint's folder or Hub id; InternVL's own is converted once, into the cache",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at (7860)")
    parser.add_argument("--name", help="what the page calls the model (the last part of MODEL)")
    images = parser.add_argument_group("images, where the page starts")
    images.add_argument("--slicing", choices=SLICING_STRATEGIES, help="how an image's size bounds its tiles")
    images.add_argument("--max-patches", type=int, help="most tiles of an image, the thumbnail not counted")
    limits = parser.add_argument_group("what a visitor may ask for")
    limits.add_argument("--max-bytes", type=int, help="largest upload (20000000)")
    limits.add_argument("--max-pixels", type=int, help="largest image (50000000)")
    limits.add_argument("--max-tiles", type=int, help="most tiles of an image (40)")
    limits.add_argument("--max-new-tokens", type=int, help="longest answer (1024)")
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps, or auto to spread it over GPUs (a GPU if there is one)"
    )
    where.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights (what the device computes fast in)"
    )
    where.add_argument(
        "--attn-implementation", metavar="NAME", help="sdpa, flash_attention_2, ... (transformers' choice)"
    )
    where.add_argument("--revision", help="branch, tag or commit on the Hub")
    return parser
