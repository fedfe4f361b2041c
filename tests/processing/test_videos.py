"""Videos in the processor: what native InternVL makes of the same frames, files of many kinds, and what is refused.

Of transformers' tests of video processors (`tests/test_video_processing_common.py`) and of InternVL's processor these are
not adapted:
- that videos come stacked, (videos, frames, 3, H, W): here they may have different numbers of frames, and come flat;
- `num_frames` beyond a video's length raises there; here a shorter video gives all its frames;
- everything about torchvision: devices, compiled and fast-against-slow comparisons;
- `AutoVideoProcessor`, which asks for torchvision: the processor carries its video processor itself.
"""

import base64
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from internvlx_hf import InternVLXImageProcessor, InternVLXProcessor, InternVLXVideoProcessor
from internvlx_hf.processing import ImageAccess, video_files
from internvlx_hf.processing.video_files import open_video, sampled_indices
from json_files import json_of, write_json
from message_cases import encode as encoded
from message_cases import text
from paths import GOLDEN
from refusals import refused
from tiny import tiny_config, tiny_processor, tiny_tokenizer
from video_cases import CASES, SAMPLED, TILE, frames_of, numbered_video, numbers, sound

NATIVE = load_file(GOLDEN / "video" / "cases.safetensors")
CONTAINERS = {"mp4": "libx264", "matroska": "libx264", "avi": "mjpeg", "mpegts": "mpeg2video", "webm": "libvpx"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A file of 24 numbered frames, 8 a second."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    path.write_bytes(numbered_video())
    return path


@pytest.fixture
def processor():
    return tiny_processor(tiny_config())


@pytest.fixture
def plain(processor):
    """A processor whose pixels are the levels of the frames."""
    return InternVLXVideoProcessor(
        size={"height": 32, "width": 48}, do_rescale=False, do_normalize=False, resize_backend="pillow"
    )


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


# ---- native InternVL's numbers


@pytest.mark.parametrize("name", CASES)
def test_pixels_and_placeholders_equal_native_internvls(name):
    case = CASES[name]
    image_processor = InternVLXImageProcessor(size={"height": TILE, "width": TILE}, slicing="ratio", max_patches=2)
    processor = InternVLXProcessor(image_processor, tiny_tokenizer(), image_seq_length=4)
    sampling = {key: case[key] for key in ("num_frames", "fps") if key in case}
    if "video_fps" in case:
        sampling["video_metadata"] = [{"fps": case["video_fps"]}]
    inputs = processor(
        images=[frames_of(image)[0] for image in case.get("images", [])] or None,
        text=case["text"],
        videos=[frames_of(video) for video in case["videos"]],
        return_tensors="pt",
        padding=True,
        **sampling,
    )
    assert torch.equal(inputs["input_ids"], NATIVE[f"{name}.input_ids"])
    # native normalises in two steps: float rounding
    torch.testing.assert_close(inputs["pixel_values"], NATIVE[f"{name}.pixel_values"], rtol=0, atol=1e-6)


def test_the_choice_of_frames_equals_native_internvls():
    native = json_of(GOLDEN / "video" / "sampled.json")
    for (total, num_frames), expected in zip(SAMPLED, native, strict=True):
        video = SimpleNamespace(num_frames=total, fps=None, name="The video")
        assert sampled_indices(video, num_frames, None) == expected, (total, num_frames)


# ---- files


@pytest.mark.parametrize(("container", "codec"), CONTAINERS.items())
@pytest.mark.parametrize("gop", [4, 1000])
def test_a_frame_of_a_file_is_the_same_whether_it_is_sought_or_all_before_it_are_decoded(container, codec, gop):
    video = open_video(
        numbered_video(60, fps=25 if codec == "mpeg2video" else 2, container=container, codec=codec, gop=gop)
    )
    assert video.num_frames == 60
    everything = list(video.frames(range(60)))
    assert numbers(everything) == list(range(60))
    some = [0, 1, 17, 18, 40, 59]
    for frame, index in zip(video.frames(some), some, strict=True):
        np.testing.assert_array_equal(frame, everything[index])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"container": "matroska", "start": 4}, range(24), id="MKV starts at 0.5 s"),
        pytest.param({"container": "matroska", "start": 12}, range(24), id="MKV starts at 1.5 s"),
        pytest.param({"container": "webm", "codec": "libvpx", "start": 24}, range(24), id="WebM starts at 3 s"),
        pytest.param({"container": "asf", "codec": "mpeg4", "start": 24}, range(24), id="WMV starts at 3 s"),
        pytest.param({"container": "matroska", "sound": "aac"}, range(24), id="MKV with longer sound"),
        pytest.param({"container": "mp4", "start": 24}, range(24), id="MP4 starts at 3 s"),
        pytest.param({"container": "mp4", "start": -12}, range(12, 24), id="MP4 whose edit list cuts 1.5 s off"),
    ],
)
def test_the_frames_of_a_file_are_counted_from_its_first_frame_to_its_last(settings, expected):
    video = open_video(numbered_video(**settings))
    assert numbers(video.frames(range(video.num_frames))) == list(expected)


