"""Padding-free packing: which samples share a row, and that a packed row trains as its samples do one by one.

Tolerances: float32; the loss to 1e-5, each gradient to a thousandth of its tensor's largest entry (its sums run over other
lengths in another order).
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from internvlx_hf.data.packing import pack_rows, pack_stream
from internvlx_hf.training import (
    InternVLXDataCollator,
    PackedData,
    PackedStream,
    load_training_data,
    measure_sizes,
)
from tiny import LVTC, TILE, tiny_model, tiny_processor

SETTINGS = {"plain": {}, "lvtc": LVTC}
TILES = [1, 0, 3, 2, 0, 4]  # heights of images in tiles (0: no image); those above 1 get a thumbnail


def make_model(name):
    return tiny_model(**SETTINGS[name], projector_config={"drop_path_rate": 0.0}).train()


@pytest.fixture(params=SETTINGS)
def model(request):
    return make_model(request.param)


@pytest.fixture
def annotations(tmp_path):
    records = []
    for i, tiles in enumerate(TILES):
        turns = [
            ("human", "What is it? " * (i + 1)),
            ("gpt", f"{i} of them"),
            ("human", "Why?"),
            ("gpt", "So. " * i + "."),
        ]
        record = {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}
        if tiles:
            pixels = np.random.default_rng(i).integers(0, 256, (TILE * tiles, TILE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
            record["image"] = f"{i}.png"
        records.append(record)
    path = tmp_path / "annotations.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def step(model, batches, num_items):
    """Loss and gradients of batches, token-weighted as the `Trainer` does it: each loss is a sum over `num_items`."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=num_items).loss
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(got, want):
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    assert got[1].keys() == want[1].keys()
    for name, gradient in want[1].items():
        scale = float(gradient.abs().max().clamp(min=1e-3))
        assert float((got[1][name] - gradient).abs().max()) <= 1e-3 * scale, name


def supervised(batch):
    return int((batch["labels"][:, 1:] != -100).sum())


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["map-style", "streaming"])
def test_packed_rows_train_as_their_samples_do_one_by_one(model, annotations, attention, kind):
    processor = tiny_processor(model.config)
    model.set_attn_implementation({"text_config": attention})
    data = load_training_data(annotations, processor)
    alone = [InternVLXDataCollator(processor)([data[i]]) for i in range(len(data))]
    num_items = sum(map(supervised, alone))
    if kind == "map-style":
        rows = PackedData(data, measure_sizes(data).tokens, budget=160)
        rows = [rows[i] for i in range(len(rows))]
    else:
        rows = list(PackedStream(load_training_data(annotations, processor, streaming=True), budget=160))
    assert max(map(len, rows)) > 1
    assert sum(map(len, rows)) == len(data)
    collator = InternVLXDataCollator(processor, packing=True)
    packed = [collator([row]) for row in rows]
    assert sum(map(supervised, packed)) == num_items
    want = step(model, alone, num_items)
    assert_same_step(step(model, packed, num_items), want)
    # all rows as one batch are one row, also with something behind it to fill it up
    filled = InternVLXDataCollator(processor, packing=True, pad_to_multiple_of=64)(rows)
    assert filled["input_ids"].shape[0] == 1
    assert filled["input_ids"].shape[1] % 64 == 0
    assert_same_step(step(model, [filled], num_items), want)


