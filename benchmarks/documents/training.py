"""Training and evaluation of bases and runs."""

import copy
import json
import os
import resource
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from corpus import load_corpus, versions
from evidence.hidden_image import hide_image
from filelock import FileLock
from language import make_language_model
from lessons import ONE_TILE, BaseLessons, RunLessons, StepCollator, evaluation_pages, question, with_tokens
from models import ProjectorPerWindow, assemble, load
from pages import Page
from reading import letters_right, words_right
from settings import EXPAND_LAYER, FINE_WINDOW, PATCH, BaseSchedule, Row, RunSchedule, base_folder
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tower import TOKEN_HEAD, make_tower
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

import internvlx_hf
from internvlx_hf.checkpoints.atomic_folder import atomic_folder
from internvlx_hf.data import InternVLXDataCollator
from internvlx_hf.evaluation import Answerer
from internvlx_hf.training.arguments import InternVLXTrainingArguments
from internvlx_hf.training.trainer import InternVLXTrainer

SAVE_STEPS = 150  # of a base: some minutes
EXAMPLES = 8  # answers that a record keeps, for the picture
SECONDS = "cpu_seconds.json"
LONGEST = 1.6  # tokens of an answer at most but for its end, times those of the longest text
PROJECTORS, TOWER = "model.multi_modal_projector", "model.vision_tower"


class WindowTrainer(InternVLXTrainer):
    """Trains a model with a `ProjectorPerWindow`; a batch says its window."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        model.model.multi_modal_projector.window = int(inputs.pop("window"))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class SecondsOfSteps(TrainerCallback):
    """Counts the computing time of a training that may be stopped and resumed."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.process_time()
        self.before = json.loads(self.path.read_text()) if state.global_step and self.path.exists() else 0.0

    def on_save(self, args, state, control, **kwargs):
        self.path.write_text(json.dumps(self.before + time.process_time() - self.started))


