# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""vLLM schedulers for stages: images whose tokens change are not split between steps, and blocks follow each stage's
own rows.
"""

from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from .kv_groups import Prompts, StageManager
from .tile_rows import PromptRows, read_prompt

logger = init_logger(f"vllm.{__name__}")  # vLLM shows the loggers below its own


def make_scheduler(vllm_config: VllmConfig, *args, **kwargs) -> Scheduler:
    """Make the scheduler. vLLM calls this in place of a scheduler class."""
    scheduler_class = StagesAsyncScheduler if vllm_config.scheduler_config.async_scheduling else StagesScheduler
    return scheduler_class(vllm_config, *args, **kwargs)


def tokens_without_split(prompt: PromptRows | None, computed: int, new: int) -> int:
    """The number of tokens to schedule after `computed`: `new`, or fewer if the step would end within an image."""
    end = computed + new
    for image in prompt.images if prompt else ():
        if image.start < end < image.stop:
            return max(0, image.start - computed)
    return new


class StagesScheduler(Scheduler):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.prompts: Prompts = {}
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            if isinstance(manager, StageManager):
                manager.prompts = self.prompts

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        self._note_prompt(self.requests[request.request_id])

    def _update_request_as_session(self, session: Request, *args, **kwargs) -> None:
        super()._update_request_as_session(session, *args, **kwargs)
        self._note_prompt(session)

    def _note_prompt(self, request: Request) -> None:
        if not request.mm_features:
            return
        config = self.vllm_config.model_config.hf_config
        prompt = read_prompt(request.num_prompt_tokens, request.mm_features, config)
        self.prompts[request.request_id] = prompt
        rows = request.num_prompt_tokens, prompt.count(request.num_prompt_tokens, is_expanded=False, is_merged=False)
        logger.debug("Request %s: %d prompt tokens, %d of them in stage one.", request.request_id, *rows)

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self.prompts.pop(request.request_id, None)

    def _try_schedule_encoder_inputs(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int, *args, **kwargs
    ):
        # with `disable_chunked_mm_input` alone, an image that starts at the first new token could be split
        num_new_tokens = tokens_without_split(
            self.prompts.get(request.request_id), num_computed_tokens, num_new_tokens
        )
        return super()._try_schedule_encoder_inputs(request, num_computed_tokens, num_new_tokens, *args, **kwargs)


class StagesAsyncScheduler(StagesScheduler, AsyncScheduler):
    pass
