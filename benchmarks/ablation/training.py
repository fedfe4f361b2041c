"""One run: a new projector on the common base, trained in the paper's two stages and evaluated."""

import json
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import transformers
from settings import LAYERS, PATCHES, Configuration, Schedule
from task import BLOCK, TILE, Collator, Sample, build_processor, cached_samples, share_in_place
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

import internvlx_hf
from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration
from internvlx_hf.checkpoints.atomic_folder import atomic_folder
from internvlx_hf.modeling.pixel_shuffle import patch_windows

VISION_WIDTH, WIDTH = 64, 96
LONGEST_ANSWER = 21  # tokens
CURRICULUM = 0.75  # share of a training that goes from easy to hard pages, see `make_samples`
RUN_PAGES, BASE_PAGES, TEST_PAGES = 0, 100, 1000  # seeds of pages: the same for every run
BASE = Configuration(window=2)  # pixel shuffle by 2x2, as in InternVL2


class AveragePooling(nn.Module):
    """The mean of each window, then a two-layer MLP: (B, 1 + S², C), CLS first -> (B, N², D). A baseline."""

    def __init__(self, config: InternVLXConfig):
        super().__init__()
        self.side = round(1 / config.downsample_ratio)
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        pooled = patch_windows(features, self.side).mean(2)
        return self.linear_2(nn.functional.gelu(self.linear_1(pooled)))


def build_model(configuration: Configuration, processor) -> InternVLXForConditionalGeneration:
    tokenizer, averages = processor.tokenizer, configuration.projector["projector_type"] == "average"
    config = InternVLXConfig(
        vision_config={
            "hidden_size": VISION_WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 3 * VISION_WIDTH,
            "image_size": TILE,
            "patch_size": TILE // PATCHES,
            "use_absolute_position_embeddings": True,
            "layer_scale_init_value": 1.0,
            "initializer_range": 0.06,
        },
        text_config={
            "model_type": "qwen3",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": WIDTH // 4,
            "intermediate_size": 2 * WIDTH,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 200.0},  # prompts are short
            "initializer_range": 0.06,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=processor.image_token_id,
        downsample_ratio=1 / configuration.window,
        projector_config={"projector_type": "pixel_shuffle"} if averages else configuration.projector,
        lvtc_config=configuration.lvtc,
    )
    model = InternVLXForConditionalGeneration(config)
    if averages:
        model.model.multi_modal_projector = AveragePooling(config)
        model.model.multi_modal_projector.apply(model._init_weights)
    return model


def train(model, samples: list[Sample], collator: Collator, steps: int, rate: float, batch: int, folder: Path):
    """Train the parameters that require gradients, and return the mean loss of each twentieth of the steps."""
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
        learning_rate=rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": int(0.4 * steps)},
        warmup_steps=0.05,
        weight_decay=0.05,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=max(1, steps // 20),
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, data_collator=collator, train_dataset=samples)
    trainer.remove_callback(PrinterCallback)  # which prints every log entry
    trainer.train()
    return [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]