def training_arguments(
    folder: Path, steps: int, batch: int, rates: BaseSchedule | RunSchedule, has_lvtc: bool, **other
):
    fast = {PROJECTORS: rates.projector_rate, **({"model.lvtc": rates.projector_rate} if has_lvtc else {})}
    return InternVLXTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
        learning_rate=rates.rate,
        learning_rates={TOWER: rates.tower_rate, **fast},
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": int(rates.decay_share * steps)},
        warmup_steps=max(1, min(30, steps // 10)),
        weight_decay=0.02,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=True,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
        use_cpu=True,
        **other,
    )


@contextmanager
def fast_attention():
    """PyTorch's fused attention takes several times longer on a CPU in bfloat16, backwards."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def make_base(cache: Path, seed: int, schedule: BaseSchedule) -> Path:
    """The base of a seed: a checkpoint with the projector of 4N tokens. Of two processes that need it, one waits."""
    folder = base_folder(cache, seed, schedule)
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{folder.name}.lock"):
            if not folder.exists():
                train_base(folder, seed, schedule)
    return folder


def train_base(folder: Path, seed: int, schedule: BaseSchedule) -> None:
    """Train a base and save it to `folder`. A stopped training resumes."""
    cache = folder.parent
    language, work = make_language_model(cache), cache / f"{folder.name}-training"
    with fast_attention():
        tower = make_tower(cache, language, seed, schedule.tower)
        if not (start := work / "start").exists():
            work.mkdir(parents=True, exist_ok=True)
            assemble(start, tower, language, Row(window=FINE_WINDOW), seed)
        trainer = base_trainer(start, tower, load_corpus(cache)["train"], seed, schedule)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(work))
    model, projectors = trainer.model, trainer.model.model.multi_modal_projector
    own = json.loads((tower / "tower.json").read_text())
    record = {
        "validation": validate(trainer, load_corpus(cache)["validation"], schedule),
        "losses": _losses(trainer),
        "tower": own,
        "cpu_seconds": own["cpu_seconds"] + json.loads((work / SECONDS).read_text()),
        "peak_gigabytes": peak_gigabytes(),
        "versions": all_versions(),
    }
    with atomic_folder(folder) as unfinished:
        model.model.multi_modal_projector = projectors.of_window[str(FINE_WINDOW)]
        model.save_pretrained(unfinished)
        trainer.processing_class.save_pretrained(unfinished)
        (unfinished / "base.json").write_text(json.dumps(record), encoding="utf-8")
    shutil.rmtree(work)


def base_trainer(start: Path, tower: Path, paragraphs: list[str], seed: int, schedule: BaseSchedule) -> WindowTrainer:
    """The training of an assembled checkpoint, which gets a projector for each window."""
    model, processor = load(start)
    set_seed(seed)
    embeddings = model.get_input_embeddings().weight
    head = nn.Linear(model.config.vision_config.hidden_size, embeddings.shape[1])
    head.load_state_dict(torch.load(tower / TOKEN_HEAD))
    norm = embeddings.norm(dim=-1).median().item()
    model.model.multi_modal_projector = ProjectorPerWindow(model.config, schedule.windows, head, norm)
    saving = {"logging_steps": 30, "save_steps": SAVE_STEPS, "save_total_limit": 1, "seed": seed}
    return WindowTrainer(
        model=model,
        args=training_arguments(start.parent, schedule.steps, 1, schedule, False, **saving),
        train_dataset=BaseLessons(paragraphs, processor, schedule, seed),
        data_collator=StepCollator(processor, schedule.windows),
        processing_class=processor,
        callbacks=[SecondsOfSteps(start.parent / SECONDS)],
    )


def validate(trainer: WindowTrainer, paragraphs: list[str], schedule: BaseSchedule) -> dict[str, dict]:
    """What a base reads with each of its windows."""
    model, found = copy.deepcopy(trainer.model).eval().to(torch.bfloat16), {}
    pages = evaluation_pages(paragraphs, schedule.validation_pages)
    for window in schedule.windows:
        model.model.multi_modal_projector.window = window
        processor = with_tokens(trainer.processing_class, window)
        found[f"M = {window}"] = result = evaluate(model, processor, pages)
        print(f"base {trainer.args.seed}, M = {window}: {result}", flush=True)
    return found


def run(row: Row, schedule: RunSchedule, seed: int, cache: Path, split: str = "test") -> dict:
    """Train and evaluate a row, and return its record."""
    base = make_base(cache, seed, schedule.base)
    paragraphs, work = load_corpus(cache), cache / f"run-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        assemble(work / "start", base, base, row, seed)
        model, processor = load(work / "start")
        if row.is_hidden:
            hide_image(model, range(EXPAND_LAYER))
        set_seed(seed)
        cpu = time.process_time()
        trainer = InternVLXTrainer(
            model=model,
            args=training_arguments(
                work,
                schedule.steps,
                schedule.batch,
                schedule,
                row.lvtc is not None,
                logging_steps=max(1, schedule.steps // 20),
                save_strategy="no",
                seed=seed,
            ),
            train_dataset=RunLessons(paragraphs["train"], schedule, seed),
            data_collator=InternVLXDataCollator(processor),
        )
        trainer.remove_callback(PrinterCallback)  # which prints every log entry
        with fast_attention():
            trainer.train()
        trained = time.process_time()
    finally:
        shutil.rmtree(work)
    model.eval().to(torch.bfloat16)
    count, few = schedule.test_pages, schedule.control_pages
    texts, words = evaluation_pages(paragraphs[split], count), evaluation_pages(paragraphs[split], few, random=True)
    result = {
        "paragraphs": evaluate(model, processor, texts, schedule.test_batch),
        "random_words": evaluate(model, processor, words, schedule.test_batch),
        "wrong_image": evaluate(model, processor, texts[:few], schedule.test_batch, shown=texts[1 : few + 1]),
    }
    for name, window in (("windows", row.window), ("expanded windows", row.expanded_window)):
        parts = row.tile // PATCH // window
        result[f"cut by {name}"] = round(float(np.mean([page.share_cut(parts) for page in texts])), 5)
    return {
        "base": seed,
        **result,
        "losses": _losses(trainer),
        "cpu_seconds": {"training": round(trained - cpu, 1), "evaluation": round(time.process_time() - trained, 1)},
        "peak_gigabytes": peak_gigabytes(),
        "split": split,
        "versions": all_versions(),
    }


def evaluate(model, processor, pages: list[Page], batch: int = 32, shown: list[Page] | None = None) -> dict:
    """Words and letters right in greedy answers, and the loss of the true ones; `shown` are other pages to show instead."""
    shown = pages if shown is None else shown
    answerer, reads, losses, tokens = Answerer(model, processor, ONE_TILE), [], 0.0, 0
    longest = max(len(processor.tokenizer(page.text)["input_ids"]) for page in pages)
    with fast_attention():
        for first in range(0, len(pages), batch):
            part = slice(first, first + batch)
            conversations = [question(page.image) for page in shown[part]]
            answers = answerer.answer(conversations, max_new_tokens=1 + int(LONGEST * longest), do_sample=False)
            reads += [answer.text for answer in answers]
            scores = answerer.score(conversations, [page.text for page in pages[part]])
            losses += sum(score.loss * score.num_tokens for score in scores)
            tokens += sum(score.num_tokens for score in scores)
    truths = [page.text for page in pages]
    return {
        "words": round(words_right(truths, reads), 5),
        "letters": round(letters_right(truths, reads), 5),
        "loss": round(losses / tokens, 5),
        "pages": len(pages),
        "words_in_all": sum(len(text.split()) for text in truths),
        "read": reads[:EXAMPLES],
    }


def _losses(trainer) -> list[float]:
    return [round(float(entry["loss"]), 4) for entry in trainer.state.log_history if "loss" in entry]


def peak_gigabytes() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def all_versions() -> dict[str, str]:
    """The versions of what computes, and of the packages whose docstrings are read."""
    return versions() | {module.__name__: module.__version__ for module in (transformers, internvlx_hf)}
