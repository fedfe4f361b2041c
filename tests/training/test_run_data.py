"""What a run makes of its data: order, seeds, padding."""

import os
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from internvlx_hf.data.sampler import CostGroupedSampler
from internvlx_hf.training import run_data
from internvlx_hf.training.arguments import DataArguments, InternVLXTrainingArguments
from internvlx_hf.training.trainer import InternVLXTrainer
from paths import HELPERS
from tiny import tiny_config, tiny_model, tiny_processor
from training_helpers import write_data


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


def test_the_tiles_of_an_image_are_shared_in_training_and_evaluation(tmp_path):
    path = str(write_data(tmp_path))
    data = DataArguments(train_data=path, eval_data=path, share_tiles=True)
    config = tiny_config()
    loaded = run_data.load_run_data(data, trainer_of(tmp_path).args, tiny_processor(config), config)
    assert loaded.train.encoder.share_tiles
    assert loaded.evaluation.encoder.share_tiles
    assert loaded.settings["share_tiles"]


def test_a_stream_keeps_the_order_of_the_data_if_set_and_packing_refuses_it(tmp_path):
    arguments = trainer_of(tmp_path, max_steps=1, use_cpu=True).args
    arguments.train_sampling_strategy = "sequential"
    path, config = str(write_data(tmp_path)), tiny_config()
    streamed, read = (
        run_data.load_run_data(
            DataArguments(path, streaming=streaming), arguments, tiny_processor(config), config
        ).train
        for streaming in (True, False)
    )
    for index, sample in enumerate(islice(streamed, len(read) + 2)):
        assert sample.input_ids.tolist() == read[index % len(read)].input_ids.tolist()
    for streaming in (False, True):
        packed = DataArguments(path, packing_tokens=60, streaming=streaming)
        with pytest.raises(ValueError, match="`train_sampling_strategy` is 'sequential' with `packing_tokens`=60"):
            run_data.load_run_data(packed, arguments, tiny_processor(config), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_split": "validation"},
            r"`train_split` is 'validation', but `train_data` is .*data.jsonl, a file, which",
        ),
        (
            {"eval_data": "data.jsonl", "eval_split": "test"},
            r"`eval_split` is 'test', but `eval_data` is .*data.jsonl, a",
        ),
        ({"eval_split": "test"}, r"`eval_split` is 'test', but `eval_data` is not set. Leave `eval_split` unset"),
    ],
)
def test_a_split_of_what_has_none_is_refused(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    data, config = DataArguments(**{"train_data": "data.jsonl"} | settings), tiny_config()
    with pytest.raises(ValueError, match=message):
        run_data.load_run_data(data, trainer_of(tmp_path).args, tiny_processor(config), config)


@pytest.mark.slow
def test_records_in_a_file_need_no_datasets(tmp_path):
    lines = "import sys; from pathlib import Path; from hiding import hide; hide({'datasets'})"
    lines += "; from training_helpers import run; run(Path(sys.argv[1]), max_steps=1, packing_tokens=60)"
    path = os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", f"{lines}; assert 'datasets' not in sys.modules", tmp_path],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
