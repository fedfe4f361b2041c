"""JSON files and lines of JSON: what they hold, and the same with something changed."""

import json


def json_of(path):
    return json.loads(path.read_text())


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_json(path, value):
    path.unlink(missing_ok=True)  # a copy is read-only where the original is
    path.write_text(json.dumps(value))


def edit_json(path, edit=lambda value: None, **changes):
    """`edit` changes the object in place."""
    value = json_of(path)
    edit(value)
    write_json(path, value | changes)
