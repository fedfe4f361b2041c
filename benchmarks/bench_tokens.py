"""Visual tokens that a picture costs: InternVL2's own slicing (max 12) against RVTC.

python benchmarks/bench_tokens.py
"""

from timing import print_table
from transformers import GotOcr2ImageProcessorPil

from internvlx_hf import InternVLXImageProcessor

SIZES = [(640, 480), (80, 20), (345, 372), (800, 600), (1280, 720), (1920, 1080), (1080, 2400), (3000, 2000)]
TOKENS_PER_TILE = 256


def main() -> None:
    native = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True, max_patches=12)
    ours = {name: InternVLXImageProcessor(slicing=name, max_patches=12) for name in ("ratio", "edge", "area")}
    rows = []
    for width, height in SIZES:
        counts = [native.get_number_of_image_patches(height, width, {})]
        counts += [processor.get_number_of_image_patches(height, width, {}) for processor in ours.values()]
        rows.append([f"{width}x{height}", *(f"{TOKENS_PER_TILE * count:,}" for count in counts)])
    print_table(["size", "native InternVL", *ours], rows)


if __name__ == "__main__":
    main()
