# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A lock on a folder for as long as the process that writes it lives, with a note of who that is."""

import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

# long enough to try again after a run that has just ended, whose lock file is removed
SECONDS = 0.2


@contextmanager
def locked(prefix: Path, out: Path) -> Iterator[dict[str, Path]]:
    """Lock `out` with a file PREFIX.lock, and note this run in a file PREFIX.run-ID.

    Yields:
        The notes by run id: those that killed runs left and, last, this run's. They are removed at the end, unless
        they are taken out of the dictionary.

    Raises:
        BlockingIOError: if another process holds the lock; the message names it.
        OSError: if the files cannot be written.
    """
    path = prefix.with_name(f"{prefix.name}.lock")
    lock = FileLock(path)
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=SECONDS, poll_interval=SECONDS / 10)
        except Timeout:
            if not path.exists():  # filelock tries again where no file can be made
                raise OSError(f"{out} cannot be written: {path} cannot be created.") from None
            raise BlockingIOError(
                f"Another process is writing {out}{_holder(prefix)}. Wait for it, or choose another folder."
            ) from None
        except OSError as error:
            raise OSError(error.errno, f"{out} cannot be written: {error.strerror}", str(error.filename)) from error
        notes = _notes(prefix)
        try:
            run_id = secrets.token_hex(4)
            notes[run_id] = prefix.with_name(f"{prefix.name}.run-{run_id}")
            with notes[run_id].open("x") as file:
                file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}")
            yield notes
        finally:
            for note in notes.values():
                note.unlink(missing_ok=True)
            with suppress(OSError):  # Windows cannot remove an open file
                path.unlink()
            lock.release()
    finally:
        for folder in made:  # that nothing was written to
            with suppress(OSError):
                folder.rmdir()


def _notes(prefix: Path) -> dict[str, Path]:
    """The notes of runs by id, the newest last."""
    pattern = re.compile(rf"{re.escape(prefix.name)}\.run-([0-9a-f]{{8}})")
    found = [(match[1], path) for path in prefix.parent.iterdir() if (match := pattern.fullmatch(path.name))]
    return dict(sorted(found, key=lambda note: note[1].lstat().st_mtime))


def _holder(prefix: Path) -> str:
    try:
        return f" ({list(_notes(prefix).values())[-1].read_text()})"
    except (OSError, IndexError):  # it has just begun, or ended
        return ""
