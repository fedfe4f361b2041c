# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""From how many users on vLLM answers more than `internvlx serve`: both on this machine, one after the other at each load.

    make build/vllm/.installed
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/bulk/knee.py [--users 1 2 4 8 16] [--questions 4] [--rounds 3] [--size 1024x768]

A user asks a question about a new image as soon as the answer to the last one is there. The model is small and random. The servers take turns at each
number of users; medians over the rounds.
"""

import argparse
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from timing import format_table
from vllm_throughput import VARIABLES, save_checkpoint

ROOT = Path(__file__).parents[2]
PORTS = {"internvlx serve": 8101, "vllm serve": 8102}
START_SECONDS = 900


def commands(folder: str) -> dict[str, list[str]]:
    own, vllm = PORTS.values()
    options = ["--trust-remote-code", "--max-num-batched-tokens", "4096", "--max-model-len", "8192"]
    options += ["--dtype", "float32", "--enforce-eager"]
    return {
        "internvlx serve": [sys.executable, "-m", "internvlx_hf", "serve", folder, "--port", str(own), "--name", "m"],
        "vllm serve": [
            str(ROOT / "build/vllm/bin/vllm"),
            "serve",
            folder,
            "--port",
            str(vllm),
            "--served-model-name",
            "m",
            *options,
        ],
    }


def body(random: np.random.Generator, args: argparse.Namespace) -> bytes:
    """A question about an image that no cache has."""
    width, height = map(int, args.size.split("x"))
    file = io.BytesIO()
    small = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    asked = {
        "model": "m",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": args.new_tokens,
        "temperature": 0,
    }
    return json.dumps(asked).encode()


def ask(port: int, data: bytes) -> float:
    """Seconds until the answer is there."""
    start = time.perf_counter()
    request = urllib.request.Request(
        f"http://localhost:{port}/v1/chat/completions", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        json.load(response)
    return time.perf_counter() - start


def load(
    port: int, users: int, questions: int, random: np.random.Generator, args: argparse.Namespace
) -> tuple[float, float]:
    """Answers a second, and the median seconds of one, of so many users with so many questions each."""
    bodies = [[body(random, args) for _ in range(questions)] for _ in range(users)]
    start = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        waits = list(pool.map(lambda own: [ask(port, data) for data in own], bodies))
    return users * questions / (time.perf_counter() - start), statistics.median(chain(*waits))


def wait_for(port: int, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"a server ended with {server.returncode}: {log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise RuntimeError(f"a server does not answer: {log.read_text()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--questions", type=int, default=4, help="of a user in a round")
    parser.add_argument("--size", default="1024x768", help="of an image")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    random, servers = np.random.default_rng(0), {}
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder)
        try:
            for name, command in commands(folder).items():
                log = Path(folder, f"{name.split()[0]}.log")
                with log.open("w") as file:
                    servers[name] = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | VARIABLES)
                wait_for(PORTS[name], servers[name], log)
                load(PORTS[name], 2, 1, random, args)  # warms up
            for _ in range(args.rounds):
                for users in args.users:
                    for name in servers:
                        found.setdefault((name, users), []).append(
                            load(PORTS[name], users, args.questions, random, args)
                        )
        finally:
            for server in servers.values():
                server.terminate()
                server.wait(timeout=60)
    rows = []
    for users in args.users:
        own, vllm = (
            [statistics.median(each) for each in zip(*found[name, users], strict=True)]
            for name in ("internvlx serve", "vllm serve")
        )
        rows.append(
            [users, f"{own[0]:.2f}", f"{vllm[0]:.2f}", f"{vllm[0] / own[0]:.2f}", f"{own[1]:.1f}", f"{vllm[1]:.1f}"]
        )
    header = ["users", "serve, answers/s", "vLLM, answers/s", "vLLM / serve", "serve, seconds", "vLLM, seconds"]
    print(format_table(header, rows), flush=True)


if __name__ == "__main__":
    main()
