# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Reading single frames of videos: only the requested frames are decoded and kept."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import is_valid_image

from .image_files import ImageAccess, abbreviated, file_of, names_image, open_image

# Containers that contain their frames. FFmpeg also reads lists of other files and addresses, which a video from a
# stranger must not make it open.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,gif,ogg,asf,ivf,nut,mxf,h264,hevc,obu,"
    "wav,mp3,aac,flac"
)
_FIRST_BYTES = 512
# first bytes of image files: (offset, bytes)
_IMAGE_SIGNATURES = ((0, b"\xff\xd8\xff"), (0, b"\x89PNG"), (0, b"BM"), (8, b"WEBP"), (0, b"II*\x00"), (0, b"MM\x00*"))
# if the next wanted frame is further away than this, seeking a keyframe may be faster than decoding all frames in
# between
_SECONDS_TO_SEEK = 2.0
# files are not truncated if their headers announce at most this much more than they hold: headers are rounded
_SECONDS_OF_TOLERANCE = 1.0
# suffixes of videos where a name may also be an image's; a GIF is then an image
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv"
)  # fmt: skip
HOW_TO_READ_VIDEOS = "`pip install av` (PyAV) or `pip install torchcodec`"

Frame = PIL.Image.Image | np.ndarray | torch.Tensor


