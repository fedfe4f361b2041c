"""The plug-in's own computations, without vLLM: rows, positions, lengths, slots, names in the cache, and refused options.

Two images of one and two tiles, at 4 tokens a tile before the expansion and 16 after it.
"""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dial_cases import dial
from internvlx_hf.processing.size_choices import Choice
from internvlx_hf.vllm.tile_rows import find_stages, read_prompt
from refusals import refused as refused_by_name
from tiny import LVTC, tiny_config, tiny_processor
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
        names = ("stage_attention", "kv_groups", "scheduler", "processing", "options")
        yield SimpleNamespace(**{name: import_module(f"internvlx_hf.vllm.{name}") for name in names})


@pytest.fixture(scope="module")
def prompt():
    return read_prompt(LENGTH, IMAGES, tiny_config(**LVTC))


def test_stage_one_has_text_and_the_first_rows_of_each_tile(prompt):
    assert prompt.late.diff().tolist() == [row == "2" for row in DRAWN]
    assert not prompt.early.any()
    assert [list(image) for image in prompt.images] == [list(range(2, 18)), list(range(19, 51))]


def test_what_vllm_carries_gives_the_numbers_of_each_stage(prompt):
    one, two = find_stages(tiny_config(**LVTC))
    carried, delta = prompt.carried(one.radix)
    rows = torch.arange(LENGTH)
    numbers, positions = one.places(rows, carried)
    assert numbers[torch.tensor(IN_STAGE_ONE)].tolist() == list(range(sum(IN_STAGE_ONE)))
    assert torch.equal(numbers, positions)
    assert two.is_long
    assert all(torch.equal(own, rows) for own in two.places(rows, carried))
    assert delta == sum(IN_STAGE_ONE) - LENGTH


def test_numbers_fit_into_32_bits():
    """The greatest prompt of a model with tiles that grow and tiles that shrink, half of it late rows, half early ones."""
    growing, *_ = find_stages(tiny_config(**dial(2, 2)))
    least = -(2**14) - growing.radix * 2**14
    assert least >= -(2**31)
    numbers, _ = growing.places(torch.tensor([2**15]), torch.tensor([2**15 + least]))
    assert numbers.tolist() == [2**14]


def test_slots_are_in_the_blocks_of_each_row_s_request(plugin):
    """Three requests of 3, 1 and 2 rows, in blocks of 4, and a padding request without rows."""
    blocks = torch.tensor([[7, 3], [5, 9], [2, 8], [0, 0]])
    common = SimpleNamespace(block_table_tensor=blocks, slot_mapping=torch.zeros(6, dtype=torch.int64))
    starts, positions = torch.tensor([0, 3, 4, 6, 6]), torch.tensor([2, 3, 4, 6, 0, 5])
    found = plugin.stage_attention.slot_mapping(common, starts, positions, block_size=4)
    assert found.tolist() == [7 * 4 + 2, 7 * 4 + 3, 3 * 4 + 0, 9 * 4 + 2, 2 * 4 + 0, 8 * 4 + 1]
    lengths = plugin.stage_attention._lengths(starts, positions, torch.int32)
    assert lengths.tolist() == [5, 7, 6, 0]


def test_a_request_s_length_in_a_stage_counts_its_prompt_and_what_was_decoded(plugin, prompt):
    counts = [sum(IN_STAGE_ONE[:tokens]) for tokens in range(LENGTH + 1)]
    assert [prompt.count(tokens, False, False) for tokens in range(LENGTH + 1)] == counts
    assert prompt.count(LENGTH + 3, False, False) == counts[-1] + 3
    manager = plugin.kv_groups.StageManager()
    manager.prompts = {"a": prompt}
    for spec, wanted in ((plugin.kv_groups.UnexpandedSpec, counts[-1]), (plugin.kv_groups.LongSpec, LENGTH)):
        manager.kv_cache_spec = spec
        assert manager._count("a", LENGTH) == wanted
        assert manager._count("another", 7) == 7


def test_blocks_are_shared_up_to_the_first_image_that_changes(plugin, prompt):
    of = plugin.kv_groups.reusable_length
    assert of(prompt, LENGTH) == 2
    assert of(prompt, 1) == 1
    assert of(None, LENGTH) == LENGTH
    config = tiny_config(**dial(2, 2))  # 16, 4, 4:16, 16:4, 16:0, 16:1
    names = ["a-0+0", "a-3+3"]
    images = [SimpleNamespace(identifier=n, **vars(image)) for n, image in zip(names, IMAGES, strict=True)]
    assert of(read_prompt(LENGTH, images, config), LENGTH) == 19
    assert of(read_prompt(LENGTH, images[:1], config), LENGTH) == LENGTH


