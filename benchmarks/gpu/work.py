"""What is timed, in the process of one way: a class for each kind of line.

`warm(case)` prepares a case, `turn(case)` measures it once, `once(case)` is what the profiler watches.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch._dynamo
import torch.nn.functional as F
from bench_end_to_end import (
    MAX_TILES,
    Case,
    Clock,
    answer,
    make_processor,
    native_config,
    save_photograph,
)
from bench_end_to_end import NATIVE as NATIVE_CASE
from lines import ALL, BASE, NATIVE, PADDED
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import CompileConfig, InternVLForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.models.internvl import modeling_internvl
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2

from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.cost import CostModel, ModelSetup
from internvlx_hf.processing.rvtc import TilingRule

# what a process would import on first use is imported once, before the processes are forked
IMPORTED = (modeling_internvl, modeling_llama, modeling_qwen2, torch._dynamo)
TEXT = 64
HD_TILES, EDGE_TILES = 5, 2  # the paper's Table 5: 5.0 and 2.0 on average
WAYS = {
    NATIVE: (Case("ratio"), HD_TILES),
    BASE: (Case("ratio"), HD_TILES),
    "+ RVTC": (Case("edge"), EDGE_TILES),
    "+ PVTC": (Case("ratio", "pvtc"), HD_TILES),
    "+ LVTC": (Case("ratio", has_lvtc=True), HD_TILES),
    ALL: (Case("edge", "pvtc", has_lvtc=True), EDGE_TILES),
}


class Work:
    """One way of a line: its model, on first use."""

    dtype = torch.bfloat16

    def __init__(self, way: str, device: str):
        self.way, self.device = way, device
        self.model: torch.nn.Module | None = None

    def build(self, preset: str) -> None:
        case, self.tiles = WAYS[self.way]
        self.config = config = case.config(argparse.Namespace(preset=preset))
        tiling = TilingRule(config.tile_size, config.tile_size, max_tiles=MAX_TILES, slicing=case.slicing)
        self.setup, self.case = ModelSetup(self.way, config, tiling), case
        model_class = InternVLXForConditionalGeneration
        if self.way == NATIVE:
            config, model_class = native_config(config), InternVLForConditionalGeneration
        with no_init_weights(), torch.device(self.device):
            self.model = model_class._from_config(config, dtype=self.dtype).eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(not name.endswith("bias"))

    def inputs(self, samples: int) -> dict[str, torch.Tensor]:
        image = torch.full((samples, self.tiles * self.config.image_seq_length), self.config.image_token_id)
        ids = torch.randint(10, self.config.text_config.vocab_size, (samples, TEXT))
        ids = torch.cat([image, ids], dim=1).to(self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": self.pixels(samples)}

    def pixels(self, samples: int) -> torch.Tensor:
        size = self.config.tile_size
        return torch.randn(samples * self.tiles, 3, size, size, device=self.device, dtype=self.dtype)

    def clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, run, repeats: int) -> float:
        found = []
        for _ in range(repeats):
            start = self.clock()
            run()
            found.append(self.clock() - start)
        return statistics.median(found)

    def peak(self) -> dict[str, float | None]:
        return {"peak GiB": torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else None}

    def warm(self, case: dict) -> None:
        if self.model is None:
            self.build(case["preset"])
        self.once(case)

    def profile(self, case: dict) -> dict:
        """The ten most costly kernels, (name, milliseconds, calls), and the share of the time in which none ran."""
        is_gpu = self.device == "cuda"
        if "tokens" in case:
            case = case | {"tokens": min(case["tokens"], 8)}  # each further one repeats the last
        self.once(case)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
        with profile(activities=activities) as found:
            start = self.clock()
            self.once(case)
            wall = self.clock() - start
        kind = torch.autograd.DeviceType.CUDA if is_gpu else torch.autograd.DeviceType.CPU
        took = "self_device_time_total" if is_gpu else "self_cpu_time_total"
        kernels = [
            (each.key, getattr(each, took) / 1e3, each.count)
            for each in found.key_averages()
            if each.device_type == kind
        ]
        kernels.sort(key=lambda each: -each[1])
        busy = sum(milliseconds for _, milliseconds, _ in kernels)
        return {"kernels": kernels[:10], "idle": max(0.0, 1 - busy / (1e3 * wall))}


class Training(Work):
    """A whole step with AdamW. Weights, gradients and moments are in bfloat16, so that four samples fit into 80 GB."""

    flops: int | None = None

    def warm(self, case: dict) -> None:
        self.build(case["preset"])
        self.model.train()
        self.optimizer = None
        self.count(case)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=self.device == "cuda")
        self.batch = self.make_batch(case)
        for _ in range(min(3, case["steps"])):
            self.once(case)

    def make_batch(self, case: dict) -> dict:
        return self.inputs(case["samples"])

    def count(self, case: dict) -> None:
        """Of one sample, with attention in full: the counter knows no kernel of grouped queries."""
        self.batch = self.inputs(1)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.once(case)
        self.flops = counter.get_total_flops() * case["samples"]

    def once(self, case: dict) -> None:
        ids = self.batch["input_ids"]
        labels = ids.masked_fill((ids == self.config.image_token_id) | (ids == 0), -100)
        self.model(**self.batch, labels=labels, use_cache=False).loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad()

    def turn(self, case: dict) -> dict:
        seconds = self.seconds(partial(self.once, case), case["steps"])
        others = {"samples/s": case["samples"] / seconds} if "samples" in case else {}
        return {"times": {"step": [seconds, self.flops]}, "others": others | self.peak()}


class Packing(Training):
    """InternVL-X on samples with text in lengths 1:4:8:16, all but the first with one tile."""

    def build(self, preset: str) -> None:
        name, self.way = self.way, ALL
        super().build(preset)
        self.way, self.tiles = name, 1
        self.model.set_attn_implementation({"text_config": name.split(", ")[1]})

    def count(self, case: dict) -> None:
        self.flops = None

    def make_batch(self, case: dict) -> dict:
        image = torch.full((self.config.image_seq_length,), self.config.image_token_id)
        texts = [torch.randint(10, self.config.text_config.vocab_size, (n * case["text"],)) for n in (1, 4, 8, 16)]
        samples = [texts[0], *(torch.cat([image, text]) for text in texts[1:])]
        lengths = torch.tensor([len(sample) for sample in samples])
        if self.way == PADDED:
            ids = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            batch = {"input_ids": ids, "attention_mask": mask}
        else:
            bounds = F.pad(lengths.cumsum(0), (1, 0)).int()
            positions = torch.cat([torch.arange(n) for n in lengths])
            batch = {"input_ids": torch.cat(samples)[None], "position_ids": positions[None]}
            batch |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        batch = {name: each.to(self.device) for name, each in batch.items()} | {"pixel_values": self.pixels(3)}
        longest = int(lengths.max())
        return batch if self.way == PADDED else batch | {"max_length_q": longest, "max_length_k": longest}


class Decoding(Work):
    """Time per token: that of an answer less that of one token, which is the prompt's."""

    def warm(self, case: dict) -> None:
        torch.compiler.reset()
        super().warm(case)
        for _ in range(2):  # graphs are captured, and compiled again for other lengths
            self.turn(case)

    def once(self, case: dict) -> None:
        self.generate(case, case["tokens"])

    def generate(self, case: dict, tokens: int) -> None:
        settings = {"do_sample": False, "pad_token_id": 0, "disable_compile": not case["compiled"]}
        if case["compiled"]:
            # on a CPU, where this only has to run, the graphs are not compiled further
            compile_config = CompileConfig() if self.device == "cuda" else CompileConfig(backend="eager")
            compile_config._compile_all_devices = True
            settings |= {"cache_implementation": "static", "compile_config": compile_config}
        # the longest answer first, so that the same cache does for both
        self.model.generate(**self.inputs(1), max_new_tokens=tokens, min_new_tokens=tokens, **settings)

    def turn(self, case: dict) -> dict:
        seconds = {n: self.seconds(partial(self.generate, case, n), 2) for n in (case["tokens"], 1)}
        token = (seconds[case["tokens"]] - seconds[1]) / (case["tokens"] - 1)
        flops = CostModel(self.setup, answer_tokens=case["tokens"]).of_tiles(self.tiles).answer_flops
        return {"times": {"token": [token, flops / (case["tokens"] - 1)]}, "others": self.peak()}


