"""Layouts as samples of a `Trainer`."""

import torch

from tiny import tiny_batch


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