class Video:
    """A video whose frames can be read one at a time.

    Attributes:
        name: its name in messages.
        num_frames: number of frames.
        fps: frames per second; None if unknown.
        is_sampled: whether its frames are already a selection.
    """

    name: str
    num_frames: int
    fps: float | None = None
    is_sampled = False

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The frames at ascending indices, each read when it is needed."""
        raise NotImplementedError

    @property
    def seconds(self) -> float | None:
        return self.num_frames / self.fps if self.fps else None


class FrameList(Video):
    """A list of frames: images of any kind, including paths.

    Raises:
        ValueError: if the list is empty or one of its items is not an image.
    """

    is_sampled = True

    def __init__(self, frames: Sequence, name: str = "The video", access: ImageAccess | None = None):
        self.name = name
        if not len(frames):
            raise ValueError(f"{name} has no frames, expected at least one.")
        self._frames = [_opened_frame(frame, index, name, access) for index, frame in enumerate(frames)]
        self.num_frames = len(self._frames)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        return (self._frames[index] for index in indices)


class ChosenFrames(Video):
    """A video that consists of selected frames of another."""

    is_sampled = True

    def __init__(self, video: Video, indices: Sequence[int]):
        self.name, self.num_frames = video.name, len(indices)
        self._video, self._indices = video, indices

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        return self._video.frames([self._indices[index] for index in indices])


def _opened_frame(frame, index: int, name: str, access: ImageAccess | None) -> Frame:
    if isinstance(frame, str | os.PathLike):
        return open_image(frame, access or ImageAccess())
    is_array = not isinstance(frame, PIL.Image.Image)
    if not is_valid_image(frame) or (is_array and frame.ndim not in (2, 3)):
        shape = f" of shape {tuple(frame.shape)}" if is_array and hasattr(frame, "shape") else ""
        raise ValueError(
            f"Frame {index} of {name[:1].lower()}{name[1:]} is a {type(frame).__name__}{shape}, expected an image."
        )
    return frame[None] if is_array and frame.ndim == 2 else frame


class FileVideo(Video):
    """A video file. Creating it reads the header; each read opens the file again, so that processes can share this
    object.

    Args:
        file: its path or its bytes.
        name: its name in messages.
        max_pixels: largest frame, in pixels, in addition to `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        ImportError: if neither PyAV nor torchcodec is installed.
        ValueError: if the file is not a video, has no frames or too large ones; on reading, also if it is corrupt or
            truncated.
    """

    def __init__(self, file: str | bytes, name: str, max_pixels: int | None = None):
        self.file = file
        self.name = name
        self._max_pixels = max_pixels
        self._decoder = find_decoder()
        _refuse_other_files(file, name)
        with self._opened() as reader:
            self.num_frames, self.fps = reader.num_frames, reader.fps
            self._refuse_large(reader.width, reader.height)
        if self.num_frames < 1:
            raise ValueError(f"{name} has no frames, expected a video with at least one.")

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Each frame is (H, W, 3), upright 8-bit levels of red, green and blue."""
        with self._opened() as reader:
            for frame in reader.read(indices, self):
                self._refuse_large(frame.shape[1], frame.shape[0])
                yield frame

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with self._decoder(self.file) as reader:
                yield reader
        except _NotReadableError as error:
            raise ValueError(f"{self.name} {error}") from error
        except ValueError as error:
            if type(error).__module__.partition(".")[0] not in ("av", "torchcodec"):
                raise
            raise self._corrupt(error) from error
        except Exception as error:  # decoders raise errors of many types
            raise self._corrupt(error) from error

    def _corrupt(self, error: Exception) -> ValueError:
        return ValueError(f"{self.name} is corrupt, truncated or not a video, expected a whole video file: {error}")

    def _refuse_large(self, width: int, height: int) -> None:
        limits = [limit for limit in (PIL.Image.MAX_IMAGE_PIXELS, self._max_pixels) if limit is not None]
        if limits and width * height > min(limits):
            raise ValueError(
                f"{self.name} has frames of {width}x{height} pixels, expected at most {min(limits)} pixels."
            )

    def refuse_missing(self, index: int, last: int) -> None:
        """Raises `ValueError` unless frame `last` is close enough to the end to stand for frame `index`."""
        if last < 0:
            raise ValueError(f"{self.name} has no frame that can be decoded, expected a video.")
        if index - last > max(2, _SECONDS_OF_TOLERANCE * (self.fps or 0)):
            raise ValueError(
                f"{self.name} is truncated: it ends after {last + 1} of {self.num_frames} frames, expected a whole "
                "video file."
            )


class _NotReadableError(Exception):
    """A file cannot be read. The message follows the file's name."""


def find_decoder():
    """The class that reads video files: with PyAV if it is installed, otherwise with torchcodec.

    Raises:
        ImportError: if neither is installed.
    """
    for package, reader in (("av", _PyavReader), ("torchcodec", _TorchcodecReader)):
        if find_spec(package) is not None:
            return reader
    raise ImportError(f"Reading a video file needs {HOW_TO_READ_VIDEOS}. A list of frames is a video as well.")


class _PyavReader:
    """A file opened by PyAV."""

    def __init__(self, file: str | bytes):
        self._av = import_module("av")
        # not by its name, which FFmpeg may interpret as a pattern or an address
        self._file = BytesIO(file) if isinstance(file, bytes) else open(file, "rb")  # noqa: SIM115
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self):
        self._rewind()
        cover = self._av.stream.Disposition.attached_pic
        streams = [stream for stream in self._container.streams.video if not stream.disposition & cover]
        if not streams:
            kinds = sorted({stream.type for stream in self._container.streams}) or ["nothing"]
            raise _NotReadableError(f"has no video stream, only {' and '.join(kinds)}; expected a video.")
        self._number = streams[0].index
        self.width, self.height = streams[0].width, streams[0].height
        rate = streams[0].average_rate or streams[0].guessed_rate
        self.fps = float(rate) if rate else None
        self.num_frames = self._count_frames()

    def _rewind(self):
        self._file.seek(0)
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
        self._container = self._av.open(self._file, mode="r", options=options, metadata_errors="ignore")

    @property
    def _stream(self):
        return self._container.streams[self._number]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._container.close()
        self._file.close()

    def _count_frames(self) -> int:
        stream, seconds = self._stream, None
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        elif self._container.duration is not None:
            seconds = self._container.duration / self._av.time_base
        announced = round(seconds * self.fps) if seconds and self.fps else None
        if stream.frames:  # includes those that an MP4's edit list cuts off
            return stream.frames if announced is None else min(stream.frames, max(1, announced))
        if announced is None or seconds is None:
            count = sum(1 for packet in self._container.demux(stream) if packet.size)
        else:
            count = self._count_to_end(seconds) or announced
        self._container.close()
        self._rewind()
        return max(1, count)

    def _count_to_end(self, seconds: float) -> int | None:
        """The frames up to the last packet; None if the file ends before the time that its header announces.

        A header may count from 0 although the first frame comes later, and up to the end of the sound.
        """
        stream = self._stream
        ends: dict[int, float] = {}  # by stream
        start = stream.start_time or 0
        try:
            self._container.seek(start + int(seconds / stream.time_base), stream=stream)
            for packet in self._container.demux():
                if packet.pts is not None and packet.size:
                    length = packet.duration or (1 / self.fps / packet.time_base if packet.stream == stream else 0)
                    end = float((packet.pts + length) * packet.time_base)
                    ends[packet.stream.index] = max(end, ends.get(packet.stream.index, end))
        except self._av.FFmpegError:  # cut off in the middle of a packet
            pass
        if self._number not in ends or max(ends.values()) < seconds - _SECONDS_OF_TOLERANCE:
            return None
        return round((ends[self._number] - float(start * stream.time_base)) * self.fps)

    def read(self, indices: Sequence[int], video: FileVideo) -> Iterator[np.ndarray]:
        decoded = self._container.decode(self._stream)
        position, image, seeks = -1, None, self.fps is not None
        for index in indices:
            if seeks and index - position > _SECONDS_TO_SEEK * (self.fps or 0):
                decoded = self._decoded_from_keyframe(index)
                first = next(decoded, None)
                landed = -1 if first is None else self._index(first, -1)
                # not if keyframes are further apart than the wanted frames, or if the file has no index
                seeks = position < landed <= index
                if 0 <= landed <= index:
                    position, image = landed, first
                else:
                    self._container.close()
                    self._rewind()
                    decoded = self._container.decode(self._stream)
                    position, image = -1, None
            while position < index:
                frame = next(decoded, None)
                if frame is None:
                    video.refuse_missing(index, position)
                    break
                position, image = self._index(frame, position + 1), frame
            yield _upright(image)

    def _decoded_from_keyframe(self, index: int) -> Iterator:
        """The frames starting at the last keyframe at or before a frame."""
        stream = self._stream
        start = stream.start_time or 0
        try:
            self._container.seek(start + int(index / self.fps / stream.time_base), stream=stream)
        except self._av.FFmpegError:
            return
        yield from self._container.decode(stream)

    def _index(self, frame, default: int) -> int:
        """The frame's index, computed from its time."""
        if frame.pts is None or not self.fps:
            return default
        start = self._stream.start_time or 0
        return round(float((frame.pts - start) * frame.time_base) * self.fps)


def _upright(frame) -> np.ndarray:
    quarter_turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns))


class _TorchcodecReader:
    """A file opened by torchcodec."""

    def __init__(self, file: str | bytes):
        self._decoder = import_module("torchcodec.decoders").VideoDecoder(file, dimension_order="NHWC")
        metadata = self._decoder.metadata
        self.num_frames, self.fps = metadata.num_frames or 0, metadata.average_fps
        self.width, self.height = metadata.width or 0, metadata.height or 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read(self, indices: Sequence[int], video: FileVideo) -> Iterator[np.ndarray]:
        return (self._decoder.get_frame_at(int(index)).data.numpy() for index in indices)


def _refuse_other_files(file: str | bytes, name: str) -> None:
    """Raises `ValueError` for an empty file, an image, or text, which may be a list of other files."""
    if isinstance(file, bytes):
        first = file[:_FIRST_BYTES]
    else:
        with open(file, "rb") as opened:
            first = opened.read(_FIRST_BYTES)
    if not first:
        raise ValueError(f"{name} is empty, expected a video file.")
    if any(first[offset:].startswith(signature) for offset, signature in _IMAGE_SIGNATURES):
        raise ValueError(
            f"{name} is an image, expected a video file; a list of images is a video, each image a frame."
        )
    if all(byte >= 32 or byte in b"\t\n\r" for byte in first):
        raise ValueError(f"{name} is text, expected a video file.")


def names_video(name: str) -> bool:
    """Whether a path or URL names a video, judged by its suffix."""
    return name.partition("?")[0].lower().endswith(VIDEO_SUFFIXES) or name.lower().startswith("data:video/")


def open_video(source, access: ImageAccess | None = None) -> Video:
    """A video of any kind, of which only the header is read.

    Args:
        source: a path, an http(s) URL, a `file://` URL, base64 or a `data:video/...;base64,` URI, bytes, a folder of
            frames (sorted by the numbers in their names), a list of frames, or an array of frames (T, H, W, C) or (T,
            C, H, W).
        access: what strings may name (default: anything).

    Raises:
        ImportError: if the source is a file and neither PyAV nor torchcodec is installed.
        ValueError: if the source is not a video. The message names it.
    """
    access = access or ImageAccess()
    if isinstance(source, Video):
        return source
    if isinstance(source, bytes | bytearray):
        return FileVideo(bytes(source), f"The video of {len(source)} bytes", access.max_pixels)
    if isinstance(source, str | os.PathLike):
        name = f"The video {abbreviated(source)}"
        path = os.fspath(source)
        if isinstance(path, str) and access.allows_file(path) and os.path.isdir(path):
            return FrameList(_folder_images(Path(path), name), name, access)
        return FileVideo(file_of(source, name, access, "a video"), name, access.max_pixels)
    if isinstance(source, list | tuple):
        return FrameList(source, access=access)
    if isinstance(source, np.ndarray | torch.Tensor):
        if source.ndim != 4:
            raise ValueError(
                f"The video array has shape {tuple(source.shape)}, expected (T, H, W, C) or (T, C, H, W)."
            )
        return FrameList(list(source), access=access)
    raise ValueError(
        f"A video is a {type(source).__name__}, expected a path, a URL, bytes, a list of frames or an array of frames."
    )


def _folder_images(folder: Path, name: str) -> list[Path]:
    files = [file for file in folder.iterdir() if names_image(file) and file.is_file()]
    if not files:
        raise ValueError(f"{name} is a folder without images, expected a video file or a folder of frames.")
    return sorted(files, key=_natural_order)


def _natural_order(file: Path) -> list:
    pieces = re.split(r"(\d+)", file.name)
    return [(int(piece), "") if piece.isdecimal() else (math.inf, piece) for piece in pieces]


# ---- sampling


def is_one_video(videos) -> bool:
    """Whether `videos` is a single video, rather than a list. As in transformers, a string in a list is a video."""
    if not isinstance(videos, list | tuple):
        return not (isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5)
    first = videos[0] if len(videos) else None
    return isinstance(first, PIL.Image.Image) or (
        isinstance(first, np.ndarray | torch.Tensor) and first.ndim in (2, 3)
    )


def flat_videos(videos) -> list:
    """All videos of a call, in order. In lists that are nested twice, the innermost lists are the frames of a video.

    Raises:
        ValueError: if an item is not a video.
    """
    if videos is None:
        return []
    if is_one_video(videos):
        return [videos]
    flat = []
    for item in videos:
        if isinstance(item, list | tuple) and not is_one_video(item):
            flat += [list(part) if isinstance(part, list | tuple) else part for part in item]
        else:
            flat.append(item)
    return flat


def sampled_indices(
    video: Video, num_frames: int | None, fps: float | None, min_frames: int = 1, max_frames: int | None = None
) -> list[int]:
    """The middles of equal segments of a video, as native InternVL computes them.

    Args:
        num_frames: number of frames (None: all); of a shorter video, all frames are taken.
        fps: frames per second, instead of `num_frames`: at least `min_frames` and at most `max_frames` in all.

    Raises:
        ValueError: if `fps` is given and the video's own is unknown.
    """
    total = video.num_frames
    if fps is not None:
        if not video.fps:
            raise ValueError(
                f"fps={fps:g} cannot be sampled from {video.name[:1].lower()}{video.name[1:]}, whose frames per "
                "second are unknown; expected num_frames, or `video_metadata` with its fps."
            )
        num_frames = max(min_frames, int(total / video.fps * fps))
        num_frames = num_frames if max_frames is None else min(num_frames, max_frames)
    count = total if num_frames is None else min(num_frames, total)
    return torch.arange(total / count / 2, total, total / count).int().tolist()[:count]
