"""The vision tower, trained before it meets the language model: each patch names the letters and the token printed on it."""

import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from corpus import load_corpus
from pages import draw_page
from settings import GRID, PATCH, TILE, TowerSchedule, key_of
from torch import nn
from transformers import (
    AutoTokenizer,
    InternVLVisionConfig,
    InternVLVisionModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from internvlx_hf import InternVLXImageProcessor
from internvlx_hf.checkpoints.atomic_folder import atomic_folder
from internvlx_hf.checkpoints.weights import Weights

LETTERS = " " + "".join(map(chr, range(33, 127)))
BLANK_WEIGHT = 0.15  # of half-columns without a letter in the loss: most of a page
TOKENS = 12_000  # the commonest tokens of the training texts, which patches name
NAMED = 400  # patches of a batch that name a token, to save time
TOKEN_HEAD = "token_head.pt"
IGNORED = -100


def tower_config(tile: int = TILE) -> InternVLVisionConfig:
    return InternVLVisionConfig(
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=576,
        image_size=tile,
        patch_size=PATCH,
        use_absolute_position_embeddings=True,
        layer_scale_init_value=1.0,
        initializer_range=0.06,
    )


class PrintedTiles(torch.utils.data.Dataset):
    """Tiles with the letter in each half of a patch (a row of patches, 2 columns per patch), and the token of each patch."""

    def __init__(
        self, paragraphs: list[str], tokenizer: PreTrainedTokenizerFast, token_ids: list[int], count: int, seed: int
    ):
        self.paragraphs, self.tokenizer, self.count, self.seed = paragraphs, tokenizer, count, seed
        self.numbers = {token: number for number, token in enumerate(token_ids)}
        self.image_processor = InternVLXImageProcessor(size={"height": TILE, "width": TILE}, max_patches=1)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, index))
        page = draw_page(self.paragraphs, rng)
        width, height = page.image.size
        pixels = self.image_processor(page.image, return_tensors="pt")["pixel_values"][0]

        def letters_of(per_patch: int) -> np.ndarray:
            x = (np.arange(per_patch * GRID) + 0.5) / (per_patch * GRID) * width
            y = (np.arange(GRID)[:, None] + 0.5) / GRID * height
            return page.letters_at(x[None], y)

        codes = np.array([*map(LETTERS.index, page.text), 0])
        tokens = self.tokens_of_letters(page.text)
        return {
            "pixel_values": pixels,
            "letters": torch.from_numpy(codes[letters_of(2)]),  # (GRID, 2 GRID)
            "tokens": torch.from_numpy(tokens[letters_of(1)]),  # (GRID, GRID)
        }

    def tokens_of_letters(self, text: str) -> np.ndarray:
        """The number of each letter's token, and `IGNORED` at the end for no letter."""
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        tokens = np.full(len(text) + 1, IGNORED)
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            tokens[start:end] = self.numbers.get(token, IGNORED)
        return tokens


class NamingTower(nn.Module):
    """The tower with three heads: letters, tokens by the cosine with their frozen embeddings, and for the CLS token how often
    each letter is on the tile, since the CLS tokens of published towers know whole images. A base needs the second one."""

    def __init__(self, embeddings: torch.Tensor):
        super().__init__()
        self.tower = InternVLVisionModel(tower_config())
        width = self.tower.config.hidden_size
        self.letters = nn.Linear(width, 2 * len(LETTERS))
        self.tokens = nn.Linear(width, embeddings.shape[1])
        self.frequencies = nn.Linear(width, len(LETTERS))
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.register_buffer("embeddings", nn.functional.normalize(embeddings, dim=-1), persistent=False)

    def forward(
        self, pixel_values: torch.Tensor, letters: torch.Tensor, tokens: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        cls, features = self.tower(pixel_values=pixel_values).last_hidden_state.split(
            (1, GRID**2), dim=1
        )  # [B, GRID², C]
        logits = self.letters(features).unflatten(1, (GRID, GRID)).unflatten(-1, (2, -1)).flatten(2, 3).float()
        weights = torch.where(letters > 0, 1.0, BLANK_WEIGHT)
        losses = nn.functional.cross_entropy(logits.flatten(0, 2), letters.flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        counts = nn.functional.one_hot(letters.flatten(1), len(LETTERS)).float().sum(1)[:, 1:]
        frequencies = counts / counts.sum(-1, keepdim=True).clamp(min=1)
        loss = loss + 0.2 * nn.functional.cross_entropy(self.frequencies(cls[:, 0])[:, 1:].float(), frequencies)

        named = (tokens != IGNORED).flatten().nonzero().squeeze(1)
        if self.training:
            named = named[torch.randperm(len(named))[:NAMED]]
        directions = nn.functional.normalize(self.tokens(features.flatten(0, 1)[named]), dim=-1)
        similarities = (directions @ self.embeddings.T).float() * self.scale
        answers = tokens.flatten()[named]
        loss = loss + 0.5 * nn.functional.cross_entropy(similarities, answers)
        printed = letters > 0
        return {
            "loss": loss,
            "letters_right": ((logits.argmax(-1) == letters) & printed).sum() / printed.sum(),
            "tokens_right": (similarities.argmax(-1) == answers).float().mean(),
        }


def make_tower(cache: Path, language_model: Path, seed: int, schedule: TowerSchedule) -> Path:
    """The folder of the trained tower, made once."""
    folder = cache / f"tower-{seed}-{key_of(asdict(schedule))}"
    if folder.exists():
        return folder
    corpus, tokenizer = load_corpus(cache), AutoTokenizer.from_pretrained(language_model)
    counts = Counter(token for ids in tokenizer(corpus["train"])["input_ids"] for token in ids)
    token_ids = [token for token, _ in counts.most_common(TOKENS)]
    with atomic_folder(folder) as unfinished:
        set_seed(seed)
        model = NamingTower(Weights(language_model).read("model.embed_tokens.weight")[token_ids].float())
        tiles = PrintedTiles(corpus["train"], tokenizer, token_ids, schedule.steps * schedule.batch, seed)
        arguments = TrainingArguments(
            output_dir=unfinished,
            max_steps=schedule.steps,
            per_device_train_batch_size=schedule.batch,
            train_sampling_strategy="sequential",
            learning_rate=schedule.rate,
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs={"num_decay_steps": int(0.4 * schedule.steps)},
            warmup_steps=50 if schedule.steps > 100 else 1,
            weight_decay=0.05,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            bf16=True,
            logging_steps=max(1, schedule.steps // 20),
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=True,
        )
        started = time.process_time()
        Trainer(model=model, args=arguments, train_dataset=tiles).train()
        seconds = time.process_time() - started
        check = PrintedTiles(corpus["validation"], tokenizer, token_ids, 192, seed + 1)
        batch = torch.utils.data.default_collate([check[index] for index in range(len(check) // 2, len(check))])
        with torch.no_grad():
            result = model.eval()(**batch)
        record = {
            "cpu_seconds": seconds,
            "validation": {name: round(value.item(), 4) for name, value in result.items()},
        }
        print(f"tower {seed}: {record}", flush=True)
        model.tower.save_pretrained(unfinished)
        torch.save(model.tokens.state_dict(), unfinished / TOKEN_HEAD)
        tiles.image_processor.save_pretrained(unfinished)
        (unfinished / "tower.json").write_text(json.dumps(record), encoding="utf-8")
    return folder
