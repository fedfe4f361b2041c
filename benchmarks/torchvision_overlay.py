# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Make torchvision importable for a benchmark. Import this before transformers, which looks for torchvision only once.

torchvision comes from the environment, or else from build/torchvision (`make build/torchvision/.installed`). The wheel there
is one for CUDA. Its libraries are replaced by empty ones, which a CPU never calls.

Attributes:
    PROBLEM: why torchvision cannot be imported; empty if it can.
"""

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch  # noqa: F401  (whose libraries have to be loaded first)

OVERLAY = Path(__file__).parents[1] / "build" / "torchvision"
STUBBED = ("libc10_cuda.so", "libtorch_cuda.so", "libcudart.so.13")
# symbols that loading a library needs; functions that would be called later are never looked up
STUB = """
void *_ZN3c104cuda20CUDACachingAllocator9allocatorE[8];
#define STUB(name) long name(void) { return 0; }
STUB(__cudaRegisterFatBinary) STUB(__cudaRegisterFatBinaryEnd) STUB(__cudaUnregisterFatBinary)
STUB(__cudaRegisterFunction) STUB(__cudaRegisterVar) STUB(__cudaInitModule)
"""


def load_without_cuda(libraries: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, versions = Path(folder) / "stub.c", Path(folder) / "versions"
        source.write_text(STUB)
        versions.write_text("libcudart.so.13 { global: *; };")
        for name in STUBBED:
            stub = Path(folder) / name
            options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", f"-Wl,--version-script={versions}"]
            subprocess.run(["cc", *options, "-o", stub, source], check=True, capture_output=True)
            ctypes.CDLL(str(stub))
        for library in libraries:
            ctypes.CDLL(str(library), mode=os.RTLD_LAZY)


def problem() -> str:
    if importlib.util.find_spec("torchvision") is None:
        if not OVERLAY.is_dir():
            return "there is no torchvision (make build/torchvision/.installed)"
        sys.path.insert(0, str(OVERLAY))
        try:
            load_without_cuda(sorted((OVERLAY / "torchvision").glob("*.so")))
        except (OSError, subprocess.CalledProcessError) as error:
            sys.path.remove(str(OVERLAY))
            return f"torchvision cannot be loaded without CUDA: {error}"
    return ""


PROBLEM = problem()
