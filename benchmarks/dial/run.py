"""Elastic checkpoints against specialists, and merging without training, on the digit study's pages of one tile.

python benchmarks/dial/run.py [--seeds 0 1] [--quick | --report-only]

A run trains one seed's specialists and elastic models from the digit study's base of the same number, measures all rows, and writes
benchmarks/results/dial. It goes on with the first seed that is missing; two processes may share the seeds. `--quick` takes a few steps, to test the code.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "ablation"))
from claims_page import write_page
from settings import CURRICULUM, QUICK, Configuration, Schedule, base_folder, pvtc
from task import Collator, build_processor, cached_samples
from training import RUN_PAGES, evaluate, in_order_of, make_base, pages_of, stages_of, start_from, train

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration
from internvlx_hf.cost import CostModel, ModelSetup
from internvlx_hf.modeling.merge_mean import merge_mean
from internvlx_hf.modeling.merge_rules import MERGE_RULES
from internvlx_hf.processing.image_settings import ImageSettings
from internvlx_hf.training.size_sampling import size_of_step

RESULTS = Path("benchmarks/results/dial")
SIZES = ("16", "4")  # of a tile, the default first
# name -> (weights of `SIZES`, how many times a specialist's steps)
TRAININGS = {
    "specialist 16": ({0: 1.0}, 1),
    "specialist 4": ({1: 1.0}, 1),
    "elastic": ({0: 1.0, 1: 1.0}, 2),
    "elastic 3:1": ({0: 1.0, 1: 3.0}, 2),
}
LAYERS = (2, 4, 6)  # k, of 8
PROMPT_TOKENS = 7  # of a page's prompt, besides the image's, on average


class SizedCollator(Collator):
    """Batches whose tiles have one size, drawn as a training's steps are."""

    def __init__(self, processor, weights: dict[int, float], seed: int):
        super().__init__(processor, 1)
        self.weights, self.seed, self.step = weights, seed, 0

    def __call__(self, samples):
        size = size_of_step(self.weights, self.seed, self.step)
        self.step += 1
        self.tokens = int(SIZES[size])
        batch = super().__call__(samples)
        return batch | {"tile_sizes": torch.full((len(batch["pixel_values"]),), size)}


