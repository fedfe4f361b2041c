"""A model whose answers are chosen by its number of image tokens, so that a test knows what each setting changes."""

from types import SimpleNamespace

import pytest
import torch

from image_cases import random_image
from internvlx_hf.evaluation.answering import Answerer
from tiny import tiny_model, tiny_processor

TOKENS = 16  # of a tile


class Oracle:
    """Stands in for `generate`: `reply` gets the number of a row's tiles and of the rows of its batch.

    Attributes:
        asked: number of rows that were answered.
        stop_after: raise KeyboardInterrupt instead of answering more rows than this.
    """

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.reply = lambda tiles, rows: "yes"
        self.asked, self.stop_after = 0, None

    def __call__(self, input_ids, max_new_tokens, **kwargs):
        if self.stop_after is not None and self.asked + len(input_ids) > self.stop_after:
            raise KeyboardInterrupt
        self.asked += len(input_ids)
        tiles = ((input_ids == self.model.config.image_token_id).sum(1) // TOKENS).tolist()
        merged = " merged" * ("tile_sizes" in kwargs)  # answers change where a tile's tokens do
        texts = [self.reply(count, len(tiles)) + merged + "<|im_end|>" for count in tiles]
        replies = [self.tokenizer(text, add_special_tokens=False)["input_ids"][:max_new_tokens] for text in texts]
        padded = self.tokenizer.pad({"input_ids": replies}, padding_side="right", return_tensors="pt")["input_ids"]
        logits = torch.nn.functional.one_hot(padded, self.model.config.text_config.vocab_size) * 9.0
        return SimpleNamespace(sequences=torch.cat([input_ids, padded], 1), logits=tuple(logits.unbind(1)))


@pytest.fixture
def oracle(monkeypatch):
    """The stand-in, of a model that `load_answerer` returns in tunings: InternVL's own slicing, at most 6 tiles."""
    model = tiny_model("qwen2")
    processor = tiny_processor(model.config, max_patches=6, slicing="ratio")
    found = Oracle(model, processor.tokenizer)
    monkeypatch.setattr(model, "generate", found)
    monkeypatch.setattr("internvlx_hf.tuning.run.load_answerer", lambda *_, **__: Answerer(model, processor))
    return found


@pytest.fixture
def photos(tmp_path):
    """Writes images of different pixels: of one tile by their size, of six and a thumbnail by InternVL's slicing."""

    def write(count, folder="photos", size=(30, 20)):
        (tmp_path / folder).mkdir(exist_ok=True)
        for number in range(count):
            random_image(*size, seed=number).save(tmp_path / folder / f"{number:03}.png")
        return str(tmp_path / folder)

    return write
