"""The plug-in's own computations, without vLLM: rows, positions, lengths, slots, names in the cache, and refused options.

Two images of one and two tiles, at 4 tokens a tile before the expansion and 16 after it.
"""

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tiny import LVTC, tiny_config
from vllm_stand_in import stand_in

BEFORE, AFTER = 4, 16
IMAGES = [SimpleNamespace(mm_position=SimpleNamespace(offset=o, length=n)) for o, n in ((2, AFTER), (19, 2 * AFTER))]
# the long sequence: text, a tile's rows of both stages, and those of stage two alone
TILE = "1" * BEFORE + "2" * (AFTER - BEFORE)
DRAWN = f"tt{TILE}t{TILE}{TILE}tt"
LENGTH = len(DRAWN)
IN_STAGE_ONE = [row in "t1" for row in DRAWN]


@pytest.fixture(scope="module")
def plugin():
    """The plug-in's modules by name."""
    with stand_in():
        names = ("stage_one", "kv_groups", "scheduler", "processing", "options")
        yield SimpleNamespace(**{name: import_module(f"internvlx_hf.vllm.{name}") for name in names})


@pytest.fixture(scope="module")
def rows(plugin):
    return plugin.stage_one.find_rows(LENGTH, IMAGES, BEFORE, AFTER)


def test_stage_one_has_text_and_the_first_rows_of_each_tile(rows):
    is_tile, in_stage_one = rows
    assert is_tile.tolist() == [row in "12" for row in DRAWN]
    assert in_stage_one.tolist() == IN_STAGE_ONE


def test_positions_count_the_short_sequence(plugin, rows):
    channels = plugin.stage_one.position_channels(*rows)
    short, text, counted = channels.tolist()
    assert [position for position in short if position >= 0] == list(range(sum(IN_STAGE_ONE)))
    assert [position >= 0 for position in short] == IN_STAGE_ONE
    assert [position >= 0 for position in text] == [row == "t" for row in DRAWN]
    assert counted == (np.cumsum(IN_STAGE_ONE) - 1).tolist()
    assert plugin.stage_one.position_delta(rows[1]) == sum(IN_STAGE_ONE) - LENGTH


def test_a_step_s_rows_are_those_of_stage_one_and_its_tiles(plugin, rows):
    sizes = torch.full((3,), BEFORE), torch.full((3,), AFTER)
    read = plugin.stage_one.read_rows(plugin.stage_one.position_channels(*rows), sizes)
    assert read.index.tolist() == [index for index, row in enumerate(DRAWN) if row in "t1"]
    assert read.positions.tolist() == list(range(sum(IN_STAGE_ONE)))
    of_stage_one = [row for row in DRAWN if row in "t1"]
    assert read.row_map.tiles.tolist() == [index for index, row in enumerate(of_stage_one) if row == "1"]
    assert read.row_map.tiles_to.tolist() == [index for index, row in enumerate(DRAWN) if row in "12"]
    without = plugin.stage_one.read_rows(torch.tensor([[4, 9], [4, 9], [4, 9]]))
    assert (without.index, without.positions.tolist()) == (None, [4, 9])


def test_slots_are_in_the_blocks_of_each_row_s_request(plugin):
    """Three requests of 3, 1 and 2 rows, in blocks of 4, and a padding request without rows."""
    blocks = torch.tensor([[7, 3], [5, 9], [2, 8], [0, 0]])
    common = SimpleNamespace(block_table_tensor=blocks, slot_mapping=torch.zeros(6, dtype=torch.int64))
    starts, positions = torch.tensor([0, 3, 4, 6, 6]), torch.tensor([2, 3, 4, 6, 0, 5])
    found = plugin.stage_one.slot_mapping(common, starts, positions, block_size=4)
    assert found.tolist() == [7 * 4 + 2, 7 * 4 + 3, 3 * 4 + 0, 9 * 4 + 2, 2 * 4 + 0, 8 * 4 + 1]
    lengths = plugin.stage_one._short_lengths(starts, positions, torch.int32)
    assert lengths.tolist() == [5, 7, 6, 0]


def test_a_request_s_short_length_counts_its_prompt_and_what_was_decoded(plugin):
    lengths = plugin.kv_groups.ShortLengths()
    lengths.add("a", np.array(IN_STAGE_ONE))
    counts = [sum(IN_STAGE_ONE[:tokens]) for tokens in range(LENGTH + 1)]
    assert [lengths.of("a", tokens) for tokens in range(LENGTH + 1)] == counts
    assert lengths.of("a", LENGTH + 3) == counts[-1] + 3
    assert lengths.of("another", 7) == 7
    lengths.remove("a")
    assert lengths.of("a", LENGTH) == LENGTH


def test_blocks_are_shared_up_to_the_first_image(plugin):
    of = plugin.kv_groups.reusable_length
    assert of(SimpleNamespace(mm_features=IMAGES, num_tokens=LENGTH)) == 2
    assert of(SimpleNamespace(mm_features=[], num_tokens=LENGTH)) == LENGTH


@pytest.mark.parametrize(
    ("computed", "new", "scheduled"),
    [
        *((0, 2, 2), (0, 4, 2), (0, 18, 18), (0, 19, 19), (0, 25, 19), (2, 3, 0), (3, 1, 0)),
        *((19, 32, 32), (19, 31, 0), (18, 35, 35)),
    ],
)
def test_a_step_ends_before_an_image_that_it_would_split(plugin, computed, new, scheduled):
    request = SimpleNamespace(mm_features=IMAGES)
    assert plugin.scheduler.tokens_without_split(request, computed, new) == scheduled


