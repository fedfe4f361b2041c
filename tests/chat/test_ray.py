"""`internvlx answer --ray` on a local Ray with two workers: nothing is lost and nothing is there twice, whoever is killed."""

import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path
from types import ModuleType

import psutil
import pytest

import forked
from commands import internvlx
from data_cases import write_lines
from image_cases import random_image
from internvlx_hf.chat.ray_answers import (
    LOCAL,
    SETTINGS_FILE,
    RayTask,
    ShardWorker,
    _claim,
    answer_on_ray,
    require_reachable,
)
from internvlx_hf.cli import main
from json_files import lines_of, write_json
from paths import ROOT
from refusals import refused
from tiny import tiny_model, tiny_processor

OVERLAY = ROOT / "build/ray"
needs_ray = pytest.mark.skipif(
    not (OVERLAY / ".installed").exists(), reason="needs build/ray, which `make test-integration` installs"
)
RECORDS, SHARD = 72, 4
MORE = ("--shard-size", SHARD, "--max-new-tokens", 64, "--device", "cpu", "--ray")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with a model, whose answers end after a few tokens, and questions; and the answers of one process."""
    folder = tmp_path_factory.mktemp("ray")
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(6, 320, 8))
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder / "model")
    tiny_processor(model.config, max_patches=2).save_pretrained(folder / "model")
    records = []
    for number in range(RECORDS):
        random_image(32 + 8 * (number % 5), 32, seed=number).save(folder / f"{number}.png")
        user = {"role": "user", "content": f"<image>\nWhat is number {number}?"}
        records.append({"messages": [user], "images": [f"{number}.png"]})
    (folder / "7.png").write_bytes(b"no image")
    write_lines(folder / "questions.jsonl", records)
    return folder


@pytest.fixture(scope="module")
def expected(job):
    """The answers of one process."""
    command = ["answer", job / "model", job / "questions.jsonl", job / "one.jsonl", "--max-new-tokens", 64]
    assert main([*map(str, command), "--device", "cpu"]) == 1  # an image is broken
    lines = by_key(lines_of(job / "one.jsonl"))
    assert len(lines) == RECORDS - 1
    return lines


def by_key(lines: list[dict]) -> dict[str, dict]:
    assert max(Counter(line["key"] for line in lines).values()) == 1
    return {line["key"]: line for line in lines}


def shards(out: Path) -> list[Path]:
    return sorted(out.glob("*.jsonl"))


def start(job: Path, out: Path) -> tuple[forked.Program, Path]:
    """The command as another process, and the file of what it prints to stderr."""
    files = [out.with_suffix(f".{name}") for name in ("in", "out", "err")]
    files[0].touch()
    env = dict(os.environ) | {"PYTHONPATH": str(OVERLAY), "RAY_memory_monitor_refresh_ms": "0"}
    command = ("-m", "internvlx_hf", "answer", job / "model", job / "questions.jsonl", out, *MORE)
    return forked.Program(command, files, env), files[2]


def wait_for(condition, program: forked.Program, errors: Path, seconds: float = 300):
    """What the condition gives, as soon as it gives something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, errors.read_text()
        assert psutil.pid_exists(program.id), errors.read_text()
        time.sleep(0.05)
    return found


def actors(program: forked.Program) -> list[psutil.Process]:
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(program.id).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found += [process] if "ShardWorker" in " ".join(process.cmdline()) else []
    return found


