# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Reading sentencepiece's BPE models without sentencepiece, and rebuilding them with `tokenizers`."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

_SPACE = "▁"


def read_sentencepiece(path: Path) -> Any:
    """A sentencepiece file as a `ModelProto` of sentencepiece_model.proto.

    Raises:
        ValueError: if the file is damaged, or is not a BPE model without text normalisation that keeps all spaces, as
            in InternVL's language models.
    """
    model = import_protobuf().ModelProto()  # first: its error says how to install protobuf

    from google.protobuf.message import DecodeError

    try:
        model.ParseFromString(path.read_bytes())
        is_whole = bool(model.pieces) and model.HasField("trainer_spec") and model.HasField("normalizer_spec")
    except DecodeError:
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path} is damaged or not a sentencepiece model.")
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    properties = {
        "model_type (2 is BPE)": (trainer.model_type, trainer.BPE),
        "precompiled_charsmap": (normalizer.precompiled_charsmap, b""),
        "remove_extra_whitespaces": (int(normalizer.remove_extra_whitespaces), 0),
    }
    for name, (value, expected) in properties.items():
        if value != expected:
            raise ValueError(f"{path} has {name}={value!r:.40}, expected {expected!r}.")
    return model


def sentencepiece_tokenizer(
    model: Any,
    added_tokens: Mapping[int, AddedToken],
    *,
    legacy: bool = True,
    unprefixed: Collection[str] = (),
) -> Tokenizer:
    """A fast tokenizer that splits text like transformers' slow tokenizers with a sentencepiece model.

    Args:
        model: what [`read_sentencepiece`] returned.
        added_tokens: added tokens by id. One with the id of a piece replaces the piece in the vocabulary.
        legacy: if the model has a dummy prefix, add it to every part of a text between added tokens; without `legacy`,
            only to the whole text.
        unprefixed: added tokens before which a text gets no prefix; used only without `legacy`.

    Raises:
        ValueError: if an added token is also a piece with another id.
    """
    shadows = {index: token.content for index, token in added_tokens.items() if index < len(model.pieces)}
    own_ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    for index, text in shadows.items():
        if own_ids.get(text, index) != index:
            raise ValueError(f"The added token {text!r} has id {index}, but {own_ids[text]} among the pieces.")
    # (text, score, type) as in the vocabulary; only normal pieces result from merges
    pieces = [(shadows.get(index, piece.piece), piece.score, piece.type) for index, piece in enumerate(model.pieces)]
    kinds, adds_prefix = model.SentencePiece, model.normalizer_spec.add_dummy_prefix
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    scores = {piece: score for piece, score, kind in pieces if kind == kinds.NORMAL}
    core = Tokenizer(
        models.BPE(
            vocabulary,
            generate_merges({piece: vocabulary[piece] for piece in scores}, scores),
            unk_token=next((piece for piece, _, kind in pieces if kind == kinds.UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    prefixes_once = adds_prefix and not legacy
    if prefixes_once:
        core.normalizer = _prefix_once([token.content for token in added_tokens.values()], unprefixed)
        core.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False)
    elif adds_prefix:
        core.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    else:
        core.normalizer = normalizers.Replace(" ", _SPACE)
    strip_prefix = [decoders.Strip(" ", left=1)] if adds_prefix else []
    core.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip_prefix]
    )
    # sentencepiece never splits user-defined pieces; it finds them after spaces have become ▁, hence "normalized"
    unsplit = [
        piece for index, (piece, _, kind) in enumerate(pieces) if kind == kinds.USER_DEFINED and index not in shadows
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
