# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A slide that shows where in an image PVTC's queries and the two stages of the language model look."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from ..cost.flops import STAGES
from .attention import Attention
from .canvas import GREY, HEIGHT, INK, WIDTH, Box, Canvas, printable, text_width
from .layout import ImageGrid, ImageShape, split

MARGIN, GAP = 0.5, 0.35
TOP, BOTTOM = 1.2, HEIGHT - 0.5  # of the area for maps with their titles
HEADING = 0.78  # height of the title, caption and colour scale above maps
MAX_TOKENS = 8
MIN_SHARE = 0.005  # smallest share of the attention that is drawn; below it a map shows noise
MORE, LESS, LOOK = (217, 95, 2), (47, 111, 183), (200, 30, 60)  # RGB of the overlays


@dataclass
class Panel:
    """A map to draw: `overlay` (tiles, h, w, 4) RGBA, and a colour scale (1, steps, 4) with the labels of its ends."""

    title: str
    caption: str
    overlay: np.ndarray
    scale: np.ndarray
    ends: tuple[str, str]


def draw_attention(attention: Attention, model_name: str):
    """Draw what [`attend`] recorded: maps over the image and its thumbnail, in the mean and for single tokens of the
    answer.

    A stage that attends to text only is named in a line and has no map.

    Returns:
        A matplotlib `Figure`, 16:9.
    """
    canvas = Canvas()
    canvas.text(MARGIN, 0.42, attention.question, 19, WIDTH - 2 * MARGIN, weight="bold")
    answer = " / ".join(attention.answer.split("\n"))
    cut = f", cut off after {len(attention.tokens)} tokens" if attention.finish_reason == "length" else ""
    canvas.text(MARGIN, 0.82, f"{model_name} answers{cut}: {answer}", 13, WIDTH - 2 * MARGIN)
    shape = ImageShape(attention.image.width / attention.image.height, attention.plan.has_thumbnail)
    panels = _panels(attention)
    stage, steps = _strip_steps(attention)
    box = Box(MARGIN, TOP, WIDTH - 2 * MARGIN, BOTTOM - TOP)
    grid = ImageGrid(len(panels), shape, head=HEADING, min_width=2.05, gap=GAP)
    if panels and steps:
        strip = ImageGrid(len(steps), shape, foot=_strip_foot, min_width=0.75, gap=0.2)
        box, rest = split(box, grid, strip, HEADING, GAP)
        _draw_strip(canvas, attention, stage, steps, strip, rest)
    for panel, cell in zip(panels, grid.cells(box)[1], strict=True):
        _draw_head(canvas, panel.title, panel.caption, cell)
        _draw_scale(canvas, panel.scale, panel.ends, cell)
        _draw_map(canvas, attention, panel.overlay, grid.image_box(cell))
    _draw_foot(canvas, attention)
    return canvas.figure


def stage_name(attention: Attention, stage: str) -> str:
    """A name such as `"Stage two: layers 2–3"`. Layers are counted from 0, like `expand_layer`."""
    name = (
        dict(zip(STAGES, ("Stage one", "Stage two", "Stage three"), strict=True))[stage]
        if len(attention.stages) > 1
        else "Language model"
    )
    return f"{name}: {_layers(attention, stage)}"


def _layers(attention: Attention, stage: str) -> str:
    layers = attention.layers[stage]
    return f"layer {layers.start}" if len(layers) == 1 else f"layers {layers.start}–{layers.stop - 1}"


def image_share(attention: Attention, stage: str) -> float:
    """The share of a stage's attention that goes to the image, in the mean over the answer's tokens. Text has the
    rest.
    """
    return attention.stages[stage].sum(dim=(1, 2, 3)).mean().item()


