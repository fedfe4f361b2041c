"""Loading training data: InternVL's meta files, LLaVA's JSON, `datasets`; what is broken; costs and batches of like cost."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from conversion_helpers import require_same_tensors
from data_cases import answers, numbers, record, save_picture, write_lines
from internvlx_hf.data import datasets
from internvlx_hf.data.datasets import RecordSet
from internvlx_hf.data.records import JsonArray, JsonLines
from internvlx_hf.training import (
    InternVLXDataCollator,
    TrainingData,
    load_training_data,
)
from json_files import lines_of, write_json
from refusals import refused
from tiny import TILE

# ---- Kinds of sources


def test_internvl_s_meta_file_gives_each_dataset_s_records_as_often_as_it_says(processor, tmp_path, annotations):
    (tmp_path / "pictures").mkdir()
    save_picture(tmp_path / "pictures" / "wide.png", 6 * TILE)
    write_lines(tmp_path / "wide.jsonl", [record(100 + i, "wide.png") for i in range(4)])
    meta = {
        "half": {"root": str(tmp_path), "annotation": str(annotations), "repeat_time": 0.5, "length": 10},
        "wide": {"root": "pictures", "annotation": "wide.jsonl", "repeat_time": 2.25, "max_dynamic_patch": 2},
    }
    write_json(tmp_path / "meta.json", meta)
    data = load_training_data(tmp_path / "meta.json", processor)
    seen = numbers(processor, data)
    half, wide = seen[:5], seen[5:]
    assert len(set(half)) == 5
    assert set(half) < set(range(10))
    assert sorted(wide)[:8] == sorted([100, 101, 102, 103] * 2 + wide[8:])[:8]
    assert len(wide) == 9
    assert [data[i].num_tiles for i in range(5, 14)] == [[3]] * 9  # 2 and the thumbnail; 7 without the setting
    again = load_training_data(tmp_path / "meta.json", processor)
    assert numbers(processor, again) == seen
    assert numbers(processor, load_training_data(tmp_path / "meta.json", processor, seed=1)) != seen


def test_samples_with_settings_of_their_own_can_share_a_batch(processor, tmp_path):
    save_picture(tmp_path / "wide.png", 6 * TILE)
    write_lines(tmp_path / "a.jsonl", [record(0, "wide.png")])
    entry = {"root": str(tmp_path), "annotation": str(tmp_path / "a.jsonl")}
    write_json(tmp_path / "meta.json", {"a": entry, "b": entry | {"max_dynamic_patch": 1}, "c": entry})
    samples = list(load_training_data(tmp_path / "meta.json", processor))
    assert [sample.num_tiles for sample in samples] == [[7], [1], [7]]
    together, *apart = (
        InternVLXDataCollator(processor)(batch)["pixel_values"] for batch in (samples, *([each] for each in samples))
    )
    assert torch.equal(together, torch.cat(apart))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"annotation": None}, "expected settings with an `annotation` file"),
        ({"conv_style": "x"}, "sets 'conv_style', which is unknown here"),
        ({"data_augment": True}, "sets data_augment=True, but images are not augmented"),
        ({"repeat_time": -1}, "sets repeat_time=-1 … a number of at least 0"),
        ({"max_dynamic_patch": 0}, "sets max_patches=0 … a whole number from 1"),
        ({"media_type": "audio"}, "sets media_type='audio'"),
        ({"annotation": "a.csv"}, "has the annotation 'a.csv', which does not exist"),
        ({"annotation": __file__}, "test_loading.py is not a file of annotations"),
        ({"root": 3}, "has the root 3 … a folder"),
    ],
)
def test_a_wrong_meta_file_is_refused_by_the_dataset_s_name(processor, tmp_path, annotations, settings, said):
    write_json(tmp_path / "meta.json", {"coco": {"root": "", "annotation": str(annotations), **settings}})
    with refused(said):
        load_training_data(tmp_path / "meta.json", processor)


def test_llava_s_json_is_read_record_by_record(processor, tmp_path, annotations):
    records = lines_of(annotations)
    records[3]["conversations"][1]["value"] = 'Ünï\\"]}, {"\n第三'
    (tmp_path / "llava.json").write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    data = load_training_data(tmp_path / "llava.json", processor, image_root=tmp_path)
    lines = load_training_data(write_lines(annotations, records), processor)
    assert len(data) == 10
    assert answers(processor, data) == answers(processor, lines)
    assert [data.raw(i)["images"] for i in range(10)] == [lines.raw(i)["images"] for i in range(10)]
    lines_of_file = (tmp_path / "llava.json").read_text(encoding="utf-8").split("\n")
    begins = lines_of_file.index('  "id": 3,')  # the line after the record's brace, counted from 0
    assert data.place(3).endswith(f"llava.json, record 3 (line {begins})")


def test_records_are_read_from_their_place_in_the_file(tmp_path):
    """What the two files of records keep is where each record is; blank lines, CRLF and a missing last newline aside."""
    values = [{"text": "ä" * 5}, {}, [1, [2]], "x\n", {"a": {"b": "}"}}]
    lines = "\r\n\r\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    for name, text in {"a.jsonl": lines, "b.jsonl": lines.replace("\r", "") + "\n", "c.jsonl": "\n\n" + lines}.items():
        (tmp_path / name).write_bytes(text.encode())
        read = JsonLines(tmp_path / name)
        assert [read[i] for i in range(len(read))] == values
    assert read.place(1).endswith("c.jsonl, line 5")
    for indent in (None, 2):
        (tmp_path / "d.json").write_text("\ufeff " + json.dumps(values, ensure_ascii=False, indent=indent) + "\n")
        read = JsonArray(tmp_path / "d.json")
        assert [read[i] for i in range(len(read))] == values
    (tmp_path / "e.json").write_text("[]")
    assert len(JsonArray(tmp_path / "e.json")) == 0
    (tmp_path / "f.json").write_text('[{"a": 1},\n {"a": }]')
    with refused("f.json, line 2: Expecting value"):
        JsonArray(tmp_path / "f.json")


def test_datasets_of_messages_and_images_give_the_same_samples_from_memory_disk_and_parquet(
    processor, tmp_path, annotations, rows
):
    collator, lines = InternVLXDataCollator(processor), list(load_training_data(annotations, processor))
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train-0.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for source in (rows, str(tmp_path / "parquet"), tmp_path / "saved", rows.with_transform(lambda batch: batch)):
        data = load_training_data(source, processor)
        assert isinstance(data, TrainingData)
        assert numbers(processor, data) == list(range(10))
        assert [sample.num_tiles for sample in data] == [sample.num_tiles for sample in lines]
        require_same_tensors(collator(list(data)), collator(lines))
    stream = load_training_data(tmp_path / "saved", processor, streaming=True)
    assert sorted(numbers(processor, stream)) == list(range(10))


@pytest.mark.parametrize(
    ("source", "said"),
    [(7, "is a int … a path"), ([], "nothing to train on"), ({"train": []}, "is a dict … a path")]
    # and nobody's id on the Hub
    + [
        (nowhere, f"{nowhere} does not exist … a file of annotations or a folder")
        for nowhere in ("nowhere.jsonl", "./nowhere", "data/mine/train", "/nowhere")
    ],
)
def test_what_is_no_training_data_is_refused(processor, source, said):
    with refused(said, by=(ValueError, FileNotFoundError)):
        load_training_data(source, processor)


# ---- Broken samples


BROKEN = {
    "a missing file": (record(1, "nowhere.png"), "nowhere.png' does not exist"),
    "a truncated image": (record(1, "half.png"), "half.png … is corrupt or truncated"),
    "two marks, one image": (record(1, "0.png", "<image><image>"), "1 images and the marks <image> 2 times"),
    "a mark, no image": (record(1, None, "<image>"), "0 images and the marks <image> 1 times"),
    "an unknown speaker": ({"conversations": [{"from": "robot", "value": "x"}]}, "from 'robot' … human"),
    "an image token": (record(1, None, "<IMG_CONTEXT>"), "holds the image token '<IMG_CONTEXT>'"),
    "an empty answer": (record(1, None, answer="  "), "is empty … an answer"),
    "no answer": ({"conversations": [{"from": "human", "value": "x"}]}, "no turn of the assistant"),
    "a video": (record(1) | {"video": "x.mp4"}, "x.mp4' does not exist"),
    "no object": (["x"], "it is ['x'] … a JSON object"),
    "other keys": ({"text": "x"}, "it has the keys text … `messages` or `conversations`"),
    "two conversations": (
        record(1) | {"messages": [{"role": "user", "content": "x"}]},
        "both `messages` and `conversations`",
    ),
    "bad JSON": ('{"conversations": [', "Expecting value"),
    "bad UTF-8": (b'{"conversations": "\xff"}', "codec can't decode"),
    "deeply nested": ('{"conversations": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply"),
    "a huge number": ('{"conversations": ' + "9" * 10_000 + "}", ""),
    "half a character": ('{"conversations": "\\ud800"}', ""),
    "bytes that are none": (record(1, {"bytes": "text"}), ""),
    "infinity": (record(1, {"bytes": float("inf")}), ""),
    **{
        f"an image {name!r}": (record(1, name), "")
        for name in (
            "http://[::1",
            "http:///x.png",
            "http://\udc80/x.png",
            "http://host:port/x.png",
            "no\0ne.png",
            ".",
        )
    },
}


@pytest.fixture(params=BROKEN)
def broken(request, tmp_path):
    """A file of three records whose second is broken, and what is wrong with it."""
    bad, error = BROKEN[request.param]
    save_picture(tmp_path / "0.png")
    save_picture(tmp_path / "half.png", 100, 100)
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:-9000])
    bad = bad if isinstance(bad, bytes) else (bad if isinstance(bad, str) else json.dumps(bad)).encode()
    lines = [json.dumps(record(0, "0.png")).encode(), bad, json.dumps(record(2)).encode()]
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return tmp_path / "data.jsonl", error


def test_a_broken_sample_is_named_with_file_and_line(processor, broken):
    path, error = broken
    data = load_training_data(path, processor)
    with refused("data.jsonl, line 2:", error):
        data[1]
    assert numbers(processor, [data[0], data[2]]) == [0, 2]


def test_a_broken_sample_that_is_skipped_is_warned_of_counted_and_replaced_by_the_next(processor, broken, warnings_of):
    path, _ = broken
    data = load_training_data(path, processor, on_broken="skip")
    with warnings_of("internvlx_hf.data.encoding") as warnings:
        assert numbers(processor, data) == [0, 2, 2]
    assert len(warnings) == 1
    assert "data.jsonl, line 2: " in warnings[0]
    assert data.counts == {"broken": 1, "too_long": 0, "cut": 0}
    stream = load_training_data(path, processor, on_broken="skip", streaming=True)
    assert sorted(numbers(processor, stream)) == [0, 2]


def test_what_workers_skip_is_counted_where_the_data_was_made(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [record(i, answer=" " if i % 3 == 1 else None) for i in range(12)])
    data = load_training_data(tmp_path / "a.jsonl", processor, on_broken="skip")
    loader = DataLoader(data, batch_size=3, num_workers=2, collate_fn=InternVLXDataCollator(processor))
    assert sum(len(batch["input_ids"]) for batch in loader) == 12
    assert data.counts["broken"] == 4


def test_where_a_good_sample_is_costs_nothing(processor, annotations, tmp_path, monkeypatch):
    """To count the lines of a file that is one list, all before the record has to be read: only for a message."""
    records = lines_of(annotations)
    write_json(tmp_path / "list.json", records)
    monkeypatch.delattr(JsonArray, "place")
    assert len(load_training_data(tmp_path / "list.json", processor)[0]) > 0
    assert len(list(load_training_data(tmp_path / "list.json", processor, streaming=True))) == 10


def test_an_error_in_a_worker_still_names_file_and_line(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [record(0), record(1, answer=" ")])
    loader = DataLoader(
        load_training_data(tmp_path / "a.jsonl", processor), num_workers=1, collate_fn=InternVLXDataCollator(processor)
    )
    with refused("a.jsonl, line 2: turn 1 (assistant) is empty"):
        list(loader)


def test_data_of_which_nothing_can_be_read_is_refused_instead_of_searched_through(processor, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_BROKEN_IN_A_ROW", 10)
    write_lines(tmp_path / "a.jsonl", [record(i, "lost.png") for i in range(15)])
    data = load_training_data(tmp_path / "a.jsonl", processor, on_broken="skip")
    with refused("None of the samples from", "line 6 on", "folder of the images right"):
        data[5]
    assert data.counts["broken"] == 10
    with refused("folder of the images right"):
        next(iter(load_training_data(tmp_path / "a.jsonl", processor, on_broken="skip", streaming=True)))


@pytest.mark.parametrize(
    "part", [{"type": "image", "image": "a.png"}, {"type": "image", "path": "a.png"}, {"type": "image"}]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_relative_path_counts_from_the_image_s_folder_wherever_it_is_written(processor, tmp_path, part, streaming):
    (tmp_path / "images").mkdir()
    save_picture(tmp_path / "images" / "a.png", TILE, 2 * TILE)
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Number 7."},
    ]
    one = {"messages": messages} | ({} if len(part) > 1 else {"images": ["a.png"]})
    lines = write_lines(tmp_path / "a.jsonl", [one])
    data = load_training_data(lines, processor, image_root=tmp_path / "images", streaming=streaming)
    assert [sample.num_tiles for sample in data] == [[3]]


@pytest.mark.parametrize(("repeat", "expected"), [(0.3, 3), (0.25, 2), (1.3, 12), (2.0, 18)])
def test_a_part_that_counts_a_fraction_is_rounded_to_the_nearest_record(repeat, expected):
    chosen = RecordSet(range(9), repeat=repeat).chosen(np.random.default_rng(0))
    assert len(chosen) == expected
    counts = np.bincount(chosen, minlength=9)
    assert set(counts) <= {int(repeat), int(repeat) + 1}
