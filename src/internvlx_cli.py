# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The program `internvlx`: `internvlx_hf.cli`, with the Auto classes registered only once a command works with models.

It stands outside of the package because importing the package registers them, which takes five seconds.
"""

# set in the process that the program starts, and not in the workers that import this module
is_program = False


def main() -> int:
    """Run the command line; returns the exit status."""
    global is_program
    is_program = True
    from internvlx_hf.cli import main as run

    return run()
