# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Separate KV cache groups for the two stages, so that stage one has blocks for the short sequence only.

Cached prefixes end before a request's first image. Up to there, the two sequences are the same; after it, a block of stage one
has later tokens than the block of stage two with the same number.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import register_kv_cache_spec
from vllm.v1.request import Request


class ShortLengths:
    """The length of the short sequence of each request."""

    def __init__(self) -> None:
        self._counts: dict[str, np.ndarray] = {}

    def add(self, request_id: str, in_stage_one: np.ndarray) -> None:
        """Args: in_stage_one: (prompt,) bool, the rows of the prompt that belong to stage one."""
        self._counts[request_id] = np.pad(in_stage_one.cumsum(), (1, 0))

    def remove(self, request_id: str) -> None:
        self._counts.pop(request_id, None)

    def of(self, request_id: str, tokens: int) -> int:
        """How many of the first `tokens` rows of the long sequence belong to stage one. All, if the request was not added."""
        counts = self._counts.get(request_id)
        if counts is None:
            return tokens
        prompt = len(counts) - 1
        return int(counts[min(tokens, prompt)]) + max(0, tokens - prompt)


class StageTwoManager(FullAttentionManager):
    def cache_blocks(self, request: Request, num_tokens: int, *args, **kwargs) -> None:
        super().cache_blocks(request, min(num_tokens, reusable_length(request)), *args, **kwargs)


class StageOneManager(StageTwoManager):
    """Allocates blocks by `short_lengths`, which the scheduler sets. Before that, blocks are for the long sequence."""

    short_lengths = ShortLengths()

    def get_num_blocks_to_allocate(self, request_id: str, num_tokens: int, *args, **kwargs) -> int:
        num_tokens = self.short_lengths.of(request_id, num_tokens)
        return super().get_num_blocks_to_allocate(request_id, num_tokens, *args, **kwargs)

    def allocate_new_blocks(self, request_id: str, num_tokens: int, *args, **kwargs) -> list:
        num_tokens = self.short_lengths.of(request_id, num_tokens)
        return super().allocate_new_blocks(request_id, num_tokens, *args, **kwargs)


def reusable_length(request: Request) -> int:
    """The number of tokens whose blocks other requests can share: those before the first image."""
    if not request.mm_features:
        return request.num_tokens
    return request.mm_features[0].mm_position.offset


class _OwnGroup(FullAttentionSpec):
    """A spec that merges only with specs of its own class, so that vLLM makes a separate group."""

    @classmethod
    def merge(cls, specs: list) -> Any:
        if not all(type(spec) is cls for spec in specs):
            raise AssertionError("Layers of the two stages have separate blocks.")  # vLLM expects this error type
        return super().merge(specs)


@register_kv_cache_spec(manager_class=StageTwoManager)
@dataclass(frozen=True, kw_only=True)
class StageTwoSpec(_OwnGroup):
    pass


@register_kv_cache_spec(manager_class=StageOneManager)
@dataclass(frozen=True, kw_only=True)
class StageOneSpec(_OwnGroup):
    pass


def use_spec(attention: Any, spec_class: type[FullAttentionSpec]) -> None:
    """Make a vLLM attention layer request blocks of the group of `spec_class`."""
    original = attention.get_kv_cache_spec

    def get_kv_cache_spec(vllm_config):
        spec = original(vllm_config)
        if type(spec) is not FullAttentionSpec:
            raise ValueError(f"LVTC in vLLM supports full attention only, got {type(spec).__name__} for a layer.")
        return spec_class(**{field.name: getattr(spec, field.name) for field in fields(spec)})

    attention.get_kv_cache_spec = get_kv_cache_spec
