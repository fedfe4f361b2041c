"""What this machine has and lacks, found out without importing torch: a person waits for the answer beside a paid GPU."""

import hashlib
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIRED = ("transformers", "accelerate", "einops", "numpy", "peft", "pillow", "psutil", "pytest", "pyyaml")
# what is measured or tested only where it is there
OPTIONAL = ("torchvision", "triton", "flash_attn", "kernels", "liger_kernel", "bitsandbytes", "datasets", "vllm")


def installed(name: str) -> str:
    try:
        return version(name.replace("_", "-"))
    except PackageNotFoundError:
        return ""


def torch_version() -> str:
    """With what it was built for: 2.11.0+cu130."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    return re.search(r"__version__ = '(.*)'", text)[1]


def gpus() -> list[list[str]]:
    """Name, driver and MiB of each GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    fields = "name,driver_version,memory.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    return [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if not done.returncode]


def look(device: str) -> tuple[dict[str, str], list[str], list[str]]:
    """The machine for the records, what is missing, and what else is not there."""
    setting = (ROOT / "src/internvlx_hf/modeling/version.py").read_text(encoding="utf-8")
    machine = {"gpu": "none, a CPU", "driver": "none", "torch": torch_version(), "python": platform.python_version()}
    machine |= {"internvlx_hf": re.search(r'^VERSION = "(.*)"', setting, re.MULTILINE)[1]}
    machine |= {"transformers": installed("transformers")}
    missing = [f"{name}: {sys.executable} -m pip install {name}" for name in REQUIRED if not installed(name)]
    if not machine["torch"]:
        missing.append("torch, and with it everything: name another Python, make gpu PYTHON=path/to/python")
    if device == "cuda":
        found = gpus()
        if not found:
            missing.append("a GPU: nvidia-smi finds none. --device cpu --preset tiny shows only that everything runs")
        else:
            name, driver, total = found[0]
            machine |= {"gpu": f"{name}, {int(total) / 1024:.0f} GiB", "driver": driver}
        if machine["torch"] and "+cu" not in machine["torch"] and "+cpu" in machine["torch"]:
            missing.append(f"a torch for CUDA: this is {machine['torch']}")
    absent = [name for name in OPTIONAL if find_spec(name) is None]
    return machine, missing, absent


def code() -> str:
    """Changes with the package's source."""
    files = sorted((ROOT / "src").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
