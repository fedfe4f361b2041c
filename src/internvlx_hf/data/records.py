# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Files of records, each of which can be read without the others in memory.

Annotations of several hundred thousand conversations take gigabytes as Python objects, in every worker that uses them.
So only the positions of the records in their file are kept, 8 or 16 bytes each. (Arrow would require one schema for
all records, but `image` may be a path in one record and a list in another, and one broken line would make the whole
file unreadable.)
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

_CHUNK = 2**24  # bytes read at a time while a file is indexed
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')  # and strings, which may contain brackets


def parse_json(data: bytes):
    """The value of a JSON text.

    Raises:
        ValueError: if the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error}") from error


class Records(Protocol):
    """Records by index, read on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int): ...

    def place(self, index: int) -> str:
        """A record's file and line, for messages."""

    def fingerprint(self) -> str | None:
        """A string that identifies these records; None if that would require reading them."""


class JsonLines(Records):
    """The records of a JSONL file, without blank lines.

    Raises:
        OSError: if the file cannot be read. On reading a record, ValueError if its line is not JSON.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._starts, self._stops = _lines(self.path)
        is_blank = self._starts == self._stops
        # a line of one byte is a carriage return or a broken record
        for line in np.flatnonzero(self._stops - self._starts == 1).tolist():
            is_blank[line] = self._bytes(line).isspace()
        (self._numbers,) = np.nonzero(~is_blank)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int):
        return parse_json(self._bytes(self._numbers[index]))

    def _bytes(self, line: int) -> bytes:
        return _read(self.path, self._starts[line], self._stops[line])

    def place(self, index: int) -> str:
        return f"{self.path}, line {self._numbers[index] + 1}"

    def fingerprint(self) -> str:
        return _file_state(self.path)


class JsonArray(Records):
    """The records of a JSON file that holds a list of records.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a list of JSON values. The message names the line.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._bounds = _elements(self.path)

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: int):
        return parse_json(_read(self.path, *self._bounds[index]))

    def place(self, index: int) -> str:
        line = 1 + _read(self.path, 0, self._bounds[index][0]).count(b"\n")
        return f"{self.path}, record {index} (line {line})"

    def fingerprint(self) -> str:
        return _file_state(self.path)


class Rows(Records):
    """The records of any sequence, for example a map-style `datasets.Dataset` with a transform.

    Args:
        name: its name in messages.
    """

    def __init__(self, rows: Sequence, name: str):
        self.rows = rows
        self.name = name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return self.rows[int(index)]

    def place(self, index: int) -> str:
        return f"{self.name}, row {index}"

    def fingerprint(self) -> str | None:
        return getattr(self.rows, "_fingerprint", None)


class ArrowRows(Rows):
    """The rows of a map-style `datasets.Dataset`, with images as bytes or paths: the encoder decodes them."""

    def __init__(self, rows, name: str):
        super().__init__(rows.with_format("arrow"), name)

    def __getitem__(self, index: int):
        return super().__getitem__(index).to_pylist()[0]


def _file_state(path: str) -> str:
    state = os.stat(path)
    return f"{os.path.abspath(path)} {state.st_size} {state.st_mtime_ns}"


def _read(path: str, start: int, stop: int) -> bytes:
    # opened for each read: processes that share an open file also share its position
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(stop - start)


def _lines(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The start and stop of each line of a file, without its newline."""
    newlines, size = [], 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            newlines.append(size + np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")))
            size += len(chunk)
    ends = np.concatenate(newlines) if newlines else np.zeros(0, np.int64)
    return np.concatenate([[0], ends + 1]).astype(np.int64), np.concatenate([ends, [size]]).astype(np.int64)


def _elements(path: str) -> np.ndarray:
    """(records, 2): the start and stop of each element of a file's list, in bytes."""
    with open(path, "rb") as file:
        data = file.read()
    # In latin-1, each character is one byte. Texts are decoded wrongly, but the structure of JSON is ASCII.
    text, decoder = data.decode("latin-1"), json.JSONDecoder()
    bounds: list[tuple[int, int]] = []
    try:
        position = _skip_blanks(text, 3 if data.startswith(b"\xef\xbb\xbf") else 0)
        position = _skip_blanks(text, _expect(text, position, "["))
        while text[position : position + 1] != "]":
            if bounds:
                position = _skip_blanks(text, _expect(text, position, ","))
            stop = _element_stop(text, position, decoder)
            bounds.append((position, stop))
            position = _skip_blanks(text, stop)
        if (rest := _skip_blanks(text, position + 1)) < len(text):
            raise json.JSONDecodeError("More data after the end of the list", text, rest)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}, expected a JSON list of records.") from error
    return np.array(bounds, dtype=np.int64).reshape(-1, 2)


def _element_stop(text: str, position: int, decoder: json.JSONDecoder) -> int:
    try:
        return decoder.raw_decode(text, position)[1]
    except RecursionError:  # one record is nested too deeply, which is reported when it is read
        depth = 0
        for match in _BRACKETS.finditer(text, position):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            if not depth:
                return match.end()
        raise json.JSONDecodeError("Unfinished record", text, position) from None


def _skip_blanks(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\n", "\r"):
        position += 1
    return position


def _expect(text: str, position: int, character: str) -> int:
    if text[position : position + 1] != character:
        raise json.JSONDecodeError(f"Expecting {character!r}", text, position)
    return position + 1
