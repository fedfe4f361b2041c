# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The page and the picture of a tuning: cost against agreement, and the answers that changed with their images."""

import base64
import html
from collections.abc import Mapping
from io import BytesIO

import numpy as np
import PIL.Image
from matplotlib.figure import Figure

from ..checkpoints.numbers import FLOP_UNITS, scaled
from ..pictures.canvas import COLOURS, DPI, GREY, INK, printable
from .report import TuneReport

THUMBNAIL = 160  # pixels
SHOWN = 12  # changed answers of a setting
STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1d2430; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .3rem .8rem; border-bottom: 1px solid #e3e7ea }
td { text-align: right } td:first-child, .answers td { text-align: left; vertical-align: top }
tr.chosen { font-weight: bold; background: #eef6f2 } img.figure { max-width: 100% } .verdict { font-size: 1.2rem }
pre { white-space: pre-wrap; margin: 0 }
"""


def draw(report: TuneReport) -> Figure:
    """Cost relative to the model's own settings against the share of images that keep their answers, with 95 %
    intervals.
    """
    figure = Figure(figsize=(9, 5.4), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    own, rows = report.rows[0].flops, sorted(report.rows, key=lambda row: (row.same / row.asked, row.flops))
    for row, height in zip(rows, _spread([100 * row.same / row.asked for row in rows]), strict=True):
        is_chosen = row.settings == report.recommended
        colour = COLOURS["edge"] if is_chosen else INK if not row.settings else COLOURS["area"]
        share, (low, high) = row.same / row.asked, row.interval
        place = 100 * row.flops / own
        if row.settings:
            axes.plot([place, place], [100 * low, 100 * high], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(place, 100 * share, "o", color=colour, markersize=9 if is_chosen else 6)
        leader = {"arrowstyle": "-", "color": colour, "alpha": 0.4, "linewidth": 0.6, "relpos": (0, 0.5)}
        axes.annotate(
            printable(row.name),
            (place, 100 * share),
            (104, height),
            annotation_clip=False,
            arrowprops=leader,
            color=colour,
            fontsize=8,
            va="center",
        )
    axes.axhline(100 * report.keep, color=GREY, linewidth=0.8, linestyle="--")
    axes.annotate(
        f"keep {report.keep:g}", (0, 100 * report.keep), (4, -11), textcoords="offset points", fontsize=8, color=GREY
    )
    axes.set(
        xlabel=f"work before the first token, % of {scaled(own, FLOP_UNITS)}", ylabel="answers that stayed the same, %"
    )
    axes.set(xlim=(0, 103), ylim=(-8, 104), title=printable(report.verdict))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _spread(heights: list[float]) -> list[float]:
    """Ascending heights from 0 to 100 for labels in a column, moved as little as keeps these apart."""
    steps = min(5, 100 / len(heights)) * np.arange(len(heights))
    raised = np.maximum.accumulate(heights - steps) + steps
    most = 100 - steps[::-1]  # so that those above have room
    return np.minimum(raised, most).tolist()


def write_page(report: TuneReport, images: Mapping[str, PIL.Image.Image]) -> str:
    """The page, complete in one file but for `tune.png` beside it.

    Args:
        images: the images of answers that changed, by name.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>internvlx tune</title>",
        f"<style>{STYLE}</style><h1>{_text(report.verdict.capitalize())}</h1>",
        *(f"<p class=verdict>{_text(sentence)}</p>" for sentence in report.sentences),
        f"<p>{report.images} images, {_text(report.model)}; {_text(report.asked)}. "
        f"{_text(report.noise_line().capitalize())}.</p>",
        '<p><img class=figure src="tune.png" alt="Cost against agreement of each setting"></p>',
        _table(report),
        *(f"<p>{_text(note)}</p>" for note in report.notes),
    ]
    for row in report.rows:
        if row.changed:
            parts.append(f"<h2>Changed with {_text(row.name)}</h2><table class=answers>")
            parts.append("<tr><th><th>before<th>after</tr>")
            parts += [_change(change, images.get(change["image"])) for change in row.changed[:SHOWN]]
            parts.append("</table>")
    return "\n".join(parts) + "\n"


def _table(report: TuneReport) -> str:
    names = ["setting", "tiles", "visual tokens", "work", "seconds", "same", "95 % interval", "tokens before a change"]
    names += ["KL per token", *([report.metric] if report.metric else [])]
    lines = ["<table>", "<tr>" + "".join(f"<th>{_text(name)}" for name in names)]
    for row in report.rows:
        low, high = row.interval
        cells = [
            row.name,
            f"{row.tiles:.2f}",
            f"{row.tokens:,.0f}",
            scaled(row.flops, FLOP_UNITS),
            f"{row.seconds:.2f}",
        ]
        cells += [f"{row.same} of {row.asked}", f"{low:.2f} to {high:.2f}" if row.settings else ""]
        cells += ["" if row.common is None else f"{row.common:.1f}", f"{row.divergence:.4f}"]
        cells += [] if row.score is None else [f"{row.score:.3f}"]
        chosen = " class=chosen" if row.settings == report.recommended else ""
        lines.append(f"<tr{chosen}>" + "".join(f"<td>{_text(cell)}" for cell in cells))
    return "\n".join([*lines, "</table>"])


def _change(change: Mapping[str, str], image: PIL.Image.Image | None) -> str:
    picture = "" if image is None else f'<img src="{_data_uri(image)}" alt=""><br>'
    before, after = (f"<pre>{_text(change[name])}</pre>" for name in ("before", "after"))
    return f"<tr><td>{picture}{_text(change['image'])}<td>{before}<td>{after}"


def _data_uri(image: PIL.Image.Image) -> str:
    small, file = image.convert("RGB"), BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _text(value: str) -> str:
    return html.escape(value)
