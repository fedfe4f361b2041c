# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Generation that stops when its client leaves."""

import asyncio
import threading
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.cli.serving.utils import GenerateManager, GenerationState


class Generation(GenerationState):
    """Generation managers of this module."""

    def get_manager(self, model_id: str, use_cb: bool = False) -> GenerateManager:
        if model_id not in self._generate_managers:
            self._generate_managers[model_id] = _Manager()
        return self._generate_managers[model_id]


class _Manager(GenerateManager):
    def generate_streaming(self, model, processor, *args, **kwargs):
        # transformers stops a stream only while it is read; it does not get a tokenizer from a processor
        queue, streamer = super().generate_streaming(model, processor.tokenizer, *args, **kwargs)
        asyncio.current_task().add_done_callback(lambda _: streamer.cancel())  # type: ignore[union-attr]
        return queue, streamer

    async def generate_non_streaming(self, model, processor, inputs, gen_config, request_id) -> tuple[str, int, Any]:
        has_left = threading.Event()
        criteria = [*inputs.get("stopping_criteria", ()), _StopIfSet(has_left)]
        arguments = {**inputs, "generation_config": gen_config, "tokenizer": processor.tokenizer}

        def generate():
            if not has_left.is_set():  # else its client left while it was waiting
                return model.generate(**arguments | {"stopping_criteria": criteria})

        try:
            sequences = await asyncio.shield(self.async_submit(generate))
        except asyncio.CancelledError:
            has_left.set()
            raise
        prompt_length = inputs["input_ids"].shape[-1]
        answer = sequences[0, prompt_length:]
        return processor.decode(answer, skip_special_tokens=True), prompt_length, answer


class _StopIfSet(StoppingCriteria):
    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        return input_ids.new_full((len(input_ids),), self.event.is_set(), dtype=torch.bool)  # type: ignore[return-value]
