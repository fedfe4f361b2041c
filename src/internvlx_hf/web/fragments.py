# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""HTML for the page: the tiles of an image, tables and figures. All text is escaped."""

import base64
import threading
from collections.abc import Sequence
from html import escape
from io import BytesIO

import PIL.Image

from ..chat import Turn
from ..checkpoints.numbers import FLOP_UNITS, scaled
from ..cost import ModelSetup
from ..pictures import Attention, draw_attention, draw_boxes, draw_sizes, draw_slicing
from ..pictures.canvas import COLOURS
from ..processing.boxes import LabelledBox
from ..processing.rvtc import SLICING_WORDS
from .shared_model import SlicingCost

_DRAWING = threading.Lock()  # matplotlib's caches are not thread-safe

STYLE = """
.ix-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 12px; }
.ix-card { border: 1px solid var(--border-color-primary); border-top: 4px solid var(--ix-colour); border-radius: 8px;
  padding: 10px 12px; background: var(--block-background-fill); color: var(--body-text-color); }
.ix-card h3 { margin: 0; color: var(--ix-colour); font-size: 1.1em; display: flex; align-items: baseline; gap: 8px; }
.ix-card h3 small { color: var(--body-text-color); opacity: 0.7; font-weight: normal; }
.ix-card h3 .ix-used { margin-left: auto; opacity: 1; color: #fff; background: var(--ix-colour); border-radius: 8px;
  padding: 0 8px; white-space: nowrap; }
.ix-card img { width: 100%; background: #fff; border-radius: 6px; margin: 8px 0; }
.ix-card dl { display: grid; grid-template-columns: auto auto; gap: 2px 12px; margin: 0; }
.ix-card dt { opacity: 0.7; }
.ix-card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.ix-note { color: var(--body-text-color); opacity: 0.7; font-size: 0.9em; margin: 8px 0 0; }
.ix-wide { overflow-x: auto; max-width: calc(100vw - 96px); }
.ix-wide img { min-width: 900px; width: 100%; background: #fff; border-radius: 6px; }
.ix-wide table.ix-table { border-collapse: collapse; border: none; width: 100%; color: var(--body-text-color); }
.ix-wide .ix-table tr { border: none; }
.ix-wide .ix-table :is(th, td) { text-align: right; padding: 4px 8px; border: none; background: none;
  border-bottom: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; }
.ix-wide .ix-table :is(th, td):first-child { text-align: left; }
"""


def cards(image: PIL.Image.Image, costs: Sequence[SlicingCost], used: str, text_tokens: int) -> str:
    """A card for each slicing strategy: the image under its grid, the tiles, and their cost."""
    all_cards = "".join(_card(image, each, each.slicing == used) for each in costs)
    seconds = " The time to the first token assumes the speed of the latest answer." if costs[0].seconds else ""
    note = (
        f"The image has {image.width} × {image.height} pixels. The prompt has the image and {text_tokens} tokens of "
        f"text.{seconds} Dashed: the thumbnail."
    )
    return f'<div class="ix-cards">{all_cards}</div><p class="ix-note">{escape(note)}</p>'


def _card(image: PIL.Image.Image, found: SlicingCost, is_used: bool) -> str:
    cost, plan = found.cost, found.plan
    tiles = f"{plan.columns} × {plan.rows}" + (" + thumbnail" if plan.has_thumbnail else "")
    rows = {"tiles": f"{cost.tiles} ({tiles})", "visual tokens": f"{cost.stage_one_tokens:,}"}
    if cost.stage_two_tokens != cost.stage_one_tokens:
        rows["after expansion"] = f"{cost.stage_two_tokens:,}"
    rows["prompt"] = scaled(cost.prefill_flops, FLOP_UNITS)
    if found.seconds is not None:
        rows["first token, about"] = f"{found.seconds:.2g} s"
    with _DRAWING:
        drawn = _image_tag(draw_slicing(image, plan, found.slicing), f"{found.slicing}: {tiles} tiles")
    badge = '<small class="ix-used">in use</small>' if is_used else ""
    head = f"<h3>{found.slicing} <small>{SLICING_WORDS[found.slicing]}</small>{badge}</h3>"
    numbers = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows.items())
    colour = COLOURS[found.slicing]
    return f'<div class="ix-card" style="--ix-colour: {colour}">{head}{drawn}<dl>{numbers}</dl></div>'


def attention_slide(attention: Attention, name: str) -> str:
    """The slide of [`draw_attention`], scrollable on narrow screens."""
    with _DRAWING:
        tag = _image_tag(draw_attention(attention, name), f"Attention for the answer {attention.answer!r}")
    return f'<div class="ix-wide">{tag}</div>'


def boxes_slide(image: PIL.Image.Image, boxes: Sequence[LabelledBox], name: str) -> str:
    """The slide of [`draw_boxes`], scrollable on narrow screens; nothing without boxes."""
    if not boxes:
        return ""
    with _DRAWING:
        title = f"{len(boxes)} box{'es' * (len(boxes) > 1)} of the answer"
        tag = _image_tag(draw_boxes(image, boxes, title, name), title)
    return f'<div class="ix-wide">{tag}</div>'


def sizes_slide(image: PIL.Image.Image, setup: ModelSetup, answers: dict[str, str], question: str) -> str:
    """The slide of [`draw_sizes`], scrollable on narrow screens."""
    with _DRAWING:
        said = "; ".join(f"{size}: {answer!r}" for size, answer in answers.items())
        tag = _image_tag(draw_sizes(image, setup, answers, question, "Tokens per tile"), f"Answers by size: {said}")
    return f'<div class="ix-wide">{tag}</div>'


def comparison(turns: Sequence[tuple[str, Turn | None]]) -> str:
    """A table of the cost of answers under several settings. A turn is None until its answer is complete."""
    rows = {
        "tiles": [_cell(turn, "tiles") for _, turn in turns],
        "visual tokens": [_cell(turn, "tokens") for _, turn in turns],
        "after the expansion": [_cell(turn, "expanded_tokens") for _, turn in turns],
        "prompt tokens": [_cell(turn, "prompt_tokens") for _, turn in turns],
        "answer tokens": [_cell(turn, "answer_tokens") for _, turn in turns],
        "seconds to the first token": [_cell(turn, "first_seconds") for _, turn in turns],
        "seconds to the end": [_cell(turn, "seconds") for _, turn in turns],
    }
    if rows["after the expansion"] == rows["visual tokens"]:
        del rows["after the expansion"]
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in turns)
    body = "".join(
        f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows.items()
    )
    return f'<div class="ix-wide"><table class="ix-table"><tr><th></th>{head}</tr>{body}</table></div>'


def note(text: str) -> str:
    return f'<p class="ix-note">{escape(text)}</p>' if text else ""


def _cell(turn: Turn | None, name: str) -> str:
    if turn is None:
        return "…"
    value = getattr(turn, name)
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}"


def _image_tag(figure, alt: str) -> str:
    file = BytesIO()
    figure.savefig(file, format="png")
    packed = BytesIO()
    PIL.Image.open(file).convert("RGB").save(packed, "webp", quality=85)
    data = base64.b64encode(packed.getvalue()).decode()
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(alt)}">'
