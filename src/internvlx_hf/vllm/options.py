# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""vLLM's options for a checkpoint whose tiles change between layers: set those that it needs, and refuse unsupported
ones before reading weights.
"""

from typing import TYPE_CHECKING

from vllm.config.compilation import CompilationMode, CUDAGraphMode
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from ..modeling import InternVLXConfig
from .language_models import require_language_model
from .tile_rows import LONGEST, long_rows

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

SCHEDULER = f"{__package__}.scheduler.make_scheduler"
GRAPHS = (CUDAGraphMode.NONE, CUDAGraphMode.FULL_DECODE_ONLY)


class InternVLXOptions(VerifyAndUpdateConfig):
    """The hooks that vLLM calls for the architecture in the process that reads the configuration."""

    @staticmethod
    def verify_and_update_model_config(model_config: "ModelConfig") -> None:
        config = model_config.hf_config
        require_language_model(config.text_config.model_type)
        if not config.boundaries:
            return
        if any(size.has_lvtc and size.after < size.before for size in config.sizes):
            before, after = config.image_seq_length, config.expanded_image_seq_length
            raise ValueError(
                f"LVTC in vLLM needs at least as many tokens per tile after the expansion as before, got {after} "
                f"after {before} (`lvtc_config.downsample_ratio`={config.lvtc_config.downsample_ratio:g}, "
                f"`downsample_ratio`={config.downsample_ratio:g}). Serve this model with `internvlx serve`."
            )
        # makes vLLM keep positions per request; the layers read the text configuration, which does not have it
        config.mrope_section = [1, 1, 1]

    @staticmethod
    def verify_and_update_config(vllm_config: "VllmConfig") -> None:
        config = vllm_config.model_config.hf_config
        if not config.boundaries:
            return
        refused = [name for name, is_set in unsupported_options(vllm_config).items() if is_set]
        if refused:
            name = "LVTC" if config.lvtc_config is not None else "A size that shrinks"
            raise ValueError(f"{name} in vLLM does not support {', '.join(refused)}. Leave it unset.")
        scheduler, compilation = vllm_config.scheduler_config, vllm_config.compilation_config
        scheduler.disable_chunked_mm_input = True
        scheduler.scheduler_cls = SCHEDULER
        compilation.mode = CompilationMode.NONE  # layers that are called one by one are not compiled
        if compilation.cudagraph_mode is None:
            compilation.cudagraph_mode = CUDAGraphMode.NONE


def unsupported_options(vllm_config: "VllmConfig") -> dict[str, bool]:
    """For each option, whether it is set to a value with which tiles cannot change between layers."""
    model, cache, scheduler = vllm_config.model_config, vllm_config.cache_config, vllm_config.scheduler_config
    parallel, speculative = vllm_config.parallel_config, vllm_config.speculative_config
    multimodal = model.multimodal_config
    graphs = vllm_config.compilation_config.cudagraph_mode
    kinds = ("pipeline", "data", "decode_context", "prefill_context")
    parallel_sizes = {f"{name}_parallel_size": getattr(parallel, f"{name}_parallel_size", 1) for name in kinds}
    budget, threshold = scheduler.max_num_scheduled_tokens, scheduler.long_prefill_token_threshold
    drafts, sizes = speculative.num_speculative_tokens if speculative else 0, model.hf_config.sizes
    tile = min(long_rows(size) for size in sizes if size.boundary is not None)
    has_both = len({size.after > size.before for size in sizes if size.boundary is not None}) > 1
    return {
        **{f"{name}={size}": size > 1 for name, size in parallel_sizes.items()},
        "enable_dbo": bool(parallel.enable_dbo or parallel.ubatch_size),
        "kv_transfer_config (KV connectors)": vllm_config.kv_transfer_config is not None,
        "ec_transfer_config (encoder cache connectors)": vllm_config.ec_transfer_config is not None,
        f"kv_offloading_size={cache.kv_offloading_size}": cache.kv_offloading_size is not None,
        f"kv_cache_dtype={cache.cache_dtype!r}": cache.cache_dtype != "auto",
        f"speculative method {speculative and speculative.method!r} (only 'ngram')": bool(
            speculative and speculative.method != "ngram"
        ),
        "enable_lora (merge the adapter with `internvlx merge`)": vllm_config.lora_config is not None,
        f"quantization={model.quantization!r}": model.quantization is not None,
        f"runner={model.runner_type!r}": model.runner_type != "generate",
        "enable_prompt_embeds": model.enable_prompt_embeds,
        "enable_mm_embeds": bool(multimodal and multimodal.enable_mm_embeds),
        "mm_encoder_only": bool(multimodal and multimodal.mm_encoder_only),
        f"scheduler_cls={scheduler.scheduler_cls!r}": scheduler.scheduler_cls is not None,
        "disable_hybrid_kv_cache_manager": bool(scheduler.disable_hybrid_kv_cache_manager),
        f"long_prefill_token_threshold={threshold}": threshold > 0,
        f"max_num_scheduled_tokens={budget} below max_num_batched_tokens": bool(
            budget and budget < scheduler.max_num_batched_tokens
        ),
        f"cudagraph_mode={graphs and graphs.name} (only NONE and FULL_DECODE_ONLY)": graphs not in (None, *GRAPHS),
        # The V1 runner would take a prefill of as many tokens for decoding, and replay a graph that has no images.
        f"num_speculative_tokens={drafts} with CUDA graphs and {tile} tokens per tile": bool(
            graphs and drafts + 1 >= tile
        ),
        f"max_model_len={model.max_model_len} above {LONGEST} with sizes that grow and sizes that shrink": has_both
        and model.max_model_len > LONGEST,
        "sliding windows": uses_sliding_window(model.hf_config),
    }


def uses_sliding_window(config: InternVLXConfig) -> bool:
    text = config.text_config
    types = getattr(text, "layer_types", None) or ["sliding_attention"]
    return bool(getattr(text, "sliding_window", None)) and "sliding_attention" in types
