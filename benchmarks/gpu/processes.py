"""A process for each way of a line, which holds its model; all of them are forked from one that has imported everything."""

import multiprocessing
import os
import time
from pathlib import Path

from lines import Line

FOLDER = Path(__file__).parent
PATHS = (FOLDER, FOLDER.parent, FOLDER.parents[1] / "src", FOLDER.parents[1] / "tests/helpers")


class TimeUp(Exception):
    """The chunk's time is over."""


class Process:
    """The process of one way."""

    method = "forkserver"

    def __init__(self, line: Line, way: str, device: str):
        self.arguments = line.work, way, device
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context(self.method)
        if self.method == "forkserver":
            context.set_forkserver_preload(["work"])
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, *self.arguments))
        self.process.start()
        other.close()

    def send(self, method: str, case: dict) -> None:
        self.asked = method, case
        self.connection.send(self.asked)

    def receive(self, deadline: float) -> dict:
        """What the method found, or `{"problem": ...}`. Raises TimeUp."""
        if not self.connection.poll(max(0.0, deadline - time.monotonic())):
            raise TimeUp
        try:
            found = self.connection.recv() or {}
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            return {"problem": f"its process ended with status {self.process.exitcode}"}
        if "forked subprocess" in found.get("problem", "") and self.method == "forkserver":
            Process.method = "spawn"  # an import has touched CUDA: each process imports for itself
            self.end()
            self.start()
            self.send(*self.asked)
            return self.receive(deadline)
        return found

    def ask(self, method: str, case: dict, deadline: float) -> dict:
        self.send(method, case)
        return self.receive(deadline)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def prepare() -> None:
    """What the processes need to import, and what keeps their imports from touching CUDA."""
    paths = [*map(str, PATHS), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths)} | settings


def serve(*arguments) -> None:
    import work

    work.serve(*arguments)
