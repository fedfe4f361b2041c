"""How much memory this process takes, as Linux counts it."""

from collections.abc import Callable
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
IS_MEASURABLE = CLEAR.exists()


def peak_of(function: Callable[[], object]) -> tuple[int, int]:
    """Bytes held before the function runs, and the most that are held while it runs."""
    CLEAR.write_text("5")  # forget the peak so far
    before = _bytes("VmRSS")
    function()
    return before, _bytes("VmHWM")


def _bytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
