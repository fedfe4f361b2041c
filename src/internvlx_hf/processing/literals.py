# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The tokens and marks that stand for images and videos, and how to have text that looks like them read as text.

`modeling/literal_text.py` and `processing/literals.py` are identical, since each folder travels without the other.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock

from transformers.convert_slow_tokenizer import normalizers, pre_tokenizers

IMAGE_MARK, VIDEO_MARK = MARKS = "<image>", "<video>"
# InternVL writes an image as start, context tokens, end
IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN = "<img>", "</img>", "<IMG_CONTEXT>"
# U+2060 has no width. After a token's first character it keeps tokenizers from recognising the token.
_JOINER = "\u2060"
_TOKENIZER_LOCK = RLock()


def escaped(text: str, tokens: Iterable[str]) -> str:
    """The text with a word joiner (U+2060) in each of the tokens, which `literals_as_text` removes again."""
    for token in tokens:
        text = text.replace(token, _escaped_token(token))
    return text


def _escaped_token(token: str) -> str:
    return token[0] + _JOINER + token[1:]


MARK_AS_TEXT, VIDEO_MARK_AS_TEXT = map(_escaped_token, MARKS)


@contextmanager
def literals_as_text(tokenizer, texts: Iterable[str], tokens: Sequence[str]) -> Iterator[None]:
    """Within this context, the tokenizer reads each escaped token as plain text, without the joiner.

    Offsets refer to the escaped text.

    Raises:
        ValueError: if a text holds an escaped token and the tokenizer is not a fast one.
    """
    if not any(_escaped_token(token) in text for text in texts for token in tokens):
        yield
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"A text holds one of {', '.join(tokens)}, which a {type(tokenizer).__name__} cannot write as text. "
            "Expected a fast tokenizer, or text without it."
        )
    with _TOKENIZER_LOCK:
        normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        # Added tokens are found before the normalizer runs, except those marked to be found in its output
        if any(token.normalized for token in tokenizer.added_tokens_decoder.values() if token.content in tokens):
            steps = [pre_tokenizers.Split(_JOINER, "removed"), pre_tokenizer]
            backend.pre_tokenizer = pre_tokenizers.Sequence([step for step in steps if step is not None])
        else:
            steps = [*(normalizers.Replace(_escaped_token(token), token) for token in tokens), normalizer]
            backend.normalizer = normalizers.Sequence([step for step in steps if step is not None])
        try:
            yield
        finally:
            backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
