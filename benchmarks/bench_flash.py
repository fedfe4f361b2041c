"""InternVL3.5-Flash's router: what compressing tiles to 64 of 256 tokens saves before the first token.

First the FLOPs of published sizes, computed. Then computing time of `generate` with one new token, in turn without the router
and with thresholds that compress no tile, and all but one, of a model with a quarter of InternVL3.5-1B's layers and widths and
random weights.

python benchmarks/bench_flash.py
"""

import argparse

import torch
from rows import Row, run_script
from timing import print_table, time_alternately, use_one_thread

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration, cost
from internvlx_hf.cost.flops import prefill_flops
from internvlx_hf.cost.measure import measure as measure_sizes
from internvlx_hf.modeling.tile_router import TileRouter

PRESETS = ("internvl3.5-1b", "internvl3.5-8b", "internvl3.5-38b")
TEXT = 64
NONE, MOST = 1.0, 0.0  # relative thresholds


def flash_config(preset: str, relative_threshold: float):
    config = cost.preset(preset)
    config.router_relative_threshold, config.router_absolute_threshold = relative_threshold, 0.0
    return config


def small_config(preset: str, relative_threshold: float):
    """A quarter of a preset's layers and of its widths, and a small vocabulary."""
    config = flash_config(preset, relative_threshold)
    vision, text = config.vision_config.to_dict(), config.text_config.to_dict()
    for part in (vision, text):
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
            part[name] //= 4
    text |= {"head_dim": text["head_dim"] // 4, "layer_types": None, "vocab_size": 2048}
    own = {name: getattr(config, name) for name in ("router_relative_threshold", "router_absolute_threshold")}
    projector = {"projector_type": "pixel_shuffle"}
    return InternVLXConfig(vision_config=vision, text_config=text, image_token_id=5, projector_config=projector, **own)


def computed(preset: str, tiles: int) -> list:
    """Teraflops of the tiles, the router, and the prompt with all tokens, and with all but one tile compressed."""
    sizes = measure_sizes(flash_config(preset, NONE))
    router = tiles * sizes.tile_flops["tile_router"]
    vision = tiles * sum(sizes.tile_flops.values()) - router
    large, small = (tile.in_stages[0] for tile in sizes.tiles.values())
    few = large + (tiles - 1) * small
    one, two = (sum(prefill_flops(sizes, (TEXT + n, 0)).values()) for n in (tiles * sizes.image_seq_length, few))
    return [vision, router, one, two, (vision + one) / (vision + router + two)]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiles", type=int, default=5, help="tiles of the timed prompt (default: 5)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--presets", nargs="*", default=PRESETS, help="sizes to compute")
    return parser


def build(relative_threshold: float) -> InternVLXForConditionalGeneration:
    torch.manual_seed(0)
    return InternVLXForConditionalGeneration(small_config("internvl3.5-1b", relative_threshold)).eval()


def measure(args: argparse.Namespace) -> list[Row]:
    use_one_thread()
    table = [[preset, *computed(preset, 13)] for preset in args.presets]
    table = [[row[0], *(flops / 1e12 for flops in row[1:5]), row[5]] for row in table]
    print_table(["13 tiles, TFLOP", "tower and projector", "router", "prompt", "compressed", "ratio"], table)

    model = build(MOST)
    config, router = model.config, model.model.tile_router
    image = torch.full((args.tiles * config.image_seq_length,), config.image_token_id)
    ids = torch.cat([torch.arange(10, 10 + TEXT), image])[None]
    pixels = torch.randn(args.tiles, 3, config.tile_size, config.tile_size)

    def run(used: TileRouter | None, relative_threshold: float) -> None:
        model.model.tile_router = used
        if used is not None:
            used.relative_threshold = relative_threshold
        model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=1, do_sample=False)

    ways = {"without router": (None, NONE), "none compressed": (router, NONE), "all but one": (router, MOST)}
    seconds = time_alternately({name: lambda way=way: run(*way) for name, way in ways.items()}, args.repeats)
    first = seconds["without router"]
    print_table(["way", "seconds", "ratio"], [[name, each, first / each] for name, each in seconds.items()])
    rows = [Row(f"{row[0]}, 13 tiles, FLOPs without / with", row[5]) for row in table]
    return rows + [Row(f"{args.tiles} tiles, {name}", each, "s") for name, each in seconds.items()]


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