def test_only_sampled_frames_are_decoded(monkeypatch):
    """A video of hours is not decoded whole: of 600 frames, eight and those between each and its keyframe are."""
    video, decoded = open_video(numbered_video(600, fps=2, gop=6)), []
    reader = video_files._PyavReader
    index_of = reader._index
    monkeypatch.setattr(
        reader, "_index", lambda self, frame, otherwise: decoded.append(1) or index_of(self, frame, otherwise)
    )
    indices = sampled_indices(video, 8, None)
    assert len(list(video.frames(indices))) == 8
    assert len(decoded) <= 8 * 7


def test_a_file_gives_eight_frames_unless_a_call_or_the_processor_says_otherwise(clip, plain):
    def sampled(**kwargs):
        return frame_numbers_of(plain, clip, **kwargs)

    assert sampled() == [1, 4, 7, 10, 13, 16, 19, 22]
    assert sampled(num_frames=2) == [6, 18]
    assert sampled(fps=1) == [4, 12, 20]
    assert sampled(fps=0.01, min_frames=2) == [6, 18]
    assert sampled(fps=8, max_frames=3) == [4, 12, 20]
    assert sampled(num_frames=99) == sampled(do_sample_frames=False) == list(range(24))
    plain.num_frames = 3
    assert sampled() == [4, 12, 20]
    plain.do_sample_frames = False
    assert sampled() == sampled(num_frames=2, do_sample_frames=False) == list(range(24))
    assert sampled(num_frames=2) == [6, 18]


def frame_numbers_of(plain, video, **kwargs) -> list[int]:
    return [
        round(float(frame.mean()) / 4) for frame in plain(video, return_tensors="pt", **kwargs)["pixel_values_videos"]
    ]


def test_all_frames_of_a_list_are_used(plain, tmp_path):
    frames = [np.full((32, 48, 3), 4 * number, np.uint8) for number in range(12)]
    images = [PIL.Image.fromarray(frame) for frame in frames]
    paths = [str(tmp_path / f"frame{number}.png") for number in range(12)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    array = np.stack(frames)
    channels_first = torch.from_numpy(array).movedim(-1, 1)
    for given in (frames, images, [[paths]], array, channels_first, [array], tmp_path):
        assert frame_numbers_of(plain, given) == list(range(12))
    assert frame_numbers_of(plain, images, num_frames=2) == [3, 9]
    assert frame_numbers_of(plain, images, fps=1, video_metadata={"fps": 4.0}) == [2, 6, 10]
    with refused("fps=1 cannot be sampled from the video", "whose frames per second are unknown"):
        plain(images, fps=1)


def test_a_video_file_is_read_from_every_kind_of_source(clip, plain):
    encoded = base64.b64encode(clip.read_bytes()).decode()
    for source in (clip.read_bytes(), clip, clip.as_uri(), f"data:video/mp4;base64,{encoded}", encoded):
        assert frame_numbers_of(plain, source, num_frames=2) == [6, 18]


def test_a_video_turned_by_its_header_comes_upright(monkeypatch):
    frame = SimpleNamespace(to_ndarray=lambda format: np.arange(6, dtype=np.uint8).reshape(2, 3, 1), rotation=-90)
    assert video_files._upright(frame)[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]  # clockwise


def test_torchcodec_reads_where_there_is_no_pyav(clip, monkeypatch):
    """A stand-in: what torchcodec's decoder is asked for."""

    class VideoDecoder:
        metadata = SimpleNamespace(num_frames=24, average_fps=8.0, width=48, height=32)

        def __init__(self, source, dimension_order):
            assert (source, dimension_order) == (str(clip), "NHWC")

        def get_frame_at(self, index):
            return SimpleNamespace(data=torch.full((32, 48, 3), 4 * index, dtype=torch.uint8))

    find = importlib.util.find_spec
    monkeypatch.setattr(video_files, "find_spec", lambda name: None if name == "av" else find("numpy"))
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=VideoDecoder))
    assert numbers(open_video(str(clip)).frames([6, 18])) == [6, 18]


