# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Stage one's part of a step: its rows of the long sequence, and vLLM's attention metadata for them.

The long sequence has N₂² rows per tile. Stage one has all rows of text and the first N₁² rows of each tile; these form the short
sequence. vLLM carries three numbers for each row of the long sequence, as M-RoPE's positions: the row's position in the short
sequence (−1 if it is not in it), the same with −1 for all rows of tiles, and the number of rows of stage one up to the row, less
one. vLLM continues to count them while it decodes.
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

from ..modeling.lvtc_rows import RowMap, map_rows, read_columns

# Backends that take lengths from the device: those on the host are the long sequence's, an upper bound, in steps without images.
BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")


def find_rows(length: int, images: Sequence[Any], before: int, after: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a prompt that belong to tiles, and those that belong to stage one, each (length,) bool.

    Args:
        length: length of the prompt in the long sequence.
        images: the prompt's multimodal features from vLLM.
        before: N₁², tokens per tile before the expansion.
        after: N₂², tokens per tile after the expansion.
    """
    is_tile = torch.zeros(length, dtype=torch.bool)
    for feature in images:
        place = feature.mm_position
        is_tile[place.offset : place.offset + place.length] = True
    in_stage_one = ~is_tile | ((is_tile.cumsum(0) - 1) % after < before)
    return is_tile, in_stage_one


def position_channels(is_tile: torch.Tensor, in_stage_one: torch.Tensor) -> torch.Tensor:
    """The three numbers of each row of a prompt, (3, length)."""
    short = in_stage_one.cumsum(0) - 1
    return torch.stack([short.where(in_stage_one, -1), short.where(~is_tile, -1), short])


def position_delta(in_stage_one: torch.Tensor) -> int:
    """The difference between a generated token's positions in the short and in the long sequence, which vLLM adds."""
    return int(in_stage_one.sum()) - len(in_stage_one)


@dataclass
class Rows:
    """The rows of a step in stage one.

    Args:
        index: (m,) their indices among the step's n rows; None for all rows.
        positions: (m,) positions in the short sequence.
        row_map: from the m rows to the n rows, each as a batch of one; None without images.
    """

    index: torch.Tensor | None
    positions: torch.Tensor
    row_map: RowMap | None = None

    def take(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Select stage one's rows: (n, D) -> (m, D)."""
        return hidden_states if self.index is None else hidden_states[self.index]


def read_rows(channels: torch.Tensor, sizes: Sequence[torch.Tensor] = ()) -> Rows:
    """Find stage one's rows of a step from (3, n) `channels`. Without images, nothing is copied from the device.

    Args:
        sizes: (tiles,) each, on the host, tokens of the step's tiles before and after the expansion; none without images.
    """
    short = channels[0]
    if not sizes:
        return Rows(None, short)
    index = (short >= 0).nonzero().squeeze(1)
    is_tile = (channels[1] < 0)[index][None]
    columns = read_columns(is_tile, torch.ones_like(is_tile), *(size.to(index.device) for size in sizes))
    before, after = (int(size.sum()) for size in sizes)
    return Rows(index, short[index], map_rows(columns, len(short), (before, after)))


@dataclass
class StageOneInputs:
    """What vLLM prepared for a group of stage one's layers. The metadata are built when the rows are known.

    Args:
        common: of the long sequence, with the block table of the group.
        build: makes the backend's metadata of others.
        block_size: tokens in a block of that table.
        prepared: the backend's metadata for a step without images, in buffers that outlive the step; None where the model's
            forward builds them.
    """

    common: CommonAttentionMetadata
    build: Callable[..., Any]
    block_size: int
    prepared: Any = None

    def short(self, positions: torch.Tensor) -> CommonAttentionMetadata:
        """`common` as stage one sees it in a step without images, at these positions in the short sequence."""
        capacity = self.common.block_table_tensor.shape[1] * self.block_size
        # padding rows may have any position
        return short_metadata(self.common, Rows(None, positions.clamp(0, capacity - 1)), self.block_size)

    def prepare(self, lengths: torch.Tensor, short: CommonAttentionMetadata) -> None:
        """Write the lengths of `short` to the buffer `lengths`, its slots over vLLM's own, and build metadata of these."""
        lengths = lengths[: len(short.seq_lens)].copy_(short.seq_lens)
        self.common.slot_mapping[: len(short.slot_mapping)].copy_(short.slot_mapping)
        self.prepared = self.build(_replaced(self.common, seq_lens=lengths), fast_build=False)


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

        def build_now(self, common: CommonAttentionMetadata, fast_build: bool = True) -> Any:
            # In the forward, `fast_build` leaves out what FlashAttention 3 schedules ahead: a CUDA graph could not repeat it.
            return super().build(0, common, fast_build=fast_build)

        @classmethod
        def get_cudagraph_support(cls, vllm_config, kv_cache_spec):
            # A captured step must build stage one's metadata from tensors alone. This was checked for FLASH_ATTN only.
            if backend.get_name() != "FLASH_ATTN":
                return AttentionCGSupport.NEVER
            support = super().get_cudagraph_support(vllm_config, kv_cache_spec)
            return min(support, AttentionCGSupport.UNIFORM_BATCH, key=lambda kind: kind.value)

    return subclass_attention_backend("StageOne", backend, StageOneBuilder)


def short_metadata(common: CommonAttentionMetadata, rows: Rows, block_size: int) -> CommonAttentionMetadata:
    """The step's metadata for stage one."""
    starts = common.query_start_loc
    if rows.index is None:
        positions = rows.positions[: common.num_actual_tokens]
        lengths = _short_lengths(starts, positions, common.seq_lens.dtype)
        slots = slot_mapping(common, starts, positions, block_size)
        slots = slots.where(common.slot_mapping[: len(slots)] >= 0, common.slot_mapping[: len(slots)])
        # The other fields are counts of rows, or upper bounds that also hold for fewer tokens.
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
    """(requests,) tokens in the short sequence; 0 for the padding of a captured batch."""
    last = positions[(starts[1:] - 1).clamp(min=0).long()]
    return torch.where(starts.diff() > 0, last + 1, 0).to(dtype)


def slot_mapping(
    common: CommonAttentionMetadata, starts: torch.Tensor, positions: torch.Tensor, block_size: int
) -> torch.Tensor:
    """(m,) slots of the keys and values of rows at `positions` in the short sequence. `starts` are the requests' bounds."""
    row = torch.arange(len(positions), device=positions.device)
    request = torch.searchsorted(starts[1:].long(), row, right=True).clamp(max=len(starts) - 2)
    blocks = common.block_table_tensor[request, positions // block_size].long()
    return (blocks * block_size + positions % block_size).to(common.slot_mapping.dtype)


def _replaced(common: CommonAttentionMetadata, **values) -> CommonAttentionMetadata:
    return replace(common, **values, _num_computed_tokens_cache=None, _token_to_req_indices_cache=None)


def step_metadata(layers: Sequence[str]) -> CommonAttentionMetadata | None:
    """The step's metadata for the long sequence; None while vLLM profiles."""
    metadata = get_forward_context().attn_metadata
    return None if metadata is None else metadata[layers[0]].common


@contextmanager
def stage_one_attention(layers: Sequence[str], rows: Rows) -> Iterator[None]:
    """Within the context, give stage one's attention layers their own metadata and slots."""
    context: Any = get_forward_context()
    metadata, slots = context.attn_metadata, context.slot_mapping
    if metadata is None:
        yield
        return
    groups: dict[int, tuple[Any, torch.Tensor]] = {}  # by group of layers with one block table
    for inputs in (metadata[layer] for layer in layers):
        if id(inputs) in groups:
            continue
        if rows.index is None and inputs.prepared is not None:
            groups[id(inputs)] = inputs.prepared, inputs.common.slot_mapping
        else:
            common = short_metadata(inputs.common, rows, inputs.block_size)
            groups[id(inputs)] = inputs.build(common), common.slot_mapping
    own = {layer: groups[id(metadata[layer])] for layer in layers}
    context.attn_metadata = metadata | {layer: built for layer, (built, _) in own.items()}
    context.slot_mapping = slots | {layer: short_slots for layer, (_, short_slots) in own.items()}
    try:
        yield
    finally:
        context.attn_metadata, context.slot_mapping = metadata, slots
