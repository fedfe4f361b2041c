# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Limits on the cost of one request, which a server checks before it works."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..processing.image_settings import ImageSettings
from ..processing.rules import check_settings, setting, whole

if TYPE_CHECKING:
    from ..modeling import InternVLXConfig

DEFAULT_NEW_TOKENS = 1024  # of a request that does not say how many


def _limit(default: int | None, of: str, **more: Any) -> Any:
    return setting(default, whole(1), of, **more)


@dataclass(frozen=True)
class RequestBudget:
    """Limits on one request of a stranger. The metadata of each field names what it limits.

    Args:
        max_body_bytes: of the request's body, counted as it arrives.
        max_images: images of a request.
        max_pixels: pixels of an image.
        max_total_pixels: pixels of all images of a request.
        max_tiles: tiles of an image, without the thumbnail, that a request's own settings ask for.
        max_visual_tokens: visual tokens of all images of a request, before LVTC's expansion.
        max_prompt_tokens: tokens of the prompt, before LVTC's expansion (default: the model's positions).
        max_new_tokens: tokens of an answer.
        max_beams: beams of beam search, each of which costs as much as a request of its own.
        max_stop_strings: strings that end an answer.
        max_stop_characters: characters of a stop string.

    Raises:
        ValueError: if a limit is not a positive integer.
    """

    max_body_bytes: int = _limit(32_000_000, "bytes in its body")
    max_images: int = _limit(32, "images")
    max_pixels: int = _limit(50_000_000, "pixels in an image")
    max_total_pixels: int = _limit(100_000_000, "pixels in all images")
    max_tiles: int = _limit(40, "tiles in an image by its own settings")
    max_visual_tokens: int = _limit(16_384, "visual tokens")
    max_prompt_tokens: int | None = _limit(None, "tokens in its prompt", shown="the model's positions")
    max_new_tokens: int = _limit(4096, "new tokens")
    max_beams: int = _limit(16, "beams")
    max_stop_strings: int = _limit(4, "stop strings")
    max_stop_characters: int = _limit(256, "characters in a stop string")

    def __post_init__(self):
        check_settings(self)

    def check(self, **counts: int) -> None:
        """Raises `ValueError` if a request has more of something than its limit, such as `max_images=33`."""
        for each in fields(self):
            most, count = getattr(self, each.name), counts.get(each.name, 0)
            if most is not None and count > most:
                raise ValueError(
                    f"The request has {count} {each.metadata['help']}, expected at most {most} ({each.name})."
                )

    def check_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Check the number of images and their pixels, from their (width, height). Raises: ValueError: see `check`."""
        pixels = [width * height for width, height in sizes]
        self.check(max_images=len(pixels), max_pixels=max(pixels, default=0), max_total_pixels=sum(pixels))

    def check_image_settings(self, settings: Mapping[str, Any]) -> None:
        """Check a request's own settings of images, by name. Raises: ValueError: see `check`."""
        for each in fields(ImageSettings):
            if limit := each.metadata.get("limit"):
                self.check(**{limit: settings.get(each.name, 0)})

    def check_stop_strings(self, stop: Sequence[str]) -> None:
        """Raises: ValueError: see `check`."""
        self.check(max_stop_strings=len(stop), max_stop_characters=max(map(len, stop), default=0))

    def new_tokens(
        self,
        config: "InternVLXConfig",
        prompt_tokens: int,
        tiles: int = 0,
        requested: int | None = None,
        tile_sizes: Sequence[int] | None = None,
    ) -> int:
        """The maximum length of an answer: as requested, or else at most 1024 that the positions leave room for.

        Args:
            config: the model's. Prompt and answer together have at most its positions.
            prompt_tokens: tokens of the prompt, before LVTC's expansion.
            tiles: tiles of all images of the prompt.
            requested: new tokens that the request asks for.
            tile_sizes: the index of each tile's size among the model's (default: the first).

        Raises:
            ValueError: if the prompt, its images or the answer are too long. The message has the number that is
                exceeded.
        """
        visual, _, positions = config.count_tokens(tiles, tile_sizes)
        self.check(
            max_visual_tokens=visual,
            max_prompt_tokens=prompt_tokens,
            max_new_tokens=requested or 0,
        )
        positions += prompt_tokens - visual
        room = config.position_limit - positions
        if room < (requested or 1):
            raise ValueError(
                f"The prompt has at least {positions} tokens{' after the expansion' * (positions != prompt_tokens)}, "
                f"and the answer up to {requested or 1}, expected together at most {config.position_limit}, the "
                "model's positions."
            )
        return requested or min(DEFAULT_NEW_TOKENS, self.max_new_tokens, room)


@dataclass(frozen=True)
class PageBudget(RequestBudget):
    """Limits on the requests of a visitor of the page: the budget of [`RequestBudget`], and those of the page.

    Args:
        max_bytes: maximum size of an upload.
        max_question: maximum number of characters of a question.

    Raises:
        ValueError: if a limit is not a positive integer.
    """

    max_bytes: int = _limit(20_000_000, "size of an upload")
    max_question: int = _limit(4000, "characters of a question")
