"""Who imports whom: rooms only from rooms below them, and nothing in a circle. Imports within functions count."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from paths import ROOT

PACKAGE = ROOT / "src/internvlx_hf"
# from the lowest
LAYERS = [
    ("modeling", "processing"),
    ("checkpoints",),
    ("cost", "hub"),
    ("data", "conversion"),
    ("training", "pictures", "evaluation", "vllm"),
    ("chat", "serving"),
    ("web", "tuning"),
    ("commands",),
]
LAYER = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
UPWARD = {("cost", "conversion")}  # the settings of a checkpoint that is not converted yet


class WithoutTypeChecking(ast.NodeTransformer):
    """What is there when a program runs."""

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return ast.Module(node.orelse, [])
        return self.generic_visit(node)


def import_graph(folder: Path, package: str = "") -> dict[str, set[str]]:
    """The modules of a folder by their dotted names, a package's own being its `__init__`, and what each imports of them."""
    paths = {}
    for path in folder.rglob("*.py") if package else folder.glob("*.py"):
        names = [package, *path.relative_to(folder).with_suffix("").parts]
        paths[".".join(name for name in names if name not in ("", "__init__"))] = path
    return {name: _imports(name, path, paths.keys()) - {name} for name, path in paths.items()}


def _imports(name: str, path: Path, modules) -> set[str]:
    parents = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    tree = WithoutTypeChecking().visit(ast.parse(path.read_text(encoding="utf-8")))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) + 1 - node.level] if node.level else []
            origin = ".".join([*start, *filter(None, [node.module])])
            found |= {f"{origin}.{alias.name}" for alias in node.names} & modules or {origin}
    return found & modules


def room(module: str) -> str | None:
    """The sub-package that a module is in; None for those outside of all, and for entry points, which nothing imports."""
    _, name, *rest = [*module.split("."), ""]
    return name if name in LAYER and "__main__" not in rest else None


def rooms() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {name: set() for name in LAYER}
    for module, imported in import_graph(PACKAGE, "internvlx_hf").items():
        if own := room(module):
            graph[own] |= {other for other in map(room, imported) if other} - {own}
    return graph


def test_every_folder_of_the_package_has_its_layer():
    folders = {path.parent.relative_to(PACKAGE).parts for path in PACKAGE.rglob("*.py")} - {()}
    assert folders == {(name,) for name in LAYER}


def test_rooms_import_only_what_lies_below_them():
    upward = {(own, other) for own, found in rooms().items() for other in found if LAYER[other] >= LAYER[own]}
    assert upward <= UPWARD


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(rooms(), id="rooms"),
        pytest.param(import_graph(PACKAGE, "internvlx_hf"), id="modules"),
        pytest.param(import_graph(ROOT / "benchmarks"), id="benchmarks"),
        pytest.param(import_graph(ROOT / "benchmarks/ablation"), id="ablation"),
        pytest.param(import_graph(ROOT / "benchmarks/documents"), id="documents"),
        pytest.param(import_graph(ROOT / "benchmarks/evidence", "evidence"), id="evidence"),
    ],
)
def test_nothing_imports_itself_in_a_circle(graph):
    assert any(graph.values())
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
