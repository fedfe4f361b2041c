"""The model's forward: what a sample's logits depend on, what is refused, where loss is taken, and parity with native InternVL."""

import pytest
import torch
import torch.nn.functional as F
from transformers import InternVLConfig, InternVLForConditionalGeneration

from backbones import on_each_backbone
from internvlx_hf import InternVLXForConditionalGeneration
from tiny import IMAGE_TOKEN, TEXT_MODELS, VOCABULARY, split_batch, tiny_batch, tiny_config, tiny_model

# samples with one, no and several tiles
LAYOUTS = [[3, "tile", 5], [7], [2, "tile", 1, "tile", "tile", 4]]
NO_DROPOUT = {"projector_config": {"drop_path_rate": 0.0}}


def logits_by_sample(model, batch):
    with torch.no_grad():
        logits = model(**batch).logits
    return [row[mask.bool()] for row, mask in zip(logits, batch["attention_mask"], strict=True)]


# -- batches


@on_each_backbone(TEXT_MODELS, padding_side=("left", "right"), attention=("sdpa", "eager"))
def test_logits_of_a_sample_do_not_depend_on_its_batch(text, padding_side, attention):
    """1e-4 on logits of size 1: padding shifts positions and reorders float32 sums, which makes some 1e-6."""
    model = tiny_model(text)
    model.set_attn_implementation(attention)
    batch = tiny_batch(model.config, LAYOUTS, padding_side=padding_side)
    assert not batch["attention_mask"].all()
    together = logits_by_sample(model, batch)
    alone = [logits_by_sample(model, sample)[0] for sample in split_batch(batch, model.config)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@on_each_backbone()
def test_logits_depend_on_every_tile_and_only_after_it(text):
    """The counterpart of the test above: the model does look at its images."""
    model = tiny_model(text)
    batch = tiny_batch(model.config, [[3, "tile", 2, "tile", 4]])
    before = logits_by_sample(model, batch)[0]
    batch["pixel_values"][1] += torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(5))
    after = logits_by_sample(model, batch)[0]
    changed = (before - after).abs().amax(-1) > 1e-3
    second = 3 + model.config.image_seq_length + 2
    assert not changed[:second].any()
    assert changed[second:].all()


def test_tokens_of_the_tiles_take_the_placeholders_place_in_order():
    model = tiny_model()
    batch = tiny_batch(model.config, LAYOUTS, padding_side="right")
    received = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: received.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        output = model(**batch)
        tokens = model.get_image_features(batch["pixel_values"]).pooler_output
    assert tokens.shape == (4, model.config.image_seq_length, 64)
    placeholders = batch["input_ids"] == IMAGE_TOKEN
    assert torch.equal(received[0][placeholders], tokens.flatten(0, 1))
    assert torch.equal(received[0][~placeholders], model.get_input_embeddings()(batch["input_ids"][~placeholders]))
    assert torch.equal(output.image_hidden_states, tokens)


# -- what is refused


