# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx card`."""

from ..checkpoints.options import CommandParser


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`write_card`]."""
    parser = CommandParser(
        prog="internvlx card",
        description="Write a checkpoint's model card (README.md), or renew the generated parts of an existing card. "
        "Text that a person wrote is kept.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the checkpoint's folder")
    parser.add_argument(
        "--name", help="OWNER/NAME on the Hub that the card's example loads (default: the folder's name)"
    )
    options = vars(parser.parse_args(arguments))

    from .. import registration  # noqa: F401
    from ..hub import write_card

    card = write_card(**options)
    for name in card.edited:
        print(f"kept as edited: {name}")
    print(f"wrote {options['folder'].rstrip('/')}/README.md")
