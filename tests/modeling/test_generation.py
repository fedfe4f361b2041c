"""`generate` in all its modes, on samples with and without images."""

import threading

import pytest
import torch
from PIL import Image
from transformers import (
    DynamicCache,
    GenerationConfig,
    StaticCache,
    SuppressTokensLogitsProcessor,
    TextIteratorStreamer,
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


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param({"do_sample": False}, id="greedy"),
        pytest.param({"num_beams": 3}, id="beam", marks=beams_keep_their_images),
    ],
)
def test_generation_without_a_cache_gives_the_same_tokens(mode):
    model = model_that_goes_on()
    batch = tiny_batch(model.config, LAYOUTS)
    assert torch.equal(answers(model, batch, **mode, use_cache=False), answers(model, batch, **mode))


@pytest.mark.slow
@on_each_backbone(mode=({"do_sample": False}, {"num_beams": 2}))
def test_static_cache_gives_the_same_tokens(mode, text):
    model = model_that_goes_on(text)
    batch = tiny_batch(model.config, LAYOUTS)
    static = answers(model, batch, **mode, cache_implementation="static")
    assert torch.equal(static, answers(model, batch, **mode))


def test_sampling_repeats_with_its_seed_and_follows_the_model():
    model = model_that_goes_on()
    batch = tiny_batch(model.config, LAYOUTS)

    def sampled(seed, **kwargs):
        torch.manual_seed(seed)
        return answers(model, batch, do_sample=True, **kwargs)

    assert torch.equal(sampled(1), sampled(1))
    assert not torch.equal(sampled(1), sampled(2))
    assert torch.equal(sampled(1, top_k=1), answers(model, batch))


@beams_keep_their_images
def test_several_sampled_answers_a_prompt_see_the_images_of_their_own_prompt():
    model = model_that_goes_on()
    batch = tiny_batch(model.config, LAYOUTS)
    several = answers(model, batch, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(several, answers(model, batch).repeat_interleave(2, dim=0))


@pytest.mark.slow
@on_each_backbone()
def test_beams_of_a_batch_are_those_of_its_samples(text):
    model = model_that_goes_on(text)
    batch = tiny_batch(model.config, LAYOUTS)
    together = answers(model, batch, num_beams=3, num_return_sequences=2)
    alone = [
        answers(model, sample, num_beams=3, num_return_sequences=2) for sample in split_batch(batch, model.config)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[::2], together[1::2])


@beams_keep_their_images
@torch.no_grad()
def test_beam_search_reports_the_likelihood_of_its_answer():
    model = model_that_goes_on()
    (_, _, sample) = split_batch(tiny_batch(model.config, LAYOUTS), model.config)
    output = model.generate(
        **sample, max_new_tokens=4, num_beams=4, length_penalty=0.0, output_scores=True, return_dict_in_generate=True
    )
    ids = output.sequences
    logits = model(**{**sample, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[:, -5:-1]
    likelihood = logits.log_softmax(-1).gather(-1, ids[:, -4:, None]).sum()
    # four sums of float32 logarithms
    torch.testing.assert_close(output.sequences_scores[0], likelihood, atol=1e-4, rtol=0)


def test_streamed_pieces_make_up_the_answer():
    model = model_that_goes_on()
    processor = tiny_processor(model.config)
    sample = split_batch(tiny_batch(model.config, LAYOUTS), model.config)[0]
    expected = processor.tokenizer.decode(answers(model, sample)[0])
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(
        target=model.generate, kwargs={**sample, "max_new_tokens": NEW, "do_sample": False, "streamer": streamer}
    )
    thread.start()
    pieces = [piece for piece in streamer if piece]
    thread.join()
    assert len(pieces) > 1
    assert "".join(pieces) == expected


def test_embeddings_instead_of_ids_generate_the_same_tokens():
    model = model_that_goes_on()
    batch = tiny_batch(model.config, LAYOUTS)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    assert torch.equal(answers(model, {"inputs_embeds": embeds, **rest}), answers(model, batch))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["one image", "text only", "three images"])
def test_prompt_lookup_gives_the_greedy_tokens(layout):
    model = model_that_goes_on()
    batch = tiny_batch(model.config, [layout])
    # what was said before is likely to be said again
    batch["input_ids"] = torch.cat([batch["input_ids"], answers(model, batch)[:, :6]], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    assert torch.equal(answers(model, batch, prompt_lookup_num_tokens=3), answers(model, batch))


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


def test_second_turn_with_a_new_image_goes_on_from_the_cache():
    model = model_that_goes_on()
    turns = tiny_batch(model.config, [[3, "tile", 5, "tile", 4]])
    expected = answers(model, turns)
    first = 3 + model.config.image_seq_length + 5
    past = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(input_ids=turns["input_ids"][:, :first], pixel_values=turns["pixel_values"][:1], cache=past)
    found = answers(model, {**turns, "pixel_values": turns["pixel_values"][1:]}, cache=past)
    assert torch.equal(found, expected)


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


def test_wrong_number_of_tiles_raises_before_anything_is_generated():
    model = model_that_goes_on()
    batch = tiny_batch(model.config, LAYOUTS)
    with pytest.raises(ValueError, match=r"3 tiles of 16 tokens need 48 image placeholders"):
        answers(model, {**batch, "pixel_values": batch["pixel_values"][1:]})


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
