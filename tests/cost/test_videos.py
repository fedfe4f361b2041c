"""What a video costs: its length or file, frames of one tile, several numbers of tokens per frame."""

import csv
import json

import pytest

from internvlx_hf.cli import main
from internvlx_hf.cost import CostModel, ModelSetup
from internvlx_hf.cost.videos import LABEL_TOKENS, Clip, VideoReport, measure_clip, parse_seconds
from internvlx_hf.processing.rvtc import TilingRule
from tiny import TILE, tiny_config, tiny_processor
from video_cases import frames_of, numbered_video


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h", 3600), ("90s", 90), ("1h30m", 5400), ("1.5 min", 90), ("2h 3m 4s", 7384), ("clip.mp4", None), ("h", None)],
)
def test_a_length_of_time_is_read(text, seconds):
    assert parse_seconds(text) == seconds


def test_frames_follow_from_a_length_or_a_files_header(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(numbered_video(24, fps=8))
    assert measure_clip("1h") == Clip("1h", 3600, 3600)
    assert measure_clip("1h", fps=0.5).frames == 1800
    assert measure_clip("1h", num_frames=8).frames == 8
    assert measure_clip(str(path), fps=2) == Clip(str(path), 3.0, 6)
    assert measure_clip(str(path), fps=99).frames == 24


@pytest.fixture
def setting(monkeypatch):
    """A tiny model of 16 tokens a tile; its grid of patches makes 4 and 1 as well."""
    monkeypatch.setattr("internvlx_hf.cost.videos.TOKENS_PER_FRAME", (16, 4, 1))
    return ModelSetup("tiny", tiny_config(), TilingRule(TILE, TILE))


def test_an_hour_is_what_as_many_tiles_cost_with_their_labels(setting):
    report = VideoReport(measure_clip("1h", fps=0.1), setting, text_tokens=64)
    assert report.costs[0] == CostModel(setting, 64 + 360 * LABEL_TOKENS).of_tiles(360)
    rows = {(row["tokens_per_frame"], row["lvtc"]): row for row in report.rows()}
    assert set(rows) == {(tokens, lvtc) for tokens in (16, 4, 1) for lvtc in (False, True)}
    for (tokens, lvtc), row in rows.items():
        assert (row["stage_one_tokens"], row["stage_two_tokens"]) == (360 * tokens, 360 * tokens * (4 if lvtc else 1))
    assert rows[1, False]["prefill_flops"] < rows[4, False]["prefill_flops"] < rows[16, False]["prefill_flops"]


def test_a_label_takes_as_many_tokens_as_is_said():
    """Of InternVL's own tokenizers `Frame12: ` takes 5 or 6; here a byte-level one takes more."""
    processor = tiny_processor(tiny_config())
    processor.video_processor.frame_label = "{}:"  # 2 or 3 bytes
    ids = processor(text="<video>", videos=frames_of("small"))["input_ids"][0]
    assert len(ids) <= 3 * (LABEL_TOKENS + processor.image_seq_length)


def test_the_command_prints_a_table_json_and_csv(setting, tmp_path, capsys):
    setting.config.save_pretrained(tmp_path)
    cost = ["cost", "--model", str(tmp_path), "--video", "1h"]
    main(cost)
    shown = capsys.readouterr().out
    for expected in ("3,600 frames of one tile", "4 -> 16", "14,400 -> 57,600", "past the 1,024 positions"):
        assert expected in shown
    main([*cost, "--num-frames", "8", "--json"])
    assert json.loads(capsys.readouterr().out)["frames"] == 8
    main([*cost, "--csv"])
    assert len(list(csv.DictReader(capsys.readouterr().out.splitlines()))) == 6


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--video", "absent.mp4"], "absent.mp4' does not exist"),
        (["--video", "0s"], "has no length"),
        (["--video", "1h", "--fps", "-1"], "--fps=-1.0, expected a positive"),
        (["--video", "1h", "--num-frames", "0"], "--num-frames=0, expected a whole number of at least 1"),
        (["--video", "1h", "--size", "4x4"], "--video cannot be combined"),
        (["--video", "1h", "--skip-broken"], "--video cannot be combined"),
        (["--video", "1h", "--slicing", "edge"], "--slicing: for images only"),
        (["--fps", "1", "--size", "4x4"], "need --video"),
        (["--num-frames", "1", "--size", "4x4"], "need --video"),
    ],
)
def test_what_is_no_video_is_refused(arguments, error, capsys):
    assert main(["cost", *arguments])
    assert error in capsys.readouterr().err
