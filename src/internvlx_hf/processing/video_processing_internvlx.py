# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Video processor of InternVL-X: samples frames and makes one tile of each. It needs no torchvision."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import VideosKwargs
from transformers.utils import TensorType

from .image_processing_internvlx import TILE_SETTINGS, InternVLXImageProcessor
from .resizing import empty
from .rvtc import TilingRule
from .video_files import Frame, Video, flat_videos, open_video, sampled_indices

SAMPLING = ("num_frames", "fps", "min_frames", "max_frames", "do_sample_frames", "video_metadata")
_TILE_SETTINGS = ("crop_to_patches", "jpeg_draft", *TILE_SETTINGS)
_FRAMES_PER_BATCH = 4


class InternVLXVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    num_frames (`int`, *optional*, defaults to 8):
        Number of frames to sample: the middles of as many equal segments. Of a shorter video, all frames are taken.
    fps (`float`, *optional*):
        Frames to sample per second of video, instead of `num_frames`.
    min_frames (`int`, *optional*, defaults to 1):
        Smallest number of frames sampled by `fps`.
    max_frames (`int`, *optional*, defaults to 128):
        Largest number of frames sampled by `fps`. A video with more frames for another reason is refused.
    do_sample_frames (`bool`, *optional*):
        `True`: sample every video. `False`: take all frames. By default, files are sampled, and all frames of a list
        or an array are taken. A call that sets `num_frames` or `fps` samples unless it sets `do_sample_frames=False`
        too.
    frame_label (`str`, *optional*, defaults to `"Frame{}: "`):
        Text in front of each frame in the prompt. `{}` becomes the frame's number.
    resize_backend (`str`, *optional*, defaults to `"torch"`), do_exif_transpose, alpha:
        As for `InternVLXImageProcessor`.
    """

    min_frames: int | None
    max_frames: int | None
    frame_label: str | None
    resize_backend: str | None
    do_exif_transpose: bool | None
    alpha: str | None


class InternVLXVideoProcessor(InternVLXImageProcessor):
    """Samples the frames of videos and turns each into one normalised tile.

    A call with one video or a list of videos returns
    - `pixel_values_videos`, (frames, 3, H, W) float32: the frames of all videos in order,
    - `num_patches_videos`, (videos,): the number of frames of each video.

    A video is a path, a URL, a folder of frames, a list of frames or an array (see `video_files.open_video`). Only the
    sampled frames of a file are decoded, a few at a time.

    Raises:
        ImportError: if a video is a file and neither PyAV nor torchcodec is installed.
        ValueError: if a video is corrupt, empty, or has no video stream, or if an argument is unknown or contradicts
            another. The message names it.
    """

    valid_kwargs = InternVLXVideoProcessorKwargs  # type: ignore[assignment]
    model_input_names = ["pixel_values_videos", "num_patches_videos"]
    _auto_class = None  # type: ignore[assignment]

    crop_to_patches: bool | None = False
    num_frames: int | None = 8
    fps: float | None = None
    min_frames = 1
    max_frames = 128
    do_sample_frames: bool | None = None
    frame_label = "Frame{}: "
    _rows_first = True  # as in native InternVL

    @classmethod
    def like(cls, image_processor: InternVLXImageProcessor, **settings) -> "InternVLXVideoProcessor":
        """A video processor whose tiles have the same size and levels as those of an image processor."""
        names = cls.valid_kwargs.__annotations__
        own = {name: value for name, value in image_processor.to_dict().items() if name in names}
        return cls(**{**own, **settings})

    def __init__(self, **kwargs):
        super().__init__(**{name: value for name, value in kwargs.items() if name not in _TILE_SETTINGS})
        self.crop_to_patches = False
        self._sampling({})

    @classmethod
    def from_dict(cls, image_processor_dict: dict, **kwargs):
        cls.refuse_misspelt(image_processor_dict)
        names = {*cls.valid_kwargs.__annotations__, "access"}
        return super().from_dict(
            {name: image_processor_dict[name] for name in names & image_processor_dict.keys()}, **kwargs
        )

    def to_dict(self) -> dict:
        settings = super().to_dict()
        kept = {name: value for name, value in settings.items() if name in self.valid_kwargs.__annotations__}
        return {**kept, "video_processor_type": type(self).__name__}

    def preprocess(self, videos, *args, **kwargs) -> BatchFeature:  # type: ignore[override]
        opened = [open_video(video, self.access) for video in flat_videos(videos)]
        if not opened:
            raise ValueError(f"videos={videos!r:.100}, expected at least one video.")
        self._require_known(kwargs)
        return_tensors = kwargs.pop("return_tensors", None)
        chosen = self.choose_frames(opened, kwargs)
        for name in (*SAMPLING, "frame_label", "return_metadata"):
            kwargs.pop(name, None)
        total = sum(map(len, chosen))
        pixel_values, written = torch.empty(0), 0
        for frames in _frame_batches(opened, chosen):
            images: Any = frames
            tiles = super().preprocess(images, *args, return_tensors="pt", **kwargs)["pixel_values"]
            if not written:
                pixel_values = empty((total, *tiles.shape[1:]), tiles.dtype, tiles.device)
            pixel_values[written : written + len(tiles)] = tiles
            written += len(tiles)
        return _as_feature(pixel_values, [len(indices) for indices in chosen], return_tensors)

    def _tiling_rule(self, size: SizeDict, **kwargs) -> TilingRule:  # type: ignore[override]
        return super()._tiling_rule(
            size, crop_to_patches=False, min_patches=1, max_patches=1, slicing="ratio", use_thumbnail=False
        )

    def _require_known(self, kwargs: Mapping) -> None:
        unknown = [name for name in kwargs if name not in {*self.valid_kwargs.__annotations__, "return_tensors"}]
        if unknown:
            raise ValueError(f"Unknown setting {unknown[0]!r} of the video processor.")
        try:
            validate_typed_dict(self.valid_kwargs, dict(kwargs))  # type: ignore[type-var]
        except StrictDataclassError as error:
            raise ValueError(str(error)) from error

    def choose_frames(self, videos: list[Video], kwargs: Mapping | None = None) -> list[list[int]]:
        """The indices of the frames that a call takes from each video, without decoding a frame.

        Args:
            kwargs: arguments of the call that override the processor's settings.

        Raises:
            ValueError: if one of them is out of range, or if a video has more frames than `max_frames`.
        """
        kwargs = {name: value for name, value in (kwargs or {}).items() if value is not None}
        num_frames, fps, min_frames, max_frames = self._sampling(kwargs)
        call_samples = "num_frames" in kwargs or "fps" in kwargs
        do_sample = kwargs.get("do_sample_frames", call_samples or self.do_sample_frames)
        metadata = _metadata(kwargs.get("video_metadata"), videos)
        chosen = []
        for video, known in zip(videos, metadata, strict=True):
            if video.fps is None and known.get("fps"):
                video.fps = float(known["fps"])
            if do_sample or (do_sample is None and not video.is_sampled):
                indices = sampled_indices(video, num_frames, fps, min_frames, max_frames)
            else:
                indices = list(range(video.num_frames))
            if len(indices) > max_frames:
                raise ValueError(
                    f"{video.name} would take {len(indices)} frames, expected at most max_frames={max_frames}. Sample "
                    "fewer with num_frames or fps, or raise max_frames."
                )
            chosen.append(indices)
        return chosen

    def _sampling(self, kwargs: Mapping) -> tuple[int | None, float | None, int, int]:
        """`num_frames`, `fps` and their bounds. The arguments of a call override the processor's settings."""
        num_frames, fps = kwargs.get("num_frames"), kwargs.get("fps")
        if num_frames is not None and fps is not None:
            raise ValueError(f"num_frames={num_frames} and fps={fps}, expected one of them.")
        if num_frames is None and fps is None:
            fps = self.fps
            num_frames = self.num_frames if fps is None else None
        least, most = (kwargs.get(name, getattr(self, name)) for name in ("min_frames", "max_frames"))
        counts = {"num_frames": num_frames, "min_frames": least, "max_frames": most}
        for name, value in counts.items():
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not is_count and not (value is None and name == "num_frames"):
                raise ValueError(f"{name}={value!r}, expected a positive number of frames.")
        if fps is not None and not (isinstance(fps, int | float) and 0 < fps < float("inf")):
            raise ValueError(f"fps={fps!r}, expected a positive number of frames per second.")
        if least > most:
            raise ValueError(f"min_frames={least} and max_frames={most}, expected min_frames <= max_frames.")
        label = kwargs.get("frame_label", self.frame_label)
        if not isinstance(label, str) or label.count("{}") != 1 or label.replace("{}", "").count("{"):
            raise ValueError(f"frame_label={label!r}, expected a text with one {{}} for the frame's number.")
        return num_frames, fps, least, most


