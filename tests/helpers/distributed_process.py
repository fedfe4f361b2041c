"""Run by test_distributed.py in two processes, which `accelerate launch` starts with one of configs/accelerate/.

Accelerate drives FSDP and DeepSpeed on accelerators only. Here its own function shards the model and DeepSpeed's own
engine trains it, with the settings that the launcher made of the configuration; only the Trainer is left out.
"""

import faulthandler
import json
import os
import runpy
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import distributed, nn

from data_parallel import Samples, collate
from dial_cases import dial
from internvlx_hf import InternVLXModel
from internvlx_hf.training.distillation import batch_losses, place_teacher
from tiny import LVTC, tiny_model

STEPS = 8
SMOOTH = {
    # weights so large that the answers differ, as elsewhere, make first gradients that blow rounding errors up
    "text_config": {"initializer_range": 0.05},
    "projector_config": {"drop_path_rate": 0.0},
}
CASES = {
    "lvtc_off": SMOOTH,
    "lvtc_on": {**SMOOTH, **LVTC, "text_config": {"initializer_range": 0.05, "tie_word_embeddings": True}},
    "sizes": {**SMOOTH, **dial()},
}
# Four samples a step. With two processes the second has text alone in the first step, the first in the second. In no step
# both have: one process would have no gradients for the vision side then, where two have zeros, which AdamW takes otherwise.
LAYOUTS = [
    *([[3, "tile", 5], [2, "tile", "tile", 6], [9], [12]]),
    *([[8], [9], ["tile", 10], [11]]),
    *([[7], ["tile", 4], [2, "tile", 9], [5]]),
]


def model_of(case: str, seed: int = 0) -> nn.Module:
    return tiny_model(seed=seed, **CASES[case])


def teacher_model() -> nn.Module:
    """Another projector and more tokens per tile than any student's."""
    settings = {"text_config": {"initializer_range": 0.05}, "projector_config": {"projector_type": "pixel_shuffle"}}
    return tiny_model(seed=2, downsample_ratio=0.5, **settings).requires_grad_(False)


def samples_of(model: nn.Module, layouts: list) -> Samples:
    return Samples(getattr(model, "module", model).config, layouts)  # an engine's `config` is its own


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6)


