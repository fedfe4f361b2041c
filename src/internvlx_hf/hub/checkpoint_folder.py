# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint folder that appears whole, with its model card."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoints.atomic_folder import atomic_folder, resolve_out
from ..checkpoints.manifest import written_by
from .card_text import writing
from .model_card import read_card, write_card


@contextmanager
def checkpoint_folder(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A [`atomic_folder`] that gets a model card at the end, with what a person wrote into that of `out` by then.

    Raises:
        CardError: what a person wrote into the card of `out` cannot be told from what was generated. Where a mark was
            damaged only meanwhile, what was written is kept beside `out`, and the message names it.
        KeyboardInterrupt: saying whether `out` was written.
    """
    out = resolve_out(out)

    def add_card(folder: Path) -> None:
        write_card(folder, name=out.name, previous=read_card(out))

    before = written_by(out)
    try:
        with atomic_folder(out, overwrite=overwrite, complete=add_card) as folder:
            writing(read_card(out))
            yield folder
    except KeyboardInterrupt:
        outcome = "nothing was written" if written_by(out) == before else f"{out} was written before"
        raise KeyboardInterrupt(outcome) from None
