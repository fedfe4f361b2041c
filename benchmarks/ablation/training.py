"""One run: a new projector on the common base, trained in the paper's two stages and evaluated."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import transformers
from controls import CONTROLS
from evidence.hidden_image import knocked_out
from settings import (
    BASE_4N,
    BLANK_WEIGHT,
    CLS_LOSS,
    CURRICULUM,
    DECAY,
    FILLED,
    KINDS,
    OPTIMISER,
    PATCH_LOSS,
    Configuration,
    Schedule,
    base_folder,
)
from task import BLOCK, Collator, Sample, build_processor, cached_samples, make_samples, share_in_place
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

import internvlx_hf
from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration
from internvlx_hf.checkpoints.atomic_folder import atomic_folder

LONGEST_ANSWER, LONGEST_LINE = 24, 8  # tokens: three rows of four digits, and the ends of lines
RUN_PAGES, BASE_PAGES, TEST_PAGES = 0, 100, 1000  # seeds of pages: the same for every run
BASE_SLICINGS = {"one": ("whole",), "several": ("whole", "edge", "ratio")}  # of a base's batches, in turn
NEW_MODULES = ("model.multi_modal_projector", "model.lvtc")


def build_model(configuration: Configuration, processor) -> InternVLXForConditionalGeneration:
    """The model of a configuration, with new projectors that start as the library's do."""
    tokenizer = processor.tokenizer
    settings = configuration.model_settings(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = InternVLXForConditionalGeneration(InternVLXConfig(image_token_id=processor.image_token_id, **settings))
    if configuration.control:
        CONTROLS[configuration.control](model)
    return model


def train(
    model,
    samples: Sequence[Sample] | Dataset,
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


class TowerTrainer(Trainer):
    """Also teaches the tower what trained towers know: which digit is where, and, its CLS token, which are on the tile."""

    def compute_loss(self, model, inputs, return_outputs=False, **arguments):
        lessons = {name: inputs.pop(name) for name in ("counts", "tiles", "patches")}
        features: list[torch.Tensor] = []
        hook = model.model.vision_tower.register_forward_hook(
            lambda _, __, output: features.append(output.last_hidden_state)
        )
        loss = self.text_loss(model, inputs, **arguments)
        hook.remove()
        return loss + tower_loss(model, features[0], **lessons)

    def text_loss(self, model, inputs, **arguments):
        return super().compute_loss(model, inputs, **arguments)


class TowerAloneTrainer(TowerTrainer):
    """Teaches the tower, and not the language model."""

    def text_loss(self, model, inputs, **arguments):
        model.model.vision_tower(inputs["pixel_values"])
        return 0.0


def tower_loss(model, features: torch.Tensor, counts: torch.Tensor, tiles: torch.Tensor, patches: torch.Tensor):
    """The loss of `model.counter` on the CLS token and of `model.namer` on patches, from the features (tiles, 1 + S², C)."""
    weight = torch.tensor([1.0] * 10 + [BLANK_WEIGHT])
    named = nn.functional.cross_entropy(model.namer(features[:, 1:]).flatten(0, 1), patches.flatten(), weight)
    return CLS_LOSS * share_loss(model.counter(features[:, 0]), counts, tiles.tolist()) + PATCH_LOSS * named


def make_base(pages: str, number: int, schedule: Schedule, cache: Path) -> Path:
    """The folder of a base, which is trained if it is missing. A base that another process trains is waited for."""
    folder = base_folder(pages, number, schedule, cache)
    while not (folder / "base.json").exists():
        try:
            train_base(pages, number, schedule, cache)
        except (BlockingIOError, FileExistsError):
            time.sleep(10)
    return folder


class BasePages(Dataset):
    """The pages of a base's training, made when they are asked for, with batches cut in each way in turn.

    None of the pages is in a run, but the handwriting samples are the same.
    """

    def __init__(self, pages: str, number: int, schedule: Schedule):
        self.pages, self.slicings, self.batch = pages, BASE_SLICINGS[pages], schedule.batch
        self.steps = max(schedule.base_steps * KINDS[pages].base_times, schedule.tower_steps)
        self.seed, self.step, self.samples = BASE_PAGES + number, -1, []

    def __len__(self) -> int:
        return self.steps * self.batch

    def __getitem__(self, index: int) -> Sample:
        step, place = divmod(index, self.batch)
        if step != self.step:
            numbers = range(step * self.batch, (step + 1) * self.batch)
            slicing = self.slicings[step % len(self.slicings)]
            self.samples = make_samples(
                "train", len(self), self.pages, slicing, self.seed, curriculum=CURRICULUM, numbers=numbers
            )
            self.step = step
        return self.samples[place]


def train_base(pages: str, number: int, schedule: Schedule, cache: Path) -> None:
    """Train the tower and language model that runs on a kind of page start from.

    For pages of several tiles, it goes on from the base for those of one.
    """
    one = make_base("one", number, schedule, cache) if pages == "several" else None
    with atomic_folder(base_folder(pages, number, schedule, cache)) as unfinished:
        processor = build_processor()
        set_seed(number)
        model = build_model(BASE_4N, processor)
        if one is not None:
            start_from(model, one, NEW_MODULES)
        width = model.config.vision_config.hidden_size
        model.counter, model.namer = nn.Linear(width, 10), nn.Linear(width, 11)
        collator = Collator(processor, model.config.image_seq_length, for_towers=True)
        samples, folder = BasePages(pages, number, schedule), cache / f"trainer-{os.getpid()}"
        start = time.process_time()
        arguments = (schedule.base_rate, schedule.batch, folder)
        losses = []
        if one is None:
            losses += train(model, samples, collator, schedule.tower_steps, *arguments, TowerAloneTrainer)
        steps = schedule.base_steps * KINDS[pages].base_times
        losses += train(model, samples, collator, steps, *arguments, TowerTrainer)
        seconds = time.process_time() - start
        del model.counter, model.namer
        validation = {
            slicing: accuracies(model, pages, slicing, "validation", schedule, cache)
            for slicing in BASE_SLICINGS[pages]
        }
        print(f"base {pages} {number}: losses {losses}, {validation}, {seconds:.0f} s", flush=True)
        model.save_pretrained(unfinished)
        record = {"losses": losses, "validation": validation, "cpu_seconds": round(seconds, 2)}
        (unfinished / "base.json").write_text(json.dumps(record))


def start_from(model: nn.Module, base: Path, also: tuple[str, ...] = ()) -> None:
    """Load the base's tower and language model, and modules `also`. Other projectors keep their random initial values."""
    trained = transformers.modeling_utils.load_state_dict(base / "model.safetensors")
    trained = {name: tensor for name, tensor in trained.items() if also or not name.startswith(NEW_MODULES)}
    missing, unexpected = model.load_state_dict(trained, strict=False)
    if unexpected or not all(name.startswith(NEW_MODULES) for name in missing):
        raise ValueError(f"The base in {base.name} does not fit: missing {missing}, unexpected {unexpected}.")


def in_order_of(seed: int, pages: list[Sample]) -> list[Sample]:
    """The pages in the order of a seed: blocks swap places with near ones, which are equally hard."""
    blocks = [pages[first : first + BLOCK] for first in range(0, len(pages), BLOCK)]
    places = np.arange(len(blocks)) + np.random.default_rng(seed).uniform(0, 10, len(blocks))
    return [page for block in np.argsort(places) for page in blocks[block]]


def stages_of(configuration: Configuration, schedule: Schedule) -> list[tuple[str, int, float, tuple[str, ...]]]:
    """Name, steps, learning rate and prefixes of the trained parameters of each stage."""
    steps = schedule.stage2_steps * configuration.stage2_times
    return [
        ("stage1", schedule.stage1_steps, schedule.stage1_rate, NEW_MODULES),
        ("stage2", steps, schedule.stage2_rate, ("",)),
    ]


def train_row(configuration: Configuration, schedule: Schedule, seed: int, cache: Path):
    """Train a configuration in its stages: the model, and the losses of each stage."""
    base = make_base(configuration.pages, seed, schedule, cache)
    stages = stages_of(configuration, schedule)
    count = sum(steps for _, steps, _, _ in stages) * schedule.batch
    pages = (configuration.pages, configuration.slicing)
    samples = in_order_of(seed, cached_samples(cache, "train", count, *pages, RUN_PAGES, curriculum=CURRICULUM))
    processor = build_processor()
    set_seed(seed)
    model = build_model(configuration, processor)
    start_from(model, base)
    collator, first, losses = Collator(processor, model.config.image_seq_length), 0, {}
    for stage, steps, rate, trained in stages:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(trained))
        part = samples[first : first + steps * schedule.batch]
        first += len(part)
        losses[stage] = train(model, part, collator, steps, rate, schedule.batch, cache / f"trainer-{os.getpid()}")
    return model, losses


def run(
    configuration: Configuration, schedule: Schedule, seed: int, cache: Path, split: str = "test", measured=()
) -> dict:
    """Train and evaluate a configuration, and return its record. `measured`: see `untrained`."""
    make_base(configuration.pages, seed, schedule, cache)
    wall, cpu = time.perf_counter(), time.process_time()
    model, losses = train_row(configuration, schedule, seed, cache)
    training = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    pages = (configuration.pages, configuration.slicing)
    record = {
        "base": seed,
        "accuracy": accuracies(model, *pages, split, schedule, cache),
        **untrained(model, configuration, split, schedule, cache, measured),
        **{name: round(seconds, 2) for name, seconds in training.items()},
        **measure(model, pages_of(split, *pages, "dense", schedule, cache)),
        "losses": losses,
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, internvlx_hf)},
    }
    return record | {"evaluation_seconds": round(time.process_time() - cpu - training["cpu_seconds"], 2)}


