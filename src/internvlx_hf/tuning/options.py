# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The options of a tuning. An option is one field here: `tune`, the command and its help have it from here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..processing.rules import FLAG, FieldRule, check_settings, choice, is_number, nearest, setting, whole
from .scores import SCORES

QUESTION = "What is in this image?"
# arguments of `generate` with which answers would not be greedy, and their only allowed value
GREEDY = {"do_sample": False, "temperature": 0, "num_beams": 1, "num_return_sequences": 1}

_QUESTION = FieldRule("a question", lambda value: isinstance(value, str) and bool(value.strip()))
_PATH = FieldRule("a path", lambda value: isinstance(value, str | os.PathLike) and bool(str(value)))
_SHARE = FieldRule("a share between 0 and 1, such as 0.98", lambda value: is_number(value) and 0 < value < 1)


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What a tuning asks, promises and writes. The metadata of each field has its rule and its help.

    Raises:
        ValueError: if a value breaks its rule; the message has the value and what would be right.
    """

    question: str = setting(QUESTION, _QUESTION, "asked about each image")
    data: str | None = setting(
        None, _PATH, "a JSON Lines file of records as for `internvlx train`, instead of images and a question"
    )
    keep: float | None = setting(
        None,
        _SHARE,
        "share of images that are to keep their answers, such as 0.98",
        shown="a first look, against 0.98",
    )
    out: str = setting("tune", _PATH, "folder of the answers, tune.json, a page and a picture")
    save: str | None = setting(
        None, _PATH, "folder of a checkpoint to write: with the certified settings as its defaults, else the source's"
    )
    accept_estimate: bool = setting(False, FLAG, "save the recommended settings even if they are not certified")
    overwrite: bool = setting(False, FLAG, "replace the folder of `save` if internvlx wrote it")
    skip_broken: bool = setting(False, FLAG, "leave out images that cannot be read")
    most: int | None = setting(None, whole(2), "use at most so many images", shown="20 for a first look, else all")
    metric: str = setting("exact_match", choice(SCORES), "score of answers, where the data have them")
    batch_size: int | None = setting(None, whole(1), "questions per batch", shown="1 on a CPU, 8 otherwise")
    max_new_tokens: int = setting(64, whole(1), "answers are compared up to so many tokens")

    def __post_init__(self):
        check_settings(self)
        if self.data is not None and self.question != QUESTION:
            raise ValueError(f"data={str(self.data)!r} has its own questions: leave out question={self.question!r}.")


def split_options(given: Mapping[str, Any]) -> tuple[TuneOptions, dict[str, Any]]:
    """The options, and the other arguments, which are those of `generate`.

    Raises:
        ValueError: if an option breaks its rule or is none, or answers would not be greedy.
    """
    from transformers import GenerationConfig

    names = {each.name for each in fields(TuneOptions)}
    generation = {name: value for name, value in given.items() if name not in names}
    arguments = vars(GenerationConfig())
    for name in generation.keys() - arguments.keys():
        meant = nearest(name, [*names, *arguments])
        hint = f" Did you mean {meant}?" if meant else ""
        raise ValueError(f"{name}={generation[name]!r} is no option of a tuning and no argument of `generate`.{hint}")
    for name, allowed in GREEDY.items():
        if (value := generation.get(name)) is not None and value != allowed:
            raise ValueError(f"{name}={value}: only greedy answers can be compared, expected {name}={allowed}.")
    return TuneOptions(**{name: value for name, value in given.items() if name in names}), generation
