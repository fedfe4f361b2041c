"""LVTC where weights are offloaded, and how often a forward waits for the device."""

import pytest
import torch
from transformers import StaticCache

from host_reads import host_reads
from internvlx_hf.modeling.outputs import CACHE
from lvtc_cases import CLOSE, MIXED, new_tokens, uncached
from tiny import LVTC, PAD, tiny_batch, tiny_model


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_weights_give_the_same_tokens(place, tmp_path):
    from accelerate import cpu_offload, disk_offload

    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED)
    expected = new_tokens(model, batch)
    if place == "cpu":
        cpu_offload(model, execution_device="cpu")
    else:
        disk_offload(model, tmp_path, execution_device="cpu")
    assert next(model.model.language_model.layers[3].parameters()).device.type == "meta"
    assert torch.equal(new_tokens(model, batch), expected)


@pytest.mark.parametrize("whole", [True, False])
def test_a_device_map_with_disk_offload_gives_the_same_tokens(whole, tmp_path):
    """Also where the map names the language model as a whole, whose own forward LVTC does not call."""
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED)
    expected = new_tokens(model, batch)
    model.save_pretrained(tmp_path / "model")
    device_map = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "disk",
        "model.lvtc": "disk",
        "lm_head": "cpu",
    }
    if whole:
        device_map["model.language_model"] = "disk"
    else:
        device_map |= {f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
        device_map |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    loaded = type(model).from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert any(parameter.device.type == "meta" for parameter in loaded.model.language_model.parameters())
    assert torch.equal(new_tokens(loaded, batch), expected)


def test_a_decode_step_with_masks_made_ahead_reads_nothing():
    """As `generate` calls it, compiled or not, with a static cache."""
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, MIXED)
    cache = StaticCache(model.config.text_config, max_cache_len=64)
    model(**batch, cache=cache)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    ids = torch.cat([batch["input_ids"], torch.full((4, 1), PAD + 11)], dim=1)
    with host_reads() as reads:
        inputs = model.prepare_inputs_for_generation(
            ids, next_sequence_length=1, attention_mask=mask, position_ids=mask.cumsum(-1) - 1, **{CACHE: cache}
        )
        logits = model(**inputs).logits
    assert reads == []
    assert set(inputs["attention_mask"]) == {"full_attention", "2_full_attention"}
    torch.testing.assert_close(
        logits[:, -1], uncached(model, batch | {"input_ids": ids, "attention_mask": mask})[:, -1], **CLOSE
    )
