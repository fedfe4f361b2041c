"""Faults that the other tests once let pass, each planted to see that its test here fails."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler
from transformers import DynamicCache

from internvlx_hf.cost import CostModel
from internvlx_hf.cost.flops import decode_flops
from internvlx_hf.cost.images import Pictures
from internvlx_hf.cost.report import BYTE_UNITS, Report, unit
from internvlx_hf.cost.settings import Setting
from internvlx_hf.data.datasets import Part
from internvlx_hf.data.packing import PackedData, pack_rows, pack_stream
from internvlx_hf.data.sampler import CostGroupedSampler
from internvlx_hf.modeling.projectors import build_projector
from internvlx_hf.processing.rvtc import TilingRule
from internvlx_hf.training import InternVLXDataCollator, run_data
from internvlx_hf.training.arguments import DataArguments, InternVLXTrainingArguments
from internvlx_hf.training.train import find_checkpoint
from internvlx_hf.training.trainer import InternVLXTrainer
from tiny import LVTC, tiny_config, tiny_model, tiny_processor
from training_helpers import changed, run, saved_weights, write_data


class SoftmaxTypes(TorchDispatchMode):
    """The dtypes that softmax gives."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._softmax.default:
            self.seen.append(result.dtype)
        return result


def test_pvtc_attends_in_float32_under_bfloat16():
    """By dtype: a CPU's bfloat16 softmax adds up in float32 too, and its numbers are the same."""
    config = tiny_config()
    projector = build_projector(config, "pvtc", 0.5).bfloat16()
    with torch.no_grad(), SoftmaxTypes() as types:
        projector(torch.randn(1, 65, config.vision_config.hidden_size, dtype=torch.bfloat16))
    assert types.seen == [torch.float32] * 2  # local and global


def test_two_lora_runs_with_one_seed_give_the_same_weights(tmp_path):
    settings = {"lora_rank": 2, "lora_dropout": 0.3, "max_steps": 2, "save_strategy": "no"}
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        torch.manual_seed(len(name))  # where a process happens to stand
        run(tmp_path, **settings, seed=seed, output_dir=str(tmp_path / name))
    weights = {name: saved_weights(tmp_path / name) for name in ("one", "same", "other")}
    assert changed(weights["one"], weights["same"]) == set()
    # lora_A starts at random, and two steps do not bring it together
    started = {name for name in weights["one"] if "lora_A" in name}
    assert started
    assert started <= changed(weights["one"], weights["other"])


@pytest.mark.parametrize("steps", [(500, 1000), (1000, 500), (9, 10, 100), (99, 100, 1000, 998)])
def test_the_last_checkpoint_is_the_one_of_the_most_steps(steps, tmp_path):
    for step in steps:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
    arguments = SimpleNamespace(resume_from_checkpoint="last", output_dir=str(tmp_path))
    assert find_checkpoint(arguments) == str(tmp_path / f"checkpoint-{max(steps)}")
    arguments.resume_from_checkpoint = None
    with pytest.raises(ValueError, match=f"holds checkpoint-{max(steps)} already"):
        find_checkpoint(arguments)


@pytest.mark.parametrize("multiple", [None, 64])
def test_bounds_of_packed_keys_are_those_of_the_queries_by_value(multiple, tmp_path):
    processor = tiny_processor(tiny_config(**LVTC), max_patches=3, slicing="edge")
    samples = [json.loads(line) for line in write_data(tmp_path, 3).read_text().splitlines()]
    collate = InternVLXDataCollator(processor, packing=True, pad_to_multiple_of=multiple)
    batch = collate(samples)
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    bounds = [*starts, batch["input_ids"].shape[1]]
    assert len(starts) == 3 + bool(multiple)
    for side in ("q", "k"):
        assert batch[f"cu_seq_lens_{side}"].tolist() == bounds
        assert batch[f"max_length_{side}"] == max(np.diff(bounds))


