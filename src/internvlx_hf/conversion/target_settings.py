# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Image and video settings in transformers' own layouts: which can be written, and what happens to the others."""

from typing import Any

from ..checkpoints.names import LLAVA, NATIVE, OURS
from ..processing import InternVLXImageProcessor, InternVLXVideoProcessor
from ..processing.image_settings import PROCESSOR, ImageSettings
from .options import ConversionOptions
from .sources import ONE_TILE, Source

# those that transformers' image and video processors have too
SHARED_SETTINGS = (
    *("size", "image_mean", "image_std", "resample", "rescale_factor"),
    *("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"),
)
# those that they lack, with the value that fits what they do
LOST_IMAGE_SETTINGS: dict[str, Any] = {"alpha": "drop", "do_exif_transpose": True, "jpeg_draft": False}
LOST_VIDEO_SETTINGS = {name: getattr(InternVLXVideoProcessor, name) for name in ("min_frames", "max_frames")}
FRAME_LABEL = "Frame{}: "


def fit_settings(source: Source, options: ConversionOptions, max_tiles: int) -> None:
    """Change a source's settings of images and videos to what the target layout does, with a note on each that is
    lost.

    Args:
        max_tiles: maximum number of tiles per image without the thumbnail, by the settings so far.

    Raises:
        ValueError: if an option asks for what the layout cannot do, or frames have another label than native
            InternVL's.
    """
    tiling, notes = source.tiling, source.notes
    if options.to == OURS:
        return
    for name in ImageSettings.names(PROCESSOR):
        if (value := getattr(tiling.settings, name)) is not None:
            notes.append(f"Processors of the layout {options.to!r} have no such setting: {name}={value} is left out.")
            tiling.change(**{name: None})
    for name, value in LOST_IMAGE_SETTINGS.items():
        if (given := tiling.others.get(name, value)) != value:
            notes.append(_lost(options.to, name, given, f"do as {name}={value!r}"))
    if options.to == LLAVA:
        _fit_llava(source, options, max_tiles)
    elif options.to == NATIVE:
        _fit_native(source, options, max_tiles)


def _lost(layout: str, name: str, value: Any, instead: str) -> str:
    return f"{name}={value!r} is left out: processors of the layout {layout!r} {instead}."


def _fit_llava(source: Source, options: ConversionOptions, max_tiles: int) -> None:
    if options.slicing is not None or (options.max_patches or 1) > 1:
        name, value = ("max_patches", options.max_patches) if options.slicing is None else ("slicing", options.slicing)
        raise ValueError(f"{name}={value!r} has no effect: LLaVA takes one tile per image. Leave it out.")
    if max_tiles > 1:
        source.notes.append(f"LLaVA takes one tile per image, while the source takes up to {max_tiles}.")
    source.tiling.change(**ONE_TILE)


def _fit_native(source: Source, options: ConversionOptions, max_tiles: int) -> None:
    tiling, video, notes = source.tiling, source.tiling.video, source.notes
    label = video.get("frame_label", FRAME_LABEL)
    if label != FRAME_LABEL:
        raise ValueError(
            f"Native InternVL writes {FRAME_LABEL!r} before a frame, but the processor has frame_label={label!r}."
        )
    if options.slicing not in (None, "ratio"):
        raise ValueError(
            f"slicing={options.slicing!r}, but native InternVL always cuts images by their ratio. Expected 'ratio', "
            "or leave it out."
        )
    if max_tiles == 1:  # InternVLProcessor sets crop_to_patches itself
        tiling.change(**ONE_TILE)
    else:
        if tiling.settings.slicing != "ratio":
            notes.append(
                _lost(NATIVE, "slicing", tiling.settings.slicing, "cut by ratio, small images into more tiles")
            )
        if not tiling.settings.use_thumbnail:
            notes.append(_lost(NATIVE, "use_thumbnail", False, "add a thumbnail to several tiles"))
    tiling.change(slicing="ratio", use_thumbnail=True)
    for name, value in LOST_VIDEO_SETTINGS.items():
        if (given := video.get(name, value)) != value:
            notes.append(_lost(NATIVE, name, given, "do not bound the frames of a video"))
    if video.get("do_sample_frames") is False:
        notes.append(
            "do_sample_frames=False is the default of native InternVL: converted back, the frames of video files are "
            "sampled."
        )


def shared_settings(processor: InternVLXImageProcessor) -> dict[str, Any]:
    """The settings of a processor that transformers' own has too."""
    saved = processor.to_dict()
    return {name: saved[name] for name in SHARED_SETTINGS if saved.get(name) is not None}