def torch_update(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[torch.Tensor], None]:
    def update(loss: torch.Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def run_steps(
    model: nn.Module, update: Callable[[torch.Tensor], None], steps: range, rank: int = 0, world: int = 1
) -> list[float]:
    """Train on this process's share of each step's samples; the losses of whole steps.

    Gradients are averaged over the processes, so each one's share of the loss counts `world` times, as in the `Trainer`.
    """
    samples, losses = samples_of(model, LAYOUTS), []
    model.train()
    for step in steps:
        whole = [samples[(4 * step + i) % len(samples)] for i in range(4)]
        tokens = sum((sample["labels"][1:] != -100).sum() for sample in whole)
        share = whole[rank * 4 // world : (rank + 1) * 4 // world]
        loss = model(**collate(share), num_items_in_batch=tokens, use_cache=False).loss
        update(loss * world)
        losses.append(_total(loss, world))
    return losses


@torch.no_grad()
def evaluate(model: nn.Module, rank: int = 0, world: int = 1) -> float:
    """Loss of the first step's samples in evaluation mode, in which the second process has text alone."""
    model.eval()
    samples = samples_of(model, LAYOUTS[:4])
    tokens = sum((sample["labels"][1:] != -100).sum() for sample in samples)
    share = [samples[i] for i in range(rank * 4 // world, (rank + 1) * 4 // world)]
    return _total(model(**collate(share), num_items_in_batch=tokens).loss, world)


def _total(loss: torch.Tensor, world: int) -> float:
    loss = loss.detach().clone()
    if world > 1:
        distributed.all_reduce(loss)
    return loss.item()


def taught_steps(
    model: nn.Module, teacher: nn.Module, update: Callable[[torch.Tensor], None], rank: int = 0, world: int = 1
) -> list[list[float]]:
    """Train on a teacher's logits, with this process's share of each step's samples; [CE, KL] of whole steps."""
    configs = [getattr(each, "module", each).config for each in (model, teacher)]
    own, others = (Samples(config, LAYOUTS) for config in configs)
    losses = []
    model.train()
    for step in range(2):
        whole = [4 * step + i for i in range(4)]
        tokens = sum((own[i]["labels"][1:] != -100).sum() for i in whole)
        share = whole[rank * 4 // world : (rank + 1) * 4 // world]
        batch = collate([own[i] for i in share]) | {"teacher": collate([others[i] for i in share])}
        means = batch_losses(model, teacher, batch, temperature=2.0)[0] / tokens
        update(means.sum() * world)
        losses.append([_total(mean, world) for mean in means])
    return losses


# -- DDP


def run_ddp(folder: Path) -> None:
    """`accelerate launch -m internvlx_hf.training` with each configuration file."""
    text_only = []
    add_dummy_tile = InternVLXModel._add_dummy_tile

    def counted(model, inputs_embeds):
        text_only.append(model.training)
        return add_dummy_tile(model, inputs_embeds)

    InternVLXModel._add_dummy_tile = counted
    for config in sorted(folder.glob("*.yaml")):
        text_only.clear()
        sys.argv = ["internvlx_hf.training", str(config)]
        try:
            runpy.run_module("internvlx_hf.training", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        _write(folder, config.stem, {"text only": sum(text_only)})


# -- FSDP2


def run_fsdp2(folder: Path) -> None:
    for case in CASES:
        _write(folder, f"fsdp2.{case}", _fsdp2_case(folder / case, case))
    _write(folder, "fsdp2.bf16", {"losses": _fsdp2_bf16()})
    _write(folder, "fsdp2.teacher", _fsdp2_teacher())


def _fsdp2_case(folder: Path, case: str) -> dict:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_state_dict,
        set_state_dict,
    )

    rank, half = distributed.get_rank(), STEPS // 2
    model = shard(model_of(case), mixed_precision="no")
    if case != "lvtc_off":
        model.gradient_checkpointing_enable()
    optimizer = adamw(model)
    losses = run_steps(model, torch_update(model, optimizer), range(half), rank, 2)
    weights, state = get_state_dict(model, optimizer)
    # named as accelerate names them, so that `accelerate merge-weights` finds them
    checkpoint.save({"model": weights}, checkpoint_id=folder / "pytorch_model_fsdp_0")
    checkpoint.save({"optimizer": state}, checkpoint_id=folder / "optimizer_0")
    losses += run_steps(model, torch_update(model, optimizer), range(half, STEPS), rank, 2)

    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    model.save_pretrained(folder / "full", state_dict=full, is_main_process=rank == 0)

    resumed = shard(model_of(case, seed=1), mixed_precision="no")
    optimizer = adamw(resumed)
    weights, state = get_state_dict(resumed, optimizer)
    checkpoint.load({"model": weights}, checkpoint_id=folder / "pytorch_model_fsdp_0")
    checkpoint.load({"optimizer": state}, checkpoint_id=folder / "optimizer_0")
    set_state_dict(resumed, optimizer, model_state_dict=weights, optim_state_dict=state)
    losses_resumed = run_steps(resumed, torch_update(resumed, optimizer), range(half, STEPS), rank, 2)
    differing = [
        name
        for name, parameter in resumed.named_parameters()
        if not torch.equal(parameter.to_local(), model.get_parameter(name).to_local())
    ]
    return {
        "losses": losses,
        "resumed": losses_resumed,
        "differing": differing,
        "units": units(model),
        "share": sum(p.to_local().numel() for p in model.parameters()) / sum(p.numel() for p in model.parameters()),
        # last: it leaves the outermost unit's parameters gathered
        "evaluation": evaluate(model, rank, 2),
    }


def _fsdp2_bf16() -> list[float]:
    """Two steps as the configuration says, in mixed precision."""
    model = shard(model_of("lvtc_on"), mixed_precision="bf16")
    losses = run_steps(model, torch_update(model, adamw(model)), range(2), distributed.get_rank(), 2)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return losses


def _fsdp2_teacher() -> dict:
    """Both models sharded by the same accelerator, each in layers of its own classes."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    accelerator = accelerator_of("no")
    teacher = place_teacher(teacher_model(), accelerator)
    model = fsdp2_prepare_model(accelerator, model_of("lvtc_on"))
    losses = taught_steps(model, teacher, torch_update(model, adamw(model)), distributed.get_rank(), 2)
    return {"losses": losses, "units": [units(each) for each in (model, teacher)]}


def shard(model: nn.Module, mixed_precision: str) -> nn.Module:
    """As `Accelerator.prepare` does, by the settings of fsdp2.yaml, which the launcher has put into the environment."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    return fsdp2_prepare_model(accelerator_of(mixed_precision), model)


def accelerator_of(mixed_precision: str) -> SimpleNamespace:
    """What sharding reads of an `Accelerator`."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, True)
    if mixed_precision != "no":
        plugin.set_mixed_precision(mixed_precision)
    return SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        parallelism_config=None,
        torch_device_mesh=None,
        mixed_precision=mixed_precision,
        is_main_process=distributed.get_rank() == 0,
        device=torch.device("cpu"),
    )


def units(model: nn.Module) -> dict[str, int]:
    """How many modules of which class are sharded as units of their own."""
    from torch.distributed.fsdp import FSDPModule

    names = [
        type(module).__name__.removeprefix("FSDP") for module in model.modules() if isinstance(module, FSDPModule)
    ]
    return {name: names.count(name) for name in names}


# -- DeepSpeed


def run_deepspeed(folder: Path) -> None:
    """The engine, with the configuration that accelerate makes of the launcher's settings and the Trainer fills in."""
    import deepspeed
    from accelerate.utils import DeepSpeedPlugin
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    rank = distributed.get_rank()
    for case in CASES:
        plugin = DeepSpeedPlugin()
        stage = plugin.deepspeed_config["zero_optimization"]["stage"]
        settings = HfTrainerDeepSpeedConfig(plugin.deepspeed_config)
        # no clipping: it would hide a gradient's wrong size
        settings.trainer_config_process(
            TrainingArguments(folder, per_device_train_batch_size=2, max_grad_norm=0.0, use_cpu=True, report_to="none")
        )
        # SGD, with whose steps no gradient's wrong size passes unseen
        settings.config["zero_allow_untested_optimizer"] = True
        # otherwise stage 3 would keep parameters as small as these whole
        settings.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        model = model_of(case)
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1e-2), config=settings.config
        )

        def update(loss: torch.Tensor, engine=engine) -> None:
            engine.backward(loss)
            engine.step()

        sharded = sum(parameter.numel() == 0 for parameter in model.parameters())
        losses = run_steps(engine, update, range(STEPS), rank, 2)
        result = {"losses": losses, "evaluation": evaluate(engine, rank, 2), "stage": stage, "sharded": sharded}
        _write(folder, f"deepspeed.{case}", result)


def _write(folder: Path, name: str, result: dict) -> None:
    rank = distributed.get_rank()
    result = {"world size": distributed.get_world_size(), "backend": distributed.get_backend(), **result}
    (folder / f"{name}.{rank}.json").write_text(json.dumps(result))


def main(task: str, folder: str) -> None:
    # here, with a limit: a process that waits in vain has to fail
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    {"ddp": run_ddp, "fsdp2": run_fsdp2, "deepspeed": run_deepspeed}[task](Path(folder))
    distributed.destroy_process_group()


if __name__ == "__main__":
    faulthandler.enable()
    main(*sys.argv[1:])
    # without the end of Python, at which threads of gloo that still hold tensors may abort the process (pytorch/pytorch#190489)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
