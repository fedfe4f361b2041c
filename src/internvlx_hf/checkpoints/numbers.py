# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Numbers as text."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

FLOP_UNITS = {"TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6, "kFLOP": 1e3}
BYTE_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
PARAMETER_UNITS = {"billion": 1e9, "million": 1e6}


def unit(values: Sequence[float], units: Mapping[str, float]) -> tuple[str, float]:
    """The largest unit in which the largest value is at least 1, else the smallest unit."""
    largest = max(values)
    return next(((name, size) for name, size in units.items() if largest >= size), list(units.items())[-1])


def scaled(value: float, units: Mapping[str, float], form: str = "{:.2f} {}") -> str:
    """`value` in a suitable unit, such as `"2.38 billion"`."""
    name, size = unit([value], units)
    return form.format(value / size, name)


def thousands(value: float) -> str:
    """`1234` as `"1.23k"`."""
    return scaled(value, {"G": 1e9, "M": 1e6, "k": 1e3, "": 1}, "{:.3g}{}")


def file_size(num_bytes: int) -> str:
    """`12345` bytes as `"12.3 kB"`."""
    return scaled(num_bytes, {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1}, "{:.1f} {}").replace(".0 B", " B")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, `"1:02:03"`; less than a minute as `"5.2 s"`."""
    return f"{seconds:.2g} s" if seconds < 59.5 else str(timedelta(seconds=round(seconds)))


def number(value: Any) -> str:
    """A number with four significant digits, or with commas if it is whole; other values unchanged."""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def counted(count: int, name: str) -> str:
    """`1,234` with what is counted, in the plural unless it is one: `"1,234 tiles"`."""
    return f"{count:,} {name}{'s' * (count != 1)}"
