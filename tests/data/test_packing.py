"""Padding-free packing: which samples share a row, and that a packed row trains as its samples do one by one.

Tolerances: float32; the loss to 1e-5, each gradient to a thousandth of its tensor's largest entry (its sums run over other
lengths in another order).
"""

import numpy as np
import pytest
import torch

from data_cases import save_picture, write_lines
from internvlx_hf.data.packing import pack_rows, pack_stream
from internvlx_hf.training import (
    InternVLXDataCollator,
    PackedData,
    PackedStream,
    load_training_data,
    measure_sizes,
)
from lvtc_cases import assert_same_step
from refusals import refusals
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
        texts = ("What is it? " * (i + 1), f"{i} of them", "Why?", "So. " * i + ".")
        turns = [{"from": ("human", "gpt")[j % 2], "value": text} for j, text in enumerate(texts)]
        image = {"image": save_picture(tmp_path / f"{i}.png", TILE, TILE * tiles, seed=i)} if tiles else {}
        records.append({"conversations": turns, **image})
    return write_lines(tmp_path / "annotations.jsonl", records)


def step(model, batches, num_items):
    """Loss and gradients of batches, token-weighted as the `Trainer` does it: each loss is a sum over `num_items`."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=num_items).loss
        loss.backward()
        total += loss.item()
    return torch.tensor(total), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def supervised(batch):
    return int((batch["labels"][:, 1:] != -100).sum())


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "kind"), [("eager", "map-style"), ("sdpa", "streaming")])
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


@pytest.mark.parametrize("multiple", [None, 64])
def test_the_arguments_of_flash_attention_bound_the_samples(annotations, multiple):
    processor = tiny_processor(make_model("lvtc").config)
    data = load_training_data(annotations, processor)
    samples = [data[i] for i in range(3)]
    batch = InternVLXDataCollator(processor, packing=True, pad_to_multiple_of=multiple)(samples)
    lengths = [len(sample) for sample in samples]
    lengths += [-sum(lengths) % 64] * bool(multiple)  # what fills the row up is a sample of its own
    for side in ("q", "k"):
        assert batch[f"cu_seq_lens_{side}"].tolist() == [0, *np.cumsum(lengths)]
        assert batch[f"cu_seq_lens_{side}"].dtype == torch.int32
        assert batch[f"max_length_{side}"] == max(lengths)
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


# ---- Which samples share a row


@pytest.mark.parametrize(("kind", "least"), [("map-style", 0.98), ("streaming", 0.95)])
def test_rows_hold_every_sample_once_and_fill_their_budget(kind, least):
    lengths = np.random.default_rng(0).integers(20, 900, 3000)
    if kind == "map-style":
        rows = pack_rows(lengths, 4096)
        assert sorted(index for row in rows for index in row) == list(range(3000))
        assert pack_rows(lengths, 4096) == rows != pack_rows(lengths, 4096, seed=1)
        filled = [int(lengths[row].sum()) for row in rows]
    else:
        rows = list(pack_stream((range(length) for length in lengths), 4096))
        assert sorted(len(sample) for row in rows for sample in row) == sorted(lengths)
        filled = [sum(map(len, row)) for row in rows]
    assert max(filled) <= 4096
    assert sum(filled) / (4096 * len(rows)) > least


def test_a_sample_above_the_budget_gets_a_row_of_its_own_and_one_to_be_skipped_none(caplog):
    assert sorted(map(sorted, pack_rows([5, 30, 5, 0], 10))) == [[0, 2], [1]]
    (record,) = caplog.records
    assert record.getMessage().startswith("1 samples have more than 10 tokens")


def test_a_streamed_sample_above_the_budget_gets_a_row_of_its_own(annotations):
    processor = tiny_processor(make_model("lvtc").config)
    stream = load_training_data(annotations, processor, streaming=True)
    lengths = sorted(len(sample) for sample in stream)
    rows = list(PackedStream(stream, budget=lengths[-2]))
    assert [len(row[0]) for row in rows if len(row) == 1 and len(row[0]) > lengths[-2]] == [lengths[-1]]
    assert all(sum(map(len, row)) <= lengths[-2] for row in rows if len(row) > 1)
    assert sorted(len(sample) for row in rows for sample in row) == lengths


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
    alone = PackedData(data, lengths, budget=1)
    for index, row in enumerate(alone.rows):
        (sample,) = row if row != [2] else alone.rows[(index + 1) % len(alone)]  # the next in its place
        assert [len(one) for one in alone[index]] == [lengths[sample]]


def loaded(annotations, **kwargs):
    return load_training_data(annotations, tiny_processor(make_model("plain").config), **kwargs)


test_wrong_budgets_and_lengths_are_refused = refusals(
    (lambda: pack_rows([1], 0), "budget is 0 tokens", "expected"),
    (lambda annotations: PackedStream(loaded(annotations, streaming=True), -1), "budget is -1 tokens", "expected"),
    (lambda annotations: PackedData(loaded(annotations), [1, 2], 100), "2 lengths for 6 samples", "expected"),
)


def test_a_sample_goes_where_it_fits_exactly():
    lengths = [6, 4, 7, 3, 9, 1]
    for seed in range(3):
        rows = pack_rows(lengths, 10, seed)
        assert sorted(sorted(lengths[i] for i in row) for row in rows) == [[1, 9], [3, 7], [4, 6]]
    streamed = list(pack_stream([[0] * length for length in lengths], 10))
    assert [sum(map(len, row)) for row in streamed] == [10, 10, 10]
    lengths = [7, 6, 3, 2, 2]  # the 3 beside the 6 would leave a 2 over
    assert [sum(lengths[i] for i in row) for row in pack_rows(lengths, 10)] == [10, 10]
    assert [sum(map(len, row)) for row in pack_stream([[0] * length for length in lengths], 10)] == [10, 10]


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