@pytest.mark.parametrize("answer", [1, 2, 7])
@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["plain", "lvtc"])
def test_the_answer_s_cost_is_that_of_generating_it(lvtc, answer):
    """The prefill gives the first token, and the last one is not read again."""
    config = tiny_config("llama", **lvtc)
    setting = Setting("tiny", config, TilingRule(config.tile_size, config.tile_size, max_tiles=1))
    model = CostModel(setting, text_tokens=5, answer_tokens=answer, dtype=torch.float32)
    cost = model.of_tiles(1)
    ids = torch.tensor([[10] * 5 + [config.image_token_id] * config.image_seq_length])
    pixels = torch.zeros(1, 3, config.tile_size, config.tile_size)
    cache = DynamicCache(config=config.text_config)
    tiny_model("llama", **lvtc).generate(
        input_ids=ids,
        pixel_values=pixels,
        past_key_values=cache,
        max_new_tokens=answer,
        min_new_tokens=answer,
        do_sample=False,
    )
    assert cost.cache_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    lengths = cost.prompt_tokens, cost.expanded_prompt_tokens
    assert cost.answer_flops == decode_flops(setting.sizes, lengths, answer - 1)
    assert (cost.answer_flops == 0) == (answer == 1)
    assert cost.positions == cost.expanded_prompt_tokens + answer - 1


def trainer_of(folder, **arguments):
    arguments = InternVLXTrainingArguments(str(folder), train_sampling_strategy="group_by_cost", **arguments)
    return InternVLXTrainer(tiny_model(), arguments, costs=np.arange(1, 9))


def test_a_trainer_tells_the_epoch_to_a_sampler_within_wrappers(tmp_path):
    trainer = trainer_of(tmp_path)
    sampler = CostGroupedSampler(np.arange(1, 9), 2)
    batches = BatchSamplerShard(BatchSampler(sampler, 2, drop_last=False), 2, 1)
    trainer.callback_handler.train_dataloader = SimpleNamespace(batch_sampler=batches)
    for passed, epoch in ((None, 0), (1.0, 1), (2.75, 2)):
        trainer.state.epoch = passed
        trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
        assert sampler.epoch == epoch


@pytest.mark.parametrize(("seeds", "expected"), [({"seed": 3}, 3), ({"seed": 3, "data_seed": 4}, 4)])
def test_data_have_a_seed_of_their_own(seeds, expected, tmp_path, monkeypatch):
    assert trainer_of(tmp_path, **seeds)._get_train_sampler().seed == expected
    orders = []
    monkeypatch.setattr(run_data, "PackedData", lambda data, tokens, budget, seed: orders.append(seed))
    data = DataArguments(train_data=str(write_data(tmp_path)), packing_tokens=60)
    config = tiny_config()
    arguments = trainer_of(tmp_path, **seeds).args
    run_data.load_run_data(data, arguments, tiny_processor(config), config)
    assert orders == [expected]


def test_rows_of_a_run_are_padded_to_the_multiple_that_is_asked_for(tmp_path):
    data = DataArguments(train_data=str(write_data(tmp_path)), pad_to_multiple_of=64)
    config = tiny_config()
    loaded = run_data.load_run_data(data, trainer_of(tmp_path).args, tiny_processor(config), config)
    assert loaded.collator([loaded.train[0]])["input_ids"].shape[1] % 64 == 0


@pytest.mark.parametrize(("repeat", "expected"), [(0.3, 3), (0.25, 2), (1.3, 12), (2.0, 18)])
def test_a_part_that_counts_a_fraction_is_rounded_to_the_nearest_record(repeat, expected):
    chosen = Part(range(9), repeat=repeat).chosen(np.random.default_rng(0))
    assert len(chosen) == expected
    counts = np.bincount(chosen, minlength=9)
    assert set(counts) <= {int(repeat), int(repeat) + 1}


def test_a_sample_goes_where_it_fits_exactly():
    lengths = [6, 4, 7, 3, 9, 1]
    for seed in range(3):
        rows = pack_rows(lengths, 10, seed)
        assert sorted(sorted(lengths[i] for i in row) for row in rows) == [[1, 9], [3, 7], [4, 6]]
    streamed = list(pack_stream([[0] * length for length in lengths], 10))
    assert [sum(map(len, row)) for row in streamed] == [10, 10, 10]


