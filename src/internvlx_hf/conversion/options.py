# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Options of a conversion and of a model from parts, with the text and the rule of each."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ..checkpoints.kinds import DTYPES, LLAVA, NATIVE, OURS
from ..processing.image_settings import ImageSettings
from ..processing.rules import FLAG, OBJECT, POSITIVE, TEXT, FieldRule, choice, either, number, setting, whole
from ..processing.size_choices import OFFERS_HELP, SIZES_RULE, size_names

if TYPE_CHECKING:
    import torch

TARGETS = (OURS, NATIVE, LLAVA)
PROJECTOR_CHOICES = ("keep", "pvtc")
INITS = ("warm", "paper")
ROUTER_CHOICES = ("keep", "drop")
# these change how a conversion runs, not its result
UNRECORDED = ("max_shard_gigabytes", "verify", "overwrite")


def read_ratio(text: str) -> float:
    """The value of `"1/3"` or `"0.5"`."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a ratio, expected one such as 1/3 or 0.5.") from None


def read_json_or_name(text: str) -> Any:
    """The value of JSON text; any other text is a name."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _lvtc_settings(text: str) -> dict | bool | None:
    settings = read_json_or_name(text)
    if settings is None or isinstance(settings, dict | bool):
        return settings
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a JSON object such as '{{\"expand_layer\": 17}}'. Put a plain --lvtc last."
    )


def _is_hub_id(name: Any) -> bool:
    from ..checkpoints.folders import is_hub_id

    return isinstance(name, str) and is_hub_id(name)


def _is_projector(name: Any) -> bool:
    from ..modeling.projectors import PROJECTORS

    return isinstance(name, str) and name in PROJECTORS


_RATIO = {"type": read_ratio, "metavar": "1/M"}


def _revision(whose: str) -> Any:
    return setting(None, TEXT.or_null(), f"branch, tag or commit {whose} on the Hub", shown="main")


@dataclass(frozen=True, kw_only=True)
class SharedOptions(ImageSettings):
    """What [`ConversionOptions`] and [`InitOptions`] share. The metadata of each field has its help and its rule."""

    lvtc: bool | dict = setting(
        False,
        either(FLAG, OBJECT),
        'add LVTC, which needs training, optionally with fields of its configuration, such as \'{"expand_layer": '
        "17}'",
        shown="not added",
        type=_lvtc_settings,
        nargs="?",
        const=True,
        metavar="JSON",
    )
    dtype: "str | torch.dtype | None" = setting(
        None,
        FieldRule(f"one of {', '.join(map(repr, DTYPES))}", lambda dtype: _name(dtype) in DTYPES, DTYPES),
        "dtype to save in",
        shown="as stored",
        type=str,
    )
    max_shard_gigabytes: float = setting(5, POSITIVE, "maximum size of an output shard")
    seed: int = setting(0, whole(-(2**62), 2**62), "seed of new random values")
    verify: bool = setting(
        False,
        FLAG,
        "load the result and check it against an independent computation of the source, or run it on an image where "
        "there is no source; needs memory for the model in float32",
    )
    overwrite: bool = setting(
        False,
        FLAG,
        "replace OUT if internvlx wrote it and it holds nothing else; text that a person added to its model card is "
        "kept",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.lvtc == {}:  # all defaults
            object.__setattr__(self, "lvtc", True)

    @property
    def dtype_name(self) -> str | None:
        return None if self.dtype is None else _name(self.dtype)

    def recorded(self) -> dict[str, Any]:
        """The options as the report records them."""
        options = vars(self) | {"dtype": self.dtype_name}
        return {name: value for name, value in options.items() if name not in UNRECORDED}


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(SharedOptions):
    """Options of a conversion. With the defaults, the converted model gives the same answers as the original.

    The metadata of each field has its help and its rule; `internvlx convert --help` prints them. For images see
    [`ImageSettings`]: by default, a processor keeps the checkpoint's settings, with the slicing "ratio" for InternVL
    and "edge" for the InternVL-X release, as they were trained.

    Raises:
        ValueError: if an option has an invalid value; the message gives both and what would be right.
    """

    to: str = setting(
        OURS,
        choice(TARGETS),
        "layout to write; those of transformers need the kept projector of that family and no LVTC",
    )
    projector: str = setting(
        "keep", choice(PROJECTOR_CHOICES), "keep the projector, or upgrade to PVTC, which needs training"
    )
    downsample_ratio: float | None = setting(
        None,
        number(1e-3, 1).or_null(),
        "downsampling of the first layers' tokens: M x M patches become one token. A change needs training",
        shown="the source's; 1/2 or, if 2 does not divide the grid of patches, 1/3 or 1/4 for PVTC or LVTC in a LLaVA",
        **_RATIO,
    )
    init: str = setting(
        "warm",
        choice(INITS),
        "initial values of new modules: warm takes them from the source's where it can, paper draws them at random",
    )
    router: str = setting(
        "keep",
        choice(ROUTER_CHOICES),
        "keep InternVL3.5-Flash's router, with which some tiles take fewer tokens, or take all tokens",
    )
    revision: str | None = _revision("of the source")
    base_model: str | None = setting(
        None,
        FieldRule("a Hub id like 'owner/name'", _is_hub_id).or_null(),
        "Hub id of the source for the model card, if SRC is a folder",
        shown="none",
    )
    tokens_per_tile: Sequence[str | int] | str | None = setting(
        None, SIZES_RULE, OFFERS_HELP, shown="the source's", type=str, metavar="SIZES"
    )
    merge_at: int | None = setting(
        None,
        whole(1, 10_000).or_null(),
        "the first layer, counted from 0, that sees fewer tokens of a tile whose size shrinks (256:64, 256:0)",
        metavar="LAYER",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.tokens_per_tile is not None:
            given = self.tokens_per_tile.split(",") if isinstance(self.tokens_per_tile, str) else self.tokens_per_tile
            object.__setattr__(self, "tokens_per_tile", size_names(given))

    @property
    def given(self) -> dict[str, Any]:
        """The settings of images that are given, by name: what the processor saves."""
        return {name: value for name, value in super().given.items() if name != "tokens_per_tile"}


@dataclass(frozen=True, kw_only=True)
class InitOptions(SharedOptions):
    """Options of a model that is made from a vision tower and a language model.

    The metadata of each field has its help and its rule; `internvlx init --help` prints them. For images see
    [`ImageSettings`].

    Raises:
        ValueError: if an option has an invalid value; the message gives both and what would be right.
    """

    projector: str | dict = setting(
        "pvtc",
        either(FieldRule("the name of a projector, such as 'pvtc'", _is_projector), OBJECT),
        "type of the projector, or fields of its configuration as JSON",
        type=read_json_or_name,
        metavar="NAME|JSON",
    )
    downsample_ratio: float = setting(
        0.5,
        number(1e-3, 1),
        "downsampling of the first layers' tokens: M x M patches become one token",
        shown="1/2",
        **_RATIO,
    )
    vision_feature_layer: int = setting(
        -1, whole(-1000, 1000), "index of the tower's hidden state that is projected; -1 is the last"
    )
    template: str | None = setting(
        None,
        TEXT.or_null(),
        "chat template: internlm2-chat, Hermes-2, phi3-chat, internvl2_5, or a Jinja file",
        shown="the language model's",
        metavar="NAME|FILE",
    )
    vision_revision: str | None = _revision("of the tower")
    language_revision: str | None = _revision("of the language model")
