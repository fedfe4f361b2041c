"""The demo's whole path, in so few steps that it learns nothing, and what the demo promises about its pages."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import forked
from paths import ROOT

DEMO = ROOT / "demo"


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    import pages

    return pages


@pytest.fixture
def train(pages):
    import train

    return train


def test_no_digit_is_in_training_and_in_test_pages(pages):
    train, test = pages.Digits.load()
    assert len(train.labels) + len(test.labels) == 1797
    as_bytes = {shape.tobytes() for shape in train.shapes}
    assert not any(shape.tobytes() in as_bytes for shape in test.shapes)


def test_a_page_says_what_is_written_on_it(pages):
    digits, _ = pages.Digits.load()
    page = pages.compose_page(digits, (4, 8), np.random.default_rng(0))
    assert page.image.size == (64, 96)
    assert [len(line) for line in page.text.split("\n")] == [4] * 8


def test_the_model_has_pvtc_and_expands_4_tokens_per_tile_to_16(train):
    config = train.build_model(train.build_tokenizer()).config
    assert (config.image_seq_length, config.expanded_image_seq_length) == (4, 16)
    assert config.lvtc_config.expand_layer < config.text_config.num_hidden_layers
    assert config.lvtc_config.insertion_layers == [1]
    assert config.projectors == {
        "multi_modal_projector": ("pvtc", 4),
        "lvtc.lr_projectors.0": ("pixel_shuffle", 4),
        "lvtc.hr_projector": ("pvtc", 2),
    }


@pytest.mark.slow
def test_trains_saves_and_reads_without_the_package(tmp_path):
    def run(*command, **kwargs):
        env = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        return forked.python(*command, env=env, **kwargs)

    out = tmp_path / "demo"
    trained = run(DEMO / "train.py", "--out", out, "--steps", "4", "--test-pages", "1")
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "step 4/4  loss" in trained.stdout
    assert "{'" not in trained.stdout  # a log file gets readable lines
    assert "\r" not in trained.stderr  # and no bar, which is drawn anew for each step
    assert len(json.loads((out / "pages/pages.json").read_text())["pages"]) == 4

    # four steps teach nothing: the exit status says so, after everything else was done
    read = run(DEMO / "read.py", out, "--min-accuracy", "95", cwd=tmp_path)
    assert "below the required 95 %" in read.stderr, read.stderr[-3000:]
    assert read.returncode == 1
    assert "code comes from the checkpoint: transformers_modules" in read.stdout
    assert "layers 0-1  layers 2-3  InternVL" in read.stdout
    rows = [line.split() for line in read.stdout.splitlines() if line.lstrip().startswith("128x96")]
    assert rows[0][:6] == ["128x96", "64", "5", "20", "80", "208"]
    assert "accuracy per digit: " in read.stdout
    (again,) = re.findall(r"^ask it yourself: (.*)$", read.stdout, re.MULTILINE)
    program, *words = shlex.split(again)
    assert (program, words[0]) == (str(Path(sys.executable).with_name("internvlx")), "chat")
    assert (Path(words[1]) / "config.json").exists()
    assert Path(words[2]).exists()
    assert Image.open(out / "demo.png").width > 800
