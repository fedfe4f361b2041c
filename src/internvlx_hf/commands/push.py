# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx push`."""

import argparse

from ..hub.push import CARDS, plan_push, push_folder


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`push_folder`]."""
    options = vars(_parser().parse_args(arguments))
    folder, repo_id, dry_run = options.pop("folder"), options.pop("repo_id"), options.pop("dry_run")
    if dry_run:
        files = plan_push(folder, repo_id, options["include"])
        for file in files:
            print(f"{_size(file.size):>10}  {file.name}")
        print(f"{_size(sum(file.size for file in files)):>10}  in {len(files)} files, nothing was sent")
        return
    try:
        pushed = push_folder(folder, repo_id, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "nothing was committed; push again, and what has arrived is not uploaded twice"
        ) from None
    for name in pushed.deleted:
        print(f"removed from the repository, weights of another checkpoint: {name}")
    print(pushed.url if pushed.is_new else f"{pushed.url}: nothing was to be changed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvlx push",
        description="Push a checkpoint folder to the Hugging Face Hub in one commit, after checking that it is whole. What a "
        "training leaves beside the model (states of the optimizer, logs, checkpoint-*) stays here.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the checkpoint, with its processor")
    parser.add_argument("repo_id", metavar="REPO", help="owner/name on the Hub; it is made if there is none")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument("--revision", help="branch to push to; it is made if there is none")
    parser.add_argument("--token", help="of the Hub (HF_TOKEN, or what `hf auth login` stored)")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of changing the branch")
    parser.add_argument(
        "--include",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="push files too that would stay here: 'checkpoint-*', '*.tfevents.*', optimizer.pt",
    )
    parser.add_argument(
        "--card",
        choices=CARDS,
        help="where both model cards were written into: whose text stays, the Hub's or the folder's",
    )
    parser.add_argument("--dry-run", action="store_true", help="check the folder, list files and sizes, send nothing")
    return parser


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
