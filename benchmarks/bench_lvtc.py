"""LVTC against dense models of 256 and 1024 tokens per tile: 24 layers, k = 17, 64 text tokens, with the vision tower.

Every ratio of times is printed next to the ratio of FLOPs, or of bytes moved, for the same geometry.

    python benchmarks/bench_lvtc.py [--width 256] [--tiles 1 5] [--repeats 3] [--only prefill train ...]
"""

import argparse
from dataclasses import dataclass

import torch
from rows import Row, run_script
from timing import print_table, time_alternately, use_one_thread
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    InternVLConfig,
    InternVLForConditionalGeneration,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration
from internvlx_hf.modeling.layout import read_layout
from internvlx_hf.modeling.lvtc_layout import Tiles, lay_out
from internvlx_hf.modeling.lvtc_masks import make_masks
from internvlx_hf.modeling.lvtc_rows import take_rows
from internvlx_hf.modeling.merge_mean import merge_mean
from internvlx_hf.modeling.tile_tokens import ImageTokens

LAYERS, EXPAND, TEXT = 24, 17, 64
EXPLICIT = "sdpa_with_masks"  # SDPA that is always given a mask
AttentionInterface.register(EXPLICIT, sdpa_attention_forward)
AttentionMaskInterface.register(EXPLICIT, lambda **kwargs: sdpa_mask(**{**kwargs, "allow_is_causal_skip": False}))
WAYS = {
    "dense-256": {"downsample_ratio": 0.5},
    "dense-1024": {"downsample_ratio": 1.0},
    "LVTC": {"downsample_ratio": 0.5, "lvtc_config": {"expand_layer": EXPAND}},
}


