# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx serve`."""

import argparse


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: the checkpoint or an option is not what it should be; names it."""
    options = _parser().parse_args(arguments)
    if not 0 <= options.port < 2**16:
        raise ValueError(f"--port={options.port}, expected 0 to 65535.")
    try:
        from ..serving import build_app
    except ImportError as error:
        raise ValueError(str(error)) from error
    import uvicorn

    from .. import InternVLXConfig
    from ..processing import ImageAccess

    layout = InternVLXConfig.get_config_dict(options.checkpoint)[0].get("model_type")
    if layout != InternVLXConfig.model_type:
        raise ValueError(
            f"{options.checkpoint} is of the type {layout!r}. Convert it first: internvlx convert {options.checkpoint} OUT"
        )
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
        device=options.device,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
    )
    uvicorn.run(app, host=options.host, port=options.port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvlx serve",
        description="Serve a checkpoint through transformers' own server, which speaks OpenAI's API: /v1/chat/completions, "
        "/v1/responses and /v1/completions, streamed or whole. Requests are answered one after another.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or a name on the Hub")
    parser.add_argument("--host", default="localhost", help="address to listen at (localhost)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (8000)")
    parser.add_argument("--name", help="what requests call the model (default: as CHECKPOINT)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (auto)")
    parser.add_argument("--dtype", default="auto", help="bfloat16, float16, ... (default: as it is stored)")
    parser.add_argument("--attn-implementation", metavar="NAME", help="sdpa, flash_attention_2, eager, ...")
    images = parser.add_argument_group(
        "images", "Messages name their images by URL or carry them as base64. Public hosts are asked, nothing else is."
    )
    images.add_argument("--image-hosts", nargs="+", default=(), metavar="HOST", help="hosts to ask wherever they are")
    images.add_argument("--image-folders", nargs="+", default=(), metavar="DIR", help="folders to read files from")
    images.add_argument("--no-public-images", action="store_true", help="ask no hosts but those of --image-hosts")
    images.add_argument("--max-image-bytes", type=int, default=20_000_000, help="largest download (20000000)")
    images.add_argument("--max-image-seconds", type=float, default=10.0, help="longest download (10)")
    return parser
