# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""How an image is read. A setting is one field here: processors, commands, servers, the page and the documentation
have it from here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from .rules import FLAG, FieldRule, check_settings, either, list_of, setting, whole
from .rvtc import SLICING_HELP, SLICING_RULE, TILES_RULE, TilingRule
from .size_choices import CHOICE_RULE

# a setting's owner, which saves it: the image processor, or the processor, which knows how many tokens a tile has
IMAGE_PROCESSOR, PROCESSOR = "image_processor", "processor"


def _setting(
    rule: FieldRule, help: str, label: str, words: Callable, owner: str = IMAGE_PROCESSOR, **more: Any
) -> Any:
    """A setting that is not given unless a caller does.

    Args:
        label: its name on a page.
        words: how a sentence says its value.
        more: `own`, the value of a processor that nobody told otherwise (default: None); `tiling`, the argument of
            `TilingRule` that it is; `limit`, the limit of a visitor of the page that bounds it.
    """
    return setting(
        None, rule, help, label=label, words=words, owner=owner, **{"own": None, "shown": "the model's"} | more
    )


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What a request, a command or a training changes of how a processor reads images. None leaves a setting as it is.

    The metadata of each field has its rule, its help, and what else is said of it.

    Raises:
        ValueError: if a value breaks its rule; the message has the value and what would be right.
    """

    slicing: str | None = _setting(SLICING_RULE, SLICING_HELP, "Slicing", str, own="edge", tiling="slicing")
    max_patches: int | None = _setting(
        TILES_RULE,
        "maximum number of tiles per image, without the thumbnail",
        "Maximum tiles",
        lambda number: f"at most {number} tile{'s' * (number > 1)}",
        own=6,
        tiling="max_tiles",
        limit="max_tiles",
    )
    min_patches: int | None = _setting(
        TILES_RULE,
        "minimum number of tiles per image, without the thumbnail",
        "Minimum tiles",
        "at least {}".format,
        own=1,
        tiling="min_tiles",
        limit="max_tiles",
    )
    use_thumbnail: bool | None = _setting(
        FLAG,
        "append a thumbnail of the whole image if there is more than one tile",
        "Thumbnail of the whole image",
        lambda is_used: f"{'a' if is_used else 'no'} thumbnail",
        own=True,
        tiling="use_thumbnail",
    )
    max_image_tokens: int | None = _setting(
        whole(1),
        "visual tokens that all images and frames of a prompt share, before LVTC's expansion; the images that lose "
        "least give up tiles",
        "Visual tokens",
        "at most {:,} visual tokens".format,
        PROCESSOR,
    )
    tokens_per_tile: str | int | Sequence[str | int] | None = _setting(
        either(CHOICE_RULE, list_of(CHOICE_RULE)),
        "visual tokens of a tile: a size that the checkpoint offers (64, 64:256 or 256:64, before and after a layer), "
        "or two, of tiles and of the thumbnail (256+64)",
        "Tokens per tile",
        "{} tokens per tile".format,
        PROCESSOR,
    )

    def __post_init__(self):
        check_settings(self)

    @classmethod
    def names(cls, owner: str | None = None) -> tuple[str, ...]:
        """The settings' names, or those of one owner."""
        return tuple(each.name for each in fields(ImageSettings) if owner in (None, each.metadata["owner"]))

    @classmethod
    def own(cls) -> dict[str, Any]:
        """What a processor has that nobody told otherwise, by name."""
        return {each.name: each.metadata["own"] for each in fields(ImageSettings)}

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are given, by name."""
        return {name: value for name in self.names() if (value := getattr(self, name)) is not None}

    def of(self, owner: str) -> dict[str, Any]:
        """The settings that are given and one owner's, by name."""
        return {name: value for name, value in self.given.items() if name in self.names(owner)}

    def __str__(self) -> str:
        """The settings that are given: slicing and maximum, and what differs from a processor's own."""
        parts: list[str] = []
        own = self.own()
        for each in fields(ImageSettings):
            value = getattr(self, each.name)
            if value is not None and (len(parts) < 2 or value != own[each.name]):
                parts.append(each.metadata["words"](value))
        return ", ".join(parts)

    def applied(self, rule: TilingRule) -> tuple[TilingRule, "ImageSettings"]:
        """A rule with the settings that are given, and those of them that are none of a rule's.

        Raises:
            ValueError: if the rule's settings contradict them.
        """
        rest = {name: value for name, value in self.given.items() if name not in _TILING}
        return replace(rule, **_arguments(self.given)), ImageSettings(**rest)


# settings that determine a grid of tiles -> arguments of `TilingRule`
_TILING = {each.name: each.metadata["tiling"] for each in fields(ImageSettings) if "tiling" in each.metadata}


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {argument: settings[name] for name, argument in _TILING.items() if name in settings}


def rule_of(height: int, width: int, settings: Mapping[str, Any]) -> TilingRule:
    """The rule of tiles of `height` x `width` pixels from settings by name; other names are ignored."""
    return TilingRule(height, width, **_arguments(settings))


def settings_of(rule: TilingRule) -> dict[str, Any]:
    """The settings of a rule, by name."""
    return {name: getattr(rule, argument) for name, argument in _TILING.items()}


def split_by_owner(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a call that are the image processor's, and those that are the processor's and given."""
    names = ImageSettings.names(PROCESSOR)
    images = {name: value for name, value in settings.items() if name not in names}
    return images, {name: settings[name] for name in names if settings.get(name) is not None}
