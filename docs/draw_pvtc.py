"""Draw docs/pvtc.png: how PVTC makes one token of a window of patches.

python docs/draw_pvtc.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image
from sklearn.datasets import load_sample_image

GRID, SIDE = 8, 2  # patches a side of the tile that is drawn, and of a window
WINDOW = 4, 2  # row and column, in patches, of the window that is followed
ORANGE, BLUE, DARK, GREY = "#d9730d", "#1f6f8b", "#24292f", "#6e7781"


def tile() -> Image.Image:
    """448x448 pixels of scikit-learn's picture of a temple."""
    picture = Image.fromarray(load_sample_image("china.jpg"))
    return picture.crop((60, 0, 60 + 427, 427)).resize((448, 448), Image.Resampling.BICUBIC)


def box(axes, x: float, y: float, text: str, colour: str, width: float = 3.3, height: float = 1.25) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.12",
            facecolor="white",
            edgecolor=colour,
            linewidth=1.8,
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=9, color=DARK, linespacing=1.3)


def arrow(axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY, bend: float = 0.0) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.6, "connectionstyle": f"arc3,rad={bend}"}
    axes.add_patch(FancyArrowPatch(start, end, color=colour, shrinkA=0, shrinkB=0, **style))


def draw_tile(axes, picture: Image.Image) -> None:
    """The tile with its patches, in units of 0.6 a patch, its top left corner at (0, 6)."""
    step, top = 0.6, 6.0
    axes.imshow(picture, extent=(0, GRID * step, top - GRID * step, top), zorder=0)
    for line in range(GRID + 1):
        weight = 1.1 if line % SIDE == 0 else 0.4
        axes.plot([line * step] * 2, [top, top - GRID * step], color="white", linewidth=weight)
        axes.plot([0, GRID * step], [top - line * step] * 2, color="white", linewidth=weight)
    row, column = WINDOW
    corner = column * step, top - (row + SIDE) * step
    axes.add_patch(Rectangle(corner, SIDE * step, SIDE * step, fill=False, edgecolor=ORANGE, linewidth=3))
    axes.text(0, top + 0.2, "a tile: patches, in windows of M×M", fontsize=10.5, color=DARK)
    axes.add_patch(Rectangle((0, 0.25), step, step, facecolor=BLUE))
    axes.text(step + 0.2, 0.25 + step / 2, "CLS token: the whole tile", va="center", fontsize=10.5, color=BLUE)


def draw_window(axes, picture: Image.Image) -> None:
    row, column = WINDOW
    side = picture.width / GRID
    window = picture.crop((column * side, row * side, (column + SIDE) * side, (row + SIDE) * side))
    axes.imshow(window, extent=(6.0, 7.6, 2.75, 4.35), zorder=0)
    axes.plot([6.8, 6.8], [2.75, 4.35], color="white", linewidth=1.1)
    axes.plot([6.0, 7.6], [3.55, 3.55], color="white", linewidth=1.1)
    axes.add_patch(Rectangle((6.0, 2.75), 1.6, 1.6, fill=False, edgecolor=ORANGE, linewidth=3))
    axes.text(6.8, 2.55, "keys and values:\nthe window's M² patches", ha="center", va="top", fontsize=9.5, color=DARK)


def main() -> None:
    picture = tile()
    figure, axes = plt.subplots(figsize=(13.5, 5.2))
    draw_tile(axes, picture)
    draw_window(axes, picture)
    arrow(axes, (2.4, 3.0), (5.9, 3.5), ORANGE)

    box(axes, 10.3, 5.7, "local query\nits patches, side by side:\nnorm, linear, SiLU", ORANGE)
    box(axes, 10.3, 0.75, "global query\nCLS: norm, linear, SiLU,\n× a scale for each window", BLUE)
    arrow(axes, (6.8, 4.45), (8.6, 5.7), ORANGE, -0.3)
    arrow(axes, (4.75, 0.55), (8.6, 0.75), BLUE)

    box(axes, 13.9, 4.35, "cross-attention + SwiGLU,\nboth residual", ORANGE)
    box(axes, 13.9, 2.0, "cross-attention + SwiGLU,\nboth residual", BLUE)
    arrow(axes, (12.0, 5.6), (13.4, 5.03), ORANGE)
    arrow(axes, (12.0, 0.8), (13.4, 1.32), BLUE)
    arrow(axes, (7.75, 3.7), (12.2, 4.35))
    arrow(axes, (7.75, 3.4), (12.2, 2.0))

    axes.text(16.5, 3.175, "+", ha="center", va="center", fontsize=20, color=DARK)
    arrow(axes, (15.6, 4.2), (16.35, 3.4), ORANGE)
    arrow(axes, (15.6, 2.15), (16.35, 2.95), BLUE)
    arrow(axes, (16.7, 3.175), (17.2, 3.175))
    axes.add_patch(Rectangle((17.3, 2.875), 0.6, 0.6, facecolor=DARK))
    axes.text(17.6, 2.65, "one token", ha="center", va="top", fontsize=10.5, color=DARK)

    axes.set(xlim=(-0.2, 18.4), ylim=(0, 6.7), aspect="equal")
    axes.axis("off")
    figure.savefig(Path(__file__).with_name("pvtc.png"), dpi=100, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