def spoilt_batches():
    config = tiny_config()
    tokens = config.image_seq_length

    def spoil(layouts=LAYOUTS, **changes):
        batch = tiny_batch(config, layouts)
        return {**batch, **{name: change(batch) for name, change in changes.items()}}

    def without_one_placeholder(batch):
        ids = batch["input_ids"].clone()
        ids[2, (ids[2] == IMAGE_TOKEN).nonzero()[0]] = 11
        return ids

    def one_placeholder_moved(batch):
        ids = without_one_placeholder(batch)
        ids[1, -1] = IMAGE_TOKEN
        return ids

    def half_a_tile_in_each_row(batch):
        return torch.full((2, tokens // 2), IMAGE_TOKEN)

    pixels = {
        "one tile too few": spoil(pixel_values=lambda batch: batch["pixel_values"][1:]),
        "one tile too many": spoil(pixel_values=lambda batch: batch["pixel_values"][[0, 0, 1, 2, 3]]),
        "one placeholder too few": spoil(input_ids=without_one_placeholder),
        "a tile's placeholder in another sample": spoil(input_ids=one_placeholder_moved),
        "one tile in two samples": {
            "input_ids": half_a_tile_in_each_row(None),
            "pixel_values": torch.zeros(1, 3, 32, 32),
        },
        "tiles for a text": spoil([[4], [5]], pixel_values=lambda batch: torch.zeros(1, 3, 32, 32)),
    }
    for name, batch in pixels.items():
        yield pytest.param(
            batch, rf"do not match: .* tiles of {tokens} tokens need .* the rows of the prompt have \[", id=name
        )
    shapes = {
        "too small": (4, 3, 28, 28),
        "not square": (4, 3, 32, 64),
        "one tile": (3, 32, 32),
        "a batch": (1, 4, 3, 32, 32),
        "no tile": (0, 3, 32, 32),
    }
    for name, shape in shapes.items():
        batch = spoil(pixel_values=lambda _, shape=shape: torch.zeros(shape))
        message = r"`pixel_values` must be \(tiles, channels, 32, 32\).* got \(" + ", ".join(map(str, shape))
        yield pytest.param(batch, message, id=name)
    yield pytest.param(spoil(pixel_values=lambda _: torch.zeros(4, 1, 32, 32)), "channel", id="grey")
    yield pytest.param({}, "exactly one of `input_ids` and `inputs_embeds`", id="neither ids nor embeddings")
    yield pytest.param(
        spoil(inputs_embeds=lambda batch: torch.zeros(3, batch["input_ids"].shape[1], 64)),
        "exactly one of `input_ids` and `inputs_embeds`",
        id="ids and embeddings",
    )


@pytest.mark.parametrize(("batch", "message"), list(spoilt_batches()))
def test_input_that_does_not_fit_raises(batch, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**batch)


def test_pixels_and_encoded_images_together_raise():
    model = tiny_model()
    batch = tiny_batch(model.config, LAYOUTS)
    images = model.get_image_features(batch["pixel_values"], return_dict=True)
    with pytest.raises(ValueError, match=r"`pixel_values` or `mm_encoder_outputs\['image'\]`, not both"):
        model(**batch, mm_encoder_outputs={"image": images})


# -- vision towers


# -- loss


def supervised_batch(model, layouts=LAYOUTS, **kwargs):
    """Every other text token is supervised, placeholders and padding are not."""
    batch = tiny_batch(model.config, layouts, **kwargs)
    ids = batch["input_ids"]
    supervised = (torch.arange(ids.shape[1]) % 2 == 0) & (ids != IMAGE_TOKEN) & batch["attention_mask"].bool()
    return {**batch, "labels": ids.where(supervised, -100)}


def gradients(model, **kwargs):
    model.zero_grad()
    output = model(**kwargs)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(one, other, *, rtol):
    """`rtol` is of a tensor's largest value: each is a sum of terms that cancel in part."""
    assert one.keys() == other.keys()
    for name in one:
        atol = rtol * other[name].abs().max().item()
        torch.testing.assert_close(
            one[name], other[name], atol=atol, rtol=0, msg=lambda message, name=name: f"{name}: {message}"
        )


@pytest.mark.slow
@on_each_backbone(padding_side=("left", "right"))
def test_loss_in_training_equals_that_of_all_logits_in_value_and_gradients(text, padding_side):
    """1e-5: the same sums over rows, in another order."""
    model = tiny_model(text, **NO_DROPOUT)
    batch = supervised_batch(model, padding_side=padding_side)
    labels = batch.pop("labels")
    whole = model(**batch).logits
    expected = F.cross_entropy(whole[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    model.zero_grad()
    expected.backward()
    expected_gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    in_eval, eval_gradients = gradients(model, **batch, labels=labels)
    in_training, training_gradients = gradients(model.train(), **batch, labels=labels)
    torch.testing.assert_close(in_eval.logits, whole, atol=1e-6, rtol=0)
    assert in_training.logits is None
    for output, found in ((in_eval, eval_gradients), (in_training, training_gradients)):
        torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)
        assert_same_gradients(found, expected_gradients, rtol=1e-4)
    assert set(training_gradients) == {name for name, _ in model.named_parameters()}


def test_logits_in_training_are_formed_for_supervised_positions_only():
    model = tiny_model().train()
    batch = supervised_batch(model)
    rows = []
    model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape))
    model(**batch)
    # a sample's first token is nobody's next one
    assert rows == [(int((batch["labels"][:, 1:] != -100).sum()), 64)]
    assert 0 < rows[0][0] < batch["labels"].numel() / 4


@pytest.mark.parametrize("training", [False, True])
def test_logits_to_keep_takes_the_last_or_the_named_positions_and_leaves_the_loss_alone(training):
    model = tiny_model(**NO_DROPOUT)
    batch = supervised_batch(model)
    with torch.no_grad():
        whole = model(**batch)
        model.train(training)
        batch_size, length = batch["input_ids"].shape
        named = torch.tensor([[1, 4], [2, 2], [0, length - 1]])
        mask = torch.zeros(batch_size, length, dtype=torch.bool)
        mask[1, 3] = mask[2, 5] = True
        for keep, expected in [
            (1, whole.logits[:, -1:]),
            (4, whole.logits[:, -4:]),
            (torch.tensor([0, 5, 2]), whole.logits[:, [0, 5, 2]]),
            (named, whole.logits[torch.arange(batch_size)[:, None], named]),
            (mask, whole.logits[mask]),
        ]:
            output = model(**batch, logits_to_keep=keep)
            torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(output.loss, whole.loss, atol=1e-5, rtol=1e-5)


def test_logits_are_whole_without_labels_even_in_training():
    model = tiny_model().train()
    batch = tiny_batch(model.config, LAYOUTS)
    assert model(**batch).logits.shape == (*batch["input_ids"].shape, VOCABULARY)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["labels", "shift_labels"])
