"""Third-party runtimes accept the model unchanged: quantization, device maps, pipelines, Liger's kernels.

Streaming is in test_generation.py, static caches and compiled decoding in test_lvtc_generation.py, a compiled forward and
backward in test_lvtc_training.py. docs/serving.md says what does not work, and why.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    pipeline,
)
from transformers.quantizers.quantizers_utils import should_convert_module

from internvlx_hf.quantization import COMPRESSION_MODULES, UNQUANTIZED_MODULES
from paths import HELPERS, ROOT
from tiny import LVTC, tiny_batch, tiny_model, tiny_processor
from versions import is_older, needs_transformers

TORCHAO, LLM_COMPRESSOR = ROOT / "build/torchao", ROOT / "build/llmcompressor"
PROJECTORS = ("pvtc", "pixel_shuffle", "linear", "token_packer", "ldpv2")
LAYOUTS = [[3, "tile", 5], [9], [2, "tile", "tile", 4]]
NEW = 6

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def linear_layers(model) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def new_tokens(model, batch, **kwargs) -> torch.Tensor:
    output = model.generate(**batch, max_new_tokens=NEW, do_sample=False, **kwargs)
    return output[:, batch["input_ids"].shape[1] :]


# ---- Quantisation


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["one stage", "LVTC"])
def test_what_is_not_to_be_quantized_is_all_but_the_language_model_s_layers(projector, lvtc):
    if projector == "linear":
        lvtc = {name: value for name, value in lvtc.items() if name != "downsample_ratio"} | {"downsample_ratio": 1.0}
        lvtc.pop("lvtc_config", None)
    model = tiny_model(projector_config={"projector_type": projector}, **lvtc)
    quantized = [name for name in linear_layers(model) if should_convert_module(name, list(UNQUANTIZED_MODULES))]
    assert quantized == [name for name in linear_layers(model) if name.startswith("model.language_model.layers.")]


def test_the_compression_modules_are_the_projectors():
    model = tiny_model(**LVTC)
    left_out = [name for name in linear_layers(model) if not should_convert_module(name, list(COMPRESSION_MODULES))]
    assert left_out == [name for name in linear_layers(model) if "projector" in name]
    assert {name.split(".")[1] for name in left_out} == {"multi_modal_projector", "lvtc"}


def test_pvtc_s_keys_and_values_are_no_linear_layers_so_that_nobody_quantises_them():
    projector = tiny_model().model.multi_modal_projector
    attention = projector.local_layers[0].attention
    assert {name for name, _ in attention.named_parameters(recurse=False)} == {"key", "value"}
    assert {name for name, _ in attention.named_children()} == {"query", "output"}


def report_with(package: Path) -> dict:
    """What the package's process in `helpers` prints."""
    if not package.exists():
        pytest.skip(f"{package.name} is not in build/{package.name}, where `make test-integration` puts it")
    paths = [package, HELPERS, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(HELPERS / f"{package.name}_process.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def torchao_report():
    return report_with(TORCHAO)


@pytest.mark.integration
@pytest.mark.slow
def test_llm_compressor_traces_each_layer_of_the_language_model_or_all_with_lvtc():
    found = report_with(LLM_COMPRESSOR)
    assert found == {"one stage": {"subgraphs": 5, "same": True}, "LVTC": {"subgraphs": 1, "same": True}}


@pytest.mark.integration
@pytest.mark.slow
def test_torchao_s_int8_on_the_cpu_leaves_the_named_modules_alone(torchao_report):
    found = torchao_report["all but the language model"]
    layers = linear_layers(tiny_model(**LVTC))
    assert found["quantized"] == [name for name in layers if name.startswith("model.language_model.layers.")]
    assert found["quantized"] + found["others"] != layers  # both kinds occur, in between each other
    found = torchao_report["compression only"]
    assert found["others"] == [name for name in layers if name.startswith((*COMPRESSION_MODULES, "lm_head"))]

    for found in torchao_report.values():
        assert found["differs"]
        assert found["similarity"] > 0.99  # eight bits, one scale a row
        assert {len(row) for row in found["tokens"]} == {NEW}


@pytest.mark.integration
@pytest.mark.slow
def test_an_int8_checkpoint_of_torchao_s_loads_again(torchao_report):
    assert torchao_report["saved and loaded"] == torchao_report["all but the language model"]


BITS = {"int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", ["int8", pytest.param("nf4", marks=[pytest.mark.cuda, needs_gpu])])
def test_bitsandbytes_leaves_the_named_modules_alone(bits, tmp_path):
    import bitsandbytes

    # rows of whole blocks of 64 weights
    model = tiny_model(text_config={"intermediate_size": 128}, **LVTC)
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(llm_int8_skip_modules=list(UNQUANTIZED_MODULES), **BITS[bits])
    found = AutoModelForImageTextToText.from_pretrained(
        tmp_path, quantization_config=config, device_map={"": "cuda" if torch.cuda.is_available() else "cpu"}
    ).eval()
    kinds = (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit)
    quantized = [name for name, module in found.named_modules() if isinstance(module, kinds)]
    assert quantized == [name for name in linear_layers(model) if name.startswith("model.language_model.layers.")]

    batch = tiny_batch(model.config, LAYOUTS)
    on_device = {name: value.to(found.device) for name, value in batch.items()}
    with torch.no_grad():
        logits, expected = found(**on_device).logits.cpu().float(), model(**batch).logits
    similarity = nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0)
    assert similarity > {"int8": 0.98, "nf4": 0.9}[bits]
    assert new_tokens(found, on_device).shape == (3, NEW)


# ---- Devices, pipelines, kernels


@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["one stage", "LVTC"])
def test_an_automatic_device_map_offloads_what_has_no_room(lvtc, tmp_path):
    """A budget of half the model for the CPU, the rest on disk: layers and towers stay whole, tokens stay the same."""
    model = tiny_model(**lvtc)
    model.save_pretrained(tmp_path / "model")
    batch = tiny_batch(model.config, LAYOUTS)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    loaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": size // 2},
        offload_folder=tmp_path / "offload",
    ).eval()
    places = loaded.hf_device_map
    assert "disk" in places.values()
    inside_layers = [
        name for name in places if name.startswith("model.language_model.layers.") and name.count(".") > 3
    ]
    assert inside_layers == []
    assert torch.equal(new_tokens(loaded, batch), new_tokens(model, batch))


