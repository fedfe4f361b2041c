"""Engines of vLLM, in processes of its own environment, and what `generate` answers to the same prompts."""

import base64
import io
import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from installed_metadata import write_metadata
from internvlx_hf.training.train import SETTINGS, parse_arguments, train
from paths import HELPERS, ROOT
from tiny import tiny_model, tiny_processor
from training_helpers import write_config, write_data

ENVIRONMENT = ROOT / "build/vllm"
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
# vLLM's attention on a CPU wants heads of 64
HEADS = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "num_hidden_layers": 2,
}
TWO_RANKS = HEADS | {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
# where the best two logits are nearer than this, another order of summation may exchange them
TIE = 1e-3
RATIO = {"max_patches": 12, "slicing": "ratio"}
QUESTION = "What is on the picture? "
SIZES = {"one": (30, 20), "many": (96, 64), "wide": (128, 32), "4:3": (60, 45)}


def image(name: str) -> Image.Image:
    width, height = SIZES[name]
    generator = torch.Generator().manual_seed(width)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def prompt(folder: Path, text: str, *images: str, tokens: int = 8, lead: int = 3, **settings) -> dict:
    """`lead` counts the questions before the images, which all prompts have in common."""
    paths = []
    for name in images:
        paths.append(str(folder / f"{name.replace(':', '_')}.png"))
        image(name).save(paths[-1])
    text = (
        f"<|im_start|>user\n{QUESTION * lead}{'<IMG_CONTEXT>' * len(images)}{text}<|im_end|>\n<|im_start|>assistant\n"
    )
    return {"text": text, "images": paths, "settings": settings, "tokens": tokens}


def prompts(folder: Path) -> dict[str, dict]:
    return {
        "no image": prompt(folder, "Read the digits.", tokens=20),
        "one tile": prompt(folder, "Read the digits.", "one"),
        "many tiles": prompt(folder, "Read the digits.", "many", tokens=20),
        "two images": prompt(folder, "Read.", "many", "one"),
        "four images": prompt(folder, "What?", "one", "4:3", "one", "wide"),
        "4:3": prompt(folder, "Read the digits.", "4:3"),
        "max_patches": prompt(folder, "Read the digits.", "many", max_patches=2),
        "max_patches and slicing": prompt(folder, "Read the digits.", "4:3", **RATIO),
    }


def reference(model, processor, request: dict) -> dict:
    inputs = processor(
        [Image.open(path) for path in request["images"]] or None,
        text=request["text"],
        return_tensors="pt",
        **request["settings"],
    )
    return generated(model, inputs, request["tokens"])


@torch.no_grad()
def generated(model, inputs, tokens: int) -> dict:
    output = model.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=-1,
        return_dict_in_generate=True,
        output_scores=True,  # without image placeholders
    )
    logits = torch.stack(output.scores)[:, 0]
    best = logits.topk(2).values
    ids = inputs["input_ids"][0].tolist()
    return {
        "prompt": ids,
        "tokens": output.sequences[0, len(ids) :].tolist(),
        "logprobs": logits.log_softmax(-1).amax(-1).tolist(),
        "margins": (best[:, 0] - best[:, 1]).tolist(),
    }


def assert_same(found: dict, expected: dict):
    assert found["prompt"] == expected["prompt"]
    for token, wanted, margin in zip(found["tokens"], expected["tokens"], expected["margins"], strict=True):
        if token != wanted:
            assert margin < TIE, (found["tokens"], expected["tokens"])
            return


def save(folder: Path, text: str = "llama", **kwargs) -> Path:
    kwargs = {"text_config": HEADS} | kwargs
    model = tiny_model(text, **kwargs)
    model.save_pretrained(folder)
    tiny_processor(model.config).save_pretrained(folder)
    return folder


def loaded(folder: Path):
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def trained_adapter(checkpoint: Path, folder: Path) -> Path:
    """What `internvlx train` leaves of the language model's adapters; vLLM takes no fully trained modules with them."""
    folder.mkdir()
    settings = {
        "model_name_or_path": str(checkpoint),
        "train_data": str(write_data(folder / "data")),
        "lora_rank": 4,
        "lora_modules_to_save": [],
        "learning_rate": 0.05,
        "max_steps": 4,
        "save_strategy": "no",
    }
    train(*parse_arguments([write_config(folder, **settings)], SETTINGS))
    return folder / "out"


