# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Figures of the tiles that a model gets, their cost, and where the model looks. Drawing needs `pip install
matplotlib`.

figure = draw_tiles("photo.jpg", load_setup("internvl-x-2b"))
figure.savefig("tiles.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .attention import Attention, attend

if TYPE_CHECKING:
    from .attention_figure import draw_attention
    from .boxes_figure import draw_boxes
    from .frames_figure import draw_frames
    from .sizes_figure import draw_sizes
    from .tiles_figure import draw_tiles

# imported on first use: they need matplotlib
_LAZY = {
    "draw_attention": "attention_figure",
    "draw_boxes": "boxes_figure",
    "draw_frames": "frames_figure",
    "draw_sizes": "sizes_figure",
    "draw_slicing": "tiles_figure",
    "draw_tiles": "tiles_figure",
}

__all__ = ["Attention", "attend", "draw_attention", "draw_boxes", "draw_frames", "draw_sizes", "draw_tiles"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
