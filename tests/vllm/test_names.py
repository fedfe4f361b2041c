"""What the plug-in uses of vLLM is listed, and the comparison of two versions finds what changed. No vLLM runs here."""

import ast
import json
import zipfile
from collections.abc import Iterator

import pytest

from internvlx_hf.vllm import plugin
from vllm_names import BREAKING, CHANGES, COMPARISON, PLUGIN, Sources, compare, definitions, read_names

TREES = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PLUGIN.glob("*.py"))]
NODES = [node for tree in TREES for node in ast.walk(tree)]
IMPORTED = {
    alias.name: node.module
    for node in NODES
    if isinstance(node, ast.ImportFrom) and not node.level and f"{node.module}.".startswith("vllm.")
    for alias in node.names
}
LISTED = {(module, name): members for module, name, members in read_names()}
CLASSES = {node.name: node for node in NODES if isinstance(node, ast.ClassDef)}
# Python's own, and hooks that vLLM looks up by name: its models have no base class with them
NOT_OF_A_BASE = {"__init__", "data", "forward", "get_mm_mapping", "get_model_state_cls"}
ATTRIBUTES = [node for node in NODES if isinstance(node, ast.Attribute)]


def plain(node: ast.AST | None) -> str:
    """A base or an annotation without its brackets and quotes."""
    node = node.value if isinstance(node, ast.Subscript | ast.Constant) else node
    return ast.unparse(node) if isinstance(node, ast.AST) else str(node)


def bases(node: ast.ClassDef) -> set[str]:
    """vLLM's classes that a class of the plug-in inherits from."""
    names = {plain(base) for base in node.bases}
    return (names & IMPORTED.keys()) | {found for name in names & CLASSES.keys() for found in bases(CLASSES[name])}


def members(owner: str) -> tuple[str, ...]:
    return LISTED.get((IMPORTED[owner], owner), ())


def read_of(node: ast.AST, variable: str) -> set[str]:
    found = (child for child in ast.walk(node) if isinstance(child, ast.Attribute))
    return {child.attr for child in found if ast.unparse(child.value) == variable}


def used_members() -> Iterator[tuple[set[str], str]]:
    """Each member that the plug-in uses, with the classes or objects of vLLM that may have it."""
    own = {node.attr for node in ATTRIBUTES if isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in NODES if isinstance(node, ast.FunctionDef)}
    own |= {
        name.id
        for node in NODES
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }
    called = {node.attr for node in ATTRIBUTES if ast.unparse(node.value) != "super()"}
    for name in IMPORTED:
        for tree in TREES:
            yield from (({name}, member) for member in read_of(tree, name))
    for node in filter(bases, CLASSES.values()):
        methods = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
        found = read_of(node, "super()") | (read_of(node, "self") | read_of(node, "cls")) - own
        yield from (
            (bases(node), member) for member in found | {name for name in methods - called if name != "__init__"}
        )
    for function in (node for node in NODES if isinstance(node, ast.FunctionDef)):
        for argument in function.args.args + function.args.kwonlyargs:
            if (owner := plain(argument.annotation)) in IMPORTED:
                yield from (({owner}, member) for member in read_of(function, argument.arg) - own)


def test_the_list_has_every_name_that_the_plugin_imports():
    assert len(IMPORTED) == 42
    assert {(module, name) for name, module in IMPORTED.items()} <= LISTED.keys()


def test_the_list_has_every_member_that_the_plugin_uses():
    used = list(used_members())
    assert ({"Scheduler"}, "_free_blocks") in used  # overridden
    assert ({"DefaultModelState"}, "max_num_reqs") in used  # read
    unlisted = {name for owners, name in used if not any(name in members(owner) for owner in owners)}
    assert unlisted == NOT_OF_A_BASE


