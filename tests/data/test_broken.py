# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Whatever one sample brings about is that sample's fault: named with its file and line, and skipped if that is wanted."""

import io
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from internvlx_hf.data import encoding, sample_from_record
from internvlx_hf.data.records import JsonArray
from internvlx_hf.data.samples import BrokenSampleError
from internvlx_hf.training import InternVLXDataCollator, load_training_data
from json_files import write_json
from refusals import refused
from tiny import tiny_config, tiny_processor

GOOD = {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "World"}]}
DEEP = "[" * 200_000 + "]" * 200_000


def with_image(image) -> str:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "An image."}]
    return json.dumps({"image": image, "conversations": turns})


@pytest.fixture
def processor():
    return tiny_processor(tiny_config("llama"))


@pytest.fixture
def folder(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "whole.png")
    return tmp_path


def test_a_line_that_is_no_utf8_is_named_and_skipped_if_wanted(folder, processor):
    for name in ("data.jsonl", "data.json"):
        path = folder / name
        path.write_bytes(b"\xff{}\n" + json.dumps(GOOD).encode())
        with refused(f"{name}, line 1:", "UTF-8"):
            load_training_data(path, processor)[0]
        assert len(load_training_data(path, processor, on_broken="skip")[0])


def test_running_out_of_memory_for_an_image_breaks_only_its_sample(folder, processor, monkeypatch):
    path = folder / "data.jsonl"
    path.write_text("\n".join([with_image("whole.png"), json.dumps(GOOD)]))

    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with refused("data.jsonl, line 1:", by=BrokenSampleError):
        load_training_data(path, processor)[0]
    assert load_training_data(path, processor, on_broken="skip")[0] is not None


def test_a_list_with_a_deeply_nested_record_loses_only_that(folder, processor):
    path = folder / "data.json"
    tricky = json.dumps(GOOD | {"note": 'a " quote, a ] and a \\'})
    path.write_text("[" + ",\n".join([tricky, '{"conversations": ' + DEEP + "}", tricky]) + "]")
    with refused("data.json, record 1 (line 2):", "nested too deeply", by=BrokenSampleError):
        load_training_data(path, processor)[1]
    data = load_training_data(path, processor, on_broken="skip")
    assert len(data) == 3
    assert data[0].input_ids.tolist() == data[1].input_ids.tolist()


def test_the_end_of_a_deeply_nested_record_is_found_past_brackets_in_texts(folder):
    path = folder / "data.json"
    nested = '{"text": "]} \\" \\\\", "deep": ' + DEEP + "}"
    path.write_text(f'[{nested}, {{"a": 1}}]')
    records = JsonArray(path)
    assert len(records) == 2
    assert records[1] == {"a": 1}
    path.write_text(f"[{nested[:-10]}")
    with refused("data.json, line 1: Unfinished record"):
        JsonArray(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_torn_parquet_file_is_named(tmp_path, processor, streaming):
    for name in ("a.parquet", "b.parquet"):
        Dataset.from_list([GOOD]).to_parquet(tmp_path / name)
    content = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[: len(content) // 2])
    with refused("b.parquet is not a whole Parquet file: Parquet magic bytes not found"):
        load_training_data(tmp_path, processor, streaming=streaming)


def test_an_annotation_that_is_a_device_is_not_read(folder, processor):
    (folder / "meta.json").write_text('{"a": {"root": ".", "annotation": "/dev/zero"}}')
    with refused("meta.json, 'a' has the annotation '/dev/zero', which is not a regular file"):
        load_training_data(folder / "meta.json", processor)


@pytest.mark.parametrize("rest", ["\n[{}]", " {}", "\n]", ",", "x"])
def test_data_after_a_list_is_refused(rest, folder, processor):
    path = folder / "data.json"
    path.write_text(json.dumps([GOOD]) + rest)
    line = 1 + rest.count("\n")
    with refused(f"data.json, line {line}: More data after the end of the list"):
        load_training_data(path, processor)
    path.write_text(json.dumps([GOOD]) + "\n \t\r\n")
    assert len(load_training_data(path, processor)) == 1


def test_a_meta_file_that_names_a_data_set_twice_is_refused(folder, processor):
    path = folder / "meta.json"
    entry = '{"root": ".", "annotation": "data.jsonl"}'
    path.write_text(f'{{"a": {entry}, "a": {entry}}}')
    with refused("meta.json sets 'a' twice"):
        load_training_data(path, processor)
    path.write_text('{"a": ' + DEEP + "}")
    with refused("meta.json is not InternVL's meta file"):
        load_training_data(path, processor)


@pytest.mark.parametrize(("alpha", "level"), [("white", 255), ("drop", 9)])
@pytest.mark.parametrize("by_sample", [False, True])
def test_transparent_images_are_trained_on_as_the_processor_or_the_sample_blends_them(
    processor, alpha, level, by_sample
):
    image = Image.new("RGBA", (32, 32), (9, 9, 9, 0))
    sample = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], "images": [image]}
    if by_sample:
        sample["images_kwargs"] = {"alpha": alpha}
    else:
        processor.image_processor.alpha = alpha
    (found,) = encoding.SampleEncoder(processor)(sample).images
    assert (found == level).all()


