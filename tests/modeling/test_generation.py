"""`generate` in all its modes, on samples with and without images."""

import pytest
import torch
from PIL import Image
from transformers import (
    DynamicCache,
    GenerationConfig,
    StaticCache,
    SuppressTokensLogitsProcessor,
    pipeline,
)

from backbones import on_each_backbone
from tiny import IMAGE_TOKEN, LVTC, PAD, TEXT_MODELS, split_batch, tiny_batch, tiny_model, tiny_processor
from versions import needs_transformers

# samples with one, no and several tiles
LAYOUTS = [[3, "tile", 5], [7], [2, "tile", 1, "tile", "tile", 4]]
NEW = 10


beams_keep_their_images = needs_transformers(
    "5.23", "beams get each other's images, and a prompt that is run in chunks loses its images"
)


def model_that_goes_on(text="qwen2", **kwargs):
    """A model that never ends an answer early, nor writes an image placeholder."""
    model = tiny_model(text, **kwargs)
    model.lm_head.weight.data[model.config.image_token_id] = 0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def answers(model, batch, **kwargs):
    """(samples, new tokens)"""
    kwargs = {"max_new_tokens": NEW, "do_sample": False, **kwargs}
    prompt = batch["input_ids"].shape[1] if "input_ids" in batch else 0
    return model.generate(**batch, **kwargs)[:, prompt:]


@torch.no_grad()
def greedy_without_cache(model, sample):
    """The whole sample through the model again for each new token."""
    sample = dict(sample)
    for _ in range(NEW):
        token = model(**sample, use_cache=False).logits[:, -1:].argmax(-1)
        sample["input_ids"] = torch.cat([sample["input_ids"], token], dim=1)
        sample["attention_mask"] = torch.ones_like(sample["input_ids"])
    return sample["input_ids"][:, -NEW:]


@pytest.mark.slow
@on_each_backbone(TEXT_MODELS)
def test_greedy_generation_takes_the_likeliest_token_of_a_forward_without_a_cache(text):
    """For each sample of a left-padded batch, as for the sample alone."""
    model = model_that_goes_on(text)
    batch = tiny_batch(model.config, LAYOUTS)
    together = answers(model, batch)
    assert together.shape == (3, NEW)
    assert len(set(together.flatten().tolist())) > 5
    for sample, answer in zip(split_batch(batch, model.config), together, strict=True):
        assert torch.equal(greedy_without_cache(model, sample)[0], answer)
        assert torch.equal(answers(model, sample)[0], answer)


def test_answers_depend_on_the_images():
    model = model_that_goes_on()
    batch = tiny_batch(model.config, LAYOUTS)
    before = answers(model, batch)
    after = answers(model, {**batch, "pixel_values": batch["pixel_values"].flip(0)})
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])


