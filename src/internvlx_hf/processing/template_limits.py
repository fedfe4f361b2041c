# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A limit on the work of a chat template, which a stranger may have written.

Work is counted in steps, not in time: a pass of a loop, a call of a macro or function, a filter, an operator is one,
and one more for every hundred characters or elements that it reads or makes. What a template writes is unchanged.
"""

import functools
import math
import re
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from threading import Lock

from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import ImmutableSandboxedEnvironment, jinja2

nodes = jinja2.nodes
# 200 messages take some ten thousands in an ordinary template, and 1.3 million in one that `convert` had to mark
MAX_STEPS = 2_000_000
MAX_TEMPLATE = 200_000  # characters
MAX_BITS = 10_000  # of an integer
_PER_STEP = 100
_COLLECTIONS = (list, tuple, set, frozenset, range, Mapping, KeysView, ItemsView, ValuesView)
# filters and methods whose result can be as long as the product of their arguments
_GROWING = frozenset(
    [
        "batch",
        "center",
        "expandtabs",
        "format",
        "format_map",
        "indent",
        "join",
        "ljust",
        "replace",
        "rjust",
        "round",
        "slice",
        "tojson",
        "translate",
        "wordwrap",
        "zfill",
    ]
)
# filters that do not read what is nested in their value, and tests that hardly read it at all
_SHALLOW = frozenset(
    [
        "count",
        "d",
        "default",
        "first",
        "items",
        "last",
        "length",
        "list",
        "map",
        "reject",
        "rejectattr",
        "reverse",
        "select",
        "selectattr",
    ]
)
_CONSTANT = frozenset(
    [
        "boolean",
        "callable",
        "defined",
        "false",
        "iterable",
        "mapping",
        "none",
        "number",
        "sameas",
        "sequence",
        "string",
        "true",
        "undefined",
    ]
)
_STEPS: ContextVar[list[int]] = ContextVar("steps")
_LOCK = Lock()


class TemplateLimitError(jinja2.TemplateError, ValueError):
    """A chat template does more than it may."""


def bounded(chat_template: str) -> str:
    """The template itself, which transformers from now on renders within the limits.

    Raises:
        TemplateLimitError: if the template is too long or too deeply nested. Rendering raises it for too much work.
        jinja2.TemplateError: if it is not valid Jinja.
    """
    if len(chat_template) > MAX_TEMPLATE:
        raise TemplateLimitError(f"It has {len(chat_template)} characters, expected at most {MAX_TEMPLATE}.")
    with _LOCK:
        # transformers keeps compiled templates, each with an environment of its own; it takes no environment from
        # outside
        chat_template_utils.ImmutableSandboxedEnvironment = _BoundedEnvironment  # type: ignore[misc]
        try:
            compiled = chat_template_utils._compile_jinja_template(chat_template)
            if not isinstance(compiled.environment, _BoundedEnvironment):
                chat_template_utils._compile_jinja_template.cache_clear()
                chat_template_utils._compile_jinja_template(chat_template)
        except RecursionError as error:
            raise TemplateLimitError("It is nested too deeply.") from error
        finally:
            chat_template_utils.ImmutableSandboxedEnvironment = ImmutableSandboxedEnvironment  # type: ignore[misc]
    return chat_template


def _spend(steps: int) -> None:
    taken = _STEPS.get()
    taken[0] += steps
    if taken[0] > MAX_STEPS:
        raise TemplateLimitError(
            f"It takes more than {MAX_STEPS} steps (passes of loops, calls, hundreds of characters) for one "
            "conversation."
        )


@jinja2.pass_context
def _charged(context, value, steps: int = 1):
    """The value, after its size is spent; what an iterator yields is spent when it does."""
    if isinstance(value, Iterator):
        return map(functools.partial(_charged, context), value)
    _spend(steps + (len(value) // _PER_STEP if isinstance(value, (str, *_COLLECTIONS)) else 0))
    return value


@jinja2.pass_context
def _scanned(context, value):
    """The value, after the size of all that is nested in it is spent."""
    _scan(value)
    return value


def _scan(value) -> int:
    """Spends and returns the number of characters and elements in a value."""
    waiting, total = [value], 0
    while waiting:
        item = waiting.pop()
        size = len(item) if isinstance(item, (str, *_COLLECTIONS)) else 1
        _spend(1 + size // _PER_STEP)
        total += size
        if isinstance(item, _COLLECTIONS):
            waiting += item
            if isinstance(item, Mapping):
                waiting += item.values()
    return total


def _grow(*values) -> None:
    """Spends the product of sizes and numbers, before a result of that size is made."""
    sizes = [abs(value) if isinstance(value, int) else _scan(value) for value in values]
    _spend(math.prod(max(size, 1) for size in sizes) // _PER_STEP)


def _grow_by(name: str, arguments: list) -> None:
    if name.startswith("format") and any(isinstance(each, str) and re.search(r"\d{6}", each) for each in arguments):
        raise TemplateLimitError("It formats a value with a width of more than 99999.")
    _grow(*(arguments[:1] + arguments[2:3] if name == "replace" else arguments))  # not the text that is replaced


def _growing(name: str, function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        sized = (str, int, float, *_COLLECTIONS)
        _grow_by(name, [each for each in (*args, *kwargs.values()) if isinstance(each, sized)])
        return function(*args, **kwargs)

    return wrapped


class _BoundedTemplate(jinja2.Template):
    def new_context(self, *args, **kwargs):
        _STEPS.set([0])
        return super().new_context(*args, **kwargs)


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    template_class = _BoundedTemplate
    intercepted_binops = frozenset({"*", "**", "%"})

    def from_string(self, *args, **kwargs):
        # not earlier: transformers replaces filters of a new environment
        self.optimized = False  # or constant expressions are computed before anything is counted
        self.globals.pop("lipsum", None)
        self.filters.pop("urlize", None)  # may take the square of its text's length
        self.filters |= {name: _growing(name, self.filters[name]) for name in _GROWING & self.filters.keys()}
        self.filters |= {"charged": _charged, "scanned": _scanned}
        return super().from_string(*args, **kwargs)

    def _generate(self, source, *args, **kwargs):
        source = _Charging().visit(source)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def call(self, context, called, /, *args, **kwargs):
        name, owner = (
            getattr(called, "__name__", ""),
            getattr(getattr(called, "__wrapped__", called), "__self__", None),
        )
        if isinstance(owner, str) and name in _GROWING:
            _grow_by(name, [owner, *args, *kwargs.values()])
        elif isinstance(owner, list | tuple) and name in ("count", "index"):
            _scan([owner, args])
        return super().call(context, called, *args, **kwargs)

    def call_binop(self, context, operator, left, right):
        if operator == "%" and isinstance(left, str):
            _grow_by("format", [left, right])
        elif operator == "*" and not isinstance(left, float) and not isinstance(right, float):
            if isinstance(left, int) and isinstance(right, int):
                _require_bits(left.bit_length() + right.bit_length())
            else:
                _grow(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _require_bits(left.bit_length() * abs(right))
        return super().call_binop(context, operator, left, right)

    def _filter_test_common(self, name, value, args, kwargs, context, *rest):
        """Called for the filters and tests that `map`, `select` and their like are given."""
        _scan([value, args])
        return _charged(context, super()._filter_test_common(name, value, args, kwargs, context, *rest))


def _require_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TemplateLimitError(f"It computes an integer of {bits} bits, expected at most {MAX_BITS}.")


class _Charging(jinja2.visitor.NodeTransformer):
    """Puts filters into a template that spend its steps."""

    def _result(self, node):
        self.generic_visit(node)
        return _through("charged", node)

    visit_Call = visit_Add = visit_Mul = visit_Mod = visit_Pow = _result

    def visit_Getitem(self, node):
        self.generic_visit(node)
        return _through("charged", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Filter(self, node):
        self.generic_visit(node)
        if node.node is not None and node.name not in _SHALLOW:
            node.node = _through("scanned", node.node)
        return _through("charged", node)

    def visit_Test(self, node):
        self.generic_visit(node)
        if node.name not in _CONSTANT:
            node.node = _through("scanned", node.node)
            node.args = [_through("scanned", each) for each in node.args]
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        for part in (node, *node.ops):
            part.expr = _through("scanned", part.expr)
        return node

    def visit_Concat(self, node):
        self.generic_visit(node)
        node.nodes = [_through("scanned", each) for each in node.nodes]
        return _through("charged", node)

    def visit_Output(self, node):
        self.generic_visit(node)
        node.nodes = [_through("scanned", each) for each in node.nodes]
        return node

    def visit_For(self, node):
        node = self._block(node)
        node.test = node.test and _through("charged", node.test)
        return node

    def _block(self, node):
        """A loop, or a macro and its like; their body spends its size whenever it begins."""
        kept = {name: getattr(node, name) for name in ("call", "filter") if getattr(node, name, None) is not None}
        body = [*node.find_all((nodes.Node,))]
        text = sum(len(each.data) for each in body if isinstance(each, nodes.TemplateData))
        self.generic_visit(node)
        for name, expression in kept.items():  # the compiler wants exactly these nodes here
            setattr(node, name, expression)
        size = nodes.Const(1 + (len(body) + text) // _PER_STEP, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(_through("charged", nodes.TemplateData("", lineno=node.lineno), size)))
        return node

    visit_Macro = visit_CallBlock = visit_FilterBlock = visit_AssignBlock = _block


def _through(name: str, node, *args):
    """The expression through one of the filters that spend, except for a constant without arguments."""
    if isinstance(node, nodes.Const | nodes.TemplateData) and not args:
        return node
    return nodes.Filter(node, name, [*args], [], None, None, lineno=node.lineno)
