"""Read unseen pages with the saved model, in a process in which `internvlx_hf` cannot be imported.

This script uses only transformers and the checkpoint, which carries its own code (`trust_remote_code=True`).
"""

import argparse
import json
import math
import os
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path


class NotInstalled(MetaPathFinder):
    """Blocks the import of `internvlx_hf`, as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "internvlx_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())
try:
    import internvlx_hf  # noqa: F401
except ModuleNotFoundError:
    pass
else:
    sys.exit("internvlx_hf can be imported, so this run would prove nothing")
hub_cache = tempfile.TemporaryDirectory()
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=hub_cache.name)

import torch  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModel, AutoProcessor  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

NATIVE = {"slicing": "ratio", "max_patches": 12}  # how InternVL2 slices an image
NATIVE_WINDOW = 2  # patches per side of a token in InternVL2
ORANGE, RED, GREY, LIGHT = "#d9730d", "#d1242f", "#6e7781", "#c4cad1"


def transcribe(model, processor, question: str, files: list[Path]) -> list[str]:
    conversations = [
        [{"role": "user", "content": [{"type": "image", "path": str(file)}, {"type": "text", "text": question}]}]
        for file in files
    ]
    inputs = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    ).to(model.device)
    generated = model.generate(**inputs, max_new_tokens=100, do_sample=False)
    return processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def misread(text: str, answer: str) -> list[list[bool]]:
    """For each digit of the page, whether the answer has another digit or none in its place."""
    read = answer.split("\n")
    return [
        [(read[row] if row < len(read) else "")[column : column + 1] != digit for column, digit in enumerate(line)]
        for row, line in enumerate(text.split("\n"))
    ]


@dataclass
class Cost:
    """Tiles and visual tokens of a page: in the layers before and after LVTC's expansion, and in InternVL."""

    tiles: int
    stage_one: int
    stage_two: int
    native_tiles: int
    native: int


