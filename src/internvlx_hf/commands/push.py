# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx push`."""

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..hub import LeftFile, PushPlan

# of the dry run, for each reason to stay behind
MOST_LINES = 20


def main(arguments: list[str]) -> None:
    """Raises: ValueError, OSError: see [`push_folder`]."""
    options = vars(_parser().parse_args(arguments))
    folder, repo_id, dry_run = options.pop("folder"), options.pop("repo_id"), options.pop("dry_run")

    from .. import registration  # noqa: F401
    from ..hub import plan_push, push_folder

    if dry_run:
        _show(plan_push(folder, repo_id, options["include"]))
        return
    try:
        pushed = push_folder(folder, repo_id, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "nothing was committed; push again, and what has arrived is not uploaded twice"
        ) from None
    for name in pushed.deleted:
        print(f"removed from the repository, weights of another checkpoint: {_legible(name)}")
    if pushed.left:
        count = sum(file.num_files for file in pushed.left)
        print(f"stayed behind: {_files(count)} (--dry-run says which, and why)")
    print(pushed.url if pushed.is_new else f"{pushed.url}: nothing was to be changed")


def _show(plan: "PushPlan") -> None:
    for file in plan.files:
        print(f"{_size(file.size):>10}  {_legible(file.name)}")
    print(f"{_size(sum(file.size for file in plan.files)):>10}  in {len(plan.files)} files, nothing was sent")
    if plan.left:
        print("\nThese stay behind; `--include PATTERN` sends them too:")
    for reason in dict.fromkeys(file.reason for file in plan.left):
        for line in _left_lines([file for file in plan.left if file.reason == reason]):
            print(f"  {line}")
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _left_lines(left: "list[LeftFile]") -> Iterator[str]:
    """A line for each of the files that stay for one reason, the first of many."""
    for file in left[:MOST_LINES]:
        count = f" ({_files(file.num_files)})" if file.name.endswith("/") else ""
        yield f"{_legible(file.name)}{count} {file.reason}{': only the whole path of a file includes it' if file.is_guarded else ''}"
    if len(left) > MOST_LINES:
        yield f"and {len(left) - MOST_LINES} more; each {left[0].reason}"


def _legible(name: str) -> str:
    """A file's name as the line of a terminal; one with control characters or not in UTF-8 as Python would write it."""
    return name if name.isprintable() else ascii(name)


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="internvlx push",
        description="Push a checkpoint folder to the Hugging Face Hub in one commit, after checking that it is whole. Sent are "
        "the files of a checkpoint, the model card, licences, and the images that the card shows. All else stays here; --dry-run "
        "lists it.",
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
        help="push files too that would stay here: 'checkpoint-*', '*.tfevents.*', optimizer.pt. A hidden file, or one that may "
        "hold a secret, only by its whole path",
    )
    parser.add_argument(
        "--card",
        choices=("hub", "folder"),
        help="where both model cards were written into: whose text stays, the Hub's or the folder's",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the folder, list what would go and stay, send nothing"
    )
    return parser


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
