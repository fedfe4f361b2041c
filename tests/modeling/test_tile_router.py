"""InternVL3.5-Flash's router: it chooses the sizes of tiles in `generate`, and from outside nothing else changes.

That it computes what the release does is tested in tests/conversion/test_flash.py.
"""

from copy import deepcopy

import pytest
import torch
from transformers import GenerationConfig

from internvlx_hf import InternVLXForConditionalGeneration
from internvlx_hf.modeling.outputs import CACHE
from internvlx_hf.training.parameters import choose_trainable
from lvtc_cases import MIXED, new_tokens
from tiny import LVTC, split_batch, tiny_batch, tiny_config, tiny_model

ROUTER = {"router_relative_threshold": 0.0, "router_absolute_threshold": 0.0}
PIXEL_SHUFFLE = {"projector_config": {"projector_type": "pixel_shuffle"}}


@pytest.fixture(scope="module")
def model():
    return tiny_model(**PIXEL_SHUFFLE, **ROUTER)


def read_lengths(model, batch, **kwargs):
    """Rows of the prompt that the language model reads."""
    lengths = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, __, inputs: lengths.append(inputs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    new_tokens(model, batch, **kwargs)
    hook.remove()
    return lengths[0]


def test_all_tiles_but_one_are_compressed_by_thresholds_of_zero(model):
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2, "tile", 4]])
    assert read_lengths(model, batch) == 9 + 16 + 2 * 4


