"""Errors that name the offending value and what would be right."""

import inspect
import re
from contextlib import contextmanager

import pytest


@contextmanager
def refused(value, *remedy, by=ValueError):
    """The block raises `by`, and its message has `value` and each of `remedy`, to the letter and as whole words.

    Either may be of several parts: "pages=3 … expected at most 2".
    """
    with pytest.raises(by) as caught:
        yield caught
    message = str(caught.value)
    for part in " … ".join(map(str, (value, *remedy))).split(" … "):
        whole = rf"(\b|(?=\W)){re.escape(part)}(\b|(?<=\W))"
        assert re.search(whole, message), f"{part!r} is not in {message!r}"


def refusals(*cases, by=ValueError):
    """
    A test of each `(call, value, remedy)`: `test_what_is_refused = refusals((lambda processor: processor(None), "None",
    "expected an image"), ...)`. What a call has as parameters without a default are fixtures.
    """

    @pytest.mark.parametrize(("call", "value", "remedy"), cases, ids=[str(value)[:40] for _, value, _ in cases])
    def test(request, call, value, remedy):
        fixtures = [name for name, each in inspect.signature(call).parameters.items() if each.default is each.empty]
        given = [request.getfixturevalue(name) for name in fixtures]
        with refused(value, remedy, by=by):
            call(*given)

    return test