@pytest.mark.parametrize("kwargs", [{}, {"max_patches": 3}, {"do_exif_transpose": False}])
def test_large_images_are_split_immediately_into_the_same_tiles(kwargs, processor, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((90, 60)).convert("RGBA").save(stream, "PNG", exif=exif)
    turns = [{"role": "user", "content": "<image>What? <image>"}, {"role": "assistant", "content": "Images."}]
    sample = {"messages": turns, "images": [{"bytes": stream.getvalue()}, np.full((50, 40, 3), 7, np.uint8)]}
    sample["images_kwargs"] = kwargs
    whole = InternVLXDataCollator(processor)([sample])
    monkeypatch.setattr(encoding, "MAX_WHOLE_PIXELS", 90 * 60 + 50 * 40 - 1)
    encoded = InternVLXDataCollator(processor).encoder(sample)
    assert [len(image) for image in encoded.images] == encoded.num_tiles
    assert all(image.dtype == torch.uint8 for image in encoded.images)
    cut = InternVLXDataCollator(processor)([encoded])
    assert torch.equal(cut["pixel_values"], whole["pixel_values"])
    monkeypatch.setattr(encoding, "MAX_WHOLE_PIXELS", 90 * 60 + 50 * 40)
    assert encoded.images[0].ndim - InternVLXDataCollator(processor).encoder(sample).images[0].ndim == 1


def test_a_meta_file_sets_the_smallest_and_largest_number_of_tiles(folder, processor):
    (folder / "data.jsonl").write_text(with_image("whole.png"))
    for setting, tiles in (({"min_dynamic_patch": 2, "max_dynamic_patch": 2}, 3), ({"max_dynamic_patch": 1}, 1)):
        entry = {"annotation": str(folder / "data.jsonl"), "root": str(folder)} | setting
        write_json(folder / "meta.json", {"one": entry})
        data = load_training_data(folder / "meta.json", processor)
        assert data[0].num_tiles == [tiles]
        names = {"min_dynamic_patch": "min_patches", "max_dynamic_patch": "max_patches"}
        assert data.parts[0].images_kwargs == {names[name]: value for name, value in setting.items()}


def test_a_record_has_limits_of_its_own_which_a_meta_file_overrides():
    record = {"messages": [], "images_kwargs": {"max_patches": 2, "min_patches": None}}
    assert sample_from_record(record)["images_kwargs"] == {"max_patches": 2}
    assert sample_from_record(record, images_kwargs={"max_patches": 4})["images_kwargs"] == {"max_patches": 4}
    for given, said in (
        (3, "images_kwargs=3 … an object with min_patches or max_patches"),
        ({"max_patches": 0}, "max_patches=0 … a whole number from 1"),
        ({"slicing": "edge"}, "slicing='edge' for its images … only min_patches and max_patches"),
    ):
        with refused(said):
            sample_from_record({"messages": [], "images_kwargs": given})


@pytest.mark.parametrize(
    ("turn", "keys", "value", "remedy"),
    [
        (1, {"weight": 0}, "turn 1 (gpt) has weight=0", "1: every answer carries loss"),
        (1, {"loss": False}, "loss=False", "1"),
        (0, {"weight": 0.5}, "weight=0.5", "0: only answers"),
        (1, {"tool_calls": [{"name": "search"}]}, "turn 1 (gpt) has tool_calls=", "only from and value"),
        (0, {"image": "whole.png"}, "image='whole.png'", "only from and value"),
    ],
)
def test_a_turn_that_asks_for_what_training_does_not_do_is_refused(turn, keys, value, remedy):
    turns = [dict(each) for each in GOOD["conversations"]]
    turns[turn] |= keys
    with refused(value, remedy):
        sample_from_record({"conversations": turns})


def test_a_turn_may_have_notes_and_the_loss_that_it_gets_anyway():
    notes = {"id": 7, "model": "x", "tool_calls": [], "text": None}
    turns = [each | notes | {"weight": float(each["from"] == "gpt")} for each in GOOD["conversations"]]
    assert sample_from_record({"conversations": turns}) == sample_from_record(GOOD)