def pages_of(
    split: str, pages: str, slicing: str, kind: str, schedule: Schedule, cache: Path, share: float = 1.0, **options
) -> list[Sample]:
    """The pages of an evaluation: `kind` is a key of `FILLED`, `share` the part of the schedule's number of pages."""
    count = max(2, int(share * schedule.test_pages))
    return cached_samples(cache, split, count, pages, slicing, TEST_PAGES, filled=FILLED[kind], **options)


def accuracies(model, pages: str, slicing: str, split: str, schedule: Schedule, cache: Path) -> dict[str, dict]:
    """What a model reads of dense pages and of half empty ones."""
    return {kind: evaluate(model, pages_of(split, pages, slicing, kind, schedule, cache)) for kind in FILLED}


def untrained(model, configuration: Configuration, split: str, schedule: Schedule, cache: Path, measured) -> dict:
    """What the model reads of dense pages in other ways than it was trained: `measured` has names of ways and their settings.

    A number is the layer from which on text does not see the image; a slicing comes with the most tiles of a page.
    """
    found = {}
    for name, way in dict(measured).items():
        pages = (split, configuration.pages)
        if isinstance(way, int):
            with knocked_out(model, way):
                found[name] = evaluate(model, pages_of(*pages, configuration.slicing, "dense", schedule, cache, 0.5))
        else:
            slicing, max_tiles = way
            found[name] = evaluate(model, pages_of(*pages, slicing, "dense", schedule, cache, max_tiles=max_tiles))
    return {"untrained": found} if found else {}