def test_without_a_decoder_a_file_is_refused_and_a_list_of_frames_is_not(clip, monkeypatch, plain):
    monkeypatch.setattr(video_files, "find_spec", lambda name: None)
    with refused("pip install av", "torchcodec", "A list of frames is a video as well", by=ImportError):
        plain(clip)
    assert plain(frames_of("small"))["num_patches_videos"] == [3]


# ---- what is refused


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (b"", "is empty, expected a video file"),
        (b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", "is text, expected a video file"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "is text, expected a video file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is an image, expected a video file"),
        (bytes(range(256)) * 4, "is corrupt, truncated or not a video"),
        ("sound", "has no video stream, only audio"),
        ("half an mp4", "is corrupt, truncated or not a video"),
        ("half a matroska", "is truncated: it ends after … of 60 frames"),
    ],
)
def test_a_file_that_is_not_a_complete_video_is_named(broken, error, tmp_path, plain):
    if isinstance(broken, str):
        container = broken.split()[-1]
        data = sound() if broken == "sound" else numbered_video(60, container=container)
        broken = data if broken == "sound" else data[: len(data) // 2]
    path = tmp_path / "broken.mp4"
    path.write_bytes(broken)
    with refused(f"broken.mp4' {error}"):
        plain(path)


@pytest.mark.parametrize(
    ("given", "kwargs", "said"),
    [
        ("absent.mp4", {}, "The video 'absent.mp4' does not exist. Expected the path of a video file"),
        ([[]], {}, "expected at least one video"),
        (np.zeros((0, 4, 4, 3)), {}, "has no frames … at least one"),
        ([np.zeros((2, 4, 4, 3)), 7], {}, "A video is a int … a path"),
        (np.zeros((4, 4)), {}, "The video array has shape"),
        (np.zeros((3, 4, 4, 3)), {"max_frames": 2}, "would take 3 frames … at most max_frames=2"),
        (np.zeros((3, 4, 4, 3)), {"num_frames": 0}, "num_frames"),
        (np.zeros((3, 4, 4, 3)), {"fps": -1.0}, "fps"),
        (np.zeros((3, 4, 4, 3)), {"num_frames": 2, "fps": 1}, "num_frames=2 and fps=1 … one of them"),
        (np.zeros((3, 4, 4, 3)), {"min_frames": 9, "max_frames": 2}, "min_frames <= max_frames"),
        (np.zeros((3, 4, 4, 3)), {"nframes": 2}, "Unknown setting 'nframes'"),
        (np.zeros((3, 4, 4, 3)), {"frame_label": "Frame"}, "a text with one {} for the frame's number"),
    ],
)
def test_what_cannot_be_sampled_is_refused(given, kwargs, said, plain):
    with refused(said):
        plain(given, **kwargs)


def test_strings_name_only_what_the_access_allows(clip, processor):
    processor.image_processor.access = ImageAccess.for_server()
    outside = "not in a folder that videos may be read from"
    for path, said in (
        (clip, outside),
        (clip.parent, outside),
        ("http://127.0.0.1/clip.mp4", "'127.0.0.1' is not allowed"),
    ):
        with refused(said):
            processor(text="<video>", videos=str(path))
    processor.image_processor.access = ImageAccess(max_pixels=32)
    with refused("has frames of 48x32 pixels", "at most 32 pixels"):
        processor(text="<video>", videos=str(clip))


# ---- texts and messages


@pytest.mark.parametrize(
    ("texts", "videos", "error"),
    [
        ("What?", 1, "Found 0 marks <video> and 1 videos"),
        ("<video>", 0, "Found 1 marks <video> and 0 videos"),
        ("<video><video>", 1, "Found 2 marks <video> and 1 videos"),
        (["<video>", "x"], [0, 1], "Found 1 marks <video> and 0 videos in sample 0"),
    ],
)
def test_more_or_fewer_videos_than_marks_are_refused(texts, videos, error, processor):
    small = frames_of("small")
    given = [small] * videos if isinstance(videos, int) else [[small] * number for number in videos]
    with refused(error):
        processor(text=texts, videos=given or None)


def test_a_mark_that_is_escaped_is_text(processor):
    with_joiner = processor(text="The tag <\u2060video> plays.")["input_ids"][0]
    assert with_joiner == processor.tokenizer("The tag <video> plays.")["input_ids"]


def encode(processor, messages, **kwargs):
    return encoded(messages, processor, add_generation_prompt=True, **kwargs)


@pytest.mark.parametrize("route", ["part", "list of frames", "path", "bare", "mark", "in front"])
def test_a_video_in_messages_is_one_line_per_frame(route, clip, processor):
    frames = list(open_video(clip).frames([6, 18]))
    parts = {"part": {"video": str(clip)}, "list of frames": {"video": frames}, "path": {"path": clip}, "bare": {}}
    texts = {"mark": "<video>\nWhat?", "in front": "What?"}
    content = texts.get(route) or [{"type": "video", **parts[route]}, text("What?")]
    videos = {"videos": [str(clip)]} if route in ("bare", *texts) else {}
    inputs = encode(processor, [{"role": "user", "content": content}], processor_kwargs={"num_frames": 2}, **videos)
    tile = "<img>" + "<IMG_CONTEXT>" * 16 + "</img>"
    expected = f"<|im_start|>user\nFrame1: {tile}\nFrame2: {tile}\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == expected
    direct = processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(inputs["pixel_values"], direct)


def test_images_and_videos_keep_the_order_of_the_messages(clip, processor):
    image = {"type": "image", "image": PIL.Image.new("RGB", (32, 32), "red")}
    video = {"type": "video", "video": clip}
    kwargs = {"processor_kwargs": {"num_frames": 2, "padding": True}}
    pixels = encode(processor, user(image, video, image), **kwargs)["pixel_values"]
    red = processor.image_processor(image["image"], return_tensors="pt")["pixel_values"][0]
    assert [torch.equal(tile, red) for tile in pixels] == [True, False, False, True]
    assert len(encode(processor, [user(image, video, image), user(video)], **kwargs)["pixel_values"]) == 6


def test_the_frames_label_is_the_checkpoints(processor):
    processor.video_processor.frame_label = "Frame-{}: "
    prompt = processor(text="<video>", videos=frames_of("small"))["input_ids"][0]
    assert processor.tokenizer.decode(prompt).startswith("Frame-1: <img>")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (user({"type": "video", "video": "a.mp4", "path": "b.mp4"}), "a video part with video and path … one"),
        (
            user({"type": "video", "video": "a.mp4", "fps": 2}),
            "fps=2 in a part of type video … video, path, url",
        ),
        (user({"type": "video", "video": "a.mp4"}, text("<video>")), "'<video>' beside video parts"),
        (user(text("<video>")), "hold '<video>' 1 times, but no videos were given"),
        ([{"role": "system", "content": "<video>"}, *user(text("x"))], "'<video>' outside of users' turns"),
        (user({"type": "video", "video": "absent.mp4"}), "The video 'absent.mp4' does not exist"),
    ],
)
def test_a_message_whose_video_is_not_understood_is_refused(messages, said, processor):
    with refused(said):
        encode(processor, messages)


