"""The folder that a run writes, the checkpoint that it resumes from, and settings that differ from the checkpoint's."""

import re
from types import SimpleNamespace

import pytest

from internvlx_hf.cli import main
from internvlx_hf.training.resuming import check_output_folder, find_checkpoint


@pytest.mark.parametrize("steps", [(500, 1000), (1000, 500), (9, 10, 100), (99, 100, 1000, 998)])
def test_the_last_checkpoint_is_the_one_of_the_most_steps(steps, tmp_path):
    for step in steps:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
    arguments = SimpleNamespace(resume_from_checkpoint="last", output_dir=str(tmp_path))
    assert find_checkpoint(arguments) == str(tmp_path / f"checkpoint-{max(steps)}")
    arguments.resume_from_checkpoint = None
    with pytest.raises(ValueError, match=f"already holds checkpoint-{max(steps)}"):
        find_checkpoint(arguments)


@pytest.mark.parametrize(
    ("out", "file", "message"),
    [
        ("base", None, r"`model_name_or_path` is .*base, which is in `output_dir` .*base, where the trained model is"),
        (".", None, r"`model_name_or_path` is .*base, which is in `output_dir`"),
        (
            "out",
            "model-00001-of-00002.safetensors",
            r"`output_dir` .*out already holds a model \(model-00001-of-00002",
        ),
        (
            "out",
            "adapter_model.safetensors",
            r"already holds a model \(adapter_model.safetensors\), which this run would",
        ),
        ("out", "config.json", r"\(config.json\), .* Choose another `output_dir`, .* with `resume_from_checkpoint`"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--lora_rank", "2")], ids=["full", "LoRA"])
def test_a_run_does_not_replace_a_model_without_being_asked(out, file, message, flags, tmp_path, capsys):
    for folder in ("base", "out"):
        (tmp_path / folder).mkdir()
    if file:
        (tmp_path / out / file).write_text("{}")
    settings = ("--model_name_or_path", str(tmp_path / "base"), "--train_data", "nowhere.json", "--use_cpu", *flags)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", *settings, "--output_dir", str(tmp_path / out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_may_replace_the_model_that_it_resumes_and_no_other(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("")
    out, sources = str(tmp_path / "out"), {"model_name_or_path": "you/model", "teacher": None}
    check_output_folder(out, str(tmp_path / "out" / "checkpoint-3"), sources)
    with pytest.raises(ValueError, match=r"already holds a model \(model.safetensors\)"):
        check_output_folder(out, str(tmp_path / "other" / "checkpoint-3"), sources)
