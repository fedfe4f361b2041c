"""Loading training data: InternVL's meta files, LLaVA's JSON, `datasets`; what is broken; costs and batches of like cost."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch.utils.data import BatchSampler, DataLoader
from transformers import Trainer, TrainingArguments

from internvlx_hf.data import datasets as datasets_module
from internvlx_hf.data.datasets import Part
from internvlx_hf.data.records import JsonArray, JsonLines
from internvlx_hf.data.sizes import SampleSizes, fingerprint, tile_cost
from internvlx_hf.training import (
    CostGroupedSampler,
    InternVLXDataCollator,
    TrainingData,
    load_training_data,
    measure_sizes,
)
from tiny import LVTC, TILE, tiny_config, tiny_model, tiny_processor

CONFIG = tiny_config(**LVTC)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(CONFIG)


def save_picture(path, width=TILE, height=TILE, seed=0, **kwargs):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **kwargs)
    return path.name


def record(number, image=None, question="What?", answer=None):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer or f"Number {number}."}]
    return {"id": number, "conversations": turns} | ({"image": image} if image else {})


def write_lines(path, records):
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def answers(processor, samples):
    """What each sample learns to say."""
    texts = [processor.tokenizer.decode(sample.labels[sample.labels != -100]) for sample in samples]
    return [text.removesuffix("<|im_end|>") for text in texts]


def numbers(processor, samples):
    return [int(answer.removeprefix("Number ").removesuffix(".")) for answer in answers(processor, samples)]


@pytest.fixture
def annotations(tmp_path):
    """Ten records, every second with a picture; record i has i % 4 + 1 tiles high ones."""
    records = []
    for i in range(10):
        image = save_picture(tmp_path / f"{i}.png", TILE, TILE * (i % 4 + 1), seed=i) if i % 2 else None
        records.append(record(i, image))
    return write_lines(tmp_path / "annotations.jsonl", records)


# ---- Kinds of sources


def test_internvl_s_meta_file_gives_each_dataset_s_records_as_often_as_it_says(processor, tmp_path, annotations):
    (tmp_path / "pictures").mkdir()
    save_picture(tmp_path / "pictures" / "wide.png", 6 * TILE)
    write_lines(tmp_path / "wide.jsonl", [record(100 + i, "wide.png") for i in range(4)])
    meta = {
        "half": {"root": str(tmp_path), "annotation": str(annotations), "repeat_time": 0.5, "length": 10},
        "wide": {"root": "pictures", "annotation": "wide.jsonl", "repeat_time": 2.25, "max_dynamic_patch": 2},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
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
    (tmp_path / "meta.json").write_text(json.dumps({"a": entry, "b": entry | {"max_dynamic_patch": 1}, "c": entry}))
    data = load_training_data(tmp_path / "meta.json", processor)
    assert [data[i].num_tiles for i in range(3)] == [[7], [1], [7]]
    collator = InternVLXDataCollator(processor)
    together = collator([data[i] for i in range(3)])["pixel_values"]
    apart = torch.cat([collator([data[i]])["pixel_values"] for i in range(3)])
    assert torch.equal(together, apart)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"annotation": None}, "expected settings with an `annotation` file"),
        ({"conv_style": "x"}, "sets 'conv_style', which is unknown here"),
        ({"data_augment": True}, "sets data_augment=True, but images are not augmented"),
        ({"repeat_time": -1}, "sets repeat_time=-1, expected a number from 0 on"),
        ({"max_dynamic_patch": 0}, "asks for max_patches=0, expected a positive number"),
        ({"media_type": "video"}, "sets media_type='video'"),
        ({"annotation": "a.csv"}, r"has the annotation 'a\.csv', which does not exist"),
        ({"annotation": __file__}, r"test_loading\.py is no file of annotations"),
        ({"root": 3}, r"has the root 3, expected a folder"),
    ],
)
def test_a_wrong_meta_file_is_refused_by_the_dataset_s_name(processor, tmp_path, annotations, settings, error):
    meta = {"coco": {"root": "", "annotation": str(annotations), "data_augment": False} | settings}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=error):
        load_training_data(tmp_path / "meta.json", processor)


def test_llava_s_json_is_read_record_by_record(processor, tmp_path, annotations):
    records = [json.loads(line) for line in annotations.read_text().splitlines()]
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
    with pytest.raises(ValueError, match=r"f\.json, line 2: Expecting value"):
        JsonArray(tmp_path / "f.json")


@pytest.fixture
def rows(tmp_path, annotations):
    """The ten records as a `datasets.Dataset` of messages and images."""
    import datasets

    read = []
    for line in annotations.read_text().splitlines():
        one = json.loads(line)
        question, answer = (turn["value"] for turn in one["conversations"])
        image = [{"bytes": (tmp_path / one["image"]).read_bytes(), "path": None}] if "image" in one else []
        parts = [{"type": "image", "text": None}] * len(image) + [{"type": "text", "text": question}]
        messages = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        read.append({"messages": messages, "images": image})
    features = datasets.Dataset.from_list(read).features
    return datasets.Dataset.from_list(
        read, features=datasets.Features(features | {"images": datasets.List(datasets.Image())})
    )


def test_datasets_of_messages_and_images_give_the_same_samples_from_memory_disk_and_parquet(
    processor, tmp_path, annotations, rows
):
    lines = load_training_data(annotations, processor)
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train-0.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for source in (rows, str(tmp_path / "parquet"), tmp_path / "saved", rows.with_transform(lambda batch: batch)):
        data = load_training_data(source, processor)
        assert isinstance(data, TrainingData)
        assert numbers(processor, data) == list(range(10))
        assert [sample.num_tiles for sample in data] == [sample.num_tiles for sample in lines]
        for name, tensor in InternVLXDataCollator(processor)([data[i] for i in range(10)]).items():
            assert torch.equal(tensor, InternVLXDataCollator(processor)([lines[i] for i in range(10)])[name])


@pytest.mark.parametrize(
    ("source", "error"),
    [(7, "is a int, expected a path"), ([], "nothing to train on"), ({"train": []}, "is a dict, expected a path")],
)
def test_what_is_no_training_data_is_refused(processor, source, error):
    with pytest.raises(ValueError, match=error):
        load_training_data(source, processor)
    for nowhere in ("nowhere.jsonl", "./nowhere", "data/mine/train", "/nowhere"):  # and nobody's id on the Hub
        with pytest.raises(
            FileNotFoundError, match=f"There is no {nowhere}, expected a file of annotations or a folder"
        ):
            load_training_data(nowhere, processor)


# ---- Broken samples


BROKEN = {
    "a missing file": (record(1, "nowhere.png"), "nowhere.png' does not exist"),
    "a truncated image": (record(1, "half.png"), r"half\.png.* is corrupt or truncated"),
    "two marks, one image": (record(1, "0.png", "<image><image>"), "1 images and the marks <image> 2 times"),
    "a mark, no image": (record(1, None, "<image>"), "0 images and the marks <image> 1 times"),
    "an unknown speaker": ({"conversations": [{"from": "robot", "value": "x"}]}, "from 'robot', expected human"),
    "an image token": (record(1, None, "<IMG_CONTEXT>"), "holds the image token '<IMG_CONTEXT>'"),
    "an empty answer": (record(1, None, answer="  "), "is empty, expected an answer"),
    "no answer": ({"conversations": [{"from": "human", "value": "x"}]}, "no turn of the assistant"),
    "a video": (record(1) | {"video": "x.mp4"}, "it has video='x.mp4', expected images only"),
    "no object": (["x"], r"it is \['x'\], expected a JSON object"),
    "other keys": ({"text": "x"}, "it has the keys text, expected `messages` or `conversations`"),
    "bad JSON": ('{"conversations": [', "Expecting value|Expecting"),
    "bad UTF-8": (b'{"conversations": "\xff"}', "codec can't decode"),
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
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 2: .*({error})"):
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


@pytest.fixture
def warnings_of():
    """A context that collects a logger's warnings: transformers' loggers do not propagate."""
    import contextlib
    import logging

    @contextlib.contextmanager
    def collect(name):
        messages = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda entry: messages.append(entry.getMessage())
        logging.getLogger(name).addHandler(handler)
        try:
            yield messages
        finally:
            logging.getLogger(name).removeHandler(handler)

    return collect


def test_what_workers_skip_is_counted_where_the_data_was_made(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [record(i, answer=" " if i % 3 == 1 else None) for i in range(12)])
    data = load_training_data(tmp_path / "a.jsonl", processor, on_broken="skip")
    loader = DataLoader(data, batch_size=3, num_workers=2, collate_fn=InternVLXDataCollator(processor))
    assert sum(len(batch["input_ids"]) for batch in loader) == 12
    assert data.counts["broken"] == 4


def test_where_a_good_sample_is_costs_nothing(processor, annotations, tmp_path, monkeypatch):
    """To count the lines of a file that is one list, all before the record has to be read: only for a message."""
    records = [json.loads(line) for line in annotations.read_text().splitlines()]
    (tmp_path / "list.json").write_text(json.dumps(records))
    monkeypatch.delattr(JsonArray, "place")
    assert len(load_training_data(tmp_path / "list.json", processor)[0]) > 0
    assert len(list(load_training_data(tmp_path / "list.json", processor, streaming=True))) == 10


def test_an_error_in_a_worker_still_names_file_and_line(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [record(0), record(1, answer=" ")])
    loader = DataLoader(
        load_training_data(tmp_path / "a.jsonl", processor), num_workers=1, collate_fn=InternVLXDataCollator(processor)
    )
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: turn 1 \(assistant\) is empty"):
        list(loader)


def test_data_of_which_nothing_can_be_read_is_refused_instead_of_searched_through(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [record(i, "lost.png") for i in range(150)])
    data = load_training_data(tmp_path / "a.jsonl", processor, on_broken="skip")
    with pytest.raises(ValueError, match=r"None of the samples from .*line 6 on .*folder of the images right"):
        data[5]
    assert data.counts["broken"] == 100
    with pytest.raises(ValueError, match="folder of the images right"):
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


# ---- Streaming


def stream_of(processor, annotations, rows, kind, **kwargs):
    if kind == "file":
        return load_training_data(annotations, processor, streaming=True, **kwargs)
    return load_training_data(rows.to_iterable_dataset(num_shards=5), processor, **kwargs)


@pytest.mark.parametrize("kind", ["file", "datasets"])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (3, 1)])
def test_each_sample_is_streamed_once_over_all_ranks_and_workers(processor, annotations, rows, kind, ranks, workers):
    stream = stream_of(processor, annotations, rows, kind)
    epochs = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        seen = []
        for rank in range(ranks):
            loader = DataLoader(stream.shard(ranks, rank), batch_size=2, num_workers=workers, collate_fn=list)
            seen += [number for batch in loader for number in numbers(processor, batch)]
        assert sorted(seen) == list(range(10))
        epochs.append(seen)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("kind", ["file", "datasets"])
def test_the_trainer_s_own_split_of_a_stream_shares_out_every_sample(processor, annotations, rows, kind):
    """What a plain `Trainer` does in two processes: each takes its share of the whole stream, the last batch filled up."""
    from accelerate.data_loader import IterableDatasetShard

    seen = []
    for rank in range(2):
        stream = IterableDatasetShard(
            stream_of(processor, annotations, rows, kind), 2, num_processes=2, process_index=rank
        )
        seen += numbers(processor, stream)
    assert len(seen) == 12
    assert set(seen) == set(range(10))


@pytest.mark.parametrize("kind", ["file", "datasets"])
def test_a_stream_comes_in_the_same_order_again(processor, annotations, rows, kind):
    first, second = (numbers(processor, stream_of(processor, annotations, rows, kind)) for _ in range(2))
    assert first == second
    other = numbers(processor, stream_of(processor, annotations, rows, kind, seed=1))
    assert first != other


@pytest.mark.parametrize("kind", ["file", "datasets"])
def test_an_endless_stream_goes_on_with_the_next_epoch(processor, annotations, rows, kind):
    stream = iter(stream_of(processor, annotations, rows, kind, endless=True))
    seen = numbers(processor, [next(stream) for _ in range(30)])
    assert [sorted(seen[start : start + 10]) for start in (0, 10, 20)] == [list(range(10))] * 3
    once = stream_of(processor, annotations, rows, kind)
    once.set_epoch(1)
    assert seen[10:20] == numbers(processor, once)


@pytest.mark.parametrize("kind", ["file", "datasets"])
def test_shards_of_shards_share_out_every_sample(processor, annotations, rows, kind):
    stream = stream_of(processor, annotations, rows, kind)
    shards = [stream.shard(2, outer).shard(2, inner) for outer in range(2) for inner in range(2)]
    assert sorted(number for shard in shards for number in numbers(processor, shard)) == list(range(10))


def test_a_stream_ends_for_broken_samples_in_a_row_only(processor, annotations, monkeypatch):
    stream = load_training_data(annotations, processor, streaming=True)
    monkeypatch.setattr(datasets_module, "MOST_BROKEN_IN_A_ROW", 3)
    good = next(iter(stream))
    for pattern, ends in (("x..x..x..x", False), ("x..x...x", True)):
        samples = [(good if sign == "x" else None, lambda: "here") for sign in pattern]
        monkeypatch.setattr(stream.source, "epoch", lambda *_, samples=samples: iter(samples))
        if ends:
            with pytest.raises(ValueError, match="None of the samples from here on"):
                list(stream)
        else:
            assert len(list(stream)) == pattern.count("x")


def test_a_stream_has_no_shard_beyond_its_last(processor, annotations):
    stream = load_training_data(annotations, processor, streaming=True)
    with pytest.raises(ValueError, match="index=2 of num_shards=2"):
        stream.shard(2, 2)


# ---- Training and resuming


def trained(processor, data, folder, *, resume=None, sampler=None, **kwargs):
    class WithSampler(Trainer):
        def _get_train_sampler(self, *args):
            return sampler or super()._get_train_sampler(*args)

    settings = {
        "output_dir": str(folder),
        "max_steps": 7,
        "save_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "accelerator_config": {"dispatch_batches": False},  # or accelerate would cut streamed batches up
        **kwargs,
    }
    trainer = WithSampler(
        tiny_model(seed=1 if resume else 0, **LVTC).train(),
        TrainingArguments(**settings),
        train_dataset=data,
        data_collator=InternVLXDataCollator(processor),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model.state_dict()


@pytest.mark.parametrize("kind", ["random", "grouped", "streaming"])
def test_resuming_gives_the_same_weights_also_with_broken_samples(processor, tmp_path, kind):
    """Bit for bit: the same samples come again in the same order, what is skipped is replaced by the same others."""
    for i in range(10):
        save_picture(tmp_path / f"{i}.png", TILE, TILE * (i % 3 + 1), seed=i)
    records = [record(i, f"{i}.png", answer=" " if i in (2, 3, 7) else None) for i in range(10)]
    path = write_lines(tmp_path / "a.jsonl", records)

    def fresh():
        data = load_training_data(path, processor, on_broken="skip", streaming=kind == "streaming")
        if kind != "grouped":
            return {"data": data}
        sizes = measure_sizes(data)
        return {"data": data, "sampler": CostGroupedSampler(sizes.costs(CONFIG), batch_size=2)}

    whole = trained(processor, folder=tmp_path / "run", **fresh())
    resumed = trained(processor, folder=tmp_path / "run", **fresh(), resume=str(tmp_path / "run" / "checkpoint-4"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], tensor) for name, tensor in tiny_model(**LVTC).state_dict().items())


# ---- Costs


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
@pytest.mark.parametrize("upright", [True, False])
def test_sizes_from_headers_are_what_encoding_gives(tmp_path, orientation, suffix, upright):
    """Five tiles high, one wide, and stored in any orientation: it must count as the image processor will see it."""
    processor = tiny_processor(CONFIG, do_exif_transpose=upright, max_patches=5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    name = save_picture(tmp_path / f"a.{suffix}", 5 * TILE, 2 * TILE, exif=exif)
    data = load_training_data(write_lines(tmp_path / "a.jsonl", [record(0, name), record(1)]), processor)
    sizes = measure_sizes(data)
    assert sizes.tokens.tolist() == [len(data[0]), len(data[1])]
    assert sizes.tiles.tolist() == [sum(data[0].num_tiles), 0]
    tiles = InternVLXDataCollator(processor)([data[0]])["pixel_values"]
    assert len(tiles) == sizes.tiles[0]


def test_an_orientation_behind_the_pixels_of_a_png_counts_too(processor, tmp_path):
    """Pillow finds it when it decodes the image; measuring must not miss it, nor decode images that have none."""
    plain, late = tmp_path / "plain.png", tmp_path / "late.png"
    save_picture(plain, 5 * TILE, 2 * TILE)
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = exif.tobytes().removeprefix(b"Exif\0\0")
    data, end = plain.read_bytes(), plain.read_bytes().rindex(b"IEND") - 4
    with open(late, "wb") as file:
        file.write(data[:end])
        PngImagePlugin.putchunk(file, b"eXIf", chunk)
        file.write(data[end:])
    lines = write_lines(tmp_path / "a.jsonl", [record(0, "plain.png"), record(1, "late.png")])
    data = load_training_data(lines, processor)
    measured = [data.encode(i, decode=False) for i in range(2)]
    assert [sample.num_tiles for sample in measured] == [data[i].num_tiles for i in range(2)]
    assert measured[0].images[0].tile  # not decoded
    upright = [processor.image_processor(path, return_tensors="pt").pixel_values for path in (plain, late)]
    collate = InternVLXDataCollator(processor)
    assert all(torch.equal(collate([data[i]])["pixel_values"], upright[i]) for i in range(2))
    assert not torch.equal(*upright)


def test_sizes_are_measured_by_workers_kept_and_measured_anew_when_something_changes(processor, tmp_path, annotations):
    data = load_training_data(annotations, processor)
    sizes = measure_sizes(data)
    assert sizes.tokens.tolist() == [len(sample) for sample in data]
    by_workers = measure_sizes(data, num_workers=2, cache=tmp_path / "cache")
    np.testing.assert_array_equal(by_workers.tokens, sizes.tokens)
    (kept,) = (tmp_path / "cache").iterdir()
    np.save(kept, np.stack([sizes.tokens + 1, sizes.tiles]))
    np.testing.assert_array_equal(measure_sizes(data, cache=tmp_path / "cache").tokens, sizes.tokens + 1)

    others = [load_training_data(annotations, processor, max_length=30)]
    others.append(load_training_data(annotations, tiny_processor(CONFIG, max_patches=2)))
    keys = {fingerprint(data), *map(fingerprint, others)}
    os.utime(annotations, ns=(0, 0))
    keys.add(fingerprint(load_training_data(annotations, processor)))
    assert len(keys) == 4
    assert fingerprint(load_training_data([data.raw(0)], processor)) is None


def test_a_sample_that_was_skipped_is_measured_again_and_found_where_its_image_came_meanwhile(
    processor, tmp_path, warnings_of
):
    """A download that was incomplete at the first try must not stay so for ever."""
    write_lines(tmp_path / "a.jsonl", [record(0), record(1, "late.png"), record(2, "never.png")])
    data = load_training_data(tmp_path / "a.jsonl", processor, on_broken="skip")
    assert (measure_sizes(data, cache=tmp_path / "cache").tokens > 0).tolist() == [True, False, False]
    save_picture(tmp_path / "late.png")
    others = measure_sizes(data, cache=tmp_path / "cache", again=False)  # processes beside the first
    assert (others.tokens > 0).tolist() == [True, False, False]
    with warnings_of("internvlx_hf.data.encoding") as warned:
        found = measure_sizes(data, cache=tmp_path / "cache")
    assert (found.tokens > 0).tolist() == [True, True, False]
    assert found.tiles.tolist() == [0, 1, 0]
    assert ["line 3" in message for message in warned] == [True]
    kept = measure_sizes(data, cache=tmp_path / "cache", again=False)
    np.testing.assert_array_equal(kept.tokens, found.tokens)


def test_costs_count_both_stages_and_the_tiles():
    """Stage one is two of four layers at 4 tokens a tile, stage two two of four at 16."""
    sizes = SampleSizes(np.array([10, 14, 22]), np.array([0, 1, 3]))
    assert sizes.stage_two_tokens(CONFIG).tolist() == [10, 26, 58]
    np.testing.assert_allclose(sizes.costs(CONFIG) - sizes.tiles * tile_cost(CONFIG), [10, 20, 40])
    plain = tiny_config()
    np.testing.assert_allclose(sizes.costs(plain) - sizes.tiles * tile_cost(plain), sizes.tokens)


def test_skipped_samples_measure_nothing(processor, tmp_path):
    write_lines(tmp_path / "a.jsonl", [record(0), record(1, answer=" ")])
    data = load_training_data(tmp_path / "a.jsonl", processor, on_broken="skip")
    assert (measure_sizes(data).tokens > 0).tolist() == [True, False]


# ---- Batches of like cost


def padding(lengths, batches):
    """The share of a batch's tokens that is padding, over all batches."""
    room = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / room


