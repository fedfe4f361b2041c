"""What vLLM and SGLang get from AutoModel and from the processor, tested without them."""

import pytest
import torch
from PIL import Image
from transformers import AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dial_cases import dial_batch, dial_model
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXModel
from internvlx_hf.modeling import modeling_internvlx
from internvlx_hf.modeling.engines import ENGINES, keep_whole
from refusals import refused
from tiny import LVTC, tiny_batch, tiny_config, tiny_model, tiny_processor


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    """The name under which an engine registers its attention; SDPA stands in for it."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, request.param, ALL_ATTENTION_FUNCTIONS["sdpa"])
    return request.param


def config_of(engine, **kwargs):
    config = tiny_config("llama", **kwargs)
    config.text_config._attn_implementation = engine
    return config


def test_engine_gets_the_base_model_with_the_checkpoint_s_names(engine):
    with torch.device("meta"):
        model = AutoModel.from_config(config_of(engine), dtype=torch.bfloat16)
    assert type(model) is InternVLXModel
    assert model.dtype == torch.bfloat16
    assert model.language_model.config._attn_implementation == engine
    assert model.vision_tower.config._attn_implementation == "sdpa"
    whole = tiny_model("llama").state_dict()
    assert {f"model.{name}" for name in model.state_dict()} == whole.keys() - {"lm_head.weight"}


@torch.no_grad()
def test_engine_of_several_ranks_runs_the_tower_for_images_only(engine, monkeypatch):
    model = AutoModel.from_config(config_of(engine)).eval()
    embeddings = torch.randn(1, 7, 64)
    expected = model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    monkeypatch.setattr(modeling_internvlx, "_world_size", lambda: 2)
    monkeypatch.delattr(InternVLXModel, "get_image_features")
    assert torch.equal(model(inputs_embeds=embeddings, use_cache=False).last_hidden_state, expected)


def test_engine_that_asks_for_lvtc_is_refused(engine):
    message = (
        rf"{ENGINES[engine]} cannot serve a model with LVTC.*layer 2 on a tile takes 16 tokens instead of 4.*serve"
    )
    with pytest.raises(ValueError, match=message):
        AutoModel.from_config(config_of(engine, **LVTC))


@torch.no_grad()
@pytest.mark.parametrize("sizes", [{}, {"merge_layer": 2}], ids=["plain", "merged too"])
def test_engine_serves_the_default_of_several_sizes(engine, sizes):
    sizes = sizes | {"tokens_per_tile": ["16", "4", *(["16:4", "16:0"] if sizes else [])]}
    plain = dial_model("llama", **sizes).model
    model = AutoModel.from_config(config_of(engine, **sizes)).eval()
    assert model.load_state_dict(plain.state_dict()) == ([], [])
    batch = dial_batch(plain.config, [[2, "16", "16", 3]])
    wanted = plain(**batch, use_cache=False).last_hidden_state
    tokens = model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
    placeholders = batch["input_ids"] == plain.config.image_token_id
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    embeddings = embeddings.masked_scatter(placeholders[..., None], tokens)
    torch.testing.assert_close(model(inputs_embeds=embeddings, use_cache=False).last_hidden_state, wanted)


@pytest.mark.parametrize("size", ["16:4", "16:0"])
def test_engine_that_asks_for_a_default_that_shrinks_is_refused(engine, size):
    config = config_of(engine, tokens_per_tile=[size, "16"], merge_layer=2)
    with refused(
        f"{ENGINES[engine]} cannot serve a model whose tiles have 16 tokens", "a default that does not change"
    ):
        AutoModel.from_config(config)


@pytest.mark.parametrize("kwargs", [{}, LVTC], ids=["lvtc_off", "lvtc_on"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_users_get_the_model_that_chats(kwargs, attention, tmp_path):
    model = AutoModel.from_config(tiny_config("llama", **kwargs), attn_implementation=attention)
    assert type(model) is InternVLXForConditionalGeneration
    assert model.config.text_config._attn_implementation == attention
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is InternVLXForConditionalGeneration


def test_parts_that_are_kept_whole_compute_the_same():
    model = tiny_model("llama").model
    pixels = tiny_batch(model.config, [["tile", "tile"]])["pixel_values"]
    expected = model.get_image_features(pixels, return_dict=True).pooler_output
    attention, mlp = model.vision_tower.encoder.layer[0].attention, model.multi_modal_projector.local_layers[0].mlp
    parents = type(attention), type(mlp)
    keep_whole(model.vision_tower)
    keep_whole(model.multi_modal_projector)
    for module, parent in zip((attention, mlp), parents, strict=True):
        assert isinstance(module, parent)
        assert type(module).forward is not parent.forward
    # vLLM hands on all that the processor returned
    found = model.get_image_features(pixels, return_dict=True, image_grid_thw=torch.tensor([[1, 1, 2]])).pooler_output
    assert torch.equal(found, expected)


def test_processor_tells_vllm_each_image_s_tiles_under_the_settings_of_the_call():
    config = tiny_config()
    processor = tiny_processor(config)
    images = [Image.new("RGB", size) for size in ((64, 64), (20, 30))]
    for settings, tiles in (
        ({}, [5, 1]),
        ({"max_patches": 12, "slicing": "ratio"}, [5, 7]),
        ({"max_patches": 1}, [1, 1]),
    ):
        call = {"text": "<IMG_CONTEXT> and <IMG_CONTEXT>", "return_tensors": "pt", **settings}
        assert "image_grid_thw" not in processor(images, **call)
        inputs = processor(images, **call, return_text_replacement_offsets=True)
        assert inputs["image_grid_thw"].prod(-1).tolist() == tiles
        assert len(inputs["pixel_values"]) == sum(tiles)


def test_processor_refuses_another_size_than_the_default_to_vllm_s_own_backend():
    config = tiny_config(tokens_per_tile=["16", "4"])
    call = {"images": Image.new("RGB", (64, 64)), "text": "<IMG_CONTEXT>", "return_text_replacement_offsets": True}
    processor = tiny_processor(config)
    assert processor(**call, tokens_per_tile="16")["image_grid_thw"].tolist() == [[1, 1, 5]]
    with refused("tokens_per_tile='4' with return_text_replacement_offsets, which vLLM", "default size '16' only"):
        processor(**call, tokens_per_tile="4")
    processor.tokens_per_tile = "16+4"
    with refused("tokens_per_tile='16+4'", "the package internvlx-hf beside vLLM"):
        processor(**call)