def build(processor, state: dict | None = None, **sizes) -> InternVLXForConditionalGeneration:
    """A model of the study with PVTC and sizes of a tile, with some weights."""
    settings = Configuration(window=2, projector=pvtc()).model_settings(
        vocab_size=len(processor.tokenizer),
        bos_token_id=None,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    config = InternVLXConfig(image_token_id=processor.image_token_id, **settings | sizes)
    model = InternVLXForConditionalGeneration(config)
    if state is not None:
        model.load_state_dict(state)
    return model


def train_sizes(name: str, schedule: Schedule, seed: int, cache: Path) -> InternVLXForConditionalGeneration:
    """One of `TRAININGS` from the base of the seed."""
    weights, times = TRAININGS[name]
    stages = stages_of(Configuration(stage2_times=times), schedule)
    count = sum(steps for _, steps, _, _ in stages) * schedule.batch
    samples = in_order_of(
        seed, cached_samples(cache, "train", count, "one", "whole", RUN_PAGES, curriculum=CURRICULUM)
    )
    processor, first = build_processor(), 0
    transformers.set_seed(seed)
    model, collator = build(processor, tokens_per_tile=list(SIZES)), SizedCollator(processor, weights, seed)
    start_from(model, base_folder("one", seed, schedule, cache))
    for _, steps, rate, trained in stages:
        for parameter, value in model.named_parameters():
            value.requires_grad_(parameter.startswith(trained))
        part, first = samples[first : first + steps * schedule.batch], first + steps * schedule.batch
        train(model, part, collator, steps, rate, schedule.batch, cache / "trainer-dial")
    return model


def reads(model, samples: list, size: int = 0, rule: str = "mean") -> float:
    """Share of the digits read at one of the model's sizes, in percent."""
    own = model.config.sizes[size]

    def generate(**inputs):
        sizes = torch.full((len(inputs["pixel_values"]),), size)
        return model.generate(**inputs, tile_sizes=sizes, merge_rule=rule)

    # what `evaluate` uses of a model
    tokens = SimpleNamespace(image_seq_length=own.before, expanded_image_seq_length=max(own.after, 1))
    at_size = SimpleNamespace(config=tokens, eval=model.eval, generate=generate)
    return 100 * evaluate(at_size, samples)["all"]


class Pooled(nn.Module):
    """A projector whose tokens are averaged before the language model: what needs neither training nor this package."""

    def __init__(self, projector: nn.Module):
        super().__init__()
        self.projector = projector

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return merge_mean(self.projector(features), 2)


def measure(schedule: Schedule, seed: int, cache: Path) -> dict[str, float]:
    """All rows of a seed: digits read in percent by row."""
    make_base("one", seed, schedule, cache)
    samples, rows, processor = pages_of("test", "one", "whole", "dense", schedule, cache), {}, build_processor()
    models = {}
    for name, (weights, _) in TRAININGS.items():
        start = time.process_time()
        models[name] = train_sizes(name, schedule, seed, cache)
        for size in weights:
            rows[f"{name.split(' 16')[0].split(' 4')[0]} at {SIZES[size]}"] = reads(models[name], samples, size)
        rows[f"CPU seconds of {name}"] = time.process_time() - start
    state = models["specialist 16"].state_dict()
    pooled = build(processor, state, tokens_per_tile=list(SIZES))
    pooled.model.multi_modal_projector = Pooled(pooled.model.multi_modal_projector)
    pooled.config.tokens_per_tile, pooled.config.downsample_ratio = None, 0.25
    rows["specialist pooled to 4"] = reads(pooled, samples)
    state = {name: value for name, value in state.items() if ".sizes." not in name}
    for k in LAYERS:
        model = build(processor, state, tokens_per_tile=["16", "16:4", "16:0"], merge_layer=k)
        for rule in MERGE_RULES:
            torch.manual_seed(seed)
            rows[f"{rule} at {k}"] = reads(model, samples, 1, rule)
        rows[f"dropped at {k}"] = reads(model, samples, 2)
    return {name: round(value, 3) for name, value in rows.items()}


def costs(schedule: Schedule) -> dict[str, tuple[float, int]]:
    """Of each row, MFLOPs of a prompt with a page before its answer, and the steps that its weights were trained."""
    processor, found = build_processor(), {}

    def add(row: str, size: str, times: int = 1, k: int | None = None) -> None:
        config = build(processor, tokens_per_tile=list(dict.fromkeys([SIZES[0], size])), merge_layer=k).config
        setup = ModelSetup.reading(row, config, ImageSettings(tokens_per_tile=size))
        steps = sum(steps for _, steps, _, _ in stages_of(Configuration(stage2_times=times), schedule))
        found[row] = CostModel(setup, PROMPT_TOKENS, dtype="float32").of_tiles(1).prefill_flops / 1e6, steps

    for name, (weights, times) in TRAININGS.items():
        for size in weights:
            add(f"{name.split(' 16')[0].split(' 4')[0]} at {SIZES[size]}", SIZES[size], times)
    add("specialist pooled to 4", "4")
    for k in LAYERS:
        for rule in MERGE_RULES:
            add(f"{rule} at {k}", *(("16",) if rule == "knock_out" else ("16:4", 1, k)))
        add(f"dropped at {k}", "16:0", 1, k)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(8)), help="bases (default: 0 to 7)")
    parser.add_argument(
        "--cache", type=Path, default=Path("out/ablation"), help="the digit study's folder (default: out/ablation)"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of one seed, into out/")
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    schedule, results, seeds = Schedule(), RESULTS, args.seeds
    if args.quick:
        args.cache = args.cache.with_name(f"{args.cache.name}-quick")
        schedule, results, seeds = replace(QUICK, test_pages=4), args.cache / "dial", [0]
    results.mkdir(parents=True, exist_ok=True)
    file = results / "runs.json"

    def finished() -> dict[str, dict]:
        return json.loads(file.read_text()) if file.exists() else {}

    for seed in seeds:
        if str(seed) not in finished() and not args.report_only:
            rows = measure(schedule, seed, args.cache)
            runs = finished() | {str(seed): rows}  # another process may have added its own
            file.write_text(json.dumps(dict(sorted(runs.items())), indent=1) + "\n")
    write_page(results / "README.md", finished(), costs(schedule))
    print(results / "README.md")


if __name__ == "__main__":
    main()
