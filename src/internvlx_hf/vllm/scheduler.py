# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""vLLM schedulers for LVTC: images are not split between steps, and stage one's blocks follow the short sequence."""

from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from .kv_groups import ShortLengths, StageOneManager
from .stage_one import find_rows

logger = init_logger(f"vllm.{__name__}")  # vLLM shows the loggers below its own


def make_scheduler(vllm_config: VllmConfig, *args, **kwargs) -> Scheduler:
    """Make the scheduler. vLLM calls this in place of a scheduler class."""
    scheduler_class = LVTCAsyncScheduler if vllm_config.scheduler_config.async_scheduling else LVTCScheduler
    return scheduler_class(vllm_config, *args, **kwargs)


def tokens_without_split(request: Request, computed: int, new: int) -> int:
    """The number of tokens to schedule after `computed`: `new`, or fewer if the step would end within an image."""
    end = computed + new
    for feature in request.mm_features:
        start = feature.mm_position.offset
        if start < end < start + feature.mm_position.length:
            return max(0, start - computed)
    return new


class LVTCScheduler(Scheduler):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.short_lengths = ShortLengths()
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            if isinstance(manager, StageOneManager):
                manager.short_lengths = self.short_lengths

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        self._note_length(self.requests[request.request_id])

    def _update_request_as_session(self, session: Request, *args, **kwargs) -> None:
        super()._update_request_as_session(session, *args, **kwargs)
        self._note_length(session)

    def _note_length(self, request: Request) -> None:
        config = self.vllm_config.model_config.hf_config
        before, after = config.image_seq_length, config.expanded_image_seq_length
        if request.mm_features:
            _, in_stage_one = find_rows(request.num_prompt_tokens, request.mm_features, before, after)
            self.short_lengths.add(request.request_id, in_stage_one.numpy())
            rows = request.num_prompt_tokens, int(in_stage_one.sum())
            logger.debug("Request %s: %d prompt tokens, %d of them in stage one.", request.request_id, *rows)

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self.short_lengths.remove(request.request_id)

    def _try_schedule_encoder_inputs(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int, *args, **kwargs
    ):
        # with `disable_chunked_mm_input` alone, an image that starts at the first new token could be split
        num_new_tokens = tokens_without_split(request, num_computed_tokens, num_new_tokens)
        return super()._try_schedule_encoder_inputs(request, num_computed_tokens, num_new_tokens, *args, **kwargs)


class LVTCAsyncScheduler(LVTCScheduler, AsyncScheduler):
    pass
