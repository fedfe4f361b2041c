# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Stage one's share of a step: which rows of the long sequence it has, and vLLM's attention metadata for them.

The long sequence has N₂² rows a tile. Stage one has all rows of text and the first N₁² of each tile; its own sequence, the short
one, is these rows. vLLM carries three numbers for each row of the long sequence, as M-RoPE's positions: the row's position in the
short sequence (−1 outside of it), −1 for a tile's row, and the first again. It goes on counting them while it decodes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import AttentionBackend, AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.utils import subclass_attention_backend

# Backends that take lengths from the device: those on the host are the long sequence's, an upper bound, in steps without images.
BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")


def find_rows(length: int, images: Sequence[Any], before: int, after: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows of a prompt are tiles', and which are stage one's, each (length,) bool.

    Args:
        images: the prompt's features, as vLLM places them.
        before, after: N₁² and N₂².
    """
    is_tile = torch.zeros(length, dtype=torch.bool)
    for feature in images:
        place = feature.mm_position
        is_tile[place.offset : place.offset + place.length] = True
    in_stage_one = ~is_tile | ((is_tile.cumsum(0) - 1) % after < before)
    return is_tile, in_stage_one


def position_channels(is_tile: torch.Tensor, in_stage_one: torch.Tensor) -> torch.Tensor:
    """(3, length), what vLLM carries for a prompt's rows."""
    short = in_stage_one.cumsum(0) - 1
    return torch.stack([short.where(in_stage_one, -1), short.where(~is_tile, -1), short])


def position_delta(in_stage_one: torch.Tensor) -> int:
    """What vLLM adds to a generated token's position in the long sequence to have its position in the short one."""
    return int(in_stage_one.sum()) - len(in_stage_one)


@dataclass
class Rows:
    """A step's rows in stage one.

    Args:
        index: (m,) which of the step's n rows they are; None for all.
        positions: (m,) in the short sequence.
        tiles, tiles_after: which of the m and of the n rows are tiles'; None without images.
    """

    index: torch.Tensor | None
    positions: torch.Tensor
    tiles: torch.Tensor | None = None
    tiles_after: torch.Tensor | None = None

    def take(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(n, D) -> (m, D)"""
        return hidden_states if self.index is None else hidden_states[self.index]


def read_rows(channels: torch.Tensor, has_images: bool) -> Rows:
    """Find a step's rows in (3, n) `channels`. Without images nothing is read from the device."""
    short = channels[0]
    if not has_images:
        return Rows(None, short)
    index = (short >= 0).nonzero().squeeze(1)
    is_tile = channels[1] < 0
    return Rows(index, short[index], is_tile[index].nonzero().squeeze(1), is_tile.nonzero().squeeze(1))


@dataclass
class StageOneInputs:
    """What vLLM prepared for a group of stage one's layers. The metadata are built when the model knows the rows.

    Args:
        common: of the long sequence, with the block table of the group.
        build: makes the backend's metadata of others.
        block_size: tokens in a block of that table.
    """

    common: CommonAttentionMetadata
    build: Callable[[CommonAttentionMetadata], Any]
    block_size: int


@lru_cache
def stage_one_backend(backend: type[AttentionBackend]) -> type[AttentionBackend]:
    """`backend` for layers of stage one.

    Raises:
        ValueError: it is none of `BACKENDS`.
    """
    if backend.get_name() not in BACKENDS:
        raise ValueError(
            f"LVTC in vLLM supports the attention backends {', '.join(BACKENDS)}, got {backend.get_name()}. Choose one with "
            "`--attention-backend`."
        )
    builder: Any = backend.get_builder_cls()

    class StageOneBuilder(builder):
        supports_update_block_table = False

        def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
            return StageOneInputs(common_attn_metadata, self.build_now, self.kv_cache_spec.block_size)

        def build_for_cudagraph_capture(self, common_attn_metadata):
            return self.build(0, common_attn_metadata)

        def build_now(self, common: CommonAttentionMetadata) -> Any:
            # `fast_build` leaves out what FlashAttention 3 would schedule ahead, which a CUDA graph could not repeat.
            return super().build(0, common, fast_build=True)

        @classmethod
        def get_cudagraph_support(cls, vllm_config, kv_cache_spec):
            # A captured step builds stage one's metadata from tensors: of this backend alone that was read to be so.
            if backend.get_name() != "FLASH_ATTN":
                return AttentionCGSupport.NEVER
            support = super().get_cudagraph_support(vllm_config, kv_cache_spec)
            return min(support, AttentionCGSupport.UNIFORM_BATCH, key=lambda kind: kind.value)

    return subclass_attention_backend("StageOne", backend, StageOneBuilder)


def short_metadata(common: CommonAttentionMetadata, rows: Rows, block_size: int) -> CommonAttentionMetadata:
    """The step's metadata as stage one sees it."""
    starts = common.query_start_loc
    if rows.index is None:
        positions = rows.positions[: common.num_actual_tokens]
        lengths = _short_lengths(starts, positions, common.seq_lens.dtype)
        slots = slot_mapping(common, starts, positions, block_size)
        slots = slots.where(common.slot_mapping[: len(slots)] >= 0, common.slot_mapping[: len(slots)])
        # The rest are counts of rows, or bounds that hold for fewer tokens, too.
        return _replaced(common, positions=positions, seq_lens=lengths, slot_mapping=slots)
    counted = torch.searchsorted(rows.index, starts.long()).to(starts.dtype)
    lengths = _short_lengths(counted, rows.positions, common.seq_lens.dtype)
    counted_on_host, lengths_on_host = counted.cpu(), lengths.cpu()
    return _replaced(
        common,
        query_start_loc=counted,
        query_start_loc_cpu=counted_on_host,
        positions=rows.positions,
        seq_lens=lengths,
        seq_lens_cpu_upper_bound=lengths_on_host,
        slot_mapping=slot_mapping(common, counted, rows.positions, block_size),
        num_actual_tokens=len(rows.positions),
        max_query_len=int(counted_on_host.diff().max()),
        max_seq_len=int(lengths_on_host.max()),
    )


def _short_lengths(starts: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(requests,) tokens in the short sequence; 0 for what only fills a captured batch up."""
    last = positions[(starts[1:] - 1).clamp(min=0).long()]
    return torch.where(starts.diff() > 0, last + 1, 0).to(dtype)


def slot_mapping(
    common: CommonAttentionMetadata, starts: torch.Tensor, positions: torch.Tensor, block_size: int
) -> torch.Tensor:
    """(m,) where keys and values go, for rows at these positions in the short sequence; `starts` bound the requests."""
    row = torch.arange(len(positions), device=positions.device)
    request = torch.searchsorted(starts[1:].long(), row, right=True).clamp(max=len(starts) - 2)
    blocks = common.block_table_tensor[request, positions // block_size].long()
    return (blocks * block_size + positions % block_size).to(common.slot_mapping.dtype)


def _replaced(common: CommonAttentionMetadata, **values) -> CommonAttentionMetadata:
    return replace(common, **values, _num_computed_tokens_cache=None, _token_to_req_indices_cache=None)


def step_metadata(layers: Sequence[str]) -> CommonAttentionMetadata | None:
    """The step's metadata in the long sequence; None while vLLM profiles."""
    metadata = get_forward_context().attn_metadata
    return None if metadata is None else metadata[layers[0]].common


@contextmanager
def stage_one_attention(layers: Sequence[str], rows: Rows) -> Iterator[None]:
    """Give stage one's attention layers their own metadata and slots."""
    context: Any = get_forward_context()
    metadata, slots = context.attn_metadata, context.slot_mapping
    if metadata is None:
        yield
        return
    groups: dict[int, tuple[Any, torch.Tensor]] = {}  # of layers with a block table of their own
    for inputs in (metadata[layer] for layer in layers):
        if id(inputs) not in groups:
            common = short_metadata(inputs.common, rows, inputs.block_size)
            groups[id(inputs)] = inputs.build(common), common.slot_mapping
    own = {layer: groups[id(metadata[layer])] for layer in layers}
    context.attn_metadata = metadata | {layer: built for layer, (built, _) in own.items()}
    context.slot_mapping = slots | {layer: short_slots for layer, (_, short_slots) in own.items()}
    try:
        yield
    finally:
        context.attn_metadata, context.slot_mapping = metadata, slots
