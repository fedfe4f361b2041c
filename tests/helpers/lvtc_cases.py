"""Prompts, models and training steps on which LVTC is tested."""

import torch

from tiny import LVTC, tiny_batch, tiny_model

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
NEW = 8
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
KINDS = ["full attention", "mistral, sliding", "qwen2, sliding and full"]
MIXED = [[5], [2, "tile", 3], ["tile", "tile", 1, "tile", 4], [9, "tile"]]  # no, one and many images
UNPADDED = [[10], [3, "tile", 3], ["tile", 1, "tile", 1]]
STEEP = {"downsample_ratio": 0.25, "lvtc_config": {**LVTC["lvtc_config"], "downsample_ratio": 1.0}}
SLIDING = {
    "mistral": {"sliding_window": 7},
    "phi3": {"sliding_window": 7},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": 7},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    },
    "qwen3": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
}
ROPES = {
    "dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        "max_position_embeddings": 24,
    },
    "longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "short_factor": [1.0] * 8,
            "long_factor": [1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0],
            "original_max_position_embeddings": 24,
        },
        "original_max_position_embeddings": 24,
        "max_position_embeddings": 96,
    },
}


def lvtc(n1=2, n2=4, **kwargs):
    """Arguments for N₁ and N₂ tokens a side out of the tiny models' 8 patches."""
    settings = {"expand_layer": 2, "num_lr_projectors": 2, "insert_start": 1, "insert_interval": 1, **kwargs}
    return {"downsample_ratio": n1 / 8, "lvtc_config": {"downsample_ratio": n2 / 8, **settings}}


KEPT = {"expanded_positions": "kept"}


def rope_model(rope, text="llama"):
    return tiny_model("phi3" if rope == "longrope" else text, text_config=ROPES[rope], **LVTC)


def training_model(text="llama", **kwargs):
    return tiny_model(text, projector_config={"drop_path_rate": 0.0}, **{**LVTC, **kwargs}).train()


def labelled(model, layouts, **kwargs):
    """A batch whose loss is on all text but the first token of each sample, which nothing predicts."""
    batch = tiny_batch(model.config, layouts, **kwargs)
    mask = batch["attention_mask"]
    begins = mask * (mask.cumsum(-1) == 1)
    ignored = (mask == 0) | (begins == 1) | (batch["input_ids"] == model.config.image_token_id)
    return batch | {"labels": batch["input_ids"].masked_fill(ignored, -100)}


def loss_and_gradients(model, batch, **kwargs):
    model.zero_grad()
    loss = model(**batch, **kwargs).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def model_of_kind(kind):
    """The windows of 7 tokens are passed in both stages, and in stage two by a tile alone."""
    text = {"full attention": "llama", "mistral, sliding": "mistral", "qwen2, sliding and full": "qwen2"}[kind]
    return tiny_model(text, text_config=SLIDING.get(text, {}), **LVTC)


def new_tokens(model, batch, **kwargs):
    return model.generate(**batch, **{**GREEDY, **kwargs})[:, batch["input_ids"].shape[1] :]


def next_turn(model, layouts, seed=1):
    return tiny_batch(model.config, layouts, seed=seed)


def uncached(model, batch):
    return model(**batch, use_cache=False).logits


def assert_same_step(got, want, relative=1e-3):
    torch.testing.assert_close(got[0], want[0], atol=1e-5, rtol=1e-5)
    assert got[1].keys() == want[1].keys()
    for name, gradient in want[1].items():
        scale = gradient.abs().max().clamp(min=1e-3)
        error = (got[1][name] - gradient).abs().max() / scale
        assert error <= relative, f"{name}: {error}"


def pack(batches, **bounds):
    """One row of a padded batch's samples, without padding, for each batch given; shorter rows are filled up."""
    rows = []
    for batch in batches:
        masks = batch["attention_mask"].bool()
        row = {
            key: torch.cat([batch[key][i][mask] for i, mask in enumerate(masks)]) for key in ("input_ids", "labels")
        }
        row["position_ids"] = torch.cat([torch.arange(int(mask.sum())) for mask in masks])
        rows.append(row)
    length = max(len(row["labels"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100}
    packed = {
        key: torch.stack([torch.cat([row[key], torch.full((length - len(row[key]),), value)]) for row in rows])
        for key, value in fill.items()
    }
    # what fills a row up is one more sample, which nobody reads
    packed["position_ids"] = torch.stack(
        [torch.cat([row["position_ids"], torch.arange(length - len(row["position_ids"]))]) for row in rows]
    )
    return packed | {"pixel_values": torch.cat([b["pixel_values"] for b in batches if "pixel_values" in b])}


def bounds_of(batch):
    lengths = batch["attention_mask"].sum(-1)
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    longest = int(lengths.max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def unpack_four_bits(packed, bits):
    assert bits == 4
    return torch.cat([packed & 15, packed >> 4])
