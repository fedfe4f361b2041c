"""Answers in bulk: batches of similar cost that fit into the memory, made ahead; failures that stop nothing; boxes."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pytest
import torch

import forked
from commands import internvlx
from dial_cases import dial
from image_cases import random_image
from internvlx_hf.chat import answer_images
from internvlx_hf.chat.answers import QUESTION_TOKENS, ImageJob
from internvlx_hf.chat.bulk import NAMED, Outcome, Plan, earlier_keys
from internvlx_hf.evaluation.answering import Answer, Answerer
from json_files import lines_of
from refusals import refused
from tiny import LVTC, save_tiny, tiny_model, tiny_processor
from training_helpers import TRAINED, sized


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    model = tiny_model(**LVTC)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return Answerer(model, tiny_processor(model.config, slicing="edge"))


def photos(folder: Path, count: int, small: bool = False) -> list[str]:
    """Images of very different costs, in an order that does not show it."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        size = (8, 8) if small else (32 * int(rng.integers(1, 6)), 32)
        random_image(*size, seed=number).save(folder / f"{number:05}.png")
        paths.append(str(folder / f"{number:05}.png"))
    return paths


@pytest.fixture
def asked(answerer, monkeypatch):
    """The batches that the model was asked, of which each answers with its number of tiles."""
    batches = []

    def complete(inputs, until=(), **kwargs):
        ids = inputs["input_ids"]
        counts = (ids == answerer.model.config.image_token_id).sum(1) // answerer.model.config.image_seq_length
        batches.append(counts.tolist())
        return [Answer(f"{count} tiles", 3) for count in counts.tolist()]

    monkeypatch.setattr(answerer, "complete", complete)
    return batches


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_images_of_similar_cost_whatever_the_number_of_workers(workers, answerer, asked, tmp_path):
    images, out = photos(tmp_path, 37), tmp_path / "out.jsonl"
    outcome = answer_images(answerer, images, "What?", out, {}, 4, num_workers=workers)
    assert (outcome.answered, outcome.failed) == (37, 0)
    assert [len(batch) for batch in asked] == [4] * 9 + [1]
    spread = sorted(count for batch in asked for count in batch)
    assert sum(max(batch) - min(batch) for batch in asked) < (spread[-1] - spread[0]) * 3
    lines = lines_of(out)
    assert sorted(line["image"] for line in lines) == images
    for line in lines:
        width, _ = PIL.Image.open(line["image"]).size
        tiles = width // 32
        assert line["answer"] == f"{tiles + (tiles > 1)} tiles"


def test_every_number_of_workers_makes_the_same_batches(answerer, asked, tmp_path):
    images, found = photos(tmp_path, 37), []
    for workers in (0, 1, 2):
        answer_images(answerer, images, "What?", tmp_path / f"{workers}.jsonl", {}, 4, num_workers=workers)
        found.append([line["image"] for line in lines_of(tmp_path / f"{workers}.jsonl")])
    assert found[0] == found[1] == found[2]


def test_a_batch_is_smaller_where_the_memory_would_not_suffice(answerer, tmp_path):
    job = ImageJob(answerer, photos(tmp_path, 16), "What?", None, [{}])
    plan = Plan(job, set(), 8, new_tokens=8)
    most = max(plan._row_bytes(64 + 4 * tiles, tiles) for tiles in range(1, 7))
    for room, largest in ((float("inf"), 8), (2.5 * most, 8), (1, 1)):
        plan.room = room
        groups = [group for group in plan if group.tiles]
        assert sum(len(group.items) for group in groups) == 16
        assert max(len(group.items) for group in groups) <= largest
        for group in groups:
            row = plan._row_bytes(64 + 4 * max(group.tiles), max(group.tiles))
            assert len(group.items) == 1 or len(group.items) * row <= room


@pytest.mark.parametrize("size", [None, "4", "16:4+4"])
def test_prompts_are_measured_in_the_sizes_that_are_asked_for(size, tmp_path):
    model = tiny_model(**dial(2, 3, TRAINED))
    answerer = Answerer(model, sized(model.config), {} if size is None else {"tokens_per_tile": size})
    job = ImageJob(answerer, photos(tmp_path, 4), "What?", None, [{}])
    for item in map(job.read, range(4)):
        prompt = job.prompt(item)
        placeholders = prompt.input_ids.count(model.config.image_token_id)
        assert job.measure(item) == (QUESTION_TOKENS + placeholders, len(prompt.tiles))


