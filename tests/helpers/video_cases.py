"""Videos for tests: frames computed from their numbers, and files of them."""

import io
from fractions import Fraction

import numpy as np

# name -> frames (T, H, W, 3) and their size
SIZES = {"wide": (10, 27, 48), "small": (3, 9, 12), "upright": (5, 50, 30), "long": (24, 18, 32)}
TILE = 16
CASES = {
    "all_frames": {"text": "<video>\nWhat?", "videos": ["small"]},
    "num_frames": {"text": "<video>\nWhat?", "videos": ["wide"], "num_frames": 4},
    "fps": {"text": "Look: <video> What?", "videos": ["long"], "fps": 2, "video_fps": 8},
    "with_image": {
        "text": ["<video>\nWhat? <IMG_CONTEXT>\nAnd <video>", "<IMG_CONTEXT><video>"],
        "videos": ["wide", "upright", "small"],
        "images": ["small", "small"],
        "num_frames": 2,
    },
}
# (frames of a video, frames to sample), for the choice of frames
SAMPLED = [
    (total, num)
    for total in (1, 2, 3, 5, 7, 10, 16, 24, 25, 30, 64, 99, 1000)
    for num in (1, 2, 3, 4, 5, 7, 8, 9, 16, 30)
]
SAMPLED = [pair for pair in SAMPLED if pair[1] <= pair[0]] + [(323_676, 8), (323_676, 64)]


def frames_of(name: str) -> np.ndarray:
    """(T, H, W, 3) levels: waves that move from one frame to the next, of other colours in each video."""
    total, height, width = SIZES[name]
    time, y, x, color = np.ogrid[:total, :height, :width, :3]
    waves = np.sin(x / 3 + time) * np.cos(y / 4 - time / 2 + len(name)) * (1 + color) / 3
    return np.round(127.5 + 127.5 * waves).astype(np.uint8)


def numbered_video(
    num_frames: int = 24,
    fps: int = 8,
    codec: str = "libx264",
    container: str = "mp4",
    gop: int = 12,
    size=(48, 32),
    start: int = 0,
    sound: str | None = None,
) -> bytes:
    """A video file whose frame n is all of the level 4n, from 64 on again from 0.

    Args:
        start: the time of the first frame, in frames.
        sound: the codec of ten seconds of sound.
    """
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as opened:
        stream = opened.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt, stream.gop_size = "yuvj420p" if codec == "mjpeg" else "yuv420p", gop
        stream.bit_rate = 1_000_000
        heard = None if sound is None else opened.add_stream(sound, rate=48000, layout="mono")
        for number in range(num_frames):
            levels = np.full((size[1], size[0], 3), 4 * (number % 64), np.uint8)
            frame = av.VideoFrame.from_ndarray(levels, format="rgb24")
            frame.pts, frame.time_base = start + number, Fraction(1, fps)
            opened.mux(stream.encode(frame))
        opened.mux(stream.encode())
        if heard is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 480_000), np.int16), format="s16", layout="mono")
            silence.sample_rate = 48000
            opened.mux(heard.encode(silence))
            opened.mux(heard.encode())
    return file.getvalue()


def numbers(frames) -> list[int]:
    """Which frames of `numbered_video` they are."""
    return [round(float(np.asarray(frame).mean()) / 4) for frame in frames]


def sound() -> bytes:
    """A file with nothing but sound."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="wav") as opened:
        stream = opened.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        opened.mux(stream.encode(frame))
        opened.mux(stream.encode())
    return file.getvalue()