def test_the_arguments_of_flash_attention_bound_the_samples(annotations):
    processor = tiny_processor(make_model("lvtc").config)
    data = load_training_data(annotations, processor)
    samples = [data[i] for i in range(3)]
    batch = InternVLXDataCollator(processor, packing=True)(samples)
    lengths = [len(sample) for sample in samples]
    assert batch["cu_seq_lens_q"].tolist() == [0, *np.cumsum(lengths)]
    assert batch["cu_seq_lens_q"].dtype == batch["cu_seq_lens_k"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == max(lengths)
    assert batch["position_ids"].tolist() == [[position for length in lengths for position in range(length)]]
    assert "attention_mask" not in batch
    assert (batch["labels"][0, batch["cu_seq_lens_q"][:-1].long()] == -100).all()


def test_a_cache_would_let_packed_samples_see_each_other(annotations):
    """Why a packed batch switches it off: with one, transformers does not look for several samples in a row."""
    model = make_model("plain")
    processor = tiny_processor(model.config)
    data = load_training_data(annotations, processor)
    batch = InternVLXDataCollator(processor, packing=True)([data[0], data[2]])
    assert batch.pop("use_cache") is False
    del batch["cu_seq_lens_q"], batch["cu_seq_lens_k"]
    apart = model(**batch, use_cache=False).loss
    assert (model(**batch, use_cache=True).loss - apart).abs() > 1e-4


def trained(settings, tmp_path, packing, **kwargs):
    model = make_model(settings)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        optim="sgd",
        learning_rate=1e-3,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False},
        logging_steps=1,
        **kwargs,
    )
    processor = tiny_processor(model.config)
    collator = InternVLXDataCollator(processor, packing=packing)
    return model, processor, arguments, collator


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_trainer_takes_the_same_steps_packed_as_padded(settings, tmp_path, annotations):
    """Rows of two samples against batches of two, over as many samples a step: the `Trainer` weighs tokens alike."""
    weights = []
    for packing in (False, True):
        model, processor, arguments, collator = trained(
            settings,
            tmp_path,
            packing,
            per_device_train_batch_size=1 if packing else 2,
            gradient_accumulation_steps=2,
            train_sampling_strategy="sequential",
        )
        data = load_training_data(annotations, processor)
        if packing:
            packed = PackedData(data, measure_sizes(data).tokens, budget=400)
            packed.rows = [[0, 1], [2, 3], [4, 5]]
            data = packed
        trainer = Trainer(model, arguments, train_dataset=data, data_collator=collator)
        trainer.train()
        weights.append((trainer.model.state_dict(), [e["loss"] for e in trainer.state.log_history if "loss" in e]))
    (padded, padded_losses), (packed, packed_losses) = weights
    assert packed_losses == pytest.approx(padded_losses, rel=1e-4)
    for name, tensor in padded.items():
        torch.testing.assert_close(packed[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_the_trainer_packs_a_stream(tmp_path, annotations):
    model, processor, arguments, collator = trained("lvtc", tmp_path, True, per_device_train_batch_size=1)
    stream = PackedStream(load_training_data(annotations, processor, streaming=True, endless=True), budget=160)
    trainer = Trainer(model, arguments, train_dataset=stream, data_collator=collator)
    trainer.train()
    assert np.isfinite([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]).all()


# ---- Which samples share a row


def test_rows_hold_every_sample_once_and_fill_their_budget():
    lengths = np.random.default_rng(0).integers(20, 900, 3000)
    rows = pack_rows(lengths, 4096)
    assert sorted(index for row in rows for index in row) == list(range(3000))
    filled = [int(lengths[row].sum()) for row in rows]
    assert max(filled) <= 4096
    assert sum(filled) / (4096 * len(rows)) > 0.98
    assert pack_rows(lengths, 4096) == rows
    assert pack_rows(lengths, 4096, seed=1) != rows


def test_a_sample_above_the_budget_gets_a_row_of_its_own_and_one_to_be_skipped_none():
    assert sorted(map(sorted, pack_rows([5, 30, 5, 0], 10))) == [[0, 2], [1]]


def test_a_streamed_sample_above_the_budget_gets_a_row_of_its_own(annotations):
    processor = tiny_processor(make_model("lvtc").config)
    stream = load_training_data(annotations, processor, streaming=True)
    lengths = sorted(len(sample) for sample in stream)
    rows = list(PackedStream(stream, budget=lengths[-2]))
    assert [len(row[0]) for row in rows if len(row) == 1 and len(row[0]) > lengths[-2]] == [lengths[-1]]
    assert all(sum(map(len, row)) <= lengths[-2] for row in rows if len(row) > 1)
    assert sorted(len(sample) for row in rows for sample in row) == lengths


def test_rows_of_a_stream_fill_their_budget():
    class Sample:
        def __init__(self, length):
            self.length = length

        def __len__(self):
            return self.length

    from internvlx_hf.data.packing import pack_stream

    lengths = np.random.default_rng(0).integers(20, 900, 3000)
    rows = list(pack_stream(map(Sample, lengths), 4096))
    assert sorted(len(sample) for row in rows for sample in row) == sorted(lengths)
    filled = [sum(map(len, row)) for row in rows]
    assert max(filled) <= 4096
    assert sum(filled) / (4096 * len(rows)) > 0.95


def test_a_broken_sample_makes_its_row_shorter(annotations):
    processor = tiny_processor(make_model("plain").config)
    data = load_training_data(annotations, processor, on_broken="skip")
    lengths = measure_sizes(data).tokens
    picture = annotations.parent / "2.png"
    picture.write_bytes(picture.read_bytes()[:400])  # the header still says how large it is
    packed = PackedData(data, lengths, budget=10**6)
    assert len(packed) == 1
    assert [len(sample) for sample in packed[0]] == [lengths[i] for i in packed.rows[0] if i != 2]
    assert packed.counts["broken"] == 1


def test_wrong_budgets_and_lengths_are_refused(annotations):
    processor = tiny_processor(make_model("plain").config)
    data = load_training_data(annotations, processor)
    with pytest.raises(ValueError, match="budget is 0 tokens"):
        pack_rows([1], 0)
    with pytest.raises(ValueError, match="budget is -1 tokens"):
        PackedStream(load_training_data(annotations, processor, streaming=True), -1)
    with pytest.raises(ValueError, match="2 lengths for 6 samples"):
        PackedData(data, [1, 2], 100)


def test_a_sample_goes_where_it_fits_exactly():
    lengths = [6, 4, 7, 3, 9, 1]
    for seed in range(3):
        rows = pack_rows(lengths, 10, seed)
        assert sorted(sorted(lengths[i] for i in row) for row in rows) == [[1, 9], [3, 7], [4, 6]]
    streamed = list(pack_stream([[0] * length for length in lengths], 10))
    assert [sum(map(len, row)) for row in streamed] == [10, 10, 10]


def test_a_stream_yields_its_fullest_row_first():
    """Eight are open; of the ninth on, the fullest goes. The others may still be filled."""
    lengths = [60, 61, 69, 62, 63, 64, 65, 66, 67]
    first = next(iter(pack_stream([[0] * length for length in lengths], 100)))
    assert [len(sample) for sample in first] == [69]


def test_rows_of_packed_data_follow_their_seed():
    lengths = np.full(40, 5)
    rows = [PackedData(lengths, lengths, 10, seed).rows for seed in (1, 1, 2)]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]