def test_broken_images_stop_nothing_and_are_named(answerer, asked, tmp_path):
    images, out = photos(tmp_path, 20), tmp_path / "out.jsonl"
    for number in (3, 11):
        Path(images[number]).write_bytes(Path(images[number]).read_bytes()[:60])  # its header can be read
    Path(images[7]).write_bytes(b"no image")
    outcome = answer_images(answerer, images, "What?", out, {}, 4, num_workers=1)
    assert (outcome.answered, outcome.failed) == (17, 3)
    assert sorted(name for name, _ in outcome.failures) == [images[3], images[7], images[11]]
    with refused(f"3 images have no answer: … {images[7]}: "):
        outcome.require_all("image", "")
    assert sum("error" in line for line in lines_of(out)) == 3
    random_image(32, 32).save(images[7])
    assert answer_images(answerer, images, "What?", out, {}, 4).answered == 1


def test_of_many_failures_the_first_are_named():
    outcome = Outcome(0, 0, 0, 25, tuple((f"{n}.png", "gone") for n in range(NAMED)))
    with refused("25 images have no answer … 9.png: gone; and 15 more"):
        outcome.require_all("image", "")


def test_a_batch_that_fails_is_asked_again_in_halves(answerer, asked, tmp_path, monkeypatch):
    images, out, inner = photos(tmp_path, 8), tmp_path / "out.jsonl", answerer.complete

    def complete(inputs, **kwargs):
        answers = inner(inputs, **kwargs)
        if len(answers) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if any(answer.text == "6 tiles" for answer in answers):
            raise ValueError("too long")
        return answers

    monkeypatch.setattr(answerer, "complete", complete)
    outcome = answer_images(answerer, images, "What?", out, {}, 8)
    lines = lines_of(out)
    long = [line["image"] for line in lines if line.get("error") == "too long"]
    assert outcome.failed == len(long) == sum(PIL.Image.open(image).width == 160 for image in images) > 0
    assert outcome.answered == 8 - len(long) == len([line for line in lines if "answer" in line])


def test_the_boxes_of_an_answer_are_a_column(answerer, tmp_path, monkeypatch):
    images, out = photos(tmp_path, 1), tmp_path / "out.jsonl"
    answers = [Answer("<ref>a cat</ref><box>[[0, 500, 1000, 1000]]</box>", 9)]
    monkeypatch.setattr(answerer, "complete", lambda inputs, **kwargs: answers)
    answer_images(answerer, images, "Where?", out, {})
    width, height = PIL.Image.open(images[0]).size
    (line,) = lines_of(out)
    assert line["boxes"] == [{"label": "a cat", "box": [0, height / 2, width, height]}]
    assert answerer.processor.parse_boxes(line["answer"], images[0]) == [("a cat", 0, height / 2, width, height)]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(answerer, asked, tmp_path):
    """2,000 images: what the process holds after the first tenth is what it holds at the end, but for digests of the lines."""
    (one,) = photos(tmp_path, 1, small=True)
    images = []
    for number in range(2_000):
        os.link(one, tmp_path / f"image-{number:05}.png")
        images.append(str(tmp_path / f"image-{number:05}.png"))
    held, complete = [], answerer.complete

    def measured(inputs, **kwargs):
        held.append(psutil.Process().memory_info().rss)
        return complete(inputs, **kwargs)

    answerer.complete = measured
    outcome = answer_images(answerer, images, "What?", tmp_path / "out.jsonl", {}, 8, num_workers=1)
    assert outcome.answered == 2_000
    assert max(held[-50:]) - max(held[25:50]) < 2 * 2**20
    assert len(earlier_keys(tmp_path / "out.jsonl", lambda line: line["image"].encode(), b"{")) == 2_000


KILLED_LATER = """
import os, signal, sys
from internvlx_hf.chat import bulk
from internvlx_hf.cli import main

written, finished = [], bulk._finished

def kill_later(*args):
    written.append(0)
    if len(written) == 18:
        os.kill(os.getpid(), signal.SIGKILL)
    return finished(*args)

bulk._finished = kill_later
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_continues_where_it_was(tmp_path, capsys):
    """SIGKILL between two batches and within a line: the same command again answers what is missing, and each once."""
    model, out = save_tiny(tmp_path / "model"), tmp_path / "out.jsonl"
    (tmp_path / "photos").mkdir()
    images = photos(tmp_path / "photos", 40)
    command = ["chat", model, tmp_path / "photos", "What?", "--jsonl", out, "--max-new-tokens", 3, "--batch-size", 4]

    # of the server, since a process in which torch has run cannot be forked and run it
    killed = forked.python("-c", KILLED_LATER, *command, "--device", "cpu")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = lines_of(out)
    assert len(kept) == 16
    with out.open("a") as file:
        file.write(json.dumps(kept[0])[:30])
    assert "24 answers, 16 are from earlier runs" in internvlx(capsys, *command, "--device", "cpu").err
    lines = lines_of(out)
    assert lines[:16] == kept
    assert sorted(line["image"] for line in lines) == images
