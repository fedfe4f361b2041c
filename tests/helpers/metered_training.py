"""A training whose clock the test moves, and what it logs."""

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback, TrainingArguments

from internvlx_hf.training.metrics import ThroughputCallback
from training_helpers import write_data

STEP, EVALUATION, SAVING = 2.0, 100.0, 1000.0  # seconds that they take by the test's clock


class Clock(TrainerCallback):
    def __init__(self):
        self.now = 5.0

    def __call__(self):
        return self.now

    def on_step_begin(self, *args, **kwargs):
        self.now += STEP

    def on_prediction_step(self, *args, **kwargs):
        self.now += EVALUATION


class SlowlySaving(Trainer):
    def _save_checkpoint(self, *args, **kwargs):
        self.callback_handler.callbacks[0].clock.now += SAVING
        super()._save_checkpoint(*args, **kwargs)


def train(folder, model, collate, steps=6, **kwargs):
    """A plain Trainer's run with TensorBoard: its scalars {name: {step: value}}, and the batches in order."""
    samples = [json.loads(line) for line in write_data(folder / "data", 14).read_text().splitlines()]
    batches, clock = [], Clock()

    def recorded(rows):
        batches.append(collate(rows))
        return batches[-1]

    arguments = {"per_device_train_batch_size": 2, "logging_steps": 2, "save_steps": 4, "use_cpu": True} | kwargs
    arguments = TrainingArguments(
        str(folder / "out"),
        max_steps=steps,
        report_to="tensorboard",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        disable_tqdm=True,
        **arguments,
    )
    trainer = SlowlySaving(
        model, arguments, train_dataset=samples, eval_dataset=samples[:2], data_collator=recorded, callbacks=[clock]
    )
    ThroughputCallback.attach(trainer, clock=clock)
    trainer.train()
    (log,) = (folder / "out" / "runs").iterdir()
    events = EventAccumulator(str(log)).Reload()
    scalars = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    return scalars, batches
