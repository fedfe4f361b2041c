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
from baselines import BASELINES, resized_positions
from settings import (
    BASES,
    CLS_LOSS,
    CURRICULUM,
    DECAY,
    FAMILIES,
    LAYERS,
    MAIN,
    OPTIMISER,
    TILE,
    Configuration,
    Schedule,
    base_row,
)
from task import BLOCK, KINDS, Collator, Sample, build_processor, cached_samples, share_in_place
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

import internvlx_hf
from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration
from internvlx_hf.checkpoints.atomic_folder import atomic_folder

LONGEST_ANSWER = 72  # tokens: eight rows of eight digits, and the ends of lines
RUN_PAGES, BASE_PAGES, TEST_PAGES = 0, 100, 1000  # seeds of pages: the same for every run
BASE_SLICINGS = ("whole", "edge", "ratio")  # of pages of several tiles
NEW_MODULES = ("model.multi_modal_projector", "model.lvtc")


def build_model(configuration: Configuration, processor, seed: int = 0) -> InternVLXForConditionalGeneration:
    """The model of a configuration. `seed` chooses the tokens that random pruning keeps."""
    tokenizer, kind = processor.tokenizer, configuration.projector["projector_type"]
    settings = configuration.model_settings(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if kind in BASELINES:
        settings["projector_config"] = {"projector_type": "pixel_shuffle"}
    config = InternVLXConfig(image_token_id=processor.image_token_id, **settings)
    model = InternVLXForConditionalGeneration(config)
    if kind in BASELINES:
        projector = BASELINES[kind](config, model.model.vision_tower, seed)
        projector.apply(model._init_weights)
        model.model.multi_modal_projector = projector
    return model


def train(
    model,
    samples: list[Sample],
    collator: Collator,
    steps: int,
    rate: float,
    batch: int,
    folder: Path,
    trainer_class: type[Trainer] = Trainer,
) -> list[float]:
    """Train the parameters that require gradients, and return the mean loss of each twentieth of the steps."""
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
        learning_rate=rate,
        lr_scheduler_kwargs={"num_decay_steps": int(DECAY * steps)},
        logging_steps=max(1, steps // 20),
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=True,
        **OPTIMISER,
    )
    trainer = trainer_class(model=model, args=arguments, data_collator=collator, train_dataset=samples)
    trainer.remove_callback(PrinterCallback)  # which prints every log entry
    trainer.train()
    return [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]


def share_loss(logits: torch.Tensor, counts: torch.Tensor, tiles: list[int]) -> torch.Tensor:
    """Cross-entropy between the digits' shares of each page, from `counts` (pages, 10), and the mean prediction of its tiles.

    `logits` (tiles, 10) are those of all pages' tiles, `tiles` their number on each page.
    """
    predicted = torch.stack([part.mean(0) for part in logits.softmax(-1).split(tiles)])
    return -(counts / counts.sum(1, keepdim=True) * predicted.log()).sum(1).mean()


def summary(outputs) -> torch.Tensor:
    """What a tower says of a whole tile, (tiles, C): its pooled output, or its CLS token."""
    pooled = getattr(outputs, "pooler_output", None)
    return outputs.last_hidden_state[:, 0] if pooled is None else pooled


class CountingTrainer(Trainer):
    """Also teaches the tower's CLS token, from which `model.counter` predicts the shares of the digits on the page.

    Towers come with a CLS token that is trained on whole images. PVTC's global query and pruning by CLS attention need it.
    Towers with a pooled output (CLIP and SigLIP, whose trainings read the image from it) learn to count there.
    """

    def compute_loss(self, model, inputs, return_outputs=False, **arguments):
        counts, tiles, features = inputs.pop("counts"), inputs.pop("tiles"), []
        hook = model.model.vision_tower.register_forward_hook(lambda _, __, output: features.append(summary(output)))
        loss = super().compute_loss(model, inputs, **arguments)
        hook.remove()
        return loss + CLS_LOSS * share_loss(model.counter(features[0]), counts, tiles.tolist())


def base_folder(pages: str, number: int, schedule: Schedule, cache: Path, family: str = MAIN) -> Path:
    kind, training = f"{pages}-{KINDS[pages].key()}", f"{schedule.base_steps}-{schedule.base_rate}-{schedule.batch}"
    if family != MAIN:
        kind = f"{family}-{FAMILIES[family].key()}-{kind}"
    return cache / f"base-{kind}-{number}-{training}"


def make_bases(bases: list[tuple[str, int]], schedule: Schedule, cache: Path, family: str = MAIN) -> None:
    """Train the missing bases, given as kind of page and number. A base that another process trains is waited for."""

    def missing(base: tuple[str, int]) -> bool:
        return not (base_folder(*base, schedule, cache, family) / "base.json").exists()

    while bases := list(filter(missing, bases)):
        for pages, number in bases:
            try:
                train_base(pages, number, schedule, cache, family)
            except (BlockingIOError, FileExistsError):
                time.sleep(1)


def base_samples(pages: str, number: int, schedule: Schedule, cache: Path) -> list[Sample]:
    """The pages of a base's training, with batches cut in each way in turn where pages have several tiles.

    None of the pages is in a run, but the handwriting samples are the same.
    """
    slicings, batch = BASE_SLICINGS if KINDS[pages].tiled else ("whole",), schedule.batch
    count = schedule.base_steps // len(slicings) * batch
    in_turn = [
        cached_samples(cache, "train", count, pages, slicing, TILE, BASE_PAGES + 10 * number + part, CURRICULUM)
        for part, slicing in enumerate(slicings)
    ]
    return [sample for first in range(0, count, batch) for part in in_turn for sample in part[first : first + batch]]


def train_base(pages: str, number: int, schedule: Schedule, cache: Path, family: str = MAIN) -> None:
    """Train the tower and language model that runs on a kind of page start from.

    For pages of several tiles, it goes on from the base for dense pages: a new model does not learn to read these pages.
    """
    if KINDS[pages].tiled:
        make_bases([("dense", number)], schedule, cache, family)
    with atomic_folder(base_folder(pages, number, schedule, cache, family)) as unfinished:
        processor = build_processor()
        set_seed(number)
        model = build_model(base_row(family), processor)
        collator = Collator(processor, model.config.image_seq_length, with_counts=True)
        if KINDS[pages].tiled:
            start_from(model, base_folder("dense", number, schedule, cache, family))
        model.counter = nn.Linear(model.config.vision_config.hidden_size, 10)
        samples, folder = base_samples(pages, number, schedule, cache), cache / f"trainer-{os.getpid()}"
        steps, start = len(samples) // schedule.batch, time.process_time()
        losses = train(model, samples, collator, steps, schedule.base_rate, schedule.batch, folder, CountingTrainer)
        seconds = time.process_time() - start
        accuracy = {}
        for slicing in BASE_SLICINGS if KINDS[pages].tiled else ("whole",):
            validation = cached_samples(cache, "validation", schedule.test_pages, pages, slicing, TILE, TEST_PAGES)
            accuracy[slicing] = evaluate(model, processor, validation, collator)
        print(
            f"base {family} {pages} {number}: losses {losses}, on validation pages {accuracy}, {seconds:.0f} s",
            flush=True,
        )
        del model.counter
        model.save_pretrained(unfinished)
        record = {"losses": losses, "validation": accuracy, "cpu_seconds": round(seconds, 2)}
        (unfinished / "base.json").write_text(json.dumps(record))


def start_from(model: nn.Module, base: Path) -> None:
    """Load the base's tower and language model. Projectors keep their random initial values."""
    trained = transformers.modeling_utils.load_state_dict(base / "model.safetensors")
    trained = {name: tensor for name, tensor in trained.items() if "multi_modal_projector" not in name}
    positions = "model.vision_tower.embeddings.position_embeddings"
    if positions in trained:
        trained[positions] = resized_positions(trained[positions], model.config.patch_grid)
    missing, unexpected = model.load_state_dict(trained, strict=False)
    if unexpected or not all(name.startswith(NEW_MODULES) for name in missing):
        raise ValueError(f"The base in {base.name} does not fit: missing {missing}, unexpected {unexpected}.")


def in_order_of(seed: int, pages: list[Sample]) -> list[Sample]:
    """The pages in the order of a seed: blocks swap places with near ones, which are equally hard."""
    blocks = [pages[first : first + BLOCK] for first in range(0, len(pages), BLOCK)]
    places = np.arange(len(blocks)) + np.random.default_rng(seed).uniform(0, 10, len(blocks))
    return [page for block in np.argsort(places) for page in blocks[block]]


def run(configuration: Configuration, schedule: Schedule, seed: int, cache: Path, split: str = "test") -> dict:
    """Train and evaluate a configuration, and return its record."""
    base = (configuration.pages, seed % BASES)
    make_bases([base], schedule, cache, configuration.family)
    processor = build_processor(configuration.slicing, configuration.tile)
    steps = {"stage1": schedule.stage1_steps, "stage2": schedule.stage2_steps * configuration.stage2_times}
    seen = (configuration.pages, configuration.slicing, configuration.tile)
    count = sum(steps.values()) * schedule.batch
    samples = in_order_of(seed, cached_samples(cache, "train", count, *seen, RUN_PAGES, CURRICULUM))
    test = cached_samples(cache, split, schedule.test_pages, *seen, TEST_PAGES)
    set_seed(seed)
    model = build_model(configuration, processor, seed)
    start_from(model, base_folder(*base, schedule, cache, configuration.family))
    collator = Collator(processor, model.config.image_seq_length)

    wall, cpu = time.perf_counter(), time.process_time()
    first, losses = steps["stage1"] * schedule.batch, {}
    for stage, rate, part in (
        ("stage1", schedule.stage1_rate, samples[:first]),
        ("stage2", schedule.stage2_rate, samples[first:]),
    ):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(stage == "stage2" or name.startswith(NEW_MODULES))
        folder = cache / f"trainer-{os.getpid()}"
        losses[stage] = train(model, part, collator, steps[stage], rate, schedule.batch, folder)
    training = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    accuracy = evaluate(model, processor, test, collator)
    return {
        "base": seed % BASES,
        "accuracy": accuracy,
        **{name: round(seconds, 2) for name, seconds in training.items()},
        "evaluation_seconds": round(time.process_time() - cpu - training["cpu_seconds"], 2),
        **measure(model, test, collator),
        "losses": losses,
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
        longest = LONGEST_ANSWER if kind == "transcription" else 14
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
