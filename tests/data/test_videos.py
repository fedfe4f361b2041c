"""Videos in training data: InternVL's JSONL and `videos` columns give what the processor gives, and broken ones are named."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from data_cases import write_lines
from internvlx_hf.data import InternVLXDataCollator, load_training_data
from internvlx_hf.data.encoding import SampleEncoder
from internvlx_hf.data.sizes import measure_sizes
from refusals import refused
from tiny import tiny_config, tiny_processor
from video_cases import frames_of, numbered_video

ANSWER = {"role": "assistant", "content": "A cat."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    (folder / "clip.mp4").write_bytes(numbered_video(12, size=(32, 32)))
    return folder


@pytest.fixture
def processor():
    processor = tiny_processor(tiny_config(), max_patches=2)
    processor.video_processor.num_frames = 3
    return processor


def jsonl(folder, *records):
    return write_lines(folder / "data.jsonl", records)


def said(question: str, **media) -> dict:
    return media | {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "A cat."}]}


def asked(question: str) -> list[dict]:
    return [{"role": "user", "content": question}, ANSWER]


def assert_as_the_processor(batch, processor, messages, **media):
    expected = processor.apply_chat_template(messages, **media, return_labels=True, return_tensors="pt")
    for name in ("input_ids", "labels", "pixel_values"):
        torch.testing.assert_close(batch[name], expected[name], rtol=0, atol=1e-6)
    return expected


@pytest.mark.parametrize("question", ["<video>\nWhat?", "Look: <video> What?", "What?"])
def test_internvls_records_give_what_the_processor_gives(question, folder, processor):
    data = load_training_data(jsonl(folder, said(question, video="clip.mp4")), processor)
    batch = InternVLXDataCollator(processor)([data[0]])
    assert_as_the_processor(batch, processor, asked(question), videos=[folder / "clip.mp4"])


def test_images_and_videos_share_a_sample(folder, processor):
    messages, image = asked("<video><image>What?<video>"), np.zeros((32, 70, 3), np.uint8)
    media = {"images": [image], "videos": [str(folder / "clip.mp4"), np.stack(frames_of("small"))]}
    sample = {"messages": messages, **media, "videos": [media["videos"][0], list(frames_of("small"))]}
    batch = InternVLXDataCollator(processor)([sample])
    assert len(assert_as_the_processor(batch, processor, messages, **media)["pixel_values"]) == 3 + 3 + 3


def test_parts_columns_and_bytes_hold_videos(folder, processor):
    path = folder / "clip.mp4"
    parts = [
        {"role": "user", "content": [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "What?"}]},
        ANSWER,
    ]
    expected = SampleEncoder(processor)({"messages": parts[:0] + asked("<video>\nWhat?"), "videos": [path]})
    records = [
        {"messages": parts},
        {"messages": asked("What?"), "video": "clip.mp4"},
        {"messages": asked("What?"), "videos": [{"bytes": path.read_bytes(), "path": None}]},
    ]
    data = load_training_data(records, processor, image_root=folder)
    for index in range(3):
        np.testing.assert_array_equal(data[index].input_ids, expected.input_ids)
        assert torch.equal(torch.cat(data[index].images), torch.cat(expected.images))
    column = Dataset.from_list([{"messages": asked("What?"), "videos": [str(path)]}])
    np.testing.assert_array_equal(load_training_data(column, processor)[0].input_ids, expected.input_ids)


def test_lengths_are_known_without_decoding_a_frame(folder, processor, monkeypatch):
    data = load_training_data(jsonl(folder, said("<video>\nWhat?", video="clip.mp4"), said("What?")), processor)
    lengths = [len(data[index]) for index in range(2)]
    monkeypatch.setattr("internvlx_hf.processing.video_files.FileVideo.frames", None)
    sizes = measure_sizes(data)
    assert sizes.tokens.tolist() == lengths
    assert sizes.tiles.tolist() == [3, 0]


def test_truncated_frames_are_not_decoded(folder, processor):
    messages = [*asked("What?"), {"role": "user", "content": "<video>And?"}, ANSWER]
    whole = SampleEncoder(processor)({"messages": messages, "videos": [folder / "clip.mp4"]})
    cut = SampleEncoder(processor, max_length=len(whole) - 20)({"messages": messages, "videos": [folder / "clip.mp4"]})
    assert (len(whole.images), cut.images, cut.was_cut) == (3, [], True)


def test_frames_take_one_tile_beside_images_that_share_theirs(folder, processor):
    image = np.zeros((32, 70, 3), np.uint8)
    sample = {"messages": asked("<image><image><video>?"), "images": [image] * 2, "videos": [folder / "clip.mp4"]}
    assert SampleEncoder(processor, share_tiles=True)(sample).num_tiles == [1, 1, 1, 1, 1]
    assert SampleEncoder(processor)(sample).num_tiles == [3, 3, 1, 1, 1]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (said("<video><video>?", video="clip.mp4"), "it has 1 videos and the marks <video> 2 times"),
        (said("<video>?"), "it has 0 videos and the marks <video> 1 times"),
        (said("?", video="absent.mp4"), "line 1: The video ' … absent.mp4' does not exist"),
        (said("?", video="data.jsonl"), "line 1: The video ' … data.jsonl' is text … a video file"),
        (said("?", video="clip.mp4", clip=[0, 1]), "it has clip=[0, 1] … a file of that part"),
        (said("?", video="clip.mp4", videos=["clip.mp4"]), "it has both `videos` and `video`"),
        (said("?", vidos=["clip.mp4"]), "it has vidos= … `videos`"),
    ],
)
def test_a_record_whose_videos_cannot_be_read_is_named(record, said, folder, processor):
    with refused(said):
        load_training_data(jsonl(folder, record), processor)[0]


def test_videos_of_other_levels_than_the_images_are_refused(folder, processor):
    processor.video_processor.image_mean = [0.0, 0.0, 0.0]
    with refused("the video processor has image_mean=[0.0, 0.0, 0.0] and the image processor"):
        SampleEncoder(processor)({"messages": asked("?"), "videos": [folder / "clip.mp4"]})
