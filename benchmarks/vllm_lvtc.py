"""LVTC (256 tokens per tile, then 1024) in vLLM against 256 and 1024 tokens in all layers: prefill time, requests per second and
concurrent requests in a fixed memory for keys and values, beside the ratios of FLOPs and of bytes.

    make build/vllm/.installed
    OMP_NUM_THREADS=1 build/vllm/bin/python benchmarks/vllm_lvtc.py

The models are random, 24 thin layers deep. Three engines run in one process and take turns; their prompts are the same.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIDES = {
    "256 tokens": {"downsample_ratio": 0.5},
    "LVTC": {"downsample_ratio": 0.5, "lvtc_config": {}},
    "1024 tokens": {"downsample_ratio": 1.0},
}
FINE = "1024 tokens"
TEXT = {
    "model_type": "qwen2",
    "vocab_size": 320,
    "hidden_size": 512,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "intermediate_size": 1536,
    "max_position_embeddings": 4096,
}
VISION = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
ONE_TILE, THREE_TILES = (448, 448), (896, 448)  # two tiles and a thumbnail
TOKENS = 16
PREFILL_TARGET, CONCURRENCY_TARGET = 1.15, 1.1
PROMPT = "<|im_start|>user\n<IMG_CONTEXT>\nWhat is on the picture?<|im_end|>\n<|im_start|>assistant\n"
VARIABLES = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def save_checkpoints(folder: Path) -> dict[str, Path]:
    from internvlx_hf import (
        InternVLXConfig,
        InternVLXForConditionalGeneration,
        InternVLXImageProcessor,
        InternVLXProcessor,
    )
    from tiny import tiny_tokenizer

    folders = {}
    for name, kwargs in SIDES.items():
        config = InternVLXConfig(
            vision_config=VISION,
            text_config=TEXT,
            projector_config={"projector_type": "pixel_shuffle"},
            image_token_id=5,
            **kwargs,
        )
        folders[name] = folder / name.replace(" ", "-")
        InternVLXForConditionalGeneration(config).save_pretrained(folders[name])
        processor = InternVLXProcessor(
            InternVLXImageProcessor(max_patches=2), tiny_tokenizer(), config.image_seq_length
        )
        processor.save_pretrained(folders[name])
    return folders


def costs(folder: Path, tiles: int, text_tokens: int, answer_tokens: int):
    from internvlx_hf.cost import CostModel, load_setting

    return CostModel(load_setting(folder), text_tokens, answer_tokens, "float32").of_tiles(tiles)


def start_engine(folder: Path, memory: int):
    from vllm import LLM

    return LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=3200,
        max_num_batched_tokens=3200,
        max_num_seqs=128,
        block_size=32,
        kv_cache_memory_bytes=memory,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"image": 1},
    )


def questions(count: int, size: tuple[int, int], seed: int) -> list[dict]:
    """About new images, so that no cache answers."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    images = [Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for _ in range(count)]
    return [{"prompt": PROMPT, "multi_modal_data": {"image": image}} for image in images]


