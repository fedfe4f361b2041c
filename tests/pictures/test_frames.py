"""`internvlx show` of a video: the frames that the model gets."""

import shutil

import pytest
from PIL import Image

from commands import internvlx
from internvlx_hf import cost
from internvlx_hf.pictures import draw_frames
from json_files import edit_json
from slides import assert_readable, fails, texts
from video_cases import frames_of, numbered_video


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(numbered_video(24, fps=8))
    return path


def test_the_frames_of_a_video_are_drawn(clip, checkpoint, tmp_path, capsys):
    out = tmp_path / "frames.png"
    assert (
        "clip.mp4; 3 frames, 12 tokens under"
        in internvlx(capsys, "show", clip, "--model", checkpoint, "--fps", "1", "--out", out).out
    )
    with Image.open(out) as drawn:
        assert drawn.height == 1125


@pytest.mark.parametrize(
    ("saved", "options", "frames"),
    [
        ({"num_frames": 4}, [], 4),
        ({"do_sample_frames": False}, ["--num-frames", "2"], 2),
    ],
)
def test_the_frames_are_those_that_the_checkpoint_samples(saved, options, frames, clip, checkpoint, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    edit_json(folder / "processor_config.json", lambda settings: settings["video_processor"].update(saved))
    assert (
        f"clip.mp4; {frames} frames"
        in internvlx(capsys, "show", clip, "--model", folder, "--out", tmp_path / "out.png", *options).out
    )


@pytest.mark.parametrize("count", [1, 8, 60])
def test_a_slide_of_frames_is_readable(count):
    setup = cost.load_setup("internvl-x-2b")
    frames = [frame for _ in range(20) for frame in frames_of("small")][:count]
    figure, found = draw_frames(frames, setup)
    assert_readable(figure)
    assert found.tiles == count
    assert f"video: {count} of {count} frames" in texts(figure)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["absent.mp4"], "absent.mp4' does not exist"),
        (["clip.mp4", "--num-frames", "0"], "--num-frames=0, expected a whole number of at least 1"),
        (["clip.mp4", "--attention", "--question", "?"], "--attention needs an image"),
        (["clip.mp4", "--slicing", "edge"], "--slicing, --max-patches"),
        (["clip.mp4", "--question", "?"], "--question and --max-new-tokens need --attention"),
        (["photo.png", "--fps", "1"], "--num-frames and --fps are for videos"),
        (["photo.png", "--num-frames", "4"], "--num-frames and --fps are for videos"),
    ],
)
def test_invalid_videos_are_refused(arguments, error, clip, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error in fails(capsys, *arguments, "--out", "out.png")
    assert not (tmp_path / "out.png").exists()
