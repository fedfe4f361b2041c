"""What a step leaves behind: no graph, no cache of the teacher's; and pauses, seeds and counts that differ from each other."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from internvlx_hf.training import InternVLXDataCollator
from internvlx_hf.training.arguments import InternVLXTrainingArguments
from internvlx_hf.training.distillation import DistillationTrainer
from internvlx_hf.training.divergence import DivergedError, DivergenceCheck
from internvlx_hf.training.metrics import ThroughputCallback
from tiny import tiny_batch, tiny_model, tiny_processor


def arguments(folder, **settings):
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, **settings}
    return InternVLXTrainingArguments(output_dir=str(folder), **settings)


def test_a_distilled_step_keeps_neither_its_graph_nor_a_cache_of_the_teacher(tmp_path):
    student, teacher = tiny_model().train(), tiny_model(seed=1)
    processor = tiny_processor(student.config)
    outputs = []
    teacher.register_forward_hook(lambda module, given, output: outputs.append(output))
    trainer = DistillationTrainer(student, arguments(tmp_path), teacher=teacher)
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    batch = InternVLXDataCollator(processor, teacher_processor=processor)([{"messages": turns}])
    trainer.compute_loss(student, batch).backward()
    assert outputs[0].past_key_values is None
    assert not outputs[0].logits.requires_grad
    assert all(not kept.requires_grad for kept in trainer._parts)
    assert student.lm_head.weight.grad is not None
    assert teacher.lm_head.weight.grad is None
    trainer.log({"eval_loss": 1.0})
    assert len(trainer._parts) == 1  # until the step's own log
    trainer.log(logs := {"loss": 1.0})
    assert (logs["ce_loss"] > 0, trainer._parts) == (True, [])
    trainer.log({"loss": 1.0})  # of steps without a teacher


def test_all_pauses_between_two_logs_are_left_out_of_the_rates():
    model, now = tiny_model().train(), [0.0]
    callback = ThroughputCallback(clock=lambda: now[0])
    state, control = TrainerState(), TrainerControl()
    told = (SimpleNamespace(device=torch.device("cpu")), state, control)
    callback.on_train_begin(*told, model=model)
    model(**tiny_batch(model.config, [[8, 2]]))
    for seconds, event in ((2, "on_step_end"), (100, "on_evaluate"), (1000, "on_save"), (3, "on_step_end")):
        now[0] += seconds
        getattr(callback, event)(*told)
    state.log_history.append(logs := {"loss": 1.0})
    callback.on_log(*told, logs=logs)
    assert logs["text_tokens_per_second"] == pytest.approx(10 / 5)


def test_three_damaged_steps_in_a_row_end_a_training_and_a_whole_one_starts_over():
    nan, fine = torch.tensor(torch.nan), torch.tensor(1.0)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    trainer = SimpleNamespace(
        args=SimpleNamespace(device=torch.device("cpu")), state=SimpleNamespace(global_step=8), optimizer=optimizer
    )
    check = DivergenceCheck()
    steps = [(nan, fine), (fine, nan), (fine, fine), (nan, nan), (nan, fine), (fine, nan)]
    for number, losses in enumerate(steps):
        for loss in losses:
            check.add(loss)
        if number < 5:
            check.end_step(trainer)
    with pytest.raises(DivergedError, match="steps 7 to 9"):
        check.end_step(trainer)
