"""Layouts as samples of a `Trainer`."""

from itertools import cycle

import torch

from dial_cases import dial_batch
from tiny import tiny_batch

OF_TILES = ("pixel_values", "tile_sizes")


class Samples(torch.utils.data.Dataset):
    """Layouts as samples: `input_ids` (L,), `labels` (L,) with a loss on every token of text, `pixel_values`.

    If a model offers several sizes, the tiles have them in turn, and samples also have `tile_sizes`.
    """

    def __init__(self, config, layouts):
        make = tiny_batch
        if config.tokens_per_tile is not None:
            make, names = dial_batch, cycle(config.tokens_per_tile)
            layouts = [[next(names) if part == "tile" else part for part in layout] for layout in layouts]
        batches = [make(config, [layout], seed=i) for i, layout in enumerate(layouts)]
        self.samples = [
            {
                "input_ids": batch["input_ids"][0],
                "labels": batch["input_ids"][0].where(batch["input_ids"][0] != config.image_token_id, -100),
                **{name: batch.get(name) for name in OF_TILES},
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
    tiles = {name: [s[name] for s in samples if s.get(name) is not None] for name in OF_TILES}
    return batch | {name: torch.cat(values) for name, values in tiles.items() if values}
