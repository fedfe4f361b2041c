"""What a training reports of itself equals what is counted by hand, with a clock that the test moves."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerControl, TrainerState, TrainingArguments

from internvlx_hf.training import InternVLXDataCollator
from internvlx_hf.training.metrics import ThroughputCallback
from metered_training import STEP, train
from tiny import LVTC, tiny_batch, tiny_model, tiny_processor
from training_helpers import run

SCALARS = ("text_tokens", "stage_one_tokens", "stage_two_tokens", "tiles")


def counted(batches, config) -> dict[str, int]:
    images = sum(int((batch["input_ids"] == config.image_token_id).sum()) for batch in batches)
    places = sum(batch["input_ids"].numel() for batch in batches)
    filled = sum(
        int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
        for batch in batches
    )
    tiles = sum(len(batch.get("pixel_values", ())) for batch in batches)
    assert images == tiles * config.image_seq_length
    return {
        "text_tokens": filled - images,
        "stage_one_tokens": images,
        "stage_two_tokens": tiles * config.expanded_token_grid**2,
        "tiles": tiles,
        "padding": (places - filled) / places,
    }


def assert_counted(scalars, batches, config, per_log=2):
    """Every second step is logged."""
    for log, step in enumerate((2, 4, 6)):
        expected = counted(batches[log * per_log : (log + 1) * per_log], config)
        seen = counted(batches[: (log + 1) * per_log], config)
        for name in SCALARS:
            assert scalars[f"train/{name}_per_second"][step] == pytest.approx(expected[name] / (2 * STEP)), (
                name,
                step,
            )
            assert scalars[f"train/{name}_seen"][step] == seen[name]
        assert scalars["train/padding_share"][step] == pytest.approx(expected["padding"])
        assert scalars["train/memory_gb"][step] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("lvtc", [LVTC, {}], ids=["LVTC", "no LVTC"])
def test_rates_are_those_of_both_stages_without_the_time_of_evaluating_and_saving(lvtc, tmp_path):
    model = tiny_model(**lvtc)
    collate = InternVLXDataCollator(tiny_processor(model.config, max_patches=3, slicing="edge"))
    scalars, batches = train(
        tmp_path, model, collate, eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=2
    )
    batches = [batch for i, batch in enumerate(batches) if batch["input_ids"].shape[0] == 2]
    # the evaluation's batches are those of samples 0 and 1, after the third and the sixth step
    first = batches[0]["input_ids"]
    again = [i for i, batch in enumerate(batches) if i and torch.equal(batch["input_ids"], first)]
    assert len(again) == 2
    batches = [batch for i, batch in enumerate(batches) if i not in again]
    assert_counted(scalars, batches, model.config)
    assert any(counted([batch], model.config)["padding"] > 0.1 for batch in batches)
    assert "eval/loss" in scalars
    assert {"train/loss", "train/learning_rate", "train/grad_norm"} <= scalars.keys()


def test_packed_rows_have_no_padding(tmp_path):
    model = tiny_model(**LVTC)
    collate = InternVLXDataCollator(tiny_processor(model.config, max_patches=3, slicing="edge"), packing=True)
    scalars, batches = train(tmp_path, model, collate)
    assert all(len(batch["input_ids"]) == 1 for batch in batches)
    assert_counted(scalars, batches, model.config)
    assert set(scalars["train/padding_share"].values()) == {0.0}


def test_all_batches_of_an_accumulated_step_count(tmp_path):
    model = tiny_model(**LVTC)
    collate = InternVLXDataCollator(tiny_processor(model.config, max_patches=3, slicing="edge"))
    scalars, batches = train(tmp_path, model, collate, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    assert_counted(scalars, batches, model.config, per_log=4)


def test_each_group_s_learning_rate_is_reported_as_it_was_used(tmp_path):
    trainer = run(
        tmp_path, learning_rates={"model.lvtc": 4e-3}, learning_rate=1e-3, lr_scheduler_type="linear", warmup_steps=0
    )
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for i, entry in enumerate(logs):
        assert entry["learning_rate/base"] == entry["learning_rate"] == pytest.approx(1e-3 * (1 - i / 6))
        assert entry["learning_rate/model.lvtc"] == pytest.approx(4e-3 * (1 - i / 6))


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 2], ids=["full", "LoRA"])
def test_a_resumed_run_continues_counting(lora_rank, tmp_path):
    """Also where the checkpoint lies between two logs."""
    whole = run(tmp_path, lora_rank=lora_rank, logging_steps=4, report_to="none")
    resumed = run(
        tmp_path,
        lora_rank=lora_rank,
        logging_steps=4,
        output_dir=str(tmp_path / "resumed"),
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"),
    )
    names = [f"{name}_seen" for name in SCALARS]
    for entry, again in zip(whole.state.log_history, resumed.state.log_history, strict=True):
        assert [entry[name] for name in names] == [again[name] for name in names]
    recipes = [json.loads((tmp_path / out / "training_recipe.json").read_text()) for out in ("out", "resumed")]
    assert recipes[0]["seen"] == recipes[1]["seen"]
    assert recipes[0]["seen"]["tiles"] > 0


def count_in_a_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = tiny_model(**LVTC).train()
    arguments = TrainingArguments(f"{folder}/{rank}", report_to="none", use_cpu=True)
    state, control, callback = TrainerState(log_history=[{}]), TrainerControl(), ThroughputCallback()
    callback.on_train_begin(arguments, state, control, model=model)
    # the second process has text only, and in the second step nothing
    for layout in ([["tile", 3]], [["tile", "tile", 4]]) if rank == 0 else ([[9], [5]],):
        batch = tiny_batch(model.config, layout)
        callback._count(model, (), batch)
        callback.on_step_end(arguments, state, control)
    if rank == 1:
        callback.on_step_end(arguments, state, control)
    logs = {"loss": 1.0}
    callback.on_log(arguments, state, control, logs=logs)
    torch.save(logs, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_report_what_both_have_done(tmp_path):
    multiprocessing.start_processes(count_in_a_process, args=(str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        logs = torch.load(tmp_path / f"{rank}.pt")
        assert logs["text_tokens_seen"] == 3 + 4 + 9 + 5
        assert (logs["tiles_seen"], logs["stage_one_tokens_seen"], logs["stage_two_tokens_seen"]) == (3, 12, 48)
        assert logs["padding_share"] == pytest.approx(4 / (7 + 12 + 18))


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_counting_copies_nothing_to_or_from_the_device(packed):
    """On the device without memory, where whatever reads a value raises."""
    model = tiny_model(**LVTC).train()
    batch = {name: tensor.to("meta") for name, tensor in tiny_batch(model.config, [["tile", 3], [9]]).items()}
    if packed:
        batch["position_ids"] = torch.empty_like(batch.pop("attention_mask"))
    callback = ThroughputCallback()
    with Operations() as operations:
        for _ in range(2):
            callback._count(model, (), batch)
        callback.on_step_end(SimpleNamespace(device=torch.device("meta")), None, None)
    assert len(operations.names) > 10
    # a tensor made of Python numbers, copies between devices and to the host
    assert not operations.names & {"lift_fresh", "_to_copy", "_local_scalar_dense", "nonzero"}
    assert callback._known == [0] * 7


def test_a_model_of_another_kind_is_refused():
    arguments = TrainingArguments("out", report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="Linear holds no InternVL-X model"):
        ThroughputCallback().on_train_begin(arguments, TrainerState(), TrainerControl(), model=torch.nn.Linear(1, 1))
