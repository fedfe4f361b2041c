"""Draw faults from the package's code, for the catalogue: `python tests/helpers/draw_faults.py AREA COUNT SEED FOLDER_OR_FILE ...`.

A drawn fault changes a comparison, a constant or an operator, drops an argument or a statement, or swaps two arguments.
"""

import ast
import random
import sys
from collections.abc import Iterator

from faults import PACKAGE
from paths import ROOT

OPPOSITE = {
    **{ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")},
    **{ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")},
    **{ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.And: ("and", "or"), ast.Or: ("or", "and")},
    **{ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "//"), ast.FloorDiv: ("//", "*")},
}
Change = tuple[str, int, int, str]  # operator, and the part of the source that becomes another text


class Drawing:
    """All changes of one file."""

    def __init__(self, source: str):
        self.source = source
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line.encode()))
        self.bytes = source.encode()

    def span(self, node: ast.AST) -> tuple[int, int]:
        at = node  # type: ast.expr
        return (
            self.lines[at.lineno - 1] + at.col_offset,
            self.lines[(at.end_lineno or 0) - 1] + (at.end_col_offset or 0),
        )

    def between(self, operator: str, left: ast.AST, right: ast.AST, kind: type) -> Iterator[Change]:
        start, end = self.span(left)[1], self.span(right)[0]
        yield operator, start, end, self.bytes[start:end].decode().replace(*OPPOSITE[kind], 1)

    def changes(self) -> Iterator[Change]:
        todo: list[ast.AST] = [ast.parse(self.source)]
        while todo:
            node = todo.pop()
            if isinstance(node, ast.Raise | ast.AnnAssign | ast.JoinedStr) or is_warning(node):
                continue
            todo += ast.iter_child_nodes(node)
            yield from self.of_node(node)

    def of_node(self, node: ast.AST) -> Iterator[Change]:
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                yield from self.between("comparison", left, right, type(op))
            case ast.BoolOp(op=op, values=[left, right]):
                yield from self.between("logic", left, right, type(op))
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv() as op, right=right):
                yield from self.between("arithmetic", left, right, type(op))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield "negation", *self.span(node), self.text(operand)
            case ast.Constant(value=bool(value)):
                yield "constant", *self.span(node), str(not value)
            case ast.Constant(value=int(value)):
                yield "constant", *self.span(node), str(value + 1)
            case ast.Expr(value=ast.Call()) | ast.AugAssign():
                yield "dropped statement", *self.span(node), "pass"
            case ast.Call():
                for keyword in node.keywords:
                    if keyword.arg and len(node.keywords) + len(node.args) > 1:
                        yield "dropped argument", *self.span(keyword), ""
                if (
                    len(node.args) == 2
                    and not node.keywords
                    and ast.unparse(node.func) not in ("getattr", "isinstance")
                ):
                    first, second = node.args
                    start, end = self.span(first)[0], self.span(second)[1]
                    yield "swap", start, end, f"{self.text(second)}, {self.text(first)}"

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.bytes[start:end].decode()

    def entry(self, change: Change) -> tuple[str, str, str]:
        """The fault's name, and the whole lines before and after it."""
        operator, start, end, text = change
        if operator == "dropped argument":  # with the comma before it, or after it
            while self.bytes[start - 1 : start] in (b" ", b"\n"):
                start -= 1
            if self.bytes[start - 1 : start] == b",":
                start -= 1
            else:
                end += 2
        first = self.bytes.rfind(b"\n", 0, start) + 1
        last = self.bytes.find(b"\n", end)
        while self.bytes.count(self.bytes[first:last]) > 1:
            first = self.bytes.rfind(b"\n", 0, first - 1) + 1
        old = self.bytes[first:last].decode()
        new = (self.bytes[first:start] + text.encode() + self.bytes[end:last]).decode()
        function = ""
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                begin, finish = self.span(node)
                if begin <= start < finish:
                    function = f"{function}.{node.name}".lstrip(".")
        return f"{operator} in {function or 'the module'}", old, new


def is_warning(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("logger.", "logging.", "warnings."))


def main() -> None:
    area, count, seed, *places = sys.argv[1:]
    package = ROOT / PACKAGE
    paths = sorted(
        path
        for place in places
        for path in ([package / place] if place.endswith(".py") else (package / place).glob("*.py"))
    )
    found = []
    for path in paths:
        drawing = Drawing(path.read_text())
        found += [(path, drawing, change) for change in drawing.changes()]
    for path, drawing, change in random.Random(f"{area} {seed}").sample(found, int(count)):
        name, old, new = drawing.entry(change)
        lines = [f"== {name}", f"@ {path.relative_to(package)}", *(f"- {line}" for line in old.split("\n"))]
        print("\n".join([*lines, *(f"+ {line}" for line in new.split("\n"))]), end="\n\n")


if __name__ == "__main__":
    main()
