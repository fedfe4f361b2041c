"""On a GPU in bfloat16, against float32 on a CPU: golden answers, attentions, a training, compiled decoding.

`CUDA_TESTS_ON=cpu` runs the same on a machine without one. Distance: the norm of a difference by the norm of what is expected;
bfloat16 has 8 bits, and on a CPU no distance is more than half of what is allowed.
"""

import copy
import os

import pytest
import torch
from transformers import CompileConfig
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from conversion_helpers import GOLDEN, golden, load
from internvlx_hf.conversion import convert_checkpoint
from lvtc_cases import GREEDY, MIXED, bounds_of, labelled, new_tokens, pack, training_model
from tiny import LVTC, tiny_batch, tiny_model
from training_helpers import losses, run, save_checkpoint

DEVICE = os.environ.get("CUDA_TESTS_ON", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(),
        reason="needs an NVIDIA GPU; CUDA_TESTS_ON=cpu runs it without one",
    ),
]
ATTENTIONS = {
    "eager": True,
    "sdpa": True,
    "varlen_sdpa": True,
    "flex_attention": DEVICE == "cuda",
    "flash_attention_2": DEVICE == "cuda" and is_flash_attn_2_available(),
    "flash_attention_3": DEVICE == "cuda" and is_flash_attn_3_available(),
}
PLAIN = {"projector_config": {"drop_path_rate": 0.0}}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    return float((found - expected).norm() / expected.norm())


def to_device(batch: dict) -> dict:
    return {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 5e-3), (torch.bfloat16, 0.05)], ids=str)
@pytest.mark.parametrize("name", ["internvl2_qwen2", "internvl2_internlm2", "internvlx_internlm2"])
@torch.no_grad()
def test_a_converted_checkpoint_answers_as_the_reference_in_float32(name, dtype, limit, tmp_path):
    convert_checkpoint(GOLDEN / name, tmp_path / "converted")
    expected = golden(name)
    inputs = to_device({key: expected[key] for key in ("input_ids", "attention_mask", "pixel_values")})
    model = load(tmp_path / "converted").to(DEVICE, dtype)
    logits = model(**inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}).logits
    at = expected["logits_positions"].to(DEVICE)
    assert distance(logits[:, at], expected["logits"].reshape(logits[:, at].shape)) < limit


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("packed", [False, True])
def test_an_attention_that_is_installed_trains_as_the_plain_one_in_float32(attention, packed):
    if not ATTENTIONS[attention]:
        pytest.skip(f"there is no {attention} here")
    model = training_model("llama")
    batch = labelled(model, MIXED)
    inputs = pack([batch]) | bounds_of(batch) if packed else batch
    model.set_attn_implementation({"text_config": "eager"})
    expected = model(**pack([batch]) if packed else batch, use_cache=False)
    expected.loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters()}
    model = copy.deepcopy(model).to(DEVICE, torch.bfloat16)
    model.zero_grad()
    model.set_attn_implementation({"text_config": attention})
    found = model(**to_device(inputs), use_cache=False)
    found.loss.backward()
    assert distance(found.loss, expected.loss) < 0.01
    total = torch.cat([each.grad.flatten() for each in model.parameters()])
    assert distance(total, torch.cat([each.flatten() for each in gradients.values()])) < 0.2


@pytest.mark.parametrize("packing", [None, 90])
def test_a_training_of_the_trainer_in_mixed_precision_has_the_losses_of_float32(packing, tmp_path):
    save_checkpoint(tmp_path / "base", **PLAIN)
    settings = {"learning_rate": 1e-4} | ({"packing_tokens": packing} if packing else {})
    expected = losses(run(tmp_path, **settings))
    found = losses(run(tmp_path, use_cpu=DEVICE == "cpu", bf16=True, output_dir=str(tmp_path / "bf16"), **settings))
    assert len(found) == len(expected) == 6
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=0, rtol=0.03)


@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["one stage", "LVTC"])
def test_compiled_decoding_gives_the_tokens_of_eager(lvtc):
    """In float32, where no two logits are so near each other that they change places."""
    torch.compiler.reset()
    model = tiny_model("llama", **lvtc).to(DEVICE)
    batch = to_device(tiny_batch(model.config, MIXED))
    expected = new_tokens(model, batch)
    config = CompileConfig() if DEVICE == "cuda" else CompileConfig(backend="eager")
    config._compile_all_devices = True
    settings = GREEDY | {"cache_implementation": "static", "compile_config": config}
    assert torch.equal(new_tokens(model, batch, **settings), expected)
