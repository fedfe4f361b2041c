# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What can be chosen about a conversion, and about a model from parts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..checkpoints.folders import is_hub_id
from ..checkpoints.names import DTYPES, NATIVE, OURS
from ..checkpoints.rules import FLAG, OBJECT, TEXT, FieldRule, choice, either, is_number, number, whole
from ..modeling.projectors import PROJECTORS
from ..processing.rvtc import MAX_TILES, SLICING_STRATEGIES

if TYPE_CHECKING:
    import torch

TARGETS = (OURS, NATIVE)
PROJECTOR_CHOICES = ("keep", "pvtc")
INITS = ("warm", "paper")
RULES = {
    "to": choice(TARGETS),
    "projector": choice(PROJECTOR_CHOICES),
    "lvtc": either(FLAG, OBJECT),
    "downsample_ratio": number(1e-3, 1).or_null(),
    "init": choice(INITS),
    "slicing": choice(SLICING_STRATEGIES).or_null(),
    "max_patches": whole(1, MAX_TILES).or_null(),
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
    "slicing": choice(SLICING_STRATEGIES),
    "max_patches": whole(1, MAX_TILES),
    "downsample_ratio": number(1e-3, 1),
    "vision_feature_layer": whole(-1000, 1000),
    **dict.fromkeys(("vision_revision", "language_revision"), TEXT.or_null()),
    **{name: RULES[name] for name in ("lvtc", "dtype", "max_shard_gigabytes", "seed", "verify", "overwrite")},
}
# what they change is how a conversion runs, not what comes out
UNRECORDED = ("max_shard_gigabytes", "verify", "overwrite")


class _Options:
    """What [`ConversionOptions`] and [`InitOptions`] do with their values."""

    dtype: "str | torch.dtype | None"
    rules: ClassVar[dict[str, FieldRule]]

    def __post_init__(self):
        values = vars(self) | {"dtype": self.dtype_name}
        for name, rule in self.rules.items():
            rule.check(name, values[name])

    @property
    def dtype_name(self) -> str | None:
        return None if self.dtype is None else str(self.dtype).removeprefix("torch.")

    def recorded(self) -> dict[str, Any]:
        """What a report says of them."""
        options = vars(self) | {"dtype": self.dtype_name}
        return {name: value for name, value in options.items() if name not in UNRECORDED}


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(_Options):
    """What can be chosen about a conversion; by default the converted model answers as the original does.

    Args:
        to: "internvl_x", or "internvl" for transformers' native layout (a kept projector, no LVTC).
        projector: "keep", or "pvtc" to put PVTC in the place of InternVL2's projector.
        lvtc: add LVTC: True for its defaults, or arguments of `InternVLXLVTCConfig`. The new modules need training.
        downsample_ratio: another 1 / M for the tokens of the input than the checkpoint's; the projector needs training.
        init: how new modules start: "warm", close to what the checkpoint knows, or "paper", at random.
        slicing: "ratio", "edge" or "area"; unset: as the checkpoint was made for, "ratio" for InternVL, "edge" for the
            InternVL-X release. "edge" costs fewer tokens for small images and needs no training.
        max_patches: most tiles per image; unset: the checkpoint's.
        dtype: to save in, "bfloat16", "float16" or "float32"; unset: the source's.
        revision: branch, tag or commit on the Hub.
        base_model: Hub id for the model card where the source is a folder.
        max_shard_gigabytes: size of an output shard.
        seed: of random values.
        verify: load the result and compare it with the source computed another way; takes the model's memory in float32.
        overwrite: replace the output folder if this package wrote it and it holds nothing else; what a person wrote into
            its model card stays.

    Raises:
        ValueError: an option has a value that it cannot have, naming both and what would be right.
    """

    to: str = OURS
    projector: str = "keep"
    lvtc: bool | dict = False
    downsample_ratio: float | None = None
    init: str = "warm"
    slicing: str | None = None
    max_patches: int | None = None
    dtype: "str | torch.dtype | None" = None
    revision: str | None = None
    base_model: str | None = None
    max_shard_gigabytes: float = 5
    seed: int = 0
    verify: bool = False
    overwrite: bool = False

    rules: ClassVar[dict[str, FieldRule]] = RULES


@dataclass(frozen=True, kw_only=True)
class InitOptions(_Options):
    """What can be chosen about a model that is made from a vision tower and a language model.

    Args:
        projector: its type, or arguments of `InternVLXProjectorConfig`.
        lvtc: add LVTC: True for its defaults, or arguments of `InternVLXLVTCConfig`.
        downsample_ratio: 1 / M for the tokens of the input.
        vision_feature_layer: which of the tower's hidden states is projected.
        slicing: "edge", "area" or "ratio".
        max_patches: most tiles per image.
        template: a conversation template of InternVL by name, or the path of a Jinja file; unset: the language model's own.
        dtype: to save in, "bfloat16", "float16" or "float32"; unset: each part in its own.
        vision_revision, language_revision: branch, tag or commit on the Hub.
        max_shard_gigabytes: size of an output shard.
        seed: of random values.
        verify: load the result and run it on an image; takes the model's memory in float32.
        overwrite: as in [`ConversionOptions`].

    Raises:
        ValueError: an option has a value that it cannot have, naming both and what would be right.
    """

    projector: str | dict = "pvtc"
    lvtc: bool | dict = False
    downsample_ratio: float = 0.5
    vision_feature_layer: int = -1
    slicing: str = "edge"
    max_patches: int = 6
    template: str | None = None
    dtype: "str | torch.dtype | None" = None
    vision_revision: str | None = None
    language_revision: str | None = None
    max_shard_gigabytes: float = 5
    seed: int = 0
    verify: bool = False
    overwrite: bool = False
    rules: ClassVar[dict[str, FieldRule]] = INIT_RULES