SCHEDULER = """
class Base:
    def __init__(self):
        self.requests, self.rest = {}, []

    def kept(self, request): return request

    def gone(self): ...

    def signature(self, request, tokens=1): ...

    def body(self, tokens):
        return tokens

    @property
    def length(self): return 1
"""
OLD = {
    "vllm/__init__.py": "",
    "vllm/engine/__init__.py": "try:\n    from .scheduler import Scheduler, make\nexcept ImportError:\n    pass",
    "vllm/engine/scheduler.py": "from vllm.engine.base import Base as B\nclass Scheduler(B[int]): ...\ndef make(): ...",
    "vllm/engine/base.py": SCHEDULER,
    "vllm/registry.py": "from .engine import Scheduler\nREGISTRY: dict = Scheduler()",
    "vllm/spec.py": "@dataclass\nclass A:\n    first: int\n@dataclass\nclass Spec(A):\n    second: int = 1",
}
PLANTED = [
    ("vllm/engine/base.py", "gone", "went"),
    ("vllm/engine/base.py", "tokens=1", "tokens=2"),
    ("vllm/engine/base.py", "return tokens", "return -tokens"),
    (
        "vllm/engine/base.py",
        "return request",
        '"""Comments and docstrings are no change."""; return request  # at all',
    ),
    ("vllm/engine/base.py", "{}, []", "{}, [], []"),
    ("vllm/engine/scheduler.py", "def make(): ...", ""),
    ("vllm/spec.py", "first: int", "first: int; third: int"),
]
SMALL = [
    ("vllm.engine", "Scheduler", ("requests", "kept", "gone", "signature", "body", "length")),
    ("vllm.engine", "make", ()),
    ("vllm.registry", "REGISTRY", ("gone", "length")),
    ("vllm.spec", "Spec", ("__init__", "second")),
]


def wheel(path, files) -> Sources:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return Sources(path)


def test_the_comparison_finds_planted_changes_and_nothing_else(tmp_path):
    old, new = wheel(tmp_path / "old.whl", OLD), dict(OLD)
    same = compare(old, wheel(tmp_path / "same.whl", OLD), SMALL)
    assert {change: len(found) for change, found in same.items() if found} == {"same": len(definitions(old, SMALL))}
    for path, text, other in PLANTED:
        assert text in new[path]
        new[path] = new[path].replace(text, other)
    assert compare(old, wheel(tmp_path / "new.whl", new), SMALL) == {
        "gone": ["vllm.engine.Scheduler.gone", "vllm.engine.make", "vllm.registry.REGISTRY.gone"],
        "signature changed": ["vllm.engine.Scheduler.signature", "vllm.spec.Spec.__init__"],
        "body changed": ["vllm.engine.Scheduler.requests", "vllm.engine.Scheduler.body"],
        "new": [],
        "same": [
            *("vllm.engine.Scheduler", "vllm.engine.Scheduler.kept", "vllm.engine.Scheduler.length"),
            *("vllm.registry.REGISTRY", "vllm.registry.REGISTRY.length", "vllm.spec.Spec", "vllm.spec.Spec.second"),
        ],
    }


def test_a_listed_name_that_no_version_has_is_an_error(tmp_path):
    old = wheel(tmp_path / "old.whl", OLD)
    with pytest.raises(ValueError, match=r"names\.txt lists vllm\.spec\.Spec\.third, which neither version has"):
        compare(old, old, [("vllm.spec", "Spec", ("third",))])


def test_the_newest_accepted_version_is_the_compared_one_and_changed_no_signature():
    found = json.loads(COMPARISON.read_text(encoding="utf-8"))
    numbers = {side: tuple(map(int, found[side].split(".")[:2])) for side in ("from", "to")}
    assert numbers == {"from": plugin.TESTED, "to": plugin.NEWEST}
    assert [name for change in BREAKING for name in found[change]] == []
    listed = {
        ".".join([module, name, *member])
        for (module, name), members in LISTED.items()
        for member in [[], *([one] for one in members)]
    }
    assert {name for change in CHANGES for name in found[change]} == listed
