# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The language models that the plug-in serves."""

# vLLM's class of each type of language model
LANGUAGE_MODELS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def require_language_model(model_type: str) -> None:
    """Check that the plug-in serves a language model.

    Raises:
        ValueError: if it does not; the message names the type.
    """
    if model_type not in LANGUAGE_MODELS:
        raise ValueError(
            f"internvlx-hf's plug-in for vLLM serves {', '.join(LANGUAGE_MODELS)}, but the language model is "
            f"{model_type!r}. Serve this model with `internvlx serve`."
        )
