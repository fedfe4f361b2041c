"""Table 4 and Figure 8 of the paper: every row and multiple can be configured, at full size."""

import pytest
import torch

from internvlx_hf import InternVLXForConditionalGeneration
from tiny import tiny_batch, tiny_config

DENSE = {"lvtc_config": None}
TABLE_4 = {
    "base 256": (0.5, DENSE, 256, 256),
    "base 1024": (1.0, DENSE, 1024, 1024),
    "base 1024 to 256": (
        1.0,
        {"lvtc_config": {"downsample_ratio": 0.5, "hr_projector_type": None, "num_lr_projectors": 1}},
        1024,
        256,
    ),
    "LVTC": (0.5, {"lvtc_config": {"hr_projector_type": None, "num_lr_projectors": 1}}, 256, 1024),
    "LVTC, HR": (0.5, {"lvtc_config": {"num_lr_projectors": 1}}, 256, 1024),
    "LVTC, multi": (0.5, {"lvtc_config": {"hr_projector_type": None}}, 256, 1024),
    "LVTC, HR and multi": (0.5, {"lvtc_config": {}}, 256, 1024),
}


def full_size_geometry(downsample_ratio, layers, **kwargs):
    """448-pixel tiles in patches of 14, and `layers` layers, as narrow as can be."""
    return tiny_config(
        "qwen2",
        vision_config={
            "image_size": 448,
            "patch_size": 14,
            "hidden_size": 8,
            "num_attention_heads": 1,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
        },
        text_config={
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 16,
            "num_hidden_layers": layers,
            "max_position_embeddings": 4096,
        },
        projector_config={"projector_type": "pixel_shuffle"},
        downsample_ratio=downsample_ratio,
        **kwargs,
    )


def tokens_per_layer(config):
    model = InternVLXForConditionalGeneration(config).eval()
    lengths = {}
    for i, layer in enumerate(model.model.language_model.layers):
        layer.register_forward_pre_hook(lambda module, args, i=i: lengths.update({i: args[0].shape[1]}))
    batch = tiny_batch(config, [[3, "tile", 2]])
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape[1] == batch["input_ids"].shape[1] == config.image_seq_length + 5
    return [lengths[i] - 5 for i in range(len(lengths))]


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE_4)
def test_every_row_of_table_4_can_be_configured(row):
    ratio, kwargs, before, after = TABLE_4[row]
    config = full_size_geometry(ratio, 24, **kwargs)
    assert tokens_per_layer(config) == [before] * 17 + [after] * 7
    assert (config.image_seq_length, config.expanded_image_seq_length) == (before, after)
    if config.lvtc_config is not None:
        with torch.device("meta"):
            own = InternVLXForConditionalGeneration(config).model.lvtc
        assert (own.hr_projector is not None) == ("HR" in row)
        assert (len(own.lr_projectors) > 0) == ("multi" in row)


@pytest.mark.parametrize(
    ("m1", "m2", "k"), [(2, 1, 1), (2, 1, 6), (4, 1, 3), (8, 1, 3), (4, 2, 3), (8, 2, 7), (8, 4, 3)]
)
def test_compression_multiples_and_expand_layers_of_figure_8(m1, m2, k):
    config = full_size_geometry(1 / m1, 8, lvtc_config={"expand_layer": k, "downsample_ratio": 1 / m2})
    assert tokens_per_layer(config) == [(32 // m1) ** 2] * k + [(32 // m2) ** 2] * (8 - k)


def test_the_default_expand_layer_is_the_paper_s_for_24_and_32_layers():
    for layers, k in ((24, 17), (32, 23), (2, 1)):
        config = full_size_geometry(0.5, layers, lvtc_config={})
        assert config.lvtc_config.expand_layer == k
