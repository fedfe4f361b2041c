"""Time to compute the costs of a thousand images of different, known sizes: one setup alone, and all setups that
`internvlx cost` compares.

python benchmarks/bench_cost.py
"""

import argparse
import random
import time

from rows import Row, run_script
from timing import print_table, use_one_thread

from internvlx_hf import cost
from internvlx_hf.cost.estimate import _plan
from internvlx_hf.cost.sizes import _measured_presets

PRESETS = ("internvl-x-2b", "internvl2-8b", "internvl2-llama3-76b")


def seconds(preset: str, sizes: list[tuple[int, int]], side_by_side: bool) -> float:
    """Seconds from the preset's name to the last cost, with empty caches."""
    _plan.cache_clear()
    _measured_presets.cache_clear()
    start = time.process_time()
    setting = cost.load_setup(preset)
    settings = cost.side_by_side(setting)[0] if side_by_side else [setting]
    for each in settings:
        cost.CostModel(each).of_sizes(sizes)
    return time.process_time() - start


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000, help="number of images (default: 1000)")
    parser.add_argument("--repeats", type=int, default=5)
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    use_one_thread()
    rng = random.Random(0)
    sizes = [(rng.randint(20, 4000), rng.randint(20, 4000)) for _ in range(args.images)]
    table, rows = [], []
    for preset in PRESETS:
        runs = [[seconds(preset, sizes, both) for both in (False, True)] for _ in range(args.repeats)]
        alone, side_by_side = map(min, zip(*runs, strict=True))
        table.append([preset, len(set(sizes)), alone, side_by_side])
        rows += [
            Row(f"{preset}, {args.images} images", alone, "s"),
            Row(f"{preset}, {args.images} images side by side", side_by_side, "s"),
        ]
    print_table(["model", "sizes", "seconds alone", "side by side"], table)
    return rows


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
