# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx renew`."""

from ..checkpoints.options import CommandParser


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`renew_code`]."""
    parser = CommandParser(
        prog="internvlx renew",
        description="Replace the code in a checkpoint's folder, which an earlier version of internvlx-hf saved, by "
        "this version's. Weights and settings are not touched.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the checkpoint's folder")
    parser.add_argument("--dry-run", action="store_true", help="print which files differ, and change nothing")
    options = parser.parse_args(arguments)

    from .. import registration  # noqa: F401
    from ..hub import renew_code

    changes = renew_code(options.folder, options.dry_run)
    for name, change in changes.items():
        print(f"{change}: {name}")
    if not changes:
        print(f"{options.folder} has this version's code")
    elif options.dry_run:
        print("dry run: nothing was changed")
