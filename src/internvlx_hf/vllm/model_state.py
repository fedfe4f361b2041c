# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""State of a model with stages in vLLM's Model Runner V2: their lengths and slots, in buffers that CUDA graphs read.

In a step without images, all rows are in all stages. The metadata are built once per step, before the forward or the
replay of a graph: the lengths are in a buffer of this class, the slots in vLLM's own. Steps with images run eagerly
and build their metadata in the forward. With the V1 runner every step does so, and a graph repeats the computation.
"""

from typing import Any

import torch
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

from .stage_attention import StageInputs
from .tile_rows import Stage


class StagesState(DefaultModelState):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.lengths: dict[Stage, torch.Tensor] = {}
        self.waiting: list[StageInputs] = []  # without positions yet, which vLLM has after `prepare_attn`

    def prepare_attn(self, *args, for_capture: bool = False, **kwargs) -> dict[str, Any]:
        metadata = super().prepare_attn(*args, for_capture=for_capture, **kwargs)
        groups = {id(inputs): inputs for inputs in metadata.values() if isinstance(inputs, StageInputs)}
        self.waiting = [] if for_capture else list(groups.values())
        if for_capture:
            for inputs in groups.values():
                inputs.prepare(self._buffer(inputs.stage), inputs.common)
        return metadata

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, torch.Tensor | None]:
        model_inputs = super().prepare_inputs(input_batch, req_states)
        channels = model_inputs["positions"]
        if self.vllm_config.speculative_config is not None:
            self._position_drafts(channels, input_batch, req_states)
        waiting, self.waiting = self.waiting, []
        if self.model.step_tiles is None:
            for inputs in waiting:
                own = inputs.of_text(input_batch.positions, channels[0])
                inputs.prepare(self._buffer(inputs.stage), own)
        return model_inputs

    def _buffer(self, stage: Stage) -> torch.Tensor:
        """(requests,) where a stage's lengths are."""
        if stage not in self.lengths:
            self.lengths[stage] = torch.zeros(self.max_num_reqs, dtype=torch.int32, device=self.device)
        return self.lengths[stage]

    def _position_drafts(self, channels: Any, batch: InputBatch, states: RequestState) -> None:
        """Give drafts that come with a prompt's last token the positions after it, as while decoding.

        vLLM reads them past the end of the prompt's positions, where those of an earlier request may be. For its own
        models this costs a draft; a stage's slots depend on positions, and its keys and values there would be
        overwritten.
        """
        row = torch.arange(channels.shape[1], device=channels.device, dtype=batch.query_start_loc.dtype)
        request = torch.searchsorted(batch.query_start_loc[1:], row, right=True).clamp(max=batch.num_reqs - 1)
        request = batch.idx_mapping[request]
        counted = batch.positions + self.rope_state.prefill_delta.gpu[request]  # type: ignore[union-attr]
        channels.copy_(counted.where(batch.positions >= states.prefill_len.gpu[request], channels))