def test_a_stream_gives_out_the_fullest_of_its_rows_first():
    """Eight are open; of the ninth on, the fullest goes. The others may still be filled."""
    lengths = [60, 61, 69, 62, 63, 64, 65, 66, 67]
    first = next(iter(pack_stream([[0] * length for length in lengths], 100)))
    assert [len(sample) for sample in first] == [69]


def test_rows_of_packed_data_follow_their_seed():
    lengths = np.full(40, 5)
    rows = [PackedData(lengths, lengths, 10, seed).rows for seed in (1, 1, 2)]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_what_fills_no_batch_is_the_cheapest_of_its_group():
    """So the dearest samples always share a batch."""
    order = list(CostGroupedSampler(np.arange(10), 4, seed=3))
    assert order[-2:] == [1, 0]
    assert [sorted(order[:4]), sorted(order[4:8])] in ([[2, 3, 4, 5], [6, 7, 8, 9]], [[6, 7, 8, 9], [2, 3, 4, 5]])


def plain_projector(kind: str, side: int):
    """A projector with random weights, features with CLS, and their 8x8 patches by row and column."""
    config = tiny_config("llama", projector_config={"projector_type": kind}, downsample_ratio=1 / side)
    torch.manual_seed(side)
    projector = build_projector(config, kind, 1 / side)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = torch.randn(2, 65, config.vision_config.hidden_size)
    return projector, features, features[:, 1:].unflatten(1, (8, 8))


def windows_of(grid: torch.Tensor, side: int) -> list[torch.Tensor]:
    """(2, side², C) patches of each window in raster order."""
    starts = [(row, column) for row in range(0, 8, side) for column in range(0, 8, side)]
    return [grid[:, r : r + side, c : c + side].flatten(1, 2) for r, c in starts]


@pytest.mark.parametrize("side", [1, 2, 4])
def test_ldpv2_is_the_mean_of_each_window_plus_a_convolution_of_the_means(side):
    projector, features, grid = plain_projector("ldpv2", side)
    with torch.no_grad():
        means = torch.stack([window.mean(1) for window in windows_of(projector.mlp(grid), side)], 1)
        n = 8 // side
        grid_of_means = means.unflatten(1, (n, n)).permute(0, 3, 1, 2)
        expected = means + projector.position(grid_of_means).flatten(2).transpose(1, 2)
        torch.testing.assert_close(projector(features), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [2, 4])
def test_token_packer_asks_with_the_middle_of_each_window(side):
    """Halving bilinearly is the mean of four neighbours: of the window's middle four."""
    projector, features, grid = plain_projector("token_packer", side)
    middle = slice(side // 2 - 1, side // 2 + 1)
    tokens = []
    with torch.no_grad():
        for window in windows_of(grid, side):
            coarse = window.unflatten(1, (side, side))[:, middle, middle].mean((1, 2))
            query = projector.query(projector.query_norm(projector.query_mlp(coarse)))
            key = projector.key(projector.key_norm(projector.key_mlp(window)))
            value = projector.value(projector.value_norm(projector.value_mlp(window)))
            query, key, value = (x.unflatten(-1, (projector.num_heads, -1)) for x in (query, key, value))
            scores = torch.einsum("bhd,bkhd->bhk", query, key) / query.shape[-1] ** 0.5
            seen = torch.einsum("bhk,bkhd->bhd", scores.softmax(-1), value).flatten(1)
            tokens.append(projector.mlp(projector.output(seen)))
        torch.testing.assert_close(projector(features), torch.stack(tokens, 1), atol=1e-4, rtol=1e-4)


def test_the_table_has_the_largest_peak_of_the_pictures():
    setting = Setting("tiny", tiny_config(**LVTC), TilingRule(32, 32, max_tiles=9))
    sizes = [(32, 32), (96, 96)]
    report = Report(Pictures(["small", "large"], sizes), [CostModel(setting)])
    (row,) = [line for line in report.to_text().splitlines() if line.startswith("-> this model")]
    peaks = [cost.peak_bytes for cost in report.costs[0]]
    name, size = unit([report.costs[0][0].weight_bytes], BYTE_UNITS)
    assert f"peak {name}*" in report.to_text()
    assert row.split()[-1] == f"{max(peaks) / size:,.2f}" != f"{min(peaks) / size:,.2f}"