class Answers(Work):
    """From a JPEG file to the first token and to the end of the answer."""

    def warm(self, case: dict) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.photograph = Path(self.folder.name) / "photograph.jpg"
        self.size = tuple(map(int, case["image"].split("x")))
        save_photograph(*self.size, self.photograph)
        if self.model is None:
            self.build(case["preset"])
            self.processor = make_processor(NATIVE_CASE if self.way == NATIVE else self.way, self.case, self.config)
        self.once(case)

    def once(self, case: dict) -> dict:
        clock = Clock(argparse.Namespace(device=self.device, threads=0))
        return answer(self.model, self.processor, self.photograph, case["tokens"], clock, case["samples"])

    def turn(self, case: dict) -> dict:
        found = self.once(case)
        cost = CostModel(self.setup, answer_tokens=case["tokens"]).of_size(*self.size)
        first = case["samples"] * cost.prefill_flops
        whole = found["first"] + (case["tokens"] - 1) * found["further"]
        times = {"first token": [found["first"], first]}
        times["answer"] = [whole, first + case["samples"] * cost.answer_flops]
        others = {"vision s": found["vision"], "visual tokens": found["tokens"] / case["samples"]}
        return {"times": times, "others": others | self.peak()}


def serve(connection, kind: str, way: str, device: str) -> None:
    """Answer (method, case) with what the method returns, or with an error's first line, until the other side is closed."""
    if device == "cpu":
        torch.set_num_threads(1)
    work = globals()[kind](way, device)
    while True:
        try:
            method, case = connection.recv()
        except EOFError:
            return
        try:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            found = getattr(work, method)(case)
        except Exception as error:
            import traceback

            traceback.print_exc(file=sys.stderr)
            found = {"problem": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]}
            gc.collect()
        connection.send(found)