def mixed_sizes(samples=2000):
    """Chats without images, one picture of 1 to 7 tiles of 256 tokens, several pages."""
    generator = np.random.default_rng(0)
    kind = generator.choice(3, samples, p=[0.3, 0.6, 0.1])
    tiles = np.where(kind == 0, 0, np.where(kind == 1, generator.choice([1, 3, 5, 7], samples), 12))
    text = generator.lognormal(4.8, 0.9, samples).astype(int) + 30
    return SampleSizes(text + tiles * 256, tiles)


def test_batches_of_like_cost_have_a_tenth_of_padding_where_random_ones_have_a_third():
    sizes = mixed_sizes()
    config = tiny_config()
    grouped = BatchSampler(CostGroupedSampler(sizes.costs(config), 8), 8, drop_last=False)
    random = BatchSampler(torch.randperm(2000, generator=torch.Generator().manual_seed(0)).tolist(), 8, False)
    assert padding(sizes.tokens, random) >= 0.3
    assert padding(sizes.tokens, grouped) <= 0.1


def test_grouped_batches_hold_every_sample_once_and_follow_seed_and_epoch_alone():
    costs = np.random.default_rng(0).integers(1, 1000, 1003)
    sampler = CostGroupedSampler(costs, 4)
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = CostGroupedSampler(costs, 4, seed)
            sampler.set_epoch(epoch)
            torch.manual_seed(epoch)
            orders[seed, epoch] = tuple(sampler)
            assert sorted(sampler) == list(range(1003))
            assert tuple(sampler) == orders[seed, epoch]
    assert len(set(orders.values())) == 4
    # the batches come shuffled: their costs neither fall nor rise along the epoch
    means = costs[np.array(orders[0, 0][:1000])].reshape(-1, 4).mean(1)
    assert abs(np.corrcoef(means, np.arange(250))[0, 1]) < 0.2