def test_a_pipeline_answers_several_conversations_in_one_batch():
    """With a tokenizer that pads on the left: a pipeline asks the tokenizer, not the processor."""
    model = tiny_model(**LVTC)
    model.generation_config.eos_token_id = None  # a random model would end at once
    processor = tiny_processor(model.config)
    processor.tokenizer.padding_side = "left"
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    conversations = []
    for width, height in ((70, 40), (30, 30), (32, 90)):
        image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        content = [{"type": "image", "image": image}, {"type": "text", "text": "What is on the picture?"}]
        conversations.append([{"role": "user", "content": content}])
    settings = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": NEW, "do_sample": False}}
    alone = [ask(text=[messages], **settings)[0][0]["generated_text"] for messages in conversations]
    together = [answer["generated_text"] for (answer,) in ask(text=conversations, batch_size=3, **settings)]
    assert together == alone
    assert len(set(alone)) > 1


LIGER = ("llama", "qwen2", "qwen3", "phi3", "mistral")


@pytest.mark.cuda
@needs_gpu
@pytest.mark.skipif(not importlib.util.find_spec("liger_kernel"), reason="needs liger-kernel")
@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["one stage", "LVTC"])
@pytest.mark.parametrize("text", LIGER)
def test_liger_s_kernels_go_into_the_inner_language_model(text, lvtc, monkeypatch):
    """A training step with them gives the loss and the gradients of one without."""
    from liger_kernel.transformers import monkey_patch

    model = tiny_model(text, **lvtc).to("cuda").train()
    batch = {name: value.to("cuda") for name, value in tiny_batch(model.config, LAYOUTS).items()}
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    def step():
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected_loss, expected = step()
    # Liger replaces a function of transformers' module as well: undone after the test
    module = sys.modules[type(model.model.language_model).__module__]
    for name in vars(module).copy():
        monkeypatch.setattr(module, name, getattr(module, name))
    apply = getattr(monkey_patch, f"apply_liger_kernel_to_{text}")
    apply(model=model.model.language_model, fused_linear_cross_entropy=False)
    found_loss, found = step()
    assert "Liger" in repr(model.model.language_model)
    assert "Liger" not in repr(model.model.multi_modal_projector)
    assert found_loss == pytest.approx(expected_loss, rel=1e-3)
    for name, gradient in expected.items():
        # float32, other orders of summation in norms and rotations
        torch.testing.assert_close(found[name], gradient, atol=2e-3 * gradient.abs().max().item() + 1e-6, rtol=0)


