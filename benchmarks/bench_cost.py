"""How long it takes to know what a thousand pictures of as many sizes cost, their sizes being known: each setting alone,
and all that `internvlx cost` puts side by side.

python benchmarks/bench_cost.py
"""

import argparse
import random
import time

from timing import print_table, use_one_thread

from internvlx_hf import cost
from internvlx_hf.cost.estimate import _plan
from internvlx_hf.cost.sizes import _measured_presets

PRESETS = ("internvl-x-2b", "internvl2-8b", "internvl2-llama3-76b")
TARGET = 1.0  # seconds for a thousand pictures


def seconds(preset: str, sizes: list[tuple[int, int]], side_by_side: bool) -> float:
    """From the preset's name to the last cost; nothing is known from before."""
    _plan.cache_clear()
    _measured_presets.cache_clear()
    start = time.perf_counter()
    setting = cost.load_setting(preset)
    settings = cost.side_by_side(setting)[0] if side_by_side else [setting]
    for each in settings:
        cost.CostModel(each).of_sizes(sizes)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    use_one_thread()
    rng = random.Random(0)
    sizes = [(rng.randint(20, 4000), rng.randint(20, 4000)) for _ in range(args.pictures)]
    rows = []
    for preset in PRESETS:
        for side_by_side in (False, True):
            best = min(seconds(preset, sizes, side_by_side) for _ in range(args.repeats))
            what = "side by side" if side_by_side else "alone"
            rows.append([preset, what, len(set(sizes)), best, f"<= {TARGET}", "ok" if best <= TARGET else "MISSED"])
    print_table(["model", "settings", "sizes", "seconds", "target", ""], rows)


if __name__ == "__main__":
    main()
