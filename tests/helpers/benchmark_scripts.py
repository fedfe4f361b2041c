"""The scripts in benchmarks/, which import one another by name."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from paths import ROOT

FOLDER = ROOT / "benchmarks"
ABLATION = FOLDER / "ablation"


@contextmanager
def importable(folder=FOLDER, also: tuple[str, ...] = ()) -> Iterator[None]:
    """The scripts of a folder can be imported by name, and those named in `also`. Afterwards everything is as it was."""
    own = {path.stem for path in folder.glob("*.py")} | {"evidence", *also}
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in own}
    path = list(sys.path)
    sys.path[:0] = [str(folder), *({str(FOLDER)} - {str(folder)})]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(before)


@contextmanager
def imported(name: str):
    """One script of benchmarks/ as a module."""
    with importable():
        yield import_module(name)
