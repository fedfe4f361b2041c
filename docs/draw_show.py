"""Draw docs/show-tiles.png and, given a checkpoint with LVTC and an image, docs/show-attention.png.

python docs/draw_show.py [FOLDER IMAGE QUESTION]
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import PIL.Image
from sklearn.datasets import load_sample_image

from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor, cost
from internvlx_hf.pictures import attend, draw_attention, draw_tiles
from internvlx_hf.pictures.canvas import save

FOLDER = Path(__file__).parent


def save_small(figure, path: Path) -> None:
    """Save a figure in 256 colours, which needs a third of the bytes."""
    with tempfile.TemporaryDirectory() as folder:
        save(figure, Path(folder) / path.name)
        image = (
            PIL.Image.open(Path(folder) / path.name).convert("RGB").resize((1500, 844), PIL.Image.Resampling.LANCZOS)
        )
        image.quantize(256, PIL.Image.Quantize.MAXCOVERAGE, dither=PIL.Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    photo = PIL.Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 569, 427))
    photo = photo.resize((800, 600), PIL.Image.Resampling.LANCZOS)
    setup = cost.load_setup("internvl-x-2b")
    setup = replace(setup, tiling=replace(setup.tiling, max_tiles=12))
    save_small(draw_tiles(photo, setup, title="china.jpg"), FOLDER / "show-tiles.png")
    if len(sys.argv) > 1:
        checkpoint, image, question = sys.argv[1:]
        model = InternVLXForConditionalGeneration.from_pretrained(checkpoint).eval()
        attention = attend(model, InternVLXProcessor.from_pretrained(checkpoint), image, question, 100)
        save_small(draw_attention(attention, "the demo's model"), FOLDER / "show-attention.png")


if __name__ == "__main__":
    main()
