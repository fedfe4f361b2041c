"""Draw the README's picture, light and dark: a photo at two sizes, its tiles, tokens and seconds, as measured.

python docs/draw_front.py
"""

import sys
from pathlib import Path

import PIL.Image
from matplotlib import pyplot as plt
from sklearn.datasets import load_sample_image

from internvlx_hf.processing.rvtc import TilingRule

DOCS = Path(__file__).parent
PHOTO = DOCS.parent / "examples" / "photo.jpg"
RESULTS = DOCS.parent / "benchmarks" / "results" / "end_to_end.md"
CASES = {"InternVL": ("ratio", "InternVL"), "RVTC edge": ("edge", "this package")}
SIZES = {(640, 480): "VGA", (1920, 1080): "full HD"}
THEMES = {
    "front.png": {"back": "#ffffff", "text": "#1f2328", "grey": "#59636e", "lines": ("#cf222e", "#1a7f37")},
    "front-dark.png": {"back": "#0d1117", "text": "#f0f6fc", "grey": "#9198a1", "lines": ("#ff7b72", "#3fb950")},
}
SIDE, GAP = 0.66, 0.05  # inches of a tile, and between tiles
WIDTH, HEIGHT = 7.8, 7.85  # inches; at 390 pixels a point is 0.7 of a pixel


def measured() -> dict[tuple[tuple[int, int], str], dict[str, str]]:
    """The benchmark's rows by image size and case."""
    sys.path.insert(0, str(DOCS.parent / "benchmarks"))
    from evidence.tables import read_tables

    rows = read_tables(RESULTS.read_text(encoding="utf-8"))
    return {(tuple(map(int, row["image"].split("x"))), row["case"]): row for row in rows if "first token s" in row}


def photos() -> dict[tuple[int, int], PIL.Image.Image]:
    """The same photo in both sizes; the larger one is enlarged."""
    whole = PIL.Image.fromarray(load_sample_image("china.jpg"))
    boxes = {(640, 480): (0, 0, 569, 427), (1920, 1080): (0, 40, 640, 400)}
    return {size: whole.crop(boxes[size]).resize(size, PIL.Image.Resampling.LANCZOS) for size in SIZES}


def draw_tiles(axes, photo: PIL.Image.Image, slicing: str, left: float, top: float, colour: str) -> int:
    """Draw the tiles as the model gets them, all in one scale. Returns: how many they are."""
    plan = TilingRule(448, 448, max_tiles=12, slicing=slicing).plan(*photo.size)
    grid = photo.resize((448 * plan.columns, 448 * plan.rows))
    tiles = [
        (grid.crop((448 * x, 448 * y, 448 * (x + 1), 448 * (y + 1))), x, y)
        for y in range(plan.rows)
        for x in range(plan.columns)
    ]
    tiles += [(photo.resize((448, 448)), plan.columns + 0.15, 0)] * plan.has_thumbnail
    for tile, column, row in tiles:
        x, y = left + column * (SIDE + GAP), top + row * (SIDE + GAP)
        axes.imshow(tile.resize((224, 224)), extent=(x, x + SIDE, y + SIDE, y), interpolation="bilinear")
        axes.add_patch(plt.Rectangle((x, y), SIDE, SIDE, fill=False, edgecolor=colour, linewidth=2))
    return len(tiles)


def draw(path: Path, theme: dict) -> None:
    figure = plt.figure(figsize=(WIDTH, HEIGHT), dpi=150, facecolor=theme["back"])
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.axis("off")
    rows = measured()
    top = 0.15
    for size, photo in photos().items():
        axes.text(
            0.1,
            top,
            f"The photo at {size[0]}×{size[1]} ({SIZES[size]})",
            fontsize=19,
            weight="bold",
            va="top",
            color=theme["text"],
        )
        height = max(TilingRule(448, 448, max_tiles=12, slicing=s).plan(*size).rows for s, _ in CASES.values())
        below = top + 0.88 + height * (SIDE + GAP)
        for column, (case, (slicing, name)) in enumerate(CASES.items()):
            left, row, colour = 0.1 + 3.9 * column, rows[size, case], theme["lines"][column]
            axes.text(left, top + 0.42, name, fontsize=18, weight="bold", va="top", color=colour)
            tiles = draw_tiles(axes, photo, slicing, left, top + 0.8, colour)
            if tiles != int(row["tiles"]):
                raise ValueError(f"{case} has {tiles} tiles at {size}, but {row['tiles']} were measured.")
            words = f"{tiles} tile{'s' * (tiles > 1)}, {int(row['tokens']):,} tokens"
            axes.text(left, below, words, fontsize=17, va="top", color=theme["text"])
            axes.text(
                left,
                below + 0.31,
                f"{float(row['first token s']):.0f} s",
                fontsize=17,
                weight="bold",
                va="top",
                color=theme["text"],
            )
        top = below + 0.85
    note = "Seconds to the first token. InternVL2-1B's sizes with random\nweights, one CPU thread. No GPU has been measured."
    axes.text(0.1, top, note, fontsize=15, va="top", color=theme["grey"])
    figure.savefig(path, facecolor=theme["back"])
    plt.close(figure)
    PIL.Image.open(path).convert("RGB").quantize(200, dither=PIL.Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    photos()[640, 480].save(PHOTO, quality=85, comment=b"china.jpg by danielbuechele, CC BY 2.0, cropped and enlarged")
    for name, theme in THEMES.items():
        draw(DOCS / name, theme)


if __name__ == "__main__":
    main()