@pytest.mark.integration
@needs_ray
@pytest.mark.slow
def test_a_killed_worker_loses_and_repeats_no_record(job, expected, tmp_path):
    program, errors = start(job, tmp_path / "out")
    wait_for(lambda: len(shards(tmp_path / "out")) >= 3, program, errors)
    os.kill(wait_for(lambda: actors(program), program, errors)[0].pid, signal.SIGKILL)
    assert program.wait(timeout=400) == 1, errors.read_text()
    said = errors.read_text()
    assert f"{RECORDS - 1} answers" in said
    assert "1 record has no answer" in said
    assert "questions.jsonl, line 8" in said
    lines = by_key([line for shard in shards(tmp_path / "out") for line in lines_of(shard)])
    assert lines == expected
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        SETTINGS_FILE,
        *(f"part-{shard:06}.jsonl" for shard in range(RECORDS // SHARD)),
    }


@pytest.mark.integration
@needs_ray
@pytest.mark.slow
def test_a_killed_driver_continues_with_the_same_command(job, expected, tmp_path):
    out = tmp_path / "out"
    program, errors = start(job, out)
    wait_for(lambda: len(shards(out)) >= 3, program, errors)
    children = psutil.Process(program.id).children(recursive=True)
    os.kill(program.id, signal.SIGKILL)
    program.wait()
    for child in children:  # as on a machine that loses power
        with suppress(psutil.NoSuchProcess):
            child.kill()
    kept = {shard: shard.read_bytes() for shard in shards(out)}
    assert 3 <= len(kept) < RECORDS // SHARD
    assert all(content.endswith(b"\n") for content in kept.values())
    again, errors = start(job, out)
    assert again.wait(timeout=400) == 1, errors.read_text()
    earlier = sum(len(content.splitlines()) for content in kept.values())
    assert f"{earlier} are from earlier runs" in errors.read_text()
    assert by_key([line for shard in shards(out) for line in lines_of(shard)]) == expected
    for shard, content in kept.items():
        assert shard.read_bytes().startswith(content)


def test_answers_of_a_worker_that_died_before_it_told_are_of_this_run(job, tmp_path, monkeypatch):
    def results(_, own, __):
        worker = ShardWorker(own)
        worker.answer(0)  # its file has its name, and Ray hears nothing
        for shard in range(own.shards):
            yield json.loads(worker({"shard": [shard]})["result"][0])

    monkeypatch.setattr("internvlx_hf.chat.ray_answers._connected", nullcontext)
    monkeypatch.setattr("internvlx_hf.chat.ray_answers._results", results)
    outcome = answer_on_ray(LOCAL, on_the_job(job, tmp_path / "out", 24), job / "model")
    assert (outcome.answered, outcome.earlier, outcome.failed) == (RECORDS - 1, 0, 1)
    again = answer_on_ray(LOCAL, on_the_job(job, tmp_path / "out", 24), job / "model")
    assert (again.answered, again.earlier, again.failed) == (0, RECORDS - 1, 1)


def on_the_job(job: Path, out: Path, shard_size: int, records: int = RECORDS) -> RayTask:
    data = {"source": str(job / "questions.jsonl"), "image_root": None, "split": "train", "share_tiles": False}
    return RayTask(str(job / "model"), None, {}, data, out, records, {}, 8, 64, {"device": "cpu"}, shard_size)


def task(out: Path, **changed) -> RayTask:
    settings = {"model": "tiny", "max_patches": 6}
    return RayTask(
        "tiny", None, {}, {}, out, 20, **{"settings": settings, "batch_size": 8, "max_new_tokens": 9} | changed
    )


def test_a_folder_of_other_files_or_settings_is_refused(tmp_path):
    _claim(task(tmp_path))
    _claim(task(tmp_path))
    with refused("max_patches=6, this run has 12", "Choose another folder"):
        _claim(task(tmp_path, settings={"model": "tiny", "max_patches": 12}))
    with refused("shard_size=1000, this run has 10"):
        _claim(task(tmp_path, shard_size=10))
    (tmp_path / SETTINGS_FILE).rename(tmp_path / "notes.txt")
    with refused("holds 'notes.txt', which no earlier run wrote"):
        _claim(task(tmp_path))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("localhost:1", "--ray='localhost:1': no Ray cluster can be reached there"),
        ("ray://localhost:1", "--ray='ray://localhost:1': no Ray cluster"),
        ("cluster", "--ray='cluster', expected host:port"),
        ("host:99999", "--ray='host:99999', expected host:port"),
    ],
)
def test_a_ray_that_cannot_be_reached_is_refused(address, said):
    require_reachable(LOCAL)
    with refused(said):
        require_reachable(address)


def test_a_machine_without_a_cluster_leaves_no_folder(tmp_path, monkeypatch):
    ray = ModuleType("ray")

    def init(**_):
        raise ConnectionError("Could not find any running Ray instance.")

    ray.init, ray.data = init, ModuleType("ray.data")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    with refused("--ray='auto': no Ray cluster can be reached there (Could not find any running Ray instance.)"):
        answer_on_ray("auto", task(tmp_path / "out"), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
@needs_ray
def test_the_command_refuses_before_it_loads_a_model(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(OVERLAY))
    for name, loads in (("open_answerer", False), ("load_model", False)):
        monkeypatch.setattr(f"internvlx_hf.chat.loading.{name}", loads)
    write_json(tmp_path / "a.jsonl", {"messages": []})
    command = ["answer", "tiny", tmp_path / "a.jsonl", tmp_path / "out"]
    assert "no Ray cluster can be reached" in internvlx(capsys, *command, "--ray", "localhost:1", status=1).err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    assert "a folder of shards is for --ray" in internvlx(capsys, *command, status=1).err
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    assert "--ray writes a folder" in internvlx(capsys, *command, "--ray", status=1).err


def test_changed_data_are_refused(job, tmp_path):
    """A shard's file with the answer to a record that is no longer in its range."""
    own = on_the_job(job, tmp_path, SHARD)
    own.path(0).write_text(json.dumps({"key": "0" * 32, "messages": []}) + "\n")
    with refused("has 1 answers to other records … DATA has changed"):
        ShardWorker(own).answer(0)
    with refused(f"DATA has {RECORDS} records on … expected 9"):
        ShardWorker(on_the_job(job, tmp_path, SHARD, records=9)).answer(0)


def test_a_shard_whose_actors_die_is_given_up(job, tmp_path):
    own = on_the_job(job, tmp_path, SHARD)
    for death in range(6):
        (tmp_path / f"part-000001.jsonl.{death}.partial").touch()
    worker = ShardWorker(own)
    outcome = worker.answer(1)
    assert worker.answerer.model is None
    assert (outcome.failed, outcome.answered) == (SHARD, 0)
    with refused(f"part-000001.jsonl: 6 actors died that answered records {SHARD} to {2 * SHARD - 1}"):
        outcome.require_all("record", "")
    (tmp_path / "part-000001.jsonl.0.partial").unlink()
    assert worker.answer(1).answered == SHARD - 1  # an image is broken
    assert len(lines_of(own.path(1))) == SHARD - 1
