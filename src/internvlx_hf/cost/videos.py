# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a video costs at several numbers of tokens per frame, without and with LVTC."""

import copy
import csv
import io
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from .estimate import ANSWER_TOKENS, TEXT_TOKENS, Cost, CostModel
from .report import BYTE_UNITS, FLOP_UNITS, table, unit
from .setups import ModelSetup

TOKENS_PER_FRAME = (256, 64, 16)
FPS = 1.0
# of the prompt for each frame: its label, the tokens around its placeholders and the line break
LABEL_TOKENS = 8
_UNITS = {"h": 3600, "m": 60, "min": 60, "s": 1}


@dataclass(frozen=True)
class Clip:
    """A video by its length.

    Args:
        name: what was asked for.
        seconds: its length; None where the file does not say it.
        frames: that the model gets, one tile each.
    """

    name: str
    seconds: float | None
    frames: int


def parse_seconds(text: str) -> float | None:
    """`"1h30m"` -> 5400.0; None for what is no length of time."""
    pieces = re.findall(r"(\d+(?:\.\d+)?)\s*(h|min|m|s)", text.lower())
    whole = re.fullmatch(r"\s*(?:\d+(?:\.\d+)?\s*(?:h|min|m|s)\s*)+", text.lower())
    return sum(float(number) * _UNITS[name] for number, name in pieces) if whole else None


def measure_clip(source: str, fps: float | None = None, num_frames: int | None = None) -> Clip:
    """A length of time, as `1h`, or a video file, of which the header is read.

    Args:
        fps: frames of each second that the model gets, above 0; `FPS` where `num_frames` is not given either.
        num_frames: so many in its place, at least 1.

    Raises:
        ImportError: it is a file, and nothing is installed that reads one.
        ValueError: it is neither, or has no frame.
    """
    seconds, most = parse_seconds(source), math.inf
    if seconds is None:
        from ..processing.video_files import open_video

        video = open_video(source)
        seconds, most = video.seconds, video.num_frames
    if num_frames is None and seconds is None:
        raise ValueError(f"{source} does not say how long it is, expected --num-frames with it.")
    frames = num_frames if num_frames is not None else max(1, int((seconds or 0) * (fps or FPS)))
    if seconds is not None and seconds <= 0:
        raise ValueError(f"--video={source!r} has no length, expected one as 1h, 90s or 1h30m.")
    return Clip(source, seconds, int(min(frames, most)))


def frame_settings(setup: ModelSetup) -> list[tuple[str, ModelSetup]]:
    """The model at each of `TOKENS_PER_FRAME`, without LVTC and with LVTC's expansion to four times as many.

    What does not fit the model's grid of patches is left out.
    """
    found = [("this model", setup)]
    side = round(math.sqrt(setup.config.image_seq_length) / setup.config.downsample_ratio)
    for tokens in TOKENS_PER_FRAME:
        ratio = math.isqrt(tokens) / side
        for lvtc in (None, {"downsample_ratio": 2 * ratio}):
            if ratio > 1 or (lvtc and ratio > 0.5):
                continue
            config = copy.deepcopy(setup.config)
            try:
                config.downsample_ratio, config.lvtc_config = ratio, lvtc
                config.check_geometry()
            except ValueError:
                continue
            found.append(("", ModelSetup(setup.name, config, setup.tiling)))
    return [found[0], *(other for other in found[1:] if not other[1].costs_as(setup))]


class VideoReport:
    """The cost of a video in one prompt, at several numbers of tokens per frame.

    Args:
        width: most characters of a line of [`to_text`]; None: no limit.

    Raises:
        ValueError: the frames do not fit the setup's budget of visual tokens.
    """

    def __init__(
        self,
        clip: Clip,
        setup: ModelSetup,
        text_tokens: int = TEXT_TOKENS,
        answer_tokens: int = ANSWER_TOKENS,
        dtype: str | None = None,
        width: int | None = None,
    ):
        self.clip, self.setup, self.width = clip, setup, width
        self.text_tokens = text_tokens + LABEL_TOKENS * clip.frames
        self.models = [
            (label, CostModel(each, self.text_tokens, answer_tokens, dtype)) for label, each in frame_settings(setup)
        ]
        self.costs: list[Cost] = [model.together((), clip.frames) for _, model in self.models]

    def to_text(self) -> str:
        flops = unit([cost.prefill_flops for cost in self.costs], FLOP_UNITS)
        cache = unit([cost.cache_bytes for cost in self.costs], BYTE_UNITS)
        memory = unit([cost.peak_bytes for cost in self.costs], BYTE_UNITS)
        split = " " if self.width is None else "\n"
        header = ["", f"tokens{split}a frame", "tokens", f"prefill{split}{flops[0]}", f"cache{split}{cache[0]}"]
        header += [f"peak{split}{memory[0]}*", "positions"]
        rows = []
        for (label, model), cost in zip(self.models, self.costs, strict=True):
            past = cost.positions > model.sizes.position_limit
            rows.append(
                [
                    f"-> {label}" if label else "",
                    _arrow(model.sizes.image_seq_length, model.sizes.expanded_image_seq_length),
                    _arrow(cost.stage_one_tokens, cost.stage_two_tokens),
                    f"{cost.prefill_flops / flops[1]:,.1f}",
                    f"{cost.cache_bytes / cache[1]:,.1f}",
                    f"{cost.peak_bytes / memory[1]:,.1f}",
                    f"{cost.positions:,}" + "!" * past,
                ]
            )
        clip, limit = self.clip, self.models[0][1].sizes.position_limit
        length = "" if clip.seconds is None else f", {clip.seconds:,.0f} s"
        lines = [
            f"{self.setup.name}, a video in one prompt: {clip.name}{length}, {clip.frames:,} frames of one tile",
            table(header, rows, (0,), self.width, [header[5], header[4]]),
            "tokens: visual ones, before -> after LVTC's expansion",
            "* estimated: the weights and what a prefill holds beside them",
        ]
        if any(
            cost.positions > model.sizes.position_limit
            for (_, model), cost in zip(self.models, self.costs, strict=True)
        ):
            lines.append(f"! past the {limit:,} positions that the language model is made for")
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "tokens_per_frame": model.sizes.image_seq_length,
                "expanded_tokens_per_frame": model.sizes.expanded_image_seq_length,
                "lvtc": model.setup.has_lvtc,
                "position_limit": model.sizes.position_limit,
                **{name: value for name, value in cost.to_dict().items() if name != "flops"},
            }
            for (_, model), cost in zip(self.models, self.costs, strict=True)
        ]

    def to_json(self) -> str:
        clip = {"video": self.clip.name, "seconds": self.clip.seconds, "frames": self.clip.frames}
        return json.dumps(
            {"model": self.setup.name, **clip, "text_tokens": self.text_tokens, "settings": self.rows()}, indent=1
        )

    def to_csv(self) -> str:
        rows, out = self.rows(), io.StringIO()
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().rstrip("\n")


def _arrow(one: int, two: int) -> str:
    return f"{one:,}" if one == two else f"{one:,} -> {two:,}"