def test_what_the_assistant_writes_is_text_also_where_it_looks_like_a_video(processor):
    messages = [*user(text("Which tag?")), {"role": "assistant", "content": "<video>"}, *user(text("Why?"))]
    ids = encode(processor, messages)["input_ids"][0]
    assert "<video>" in processor.tokenizer.decode(ids)


@pytest.mark.parametrize("videos", [[[]], [frames_of("small"), []]], ids=["alone", "second"])
def test_a_video_without_frames_in_a_message_is_refused(videos, processor):
    messages = user(*({"type": "video", "video": video} for video in videos))
    with refused("The video has no frames", "at least one"):
        processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")


# ---- saving


def test_a_saved_processor_carries_its_video_processor(processor, tmp_path, clip):
    processor.video_processor.num_frames, processor.video_processor.frame_label = 3, "Frame-{}: "
    processor.save_pretrained(tmp_path)
    expected = processor(text="<video>", videos=clip, return_tensors="pt")
    for kind in (InternVLXProcessor, AutoProcessor):
        loaded = kind.from_pretrained(tmp_path)
        assert loaded.video_processor.to_dict() == processor.video_processor.to_dict()
        assert loaded.to_dict() == processor.to_dict()
        found = loaded(text="<video>", videos=clip, return_tensors="pt")
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
    saved = json_of(tmp_path / "processor_config.json")["video_processor"]
    assert saved["video_processor_type"] == "InternVLXVideoProcessor"
    assert (tmp_path / "video_processing_internvlx.py").is_file()


def test_a_processor_saved_before_there_were_videos_takes_them(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    saved = json_of(tmp_path / "processor_config.json")
    del saved["video_processor"]
    write_json(tmp_path / "processor_config.json", saved)
    loaded = InternVLXProcessor.from_pretrained(tmp_path)
    assert loaded.video_processor.to_dict() == processor.video_processor.to_dict()