def test_image_placeholders_carry_no_loss_even_if_the_collator_forgot(name, training):
    model = tiny_model(**NO_DROPOUT)
    batch = tiny_batch(model.config, LAYOUTS)
    labels = batch["input_ids"].where(batch["attention_mask"].bool(), -100)
    right = labels.where(batch["input_ids"] != IMAGE_TOKEN, -100)
    assert not torch.equal(labels, right)
    expected, expected_gradients = gradients(model, **batch, labels=right)
    if name == "shift_labels":
        labels = F.pad(labels[:, 1:], (0, 1), value=-100)
    output, found = gradients(model.train(training), **batch, **{name: labels})
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-5)
    assert_same_gradients(found, expected_gradients, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_loss_is_divided_by_the_number_of_items_that_the_trainer_gives(training):
    """What gradient accumulation rests on: two halves of a batch, divided by the items of both, add up to the whole."""
    model = tiny_model(**NO_DROPOUT).train(training)
    batch = supervised_batch(model)
    items = (batch["labels"][:, 1:] != -100).sum()
    mean = model(**batch).loss
    torch.testing.assert_close(model(**batch, num_items_in_batch=items).loss, mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * items).loss, mean / 2, atol=1e-5, rtol=1e-5)


def test_batch_without_supervised_tokens_trains_to_nothing():
    model = tiny_model().train()
    batch = tiny_batch(model.config, LAYOUTS)
    labels = torch.full_like(batch["input_ids"], -100)
    output, found = gradients(model, **batch, labels=labels, num_items_in_batch=torch.tensor(7))
    assert output.loss.item() == 0
    assert not any(gradient.any() for gradient in found.values())


# -- training


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(reentrant):
    """Equal to the last bit but for the order of sums: 1e-6."""
    model = tiny_model(**NO_DROPOUT).train()
    batch = supervised_batch(model)
    expected, expected_gradients = gradients(model, **batch)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()  # as peft and the Trainer do
    passes = {"vision": 0, "text": 0}

    def count(name):
        def hook(*_):
            passes[name] += 1

        return hook

    model.model.vision_tower.encoder.layer[0].mlp.register_forward_pre_hook(count("vision"))
    model.model.language_model.layers[0].mlp.register_forward_pre_hook(count("text"))
    output, found = gradients(model, **batch, use_cache=False)
    assert passes == {"vision": 2, "text": 2}
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-6, rtol=0)
    assert_same_gradients(found, expected_gradients, rtol=1e-5)


@on_each_backbone()
def test_bfloat16_trains_near_float32(text):
    """bfloat16 keeps eight bits, 0.4 % a rounding; some tens of layers' roundings make some per cent."""
    model = tiny_model(text, **NO_DROPOUT, text_config={"initializer_range": 0.05}).train()
    batch = supervised_batch(model)
    exact, exact_gradients = gradients(model, **batch)
    output, found = gradients(model.bfloat16(), **batch)  # pixels stay float32, as a processor gives them
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    assert {gradient.dtype for gradient in found.values()} == {torch.bfloat16}
    for name in ("lm_head.weight", "model.multi_modal_projector.local_layers.0.attention.value"):
        error = (found[name].float() - exact_gradients[name]).norm() / exact_gradients[name].norm()
        assert error < 0.1, name