def sub_configs(width: int) -> dict:
    vision = {
        "hidden_size": width // 2,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 24,
        "num_attention_heads": max(1, width // 128),
        "image_size": 448,
        "patch_size": 14,
    }
    text = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": max(1, width // 128),
        "num_key_value_heads": max(1, width // 256),
        "vocab_size": 8192,
        "tie_word_embeddings": False,
    }
    return {"vision_config": vision, "text_config": text}


def build(width: int, device: str, dtype: torch.dtype, **kwargs) -> InternVLXForConditionalGeneration:
    config = InternVLXConfig(
        **sub_configs(width), image_token_id=5, projector_config={"projector_type": "pixel_shuffle"}, **kwargs
    )
    torch.manual_seed(0)
    return InternVLXForConditionalGeneration(config).to(device, dtype).eval()


def inputs_of(config, tiles: int, device: str, dtype: torch.dtype, text: int = TEXT) -> dict[str, torch.Tensor]:
    image = torch.full((1, tiles * config.image_seq_length), config.image_token_id)
    ids = torch.cat([image, torch.randint(10, config.text_config.vocab_size, (1, text))], dim=1).to(device)
    pixel_values = torch.randn(tiles, 3, 448, 448, device=device, dtype=dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixel_values}


def layer_lengths(config, tiles: int, text: int = TEXT) -> list[int]:
    before, after = config.image_seq_length, config.expanded_image_seq_length
    k = LAYERS if config.lvtc_config is None else EXPAND
    return [text + tiles * (before if i < k else after) for i in range(LAYERS)]


def flops_of(run, config, tiles: int, backward: bool = False) -> float:
    """Matrix products as torch counts them, attention as it is needed: causal in the language model."""
    with FlopCounterMode(display=False) as counter:
        run()
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    vision = config.vision_config
    attention = 4 * tiles * (config.patch_grid**2 + 1) ** 2 * vision.hidden_size * vision.num_hidden_layers
    attention += sum(2 * n * (n + 1) * config.text_config.hidden_size for n in layer_lengths(config, tiles))
    return products + attention * (3 if backward else 1)


def cache_bytes(config, tiles: int, item: int) -> int:
    text = config.text_config
    return sum(2 * n * text.num_key_value_heads * text.head_dim * item for n in layer_lengths(config, tiles))


@dataclass(frozen=True)
class Comparison:
    """Seconds of two variants; `cost` is the ratio of their FLOPs or bytes, `target` the largest allowed ratio of times."""

    name: str
    ways: str
    seconds: float
    others: float
    cost: float | str
    target: float

    @property
    def row(self) -> Row:
        return Row(f"{self.name}, {self.ways}", self.seconds / self.others, target=self.target)

    def cells(self) -> list:
        ratio, target = self.seconds / self.others, f"<= {self.target:.3f}"
        return [self.name, self.ways, self.seconds, self.others, ratio, self.cost, target, self.row.verdict]


def compare(name: str, seconds: dict, costs: dict, ours: str, other: str, slack: float = 1.1) -> Comparison:
    cost = costs[ours] / costs[other]
    return Comparison(name, f"{ours} / {other}", seconds[ours], seconds[other], cost, slack * cost)


def bench_prefill(models, tiles, args) -> list[Comparison]:
    inputs = {way: inputs_of(model.config, tiles, args.device, args.dtype) for way, model in models.items()}

    @torch.no_grad()
    def run(way):
        return models[way](**inputs[way], logits_to_keep=1)

    flops = {way: flops_of(lambda w=way: run(w), models[way].config, tiles) for way in models}
    seconds = time_alternately({way: lambda w=way: run(w) for way in models}, args.repeats)
    name = f"prefill, {tiles} tile(s)"
    return [compare(name, seconds, flops, "LVTC", other) for other in ("dense-1024", "dense-256")]


def bench_train(models, tiles, args) -> list[Comparison]:
    inputs = {way: inputs_of(model.config, tiles, args.device, args.dtype) for way, model in models.items()}

    def run(way):
        models[way].train()
        labels = inputs[way]["input_ids"].where(inputs[way]["input_ids"] != 5, -100)
        models[way](**inputs[way], labels=labels).loss.backward()
        models[way].zero_grad()
        models[way].eval()

    ways = ("LVTC", "dense-1024")
    flops = {way: flops_of(lambda w=way: run(w), models[way].config, tiles, backward=True) for way in ways}
    seconds = time_alternately({way: lambda w=way: run(w) for way in ways}, args.repeats)
    return [compare(f"training step, {tiles} tile(s)", seconds, flops, "LVTC", "dense-1024")]


def bench_decode(models, tiles, args) -> list[Comparison]:
    """A step with a dynamic cache; its bytes are the language model's weights and the cache, each read once."""
    caches, bytes_moved, steps = {}, {}, {}
    token = torch.full((1, 1), 7, device=args.device)
    item = args.dtype.itemsize
    with torch.no_grad():
        for way in ("LVTC", "dense-256"):
            model = models[way]
            cache = model(**inputs_of(model.config, tiles, args.device, args.dtype), logits_to_keep=1).past_key_values
            held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            predicted = cache_bytes(model.config, tiles, item)
            if held != predicted:
                raise RuntimeError(f"{way}: the cache holds {held} bytes, its token counts say {predicted}")
            weights = (
                sum(p.nbytes for p in model.model.language_model.layers.parameters()) + model.lm_head.weight.nbytes
            )
            caches[way], bytes_moved[way] = cache, weights + held

            def step(model=model, cache=cache):
                with torch.no_grad():
                    for _ in range(10):
                        model(input_ids=token, past_key_values=cache)
                    cache.crop(-10)

            steps[way] = step
    seconds = time_alternately(steps, max(args.repeats, 7))
    return [compare(f"10 decode steps, {tiles} tile(s)", seconds, bytes_moved, "LVTC", "dense-256")]


def bench_expansion(models, tiles, args) -> list[Comparison]:
    """Planning, masks, upsampling and scattering, as a share of the prefill."""
    model = models["LVTC"]
    config, text, lvtc = model.config, model.config.text_config, model.model.lvtc
    inputs = inputs_of(config, tiles, args.device, args.dtype)
    placeholders = inputs["input_ids"] == 5
    hidden = torch.randn(*placeholders.shape, text.hidden_size, device=args.device, dtype=args.dtype)
    hr = torch.randn(tiles, config.expanded_image_seq_length, text.hidden_size, device=args.device, dtype=args.dtype)
    sizes, first = list(config.sizes), hr[:, : config.image_seq_length]
    tokens = ImageTokens(sizes, first, first.flatten(0, 1), hr=hr)

    @torch.no_grad()
    def expand():
        layout = read_layout(config, hidden, inputs["attention_mask"], None, None, {}, will_expand=True)
        plan = lay_out(config, layout, Tiles(placeholders, sizes * tiles), None)
        make_masks(text, plan, hidden, None)
        (row_map,) = plan.row_maps
        rows, _ = lvtc.expand(take_rows(hidden, row_map.tiles), torch.zeros_like(row_map.tiles), tokens, 1, merge_mean)
        row_map.undo(row_map.place(hidden.flatten(0, 1), rows))

    @torch.no_grad()
    def prefill():
        model(**inputs, logits_to_keep=1)

    seconds = time_alternately({"expansion": expand, "prefill": prefill}, args.repeats)
    return [Comparison(f"expansion, {tiles} tile(s)", "expansion / prefill", *seconds.values(), "-", 0.02)]


def bench_packing(models, tiles, args) -> list[Comparison]:
    """A training step of four samples with lengths 1:4, as one packed row and as a padded batch."""
    model = models["LVTC"]
    samples = [inputs_of(model.config, 1, args.device, args.dtype, text=n) for n in (64, 256, 512, 1024)]
    samples = [s if i else {**s, "input_ids": s["input_ids"][:, -64:]} for i, s in enumerate(samples)]
    pixel_values = torch.cat([s["pixel_values"] for s in samples[1:]])
    rows = [s["input_ids"][0] for s in samples]
    packed = {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(r)) for r in rows])[None].to(args.device),
    }
    padded_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    lengths = torch.tensor([len(r) for r in rows])[:, None]
    mask = (torch.arange(padded_ids.shape[1]) < lengths).long().to(args.device)
    padded = {"input_ids": padded_ids, "attention_mask": mask}

    def run(batch):
        model.train()
        labels = batch["input_ids"].where((batch["input_ids"] != 5) & (batch["input_ids"] != 0), -100)
        model(**batch, pixel_values=pixel_values, labels=labels, use_cache=False).loss.backward()
        model.zero_grad()
        model.eval()

    seconds = time_alternately({"packed": lambda: run(packed), "padded": lambda: run(padded)}, args.repeats)
    share = int(mask.sum()) / mask.numel()
    return [Comparison("packed training step", "packed / padded", *seconds.values(), share, 1.0)]


