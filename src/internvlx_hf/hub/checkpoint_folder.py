# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Writing a checkpoint folder atomically, with its model card."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoints.atomic_folder import atomic_folder, resolve_out
from ..checkpoints.manifest import written_by
from .card_text import manual_content
from .model_card import read_card, write_card


@contextmanager
def checkpoint_folder(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An [`atomic_folder`] that gets a model card at the end, with the manual content of the card in `out`.

    Raises:
        CardError: if manual and generated content of the card in `out` cannot be told apart. If a mark was damaged
            only during the run, the new folder is kept beside `out`, and the message names it.
        KeyboardInterrupt: on an interrupt; its message tells whether `out` was written.
    """
    out = resolve_out(out)

    def add_card(folder: Path) -> None:
        write_card(folder, name=out.name, previous=read_card(out))

    before = written_by(out)
    try:
        with atomic_folder(out, overwrite=overwrite, complete=add_card) as folder:
            manual_content(read_card(out))  # raises for a damaged card before heavy work
            yield folder
    except KeyboardInterrupt:
        outcome = "nothing was written" if written_by(out) == before else f"{out} had already been written"
        raise KeyboardInterrupt(outcome) from None