def test_an_image_s_name_in_the_cache_has_its_limit_of_tiles(plugin, monkeypatch):
    base = plugin.processing.LimitedInputs.__base__
    monkeypatch.setattr(base, "get_mm_hashes", lambda self: {"image": ["a", "b"], "other": ["c"]}, raising=False)
    inputs = plugin.processing.LimitedInputs()
    inputs.mm_data_items = SimpleNamespace(tile_limits=[6, 2])
    assert inputs.get_mm_hashes() == {"image": ["a-6", "b-2"], "other": ["c"]}


@pytest.mark.parametrize(("wrappers", "expected"), [((7, 8), [1, 7, 5, 8, 2, 7, 5, 8]), ((), [1, 5, 2, 5])])
def test_each_image_token_gets_the_tokens_around_an_image(plugin, wrappers, expected):
    processor = plugin.processing.InternVLXMultiModalProcessor()
    own = SimpleNamespace(image_token_id=5, wrapper_ids=wrappers)
    processor.info = SimpleNamespace(get_hf_processor=lambda: own)
    assert processor._postprocess_prompt([1, 5, 2, 5]) == expected


def settings(config, **changed):
    """A vLLM configuration of supported options, with some `part__name` of them changed."""
    nothing = ("kv_transfer_config", "ec_transfer_config", "lora_config", "speculative_config")
    parts = {
        "model_config": {
            **{"multimodal_config": None, "hf_config": config, "quantization": None},
            **{"runner_type": "generate", "enable_prompt_embeds": False},
        },
        "cache_config": {"kv_offloading_size": None, "cache_dtype": "auto"},
        "scheduler_config": {
            **{"max_num_scheduled_tokens": None, "max_num_batched_tokens": 64, "scheduler_cls": None},
            **{"disable_hybrid_kv_cache_manager": None, "long_prefill_token_threshold": 0},
        },
        "parallel_config": {
            "enable_dbo": False,
            "ubatch_size": 0,
            "pipeline_parallel_size": 1,
            "data_parallel_size": 1,
        },
        "compilation_config": {"cudagraph_mode": None},
    }
    for name, value in changed.items():
        part, _, field = name.partition("__")
        if field:
            parts[part][field] = value
    whole = {name: changed.get(name) for name in nothing}
    return SimpleNamespace(**whole, **{name: SimpleNamespace(**part) for name, part in parts.items()})


def ngram(drafts):
    return SimpleNamespace(method="ngram", num_speculative_tokens=drafts)


REFUSED = {
    "pipeline_parallel_size=2": {"parallel_config__pipeline_parallel_size": 2},
    "data_parallel_size=2": {"parallel_config__data_parallel_size": 2},
    "enable_dbo": {"parallel_config__ubatch_size": 2},
    "kv_cache_dtype='fp8'": {"cache_config__cache_dtype": "fp8"},
    "kv_offloading_size=1": {"cache_config__kv_offloading_size": 1},
    "quantization='fp8'": {"model_config__quantization": "fp8"},
    "runner='pooling'": {"model_config__runner_type": "pooling"},
    "scheduler_cls='mine'": {"scheduler_config__scheduler_cls": "mine"},
    "long_prefill_token_threshold=1": {"scheduler_config__long_prefill_token_threshold": 1},
    "max_num_scheduled_tokens=63 below max_num_batched_tokens": {"scheduler_config__max_num_scheduled_tokens": 63},
    "speculative method 'eagle' (only 'ngram')": {
        "speculative_config": SimpleNamespace(method="eagle", num_speculative_tokens=1)
    },
    "enable_lora (merge the adapter with `internvlx merge`)": {"lora_config": object()},
}
SUPPORTED = {
    "nothing": {},
    "as many scheduled as batched tokens": {"scheduler_config__max_num_scheduled_tokens": 64},
    "drafts without graphs": {"speculative_config": ngram(99)},
}


def refused(plugin, config, **changed):
    return [name for name, is_set in plugin.options.unsupported_options(settings(config, **changed)).items() if is_set]


@pytest.mark.parametrize("option", REFUSED)
def test_an_unsupported_option_is_named_with_its_value(plugin, option):
    assert refused(plugin, tiny_config(**LVTC), **REFUSED[option]) == [option]


@pytest.mark.parametrize("option", SUPPORTED)
def test_supported_options_are_not_refused(plugin, option):
    assert refused(plugin, tiny_config(**LVTC), **SUPPORTED[option]) == []


def test_drafts_as_long_as_a_tile_are_refused_with_graphs(plugin):
    graphs = {"compilation_config__cudagraph_mode": plugin.options.GRAPHS[1]}
    config = tiny_config(**LVTC)  # 16 tokens a tile
    assert refused(plugin, config, speculative_config=ngram(14), **graphs) == []
    (found,) = refused(plugin, config, speculative_config=ngram(15), **graphs)
    assert found == "num_speculative_tokens=15 with CUDA graphs and 16 tokens per tile"


@pytest.mark.parametrize(
    ("text", "settings_of_text", "uses"),
    [
        ("llama", {}, False),
        ("mistral", {"sliding_window": 8}, True),
        ("qwen2", {"sliding_window": 8, "layer_types": ["full_attention"] * 4, "use_sliding_window": True}, False),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}, True),
    ],
)
def test_a_window_counts_where_a_layer_uses_it(plugin, text, settings_of_text, uses):
    assert plugin.options.uses_sliding_window(tiny_config(text, text_config=settings_of_text, **LVTC)) is uses
