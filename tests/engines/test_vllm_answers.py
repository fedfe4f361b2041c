"""`internvlx answer --engine vllm`: the records that transformers writes, with the same keys but for the engine."""

import subprocess

import pytest

from commands import internvlx
from data_cases import write_lines
from internvlx_hf.chat.bulk import digest
from json_files import lines_of
from tiny import LVTC, tiny_model, tiny_processor
from vllm_engines import ENVIRONMENT, HEADS, environment, image, installed_package


@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["without", "with"])
def test_vllm_writes_the_answers_of_transformers(lvtc, tmp_path, capsys):
    layers = {"num_hidden_layers": 4} if lvtc else {}
    model = tiny_model("qwen2", text_config=HEADS | layers, **lvtc)
    model.generation_config.eos_token_id = list(range(6, 320, 8))  # an answer ends after a few tokens
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path / "model")
    tiny_processor(model.config, max_patches=4).save_pretrained(tmp_path / "model")
    for name in ("one", "many", "wide"):
        image(name).save(tmp_path / f"{name}.png")
    asked = [
        (("one",), "What?"),
        (("many",), "Read it."),
        (("many", "one"), "Both?"),
        ((), "Why?"),
        (("wide",), "And?"),
    ]
    records = [
        {
            "messages": [{"role": "user", "content": "<image>\n" * len(names) + text}],
            "images": [f"{n}.png" for n in names],
        }
        for names, text in asked
    ]
    records[2]["images_kwargs"] = {"max_patches": 2}
    data = write_lines(tmp_path / "questions.jsonl", records)
    command = ["answer", tmp_path / "model", data, tmp_path / "own.jsonl", "--dtype", "float32", "--allow-text"]
    internvlx(capsys, *command, "--device", "cpu", "--max-new-tokens", "60")
    command[3] = tmp_path / "vllm.jsonl"
    process = environment(tmp_path, installed_package(tmp_path)) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    python = [ENVIRONMENT / "bin/python", "-m", "internvlx_hf", *command, "--engine", "vllm", "--max-new-tokens", "60"]
    done = subprocess.run(list(map(str, python)), env=process, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    own, other = (
        {digest([line["messages"][:-1], line.get("images")]): line for line in lines_of(file)}
        for file in (tmp_path / "own.jsonl", tmp_path / "vllm.jsonl")
    )
    assert own.keys() == other.keys()
    assert len(own) == len(records)
    for key, line in own.items():
        assert line["messages"] == other[key]["messages"]
        assert other[key]["answered_by"]["engine"] == "vllm"
        assert line["key"] != other[key]["key"]
