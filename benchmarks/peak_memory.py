"""Peak memory of a model and a run of it."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
from process_memory import IS_MEASURABLE, peak_of


def peak_bytes(run: Callable[[], object], model: torch.nn.Module) -> int | None:
    """Bytes of the model's weights, and the peak that a run adds to the memory used before.

    Other models may be in the same process. None on a CPU whose system cannot say (it has to be Linux).
    """
    weights = sum(p.nbytes for p in model.parameters())
    if next(model.parameters()).device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return weights + torch.cuda.max_memory_allocated() - before
    if not IS_MEASURABLE:
        run()
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what the heap keeps for later would hide a part of the peak
    before, peak = peak_of(run)
    return weights + peak - before