def _panels(attention: Attention) -> list[Panel]:
    titles = {"local": "PVTC's local queries", "global": "PVTC's global queries"}
    # from half an even share to twice an even share
    steps = 2 ** torch.linspace(-1, 1, 41)[None, None]
    panels = [
        Panel(
            titles[name],
            "attention inside each window",
            even_share_overlay(maps),
            even_share_overlay(steps)[0],
            ("≤½×", "≥2× an even share"),
        )
        for name, maps in attention.queries.items()
    ]
    for stage in _shown_stages(attention):
        maps, share = attention.stages[stage].mean(0), image_share(attention, stage)
        full = _full_strength(maps)
        caption = f"attention: {share:.0%} image, {1 - share:.0%} text"
        ends = ("1×", f"≥{full:.1f}× an even share")
        panels.append(Panel(stage_name(attention, stage), caption, share_overlay(maps), _share_scale(), ends))
    return panels


def _shown_stages(attention: Attention) -> list[str]:
    return [stage for stage in attention.stages if image_share(attention, stage) >= MIN_SHARE]


def even_share_overlay(maps: torch.Tensor) -> np.ndarray:
    """(n, h, w) shares, where 1 is even -> (n, h, w, 4), stronger the further from 1, and full at 2 and at 1/2."""
    strength = maps.clamp(min=1e-3).log2().numpy()
    colours = np.where(strength[..., None] > 0, MORE, LESS)
    return _rgba(colours, np.abs(strength), most=0.7)


def share_overlay(maps: torch.Tensor, full: float | None = None) -> np.ndarray:
    """(n, h, w) shares -> (n, h, w, 4): what gets more than an even share; the stronger, the larger.

    Args:
        full: the multiple of an even share that has the full colour; by default the 99th percentile, for single tokens
            may have many times what all others have, and not below double.
    """
    even = maps.mean().item() or 1.0
    full = _full_strength(maps) if full is None else full
    return _rgba(np.broadcast_to(LOOK, (*maps.shape, 3)), (maps.numpy() / even - 1) / (full - 1))


def _full_strength(maps: torch.Tensor) -> float:
    even = maps.mean().item() or 1.0
    return max(torch.quantile(maps.flatten(), 0.99, interpolation="higher").item() / even, 2.0)


def _share_scale() -> np.ndarray:
    strength = np.linspace(0, 1, 41)[None]
    return _rgba(np.broadcast_to(LOOK, (*strength.shape, 3)), strength)


def _rgba(colours: np.ndarray, strength: np.ndarray, most: float = 0.85) -> np.ndarray:
    alpha = most * np.clip(strength, 0, 1)[..., None]
    return np.concatenate([colours / 255, alpha], axis=-1)


def _draw_head(canvas: Canvas, title: str, caption: str, box: Box) -> None:
    for y, text, size, style in ((0.12, title, 13, {"weight": "bold"}), (0.37, caption, 9, {"color": GREY})):
        fitting = size * min(1, max(0.99 * box.width / text_width(text, size, style.get("weight", "normal")), 0.75))
        canvas.text(box.left, box.top + y, text, fitting, box.width, **style)


def _draw_scale(canvas: Canvas, scale: np.ndarray, ends: tuple[str, str], box: Box) -> None:
    """A bar of colours between the labels of its ends, below a title and a caption."""
    widths, gap, y = [text_width(end, 8) for end in ends], 0.06, box.top + 0.6
    canvas.text(box.left, y, ends[0], 8, color=GREY)
    bar = Box(box.left + widths[0] + gap, y - 0.06, min(0.9, box.width - sum(widths) - 2 * gap), 0.12)
    canvas.image(scale, bar)
    canvas.frame(bar, GREY, 0.5)
    canvas.text(bar.left + bar.width + gap, y, ends[1], 8, color=GREY)


def _draw_map(canvas: Canvas, attention: Attention, overlay: np.ndarray, box: Box, linewidth: float = 1.0) -> None:
    """Draw the tiles' map over the image, and the thumbnail's map beside or below it."""
    plan = attention.plan
    shape = ImageShape(attention.image.width / attention.image.height, plan.has_thumbnail)
    place, thumbnail = shape.place(box)
    image = _faded(attention.image)
    canvas.image(image, place)
    canvas.image(_assembled(overlay[: plan.columns * plan.rows], plan.columns), place, sharp=True)
    canvas.grid(place, plan.columns, plan.rows, INK, linewidth, seam=0)
    if thumbnail is not None:
        canvas.image(image.resize((256, 256)), thumbnail)
        canvas.image(overlay[-1], thumbnail, sharp=True)
        canvas.frame(thumbnail, INK, 0.8 * linewidth, linestyle=(0, (3, 2)))


