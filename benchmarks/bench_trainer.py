"""A step of `internvlx train` against a bare forward, backward and optimizer step on the same batches.

Ours is the complete step: the Trainer with its loop, gradient clipping and state, a TensorBoard log at every step, token
counts, learning rates by module. The bare step is five lines. Both run in one process and alternate step by step on copies of
one model; the batches are collated in advance for both.

    python benchmarks/bench_trainer.py [--steps 12]
"""

import argparse
import copy
import statistics
import tempfile
import time

import torch
from rows import Row, run_script
from timing import print_table, use_one_thread
from transformers import Trainer, TrainerCallback, TrainingArguments

from internvlx_hf import InternVLXConfig, InternVLXForConditionalGeneration
from internvlx_hf.training.metrics import ThroughputCallback
from internvlx_hf.training.train import InternVLXTrainingArguments
from internvlx_hf.training.trainer import InternVLXTrainer

TEXT, SAMPLES = 60, 2


def build() -> InternVLXForConditionalGeneration:
    """29 million parameters, 448x448 tiles of 256 tokens, LVTC to 1024 in the last two of eight layers."""
    config = InternVLXConfig(
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "image_size": 448,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 8192,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
        },
        image_token_id=5,
        projector_config={"num_heads": 6, "drop_path_rate": 0.0},
        lvtc_config={"expand_layer": 6},
    )
    torch.manual_seed(0)
    return InternVLXForConditionalGeneration(config)


def batches_of(config: InternVLXConfig, count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        text = torch.randint(10, config.text_config.vocab_size, (SAMPLES, TEXT), generator=generator)
        image = torch.full((SAMPLES, config.image_seq_length), config.image_token_id)
        ids = torch.cat([image, text], dim=1)
        batches.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": ids.masked_fill(ids == config.image_token_id, -100),
                "pixel_values": torch.randn(SAMPLES, 3, 448, 448, generator=generator),
            }
        )
    return batches


class TakeTurns(TrainerCallback):
    """Runs a bare step after each of the Trainer's, and times both by this process's CPU time."""

    def __init__(self, model, batches):
        self.model, self.batches = model, batches
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.seconds = {"bare": [], "trainer": []}
        self.started = None

    def bare_step(self, batch) -> None:
        self.model.train()
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def on_step_begin(self, args, state, control, **kwargs):
        if self.started is None:  # the first step has no step before it
            self.started = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        # the Trainer's work after this callback, such as its log, counts with its next step
        now = time.process_time()
        self.seconds["trainer"].append(now - self.started)
        self.bare_step(self.batches[state.global_step - 1])
        self.started = time.process_time()
        self.seconds["bare"].append(self.started - now)


def take_steps(kind: str, model, batches) -> TakeTurns:
    """Run steps of a trainer and bare steps in turn; `kind` is "ours" or "plain"."""
    turns = TakeTurns(copy.deepcopy(model), batches)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "max_steps": len(batches),
            "per_device_train_batch_size": 1,
            "learning_rate": 1e-4,
            "logging_steps": 1,
            "report_to": "tensorboard",
            "save_strategy": "no",
            "disable_tqdm": True,
            "remove_unused_columns": False,
        }
        first = {"data_collator": lambda rows: rows[0], "train_dataset": batches, "callbacks": [turns]}
        if kind == "plain":
            trainer = Trainer(model, TrainingArguments(**settings, train_sampling_strategy="sequential"), **first)
        else:
            rates = {"learning_rates": {"model.lvtc": 2e-4}, "train_sampling_strategy": "sequential"}
            trainer = InternVLXTrainer(model, InternVLXTrainingArguments(**settings, **rates), **first)
            ThroughputCallback.attach(trainer)
        trainer.train()
    return turns


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    return parser


def measure(args: argparse.Namespace) -> list[Row]:
    use_one_thread()
    model = build()
    batches = batches_of(model.config, args.steps)
    table, rows = [], []
    for kind, name in (("ours", "internvlx train"), ("plain", "a plain Trainer")):
        seconds = take_steps(kind, copy.deepcopy(model), batches).seconds
        # the first two warm up
        pairs = list(zip(seconds["trainer"], seconds["bare"], strict=True))[2:]
        ratio = statistics.median(trainer / bare for trainer, bare in pairs)
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        table.append([name, *medians, f"{ratio - 1:+.1%}"])
        rows.append(Row(f"a training step, {name} / a bare step", ratio, target=1.05 if kind == "ours" else None))
    print(
        f"{model.num_parameters() / 1e6:.0f} million parameters, {SAMPLES} samples of a tile and {TEXT} tokens a step"
    )
    print_table(["", "s a step", "s a bare step", "overhead"], table)
    return rows


if __name__ == "__main__":
    run_script(__doc__, measure, make_parser())
