# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Writing a folder atomically: under a lock, into a hidden folder beside it, which is renamed at the end.

Beside a folder OUT, a run uses hidden names with its own id, which it first notes:

    .OUT.internvlx.lock     locked while the run is alive
    .OUT.internvlx.run-ID   the note, see `locks.py`
    .OUT.writing-ID         the new folder, until it is complete
    .OUT.replaced-ID        the old folder, until the new one has its name
    .OUT.removed-ID         the old folder, while it is deleted

The names that a killed run left show how far it got, and the next run cleans up. After a run none of them remain.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging

from .errors import listed
from .locks import locked
from .manifest import foreign_files, is_ours, write_manifest, written_by
from .numbers import file_size

logger = logging.get_logger(__name__)


@contextmanager
def atomic_folder(
    out: str | Path, *, overwrite: bool = False, complete: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` on success and is removed on any error.

    Enter this before heavy work: it first checks that `out` can be written. It also cleans up after killed runs, and
    puts back a folder that such a run was about to replace.

    Args:
        out: the folder to make, with its parents. It may exist if it is empty.
        overwrite: replace a folder that was written this way (default: no). All its files are deleted, so carry over
            those to keep.
        complete: called with the folder at the end. If it raises a `ValueError` or an `OSError`, the folder is kept
            beside `out`, and the message names it.

    Raises:
        BlockingIOError: if another process is writing `out`.
        FileExistsError: if `out` may not be replaced, see [`refuse_existing`]. If this happens only at the end, the
            new folder is kept beside `out`, and the message names it.
        OSError: if `out` cannot be written.
    """
    out = resolve_out(out)
    refuse_existing(out, overwrite)
    with _locked(out) as run:
        try:
            refuse_existing(out, overwrite)  # a folder may have been put back
            identity = run.start()
            yield run.writing
            run.finish(overwrite, complete)
            if _identity(out) != identity:
                raise OSError(f"{out} is not the folder that this run wrote: another process has replaced it.")
        finally:
            run.settle()


def resolve_out(out: str | Path) -> Path:
    """The absolute path of an output folder, with links followed, so that a link's target is replaced and not the
    link.

    Raises:
        ValueError: if the path is not UTF-8, which safetensors and the model card need.
    """
    path = os.path.realpath(os.path.expanduser(out))
    if path.encode(errors="replace").decode() != path:
        raise ValueError(f"{path!a} is not UTF-8. Choose another folder.")
    return Path(path)


def require_room(folder: Path, num_bytes: int) -> None:
    """Raise `OSError` if the disk of a folder has less than `num_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(f"{folder.parent} has {file_size(free)} free, but {file_size(num_bytes)} will be written.")


def refuse_existing(out: Path, overwrite: bool, shown: Path | None = None) -> None:
    """Raise `FileExistsError` if `out` exists and may not be replaced.

    An empty folder may be replaced; with `overwrite`, also one that [`atomic_folder`] wrote and that holds nothing
    else.

    Args:
        shown: the path to show in messages (default: `out`).
    """
    shown = shown or out
    if os.path.ismount(out):
        raise FileExistsError(f"{shown} is a mount point and cannot be replaced. Choose a folder in it.")
    if not _is_filled(out):
        return
    if not overwrite:
        raise FileExistsError(
            f"{shown} exists already. Choose another folder, or replace it with overwrite=True (--overwrite)."
        )
    if not out.is_dir():
        raise FileExistsError(f"{shown} is not the folder of a checkpoint and is not overwritten.")
    foreign = listed(dict.fromkeys(foreign_files(out)))
    if not is_ours(out):
        raise FileExistsError(
            f"{shown} is not the folder of a checkpoint that internvlx wrote, and is not overwritten. It holds "
            f"{foreign}."
        )
    if foreign:
        raise FileExistsError(
            f"{shown} holds files that internvlx did not write, and is not overwritten: {foreign}. Move them away, or "
            "choose another folder."
        )


class _Run:
    """One write of `out`, by this process or by one that was killed."""

    def __init__(self, out: Path, run_id: str):
        self.out, self.run_id = out, run_id
        self.writing, self.replaced, self.removed = (
            out.with_name(f".{out.name}.{state}-{run_id}") for state in ("writing", "replaced", "removed")
        )

    @property
    def has_left_something(self) -> bool:
        return any(map(os.path.lexists, (self.writing, self.replaced, self.removed)))

    def start(self) -> tuple[int, int]:
        """Make the folder to write into, with the permissions of the one that it replaces, and return its identity."""
        self.writing.mkdir()
        if self.out.is_dir():
            self.writing.chmod(stat.S_IMODE(self.out.stat().st_mode) | stat.S_IRWXU)
        return _identity(self.writing)

    def finish(self, overwrite: bool, complete: Callable[[Path], object] | None) -> None:
        try:
            if complete:
                complete(self.writing)
            write_manifest(self.writing, self.run_id)
            self._move_to_its_place(overwrite)
        except (ValueError, OSError) as error:
            kept = self._unhide(self.writing, "finished")
            is_taken = isinstance(error, FileExistsError) or os.path.lexists(self.out)
            kind = ValueError if isinstance(error, ValueError) else FileExistsError if is_taken else OSError
            raise kind(f"{error} The finished folder is kept as {kept}.") from error

    def _move_to_its_place(self, overwrite: bool) -> None:
        refuse_existing(self.out, overwrite)
        if _is_filled(self.out):
            os.rename(self.out, self.replaced)
            refuse_existing(self.replaced, overwrite, shown=self.out)  # no file can be added to it any more
        os.rename(self.writing, self.out)  # fails if anything was created there meanwhile

    def settle(self) -> None:
        """Remove the hidden folders and leave `out` as it was or as the run wrote it, wherever the run ended."""
        if os.path.lexists(self.replaced):
            self._settle_replaced()
        for folder in (self.removed, self.writing):
            shutil.rmtree(folder, ignore_errors=True)

    def _settle_replaced(self) -> None:
        if written_by(self.out) == self.run_id:
            os.rename(self.replaced, self.removed)
        elif not os.path.lexists(self.out):
            os.rename(self.replaced, self.out)
            logger.warning(f"An interrupted run was about to replace {self.out}. The folder has been put back.")
        else:
            kept = self._unhide(self.replaced, "replaced")
            logger.warning(
                f"Another process created {self.out} while it was being replaced. The old folder is {kept}."
            )

    def _unhide(self, folder: Path, state: str) -> Path:
        shown = self.out.with_name(f"{self.out.name}.{state}-{self.run_id}")
        os.rename(folder, shown)
        return shown


@contextmanager
def _locked(out: Path) -> Iterator[_Run]:
    """Lock `out`, clean up after killed runs, and yield a new one."""
    with locked(out.with_name(f".{out.name}.internvlx"), out) as notes:
        runs = [_Run(out, run_id) for run_id in notes]
        try:
            for killed in runs[:-1]:
                killed.settle()
            yield runs[-1]
        finally:
            for run in runs:
                if run.has_left_something:
                    del notes[run.run_id]  # a later run cleans up


def _is_filled(path: Path) -> bool:
    """Whether a path exists and is not an empty folder."""
    return os.path.lexists(path) and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
