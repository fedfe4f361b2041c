"""Draw docs/lvtc.png: what LVTC costs layer by layer, at the geometry of InternVL2-2B.

python docs/draw_lvtc.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from internvlx_hf import InternVLXConfig

TEXT, BYTES = 64, 2  # text tokens around the image; bfloat16
INTERNVL2_2B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 92553,
}
WAYS = {
    "256 tokens in every layer": ({"downsample_ratio": 0.5}, "#b8c4cc", 7),
    "1024 tokens in every layer": ({"downsample_ratio": 1.0}, "#e6a49c", 7),
    "LVTC: 256, then 1024": ({"downsample_ratio": 0.5, "lvtc_config": {}}, "#1f6f8b", 2.5),
}


def tokens_per_layer(config: InternVLXConfig) -> list[int]:
    k = config.text_config.num_hidden_layers if config.lvtc_config is None else config.lvtc_config.expand_layer
    tokens = (config.image_seq_length, config.expanded_image_seq_length)
    return [TEXT + tokens[layer >= k] for layer in range(config.text_config.num_hidden_layers)]


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for label, (kwargs, colour, linewidth) in WAYS.items():
        config = InternVLXConfig(
            text_config=INTERNVL2_2B,
            image_token_id=92546,
            projector_config={"projector_type": "pixel_shuffle"},
            **kwargs,
        )
        text = config.text_config
        tokens = tokens_per_layer(config)
        kilobytes = [2 * n * text.num_key_value_heads * text.head_dim * BYTES / 1024 for n in tokens]
        layers = range(len(tokens))
        left.step(layers, tokens, where="mid", color=colour, linewidth=linewidth, label=label)
        total = f"{label} ({sum(kilobytes) / 1024:.0f} MiB)"
        right.step(layers, kilobytes, where="mid", color=colour, linewidth=linewidth, label=total)
        if config.lvtc_config is not None:
            k = config.lvtc_config.expand_layer
            left.text(
                k - 0.8,
                (tokens[0] + tokens[-1]) / 2,
                f"expand before layer {k}:\nupsample 16×16 → 32×32,\nadd the HR tokens",
                color=colour,
                ha="right",
                va="center",
                fontsize=9,
            )
            inserted = config.lvtc_config.insertion_layers
            left.plot(
                inserted, [tokens[0]] * len(inserted), "o", color=colour, label="LR tokens added before the layer"
            )
    left.set_title(f"Tokens that a layer sees (one tile, {TEXT} text tokens)")
    left.set_ylabel("tokens")
    right.set_title("Keys and values that a layer keeps (bfloat16)")
    right.set_ylabel("KiB")
    for axis in (left, right):
        axis.set_xlabel("layer")
        axis.set_ylim(0, None)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 0.02), frameon=False)
    figure.savefig(Path(__file__).with_name("lvtc.png"), dpi=110)


if __name__ == "__main__":
    main()