@torch.no_grad()
def evaluate(model, samples: list[Sample]) -> dict:
    """Share of the digits that greedy decoding reads correctly at their place; `all` is the mean of both kinds of question.

    Beside it tiles and visual tokens per page, and the shares of the digits that borders of tiles cut, and of windows.
    """
    model.eval()
    processor, config = build_processor(), model.config
    prompts = Collator(processor, config.image_seq_length, for_generation=True)
    accuracy = {}
    for kind, longest in (("transcription", LONGEST_ANSWER), ("question", LONGEST_LINE)):
        asked = [sample for sample in samples if sample.kind == kind]
        inputs = prompts(asked)
        generated = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        read = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        pairs = [(sample.answer, text) for sample, text in zip(asked, read, strict=True)]
        accuracy[kind] = fmean(share_in_place(*pair) for pair in pairs)
        accuracy[f"{kind}_exact"] = fmean(answer == text.strip() for answer, text in pairs)
    accuracy["all"] = (accuracy["transcription"] + accuracy["question"]) / 2
    tiles = fmean(len(sample.pixel_values) for sample in samples)
    windows = config.image_seq_length**-0.5, config.expanded_image_seq_length**-0.5
    for name, side in (("tiles", 1.0), ("windows", windows[0]), ("expanded windows", windows[1])):
        accuracy[f"cut by {name}"] = torch.cat([sample.is_cut(side) for sample in samples]).double().mean().item()
    return {name: round(share, 5) for name, share in accuracy.items()} | {"tiles": round(tiles, 4)}


@torch.no_grad()
def measure(model, samples: list[Sample]) -> dict[str, float]:
    """Visual tokens per page in both stages of the language model, FLOPs per page, and parameters."""
    model.eval()
    tiles = fmean(len(sample.pixel_values) for sample in samples)
    few, collator = samples[:32], Collator(build_processor(), model.config.image_seq_length)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**collator(few))
    return {
        "tiles": tiles,
        "tokens": tiles * model.config.image_seq_length,
        "expanded_tokens": tiles * model.config.expanded_image_seq_length,
        "forward_mflops": round(counter.get_total_flops() / len(few) / 1e6, 3),
        "parameters": model.num_parameters(),
    }