def bench_masks(models, tiles, args) -> list[Comparison]:
    """A training step on right-padded rows of n and n // 2 tiles, by default and with explicit masks in both stages."""
    model = models["LVTC"]
    samples = [inputs_of(model.config, n, args.device, args.dtype) for n in (tiles, tiles // 2) if n]
    ids = torch.nn.utils.rnn.pad_sequence([s["input_ids"][0] for s in samples], batch_first=True, padding_value=0)
    pixel_values = torch.cat([s["pixel_values"] for s in samples])
    labels = ids.where((ids != 5) & (ids != 0), -100)
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixel_values, "labels": labels}
    masks = {}

    def note(module, _, kwargs):
        mask = kwargs["attention_mask"]
        if mask is not None:
            masks[mask.data_ptr()] = mask.nbytes

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in model.model.language_model.layers]
    held = {}

    def run(way):
        masks.clear()
        model.set_attn_implementation({"text_config": "sdpa" if way == "no masks" else EXPLICIT})
        model.train()
        model(**batch, use_cache=False).loss.backward()
        model.zero_grad()
        model.eval()
        held[way] = sum(masks.values())

    seconds = time_alternately({way: lambda w=way: run(w) for way in ("no masks", "masks")}, args.repeats)
    for hook in hooks:
        hook.remove()
    model.set_attn_implementation({"text_config": "sdpa"})
    print(f"masks of {tiles} tile(s): " + ", ".join(f"{way} {size / 2**20:.1f} MiB" for way, size in held.items()))
    return [Comparison(f"padded training step, {tiles} tile(s)", "no masks / masks", *seconds.values(), "-", 1.0)]


def bench_native(models, tiles, args) -> list[Comparison]:
    """Without LVTC, against transformers' own InternVL with the same weights' shapes."""
    ours = models["dense-256"]
    native = InternVLForConditionalGeneration(
        InternVLConfig(**sub_configs(args.width), image_token_id=5, downsample_ratio=0.5, tie_word_embeddings=False)
    )
    native = native.to(args.device, args.dtype).eval()
    native.load_state_dict(ours.state_dict())
    inputs = inputs_of(ours.config, tiles, args.device, args.dtype)

    @torch.no_grad()
    def run(model):
        return model(**inputs, logits_to_keep=1).logits

    torch.testing.assert_close(run(ours), run(native))
    seconds = time_alternately({"ours": lambda: run(ours), "native": lambda: run(native)}, max(args.repeats, 7))
    return [compare(f"no LVTC, {tiles} tile(s)", seconds, {"ours": 1, "native": 1}, "ours", "native", slack=1.02)]


BENCHES = {
    "prefill": bench_prefill,
    "train": bench_train,
    "decode": bench_decode,
    "expansion": bench_expansion,
    "packing": bench_packing,
    "masks": bench_masks,
    "native": bench_native,
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=256, help="D of the language model; the tower's is half of it")
    parser.add_argument("--tiles", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(BENCHES), choices=list(BENCHES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    args.dtype = getattr(torch, args.dtype)
    use_one_thread()
    models = {way: build(args.width, args.device, args.dtype, **kwargs) for way, kwargs in WAYS.items()}
    print(f"width {args.width}, {LAYERS} layers, k = {EXPAND}, {TEXT} text tokens, {args.dtype}, {args.device}")
    comparisons = []
    for name in args.only:
        for tiles in args.tiles if name not in ("packing", "native") else args.tiles[:1]:
            comparisons += BENCHES[name](models, tiles, args)
    print_table(
        ["what", "ratio of", "seconds", "other's", "time ratio", "cost ratio", "target", ""],
        [c.cells() for c in comparisons],
    )
    return [comparison.row for comparison in comparisons]


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