def test_ranks_get_batches_of_like_cost_at_a_time():
    from accelerate.data_loader import BatchSamplerShard

    costs = np.random.default_rng(0).integers(1, 1000, 960)
    ranks = []
    for rank in range(2):
        sampler = CostGroupedSampler(costs, 4 * 2)
        ranks.append(list(BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), 2, rank)))
    assert sorted(index for batches in ranks for batch in batches for index in batch) == list(range(960))
    means = np.array([[costs[batch].mean() for batch in batches] for batches in ranks])
    assert np.abs(means[0] - means[1]).mean() < 0.1 * np.abs(means[0][:, None] - means[1]).mean()


@pytest.mark.parametrize(
    ("costs", "batch_size", "error"), [([], 2, "costs is empty"), ([1], 0, "batch_size=0, expected a positive")]
)
def test_a_sampler_without_samples_or_batches_is_refused(costs, batch_size, error):
    with pytest.raises(ValueError, match=error):
        CostGroupedSampler(costs, batch_size)


@pytest.mark.parametrize(("repeat", "expected"), [(0.3, 3), (0.25, 2), (1.3, 12), (2.0, 18)])
def test_a_part_that_counts_a_fraction_is_rounded_to_the_nearest_record(repeat, expected):
    chosen = Part(range(9), repeat=repeat).chosen(np.random.default_rng(0))
    assert len(chosen) == expected
    counts = np.bincount(chosen, minlength=9)
    assert set(counts) <= {int(repeat), int(repeat) + 1}


def test_what_fills_no_batch_is_the_cheapest_of_its_group():
    """So the dearest samples always share a batch."""
    order = list(CostGroupedSampler(np.arange(10), 4, seed=3))
    assert order[-2:] == [1, 0]
    assert [sorted(order[:4]), sorted(order[4:8])] in ([[2, 3, 4, 5], [6, 7, 8, 9]], [[6, 7, 8, 9], [2, 3, 4, 5]])