def _frame_batches(videos: list[Video], chosen: list[list[int]]) -> Iterator[list[Frame]]:
    """The chosen frames of all videos, a few at a time."""
    for video, indices in zip(videos, chosen, strict=True):
        frames = video.frames(indices)
        while batch := list(islice(frames, _FRAMES_PER_BATCH)):
            yield batch


def _metadata(given, videos: list[Video]) -> list[Mapping]:
    """The metadata of each video, without None values."""
    if given is None:
        return [{}] * len(videos)
    flat = [given] if isinstance(given, Mapping) else list(given)
    flat = [one for item in flat for one in (item if isinstance(item, list | tuple) else [item])]
    if len(flat) != len(videos) or not all(isinstance(known, Mapping) for known in flat):
        raise ValueError(f"video_metadata={given!r:.100}, expected a dictionary for each of {len(videos)} videos.")
    return [{name: known[name] for name in known if known[name] is not None} for known in flat]


def _as_feature(pixel_values: torch.Tensor, num_frames: list[int], return_tensors) -> BatchFeature:
    values = pixel_values if return_tensors == TensorType.PYTORCH else pixel_values.numpy(force=True)
    frames = list(values) if return_tensors is None else values
    data = {"pixel_values_videos": frames, "num_patches_videos": num_frames}
    return BatchFeature(data, tensor_type=return_tensors)
