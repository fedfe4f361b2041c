"""Draw docs/vllm.png: the rows and the blocks of LVTC's two stages in vLLM, for a prompt of two tiles.

python docs/draw_vllm.py
"""

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

BEFORE, AFTER, BLOCK = 2, 8, 4  # tokens per tile in the two stages, and in a block
LAYOUT = ["text"] * 3 + ["first tile"] * AFTER + ["second tile"] * AFTER + ["text"] * 2
TEXT = "#d9dde0"
TILES = {"first tile": ("#1f6f8b", "#a9ccd6"), "second tile": ("#c2703d", "#eccbb4")}
LONG, SHORT, EXPANDED = 5.2, 2.75, 0.3  # heights of the three sequences


def in_stage_one() -> list[int]:
    """Rows of the long sequence that stage one has: all text, and the first of each tile."""
    starts = {name: LAYOUT.index(name) for name in TILES}
    return [row for row, part in enumerate(LAYOUT) if part == "text" or row - starts[part] < BEFORE]


def draw_sequence(axis, y: float, rows: list[int], kept: set[int], title: str) -> None:
    for column, row in enumerate(rows):
        part = LAYOUT[row]
        colour = TEXT if part == "text" else TILES[part][row not in kept]
        axis.add_patch(Rectangle((column, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
        dark = part != "text" and row in kept
        axis.text(
            column + 0.5, y + 0.5, str(column), ha="center", va="center", fontsize=8, color="white" if dark else "#333"
        )
    axis.text(-0.4, y + 0.5, title, ha="right", va="center", fontsize=9)


def draw_blocks(axis, y: float, length: int) -> None:
    for start in range(0, length, BLOCK):
        axis.add_patch(
            FancyBboxPatch(
                (start + 0.08, y - 0.16),
                BLOCK - 0.16,
                1.32,
                boxstyle="round,pad=0,rounding_size=0.15",
                facecolor="none",
                edgecolor="#555",
                linewidth=1,
                linestyle="--",
            )
        )


def draw_link(axis, above: tuple[int, int], below: tuple[int, int], top: float, bottom: float, colour: str) -> None:
    corners = [(above[0], top), (above[1], top), (below[1], bottom), (below[0], bottom)]
    axis.add_patch(Polygon(corners, facecolor=colour, alpha=0.25, edgecolor="none"))


def main() -> None:
    figure, axis = plt.subplots(figsize=(11, 4.6), constrained_layout=True)
    rows, kept = list(range(len(LAYOUT))), in_stage_one()
    draw_sequence(axis, LONG, rows, set(kept), "scheduler, sampler:\nthe long sequence")
    draw_sequence(axis, SHORT, kept, set(kept), "stage one, layers 0 to k−1:\nthe short sequence")
    draw_sequence(axis, EXPANDED, rows, set(rows), "stage two, layers from k on:\nthe long sequence")
    draw_blocks(axis, SHORT, len(kept))
    draw_blocks(axis, EXPANDED, len(rows))

    bounds = [0, *(row for row in rows[1:] if LAYOUT[row] != LAYOUT[row - 1]), len(rows)]
    for start, end in pairwise(bounds):
        part = LAYOUT[start]
        colour = "#8a9299" if part == "text" else TILES[part][0]
        taken = [row for row in kept if start <= row < end]
        short = kept.index(taken[0]), kept.index(taken[-1]) + 1
        draw_link(axis, (taken[0], taken[-1] + 1), short, LONG, SHORT + 1.16, colour)
        draw_link(axis, short, (start, end), SHORT - 0.16, EXPANDED + 1.16, colour)
    blocks = [-(-length // BLOCK) for length in (len(kept), len(rows))]
    right = blocks[0] * BLOCK + 0.4
    axis.text(right, SHORT + 0.72, f"{blocks[0]} blocks per layer", fontsize=9, va="center")
    axis.text(
        right,
        SHORT + 0.22,
        "numbers: positions; dashed: blocks of keys and values",
        fontsize=9,
        va="center",
        color="#555",
    )
    axis.text(blocks[1] * BLOCK + 0.3, EXPANDED + 0.5, f"{blocks[1]} blocks", fontsize=9, va="center")
    axis.text(0, LONG + 1.3, "text", fontsize=9, color="#555")
    for name, (colour, _) in TILES.items():
        label = f"{name}: {AFTER} rows, {BEFORE} in stage one"
        axis.text(LAYOUT.index(name), LONG + 1.3, label, fontsize=9, color=colour)
    axis.set_xlim(-6.4, blocks[1] * BLOCK + 2.2)
    axis.set_ylim(0, LONG + 1.9)
    axis.axis("off")
    figure.savefig(Path(__file__).with_name("vllm.png"), dpi=110)


if __name__ == "__main__":
    main()