def answer(llm, asked: list[dict], tokens: int):
    """Seconds that pass, seconds that are computed, and the prompts' lengths."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    started, computed = time.perf_counter(), time.process_time()
    outputs = llm.generate(asked, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started, time.process_time() - computed
    return *seconds, len(outputs[0].prompt_token_ids)


class Watch:
    """By engine, the most requests that decoded in one step, and the most bytes of blocks that one request held."""

    def __init__(self, engines: dict):
        from vllm.v1.core.sched.scheduler import Scheduler

        self.names = {id(llm.llm_engine.engine_core.engine_core.scheduler): name for name, llm in engines.items()}
        self.reset()
        schedule = Scheduler.schedule

        def schedule_and_watch(scheduler, *args, **kwargs):
            output = schedule(scheduler, *args, **kwargs)
            self.read(scheduler, output.num_scheduled_tokens)
            return output

        Scheduler.schedule = schedule_and_watch

    def reset(self) -> None:
        self.requests = dict.fromkeys(self.names.values(), 0)
        self.bytes = dict.fromkeys(self.names.values(), 0)

    def read(self, scheduler, scheduled: dict[str, int]) -> None:
        name, cache = self.names[id(scheduler)], scheduler.kv_cache_config
        block = cache.kv_cache_tensors[0].size // cache.num_blocks  # groups share the memory
        decoding = 0
        for request_id, new in scheduled.items():
            request = scheduler.requests[request_id]
            decoding += request.num_computed_tokens - new >= request.num_prompt_tokens
            blocks = sum(map(len, scheduler.kv_cache_manager.get_block_ids(request_id)))
            self.bytes[name] = max(self.bytes[name], blocks * block)
        self.requests[name] = max(self.requests[name], decoding)


def measure(folder: Path, rounds: int, memory: int, requests: int) -> None:
    from timing import print_table

    folders = save_checkpoints(folder)
    engines = {name: start_engine(path, memory) for name, path in folders.items()}
    watch = Watch(engines)
    times, sizes = [], []
    for tiles, image in ((1, ONE_TILE), (3, THREE_TILES)):
        watch.reset()
        seconds, lengths = {name: [] for name in engines}, {}
        for index in range(rounds + 1):
            for name, llm in engines.items():
                _, computed, lengths[name] = answer(llm, questions(1, image, index), 1)
                if index:  # the first round warms up
                    seconds[name].append(computed)
        text = lengths["256 tokens"] - 256 * tiles
        cost = {name: costs(path, tiles, text, 1) for name, path in folders.items()}
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name in engines:
            ratio, flops = medians[name] / medians[FINE], cost[name].prefill_flops / cost[FINE].prefill_flops
            times.append([tiles, name, lengths[name], medians[name], ratio, flops, ratio / flops])
            ratio, needed = watch.bytes[name] / watch.bytes[FINE], cost[name].cache_bytes / cost[FINE].cache_bytes
            held = [cost[name].cache_bytes / 2**20, watch.bytes[name] / 2**20]
            sizes.append([tiles, name, *held, ratio, needed, ratio / needed])
    print(f"Prefill of one prompt with one image, CPU seconds of one thread, {rounds} rounds\n")
    header = ["tiles", "tokens per tile", "prompt tokens", "CPU s", "of 1024's", "FLOPs, of 1024's", "time / FLOPs"]
    print_table(header, times)
    print(f"\ntarget for LVTC: time / FLOPs at most {PREFILL_TARGET}\n")
    print("Keys and values of that prompt: what they take, and the blocks that vLLM gives them\n")
    header = ["tiles", "tokens per tile", "MiB", "MiB of blocks", "of 1024's", "bytes, of 1024's", "blocks / bytes"]
    print_table(header, sizes)
    print(
        f"\ntarget for LVTC: blocks / bytes at most {CONCURRENCY_TARGET}; vLLM's padding of groups and blocks counts\n"
    )

    watch.reset()
    rows, fine = [], None
    for name, llm in reversed(engines.items()):
        elapsed, computed, _ = answer(llm, questions(requests, ONE_TILE, rounds + 1), TOKENS)
        fine = fine or (elapsed, computed, watch.requests[name])
        row = [name, requests / elapsed, fine[0] / elapsed, computed / requests, computed / fine[1]]
        rows.append([*row, watch.requests[name], watch.requests[name] / fine[2]])
    print(
        f"{requests} questions at once about images of one tile, {TOKENS} tokens per answer, "
        f"{memory // 2**20} MiB for keys and values\n"
    )
    header = [
        "tokens per tile",
        "requests/s",
        "of 1024's",
        "CPU s per request",
        "of 1024's",
        "concurrent",
        "of 1024's",
    ]
    print_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=160, help="MiB for keys and values (160)")
    parser.add_argument("--requests", type=int, default=32)
    arguments = parser.parse_args()
    os.environ.update(VARIABLES)
    try:
        import vllm  # noqa: F401
    except ImportError:
        print("vllm_lvtc.py: no vLLM here; run it with build/vllm/bin/python (make build/vllm/.installed).")
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = folder
        package = Path(folder) / "package"
        package.mkdir()
        sys.path[:0] = [str(ROOT / "tests/helpers"), str(ROOT / "src")]
        from installed_metadata import write_metadata

        write_metadata(package)
        sys.path.insert(0, str(package))
        os.environ |= {
            "PYTHONPATH": f"{package}{os.pathsep}{ROOT / 'src'}",
            "VLLM_CACHE_ROOT": folder,
        }  # of its processes
        measure(Path(folder), arguments.rounds, arguments.memory * 2**20, arguments.requests)


if __name__ == "__main__":
    main()
