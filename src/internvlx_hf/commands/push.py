# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`internvlx push`."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..checkpoints.numbers import counted, file_size
from ..checkpoints.options import CommandParser

if TYPE_CHECKING:
    from ..hub import LeftFile, PushPlan

# files that the dry run lists for each reason not to push
MAX_FILES = 20


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
            "nothing was committed; if you push again, files that were uploaded are not uploaded again"
        ) from None
    for name in pushed.deleted:
        print(f"removed weights of another checkpoint from the repository: {_legible(name)}")
    if pushed.left:
        count = sum(file.num_files for file in pushed.left)
        print(f"not pushed: {counted(count, 'file')} (--dry-run lists them, with the reasons)")
    print(pushed.url if pushed.is_new else f"{pushed.url}: already up to date")


def _show(plan: "PushPlan") -> None:
    for file in plan.files:
        print(f"{file_size(file.size):>10}  {_legible(file.name)}")
    print(f"{file_size(sum(file.size for file in plan.files)):>10}  in {len(plan.files)} files, nothing was sent")
    if plan.left:
        print("\nNot pushed unless `--include PATTERN` names them:")
    for reason in dict.fromkeys(file.reason for file in plan.left):
        for line in _left_lines([file for file in plan.left if file.reason == reason]):
            print(f"  {line}")
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _left_lines(left: "list[LeftFile]") -> Iterator[str]:
    """A line for each of the first files that are not pushed for one reason."""
    for file in left[:MAX_FILES]:
        count = f" ({counted(file.num_files, 'file')})" if file.name.endswith("/") else ""
        more = ": only the whole path of a file includes it" if file.is_guarded else ""
        yield f"{_legible(file.name)}{count} {file.reason}{more}"
    if len(left) > MAX_FILES:
        yield f"and {len(left) - MAX_FILES} more; each {left[0].reason}"


def _legible(name: str) -> str:
    """A file's name on one line of a terminal, as a Python literal if it has control characters or is not UTF-8."""
    return name if name.isprintable() else ascii(name)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="internvlx push",
        description="Push a checkpoint folder to the Hugging Face Hub in one commit, after checking that it is "
        "complete. Only the files of a checkpoint, the model card, licences, and the images that the card shows are "
        "pushed; --dry-run lists the others.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the checkpoint's folder, with its processor")
    parser.add_argument("repo_id", metavar="REPO", help="OWNER/NAME on the Hub, created if it does not exist")
    parser.add_argument(
        "--private",
        action="store_true",
        default=None,
        help="create the repository as private (default: the Hub's default)",
    )
    parser.add_argument("--revision", help="branch to push to, created if it does not exist (default: main)")
    parser.add_argument("--token", help="token of the Hub (default: HF_TOKEN, or the one that `hf auth login` stored)")
    parser.add_argument("--message", help="commit message (default: one that names the folder)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of changing the branch")
    parser.add_argument(
        "--include",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="further files to push, such as 'checkpoint-*', '*.tfevents.*' or optimizer.pt. A hidden file, or one "
        "that may contain a secret, is pushed only if its whole path is given (default: none)",
    )
    parser.add_argument(
        "--card",
        choices=("hub", "folder"),
        help="whose text to keep if the model card was edited both on the Hub and in the folder (default: stop with "
        "an error)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the folder and list what would be pushed, without pushing"
    )
    return parser
