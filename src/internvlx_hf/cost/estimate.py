# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What pictures cost under a setting: tiles, tokens, FLOPs by module, keys and values, weights, peak memory."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ..processing.rvtc import TilePlan, TilingRule
from .flops import STAGE_ONE, STAGE_TWO, decode_flops, prefill_flops
from .memory import activation_bytes, cache_bytes
from .settings import Setting

if TYPE_CHECKING:
    import torch

ELEMENT_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
TEXT_TOKENS, ANSWER_TOKENS = 64, 128  # of a prompt beside its pictures, and of an answer, unless told otherwise


@lru_cache(maxsize=2**18)
def _plan(tiling: TilingRule, width: int, height: int) -> TilePlan:
    """Settings that cut alike share the work."""
    return tiling.plan(width, height)


@dataclass(frozen=True)
class Cost:
    """Of one prompt and its answer. All but `peak_bytes` are exact.

    Args:
        tiles: of all pictures of the prompt, thumbnails included.
        stage_one_tokens, stage_two_tokens: visual tokens before and after LVTC's expansion; the same without LVTC.
        prompt_tokens, expanded_prompt_tokens: the same with the text around them.
        positions: that the longer of the two and the answer take; the answer's last token is not read again.
        flops: of the prefill by module, as `FlopCounterMode` counts; stage two is empty without LVTC.
        answer_flops: of all tokens of the answer but the first, which the prefill gives.
        cache_bytes: keys and values of all layers at the end of the answer.
        weight_bytes: of all parameters.
        peak_bytes: weights and the most that the prefill holds beside them: an estimate, see `memory`.
    """

    tiles: int
    stage_one_tokens: int
    stage_two_tokens: int
    prompt_tokens: int
    expanded_prompt_tokens: int
    positions: int
    flops: dict[str, int]
    answer_flops: int
    cache_bytes: int
    weight_bytes: int
    peak_bytes: int

    @property
    def prefill_flops(self) -> int:
        return sum(self.flops.values())

    @property
    def vision_flops(self) -> int:
        """Of the vision tower and all projectors."""
        return self.prefill_flops - self.flops[STAGE_ONE] - self.flops[STAGE_TWO] - self.flops["lm_head"]

    def to_dict(self) -> dict:
        return asdict(self) | {"prefill_flops": self.prefill_flops}


class CostModel:
    """Answers what a picture costs under a setting, at once: every number of tiles is worked out once.

    Args:
        setting: a model and how it cuts pictures.
        text_tokens: tokens of the prompt that are no image placeholders: the question, the chat template, image marks.
        answer_tokens: tokens of the answer.
        dtype: of weights, activations and cache, or its name; unset: the configuration's, or bfloat16.

    Raises:
        ValueError: a number of tokens is out of range, or the dtype is none of a model's.
    """

    def __init__(
        self,
        setting: Setting,
        text_tokens: int = TEXT_TOKENS,
        answer_tokens: int = ANSWER_TOKENS,
        dtype: "torch.dtype | str | None" = None,
    ):
        if text_tokens < 1:
            raise ValueError(f"text_tokens={text_tokens}, expected at least 1 token beside the pictures.")
        if answer_tokens < 1:
            raise ValueError(f"answer_tokens={answer_tokens}, expected at least 1.")
        self.setting, self.sizes = setting, setting.sizes
        self.text_tokens, self.answer_tokens = text_tokens, answer_tokens
        self.dtype = str(dtype or self.sizes.dtype or "bfloat16").removeprefix("torch.")
        if self.dtype not in ELEMENT_SIZES:
            raise ValueError(f"dtype={self.dtype!r}, expected one of {', '.join(map(repr, ELEMENT_SIZES))}.")
        self.parameters = self.sizes.parameters
        self._by_tiles: dict[int, Cost] = {}
        self._by_size: dict[tuple[int, int], Cost] = {}

    def of_tiles(self, tiles: int) -> Cost:
        """Of a prompt whose pictures have so many tiles together.

        Raises:
            ValueError: the number is negative.
        """
        if tiles < 0:
            raise ValueError(f"tiles={tiles}, expected 0 or more.")
        if tiles not in self._by_tiles:
            self._by_tiles[tiles] = self._work_out(tiles)
        return self._by_tiles[tiles]

    def of_size(self, width: int, height: int) -> Cost:
        """Of a prompt with one upright picture of `width` x `height` pixels.

        Raises:
            ValueError: the picture has no pixels.
        """
        size = (width, height)
        if size not in self._by_size:
            self._by_size[size] = self.of_tiles(_plan(self.setting.tiling, width, height).num_tiles)
        return self._by_size[size]

    def of_sizes(self, sizes: Iterable[tuple[int, int]]) -> list[Cost]:
        """Of each picture, given as (width, height), in a prompt of its own."""
        return [self.of_size(*size) for size in sizes]

    def together(self, sizes: Iterable[tuple[int, int]]) -> Cost:
        """Of all pictures, given as (width, height), in one prompt."""
        return self.of_tiles(sum(cost.tiles for cost in self.of_sizes(sizes)))

    def _work_out(self, tiles: int) -> Cost:
        sizes, element_size = self.sizes, ELEMENT_SIZES[self.dtype]
        one, two = tiles * sizes.image_seq_length, tiles * sizes.expanded_image_seq_length
        lengths = (self.text_tokens + one, self.text_tokens + two)
        steps = self.answer_tokens - 1  # the answer's last token is not read again
        flops = {name: tiles * count for name, count in sizes.tile_flops.items()} | prefill_flops(sizes, lengths)
        weights = self.parameters * element_size
        return Cost(
            tiles=tiles,
            stage_one_tokens=one,
            stage_two_tokens=two,
            prompt_tokens=lengths[0],
            expanded_prompt_tokens=lengths[1],
            positions=max(lengths) + steps,
            flops=flops,
            answer_flops=decode_flops(sizes, lengths, steps),
            cache_bytes=cache_bytes(sizes, (lengths[0] + steps, lengths[1] + steps), element_size),
            weight_bytes=weights,
            peak_bytes=weights + activation_bytes(sizes, tiles, lengths, element_size),
        )
