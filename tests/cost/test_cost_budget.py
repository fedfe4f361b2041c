# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""The cost of prompts whose images and frames share a budget of visual tokens."""

import json
from dataclasses import replace

import pytest

from commands import internvlx
from image_cases import random_image
from internvlx_hf import cost
from internvlx_hf.cost import CostModel
from internvlx_hf.cost.report import Report
from internvlx_hf.processing.image_settings import ImageSettings
from tiny import IMAGE_TOKEN, LVTC, TILE, tiny_config, tiny_processor

SIZES = [(3 * TILE, 2 * TILE), (20, 15), (2 * TILE, 2 * TILE)]
CONFIG = tiny_config(**LVTC)
TOKENS = CONFIG.image_seq_length


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint without weights, whose saved budget is 9 tiles."""
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = tiny_processor(CONFIG, slicing="ratio", max_patches=6)
    processor.max_image_tokens = 9 * TOKENS
    processor.save_pretrained(folder)
    CONFIG.save_pretrained(folder)
    return folder, processor


@pytest.mark.parametrize("tiles", [None, 5, 7, 10, 22])
def test_the_cost_counts_the_tokens_of_the_processor(checkpoint, tiles):
    folder, processor = checkpoint
    setup = cost.load_setup(folder)
    assert setup.max_image_tokens == 9 * TOKENS
    budget = None if tiles is None else tiles * TOKENS
    images, frames = [random_image(*size) for size in SIZES], [random_image(9, 9)] * 2
    inputs = processor(images=images, text="<image>" * 3 + "<video>", videos=[frames], max_image_tokens=budget)
    setup = setup.changed(ImageSettings(max_image_tokens=budget))
    found = CostModel(setup).together(SIZES, frames=2)
    assert found.stage_one_tokens == inputs["input_ids"][0].count(IMAGE_TOKEN) <= setup.max_image_tokens
    assert found.tiles == len(inputs["pixel_values"])


def test_the_report_shows_each_image_s_share(checkpoint, capsys):
    folder, _ = checkpoint
    sizes = [argument for width, height in SIZES for argument in ("--size", f"{width}x{height}")]
    text = internvlx(
        capsys, "cost", *sizes, "--model", folder, "--together", "--full", "--max-image-tokens", 5 * TOKENS
    ).out
    assert f"The images of a prompt share a budget of {5 * TOKENS} visual tokens; native InternVL has none." in text
    lines = text[text.index("Each image's share of the budget") :].splitlines()
    assert [line.split()[-2:] for line in lines[3:6]] == [["3", "12"], ["1", "4"], ["1", "4"]]
    own = json.loads(internvlx(capsys, "cost", *sizes, "--model", folder, "--together", "--json").out)["settings"][0]
    assert own["max_image_tokens"] == 9 * TOKENS
    assert own["prompts"][0]["tiles"] <= 9


def test_a_budget_too_small_is_refused_and_setups_that_it_is_too_small_for_are_left_out(checkpoint, capsys):
    folder, _ = checkpoint
    arguments = ["cost", "--size", "20x15", "--size", "20x15", "--together", "--model", str(folder)]
    assert (
        "max_image_tokens=7 is too small: 2 images take at least 8 visual tokens"
        in internvlx(capsys, *arguments, "--max-image-tokens", "7", status=1).err
    )
    assert (
        "--max-image-tokens=0, expected a whole number of at least 1"
        in internvlx(capsys, *arguments, "--max-image-tokens", "0", status=1).err
    )
    assert "Left out" not in internvlx(capsys, *arguments, "--full", "--max-image-tokens", "8").out
    assert (
        "5 frames take at least 20 visual tokens"
        in internvlx(capsys, "cost", "--video", "5s", "--model", folder, "--max-image-tokens", "19", status=1).err
    )


def test_a_preset_and_its_variants_keep_the_budget_that_native_internvl_does_not_have():
    setup = cost.load_setup("internvl-x-2b").changed(ImageSettings(max_image_tokens=1024))
    setups, _ = cost.side_by_side(setup)
    assert {(each.max_image_tokens, each.is_native) for each in setups} == {(1024, False), (None, True)}
    assert not setup.costs_as(replace(setup, settings=ImageSettings()))
    images = cost.images.ImageSizes(["a", "b"], [(1792, 1792)] * 2)
    report = Report(images, [CostModel(each) for each in setups], together=True)
    for model, costs in zip(report.models, report.costs, strict=True):
        assert (costs[0].stage_one_tokens <= 1024) == (not model.setup.is_native)


@pytest.mark.parametrize("budget", [None, 256])
def test_native_internvl_s_row_has_its_own_tiles_under_any_budget(budget, capsys):
    more = [] if budget is None else ["--max-image-tokens", str(budget)]
    rows = json.loads(
        internvlx(capsys, "cost", "--size", "1920x1080", "--model", "internvl2-2b", "--json", *more).out
    )["settings"]
    unbudgeted = {row["max_tiles"]: row["average_tiles"] for row in rows if row["max_image_tokens"] is None}
    assert (unbudgeted[6], unbudgeted[12]) == (3, 9)
