# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Separate KV cache groups for the stages, so that each has blocks for its own rows only.

Cached prefixes end before a request's first image whose tokens change. Up to there, all stages have the same rows;
after it, a block of one stage has other tokens than the block of another with the same number.
"""

from dataclasses import dataclass, fields
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import register_kv_cache_spec
from vllm.v1.request import Request

from .tile_rows import PromptRows, Stage

# of each request with images, by its id
Prompts = dict[str, PromptRows]


class StageManager(FullAttentionManager):
    """Allocates blocks by `prompts`, which the scheduler sets. Without a request's prompt, blocks are for the long
    sequence.
    """

    prompts: Prompts = {}

    def get_num_blocks_to_allocate(self, request_id: str, num_tokens: int, *args, **kwargs) -> int:
        return super().get_num_blocks_to_allocate(request_id, self._count(request_id, num_tokens), *args, **kwargs)

    def allocate_new_blocks(self, request_id: str, num_tokens: int, *args, **kwargs) -> list:
        return super().allocate_new_blocks(request_id, self._count(request_id, num_tokens), *args, **kwargs)

    def cache_blocks(self, request: Request, num_tokens: int, *args, **kwargs) -> None:
        reusable = reusable_length(self.prompts.get(request.request_id), num_tokens)
        super().cache_blocks(request, reusable, *args, **kwargs)

    def _count(self, request_id: str, tokens: int) -> int:
        prompt, spec = self.prompts.get(request_id), self.kv_cache_spec
        return tokens if prompt is None else prompt.count(tokens, spec.is_expanded, spec.is_merged)


def reusable_length(prompt: PromptRows | None, tokens: int) -> int:
    """Of the first `tokens` rows of a prompt, those whose blocks other requests can share: before an image that
    changes.
    """
    return min(tokens, prompt.images[0].start) if prompt and prompt.images else tokens


class _StageSpec(FullAttentionSpec):
    """A spec that merges only with specs of its own class, so that vLLM makes a separate group."""

    is_expanded, is_merged = True, False

    @classmethod
    def merge(cls, specs: list) -> Any:
        if not all(type(spec) is cls for spec in specs):
            raise AssertionError("Layers of different stages have separate blocks.")  # vLLM expects this error type
        return super().merge(specs)


@register_kv_cache_spec(manager_class=StageManager)
@dataclass(frozen=True, kw_only=True)
class LongSpec(_StageSpec):
    pass


@register_kv_cache_spec(manager_class=StageManager)
@dataclass(frozen=True, kw_only=True)
class UnexpandedSpec(_StageSpec):
    is_expanded = False


@register_kv_cache_spec(manager_class=StageManager)
@dataclass(frozen=True, kw_only=True)
class MergedSpec(_StageSpec):
    is_merged = True


@register_kv_cache_spec(manager_class=StageManager)
@dataclass(frozen=True, kw_only=True)
class UnexpandedMergedSpec(_StageSpec):
    is_expanded, is_merged = False, True


_SPECS = (LongSpec, UnexpandedSpec, MergedSpec, UnexpandedMergedSpec)


def spec_of(stage: Stage) -> type[_StageSpec]:
    """The specification of a stage's layers."""
    return {(spec.is_expanded, spec.is_merged): spec for spec in _SPECS}[stage.is_expanded, stage.is_merged]


def use_spec(attention: Any, spec_class: type[FullAttentionSpec]) -> None:
    """Make a vLLM attention layer request blocks of the group of `spec_class`."""
    original = attention.get_kv_cache_spec

    def get_kv_cache_spec(vllm_config):
        spec = original(vllm_config)
        if type(spec) is not FullAttentionSpec:
            raise ValueError(
                f"Sizes that change between layers need full attention in vLLM, got {type(spec).__name__} for a layer."
            )
        return spec_class(**{field.name: getattr(spec, field.name) for field in fields(spec)})

    attention.get_kv_cache_spec = get_kv_cache_spec
