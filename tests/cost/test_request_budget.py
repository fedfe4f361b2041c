# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a request may cost: one object for the server and the page."""

from dataclasses import fields

import pytest

from internvlx_hf.cost.request_budget import DEFAULT_NEW_TOKENS, RequestBudget
from internvlx_hf.web.limits import Limits
from refusals import refused
from tiny import LVTC, tiny_config

CONFIG = tiny_config(**LVTC)  # 4 tokens per tile, 16 after the expansion, 1024 positions


def test_the_page_has_the_server_s_defaults():
    page, server = Limits(), RequestBudget()
    assert {each.name: getattr(page, each.name) for each in fields(server)} == vars(server)


@pytest.mark.parametrize("limit", [each.name for each in fields(RequestBudget)])
def test_each_limit_is_refused_with_its_number(limit):
    budget = RequestBudget(**{limit: 7})
    budget.check(**{limit: 7})
    with refused("The request has 8", f"at most 7 ({limit})"):
        budget.check(**{limit: 8})
    for wrong in (0, -1, 1.5, True, "7"):
        with refused(f"{limit}="):
            RequestBudget(**{limit: wrong})


def test_pixels_are_counted_per_image_and_together():
    RequestBudget().check_sizes([(5000, 10_000)] * 2)
    with refused("88360000 pixels in an image", "at most 50000000"):
        RequestBudget().check_sizes([(9400, 9400)])
    with refused("120000000 pixels in all images", "at most 100000000"):
        RequestBudget().check_sizes([(5000, 8000)] * 3)


def test_prompt_and_answer_share_the_model_s_positions():
    new_tokens = RequestBudget().new_tokens
    assert new_tokens(CONFIG, 1000) == 24
    assert new_tokens(CONFIG, 1000, requested=24) == 24
    assert new_tokens(CONFIG, 1000, tiles=1) == 12  # 12 more positions after the expansion
    assert new_tokens(CONFIG, 10, requested=7) == 7
    for arguments in ({"prompt_tokens": 1000, "requested": 25}, {"prompt_tokens": 1024}):
        with refused("together at most 1024, the model's positions"):
            new_tokens(CONFIG, **arguments)
    with refused("1024 tokens after the expansion, and the answer up to 1"):
        new_tokens(CONFIG, 1012, tiles=1)


def test_an_answer_is_not_longer_than_the_budget_by_default():
    longer = tiny_config(text_config={"max_position_embeddings": 9999})
    assert RequestBudget().new_tokens(longer, 10) == DEFAULT_NEW_TOKENS
    assert RequestBudget(max_new_tokens=8).new_tokens(longer, 10) == 8
