"""Visual tokens per image: InternVL2's own slicing (max 12) against RVTC.

python benchmarks/bench_tokens.py
"""

from rows import Row, run_script
from timing import print_table
from transformers import GotOcr2ImageProcessorPil

from internvlx_hf import InternVLXImageProcessor

SIZES = [(640, 480), (80, 20), (345, 372), (800, 600), (1280, 720), (1920, 1080), (1080, 2400), (3000, 2000)]
TOKENS_PER_TILE = 256


def measure(args) -> list[Row]:
    native = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True, max_patches=12)
    ours = {name: InternVLXImageProcessor(slicing=name, max_patches=12) for name in ("ratio", "edge", "area")}
    table, rows = [], []
    for width, height in SIZES:
        counts = [native.get_number_of_image_patches(height, width, {})]
        counts += [processor.get_number_of_image_patches(height, width, {}) for processor in ours.values()]
        table.append([f"{width}x{height}", *(f"{TOKENS_PER_TILE * count:,}" for count in counts)])
        rows.append(Row(f"{width}x{height}, tokens by edge / natively", counts[-2] / counts[0], target=1))
    print_table(["size", "native InternVL", *ours], table)
    return rows


if __name__ == "__main__":
    run_script(__doc__, measure)