# ---- Continuous batching


PAGE_SIZE = "block_size" if is_older("5.17") else "page_size"
PAGES = {"num_blocks": 32, PAGE_SIZE: 32, "max_batch_tokens": 64}


def text_settings():
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    return {"generation_config": settings, "continuous_batching_config": ContinuousBatchingConfig(**PAGES)}


@needs_transformers("5.17", "continuous batching takes no models of several parts")
@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["one stage", "LVTC"])
def test_texts_are_answered_in_continuous_batches_as_alone(lvtc):
    model = tiny_model("llama", **lvtc)
    model.lm_head.weight.data[model.config.image_token_id] *= 20  # which no answer may have
    prompts = [[11, 12, 13], list(range(20, 60)), [99] * 70]
    answers = [answer.generated_tokens for answer in model.generate_batch(prompts, **text_settings()).values()]
    alone = [{"input_ids": torch.tensor([prompt])} for prompt in prompts]
    assert answers == [new_tokens(model, batch, eos_token_id=-1)[0].tolist() for batch in alone]
    assert all(model.config.image_token_id not in answer for answer in answers)


def test_continuous_batches_take_no_images():
    model = tiny_model("llama")
    prompts = [[11, 12], [13, model.config.image_token_id]]
    with pytest.raises(ValueError, match=r"Prompt 1 has image placeholders \(token 5\).*Use `generate`"):
        model.generate_batch(prompts, **text_settings())
    with pytest.raises(ValueError, match="takes no `pixel_values`"):
        model.generate_batch([[11]], pixel_values=torch.zeros(1, 3, 32, 32), **text_settings())
    manager = model.init_continuous_batching(**text_settings())
    for add in (lambda: manager.add_request(prompts[1]), lambda: manager.add_requests(prompts)):
        with pytest.raises(ValueError, match=r"image placeholders \(token 5\)"):
            add()


@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["one stage", "LVTC"])
@pytest.mark.parametrize("attention", ["paged|sdpa", "paged|eager"])
@pytest.mark.filterwarnings("ignore:The `paged.` prefix:FutureWarning")
def test_setting_a_paged_attention_sets_all_parts_without_a_warning(lvtc, attention, monkeypatch):
    warnings = []
    monkeypatch.setattr("transformers.modeling_utils.logger.warning", lambda *args: warnings.append(args))
    model = tiny_model("llama", **lvtc)
    model.set_attn_implementation(attention)
    parts = [getattr(model.config, name) for name in type(model.config).sub_configs]
    assert {part._attn_implementation for part in [model.config, *filter(None, parts)]} == {
        model.model.language_model.config._attn_implementation
    }
    assert not warnings
    assert model.config.sub_configs == type(model.config).sub_configs
    assert "sub_configs" not in model.config.to_dict()
