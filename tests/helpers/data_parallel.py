"""The same training in two processes as in one with twice the batch, by the HF `Trainer` alone."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed
from transformers import Trainer, TrainingArguments

from tiny import LVTC, tiny_batch, tiny_model

CASES = {"lvtc_off": {}, "lvtc_on": LVTC}
# Samples of three steps of four. With two processes the second has text alone in step one, both have in step two.
LAYOUTS = [
    *([[3, "tile", 5], [2, "tile", "tile", 6], [9], [12]]),
    *([[8], [9], [10], [11]]),
    *([[7], ["tile", 4], [2, "tile", 9], [5]]),
]


class Samples(torch.utils.data.Dataset):
    """Layouts as samples: `input_ids` (L,), `labels` (L,) with a loss on every token of text, `pixel_values`."""

    def __init__(self, config, layouts):
        batches = [tiny_batch(config, [layout], seed=i) for i, layout in enumerate(layouts)]
        self.samples = [
            {
                "input_ids": batch["input_ids"][0],
                "labels": batch["input_ids"][0].where(batch["input_ids"][0] != config.image_token_id, -100),
                "pixel_values": batch.get("pixel_values"),
            }
            for batch in batches
        ]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    def pad(name, value):
        return torch.nn.utils.rnn.pad_sequence([s[name] for s in samples], batch_first=True, padding_value=value)

    batch = {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100)}
    batch["attention_mask"] = (
        torch.arange(batch["input_ids"].shape[1]) < torch.tensor([[len(s["input_ids"])] for s in samples])
    ).long()
    pixels = [s["pixel_values"] for s in samples if s["pixel_values"] is not None]
    return batch | ({"pixel_values": torch.cat(pixels)} if pixels else {})


class InOrder(Trainer):
    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train(out: Path, case: str, batch_size: int) -> dict[str, torch.Tensor]:
    """The weights and losses after an epoch with gradients as they are: plain SGD."""
    model = tiny_model(projector_config={"drop_path_rate": 0.0}, **CASES[case])
    arguments = TrainingArguments(
        out / case,
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        optim="sgd",
        learning_rate=0.05,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("pixel_values") is not None), with_kwargs=True
    )
    trainer = InOrder(model, arguments, train_dataset=Samples(model.config, LAYOUTS), data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return weights | {"losses": torch.tensor(losses), "steps with images": torch.tensor(seen)}


def train_all(out: Path) -> None:
    """One process's part of all cases, in `out/<case>.<rank>.safetensors`."""
    for case in CASES:
        result = train(out, case, batch_size=2)
        result["world size"] = torch.tensor(distributed.get_world_size())
        assert distributed.get_backend() == "gloo"
        save_file(result, out / f"{case}.{distributed.get_rank()}.safetensors")