def test_tied_embeddings_are_one_parameter(tmp_path):
    model = tiny_model(text_config={"tie_word_embeddings": True})
    assert model.lm_head.weight is model.get_input_embeddings().weight
    batch = supervised_batch(model)
    _, found = gradients(model.train(), **batch)
    assert "lm_head.weight" not in found
    expected = logits_by_sample(model.eval(), tiny_batch(model.config, LAYOUTS))
    model.save_pretrained(tmp_path)
    loaded = InternVLXForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    found = logits_by_sample(loaded, tiny_batch(model.config, LAYOUTS))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_vocabulary_can_grow():
    model = tiny_model()
    batch = tiny_batch(model.config, LAYOUTS)
    before = logits_by_sample(model, batch)[0]
    model.resize_token_embeddings(VOCABULARY + 8)
    after = logits_by_sample(model, batch)[0]
    assert model.config.text_config.vocab_size == VOCABULARY + 8 == after.shape[-1]
    torch.testing.assert_close(after[:, :VOCABULARY], before)
    assert model(**batch, labels=batch["input_ids"]).loss.isfinite()


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU; the CPU tests above are its counterpart"
)
@pytest.mark.parametrize("text", TEXT_MODELS)
def test_gpu_gives_the_cpu_s_logits(text):
    """1e-3: a GPU's matrix products sum in another order, and may do so in TF32's neighbourhood for convolutions."""
    model = tiny_model(text)
    batch = tiny_batch(model.config, LAYOUTS)
    expected = logits_by_sample(model, batch)
    model.to("cuda")
    torch.backends.cudnn.allow_tf32 = False
    found = logits_by_sample(model, {name: value.to("cuda") for name, value in batch.items()})
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, atol=1e-3, rtol=0)


# -- native InternVL


NATIVE = [("llama", -1), ("qwen2", -1), ("qwen3", -2), ("qwen3_moe", -1), ("phi3", 1), ("mistral", -1)]


@pytest.fixture(params=NATIVE, ids=str)
def ours_and_native(request):
    text, layer = request.param
    ours = tiny_model(text, projector_config={"projector_type": "pixel_shuffle"}, vision_feature_layer=layer)
    config = ours.config
    native_config = InternVLConfig(
        vision_config=config.vision_config.to_dict(),
        text_config=config.text_config.to_dict(),
        image_token_id=config.image_token_id,
        image_seq_length=config.image_seq_length,
        downsample_ratio=config.downsample_ratio,
        vision_feature_layer=layer,
        tie_word_embeddings=False,
    )
    native = InternVLForConditionalGeneration(native_config).eval()
    native.load_state_dict(ours.state_dict())  # strict: the names are the same
    return ours, native


def test_model_with_pixel_shuffle_is_native_internvl(ours_and_native):
    """1e-5: the same operations in the same order; the native model's masks may take another kernel."""
    ours, native = ours_and_native
    batch = tiny_batch(ours.config, LAYOUTS)
    with torch.no_grad():
        tokens = ours.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
        native_tokens = native.get_image_features(
            batch["pixel_values"], vision_feature_layer=ours.config.vision_feature_layer, return_dict=True
        ).pooler_output
    torch.testing.assert_close(tokens, native_tokens.view_as(tokens), atol=1e-5, rtol=0)
    for one, other in zip(logits_by_sample(ours, batch), logits_by_sample(native, batch), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_model_with_pixel_shuffle_generates_what_native_internvl_does(ours_and_native):
    ours, native = ours_and_native
    batch = tiny_batch(ours.config, LAYOUTS)
    arguments = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = native.generate(**batch, **arguments)
    assert len(set(expected[:, -12:].flatten().tolist())) > 3
    assert torch.equal(ours.generate(**batch, **arguments), expected)


def test_loss_with_pixel_shuffle_is_native_internvl_s(ours_and_native):
    ours, native = ours_and_native
    batch = supervised_batch(ours)
    found, gradients_found = gradients(ours.train(), **batch)
    expected, gradients_expected = gradients(native.train(), **batch)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients_found, gradients_expected, rtol=1e-4)
