"""The cache has two names, `cache` and `past_key_values`, with every supported transformers; outputs are our own."""

import pickle
from contextlib import nullcontext

import pytest
import torch
from transformers import DynamicCache
from transformers.utils import ModelOutput

from internvlx_hf.modeling.outputs import CACHE, InternVLXCausalLMOutputWithPast, InternVLXModelOutputWithPast
from lvtc_cases import GREEDY, LVTC
from tiny import tiny_batch, tiny_model

NAMES = ["cache", "past_key_values"]
OLD_NAME_WARNS = CACHE == "cache"


def naming(name: str):
    """transformers' own models warn of the old name where the new one exists, and so do ours."""
    deprecated = OLD_NAME_WARNS and name == "past_key_values"
    return pytest.warns(FutureWarning, match="`past_key_values` is deprecated") if deprecated else nullcontext()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", [False, True], ids=["with head", "without head"])
@pytest.mark.parametrize("lvtc", [{}, LVTC], ids=["one stage", "LVTC"])
def test_a_forward_continues_on_a_cache_under_either_name(lvtc, base, name):
    model = tiny_model("llama", **lvtc)
    model = model.model if base else model
    batch, later = tiny_batch(model.config, [[3, "tile", 2]]), torch.tensor([[11]])
    cache = DynamicCache(config=model.config.text_config)
    with naming(name):
        model(**batch, **{name: cache})
    with naming(name):
        found = model(input_ids=later, **{name: cache})
    expected = model(**batch | {"input_ids": torch.cat([batch["input_ids"], later], dim=1), "attention_mask": None})
    torch.testing.assert_close(found[0][:, -1], expected[0][:, -1], atol=1e-4, rtol=1e-4)
    assert found.cache is cache


@pytest.mark.parametrize("name", NAMES)
def test_generate_continues_on_a_cache_under_either_name(name, nothing_deprecated_is_used):
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", 2]])
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(**{key: value[:, :-1] if value.ndim == 2 else value for key, value in batch.items()}, cache=cache)
    rest = {key: value for key, value in batch.items() if key != "pixel_values"}
    assert torch.equal(model.generate(**rest, **GREEDY, **{name: cache}), model.generate(**batch, **GREEDY))


def test_two_caches_are_refused():
    model = tiny_model("llama")
    caches = {name: DynamicCache(config=model.config.text_config) for name in NAMES}
    with pytest.raises(ValueError, match="`cache` and `past_key_values` are two names of one argument"):
        model.generate(**tiny_batch(model.config, [[3]]), **caches, **GREEDY)


@pytest.mark.parametrize("kind", [InternVLXModelOutputWithPast, InternVLXCausalLMOutputWithPast])
def test_an_output_s_cache_can_be_read_under_both_names(kind):
    cache, hidden = DynamicCache(), torch.zeros(1)
    output = kind(**{CACHE: cache}, hidden_states=(hidden,))
    for name in NAMES:
        assert getattr(output, name) is output[name] is output.get(name) is cache
        assert name in output
        assert name not in kind(hidden_states=(hidden,))
        assert kind(hidden_states=(hidden,)).get(name, "none") == "none"
    assert list(output) == [CACHE, "hidden_states"]  # what `generate` and the Trainer look for
    assert output.to_tuple() == (cache, (hidden,))


def test_outputs_are_our_own_and_hold_those_of_the_images():
    model = tiny_model("llama", **LVTC)
    batch = tiny_batch(model.config, [[3, "tile", 2]])
    output = model(**batch)
    for kind in (InternVLXModelOutputWithPast, InternVLXCausalLMOutputWithPast):
        inherited = {each for base in kind.__mro__[2:] for each in getattr(base, "__dataclass_fields__", ())}
        assert issubclass(kind, ModelOutput)
        assert not inherited
    images = model.get_image_features(batch["pixel_values"], return_dict=True)
    torch.testing.assert_close(output.image_outputs.pooler_output, images.pooler_output)
    assert output.image_hidden_states is output.image_outputs.pooler_output
    assert model(**tiny_batch(model.config, [[3]])).image_hidden_states is None
    assert not any(isinstance(value, ModelOutput) for value in output.to_tuple())
    again = pickle.loads(pickle.dumps(output))
    torch.testing.assert_close(again.image_hidden_states, output.image_hidden_states)