def make_base(schedule: Schedule, cache: Path) -> Path:
    """The tower and language model that every run starts from, trained once."""
    steps, rate, batch = (schedule.base_steps, schedule.base_tiled_steps), schedule.base_rate, schedule.batch
    folder = cache / f"base-{steps[0]}-{steps[1]}-{rate}-{batch}"
    if not (folder / "model.safetensors").exists():
        with atomic_folder(folder) as unfinished:
            processor = build_processor()
            collator = Collator(processor, (PATCHES // BASE.window) ** 2)
            set_seed(0)
            model = build_model(BASE, processor)
            # none of these pages is in a run, but the handwriting samples are the same
            pages = cached_samples(cache, "train", steps[0] * batch, "whole", BASE_PAGES, CURRICULUM)
            losses = train(model, pages, collator, steps[0], rate, batch, cache / f"trainer-{os.getpid()}")
            # a tower trained on whole pages only needs longer than a run to learn the scales of tiles
            tiled = [
                cached_samples(cache, "train", steps[1] * batch // 3, slicing, BASE_PAGES + number, CURRICULUM)
                for number, slicing in enumerate(("whole", "edge", "ratio"), start=1)
            ]
            pages = [
                page
                for first in range(0, len(tiled[0]), batch)
                for part in tiled
                for page in part[first : first + batch]
            ]
            losses += train(model, pages, collator, steps[1], rate, batch, cache / f"trainer-{os.getpid()}")
            accuracy = {}
            for slicing in ("whole", "edge", "ratio"):
                validation = cached_samples(cache, "validation", schedule.test_pages, slicing, TEST_PAGES)
                accuracy[slicing] = evaluate(model, processor, validation, collator)
            print(f"base: losses {losses}, on validation pages {accuracy}", flush=True)
            model.save_pretrained(unfinished)
            (unfinished / "base.json").write_text(json.dumps({"losses": losses, "validation": accuracy}))
    return folder


def start_from(model: nn.Module, base: Path) -> None:
    """Load the base's tower and language model. Projectors keep their random initial values."""
    trained = transformers.modeling_utils.load_state_dict(base / "model.safetensors")
    trained = {name: tensor for name, tensor in trained.items() if "multi_modal_projector" not in name}
    missing, unexpected = model.load_state_dict(trained, strict=False)
    fresh = ("model.multi_modal_projector", "model.lvtc")
    if unexpected or not all(name.startswith(fresh) for name in missing):
        raise ValueError(f"The base in {base.name} does not fit: missing {missing}, unexpected {unexpected}.")


def in_order_of(seed: int, pages: list[Sample]) -> list[Sample]:
    """The pages in the order of a seed: blocks swap places with near ones, which are equally hard."""
    blocks = [pages[first : first + BLOCK] for first in range(0, len(pages), BLOCK)]
    places = np.arange(len(blocks)) + np.random.default_rng(seed).uniform(0, 10, len(blocks))
    return [page for block in np.argsort(places) for page in blocks[block]]


def run(configuration: Configuration, schedule: Schedule, seed: int, cache: Path, split: str = "test") -> dict:
    """Train and evaluate a configuration, and return its record."""
    base = make_base(schedule, cache)
    processor = build_processor(configuration.slicing)
    pages = in_order_of(
        seed, cached_samples(cache, "train", schedule.pages, configuration.slicing, RUN_PAGES, CURRICULUM)
    )
    test = cached_samples(cache, split, schedule.test_pages, configuration.slicing, TEST_PAGES)
    set_seed(seed)
    model = build_model(configuration, processor)
    start_from(model, base)
    collator = Collator(processor, model.config.image_seq_length)

    wall, cpu = time.perf_counter(), time.process_time()
    projectors = ("model.multi_modal_projector", "model.lvtc")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(projectors))
    stage1 = schedule.stage1_steps * schedule.batch
    losses = [
        train(
            model,
            pages[:stage1],
            collator,
            schedule.stage1_steps,
            schedule.stage1_rate,
            schedule.batch,
            cache / f"trainer-{os.getpid()}",
        )
    ]
    model.requires_grad_(True)
    losses.append(
        train(
            model,
            pages[stage1:],
            collator,
            schedule.stage2_steps,
            schedule.stage2_rate,
            schedule.batch,
            cache / f"trainer-{os.getpid()}",
        )
    )
    training = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return {
        "accuracy": evaluate(model, processor, test, collator),
        **{name: round(seconds, 2) for name, seconds in training.items()},
        "evaluation_seconds": round(time.perf_counter() - wall - training["wall_seconds"], 2),
        **measure(model, test, collator),
        "losses": {"stage1": losses[0], "stage2": losses[1]},
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, internvlx_hf)},
    }


@torch.no_grad()
def evaluate(model, processor, samples: list[Sample], collator: Collator) -> dict:
    """Share of the digits that greedy decoding reads correctly at their place; `all` is the mean of both kinds of question."""
    model.eval()
    prompts = Collator(processor, collator.tokens, for_generation=True)
    accuracy, by_tiles = {}, defaultdict(list)
    for kind in ("transcription", "question"):
        asked = [sample for sample in samples if sample.kind == kind]
        inputs = prompts(asked)
        longest = LONGEST_ANSWER if kind == "transcription" else 10
        generated = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        read = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        shares = [share_in_place(sample.answer, text) for sample, text in zip(asked, read, strict=True)]
        for sample, share in zip(asked, shares, strict=True):
            by_tiles[len(sample.pixel_values)].append(share)
        accuracy[kind] = fmean(shares)
        accuracy[f"{kind}_exact"] = fmean(
            sample.answer == text.strip() for sample, text in zip(asked, read, strict=True)
        )
    accuracy["all"] = (accuracy["transcription"] + accuracy["question"]) / 2
    return {
        **{name: round(share, 5) for name, share in accuracy.items()},
        "by_tiles": {tiles: round(fmean(shares), 5) for tiles, shares in sorted(by_tiles.items())},
    }


@torch.no_grad()
def measure(model, samples: list[Sample], collator: Collator) -> dict[str, float]:
    """Tiles and visual tokens per page in both stages of the language model, FLOPs per page, and parameters."""
    model.eval()
    tiles = sum(len(sample.pixel_values) for sample in samples) / len(samples)
    few = samples[:32]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**collator(few))
    return {
        "tiles": tiles,
        "tokens": tiles * model.config.image_seq_length,
        "expanded_tokens": tiles * model.config.expanded_image_seq_length,
        "mean_tokens": tiles * _mean_over_layers(model.config),
        "forward_mflops": round(counter.get_total_flops() / len(few) / 1e6, 3),
        "parameters": model.num_parameters(),
    }


def _mean_over_layers(config: InternVLXConfig) -> float:
    k = LAYERS if config.lvtc_config is None else config.lvtc_config.expand_layer
    return (k * config.image_seq_length + (LAYERS - k) * config.expanded_image_seq_length) / LAYERS
