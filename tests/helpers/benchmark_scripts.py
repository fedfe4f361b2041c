"""The scripts in benchmarks/, which import one another by name."""

import sys
from contextlib import contextmanager
from importlib import import_module

from paths import ROOT

FOLDER = ROOT / "benchmarks"


@contextmanager
def imported(name: str):
    """One script as a module. What other tests call the same is afterwards as it was."""
    names = {path.stem for path in FOLDER.glob("*.py")}
    before = {known: sys.modules.pop(known, None) for known in names}
    path = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        yield import_module(name)
    finally:
        sys.path[:] = path
        for known, module in before.items():
            sys.modules.pop(known, None)
            if module is not None:
                sys.modules[known] = module
