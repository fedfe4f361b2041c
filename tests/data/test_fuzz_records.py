# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Training data that somebody broke, by seeded chance: each record trains as it says, or is refused by file and line.

*Silently wrong* is a sample without all of the record's images, answers and texts, or one that is found without its place.
"""

import json
import warnings
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from internvlx_hf.data.samples import BrokenSampleError
from internvlx_hf.training import load_training_data
from json_files import write_json
from tiny import tiny_config, tiny_processor

pytestmark = pytest.mark.any_transformers

CONFIG = tiny_config("llama")
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A red square."}]
MESSAGES = [
    {"role": "user", "content": [{"type": "image", "path": "whole.png"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": "A red square."},
]
RECORDS = ({"image": "whole.png", "conversations": TURNS}, {"messages": MESSAGES})
META = {"root": ".", "annotation": "good.jsonl", "repeat_time": 1, "max_dynamic_patch": 2, "data_augment": False}
VALUES = (None, True, 0, -1, 2.5, float("nan"), float("inf"), 10**30, "", "x", "whole.png", "cut.png", "none.png", ".")
VALUES += (
    "<image>",
    "<image><image>",
    "http://[::1",
    "file://x]",
    "a\0b",
    "\ud800",
    "gpt",
    "video",
    "assistant",
    "tool",
)
VALUES += ([], {}, [[]], [None], ["whole.png"], ["whole.png"] * 2, [1], {"a": 1}, {"type": "image"}, {"type": "video"})
VALUES += ({"bytes": "x"}, {"bytes": None, "path": "whole.png"}, {"from": "human"}, [{"from": "gpt", "value": ""}])


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(CONFIG)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "red").save("whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:50])
    write_json(tmp_path / "good.jsonl", RECORDS[0])
    return tmp_path


def places(value, path=()):
    """The paths to everything within a value."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def changed(record, generator: np.random.Generator):
    """A copy with one thing within replaced, taken away, or added."""
    copy = json.loads(json.dumps(record))
    found = list(places(copy))
    *parents, last = found[generator.integers(len(found))]
    parent = copy
    for key in parents:
        parent = parent[key]
    match generator.integers(4):
        case 0 | 1:
            parent[last] = VALUES[generator.integers(len(VALUES))]
        case 2:
            del parent[last]
        case 3:
            if isinstance(parent, dict):
                names = (
                    "image",
                    "images",
                    "video",
                    "videos",
                    "audio",
                    "messages",
                    "conversations",
                    "content",
                    "tools",
                )
                parent[names[generator.integers(len(names))]] = VALUES[generator.integers(len(VALUES))]
            else:
                parent.insert(generator.integers(len(parent) + 1), VALUES[generator.integers(len(VALUES))])
    return copy


def damaged(text: str, generator: np.random.Generator) -> bytes:
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    start = generator.integers(len(content))
    match generator.integers(4):
        case 0:
            del content[start : start + generator.integers(1, 30)]
        case 1:
            content[start] = generator.choice([0, 10, 0x80, 0xFF, ord('"'), ord("["), ord("}")])
        case 2:
            content[start:start] = [b"[" * 50_000, b'{"a":' * 50_000, b"9" * 5000, b"\xef\xbb\xbf"][
                generator.integers(4)
            ]
        case 3:
            content[start:start] = content[start : start + generator.integers(1, 30)]
    return bytes(content)


def num_images(record: dict) -> int:
    """What a record that trains says of images, by itself."""
    images = record.get("images") if record.get("images") is not None else record.get("image")
    given = 0 if images is None or images == "" else len(images) if isinstance(images, list) else 1
    parts = [
        part
        for message in record.get("messages") or []
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if part.get("type") in ("image", "image_url")
    ]
    carried = sum(
        any(part.get(k) is not None for k in ("image", "path", "url", "base64", "image_url")) for part in parts
    )
    return given + carried


def outcome(path, processor, line: int, record=None) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sample = load_training_data(path, processor)[line - 1]
        except BrokenSampleError as error:
            named = str(error).startswith((f"{path}, line {line}: ", f"{path}, record {line - 1} (line {line}): "))
            return "clear" if named and len(str(error)) > len(f"{path}, line {line}: ") else f"unclear: {error!r}"
        except (ValueError, OSError) as error:
            return "clear" if path.name in str(error) else f"unclear: {error!r}"
        except Exception as error:
            return f"unclear: {error!r}"
    if record is not None and len(sample.num_tiles) != num_images(record):
        return f"silently wrong: {len(sample.num_tiles)} images"
    return "ok" if (sample.labels != -100).any() else "silently wrong: no answer"


def assert_only_ok_and_clear(outcomes: dict[str, str]) -> None:
    wrong = {name: what for name, what in outcomes.items() if what not in ("ok", "clear")}
    assert not wrong, (Counter(outcomes.values()), wrong)
    assert {"ok", "clear"} <= set(outcomes.values())


@pytest.mark.parametrize("kind", range(len(RECORDS)))
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_changed_records_train_as_they_say_or_are_refused_by_line(kind, suffix, folder, processor):
    generator = np.random.default_rng(kind)
    outcomes, path = {}, folder / f"data{suffix}"
    for _ in range(150):
        record = changed(RECORDS[kind], generator)
        text = json.dumps(record)
        lines = (json.dumps(RECORDS[0]), text)
        path.write_text("\n".join(lines) if suffix == ".jsonl" else "[" + ",\n".join(lines) + "]")
        outcomes[text] = outcome(path, processor, 2, record)
    assert_only_ok_and_clear(outcomes)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_damaged_lines_are_read_or_refused_by_file(suffix, folder, processor):
    generator = np.random.default_rng(7)
    outcomes, path = {}, folder / f"data{suffix}"
    for _ in range(120):
        text = damaged(json.dumps(RECORDS[generator.integers(2)]), generator)
        first = json.dumps(RECORDS[0]).encode()
        path.write_bytes(first + b"\n" + text if suffix == ".jsonl" else b"[" + first + b",\n" + text + b"]")
        outcomes[repr(text)[:300]] = outcome(path, processor, 2)
    assert_only_ok_and_clear(outcomes)


def test_changed_and_damaged_meta_files_are_read_or_refused_by_name(folder, processor):
    generator = np.random.default_rng(0)
    outcomes, path = {}, folder / "meta.json"
    for number in range(200):
        if number % 2:
            text = json.dumps(changed({"squares": META}, generator)).encode()
        else:
            text = damaged(json.dumps({"squares": META}), generator)
        path.write_bytes(text)
        named = outcome(path, processor, 1)
        if named.startswith("unclear") and "good.jsonl" in named:
            named = "clear"
        outcomes[repr(text)[:300]] = named
    assert_only_ok_and_clear(outcomes)
