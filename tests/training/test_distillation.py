"""The loss with a teacher against a plain loop: one sample at a time, the logits of all rows, torch's own functions.

1e-5 on losses of 5, 1e-3 of each gradient's largest value: the same sums in another order.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile

from dial_cases import dial
from internvlx_hf.data import BrokenSampleError
from internvlx_hf.data.encoding import SampleEncoder
from internvlx_hf.training import InternVLXDataCollator, distillation
from internvlx_hf.training.arguments import InternVLXTrainingArguments
from internvlx_hf.training.distillation import DistillationTrainer, place_teacher
from lvtc_cases import assert_same_step
from tiny import LVTC, tiny_model, tiny_processor
from training_helpers import TRAINED, sized

STEADY = {"projector_config": {"drop_path_rate": 0.0}, "text_config": {"initializer_range": 0.05}}
STUDENTS = {"pvtc": {**STEADY, "downsample_ratio": 0.25}, "lvtc": {**STEADY, **LVTC}}
WEIGHT, TEMPERATURE = 0.3, 2.0


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample(question, *answers, images=()):
    messages = [{"role": "user", "content": [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]}]
    for answer in answers:
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And?"}]
    return {"messages": messages[:-1], "images": list(images)}


# no, one and several images of several tiles each; a conversation of two answers
SAMPLES = [
    sample("What is on the picture?", "digits", images=[picture(36, 24)]),
    sample("Read the digits.", "8 6 7", "5 3 0 9", images=[picture(32, 32, 1), picture(90, 33, 2)]),
    sample("Why?", "Because."),
]


@pytest.fixture(scope="module")
def teacher():
    """Four times the student's tokens per tile, in the tiles of `ratio`."""
    return tiny_model(
        seed=1, projector_config={"projector_type": "pixel_shuffle"}, text_config={"initializer_range": 0.05}
    ).requires_grad_(False)


def processors(student, teacher):
    """The student's slicing bounds the tiles by the image's size, the teacher's does not."""
    return (
        tiny_processor(student.config, max_patches=4, slicing="edge"),
        tiny_processor(teacher.config, max_patches=6, slicing="ratio"),
    )


def trainer_for(model, teacher, folder, training=(), **kwargs):
    arguments = InternVLXTrainingArguments(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, **dict(training)
    )
    settings = {"weight": WEIGHT, "temperature": TEMPERATURE, **kwargs}
    return DistillationTrainer(model, arguments, teacher=teacher, **settings)


def plain_step(student, teacher, pair, samples, weight=WEIGHT, temperature=TEMPERATURE):
    """Loss and gradients of a plain loop; the mean over all supervised tokens."""
    student.zero_grad()
    losses, count = [], 0
    for one in samples:
        batches = [InternVLXDataCollator(processor)([one]) for processor in pair]
        rows, targets = [], []
        for model, batch in zip((student, teacher), batches, strict=True):
            labels = batch.pop("labels")
            logits = model(**batch, use_cache=False, logits_to_keep=0).logits  # [1, L, vocabulary]
            assert logits.shape[:2] == labels.shape
            supervised = labels[0, 1:] != -100
            rows.append(logits[0, :-1][supervised])
            targets.append(labels[0, 1:][supervised])
        assert torch.equal(*targets)
        own, taught = (F.log_softmax(logits / temperature, -1) for logits in rows)
        divergence = F.kl_div(own, taught, log_target=True, reduction="sum")
        cross_entropy = F.cross_entropy(rows[0], targets[0], reduction="sum")
        losses.append((1 - weight) * cross_entropy + weight * temperature**2 * divergence)
        count += len(targets[0])
    loss = sum(losses) / count
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def distilled_step(trainer, model, batches):
    """The trainer's loss and gradients of a step of several batches."""
    model.zero_grad()
    count = sum((batch["labels"][..., 1:] != -100).sum() for batch in batches)
    losses = [trainer.compute_loss(model, batch, num_items_in_batch=count) for batch in batches]
    sum(losses).backward()
    return sum(losses).detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", STUDENTS)
