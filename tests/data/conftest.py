"""Annotations and data sets that the tests of data share."""

import contextlib
import logging

import datasets
import pytest

from data_cases import CONFIG, record, save_picture, write_lines
from json_files import lines_of
from tiny import TILE, tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(CONFIG)


@pytest.fixture
def annotations(tmp_path):
    """Ten records, every second with a picture; record i has i % 4 + 1 tiles high ones."""
    records = []
    for i in range(10):
        image = save_picture(tmp_path / f"{i}.png", TILE, TILE * (i % 4 + 1), seed=i) if i % 2 else None
        records.append(record(i, image))
    return write_lines(tmp_path / "annotations.jsonl", records)


@pytest.fixture
def rows(tmp_path, annotations):
    """The ten records as a `datasets.Dataset` of messages and images."""
    read = []
    for one in lines_of(annotations):
        question, answer = (turn["value"] for turn in one["conversations"])
        image = [{"bytes": (tmp_path / one["image"]).read_bytes(), "path": None}] if "image" in one else []
        parts = [{"type": "image", "text": None}] * len(image) + [{"type": "text", "text": question}]
        answered = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        read.append({"messages": [{"role": "user", "content": parts}, answered], "images": image})
    features = datasets.Dataset.from_list(read).features | {"images": datasets.List(datasets.Image())}
    return datasets.Dataset.from_list(read, features=datasets.Features(features))


@pytest.fixture
def warnings_of():
    """A context that collects a logger's warnings: transformers' loggers do not propagate."""

    @contextlib.contextmanager
    def collect(name):
        messages, handler = [], logging.Handler(logging.WARNING)
        handler.emit = lambda entry: messages.append(entry.getMessage())
        logging.getLogger(name).addHandler(handler)
        yield messages
        logging.getLogger(name).removeHandler(handler)

    return collect
