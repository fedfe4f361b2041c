# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A stage's part of a step in attention: vLLM's metadata for its rows of the long sequence, see `tile_rows.py`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import AttentionBackend, AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.utils import subclass_attention_backend

from .tile_rows import Rows, Stage

# Backends that take lengths from the device: those on the host are the long sequence's, an upper bound, in steps
# without images.
BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")


@dataclass
class StageInputs:
    """What vLLM prepared for a group of a stage's layers. The metadata are built when the rows are known.

    Args:
        stage: which lacks rows of the long sequence.
        common: of the long sequence, with the block table of the group.
        build: makes the backend's metadata of others.
        block_size: tokens in a block of that table.
        prepared: the backend's metadata for a step without images, in buffers that outlive the step; None where the
            model's forward builds them.
    """

    stage: Stage
    common: CommonAttentionMetadata
    build: Callable[..., Any]
    block_size: int
    prepared: Any = None

    def of_text(self, rows: torch.Tensor, carried: torch.Tensor) -> CommonAttentionMetadata:
        """`common` as the stage sees it in a step without images; arguments as of [`Stage.places`]."""
        numbers, positions = self.stage.places(rows, carried)
        capacity = self.common.block_table_tensor.shape[1] * self.block_size
        # padding rows may have any number
        return stage_metadata(self.common, Rows(None, numbers.clamp(max=capacity - 1), positions), self.block_size)

    def prepare(self, lengths: torch.Tensor, own: CommonAttentionMetadata) -> None:
        """Write the lengths of `own` to the buffer `lengths`, its slots over vLLM's own, and build metadata of
        these.
        """
        lengths = lengths[: len(own.seq_lens)].copy_(own.seq_lens)
        self.common.slot_mapping[: len(own.slot_mapping)].copy_(own.slot_mapping)
        self.prepared = self.build(_replaced(self.common, seq_lens=lengths), fast_build=False)


@lru_cache
def stage_backend(backend: type[AttentionBackend], stage: Stage) -> type[AttentionBackend]:
    """`backend` for layers of a stage that lacks rows of the long sequence.

    Raises:
        ValueError: it is none of `BACKENDS`.
    """
    if backend.get_name() not in BACKENDS:
        raise ValueError(
            f"LVTC in vLLM supports the attention backends {', '.join(BACKENDS)}, got {backend.get_name()}. Choose "
            "one with `--attention-backend`."
        )
    builder: Any = backend.get_builder_cls()

    class StageBuilder(builder):
        supports_update_block_table = False

        def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
            return StageInputs(stage, common_attn_metadata, self.build_now, self.kv_cache_spec.block_size)

        def build_for_cudagraph_capture(self, common_attn_metadata):
            return self.build(0, common_attn_metadata)

        def build_now(self, common: CommonAttentionMetadata, fast_build: bool = True) -> Any:
            # In the forward, `fast_build` leaves out what FlashAttention 3 schedules ahead: a CUDA graph could not
            # repeat it.
            return super().build(0, common, fast_build=fast_build)

        @classmethod
        def get_cudagraph_support(cls, vllm_config, kv_cache_spec):
            # A captured step must build a stage's metadata from tensors alone. This was checked for FLASH_ATTN only.
            if backend.get_name() != "FLASH_ATTN":
                return AttentionCGSupport.NEVER
            support = super().get_cudagraph_support(vllm_config, kv_cache_spec)
            return min(support, AttentionCGSupport.UNIFORM_BATCH, key=lambda kind: kind.value)

    return subclass_attention_backend("Stage", backend, StageBuilder)


def stage_metadata(common: CommonAttentionMetadata, rows: Rows, block_size: int) -> CommonAttentionMetadata:
    """The step's metadata for a stage."""
    starts = common.query_start_loc
    if rows.index is None:
        numbers = rows.numbers[: common.num_actual_tokens]
        lengths = _lengths(starts, numbers, common.seq_lens.dtype)
        slots = slot_mapping(common, starts, numbers, block_size)
        slots = slots.where(common.slot_mapping[: len(slots)] >= 0, common.slot_mapping[: len(slots)])
        # The other fields are counts of rows, or upper bounds that also hold for fewer tokens.
        return _replaced(common, positions=numbers, seq_lens=lengths, slot_mapping=slots)
    counted = torch.searchsorted(rows.index, starts.long()).to(starts.dtype)
    lengths = _lengths(counted, rows.numbers, common.seq_lens.dtype)
    counted_on_host, lengths_on_host = counted.cpu(), lengths.cpu()
    return _replaced(
        common,
        query_start_loc=counted,
        query_start_loc_cpu=counted_on_host,
        positions=rows.numbers,
        seq_lens=lengths,
        seq_lens_cpu_upper_bound=lengths_on_host,
        slot_mapping=slot_mapping(common, counted, rows.numbers, block_size),
        num_actual_tokens=len(rows.numbers),
        max_query_len=int(counted_on_host.diff().max()),
        max_seq_len=int(lengths_on_host.max()),
    )


def _lengths(starts: torch.Tensor, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(requests,) tokens in the stage; 0 for a request without rows in it, such as the padding of a captured batch."""
    if not len(numbers):
        return torch.zeros_like(starts[1:], dtype=dtype)
    last = numbers[(starts[1:] - 1).clamp(min=0).long()]
    return torch.where(starts.diff() > 0, last + 1, 0).to(dtype)


def slot_mapping(
    common: CommonAttentionMetadata, starts: torch.Tensor, numbers: torch.Tensor, block_size: int
) -> torch.Tensor:
    """(m,) slots of the keys and values of rows with these numbers in the stage. `starts` are the requests' bounds."""
    row = torch.arange(len(numbers), device=numbers.device)
    request = torch.searchsorted(starts[1:].long(), row, right=True).clamp(max=len(starts) - 2)
    blocks = common.block_table_tensor[request, numbers // block_size].long()
    return (blocks * block_size + numbers % block_size).to(common.slot_mapping.dtype)


def _replaced(common: CommonAttentionMetadata, **values) -> CommonAttentionMetadata:
    return replace(common, **values, _num_computed_tokens_cache=None, _token_to_req_indices_cache=None)


def step_metadata(layers: Sequence[str]) -> CommonAttentionMetadata | None:
    """The step's metadata for the long sequence; None while vLLM profiles."""
    metadata = get_forward_context().attn_metadata
    return None if metadata is None else metadata[layers[0]].common


@contextmanager
def stage_attention(layers: Sequence[str], rows: Rows) -> Iterator[None]:
    """Within the context, give the attention layers of a stage their own metadata and slots."""
    context: Any = get_forward_context()
    metadata, slots = context.attn_metadata, context.slot_mapping
    if metadata is None or not layers:
        yield
        return
    groups: dict[int, tuple[Any, torch.Tensor]] = {}  # by group of layers with one block table
    for inputs in (metadata[layer] for layer in layers):
        if id(inputs) in groups:
            continue
        if rows.index is None and inputs.prepared is not None:
            groups[id(inputs)] = inputs.prepared, inputs.common.slot_mapping
        else:
            common = stage_metadata(inputs.common, rows, inputs.block_size)
            groups[id(inputs)] = inputs.build(common), common.slot_mapping
    own = {layer: groups[id(metadata[layer])] for layer in layers}
    context.attn_metadata = metadata | {layer: built for layer, (built, _) in own.items()}
    context.slot_mapping = slots | {layer: own_slots for layer, (_, own_slots) in own.items()}
    try:
        yield
    finally:
        context.attn_metadata, context.slot_mapping = metadata, slots
