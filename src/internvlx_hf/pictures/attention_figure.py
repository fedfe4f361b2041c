# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A slide: where PVTC's queries and the two stages of the language model look on a picture."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from ..cost.flops import STAGE_ONE, STAGE_TWO
from .attention import Attention
from .canvas import GREY, INK, WIDTH, Box, Canvas

MARGIN, GAP = 0.5, 0.35
TOP, BOTTOM = 1.95, 4.62  # of the large maps, thumbnails included
STRIP_TOP, STRIP_BOTTOM = 5.72, 7.05
MOST_TOKENS = 8
MORE, LESS, LOOK = (217, 95, 2), (47, 111, 183), (200, 30, 60)  # RGB of the overlays


@dataclass
class Panel:
    """A map to draw: `overlay` (tiles, h, w, 4) RGBA."""

    title: str
    caption: str
    overlay: np.ndarray


def draw_attention(attention: Attention, model_name: str):
    """Draw what [`attend`] recorded: each map over the picture's grid, and how the gaze moves from token to token.

    Returns:
        A matplotlib `Figure`, 16:9.
    """
    canvas = Canvas()
    canvas.text(MARGIN, 0.42, attention.question, 19, WIDTH - 2 * MARGIN, weight="bold")
    answer = " / ".join(attention.answer.split("\n"))
    canvas.text(MARGIN, 0.82, f"{model_name} answers: {answer}", 13, WIDTH - 2 * MARGIN)
    panels = _panels(attention)
    width = (WIDTH - 2 * MARGIN - (len(panels) - 1) * GAP) / len(panels)
    for i, panel in enumerate(panels):
        left = MARGIN + i * (width + GAP)
        canvas.text(left, 1.36, panel.title, 13, width, weight="bold")
        canvas.text(left, 1.64, panel.caption, 9, width, color=GREY)
        _draw_map(canvas, attention, panel.overlay, Box(left, TOP, width, BOTTOM - TOP))
    _draw_strip(canvas, attention)
    return canvas.figure


def _panels(attention: Attention) -> list[Panel]:
    titles = {"local": "PVTC's local queries", "global": "PVTC's global queries"}
    panels = [
        Panel(titles[name], "orange: above an even share of a window", even_share_overlay(maps))
        for name, maps in attention.queries.items()
    ]
    when = {STAGE_ONE: "before the expansion: ", STAGE_TWO: "after the expansion: "}
    for stage, maps in attention.stages.items():
        layers, share = attention.layers[stage], maps.sum(dim=(1, 2, 3)).mean().item()
        caption = (when[stage] if STAGE_TWO in attention.stages else "") + f"{share:.0%} on the picture"
        title = f"Language layers {layers.start}–{layers.stop - 1}"
        panels.append(Panel(title, caption, share_overlay(maps.mean(0))))
    return panels


def even_share_overlay(maps: torch.Tensor) -> np.ndarray:
    """(n, h, w) shares in units of an even one -> (n, h, w, 4): the stronger, the further from even; full at double."""
    strength = maps.clamp(min=1e-3).log2().numpy()
    colours = np.where(strength[..., None] > 0, MORE, LESS)
    return _rgba(colours, np.abs(strength), most=0.7)


def share_overlay(maps: torch.Tensor) -> np.ndarray:
    """(n, h, w) shares -> (n, h, w, 4): what gets more than an even share; the stronger, the larger.

    Full at the 99th percentile, for single tokens may have many times what all others have, and not below double.
    """
    even = maps.mean().item() or 1.0
    full = max(torch.quantile(maps.flatten(), 0.99, interpolation="higher").item() / even, 2.0)
    return _rgba(np.broadcast_to(LOOK, (*maps.shape, 3)), (maps.numpy() / even - 1) / (full - 1))


def _rgba(colours: np.ndarray, strength: np.ndarray, most: float = 0.85) -> np.ndarray:
    alpha = most * np.clip(strength, 0, 1)[..., None]
    return np.concatenate([colours / 255, alpha], axis=-1)


def _draw_map(canvas: Canvas, attention: Attention, overlay: np.ndarray, box: Box) -> None:
    """The map of the tiles over the picture, and below that of the thumbnail."""
    plan, picture_box = attention.plan, box
    side = 0.3 * box.height
    if plan.has_thumbnail:
        picture_box = Box(box.left, box.top, box.width, box.height - side - 0.18)
    image = _faded(attention.image)
    picture = picture_box.fit(*image.size)
    picture = Box(box.left, box.top, picture.width, picture.height)
    canvas.picture(image, picture)
    tiles = overlay[: plan.columns * plan.rows]
    canvas.picture(_assembled(tiles, plan.columns), picture, sharp=True)
    canvas.grid(picture, plan.columns, plan.rows, INK, 1.0, seam=0)
    if plan.has_thumbnail:
        place = Box(box.left, picture.top + picture.height + 0.18, side, side)
        canvas.picture(image.resize((256, 256)), place)
        canvas.picture(overlay[-1], place, sharp=True)
        canvas.frame(place, INK, 0.8, linestyle=(0, (3, 2)))
        canvas.text(place.left + side + 0.1, place.top + side / 2, "thumbnail", 9, color=GREY)


def _assembled(tiles: np.ndarray, columns: int) -> np.ndarray:
    """(rows·columns, h, w, 4) tiles in raster order -> one array of the whole grid."""
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows, axis=0)


def _draw_strip(canvas: Canvas, attention: Attention) -> None:
    """The last stage's gaze for tokens from all over the answer."""
    stage, maps = list(attention.stages.items())[-1]
    written = [i for i, token in enumerate(attention.tokens) if token.strip()]
    if not written:
        return
    count = min(MOST_TOKENS, len(written))
    chosen = [written[round(i * (len(written) - 1) / max(1, count - 1))] for i in range(count)]
    title = "Token by token" + (", after the expansion" if stage == STAGE_TWO else "")
    canvas.text(MARGIN, 5.02, title, 13, weight="bold")
    text = "red: above an even share of what goes to the picture while a token is written; " + (
        f"all {count} of the answer"
        if count == len(written)
        else f"{count} of the answer's {len(written)}, evenly chosen"
    )
    canvas.text(MARGIN, 5.29, text, 9.5, color=GREY)
    gap = 0.2
    width = (WIDTH - 2 * MARGIN - (MOST_TOKENS - 1) * gap) / MOST_TOKENS
    image, plan = _faded(attention.image), attention.plan
    for i, step in enumerate(chosen):
        box = Box(MARGIN + i * (width + gap), STRIP_TOP, width, STRIP_BOTTOM - STRIP_TOP)
        picture = box.fit(*image.size)
        picture = Box(box.left, box.top, picture.width, picture.height)
        canvas.picture(image, picture)
        overlay = share_overlay(maps[step])[: plan.columns * plan.rows]
        canvas.picture(_assembled(overlay, plan.columns), picture, sharp=True)
        canvas.grid(picture, plan.columns, plan.rows, INK, 0.8, seam=0)
        canvas.text(box.left, picture.top + picture.height + 0.2, f"“{attention.tokens[step].strip()}”", 12, width)


def _faded(image: PIL.Image.Image) -> PIL.Image.Image:
    """Grey and light, so that colour belongs to the maps."""
    grey = image.convert("L").convert("RGB")
    return PIL.Image.blend(grey, PIL.Image.new("RGB", grey.size, "white"), 0.35)
