# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Options of a conversion and of a model from parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..checkpoints.folders import is_hub_id
from ..checkpoints.names import DTYPES, LLAVA, NATIVE, OURS
from ..modeling.projectors import PROJECTORS
from ..processing.image_settings import ImageSettings
from ..processing.rules import FLAG, OBJECT, TEXT, FieldRule, choice, either, is_number, number, setting, whole
from ..processing.size_choices import OFFERS_HELP, SIZES_RULE, size_names

if TYPE_CHECKING:
    import torch

TARGETS = (OURS, NATIVE, LLAVA)
PROJECTOR_CHOICES = ("keep", "pvtc")
INITS = ("warm", "paper")
ROUTER_CHOICES = ("keep", "drop")
RULES = {
    "to": choice(TARGETS),
    "projector": choice(PROJECTOR_CHOICES),
    "lvtc": either(FLAG, OBJECT),
    "downsample_ratio": number(1e-3, 1).or_null(),
    "init": choice(INITS),
    "router": choice(ROUTER_CHOICES),
    "merge_at": whole(1, 10_000).or_null(),
    "dtype": choice(DTYPES).or_null(),
    "revision": TEXT.or_null(),
    "base_model": FieldRule(
        "a Hub id like 'owner/name'", lambda name: isinstance(name, str) and is_hub_id(name)
    ).or_null(),
    "max_shard_gigabytes": FieldRule("a positive number", lambda value: is_number(value) and value > 0),
    "seed": whole(-(2**62), 2**62),
    "verify": FLAG,
    "overwrite": FLAG,
}
INIT_RULES = {
    "projector": either(choice(PROJECTORS), OBJECT),
    "template": TEXT.or_null(),
    "downsample_ratio": number(1e-3, 1),
    "vision_feature_layer": whole(-1000, 1000),
    **dict.fromkeys(("vision_revision", "language_revision"), TEXT.or_null()),
    **{name: RULES[name] for name in ("lvtc", "dtype", "max_shard_gigabytes", "seed", "verify", "overwrite")},
}
# these change how a conversion runs, not its result
UNRECORDED = ("max_shard_gigabytes", "verify", "overwrite")