def environment(folder: Path, packages: Sequence[Path] = ()) -> dict[str, str]:
    """For a process of vLLM with its caches in `folder`, which finds `packages` besides its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    home = {"HF_HOME": str(folder / "home"), "VLLM_CACHE_ROOT": str(folder / "home"), "TMPDIR": str(folder)}
    path = {"PYTHONPATH": os.pathsep.join(map(str, packages))} if packages else {}
    return kept | VARIABLES | home | path


def run_jobs(folder: Path, jobs: dict[str, dict], packages: Sequence[Path] = (), **variables: str) -> dict:
    """See vllm_process.py. Without `packages` its environment has nothing of ours; with them it tells the steps, too."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [ENVIRONMENT / "bin/python", *([] if packages else ["-I"]), HELPERS / "vllm_process.py"]
    command += ["jobs.json", "results.json", *(["--steps"] if packages else [])]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, packages) | variables, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((folder / "results.json").read_text())


@contextmanager
def running_server(folder: Path, *arguments: str, packages: Sequence[Path] = ()):
    """`vllm serve` on a free port, compiled as by default; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [ENVIRONMENT / "bin/vllm", "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment(folder, packages), stdout=log, stderr=log)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 400
    try:
        while not answers_health(address):
            assert server.poll() is None, (folder / "log").read_text()[-6000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-6000:]
            time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def answers_health(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).ok
    except requests.ConnectionError:
        return False


def chat(text: str, *images: str) -> list[dict]:
    parts = []
    for name in images:
        image(name).save(buffer := io.BytesIO(), "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def body(messages: list[dict], **settings) -> dict:
    greedy = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "return_token_ids": True}
    return {"model": "tiny", "messages": messages, **greedy, **settings}


def ask(server: str, messages: list[dict], **settings) -> dict:
    answer = requests.post(f"{server}/v1/chat/completions", json=body(messages, **settings), timeout=120)
    assert answer.ok, answer.text
    found = answer.json()
    return {
        "prompt": found["prompt_token_ids"],
        "tokens": found["choices"][0]["token_ids"],
        "text": found["choices"][0]["message"]["content"],
    }


def stream(server: str, messages: list[dict], **settings) -> dict:
    """As [`ask`], streamed; with the time of every token."""
    settings |= {"stream": True, "stream_options": {"include_usage": True}}
    found = {"prompt": None, "tokens": [], "times": [], "text": ""}
    url = f"{server}/v1/chat/completions"
    with requests.post(url, json=body(messages, **settings), stream=True, timeout=300) as answer:
        assert answer.ok, answer.text
        for line in answer.iter_lines():
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            found["prompt"] = chunk.get("prompt_token_ids") or found["prompt"]
            found["usage"] = chunk.get("usage")
            for choice in chunk["choices"]:
                tokens = choice.get("token_ids") or []
                found["tokens"] += tokens
                found["times"] += [time.monotonic()] * len(tokens)
                found["text"] += choice["delta"].get("content") or ""
    return found


def read_metrics(server: str) -> dict[str, float]:
    """vLLM's counters, summed over their labels."""
    totals: dict[str, float] = {}
    for line in requests.get(f"{server}/metrics", timeout=30).text.splitlines():
        if line and not line.startswith("#"):
            name, value = line.split("{")[0].split(" ")[0], line.rsplit(" ", 1)[1]
            totals[name] = totals.get(name, 0) + float(value)
    return totals


def expected_chat(model, processor, messages: list[dict], tokens: int = 8, **settings) -> dict:
    form = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(messages, **form, processor_kwargs=settings)
    return generated(model, inputs, tokens)


def installed_package(folder: Path, overlay: Path | None = None) -> list[Path]:
    """Folders for PYTHONPATH with which vLLM finds this package as pip would have installed it: code and entry points.

    Args:
        overlay: a folder whose packages hide those of vLLM's environment.
    """
    write_metadata(folder)
    return [*([] if overlay is None else [overlay]), folder, ROOT / "src"]
