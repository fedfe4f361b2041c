"""Modules named `vllm`, whose names are empty classes: enough to import the plug-in's files, none of whose code it runs."""

import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Named(type):
    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return empty(name)

    def __getitem__(cls, _):
        return cls


def empty(name: str) -> type:
    """A class that is a base class, a generic one, or a registry whose methods return decorators."""
    return _Named(name, (), {"__init__": lambda self, *_, **__: None, "__call__": lambda self, decorated: decorated})


class _Module(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, empty(name))
        return getattr(self, name)


class _Finder:
    def find_spec(self, name: str, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "vllm" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _forget() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name == "vllm" or name.startswith(("vllm.", "internvlx_hf.vllm."))]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def stand_in():
    """Within the context, the plug-in's files are imported anew; afterwards they and the stand-in are forgotten."""
    finder = _Finder()
    before = _forget()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _forget()
        sys.modules.update(before)
