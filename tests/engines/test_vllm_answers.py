"""`internvlx answer --engine vllm`: the records that transformers writes, with the same keys but for the engine, in one
process and in Ray's actors."""

import os
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from commands import internvlx
from data_cases import write_lines
from internvlx_hf.chat.bulk import digest
from json_files import lines_of
from paths import ROOT
from tiny import LVTC, tiny_model, tiny_processor
from vllm_engines import ENVIRONMENT, HEADS, environment, image, installed_package

RAY = ROOT / "build/ray"
TABLES = ("pyarrow", "pandas", "dateutil")  # of this environment: Ray Data needs them, and vLLM does not bring them


def with_ray(folder: Path) -> list[Path]:
    """Folders for PYTHONPATH with which vLLM's environment finds Ray Data."""
    (folder / "tables").mkdir()
    for name in TABLES:
        (folder / "tables" / name).symlink_to(Path(find_spec(name).origin).parent)
    return [folder / "tables", RAY]


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

    def run(*command, **environment: str) -> None:
        done = subprocess.run(list(map(str, command)), env=process | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    run(*python)
    own, other = map(by_question, ([tmp_path / "own.jsonl"], [tmp_path / "vllm.jsonl"]))
    assert own.keys() == other.keys()
    assert len(own) == len(records)
    for key, line in own.items():
        assert line["messages"] == other[key]["messages"]
        assert other[key]["answered_by"]["engine"] == "vllm"
        assert line["key"] != other[key]["key"]
    if lvtc:
        python[6] = tmp_path / "shards"
        path = os.pathsep.join(map(str, [process["PYTHONPATH"], *with_ray(tmp_path)]))
        more = {"TMPDIR": tempfile.gettempdir(), "RAY_worker_niceness": "0"}  # names of sockets have to be short
        run(*python, "--ray", "--shard-size", 3, PYTHONPATH=path, **more)
        shards = sorted((tmp_path / "shards").glob("*.jsonl"))
        assert [path.name for path in shards] == ["part-000000.jsonl", "part-000001.jsonl"]
        assert by_question(shards) == other


def by_question(files: list[Path]) -> dict[bytes, dict]:
    lines = [line for file in files for line in lines_of(file)]
    found = {digest([line["messages"][:-1], line.get("images")]): line for line in lines}
    assert len(found) == len(lines)
    return found
