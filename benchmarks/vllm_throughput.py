"""Questions per second in vLLM: InternVL's slicing (`ratio`) against RVTC's (`edge`), in one engine and over one list of images.

    make build/vllm/.installed
    build/vllm/bin/python benchmarks/vllm_throughput.py

The model is small and random; its tower and its language model share the work as those of a 2B model do. Every round asks all
questions at once, about new images, so that no cache answers. The two sides take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZES = [
    *((224, 224), (336, 224), (448, 448), (500, 375), (480, 640), (640, 480)),
    *((800, 600), (850, 1100), (1024, 768), (1280, 720), (600, 1600), (1920, 1080)),
]
SLICINGS = ("ratio", "edge")
MAX_PATCHES = 12
TOKENS = 16
PROMPT = "<|im_start|>user\n<IMG_CONTEXT>\nWhat is in the image?<|im_end|>\n<|im_start|>assistant\n"
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def save_checkpoint(folder: str) -> None:
    """Run in a process of its own: the one with vLLM has no package."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests/helpers")]
    from internvlx_hf import (
        InternVLXConfig,
        InternVLXForConditionalGeneration,
        InternVLXImageProcessor,
        InternVLXProcessor,
    )
    from tiny import tiny_tokenizer

    config = InternVLXConfig(
        vision_config={"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768},
        text_config={
            "model_type": "qwen2",
            "vocab_size": 320,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "intermediate_size": 1024,
        },
        projector_config={"num_heads": 6},
        image_token_id=5,
    )
    InternVLXForConditionalGeneration(config).save_pretrained(folder)
    processor = InternVLXProcessor(InternVLXImageProcessor(max_patches=MAX_PATCHES), tiny_tokenizer(), 256)
    processor.save_pretrained(folder)


def questions(slicing: str, seed: int) -> list[dict]:
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    images = [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    settings = {"slicing": slicing}
    return [
        {"prompt": PROMPT, "multi_modal_data": {"image": image}, "mm_processor_kwargs": settings} for image in images
    ]


def measure(folder: str, rounds: int) -> None:
    from timing import print_table
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        trust_remote_code=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        max_num_batched_tokens=4096,
        max_num_seqs=4,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"image": 1},
    )
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    wall = {slicing: [] for slicing in SLICINGS}
    cpu = {slicing: [] for slicing in SLICINGS}
    tokens = {}
    for index in range(rounds + 1):
        for side, slicing in enumerate(SLICINGS):
            asked = questions(slicing, 2 * index + side)
            started, computed = time.perf_counter(), time.process_time()
            outputs = llm.generate(asked, sampling, use_tqdm=False)
            if index:  # the first round warms up
                wall[slicing].append(time.perf_counter() - started)
                cpu[slicing].append(time.process_time() - computed)
            tokens[slicing] = sum(len(output.prompt_token_ids) for output in outputs)
    seconds = {slicing: (statistics.median(wall[slicing]), statistics.median(cpu[slicing])) for slicing in SLICINGS}
    first = seconds[SLICINGS[0]]
    print(f"{len(SIZES)} questions about one image each, {TOKENS} tokens per answer, {rounds} rounds\n")
    header = ["slicing", "tokens per prompt", "questions/s", "of InternVL's", "CPU s per question", "of InternVL's"]
    rows = []
    for slicing, (elapsed, computed) in seconds.items():
        row = [slicing, tokens[slicing] // len(SIZES), len(SIZES) / elapsed, first[0] / elapsed]
        rows.append([*row, computed / len(SIZES), computed / first[1]])
    print_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        return save_checkpoint(arguments.save)
    try:
        import vllm  # noqa: F401
    except ImportError:
        print("vllm_throughput.py: no vLLM here; run it with build/vllm/bin/python (make build/vllm/.installed).")
        return None
    os.environ.update(VARIABLES)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "--save", folder], check=True)
        os.environ["HF_HOME"] = folder
        return measure(folder, arguments.rounds)


if __name__ == "__main__":
    main()