def test_the_loss_is_that_of_a_plain_loop(kind, packing, teacher, tmp_path):
    """The teacher sees other tiles and has other numbers of tokens per tile."""
    student = tiny_model(**STUDENTS[kind]).train()
    if packing:
        for model in (student, teacher):
            model.set_attn_implementation("varlen_sdpa")
    own, others = pair = processors(student, teacher)
    collate = InternVLXDataCollator(own, packing=packing, teacher_processor=others)
    batches = [collate(SAMPLES[:2]), collate(SAMPLES[2:])]  # two batches of a step, one without images
    first = batches[0]
    assert len(first["teacher"]["pixel_values"]) > len(first["pixel_values"])
    assert first["teacher"]["input_ids"].shape[1] > first["input_ids"].shape[1]
    trainer = trainer_for(student, teacher, tmp_path)
    found = distilled_step(trainer, student, batches)
    assert_same_step(found, plain_step(student, teacher, pair, SAMPLES))
    assert all(parameter.grad is None for parameter in teacher.parameters())

    (ce, kl) = torch.stack(trainer._parts).sum(0)
    torch.testing.assert_close((1 - WEIGHT) * ce + WEIGHT * TEMPERATURE**2 * kl, found[0])


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("size", ["16:4+4:16", "4", "16:0+16"])
def test_tiles_of_several_sizes_are_taught_as_by_a_plain_loop(size, packing, tmp_path):
    """By a teacher whose tiles have several sizes, too."""
    models = [tiny_model(seed=seed, **STEADY, **dial(2, 3, TRAINED)) for seed in (0, 1)]
    student, teacher = models[0].train(), models[1].requires_grad_(False)
    if packing:
        for model in models:
            model.set_attn_implementation("varlen_sdpa")
    own, others = pair = [sized(student.config, tokens_per_tile=each) for each in (size, "16+16:4")]
    collate = InternVLXDataCollator(own, packing=packing, teacher_processor=others)
    batches = [collate(SAMPLES[:2]), collate(SAMPLES[2:])]
    assert {"tile_sizes"} <= batches[0].keys() & batches[0]["teacher"].keys()
    found = distilled_step(trainer_for(student, teacher, tmp_path), student, batches)
    assert_same_step(found, plain_step(student, teacher, pair, SAMPLES))


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_samples_past_the_teacher_s_positions_are_counted_and_warned_of(packing, teacher, tmp_path, monkeypatch):
    student = tiny_model(**STUDENTS["pvtc"]).train()
    own, taught = processors(student, teacher)
    collate = InternVLXDataCollator(own, packing=packing, teacher_processor=taught)
    lengths = [len(SampleEncoder(taught)(one)) for one in SAMPLES]
    monkeypatch.setattr(teacher.config.text_config, "max_position_embeddings", sorted(lengths)[1])
    told = []
    monkeypatch.setattr(distillation.logger, "warning_once", told.append)
    trainer = trainer_for(student, teacher, tmp_path)
    for batches in (2, 1):
        for _ in range(batches):
            trainer.compute_loss(student, collate(SAMPLES), num_items_in_batch=torch.tensor(9))
        trainer.log(logs := {"loss": 1.0})
        assert logs["teacher_samples_past_limit"] == batches
    assert f"more than the {sorted(lengths)[1]} positions of the teacher's language model" in told[0]
    assert len(set(told)) == 1


def test_only_supervised_rows_have_logits(teacher, tmp_path):
    student = tiny_model(**STUDENTS["lvtc"]).train()
    own, others = processors(student, teacher)
    batch = InternVLXDataCollator(own, teacher_processor=others)(SAMPLES)
    rows = []
    for model in (student, teacher):
        model.lm_head.register_forward_hook(lambda _, args, output: rows.append(output.shape[:-1].numel()))
    supervised = int((batch["labels"] != -100).sum())
    trainer_for(student, teacher, tmp_path).compute_loss(student, batch, num_items_in_batch=supervised)
    assert rows == [supervised] * 2


def test_the_teacher_sees_what_it_would_see_alone(teacher):
    """The same decoded images in its own tiles, also for images so large that their tiles are made at once."""
    student = tiny_model(**STUDENTS["pvtc"])
    own, others = processors(student, teacher)
    film = {"messages": [{"role": "user", "content": "<video> What?"}, SAMPLES[2]["messages"][1]]}
    film["videos"] = [[picture(40, 30, seed) for seed in (1, 2)]]
    with pytest.MonkeyPatch.context() as patch:
        for limit in (2**24, 0):
            patch.setattr("internvlx_hf.data.encoding.MAX_WHOLE_PIXELS", limit)
            taught = InternVLXDataCollator(own, teacher_processor=others)([*SAMPLES, film])["teacher"]
            alone = InternVLXDataCollator(others)([*SAMPLES, film])
            assert taught.keys() == alone.keys()
            for name, tensor in alone.items():
                torch.testing.assert_close(taught[name], tensor, rtol=0, atol=0)


def test_an_image_is_decoded_once(teacher, tmp_path, monkeypatch):
    student = tiny_model(**STUDENTS["pvtc"])
    own, others = processors(student, teacher)
    picture(70, 40).save(tmp_path / "page.png")
    one = {**SAMPLES[0], "images": [str(tmp_path / "page.png")]}
    decoded = []
    load = ImageFile.ImageFile.load

    def counted(image):
        decoded.append(bool(image.tile))
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    for limit in (2**24, 0):
        monkeypatch.setattr("internvlx_hf.data.encoding.MAX_WHOLE_PIXELS", limit)
        decoded.clear()
        InternVLXDataCollator(own, teacher_processor=others)([one])
        assert sum(decoded) == 1