def cost(config, image_processor, width: int, height: int) -> Cost:
    tiles = image_processor.get_number_of_image_patches(height, width, {})
    native_tiles = image_processor.get_number_of_image_patches(height, width, NATIVE)
    return Cost(
        tiles,
        tiles * config.image_seq_length,
        tiles * config.expanded_image_seq_length,
        native_tiles,
        native_tiles * (config.patch_grid // NATIVE_WINDOW) ** 2,
    )


def layers_of_stages(config) -> tuple[str, str]:
    k, last = config.lvtc_config.expand_layer, config.text_config.num_hidden_layers - 1
    return f"layers 0-{k - 1}", f"layers {k}-{last}"


def show(axes, image, left: float, top: float, width: float, height: float) -> None:
    axes.imshow(image, extent=(left, left + width, top + height, top), interpolation="nearest", zorder=1)


def draw_page(axes, page: dict, grid: tuple[int, int], left: float, top: float) -> None:
    """Draw the page under the grid of its tiles."""
    (width, height), (columns, rows) = page["size"], grid
    show(axes, page["image"], left, top, width, height)
    line = {"color": ORANGE, "linewidth": 1.8, "zorder": 2}
    for column in range(columns + 1):
        axes.plot([left + column * width / columns] * 2, [top, top + height], **line)
    for row in range(rows + 1):
        axes.plot([left, left + width], [top + row * height / rows] * 2, **line)


def draw_tiles(axes, page: dict, processor, grid: tuple[int, int], left: float, top: float, height: float) -> None:
    """Draw the tiles as the model gets them, row by row, stretched to squares, and the thumbnail."""
    image_processor, (columns, rows) = processor.image_processor, grid
    tiles = image_processor(page["image"], return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(v)[:, None, None] for v in (image_processor.image_mean, image_processor.image_std))
    side = min(image_processor.size["height"], (height - 4 * (rows - 1)) / rows)
    for index, tile in enumerate((tiles * std + mean).clamp(0, 1).permute(0, 2, 3, 1)):
        row, column = divmod(index, columns)
        is_thumbnail = row == rows
        if is_thumbnail:
            row, column = 0, columns + 0.2
            caption = {"fontsize": 9, "color": GREY, "ha": "center", "va": "center"}
            axes.text(left + column * (side + 4) + side / 2, top + side + 5, "thumbnail", **caption)
        show(axes, tile, left + column * (side + 4), top + row * (side + 4), side, side)


def draw_tokens(axes, cost: Cost, config, left: float, top: float, length: float) -> None:
    """Draw bars for the visual tokens of both stages and of InternVL, `length` per token."""
    names = (*layers_of_stages(config), "InternVL, all layers")
    counts = (cost.stage_one, cost.stage_two, cost.native)
    for index, (name, count, colour) in enumerate(zip(names, counts, (ORANGE, ORANGE, LIGHT), strict=True)):
        bar_top = top + 8 + 21 * index
        axes.text(left, bar_top - 4, name, fontsize=9, color=GREY, va="center")
        axes.barh(bar_top + 4, count * length, 8, left=left, color=colour)
        axes.text(left + count * length + 3, bar_top + 4, str(count), fontsize=11, va="center")


def draw_answer(axes, page: dict, left: float, top: float) -> None:
    """Draw the digits that the model read, each at its place on the page."""
    lines, wrong = page["answer"].split("\n"), misread(page["text"], page["answer"])
    style = {"fontsize": 14, "family": "monospace", "ha": "center", "va": "center"}
    mark = {"color": RED, "weight": "bold", "bbox": {"facecolor": "#ffd8d8", "edgecolor": "none", "pad": 1.5}}
    for row, marks in enumerate(wrong):
        for column, is_wrong in enumerate(marks):
            digit = lines[row][column] if row < len(lines) and column < len(lines[row]) else "–"
            x = left + (column + 0.5) * page["size"][0] / len(marks)
            y = top + (row + 0.5) * page["size"][1] / len(wrong)
            axes.text(x, y, digit, **style, **(mark if is_wrong else {}))


def draw(pages: list[dict], config, processor, title: str, path: Path) -> None:
    """Draw a row per page: the page, its tiles, its tokens, and what the model read. The unit is a pixel of a page."""
    tile = processor.image_processor.size["height"]
    heights = [max(page["size"][1], tile) for page in pages]
    costs = [cost(config, processor.image_processor, *page["size"]) for page in pages]
    lefts = page_left, tiles_left, tokens_left, answer_left = 0, 148, 376, 516
    token_length = 100 / max(cost.native for cost in costs)
    width, head, foot = answer_left + 128, 52, 34
    height = sum(heights) + foot * len(pages)
    figure = plt.figure(figsize=(width / 50, (height + head) / 50), dpi=110, facecolor="white")
    axes = figure.add_axes([0.03, 0, 0.94, 1], xlim=(0, width), ylim=(height, -head), aspect="equal")
    axes.axis("off")
    axes.text(0, -36, title, fontsize=17, weight="bold", va="center")
    for left, text in zip(lefts, ("page and its grid", "tiles", "visual tokens", "what the model read"), strict=True):
        axes.text(left, -14, text, fontsize=12, color=GREY, va="center")

    top = 0
    for page, page_cost, height in zip(pages, costs, heights, strict=True):
        grid = tuple(math.ceil(side / tile) for side in page["size"])  # holds for the demo's page sizes
        draw_page(axes, page, grid, page_left, top)
        draw_tiles(axes, page, processor, grid, tiles_left, top, height)
        draw_tokens(axes, page_cost, config, tokens_left, top, token_length)
        draw_answer(axes, page, answer_left, top)
        errors = sum(map(sum, misread(page["text"], page["answer"])))
        slicing = (
            f"{page_cost.tiles} tile{'s' * (page_cost.tiles > 1)}; InternVL's own slicing: {page_cost.native_tiles}"
        )
        captions = (
            (page_left, f"{page['size'][0]}×{page['size'][1]} pixels", "black"),
            (tiles_left, slicing, "black"),
            (answer_left, f"{errors or 'none'} misread", RED if errors else GREY),
        )
        for left, text, colour in captions:
            axes.text(left, top + height + 12, text, fontsize=11, color=colour, va="center")
        top += height + foot
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that demo/train.py wrote (its --out)")
    parser.add_argument(
        "--min-accuracy",
        type=float,
        default=0,
        help="accuracy in percent below which the exit status is 1 (default: 0)",
    )
    args = parser.parse_args()
    torch.set_num_threads(min(4, torch.get_num_threads()))
    if not sys.stderr.isatty():
        disable_progress_bar()  # a log file would keep every redraw
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(args.folder / "model", trust_remote_code=True).to(device).eval()
    processor = AutoProcessor.from_pretrained(args.folder / "model", trust_remote_code=True)
    print(
        f"internvlx_hf cannot be imported here; the model's code comes from the checkpoint: {type(model).__module__}"
    )

    listed = json.loads((args.folder / "pages" / "pages.json").read_text())
    pages_of_size = {}
    for page in listed["pages"]:
        page["image"] = Image.open(args.folder / "pages" / page["file"])
        page["size"] = page["image"].size
        pages_of_size.setdefault(page["size"], []).append(page)

    stages = layers_of_stages(model.config)
    print(
        f"\nvisual tokens per page in {stages[0]}, in {stages[1]}, and in all layers of InternVL with its own slicing:\n"
    )
    head = f"{stages[0]:>12}{stages[1]:>12}{'InternVL':>10}"
    print(f"{'page':>8}{'digits':>8}{'tiles':>7}{head}{'accuracy':>12}{'s per page':>12}")
    all_wrong = []
    for size, pages in pages_of_size.items():
        started = time.perf_counter()
        files = [args.folder / "pages" / page["file"] for page in pages]
        for page, answer in zip(pages, transcribe(model, processor, listed["question"], files), strict=True):
            page["answer"] = answer
        seconds = (time.perf_counter() - started) / len(pages)
        wrong = [mark for page in pages for row in misread(page["text"], page["answer"]) for mark in row]
        all_wrong += wrong
        page_cost = cost(model.config, processor.image_processor, *size)
        print(
            f"{f'{size[0]}x{size[1]}':>8}{len(wrong) // len(pages):8}{page_cost.tiles:7}"
            f"{page_cost.stage_one:12}{page_cost.stage_two:12}{page_cost.native:10}"
            f"{1 - sum(wrong) / len(wrong):12.1%}{seconds:12.2f}"
        )
    accuracy = 100 * (1 - sum(all_wrong) / len(all_wrong))
    title = f"{accuracy:.1f} % of the digits on {len(listed['pages'])} unseen pages read correctly"
    draw([pages[0] for pages in pages_of_size.values()], model.config, processor, title, args.folder / "demo.png")
    print(f"figure: {(args.folder / 'demo.png').resolve()}")
    print(f"accuracy per digit: {accuracy:.2f} % of {len(all_wrong):,} digits on {len(listed['pages'])} pages")
    words = [str(Path(sys.executable).with_name("internvlx")), "chat", str((args.folder / "model").resolve())]
    words += [str((args.folder / "pages" / listed["pages"][-1]["file"]).resolve()), listed["question"]]
    print(f"ask it yourself: {shlex.join(words)}")
    if accuracy < args.min_accuracy:
        sys.exit(f"below the required {args.min_accuracy:g} %")


if __name__ == "__main__":
    main()
