# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Reading sentencepiece's BPE models without sentencepiece, and rebuilding them with `tokenizers`."""

import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import generate_merges

_SPACE = "▁"


class PieceType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class SentencePieceModel:
    """The fields of a `tokenizer.model` that are used; `pieces` are (text, score, type) in the order of their ids."""

    pieces: list[tuple[str, float, PieceType]]
    byte_fallback: bool
    add_dummy_prefix: bool

    @classmethod
    def read(cls, path: Path) -> "SentencePieceModel":
        """Read a sentencepiece file, a `ModelProto` of sentencepiece_model.proto.

        Raises:
            ValueError: if the file is damaged, or is not a BPE model without text normalisation that keeps all spaces, as
                in InternVL's language models.
        """
        try:
            fields = list(_fields(path.read_bytes()))
            pieces = [_piece(message) for number, message in fields if number == 1]
            trainer, normalizer = (dict(_fields(dict(fields)[number])) for number in (2, 3))
        except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
            raise ValueError(f"{path} is damaged or not a sentencepiece model.") from error
        # defaults of missing fields: unigram, no byte fallback, a dummy prefix, extra spaces removed
        properties = {
            "model_type (2 is BPE)": (trainer.get(3, 1), 2),
            "precompiled_charsmap": (normalizer.get(2, b""), b""),
            "remove_extra_whitespaces": (normalizer.get(4, 1), 0),
        }
        for name, (value, expected) in properties.items():
            if value != expected:
                raise ValueError(f"{path} has {name}={value!r:.40}, expected {expected!r}.")
        return cls(pieces, bool(trainer.get(35, 0)), bool(normalizer.get(3, 1)))


def _piece(message: bytes) -> tuple[str, float, PieceType]:
    fields = dict(_fields(message))
    return fields[1].decode(), fields.get(2, 0.0), PieceType(fields.get(3, PieceType.NORMAL))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protobuf message: integers, floats, and values with a length."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire_type = key & 7
        value: int | float | bytes
        if wire_type == 0:
            value, place = _varint(message, place)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
            (value,) = struct.unpack("<d" if wire_type == 1 else "<f", message[place : place + length])
            place += length
        elif wire_type == 2:
            length, place = _varint(message, place)
            value = message[place : place + length]
            if place + length > len(message):
                raise ValueError(f"a field of {length} bytes ends after {len(value)}")
            place += length
        else:
            raise ValueError(f"wire type {wire_type}")
        yield key >> 3, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def sentencepiece_tokenizer(
    model: SentencePieceModel,
    added_tokens: Mapping[int, AddedToken],
    *,
    legacy: bool = True,
    unprefixed: Collection[str] = (),
) -> Tokenizer:
    """A fast tokenizer that splits text like transformers' slow tokenizers with a sentencepiece model.

    Args:
        added_tokens: added tokens by id. One with the id of a piece replaces the piece in the vocabulary.
        legacy: if the model has a dummy prefix, add it to every part of a text between added tokens; without `legacy`, only
            to the whole text.
        unprefixed: added tokens before which a text gets no prefix; used only without `legacy`.

    Raises:
        ValueError: if an added token is also a piece with another id.
    """
    shadows = {index: token.content for index, token in added_tokens.items() if index < len(model.pieces)}
    own_ids = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
    for index, text in shadows.items():
        if own_ids.get(text, index) != index:
            raise ValueError(f"The added token {text!r} has id {index}, but {own_ids[text]} among the pieces.")
    # (text, score, type) as in the vocabulary; only normal pieces result from merges
    pieces = [(shadows.get(index, piece), score, kind) for index, (piece, score, kind) in enumerate(model.pieces)]
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    scores = {piece: score for piece, score, kind in pieces if kind == PieceType.NORMAL}
    core = Tokenizer(
        models.BPE(
            vocabulary,
            generate_merges({piece: vocabulary[piece] for piece in scores}, scores),
            unk_token=next((piece for piece, _, kind in pieces if kind == PieceType.UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    prefixes_once = model.add_dummy_prefix and not legacy
    if prefixes_once:
        core.normalizer = _prefix_once([token.content for token in added_tokens.values()], unprefixed)
        core.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False)
    elif model.add_dummy_prefix:
        core.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    else:
        core.normalizer = normalizers.Replace(" ", _SPACE)
    strip_prefix = [decoders.Strip(" ", left=1)] if model.add_dummy_prefix else []
    core.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip_prefix]
    )
    # sentencepiece never splits user-defined pieces; it finds them after spaces have become ▁, hence "normalized"
    unsplit = [
        piece
        for index, (piece, _, kind) in enumerate(pieces)
        if kind == PieceType.USER_DEFINED and index not in shadows
    ]
    core.add_tokens([AddedToken(piece, normalized=True, special=False) for piece in unsplit])
    core.add_tokens([_copy(token, normalized=prefixes_once) for _, token in sorted(added_tokens.items())])
    return core


def _prefix_once(added_tokens: Collection[str], unprefixed: Collection[str]) -> normalizers.Normalizer:
    """A normalizer that puts ▁ before the whole text, for added tokens with `normalized=True`.

    Spaces are kept, so that tokens with `rstrip` or `lstrip` can still consume them. Because the tokens' own text is
    normalised too, a text that consists of a single added token gets no prefix.
    """
    starts, alone = ("|".join(re.escape(token) for token in tokens) for tokens in (unprefixed, added_tokens))
    at_start = rf"(?:{starts})|" if starts else ""
    without_prefix = Regex(rf"\A{_SPACE}(?={at_start}(?:{alone})\z)")
    return normalizers.Sequence(
        [
            normalizers.Replace(_SPACE, " "),
            normalizers.Prepend(_SPACE),
            normalizers.Replace(without_prefix, ""),
        ]
    )


def _copy(token: AddedToken, normalized: bool) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=normalized or token.normalized,
        special=token.special,
    )
