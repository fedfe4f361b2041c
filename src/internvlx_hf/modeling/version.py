# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The package's version and the releases of transformers that it is tested with. They are in this folder because the
code that a checkpoint carries needs them too."""

import re
import warnings
from contextlib import suppress
from importlib import metadata

VERSION = "0.2.0"
# the oldest and the newest (major, minor) release
TESTED_TRANSFORMERS = (5, 16), (5, 24)


def warn_outside_tested_range(installed: str) -> None:
    """Warn if `installed`, a version of transformers, is outside of the tested range."""
    (oldest, newest), release = TESTED_TRANSFORMERS, tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
    if oldest <= release <= newest:
        return
    what = "a newer transformers"
    if release > newest:
        what = "a newer internvlx-hf (`internvlx renew` puts its code into checkpoints)"
    warnings.warn(
        f"internvlx_hf {VERSION} is tested with transformers {oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}, but "
        f"{installed} is installed. If something fails, install {what}, or "
        f"`pip install 'transformers>={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}'`.",
        stacklevel=2,
    )


with suppress(metadata.PackageNotFoundError):  # a source folder on the path
    warn_outside_tested_range(metadata.version("transformers"))