@on_each_backbone(cache=("dynamic", "static"))
@torch.no_grad()
def test_cached_logits_equal_uncached_with_left_padding(text, cache):
    """A hand-written loop over `model(...)`. 1e-4 on logits of size 1: float32 sums in another order make some 1e-6."""
    model = model_that_goes_on(text)
    batch = tiny_batch(model.config, LAYOUTS)
    prompt = batch["input_ids"].shape[1]
    later = torch.randint(10, 300, (3, 4), generator=torch.Generator().manual_seed(3))
    whole = {
        **batch,
        "input_ids": torch.cat([batch["input_ids"], later], dim=1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones_like(later)], dim=1),
    }
    expected = model(**whole, use_cache=False).logits

    text_config = model.config.text_config
    past = (
        DynamicCache(config=text_config) if cache == "dynamic" else StaticCache(text_config, max_cache_len=prompt + 9)
    )
    found = [model(**batch, cache=past, use_cache=True).logits]
    for step in range(later.shape[1]):
        output = model(
            input_ids=later[:, step : step + 1],
            attention_mask=whole["attention_mask"][:, : prompt + step + 1],
            cache=past,
            use_cache=True,
        )
        assert output.logits.shape[1] == 1
        found.append(output.logits)
    assert int(past.get_seq_length()) == prompt + later.shape[1]
    visible = whole["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(found, dim=1)[visible], expected[visible], atol=1e-4, rtol=0)


@beams_keep_their_images
def test_several_sampled_answers_a_prompt_see_the_images_of_their_own_prompt():
    model = model_that_goes_on()
    batch = tiny_batch(model.config, LAYOUTS)
    several = answers(model, batch, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(several, answers(model, batch).repeat_interleave(2, dim=0))


@beams_keep_their_images
@pytest.mark.parametrize("size", [4, 16, 23])
def test_prompt_in_chunks_gives_the_same_tokens(size):
    model = model_that_goes_on()
    batch = tiny_batch(model.config, LAYOUTS)
    expected = answers(model, batch)
    columns = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: columns.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    assert torch.equal(answers(model, batch, prefill_chunk_size=size), expected)
    assert columns[:2] == [size, size]


@needs_transformers("5.18", "images are encoded for each beam, and for each token without a cache")
def test_images_are_encoded_once_an_answer():
    model = model_that_goes_on()
    batch = tiny_batch(model.config, LAYOUTS)
    encoded = []
    model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: encoded.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    for kwargs in ({}, {"num_beams": 2}, {"use_cache": False}):
        encoded.clear()
        answers(model, batch, **kwargs)
        assert encoded == [4]


def model_that_likes_placeholders():
    model = tiny_model("qwen2", **LVTC)
    model.lm_head.weight.data[IMAGE_TOKEN] *= 20
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"use_cache": False}, id="no cache"),
        pytest.param({"do_sample": True, "top_k": 1}, id="sampling"),
        pytest.param({"num_beams": 3}, id="beams"),
        pytest.param({"prompt_lookup_num_tokens": 3}, id="prompt lookup"),
        pytest.param({"assistant_model": model_that_likes_placeholders()}, id="assistant"),
        pytest.param({"generation_config": GenerationConfig(max_new_tokens=NEW)}, id="own configuration"),
    ],
)
def test_neither_answers_nor_drafts_have_image_placeholders(mode):
    model = model_that_likes_placeholders()
    batch = tiny_batch(model.config, [[3, "tile"]])
    read = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append((kwargs["input_ids"] == IMAGE_TOKEN).sum(-1).max()), with_kwargs=True
    )
    assert IMAGE_TOKEN not in answers(model, batch, **mode)
    assert set(map(int, read)) <= {0, model.config.image_seq_length}


@pytest.mark.parametrize("form", ["setting", "processor"])
def test_tokens_that_a_caller_suppresses_are_suppressed_besides_the_placeholders(form):
    model = model_that_likes_placeholders()
    batch = tiny_batch(model.config, LAYOUTS)
    tokens = [token for token in answers(model, batch).unique().tolist() if token != IMAGE_TOKEN]
    settings = {"suppress_tokens": tokens}
    if form == "processor":
        settings = {"logits_processor": [SuppressTokensLogitsProcessor(tokens)]}
    assert not set(answers(model, batch, **settings).flatten().tolist()) & {IMAGE_TOKEN, *tokens}


def test_placeholders_that_a_prompt_has_as_text_may_be_continued():
    model = model_that_likes_placeholders()
    assert IMAGE_TOKEN in answers(model, {"input_ids": torch.tensor([[7, IMAGE_TOKEN]])})
    assert IMAGE_TOKEN not in answers(model, {"input_ids": torch.tensor([[7, 8]])})


def test_pipeline_loaded_from_a_folder_answers_as_generate_does(tmp_path):
    model = model_that_goes_on()
    processor = tiny_processor(model.config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ask = pipeline("image-text-to-text", model=str(tmp_path), trust_remote_code=True)
    image = Image.linear_gradient("L").resize((70, 40)).convert("RGB")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is on the picture?"}]
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    expected = processor.tokenizer.decode(answers(model, inputs)[0], skip_special_tokens=True)
    assert expected
    (answer,) = ask(text=messages, return_full_text=False, generate_kwargs={"max_new_tokens": NEW, "do_sample": False})
    assert answer["generated_text"] == expected
