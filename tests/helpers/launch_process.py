"""`python launch_process.py MODULES LAUNCHER ...`: accelerate's or torch's launcher, whose processes are forked of it.

They start with MODULES imported, names with commas between.
"""

import os
import signal
import socket
import sys
from importlib import import_module

import torch.distributed.run

import forked


def fork_each(settings) -> None:
    """In place of torch's elastic agent. When a process fails, the others are ended."""
    command = [*(["-m"] if settings.module else []), settings.training_script, *settings.training_script_args]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size, running = str(settings.nproc_per_node), set()
    for rank in map(str, range(int(size))):
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        running.add(forked.start(lambda: forked.run_main(*command)))
    while running:
        process, status = os.wait()
        running.remove(process)
        if status:
            for other in running:
                os.kill(other, signal.SIGTERM)
            sys.exit(f"a process of {command} ended with {os.waitstatus_to_exitcode(status)}")


for name in sys.argv.pop(1).split(","):
    import_module(name)
torch.distributed.run.run = fork_each
import_module(sys.argv.pop(1)).main()
