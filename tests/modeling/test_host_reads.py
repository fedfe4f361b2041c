"""How often a forward waits for the device, beside native InternVL of the same size; flash attention by its stand-in.

Native InternVL's masks are made by transformers, which looks for padding in a mask; with flash attention, every layer looks
for packed samples in the positions and unpads what is padded.
"""

import pytest
import torch
from transformers import DynamicCache, InternVLConfig, InternVLForConditionalGeneration

from flash_stand_in import use_flash_stand_in
from host_reads import host_reads
from internvlx_hf.modeling.outputs import CACHE
from lvtc_cases import MIXED, bounds_of, labelled, pack
from tiny import LVTC, tiny_batch, tiny_model

BATCHES = {
    "one": ([[3, "tile", 2, "tile", 4]], "left"),
    "rows of equal length that grow apart": ([[10], [3, "tile", 3], ["tile", 1, "tile", 1]], "left"),
    "left padding": (MIXED, "left"),
    "right padding": (MIXED, "right"),
}
PIXEL_SHUFFLE = {"downsample_ratio": 0.25, "projector_config": {"projector_type": "pixel_shuffle"}}


@pytest.fixture(params=["sdpa", "flash attention"])
def models(request, monkeypatch):
    """Native InternVL, ours without and with LVTC."""
    off, on = tiny_model("llama", **PIXEL_SHUFFLE), tiny_model("llama", **LVTC)
    config = off.config
    native = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=config.vision_config.to_dict(),
            text_config=config.text_config.to_dict(),
            image_token_id=config.image_token_id,
            image_seq_length=config.image_seq_length,
            downsample_ratio=config.downsample_ratio,
            tie_word_embeddings=False,
        )
    ).eval()
    if request.param == "flash attention":
        use_flash_stand_in(monkeypatch, native, off, on)
    return native, off, on


def count_reads(model, batch, **kwargs):
    with host_reads() as reads:
        model(**batch, **kwargs)
    return len(reads)


def batch_of(config, name, mask=True):
    layouts, side = BATCHES[name]
    batch = tiny_batch(config, layouts, padding_side=side)
    if not mask:
        del batch["attention_mask"]
    return batch


@pytest.mark.parametrize(
    ("name", "mask"), [*((name, True) for name in BATCHES), *((name, False) for name in list(BATCHES)[:2])]
)
def test_a_forward_waits_twice_more_at_most_and_a_decode_step_never_more(models, name, mask):
    counts = []
    for model in models:
        batch, cache = batch_of(models[-1].config, name, mask), DynamicCache(config=model.config.text_config)
        trained = count_reads(model.train(), batch, use_cache=False)
        with torch.no_grad():
            prefilled = count_reads(model.eval(), batch, **{CACHE: cache})
            step = {"input_ids": torch.full((len(batch["input_ids"]), 1), 11), CACHE: cache}
            if mask:
                step["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
            counts.append((trained, prefilled, count_reads(model, step)))
    native, *ours = counts
    for trained, prefilled, decoded in ours:
        assert trained <= native[0] + 2
        assert prefilled <= native[1] + 2
        assert decoded <= native[2]


def test_a_packed_forward_waits_twice_more_at_most(models):
    native, *ours = models
    batch = labelled(ours[-1], MIXED)
    packed = pack([batch])
    del packed["labels"]
    for inputs in (packed, packed | bounds_of(batch)):
        for model in ours:
            assert (
                count_reads(model.train(), inputs, use_cache=False) <= count_reads(native, inputs, use_cache=False) + 2
            )


@pytest.mark.parametrize("attention", ["sdpa", "varlen_sdpa", "flash attention"])
def test_no_layer_waits(attention, monkeypatch):
    """Four more layers in both stages wait no more often."""
    counts = []
    for layers, k in ((4, 2), (8, 4)):
        settings = {**LVTC["lvtc_config"], "expand_layer": k}
        model = tiny_model("llama", text_config={"num_hidden_layers": layers}, **{**LVTC, "lvtc_config": settings})
        if attention == "flash attention":
            use_flash_stand_in(monkeypatch, model)
        else:
            model.set_attn_implementation({"text_config": attention})
        packed = pack([labelled(model, MIXED)])
        del packed["labels"]
        counts.append([count_reads(model, packed, use_cache=False)])
        with torch.no_grad():
            for name in ("left padding", "one"):
                batch, cache = batch_of(model.config, name), DynamicCache(config=model.config.text_config)
                counts[-1].append(count_reads(model, batch, **{CACHE: cache}))
                for new in (1, 3):  # a decoding step, another turn
                    seen = batch["input_ids"].shape[1] + (0 if new == 1 else 1)
                    missing = seen + new - batch["attention_mask"].shape[1]
                    mask = torch.nn.functional.pad(batch["attention_mask"], (0, missing), value=1)
                    ids = torch.full((len(mask), new), 11)
                    counts[-1].append(count_reads(model, {"input_ids": ids, "attention_mask": mask}, **{CACHE: cache}))
    assert counts[0] == counts[1]