def _assembled(tiles: np.ndarray, columns: int) -> np.ndarray:
    """(rows·columns, h, w, 4) tiles in raster order -> (rows·h, columns·w, 4)."""
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows, axis=0)


def _strip_steps(attention: Attention) -> tuple[str, list[int]]:
    """The last stage that looks at the image, and the indices of non-blank tokens spread over the answer."""
    stages = _shown_stages(attention)
    written = [i for i, token in enumerate(attention.tokens) if token.strip()]
    if not stages or not written:
        return "", []
    count = min(MAX_TOKENS, len(written))
    return stages[-1], [written[round(i * (len(written) - 1) / max(1, count - 1))] for i in range(count)]


def _strip_foot(width: float) -> float:
    """Height of the token and its share below a map. In a narrow cell they are on two lines."""
    return 0.28 if width >= 1.2 else 0.46


def _draw_strip(canvas: Canvas, attention: Attention, stage: str, steps: list[int], grid: ImageGrid, box: Box) -> None:
    """Draw the attention of a stage for single tokens, all on one colour scale."""
    written = sum(bool(token.strip()) for token in attention.tokens)
    which = f"all {written} tokens" if written == len(steps) else f"{len(steps)} of {written} tokens"
    _draw_head(canvas, f"Token by token, {_layers(attention, stage)}", f"{which}, share on the image", box)
    maps = attention.stages[stage][steps]
    full = max(_full_strength(each) for each in maps)
    _draw_scale(canvas, _share_scale(), ("1×", f"≥{full:.1f}× an even share"), box)
    below = Box(box.left, box.top + HEADING, box.width, box.height - HEADING)
    for step, each, cell in zip(steps, maps, grid.cells(below)[1], strict=True):
        place = grid.image_box(cell)
        _draw_map(canvas, attention, share_overlay(each, full), place, 0.8)
        bottom = max(part.top + part.height for part in grid.shape.place(place) if part is not None)
        token, share = f"“{printable(attention.tokens[step].strip())}”", f"{each.sum().item():.0%}"
        if _strip_foot(cell.width) < 0.3:
            most = cell.width - text_width(share, 9) - 0.08
            canvas.text(cell.left, bottom + 0.16, token, 12, most)
            canvas.text(cell.left + min(text_width(token, 12), most) + 0.08, bottom + 0.16, share, 9, color=GREY)
        else:
            size = 12 * min(1, max(cell.width / text_width(token, 12), 0.6))
            canvas.text(cell.left, bottom + 0.16, token, size, cell.width)
            canvas.text(cell.left, bottom + 0.36, share, 9, cell.width, color=GREY)


def _draw_foot(canvas: Canvas, attention: Attention) -> None:
    lines = []
    for stage in attention.stages:
        if stage not in _shown_stages(attention):
            share = image_share(attention, stage)
            lines.append(
                f"{stage_name(attention, stage)} looks at text: {share:.1%} of its attention goes to the image."
            )
    legend = "Red: more than an even share of the attention to the image. Layers are counted from 0."
    if attention.queries:
        legend = "Orange: more than an even share of the attention in a window, blue: less. " + legend
    if attention.plan.has_thumbnail:
        legend += " Dashed: the thumbnail."
    lines.append(legend)
    for i, line in enumerate(reversed(lines)):
        canvas.text(MARGIN, HEIGHT - 0.16 - 0.18 * i, line, 8, WIDTH - 2 * MARGIN, color=GREY)


def _faded(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in light grey, so that only the maps have colour."""
    grey = image.convert("L").convert("RGB")
    return PIL.Image.blend(grey, PIL.Image.new("RGB", grey.size, "white"), 0.5)
