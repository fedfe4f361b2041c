# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What images cost with a model and a tiling: tiles, tokens, FLOPs by module, keys and values, weights, peak
memory.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ..processing.rvtc import TilePlan, TilingRule
from ..processing.token_budget import plan_request
from .flops import STAGES, decode_flops, prefill_flops, stages
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
        stage_one_tokens, stage_two_tokens: visual tokens in the first layers and in the last, where LVTC has expanded
            them, or sizes that shrink have merged them; else equal.
        prompt_tokens, expanded_prompt_tokens: the same plus the text.
        positions: positions of the prompt, in the stage where it takes more, and of the answer, without the answer's
            last token, which is not read.
        flops: FLOPs of the prefill by module, as `FlopCounterMode` counts them; none in later stages without LVTC
            and sizes that shrink.
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
        return self.prefill_flops - sum(self.flops[name] for name in (*STAGES, "lm_head") if name in self.flops)

    def to_dict(self) -> dict:
        return asdict(self) | {"prefill_flops": self.prefill_flops}


class CostModel:
    """Computes what images cost; results are cached by number of tiles.

    Args:
        setup: a model and how it tiles images.
        text_tokens: tokens of the prompt besides image placeholders: the question, chat template and image marks
            (default: 64).
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
        self._by_tiles: dict[tuple[tuple[str, int], ...], Cost] = {}
        self._by_size: dict[tuple[int, int], Cost] = {}

    def of_tiles(self, tiles: int) -> Cost:
        """The cost of a prompt whose images have `tiles` tiles in total, of the size that the setup chooses for tiles.

        Raises:
            ValueError: if the number is negative.
        """
        if tiles < 0:
            raise ValueError(f"tiles={tiles}, expected 0 or more.")
        return self._of_counts({self.setup.frame_size: tiles})

    def _of_counts(self, tiles: Mapping[str, int]) -> Cost:
        """The cost of a prompt with so many tiles of each size."""
        key = tuple(sorted((name, number) for name, number in tiles.items() if number))
        if key not in self._by_tiles:
            self._by_tiles[key] = self._compute(dict(key))
        return self._by_tiles[key]

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile in `input_ids`."""
        return self.sizes.tiles[self.setup.frame_size].in_stages[0]

    def plans(self, sizes: Sequence[tuple[int, int]], frames: int = 0) -> list[TilePlan]:
        """The grids of all images, given as (width, height), in one prompt with so many frames of videos.

        Raises:
            ValueError: if an image has no pixels, or if the images and frames do not fit the setup's budget.
        """
        return [plan for plan, _ in self.sized_plans(sizes, frames)]

    def sized_plans(self, sizes: Sequence[tuple[int, int]], frames: int = 0) -> list[tuple[TilePlan, list[str]]]:
        """The grids of all images, as `plans` gives them, and the size of each tile."""
        setup, offered = self.setup, list(self.sizes.tiles)
        rules, choices = plan_request(
            setup.tiling, sizes, offered, setup.settings.tokens_per_tile, setup.max_image_tokens, frames
        )
        plans = [_plan(rule, *size) for rule, size in zip(rules, sizes, strict=True)]
        return [
            (plan, [offered[index] for index in choice.of_plan(plan)])
            for plan, choice in zip(plans, choices, strict=True)
        ]

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
        counts = Counter(name for _, names in self.sized_plans(list(sizes), frames) for name in names)
        if frames:
            counts[self.setup.frame_size] += frames
        return self._of_counts(counts)

    def _compute(self, tiles_of: dict[str, int]) -> Cost:
        sizes, element_size, tiles = self.sizes, ELEMENT_SIZES[self.dtype], sum(tiles_of.values())
        tokens = [0] * len(stages(sizes))
        flops, positions = dict.fromkeys(sizes.tile_flops, 0), self.text_tokens
        for name, number in tiles_of.items():
            tile = sizes.tiles[name]
            tokens = [total + number * own for total, own in zip(tokens, tile.in_stages, strict=True)]
            flops |= {module: flops.get(module, 0) + number * count for module, count in tile.flops.items()}
            positions += number * tile.positions
        lengths = [self.text_tokens + own for own in tokens]
        steps = self.answer_tokens - 1  # the answer's last token is not read
        flops |= prefill_flops(sizes, lengths)
        weights = self.parameters * element_size
        return Cost(
            tiles=tiles,
            stage_one_tokens=tokens[0],
            stage_two_tokens=tokens[-1],
            prompt_tokens=lengths[0],
            expanded_prompt_tokens=lengths[-1],
            positions=positions + steps,
            flops=flops,
            answer_flops=decode_flops(sizes, lengths, steps),
            cache_bytes=cache_bytes(sizes, [length + steps for length in lengths], element_size),
            weight_bytes=weights,
            peak_bytes=weights + activation_bytes(sizes, tiles, lengths, element_size),
        )