@pytest.mark.parametrize("cut", [1, 12], ids=["in the last answer", "before the last image"])
def test_a_truncated_sample_ends_at_the_same_label(cut, teacher):
    """The student's limit counts its own tokens; what is behind it is dropped for both."""
    student = tiny_model(**STUDENTS["pvtc"])
    own, others = processors(student, teacher)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    messages = [*asked, {"role": "assistant", "content": "One."}, *asked, {"role": "assistant", "content": "Two."}]
    dialogue = {"messages": messages, "images": [picture(36, 24), picture(36, 24, 1)]}
    whole = SampleEncoder(own, teacher_processor=others)(dialogue)
    limit = len(whole) - 4 if cut == 1 else len(whole) // 2 + cut
    encoded = SampleEncoder(own, max_length=limit, teacher_processor=others)(dialogue)
    assert len(encoded.images) == len(encoded.teacher.images) == (2 if cut == 1 else 1)
    labels = [one.labels[one.labels != -100].tolist() for one in (encoded, encoded.teacher)]
    assert labels[0] == labels[1] != whole.labels[whole.labels != -100].tolist()
    for one, tokens, processor in ((encoded, 4, own), (encoded.teacher, 16, others)):
        assert one.was_cut
        assert one.labels[-1] != -100
        assert sum(one.num_tiles) * tokens == (one.input_ids == processor.image_token_id).sum()


def test_other_labels_are_an_error_that_names_the_sample(teacher):
    student = tiny_model(**STUDENTS["pvtc"])
    own, others = processors(student, teacher)
    own.chat_template = own.resolve_chat_template()
    others.chat_template = own.chat_template.replace("{%- endgeneration", "{{- '!' -}}{%- endgeneration")
    assert others.chat_template != own.chat_template
    encoder = SampleEncoder(own, teacher_processor=others)
    with pytest.raises(BrokenSampleError, match=r"here: its 9 supervised tokens for the student are not the 10 for"):
        encoder.encode_or_skip(lambda: SAMPLES[2], lambda: "here")


def test_the_routers_loss_of_a_mixture_of_experts_is_added(tmp_path):
    """With itself as its teacher, a model has the plain loss times 1 - w, beside the routers' loss."""
    text_config = {"output_router_logits": True, "router_aux_loss_coef": 0.5, "initializer_range": 0.05}
    student = tiny_model("qwen3_moe", text_config=text_config, projector_config={"drop_path_rate": 0.0}).train()
    processor = tiny_processor(student.config)
    batch = InternVLXDataCollator(processor, teacher_processor=processor)(SAMPLES)
    plain = student(**InternVLXDataCollator(processor)(SAMPLES))
    routers = 0.5 * plain.aux_loss
    assert routers > 0
    found = trainer_for(student, student, tmp_path).compute_loss(student, batch)
    torch.testing.assert_close(found, (1 - WEIGHT) * (plain.loss - routers) + routers)


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "ZeRO-3. Use FSDP2"),
        ({"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "works with `fsdp_version: 2`, got 1"),
    ],
)
def test_sharding_that_a_teacher_cannot_have_is_named(plugins, message):
    accelerator = SimpleNamespace(state=SimpleNamespace(**{"fsdp_plugin": None, "deepspeed_plugin": None, **plugins}))
    with pytest.raises(ValueError, match=message):
        place_teacher(torch.nn.Linear(1, 1), accelerator)


def test_a_loss_averaged_by_batch_is_the_mean_over_the_step_s_batches(teacher, tmp_path):
    student = tiny_model(**STUDENTS["pvtc"]).train()
    pair = processors(student, teacher)
    expected = sum(plain_step(student, teacher, pair, [one])[0] for one in SAMPLES) / len(SAMPLES)
    training = {
        **{"loss_average": "batch", "per_device_train_batch_size": 1, "gradient_accumulation_steps": len(SAMPLES)},
        **{"train_sampling_strategy": "random", "max_steps": 1, "logging_steps": 1, "save_strategy": "no"},
    }
    data = {
        "train_dataset": SAMPLES,
        "data_collator": InternVLXDataCollator(pair[0], teacher_processor=pair[1]),
    }
    trainer = trainer_for(student, teacher, tmp_path, training, **data)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["loss"] == pytest.approx(expected.item(), abs=1e-4)
    mean = (1 - WEIGHT) * logs["ce_loss"] + WEIGHT * TEMPERATURE**2 * logs["teacher_kl"]
    assert mean == pytest.approx(expected.item(), abs=1e-4)
