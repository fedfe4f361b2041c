"""Prompts and samples that are longer than the language model's positions are counted: by `cost`, and in training."""

import csv
import io
import json

import pytest
import torch

from internvlx_hf.cli import main
from internvlx_hf.training import InternVLXDataCollator
from internvlx_hf.training.metrics import samples_past_limit
from lvtc_cases import KEPT, STEEP
from metered_training import train
from tiny import tiny_batch, tiny_config, tiny_model, tiny_processor
from training_helpers import run, save_checkpoint

SIZES = ["--size", "32x32", "--size", "96x96"]


def cost(capsys, folder, *arguments) -> str:
    assert main(["cost", "--model", str(folder), "--slicing", "edge", "--max-patches", "9", *arguments, *SIZES]) == 0
    return capsys.readouterr().out


@pytest.fixture
def checkpoint(tmp_path):
    """96x96 pixels are 10 tiles: 40 tokens of the prompt, 640 after the expansion."""

    def make(limit):
        config = tiny_config("llama", text_config={"max_position_embeddings": limit}, **STEEP)
        config.save_pretrained(tmp_path)
        tiny_processor(config).save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "past"), [(71, 2), (72, 1), (647, 1), (648, 0)])
def test_cost_says_which_prompts_pass_the_limit_of_positions(limit, past, checkpoint, capsys):
    folder, tokens = checkpoint(limit), ["--text-tokens", "6", "--answer-tokens", "3"]
    text = " ".join(cost(capsys, folder, *tokens).split())
    line = f"Over the limit: {past} of 2 prompts with their answer, with slicing 'edge', at most 9 tiles, pvtc and with LVTC, take "
    assert (line + f"up to 648 positions; the language model supports {limit}." in text) == bool(past)
    setting = json.loads(cost(capsys, folder, *tokens, "--json"))["settings"][0]
    assert (setting["position_limit"], setting["prompts_past_limit"]) == (limit, past)
    assert [prompt["positions"] for prompt in setting["prompts"]] == [64 + 6 + 2, 640 + 6 + 2]
    rows = list(csv.DictReader(io.StringIO(cost(capsys, folder, *tokens, "--csv"))))
    assert rows[1]["positions"] == "648"


@pytest.mark.parametrize(("limit", "past"), [(131, 2), (132, 1), (70, 2), (66, 2), (65, 3), (2, 4)])
def test_samples_past_the_limit_are_counted_padded_and_packed(limit, past):
    config = tiny_config("llama", text_config={"max_position_embeddings": limit}, **STEEP)
    # in stage two 132, 3, 66 and 152 tokens
    layouts = [[3, "tile", 1, "tile"], [3], [2, "tile"], [20, "tile", 4, "tile"]]
    for side in ("left", "right"):
        batch = tiny_batch(config, layouts, padding_side=side)
        assert samples_past_limit(config, batch["input_ids"], batch["attention_mask"], None) == past
    rows = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    assert samples_past_limit(config, torch.cat(rows)[None], None, positions) == past


@pytest.mark.parametrize(
    ("ratio", "positions"), [(1.0, 67), (0.25, 7)], ids=["stage two is shorter", "kept positions"]
)
def test_samples_past_the_limit_are_counted_in_stage_one(ratio, positions):
    settings = {"downsample_ratio": 0.25} if ratio == 1 else KEPT
    lvtc = {"downsample_ratio": ratio, "lvtc_config": STEEP["lvtc_config"] | settings}
    batch_config = tiny_config("llama", **lvtc)
    batch = tiny_batch(batch_config, [[3, "tile"], [4]])
    for limit, past in ((positions - 1, 1), (positions, 0)):
        config = tiny_config("llama", text_config={"max_position_embeddings": limit}, **lvtc)
        assert samples_past_limit(config, batch["input_ids"], batch["attention_mask"], None) == past


def test_samples_past_the_limit_are_in_the_logs_of_a_training(tmp_path):
    limit = 100
    model = tiny_model("llama", text_config={"max_position_embeddings": limit}, **STEEP)
    collate = InternVLXDataCollator(tiny_processor(model.config, max_patches=3, slicing="edge"))
    scalars, batches = train(tmp_path, model, collate)
    gain = model.config.expanded_image_seq_length / model.config.image_seq_length - 1
    past = []
    for batch in batches:
        placeholders = (batch["input_ids"] == model.config.image_token_id).sum(1)
        past.append(int((batch["attention_mask"].sum(1) + gain * placeholders > limit).sum()))
    assert 0 < sum(past) < 12
    seen = scalars["train/samples_past_limit_seen"]
    assert [seen[step] for step in (2, 4, 6)] == [sum(past[:step]) for step in (2, 4, 6)]


def test_measured_samples_past_the_limit_are_warned_of_before_training(tmp_path, caplog):
    save_checkpoint(tmp_path / "base", text_config={"max_position_embeddings": 48})
    run(tmp_path, train_sampling_strategy="group_by_cost", max_steps=1, save_strategy="no")
    told = [
        record.getMessage() for record in caplog.records if "take more than the 48 positions" in record.getMessage()
    ]
    assert len(told) == 1