@dataclass(frozen=True, kw_only=True)
class _Options(ImageSettings):
    """Common base of [`ConversionOptions`] and [`InitOptions`]."""

    lvtc: bool | dict = False
    dtype: "str | torch.dtype | None" = None
    rules: ClassVar[dict[str, FieldRule]] = {}

    def __post_init__(self):
        super().__post_init__()
        values = vars(self) | {"dtype": self.dtype_name}
        for name, rule in self.rules.items():
            rule.check(name, values[name])
        if self.lvtc == {}:  # all defaults
            object.__setattr__(self, "lvtc", True)

    @property
    def dtype_name(self) -> str | None:
        return None if self.dtype is None else str(self.dtype).removeprefix("torch.")

    def recorded(self) -> dict[str, Any]:
        """The options as the report records them."""
        options = vars(self) | {"dtype": self.dtype_name}
        return {name: value for name, value in options.items() if name not in UNRECORDED}


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(_Options):
    """Options of a conversion. With the defaults, the converted model gives the same answers as the original.

    Args:
        to: target layout: "internvl_x" (default), or transformers' own: "internvl" or "llava", which need the kept projector
            of that family and no LVTC.
        projector: "keep" (default), or "pvtc" to replace InternVL2's or LLaVA's projector with PVTC.
        lvtc: add LVTC: True or {} for its defaults, or arguments of `InternVLXLVTCConfig` (default: False). The new modules need
            training. A warm start on the source's number of tokens sets `expanded_positions="kept"` unless it is given.
        downsample_ratio: a new 1 / M for the input tokens; the projector then needs training. Default: the checkpoint's; but for
            PVTC or LVTC in place of a projector that keeps every patch (LLaVA's), the first of 1/2, 1/3 and 1/4 that divides
            the grid of patches.
        init: start of new modules: "warm" (default), from the checkpoint's weights, or "paper", at random.
        router: "keep" (default), or "drop" to convert InternVL3.5-Flash without its router, which then takes all tokens of
            every tile, as its own code does with `flash_mode=False`.
        tokens_per_tile: the sizes that the model offers, the default first, which is the checkpoint's own number of tokens:
            ["256", "256:64"] or "256,256:64" (default: the checkpoint's). Sizes that shrink need `merge_at` and no training;
            those with fewer tokens from the first layer on need training, and those that grow need `lvtc` and training.
        merge_at: the first layer that sees fewer tokens of a tile whose size shrinks.
        slicing, max_patches, ...: what the processor saves, see [`ImageSettings`] (default: the checkpoint's; the slicing is "ratio"
            for InternVL, "edge" for the InternVL-X release, as they were trained). "edge" takes fewer tokens for small images, which
            can change answers. LLaVA takes one tile per image: for more, set `max_patches`.
        dtype: dtype to save in, "bfloat16", "float16" or "float32" (default: the source's).
        revision: branch, tag or commit on the Hub (default: its main branch).
        base_model: Hub id to name in the model card if the source is a folder.
        max_shard_gigabytes: maximum size of an output shard (default: 5).
        seed: seed of random values (default: 0).
        verify: load the result and compare it with an independent computation of the source (default: no). Needs memory
            for the model in float32.
        overwrite: replace the output folder if this package wrote it and it holds nothing else (default: no). Text that a
            person added to its model card is kept.

    Raises:
        ValueError: if an option has an invalid value; the message gives both and what would be right.
    """

    to: str = OURS
    projector: str = "keep"
    lvtc: bool | dict = False
    downsample_ratio: float | None = None
    init: str = "warm"
    router: str = "keep"
    tokens_per_tile: Sequence[str | int] | str | None = setting(None, SIZES_RULE, OFFERS_HELP)
    merge_at: int | None = None
    dtype: "str | torch.dtype | None" = None
    revision: str | None = None
    base_model: str | None = None
    max_shard_gigabytes: float = 5
    seed: int = 0
    verify: bool = False
    overwrite: bool = False

    rules: ClassVar[dict[str, FieldRule]] = RULES

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
class InitOptions(_Options):
    """Options of a model that is made from a vision tower and a language model.

    Args:
        projector: the projector's type, or arguments of `InternVLXProjectorConfig` (default: "pvtc").
        lvtc: add LVTC: True or {} for its defaults, or arguments of `InternVLXLVTCConfig` (default: False).
        downsample_ratio: 1 / M for the input tokens (default: 0.5).
        vision_feature_layer: the hidden state of the tower to project (default: -1, the last).
        slicing, max_patches, ...: what the processor saves, see [`ImageSettings`] (default: its own defaults).
        template: name of a conversation template of InternVL, or path of a Jinja file (default: the language model's own).
        dtype: dtype to save in, "bfloat16", "float16" or "float32" (default: each part's own).
        vision_revision, language_revision: branch, tag or commit on the Hub (default: the main branch).
        max_shard_gigabytes: maximum size of an output shard (default: 5).
        seed: seed of random values (default: 0).
        verify: load the result and run it on an image (default: no). Needs memory for the model in float32.
        overwrite: as in [`ConversionOptions`].

    Raises:
        ValueError: if an option has an invalid value; the message gives both and what would be right.
    """

    projector: str | dict = "pvtc"
    lvtc: bool | dict = False
    downsample_ratio: float = 0.5
    vision_feature_layer: int = -1
    template: str | None = None
    dtype: "str | torch.dtype | None" = None
    vision_revision: str | None = None
    language_revision: str | None = None
    max_shard_gigabytes: float = 5
    seed: int = 0
    verify: bool = False
    overwrite: bool = False
    rules: ClassVar[dict[str, FieldRule]] = INIT_RULES
