# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a request passes before transformers' server sees it, and the end of its work when its client leaves."""

import asyncio
import json
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import from_json

from ..cost.request_budget import RequestBudget
from .requests import REQUESTS, described

# the parser holds up all other requests for about a second per million values
MAX_JSON_VALUES = 200_000


class Refused(Exception):
    """A request that is refused: the status, the field that is wrong, and what is wrong."""

    def __init__(self, status: int, field: str | None, message: str):
        super().__init__(message)
        self.status, self.field = status, field


def refusal(message: str, field: str | None = None, status: int = 400) -> JSONResponse:
    """An error in the form of OpenAI's API."""
    content = {"message": message, "type": "invalid_request_error", "param": field, "code": None}
    return JSONResponse({"error": content}, status_code=status)


class Gate:
    """ASGI middleware that bounds, reads and checks bodies, and cancels the work for a client that leaves."""

    def __init__(self, app, budget: RequestBudget):
        self.app, self.budget = app, budget

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        try:
            body = await self._read(scope, receive)
            if body is None:  # the client has left
                return
            if schema := REQUESTS.get(scope["path"]):
                check(body, schema)
        except Refused as error:
            return await refusal(str(error), error.field, error.status)(scope, receive, send)
        await self._run(scope, body, receive, send)

    async def _read(self, scope, receive) -> bytes | None:
        stated = dict(scope["headers"]).get(b"content-length", b"")
        self._bound(int(stated) if stated.isdigit() and len(stated) < 20 else 0)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            self._bound(len(body))
            if not message.get("more_body", False):
                return bytes(body)

    def _bound(self, size: int) -> None:
        try:
            self.budget.check(max_body_bytes=size)
        except ValueError as error:
            raise Refused(413, None, str(error)) from None

    async def _run(self, scope, body: bytes, receive, send) -> None:
        has_left = asyncio.Event()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await has_left.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            has_left.set()

        work, watching = asyncio.ensure_future(self.app(scope, replay, send)), asyncio.ensure_future(watch())
        try:
            await asyncio.wait({work, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            if not work.done():
                work.cancel()
        with suppress(asyncio.CancelledError):
            await work


def check(body: bytes, schema) -> None:
    """Raises `Refused` unless the body is a JSON object with fields that the schema allows."""
    values = sum(map(body.count, (b"[", b"{", b",")))
    if values > MAX_JSON_VALUES:
        raise Refused(413, None, f"The body has {values} brackets and commas, expected at most {MAX_JSON_VALUES}.")
    try:
        request = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, *_wrong_field(body, error)) from None
    if not isinstance(request, dict):
        raise Refused(400, None, f"The body is {request!r:.100}, expected a JSON object.")
    try:
        schema.model_validate(request)
    except ValidationError as error:
        raise Refused(400, *described(error)) from None


def _wrong_field(body: bytes, error: ValueError) -> tuple[str | None, str]:
    """The field that is no strict JSON: a lone surrogate, NaN, a number of thousands of digits, too deep."""
    name = None
    with suppress(ValueError, RecursionError, AttributeError):
        request = json.loads(body, parse_int=float)  # the infinite ones are no strict JSON
        name = next((name for name, value in request.items() if not _is_strict({name: value})), None)
    if name is None:  # too deep for Python, too
        with suppress(ValueError, IndexError, TypeError):
            name = list(from_json(body[: int(str(error).rsplit(" ", 1)[-1]) - 1], allow_partial=True))[-1]
    field = None if name is None else ascii(name)[1:-1]
    return field, f"{field or 'The body'} is no valid JSON: {error}."


def _is_strict(value: Any) -> bool:
    try:
        from_json(json.dumps(value), allow_inf_nan=False)
    except (ValueError, RecursionError):
        return False
    return True
