# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""`accelerate launch -m internvlx_hf.training CONFIG.yaml` runs `internvlx train CONFIG.yaml` in every process."""

import sys

from torch import distributed

from ..cli import main


def train() -> int:
    """The command's exit status. After a training that ended well, the group of processes that it made ends too, while
    Python still runs: at the end of Python, torch's threads may abort a process whose work is done
    (pytorch/pytorch#190489)."""
    inherited = distributed.is_initialized()
    status = main(["train", *sys.argv[1:]])
    if not status and not inherited and distributed.is_initialized():
        distributed.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(train())
