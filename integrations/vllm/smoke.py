"""The first thing to run where vLLM has a GPU: does a checkpoint with LVTC answer there as with transformers?

    python integrations/vllm/smoke.py CHECKPOINT [--dtype bfloat16] [--tolerance 0.2] [--skip-graphs]

It asks transformers, then vLLM without CUDA graphs, one prompt at a time and all at once, then vLLM with graphs for decoding.
Greedy tokens must be the same, except where the best two are closer than the tolerance (in log-probability). Each line is a
prompt; lines that begin with OFF say what differs and where to look. The exit status is the number of them, at most 1.
"""

import argparse
import gc
import os
import sys
from unittest import mock

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the record of steps is in the process that runs the model

import torch
from PIL import Image

TOKENS = 24
QUESTIONS = {"text": (), "one tile": ((448, 448),), "wide": ((1344, 448),), "two images": ((900, 900), (448, 448))}
# where the first token that differs is, and what that speaks of
PREFILL = "the prompt: tiles, LR and HR tokens, stage one's metadata (`stage_attention.stage_metadata`), the expansion"
DECODING = "decoding: positions (`tile_rows.PromptRows.carried`), slots (`stage_attention.slot_mapping`)"


def image(width: int, height: int, seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (height // 28, width // 28, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(levels.numpy()).resize((width, height), Image.Resampling.NEAREST)


def messages(sizes: tuple) -> tuple[list[dict], list[Image.Image]]:
    images = [image(*size, seed) for seed, size in enumerate(sizes)]
    parts = [{"type": "image"} for _ in images] + [
        {"type": "text", "text": "Describe what you see in three sentences."}
    ]
    return [{"role": "user", "content": parts}], images


def ask_transformers(checkpoint: str, dtype: torch.dtype, device: str) -> tuple[dict[str, str], dict[str, dict]]:
    """Prompts for vLLM, and the answers: tokens, and by how much the best was ahead of the second."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import internvlx_hf  # noqa: F401

    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype).eval().to(device)
    prompts, answers = {}, {}
    for name, sizes in QUESTIONS.items():
        chat, images = messages(sizes)
        inputs = processor.apply_chat_template(
            chat,
            images=images or None,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        ).to(device)
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        best = torch.stack(output.logits)[:, 0].float().log_softmax(-1).topk(2).values
        length = inputs["input_ids"].shape[1]
        answers[name] = {
            "tokens": output.sequences[0, length:].tolist(),
            "margins": (best[:, 0] - best[:, 1]).tolist(),
        }
        prompts[name] = processor.apply_chat_template(chat, images=images or None, add_generation_prompt=True)
    return prompts, answers


def ask_vllm(checkpoint: str, prompts: dict[str, str], dtype: str, graphs: bool) -> tuple[dict, int]:
    """Tokens by run and prompt, and how much is off besides."""
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams

    from internvlx_hf.vllm import model as plugin

    steps: list[tuple[bool, list[int]]] = []  # of each step, whether it has images, and the rows of each stage

    def record(stages, boundaries, rows, carried, tiles):
        found = read_rows(stages, boundaries, rows, carried, tiles)
        steps.append((tiles is not None, [len(own.numbers) for own in found[0]]))
        return found

    read_rows = plugin.read_rows
    mode = "FULL_DECODE_ONLY" if graphs else "NONE"
    length = min(AutoConfig.from_pretrained(checkpoint).position_limit, 16384)
    llm = LLM(
        checkpoint, dtype=dtype, max_model_len=length, max_num_batched_tokens=length, enforce_eager=not graphs,
        compilation_config={"cudagraph_mode": mode}, limit_mm_per_prompt={"image": 2}, disable_log_stats=False,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, min_tokens=TOKENS)
    requests = {}
    for name, prompt in prompts.items():
        _, images = messages(QUESTIONS[name])
        requests[name] = {"prompt": prompt} | ({"multi_modal_data": {"image": images}} if images else {})
    found = {"alone": {}, "together": {}}
    with mock.patch.object(plugin, "read_rows", record):
        for name, request in requests.items():
            found["alone"][name] = list(llm.generate([request], sampling, use_tqdm=False)[0].outputs[0].token_ids)
        outputs = llm.generate(list(requests.values()), sampling, use_tqdm=False)
    found["together"] = {
        name: list(output.outputs[0].token_ids) for name, output in zip(requests, outputs, strict=True)
    }
    off = describe(llm.llm_engine.model_executor.driver_worker.worker.model_runner, mode, steps)
    del llm
    gc.collect()
    torch.cuda.empty_cache()
    return found, off


def describe(runner, mode: str, steps: list) -> int:
    """Say which of vLLM's runners ran, where stage one's metadata were, and whether graphs were replayed.

    Steps that a graph replays are not recorded, since no Python runs in them. Returns how much is off.
    """
    dropped = sum(max(rows) - rows[0] for _, rows in steps)
    # a prompt has more rows than there are requests
    decoding = sum(not has_images and rows[0] <= len(QUESTIONS) for has_images, rows in steps)
    state = getattr(runner, "model_state", None)
    print(f"  {type(runner).__module__}, graphs {mode}: {len(steps)} steps in Python, {decoding} of them decoding,")
    print(f"  {dropped} rows left out of stage one")
    if state is None:
        print("  V1 runner: each step computes stage one's lengths and slots in the forward, or in the graph of it")
    off = []
    if not dropped:
        off.append("no row was left out of stage one: are there images, and is the plug-in at work?")
    if state is not None and not any(own.any() for own in getattr(state, "lengths", {}).values()):
        off.append("Model Runner V2 without buffers for stage one: is the model's `get_model_state_cls` asked?")
    elif state is not None:
        print("  Model Runner V2: stage one's lengths and slots are in buffers")
    if mode != "NONE" and decoding:
        off.append("decoding steps ran without graphs")
    elif mode != "NONE":
        print("  graphs were replayed in all decoding steps")
    for line in off:
        print(f"OFF {line}")
    return len(off)


def compare(run: str, found: dict[str, list[int]], expected: dict[str, dict], tolerance: float) -> int:
    """Print a line per prompt; returns how many are off."""
    off = 0
    for name, answer in expected.items():
        pairs = zip(found[name], answer["tokens"], answer["margins"], strict=True)
        first = next((i for i, (token, wanted, _) in enumerate(pairs) if token != wanted), None)
        if first is None:
            print(f"  {run}, {name}: all {TOKENS} tokens equal")
        elif answer["margins"][first] < tolerance:
            print(
                f"  {run}, {name}: equal up to token {first}, where the best two are {answer['margins'][first]:.3f} apart"
            )
        else:
            off += 1
            place = "the language model or the dtype, not LVTC" if name == "text" else DECODING if first else PREFILL
            margin = answer["margins"][first]
            print(f"OFF {run}, {name}: token {first} differs, the best two are {margin:.3f} apart. Look at {place}.")
    return off


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tolerance", type=float, default=0.2)
    parser.add_argument("--skip-graphs", action="store_true")
    arguments = parser.parse_args()

    import transformers
    import vllm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU only: graphs are left out"
    print(f"vLLM {vllm.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, {name}")
    prompts, expected = ask_transformers(arguments.checkpoint, getattr(torch, arguments.dtype), device)
    gc.collect()
    torch.cuda.empty_cache()
    off, eager = 0, {}
    for graphs in [False] if arguments.skip_graphs or device == "cpu" else [False, True]:
        found, missing = ask_vllm(arguments.checkpoint, prompts, arguments.dtype, graphs)
        off += missing
        for run, answers in found.items():
            off += compare(f"{run}{', graphs' if graphs else ''}", answers, expected, arguments.tolerance)
        if not graphs:
            eager = found
        elif found != eager and not off:
            print("  graphs and eager steps differ within the tolerance")
        elif found != eager:
            print("OFF with graphs where eager steps are right points to the capture of stage one's metadata.")
    print("all is well" if not off else f"{off} lines are OFF")
    return min(off, 1)


if __name__ == "__main__":
    sys.exit(main())
