# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What can be chosen about a conversion."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..checkpoints.folders import is_hub_id
from ..checkpoints.names import DTYPES, NATIVE, OURS
from ..checkpoints.rules import FLAG, OBJECT, TEXT, FieldRule, choice, either, is_number, number, whole
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
# what they change is how a conversion runs, not what comes out
UNRECORDED = ("max_shard_gigabytes", "verify", "overwrite")


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
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

    def __post_init__(self):
        values = vars(self) | {"dtype": self.dtype_name}
        for name, rule in RULES.items():
            rule.check(name, values[name])

    @property
    def dtype_name(self) -> str | None:
        return None if self.dtype is None else str(self.dtype).removeprefix("torch.")

    def recorded(self) -> dict[str, Any]:
        """What a report says of them."""
        options = asdict(self) | {"dtype": self.dtype_name}
        return {name: value for name, value in options.items() if name not in UNRECORDED}
