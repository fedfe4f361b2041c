# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""vLLM in place of transformers' `generate`, for answers in bulk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..evaluation.answering import DEFAULT_MAX_NEW_TOKENS, Answer, Answerer
from ..modeling import InternVLXConfig
from ..processing.boxes import decode_answer

LEAST_STEP = 4096  # tokens of a step


class VLLMAnswerer(Answerer):
    """Answers prompts with vLLM, which batches them itself. Greedy only.

    Args:
        answerer: an answerer without a model.
        folder: of the checkpoint.
        options: arguments of `vllm.LLM` (default: those that the checkpoint's images need).

    Raises:
        ValueError: if vLLM is not installed.
    """

    def __init__(self, answerer: Answerer, folder: Path, **options):
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(f"--engine=vllm needs vLLM, which cannot be imported: {error}") from error
        super().__init__(None, answerer.processor, answerer.images_kwargs)
        self.version = answerer.version
        config = InternVLXConfig.from_pretrained(folder)
        # what the engine of one process asks a model
        self.model = SimpleNamespace(config=config, device=torch.device("meta"), dtype=torch.bfloat16)
        self.llm = LLM(str(folder), **engine_options(answerer, config) | options)

    def complete(self, inputs: Mapping, until: Sequence[str] = (), **generation_kwargs) -> list[Answer]:
        """Answer `inputs["prompts"]`, each as `vllm.LLM.generate` takes it; other arguments as for
        `Answerer.complete`.
        """
        from vllm import SamplingParams

        most = generation_kwargs.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS
        sampling = SamplingParams(temperature=0, max_tokens=most, detokenize=False)
        answers = []
        for output in self.llm.generate(list(inputs["prompts"]), sampling, use_tqdm=False):
            (found,) = output.outputs
            text = decode_answer(self.processor.tokenizer, found.token_ids)
            answers.append(Answer(text, len(found.token_ids), "length" if found.finish_reason == "length" else "stop"))
        return answers


def engine_options(answerer: Answerer, config: InternVLXConfig) -> dict[str, Any]:
    """Arguments of `vllm.LLM` with room for the largest image in a step."""
    rule = answerer.image_processor.tiling_rule()
    tokens = (rule.max_tiles + rule.use_thumbnail) * max(max(size.before, size.after) for size in config.sizes)
    return {
        "trust_remote_code": True,
        "max_num_batched_tokens": max(LEAST_STEP, 1024 * -(-tokens // 1024)),
        "limit_mm_per_prompt": {"image": 64},
        "enable_prefix_caching": False,
    }
