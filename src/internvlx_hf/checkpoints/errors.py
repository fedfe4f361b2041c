# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What is wrong with a checkpoint, in words."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

MOST_LISTED = 12


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names what is wrong with it and what would be right."""


class LinkError(CheckpointError):
    """A file of a folder that is a link to nothing or out of the folder, or a pipe, a socket or a device."""


@contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `CheckpointError` that names `path`; an `OSError` that does so stays."""
    try:
        yield
    except Exception as error:  # transformers and tokenizers raise anything for what they did not expect in a file
        text = " ".join(str(error).split())
        if str(path) in text and isinstance(error, ValueError | OSError):
            raise
        text = text if isinstance(error, ValueError | StrictDataclassError) else f"{type(error).__name__}: {text}"
        raise CheckpointError(f"{path}: {text}") from error


def listed(names: Iterable[str], most: int = MOST_LISTED) -> str:
    """Names for a message, the first few of them."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
