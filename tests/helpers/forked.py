"""Processes that are forked from the test's own: everything is imported there, and nothing of the test cleans up."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def start(act: Callable[[], object], errors: Path | None = None) -> int:
    """The id of a process that runs `act`, with what it writes to stderr in a file; its status is 0, or what `act` gives."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if errors is not None:
                sys.stderr = errors.open("w", buffering=1)
            status = act() or 0
        finally:
            os._exit(status)
    return process


def wait(process: int) -> int:
    """Its exit code; the number of the signal that killed it, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(act: Callable[[], object], errors: Path | None = None) -> int:
    return wait(start(act, errors))
