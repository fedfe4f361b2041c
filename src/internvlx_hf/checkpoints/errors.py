# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Errors about checkpoints."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

MOST_LISTED = 12


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message names what is wrong and what would be right."""


class LinkError(CheckpointError):
    """A file in a folder is a broken link, a link out of the folder, a pipe, a socket or a device."""


@contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """Turn any error inside into a `CheckpointError` that names `path`. A `ValueError` or `OSError` that names it
    stays.
    """
    try:
        yield
    except Exception as error:  # transformers and tokenizers raise errors of any type for unexpected file contents
        text = " ".join(str(error).split())
        if str(path) in text and isinstance(error, ValueError | OSError):
            raise
        text = text if isinstance(error, ValueError | StrictDataclassError) else f"{type(error).__name__}: {text}"
        raise CheckpointError(f"{path}: {text}") from error


def listed(names: Iterable[str], most: int = MOST_LISTED) -> str:
    """Join names for a message; beyond the first `most`, only their number is given."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