@pytest.mark.parametrize("stage", [(True, False), (False, False), (True, True), (False, True)])
def test_each_kind_of_stage_has_its_own_blocks(plugin, stage):
    spec = plugin.kv_groups.spec_of(SimpleNamespace(is_expanded=stage[0], is_merged=stage[1]))
    assert (spec.is_expanded, spec.is_merged) == stage


@pytest.mark.parametrize(
    ("computed", "new", "scheduled"),
    [
        *((0, 2, 2), (0, 4, 2), (0, 18, 18), (0, 19, 19), (0, 25, 19), (2, 3, 0), (3, 1, 0)),
        *((19, 32, 32), (19, 31, 0), (18, 35, 35)),
    ],
)
def test_a_step_ends_before_an_image_that_it_would_split(plugin, prompt, computed, new, scheduled):
    assert plugin.scheduler.tokens_without_split(prompt, computed, new) == scheduled
    assert plugin.scheduler.tokens_without_split(None, computed, new) == new


def test_an_image_s_name_in_the_cache_has_its_limit_of_tiles_and_its_sizes(plugin, monkeypatch):
    base = plugin.processing.PlannedInputs.__base__
    monkeypatch.setattr(base, "get_mm_hashes", lambda self: {"image": ["a", "b"], "other": ["c"]}, raising=False)
    inputs, plan = plugin.processing.PlannedInputs(), plugin.processing.ImagePlan
    inputs.mm_data_items = SimpleNamespace(plans=[plan(6, Choice(0, 2)), plan(None, Choice(1, 1))])
    assert inputs.get_mm_hashes() == {"image": ["a-6-0+2", "b-1+1"], "other": ["c"]}


@pytest.fixture
def info(plugin):
    """What the processor knows of a model with many sizes: 16, 4, 4:16, 16:4, 16:0, 16:1."""
    config, found = tiny_config(**dial(2, 2)), plugin.processing.InternVLXProcessingInfo()
    processor = tiny_processor(config)
    found.get_hf_config, found.get_hf_processor = lambda: config, lambda: processor
    found.ctx = SimpleNamespace(get_merged_mm_kwargs=lambda _: {"tokens_per_tile": "4"})
    return found


def planned(plugin, info, number=2, **settings):
    class Items(plugin.processing.ImageProcessorItems):
        def __len__(self):
            return number

        def get(self, _):
            return Image.new("RGB", (64, 64))

    return info.image_plans(SimpleNamespace(hf_processor_mm_kwargs=settings, mm_data_items={"image": Items()}))


@pytest.mark.parametrize(
    ("settings", "plans"),
    [
        ({}, [(None, (1, 1))] * 2),
        ({"tokens_per_tile": "16:0"}, [(None, (4, 4))] * 2),
        ({"images_kwargs": {"tokens_per_tile": 16}}, [(None, (0, 0))] * 2),
        ({"tokens_per_tile": ["16:4", "16+4"]}, [(None, (3, 3)), (None, (0, 1))]),
        ({"tokens_per_tile": "16+4", "use_thumbnail": False}, [(None, (0, 0))] * 2),
        ({"tokens_per_tile": "16+4", "max_image_tokens": 200}, [(6, (0, 1))] * 2),
    ],
)
def test_a_request_chooses_the_sizes_of_each_image(plugin, info, settings, plans):
    assert planned(plugin, info, **settings) == plans


@pytest.mark.parametrize(
    ("settings", "value", "remedy"),
    [
        (
            {"tokens_per_tile": "64"},
            "tokens_per_tile='64' is not offered",
            "expected one of 16, 4, 4:16, 16:4, 16:0, 16:1",
        ),
        ({"tokens_per_tile": ["4"]}, "tokens_per_tile has 1 sizes for 2 images", "one for all"),
        ({"merge_rule": "one"}, "merge_rule='one'", "Expected 'mean'"),
        ({"tile_sizes": [1]}, "Unknown setting 'tile_sizes'", "tokens_per_tile"),
    ],
)
def test_what_a_request_cannot_choose_is_refused(plugin, info, settings, value, remedy):
    assert planned(plugin, info, merge_rule="mean")
    with refused_by_name(value, remedy):
        planned(plugin, info, **settings)


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
            **{"runner_type": "generate", "enable_prompt_embeds": False, "max_model_len": 1024},
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


def test_long_prompts_are_refused_where_sizes_grow_and_shrink(plugin):
    long = {"model_config__max_model_len": 40000}
    assert refused(plugin, tiny_config(**LVTC), **long) == []
    (found,) = refused(plugin, tiny_config(**dial(2, 2)), **long)
    assert found == "max_model_len=40000 above 32768 with sizes that grow and sizes that shrink"


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
