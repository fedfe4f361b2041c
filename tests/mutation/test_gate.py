"""The gate itself: what it calls noticed and survived, and a catalogue that follows the code."""

import ast
import subprocess
from collections import Counter

import pytest

from draw_faults import Drawing
from faults import PACKAGE, Fault, read_catalogue
from mutate import Tree
from paths import ROOT

SMALL = "def clamp(x):\n    if x > 9:\n        return 9\n    return x\n"
CLAIM = "from internvlx_hf.small import clamp\n\n\ndef test_clamp():\n    assert [clamp(8), clamp(10)] == [8, 9]\n"


def fault(old: str, new: str) -> Fault:
    return Fault("small", "a fault", "small.py", old, new)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A repository of one function and one test."""
    root = tmp_path_factory.mktemp("small")
    for name, text in {PACKAGE / "small.py": SMALL, PACKAGE / "__init__.py": "", "tests/test_small.py": CLAIM}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return Tree(tmp_path_factory.mktemp("copies") / "tree", root)


@pytest.mark.parametrize(
    ("old", "new", "status", "failed"),
    [
        ("x > 9", "x > 99", 1, ["tests/test_small.py::test_clamp"]),
        ("return 9", "return 10", 1, ["tests/test_small.py::test_clamp"]),
        ("def clamp(x):", "def clam(x):", 2, ["tests/test_small.py"]),
        ("x > 9", "x >= 9", 0, []),  # equivalent
    ],
)
def test_a_fault_is_noticed_unless_it_changes_nothing(tree, old, new, status, failed):
    with tree.planted(fault(old, new)):
        found = tree.run("tests")
    assert (found["status"], found["failed"]) == (status, failed)
    assert (tree.path / PACKAGE / "small.py").read_text() == SMALL


def test_a_fault_that_never_ends_is_stopped(tree):
    with tree.planted(fault("    if x > 9:", "    while True:\n        pass\n    if x > 9:")):
        assert tree.run("tests", limit=1)["status"] == -1


def test_the_functions_that_a_test_enters_are_known(tree):
    found = tree.run("tests", trace=True)
    assert found["tests"]["tests/test_small.py::test_clamp"]["entered"] == ["small.py:clamp"]


@pytest.mark.parametrize(("old", "times"), [("x < 9", 0), ("return", 2)])
def test_a_snippet_that_is_not_there_once_is_an_error_that_names_the_fault(old, times):
    with pytest.raises(ValueError, match=f"small: a fault: its snippet occurs {times} times in small.py"):
        fault(old, "pass").planted(SMALL)


def test_drawn_changes_are_those_of_the_operators():
    entries = [Drawing(SMALL).entry(change) for change in Drawing(SMALL).changes()]
    changed = {(name, new) for name, _, new in entries}
    assert changed == {
        ("comparison in clamp", "    if x >= 9:"),
        ("constant in clamp", "    if x > 10:"),
        ("constant in clamp", "        return 10"),
    }


@pytest.mark.parametrize("fault", read_catalogue(), ids=lambda fault: fault.title)
def test_every_fault_of_the_catalogue_is_where_it_says(fault):
    source = (ROOT / PACKAGE / fault.file).read_text()
    planted = fault.planted(source)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(source))


def test_the_catalogue_is_whole():
    faults = read_catalogue()
    assert [title for title, count in Counter(fault.title for fault in faults).items() if count > 1] == []
    assert sum(not fault.equivalent for fault in faults) >= 200
