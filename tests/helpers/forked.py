"""Processes without the seconds of importing: of the test's own, or with torch and transformers alone, as a user starts them."""

import atexit
import importlib
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from paths import HELPERS

# -- of the test's own process: everything is imported there, and nothing of the test cleans up


def start(act: Callable[[], object], errors: Path | None = None) -> int:
    """The id of a process that runs `act`, with what it writes to stderr in a file; its status is 0, or what `act` gives."""
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if errors is not None:
            sys.stderr = errors.open("w", buffering=1)
        _run_and_exit(act)
    return process


def _run_and_exit(act: Callable[[], object]) -> None:
    """As Python ends a program, but for what was registered for its end."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = act() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(process: int) -> int:
    """Its exit code; the number of the signal that killed it, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(act: Callable[[], object], errors: Path | None = None) -> int:
    return wait(start(act, errors))


# -- of a server, which a test run forks of itself before it imports this package

server: Connection | None = None


def start_server() -> None:
    """To be called once, before the package is imported and any thread started; later, processes are started as usual."""
    global server
    if "internvlx_hf" in sys.modules:
        return
    # what nearly all of the processes import: the classes bring their modules
    from safetensors import torch as _  # noqa: F401
    from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel  # noqa: F401

    server, requests = multiprocessing.Pipe()
    if os.fork() == 0:
        try:
            _serve(requests)
        finally:
            os._exit(0)
    requests.close()


def _serve(requests: Connection) -> None:
    # what pytest has open leads nowhere: closed, its numbers would be given to other files, and old streams write into them
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/dev/fd")):
        if number not in (requests.fileno(), nowhere):
            with suppress(OSError):  # the listing's own
                os.fstat(number)
                os.dup2(nowhere, number)
    atexit._clear()
    sys.path[:] = [path for path in sys.path if path not in ("", str(HELPERS))]
    importlib.reload(warnings)  # of which pytest has replaced parts
    while True:
        try:
            request = requests.recv()
        except EOFError:  # the test run has ended
            return
        if isinstance(request, int):
            requests.send(wait(request))
            continue
        process = os.fork()
        if process == 0:
            requests.close()
            _run_and_exit(partial(_become, *request))
        requests.send(process)


def _become(arguments: list[str], environment: dict[str, str], cwd: str, files: list[str]) -> None:
    """Run what `python ARGUMENTS` would run; the files are stdin, stdout and stderr."""
    os.setsid()
    for number, (file, mode) in enumerate(zip(files, "raa", strict=True)):
        with open(file, mode) as opened:
            os.dup2(opened.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, 1) for number, mode in enumerate("rww"))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    for handler in filter(None, (reference() for reference in logging._handlerList)):
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stderr
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    importlib.invalidate_caches()
    tempfile.tempdir = None  # to be read anew from the environment
    _move_caches()
    try:
        run_main(*arguments)
    finally:
        atexit._run_exitfuncs()


def _move_caches() -> None:
    """Where code of checkpoints is copied to, which transformers has read from the server's environment."""
    from transformers import dynamic_module_utils

    if home := os.environ.get("HF_HOME"):
        modules = os.environ.get("HF_MODULES_CACHE", os.path.join(home, "modules"))
    elif not (modules := os.environ.get("HF_MODULES_CACHE")):
        return
    dynamic_module_utils.HF_MODULES_CACHE = modules


def run_main(*arguments: str) -> None:
    """Run what `python ARGUMENTS` would run."""
    first, *rest = arguments
    if first == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.argv[:] = rest
        sys.path.insert(0, "")
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = [first, *rest]
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")


class Program:
    """A running `python ARGUMENTS`; what it reads and prints are `files`, which may be named pipes."""

    def __init__(
        self, arguments: tuple, files: list[Path], env: dict[str, str] | None = None, cwd: Path | None = None
    ):
        arguments, env = list(map(str, arguments)), dict(os.environ if env is None else env)
        self.process = None
        if server is None:
            stdin, stdout, stderr = (file.open(mode) for file, mode in zip(files, "raa", strict=True))
            self.process = subprocess.Popen(
                [sys.executable, *arguments], stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd
            )
            self.id = self.process.pid
        else:
            server.send((arguments, env, str(cwd or os.getcwd()), list(map(str, files))))
            self.id = server.recv()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for the number of a signal: SIGKILL after `timeout` seconds."""
        if self.process is not None:
            return self.process.wait(timeout)
        server.send(self.id)
        if not server.poll(timeout):
            os.killpg(self.id, signal.SIGKILL)
        return server.recv()


def python(*arguments, env=None, cwd=None, input: str = "", timeout: float = 600) -> subprocess.CompletedProcess:
    """As `subprocess.run([sys.executable, *arguments], capture_output=True, text=True, ...)`: a script, `-c` or `-m`."""
    with tempfile.TemporaryDirectory() as folder:
        stdin, *outputs = files = [Path(folder, name) for name in ("in", "out", "err")]
        stdin.write_text(input)
        status = Program(arguments, files, env, cwd).wait(timeout)
        out, err = (path.read_text(errors="replace") for path in outputs)
    return subprocess.CompletedProcess(arguments, status, out, err)
