# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What images cost with a model and a tiling: tiles, tokens, FLOPs by module, keys and values, weights, peak memory."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ..processing.rvtc import TilePlan, TilingRule
from ..processing.token_budget import fit_rules
from .flops import STAGE_ONE, STAGE_TWO, decode_flops, prefill_flops
from .memory import activation_bytes, cache_bytes
from .setups import ModelSetup

if TYPE_CHECKING:
    import torch

ELEMENT_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
TEXT_TOKENS, ANSWER_TOKENS = 64, 128  # defaults: text tokens of a prompt, tokens of an answer


@lru_cache(maxsize=2**18)
def _plan(tiling: TilingRule, width: int, height: int) -> TilePlan:
    """`tiling.plan`, computed once for all models with the same tiling."""
    return tiling.plan(width, height)


@dataclass(frozen=True)
class Cost:
    """The cost of one prompt and its answer. All values except `peak_bytes` are exact.

    Args:
        tiles: tiles of all images in the prompt, including thumbnails.
        stage_one_tokens, stage_two_tokens: visual tokens before and after LVTC's expansion; equal without LVTC.
        prompt_tokens, expanded_prompt_tokens: the same plus the text.
        positions: positions of the prompt, in the stage where it takes more, and of the answer, without the answer's last
            token, which is not read.
        flops: FLOPs of the prefill by module, as `FlopCounterMode` counts them; none in stage two without LVTC.
        answer_flops: FLOPs of the answer's tokens except the first, which the prefill computes.
        cache_bytes: keys and values of all layers at the end of the answer.
        weight_bytes: all parameters.
        peak_bytes: weights plus the peak of the prefill's other memory, estimated, see `memory`.
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
        """FLOPs of the vision tower and all projectors."""
        return self.prefill_flops - self.flops[STAGE_ONE] - self.flops[STAGE_TWO] - self.flops["lm_head"]

    def to_dict(self) -> dict:
        return asdict(self) | {"prefill_flops": self.prefill_flops}


class CostModel:
    """Computes what images cost; results are cached by number of tiles.

    Args:
        setup: a model and how it tiles images.
        text_tokens: tokens of the prompt besides image placeholders: the question, chat template and image marks (default:
            64).
        answer_tokens: tokens of the answer (default: 128).
        dtype: dtype of weights, activations and cache, or its name (default: the configuration's, else bfloat16).

    Raises:
        ValueError: if a number of tokens is out of range, or the dtype is not a model's.
    """

    def __init__(
        self,
        setup: ModelSetup,
        text_tokens: int = TEXT_TOKENS,
        answer_tokens: int = ANSWER_TOKENS,
        dtype: "torch.dtype | str | None" = None,
    ):
        if text_tokens < 1:
            raise ValueError(f"text_tokens={text_tokens}, expected at least 1 token besides the images.")
        if answer_tokens < 1:
            raise ValueError(f"answer_tokens={answer_tokens}, expected at least 1.")
        self.setup, self.sizes = setup, setup.sizes
        self.text_tokens, self.answer_tokens = text_tokens, answer_tokens
        self.dtype = str(dtype or self.sizes.dtype or "bfloat16").removeprefix("torch.")
        if self.dtype not in ELEMENT_SIZES:
            raise ValueError(f"dtype={self.dtype!r}, expected one of {', '.join(map(repr, ELEMENT_SIZES))}.")
        self.parameters = self.sizes.parameters
        self._by_tiles: dict[int, Cost] = {}
        self._by_size: dict[tuple[int, int], Cost] = {}

    def of_tiles(self, tiles: int) -> Cost:
        """The cost of a prompt whose images have `tiles` tiles in total.

        Raises:
            ValueError: if the number is negative.
        """
        if tiles < 0:
            raise ValueError(f"tiles={tiles}, expected 0 or more.")
        if tiles not in self._by_tiles:
            self._by_tiles[tiles] = self._compute(tiles)
        return self._by_tiles[tiles]

    def plans(self, sizes: Sequence[tuple[int, int]], frames: int = 0) -> list[TilePlan]:
        """The grids of all images, given as (width, height), in one prompt with so many frames of videos.

        Raises:
            ValueError: if an image has no pixels, or if the images and frames do not fit the setup's budget.
        """
        budget = self.setup.max_image_tokens
        rules = fit_rules(self.setup.tiling, sizes, self.sizes.image_seq_length, budget, frames)
        return [_plan(rule, *size) for rule, size in zip(rules, sizes, strict=True)]

    def of_size(self, width: int, height: int) -> Cost:
        """The cost of a prompt with one upright image of `width` x `height` pixels.

        Raises:
            ValueError: as for `plans`.
        """
        size = (width, height)
        if size not in self._by_size:
            self._by_size[size] = self.together([size])
        return self._by_size[size]

    def of_sizes(self, sizes: Iterable[tuple[int, int]]) -> list[Cost]:
        """The cost of each image, given as (width, height), in its own prompt."""
        return [self.of_size(*size) for size in sizes]

    def together(self, sizes: Iterable[tuple[int, int]], frames: int = 0) -> Cost:
        """The cost of all images, given as (width, height), and so many frames of videos in one prompt.

        Raises:
            ValueError: as for `plans`.
        """
        return self.of_tiles(sum(plan.num_tiles for plan in self.plans(list(sizes), frames)) + frames)

    def _compute(self, tiles: int) -> Cost:
        sizes, element_size = self.sizes, ELEMENT_SIZES[self.dtype]
        one, two = tiles * sizes.image_seq_length, tiles * sizes.expanded_image_seq_length
        lengths = (self.text_tokens + one, self.text_tokens + two)
        steps = self.answer_tokens - 1  # the answer's last token is not read
        flops = {name: tiles * count for name, count in sizes.tile_flops.items()} | prefill_flops(sizes, lengths)
        weights = self.parameters * element_size
        return Cost(
            tiles=tiles,
            stage_one_tokens=one,
            stage_two_tokens=two,
            prompt_tokens=lengths[0],
            expanded_prompt_tokens=lengths[1],
            positions=self.text_tokens + tiles * sizes.tile_positions + steps,
            flops=flops,
            answer_flops=decode_flops(sizes, lengths, steps),
            cache_bytes=cache_bytes(sizes, (lengths[0] + steps, lengths[1] + steps), element_size),
            weight_bytes=weights,
            peak_bytes=weights + activation_bytes(sizes, tiles, lengths, element_size),
        )