@pytest.mark.parametrize("layout", [[5], [2, "tile", 3]], ids=["no tile", "one tile"])
def test_a_lone_tile_is_never_compressed(model, layout):
    batch = tiny_batch(model.config, [layout])
    assert read_lengths(model, batch) == batch["input_ids"].shape[1]
    plain = tiny_model(**PIXEL_SHUFFLE)
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if "tile_router" not in name})
    assert torch.equal(new_tokens(model, batch), new_tokens(plain, batch))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_answers_of_a_sample_do_not_depend_on_its_batch(model, padding_side):
    batch = tiny_batch(model.config, MIXED, padding_side=padding_side)
    alone = torch.cat([new_tokens(model, sample) for sample in split_batch(batch, model.config)])
    assert len(alone.unique(dim=0)) > 1
    assert torch.equal(new_tokens(model, batch), alone)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"max_new_tokens": None, "max_length": 60, "min_new_tokens": None, "eos_token_id": -1},
        {"return_dict_in_generate": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_way_to_generate_returns_the_whole_prompt(model, settings):
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    prompt = batch["input_ids"].shape[1]
    output = model.generate(**batch, **{"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1} | settings)
    sequences = getattr(output, "sequences", output)
    assert (sequences[:, :prompt] == batch["input_ids"]).all()
    assert sequences.shape[1] == settings.get("max_length", prompt + 8)
    assert len(sequences) == settings.get("num_return_sequences", 1)
    if "num_beams" not in settings:
        greedy = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=-1)
        assert torch.equal(sequences[:, : prompt + 8], greedy)
    if "return_dict_in_generate" in settings:
        assert getattr(output, CACHE) is None


@pytest.mark.parametrize("given", ["keyword", "config", "keyword over config", "default"])
def test_lengths_count_the_prompt_as_it_was_passed(model, monkeypatch, given):
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    prompt = batch["input_ids"].shape[1]
    lengths = {"max_length": prompt + 6, "min_length": prompt + 4}
    greedy = {"do_sample": False, "pad_token_id": 0}
    all_but_one = list(range(1, model.config.text_config.vocab_size))  # ends an answer as soon as it may
    if given == "default":
        for name, value in lengths.items():
            monkeypatch.setattr(model.generation_config, name, value)
    for eos, length in ((-1, 6), (all_but_one, 5)):
        settings = greedy | {"eos_token_id": eos}
        expected = model.generate(**batch, **settings, max_new_tokens=6, min_new_tokens=4)
        assert expected.shape[1] == prompt + length
        config, keywords = None, settings
        if given == "config":
            config, keywords = GenerationConfig(**settings, **lengths), {}
        elif given == "keyword over config":
            config = GenerationConfig(max_length=3, min_length=1)
        before = deepcopy(config)
        keywords = keywords | (lengths if given.startswith("keyword") else {})
        assert torch.equal(model.generate(**batch, generation_config=config, **keywords), expected)
        assert config == before


@pytest.mark.parametrize("given", [None, ["16", "4"], [16, 4]])
def test_its_two_sizes_are_those_of_the_model(given):
    config = tiny_config(**PIXEL_SHUFFLE, **ROUTER, tokens_per_tile=given)
    assert list(map(str, config.sizes)) == config.tokens_per_tile == ["16", "4"]
    assert config.boundaries == []


def sized_batch(config, sizes):
    """A prompt with as many placeholders as the sizes, indices, of its tiles have tokens, and text between them."""
    batch = tiny_batch(config, [["tile"] * len(sizes)])
    ids = []
    for tile, size in enumerate(sizes):
        ids += [10 + tile, *[config.image_token_id] * config.sizes[size].before]
    pixels = batch["pixel_values"]
    return {"input_ids": torch.tensor([[*ids, 9]]), "pixel_values": pixels, "tile_sizes": torch.tensor(sizes)}


@pytest.mark.parametrize("sizes", [[1], [0, 0], [1, 1], [1, 0, 0, 1]])
def test_a_request_that_chooses_sizes_gets_them(model, sizes):
    batch = sized_batch(model.config, sizes)
    images = model.get_image_features(batch["pixel_values"], return_dict=True)
    small = model.model.tile_router.projector(images.last_hidden_state)
    tokens = [(images.pooler_output, small)[size][tile] for tile, size in enumerate(sizes)]
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    embeddings[batch["input_ids"] == model.config.image_token_id] = torch.cat(tokens)
    torch.testing.assert_close(model(**batch).logits, model(inputs_embeds=embeddings).logits, atol=1e-4, rtol=1e-4)
    expected = model.generate(inputs_embeds=embeddings, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    answers = model.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    assert torch.equal(answers[:, batch["input_ids"].shape[1] :], expected)


def test_the_router_s_choice_is_that_of_a_request_with_its_sizes(model):
    batch = tiny_batch(model.config, [[1, "tile", 1, "tile", 1, "tile", 1]])
    images = model.get_image_features(batch["pixel_values"], tiles_per_sample=[3], return_dict=True)
    sizes = images.deepstack_features[-1].tolist()
    assert sorted(sizes) == [0, 1, 1]
    chosen = sized_batch(model.config, sizes)
    chosen["pixel_values"] = batch["pixel_values"]
    is_text = chosen["input_ids"] != model.config.image_token_id
    chosen["input_ids"][is_text] = batch["input_ids"][batch["input_ids"] != model.config.image_token_id]
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}
    answers = [model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :] for inputs in (batch, chosen)]
    assert torch.equal(*answers)


def test_the_router_is_not_trained():
    model = tiny_model(**PIXEL_SHUFFLE, **ROUTER)
    for stage in (1, 2):
        choose_trainable(model, stage)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained
        assert not any("tile_router" in name for name in trained)


def test_it_is_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = InternVLXForConditionalGeneration.from_pretrained(tmp_path)
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    assert torch.equal(new_tokens(loaded, batch), new_tokens(model, batch))


def test_a_cache_of_earlier_turns_is_refused(model):
    batch = tiny_batch(model.config, [[3, "tile", "tile", 2]])
    cache = model(**batch, use_cache=True).cache
    with pytest.raises(ValueError, match=rf"takes no `{CACHE}` with images and a tile router.*router='drop'"):
        model.generate(**batch, cache=cache)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"router_relative_threshold": 0.1}, "needs both thresholds"),
        ({**ROUTER, "router_absolute_threshold": 1.5}, r"must be in 0\.\.\.1, got .*1\.5"),
        ({**ROUTER, **LVTC}, "does not go with LVTC"),
        ({**ROUTER, "vision_feature_layer": -2}, "needs `vision_feature_layer`=-1, got -2"),
        ({**ROUTER, "vision_config": {"hidden_size": 24}}, "a tower of 16 n channels, got 24"),
        ({**ROUTER, "downsample_ratio": 0.25}, "compressed tile.*16x16 patches, which do not divide the 8x8"),
    ],
)
def test_impossible_routers_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**PIXEL_SHUFFLE, **settings)
