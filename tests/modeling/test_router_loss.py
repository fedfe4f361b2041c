"""Mixtures of experts: the routers' load-balancing loss is transformers' own, and with LVTC that of a plain computation.

1e-5 on losses of size 5, and gradients to 1e-3 of each tensor's largest: sums over rows in another order.
"""

import pytest
import torch
from transformers import Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from lvtc_cases import GREEDY, MIXED, assert_same_step, bounds_of, labelled, loss_and_gradients, pack, training_model
from one_file import reference_logits
from tiny import split_batch, tiny_batch, tiny_model

COEFFICIENT = 0.7  # large, so that the loss and its gradients show it
ROUTED = {"output_router_logits": True, "router_aux_loss_coef": COEFFICIENT}
PLAIN = {"lvtc_config": None, "downsample_ratio": 0.5}


def moe_model(**kwargs):
    return training_model("qwen3_moe", text_config=ROUTED, **kwargs)


def plain_balancing_loss(logits, count, per_token):
    """Experts times the sum over experts of the share of choices times the mean probability, over rows (n, experts)."""
    probabilities = torch.cat(logits).softmax(-1)
    chosen = torch.zeros(count)
    for row in probabilities:
        for expert in row.topk(per_token).indices:
            chosen[expert] += 1
    return count * (chosen / len(probabilities) * probabilities.mean(0)).sum()


def reference_balancing_loss(model, batch):
    """Each sample alone through the slow LVTC."""
    logits, hooks = [], []
    for module in model.modules():
        if isinstance(module, Qwen3MoeTopKRouter):
            hooks.append(module.register_forward_hook(lambda _, __, output: logits.append(output[0])))
    for sample in split_batch(batch, model.config):
        reference_logits(model, sample["input_ids"][0], sample.get("pixel_values"))
    for hook in hooks:
        hook.remove()
    return plain_balancing_loss(logits, 4, 2)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_without_lvtc_the_loss_is_transformers_own(padding_side):
    model = moe_model(**PLAIN)
    batch = labelled(model, MIXED, padding_side=padding_side)
    native = Qwen3MoeForCausalLM(model.config.text_config).train()
    native.model, native.lm_head = model.model.language_model, model.lm_head
    tokens = model.get_image_features(batch["pixel_values"]).pooler_output
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    is_image = (batch["input_ids"] == model.config.image_token_id)[..., None]
    inputs = {key: batch[key] for key in ("attention_mask", "labels")}
    inputs["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    native_output = native(inputs_embeds=embeddings.masked_scatter(is_image, tokens), **inputs)
    native_output.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    step = loss_and_gradients(model, batch)
    assert_same_step(step, (native_output.loss.detach(), expected))
    output = model(**batch)
    torch.testing.assert_close(output.aux_loss, native_output.aux_loss)
    for ours, theirs in zip(output.router_logits, native_output.router_logits, strict=True):
        visible = batch["attention_mask"].flatten().bool()
        torch.testing.assert_close(ours[visible], theirs[visible], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_with_lvtc_each_layer_counts_the_tokens_of_its_stage_but_no_padding(padding_side):
    model = moe_model()
    batch = labelled(model, MIXED, padding_side=padding_side)
    expected = reference_balancing_loss(model, batch)
    model.zero_grad()
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    aux_loss = model(**batch).aux_loss
    aux_loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("lr_projectors" in name for name in found)
    assert_same_step((aux_loss.detach(), found), (expected.detach(), gradients))


def test_the_loss_has_the_balancing_loss_in_it():
    model = moe_model()
    batch = labelled(model, MIXED)
    with_it, without = model(**batch), model(**batch, output_router_logits=False)
    assert without.aux_loss is None
    assert "router_logits" not in without
    torch.testing.assert_close(with_it.loss, without.loss + COEFFICIENT * with_it.aux_loss)


def test_packed_samples_have_the_loss_of_the_padded_batch():
    model = moe_model()
    batch = labelled(model, MIXED)
    expected = loss_and_gradients(model, batch)
    for packed in (pack([batch]), pack([batch]) | bounds_of(batch)):
        assert_same_step(loss_and_gradients(model, packed), expected)


def test_gradient_checkpointing_gives_the_same_loss_and_gradients():
    model = moe_model()
    batch = labelled(model, MIXED)
    expected = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same_step(loss_and_gradients(model, batch), expected, relative=1e-6)


def test_reentrant_checkpointing_which_would_drop_the_loss_s_gradient_raises():
    model = moe_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(ValueError, match=r"no gradient with reentrant gradient checkpointing.*'use_reentrant': False"):
        model(**labelled(model, MIXED))


def test_a_batch_of_text_only_counts_its_tokens():
    model = moe_model()
    batch = labelled(model, [[9], [5]])
    expected = reference_balancing_loss(model, batch)
    torch.testing.assert_close(model(**batch).aux_loss, expected)


def test_generation_ignores_the_loss():
    model = moe_model().eval()
    plain = tiny_model("qwen3_moe", **{"lvtc_config": model.config.lvtc_config, "downsample_ratio": 0.25})
    plain.load_state_dict(model.state_dict())
    batch = {key: value for key, value in labelled(model, MIXED).items() if key != "labels"}
    assert torch.equal(model.generate(**batch, **GREEDY), plain.generate(**batch, **GREEDY))


def test_a_dense_model_s_output_has_no_fields_of_routers():
    model = training_model()
    assert not {"router_logits", "aux_loss"} & model(**labelled(model, MIXED)).keys()


def test_a_second_turn_counts_its_own_tokens():
    model = moe_model(**PLAIN).eval()
    first, second = (tiny_batch(model.config, layouts) for layouts in ([[3], [6]], [[6], [2]]))
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
    output = model(input_ids=second["input_ids"], attention_mask=mask, cache=model(**first).cache)
    own = second["attention_mask"].flatten().bool()
    expected = plain_balancing_loss([logits[own] for logits in output.router_logits], 4, 2)
    torch.testing.assert_close(output.aux_loss, expected)
