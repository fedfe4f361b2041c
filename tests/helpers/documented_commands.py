"""Run by `make wheel` with an interpreter that has the wheel with `[all]`: what the README and getting-started tell a reader to type.

Every fenced command and every Python block runs in order, in one folder with the clone's files. The model of `make demo-short`
stands for weights that cannot be had here.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # not on the path of an isolated interpreter
from video_cases import numbered_video  # noqa: E402

PAGES = ("README.md", "docs/getting-started.md")
MODEL = "out/demo/model"
STANDS_FOR = {"OpenGVLab/InternVL2-2B": MODEL, "MODEL": MODEL}
NOT_RUN = {
    "git": "the clone is here",
    "cd": "the clone is here",
    "pip": "make wheel has installed the wheel with [all]",
    "make": "make wheel has run make demo-short",
    "source": "the interpreter's own program is called",
    "vllm": "make test-vllm runs it",
}
SERVERS = {"serve": "/health", "web": "/"}
TIMEOUT = 300  # seconds of a command


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of each fenced block that a reader runs."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a block of bash."""
    for line in block.replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            if words := shlex.split(command, comments=True):
                yield words


def run(words: list[str]) -> str:
    """Run a command as it stands, except for what it cannot have here. Returns: what became of it."""
    if words[0] in NOT_RUN:
        return f"not run: {NOT_RUN[words[0]]}"
    words = [str(Path(sys.executable).with_name(words[0])), *(STANDS_FOR.get(word, word) for word in words[1:])]
    started, used = time.monotonic(), os.times().children_user
    if words[1] in SERVERS:
        serve(words)
    else:
        done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT)
        if done.returncode:
            sys.exit(f"{shlex.join(words)} failed:\n{done.stdout}")
    return f"{time.monotonic() - started:.1f} s, {os.times().children_user - used:.1f} s of a CPU"


def serve(words: list[str]) -> None:
    """Start a server on a free port, wait for its first answer, and stop it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([*words, "--port", str(port)])
    try:
        for _ in range(TIMEOUT):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{SERVERS[words[1]]}") as answer:
                assert answer.status == 200
                return
            if server.poll() is not None:
                sys.exit(f"{shlex.join(words)} ended with status {server.returncode}")
            time.sleep(1)
        sys.exit(f"{shlex.join(words)} does not answer on port {port}")
    finally:
        server.terminate()
        server.wait()


def furnish(folder: Path, demo: Path) -> None:
    """The clone's files, the demo's output, and the reader's own photo, scan and clip."""
    for name in ("examples", "docs", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(demo, folder / "out" / "demo", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copy(ROOT / "examples" / "photo.jpg", folder / "photo.jpg")
    (folder / "clip.mp4").write_bytes(numbered_video())
    from PIL import Image

    Image.open(ROOT / "examples" / "photo.jpg").save(folder / "scan.pdf")


def main() -> None:
    demo = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=f"{folder}/home", TOKENIZERS_PARALLELISM="false")
        os.environ["OMP_WAIT_POLICY"] = "passive"
        furnish(Path(folder), demo)
        os.chdir(folder)
        for page in PAGES:
            namespace = {"__name__": "documentation"}
            for number, (language, block) in enumerate(blocks((ROOT / page).read_text(encoding="utf-8"))):
                if language == "python":
                    exec(compile(block, f"{page}, block {number}", "exec"), namespace)
                    print(f"{page}: Python of {len(block.splitlines())} lines", flush=True)
                    continue
                for words in commands(block):
                    print(f"{page}: {shlex.join(words)}: {run(words)}", flush=True)


if __name__ == "__main__":
    main()
