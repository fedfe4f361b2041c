"""The data collator: what carries loss, where `max_length` cuts, what is refused, and that a plain `Trainer` trains with it."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer

from conversion_helpers import require_same_tensors
from data_cases import training_arguments
from image_cases import random_image
from internvlx_hf import InternVLXImageProcessor, InternVLXProcessor
from internvlx_hf.conversion.templates import chat_template
from internvlx_hf.conversion.tokenizers import convert_tokenizer
from internvlx_hf.data.encoding import SampleEncoder
from internvlx_hf.processing.pdf_files import open_images
from internvlx_hf.training import InternVLXDataCollator
from paths import GOLDEN as GOLDEN_ROOT
from pdf_cases import pdf
from refusals import refused
from tiny import LVTC, TILE, tiny_config, tiny_model, tiny_processor
from training_helpers import losses

GOLDEN = GOLDEN_ROOT / "checkpoints"
# a tokenizer of each family, with each template that its models have; None is the processor's own ChatML
TEMPLATES = [
    ("internvl2_internlm2", "internlm2-chat", "<|im_end|>"),
    ("internvl2_internlm2", "internvl2_5", "<|im_end|>"),
    ("internvl2_qwen2", "Hermes-2", "<|im_end|>"),
    ("internvl2_qwen2", "internvl2_5", "<|im_end|>"),
    ("internvl2_qwen2", None, "<|im_end|>"),
    ("internvl2_llama_yi", "Hermes-2", "<|im_end|>"),
    ("internvl2_phi3", "phi3-chat", "<|end|>"),
    ("internvl2_llama3", "Hermes-2", "<|im_end|>"),
    ("internvl2_llama3", "internvl2_5", "<|im_end|>"),
]
ANSWERS = ["A red bicycle, by a wall.", "Red: 红色", "No."]


def picture(width=TILE, height=TILE, seed=0):
    return random_image(width, height, seed=seed)


def golden_processor(checkpoint, template):
    tokenizer = convert_tokenizer(GOLDEN / checkpoint)
    tokenizer.chat_template = None if template is None else chat_template(template)
    image_processor = InternVLXImageProcessor(size={"height": TILE, "width": TILE})
    return InternVLXProcessor(image_processor, tokenizer, image_seq_length=4)


def dialogue(**kwargs):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": ANSWERS[0]},
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": [{"type": "text", "text": ANSWERS[1]}]},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image"}]},
        {"role": "assistant", "content": ANSWERS[2]},
    ]
    return {"messages": messages, "images": [picture(3 * TILE), picture()], **kwargs}


def asked(question="What?", answer="A cat.", images=0, size=(TILE, TILE)):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [picture(*size, seed=i) for i in range(images)]}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(tiny_config(downsample_ratio=0.25))


def with_images(sample):
    """The sample's messages, with its images in their parts."""
    images, messages = iter(sample["images"]), copy.deepcopy(sample["messages"])
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            part |= {"image": next(images)} if part["type"] == "image" else {}
    return messages


@pytest.mark.parametrize(("checkpoint", "template", "end"), TEMPLATES)
def test_exactly_the_answers_and_their_end_markers_carry_loss(checkpoint, template, end):
    """The position after the header of each answer, where generation would begin, up to the end marker: no mask is used.

    The encoder repeats placeholders itself, for speed: this ties it to the processor's own way."""
    processor = golden_processor(checkpoint, template)
    tokenizer, sample = processor.tokenizer, dialogue()
    batch, messages = InternVLXDataCollator(processor)([sample]), with_images(sample)
    own = processor.apply_chat_template([messages], return_labels=True, return_tensors="pt")
    for name in ("input_ids", "labels", "attention_mask", "pixel_values"):
        assert torch.equal(batch[name], own[name]), name
    ids = batch["input_ids"][0].tolist()
    expected = [-100] * len(ids)
    for turn, answer in zip((2, 4, 6), ANSWERS, strict=True):
        prompt = prompt_ids(processor, messages[:turn])
        start = len(prompt)
        assert ids[:start] == prompt
        stop = ids.index(tokenizer.convert_tokens_to_ids(end), start) + 1
        assert tokenizer.decode(ids[start:stop]) == answer + end
        expected[start:stop] = ids[start:stop]
    assert batch["labels"][0].tolist() == expected


def prompt_ids(processor, messages):
    kwargs = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return processor.apply_chat_template(messages, **kwargs)["input_ids"][0]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16", "F", "sideways", "array", "unit floats"])
@pytest.mark.parametrize("settings", [{}, {"do_rescale": False}, {"do_exif_transpose": False}])
def test_tiles_are_those_of_the_image_processor_for_any_kind_of_image(mode, settings):
    """The encoder decodes pictures before the image processor sees them."""
    processor = tiny_processor(tiny_config(), **settings)
    image = picture(3 * TILE, TILE + 7)
    if mode in ("I;16", "F"):
        image = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16 if mode == "I;16" else np.float32) * 257)
    elif mode == "sideways":
        image.getexif()[0x0112] = 6
    elif mode == "array":
        image = np.asarray(image)
    elif mode == "unit floats":
        image = torch.rand(3, TILE + 7, 3 * TILE)
    else:
        image = image.convert(mode)
    batch = InternVLXDataCollator(processor)([asked() | {"images": [image]}])
    expected = processor.image_processor([image], return_tensors="pt").pixel_values
    assert torch.equal(batch["pixel_values"], expected)


@pytest.mark.parametrize("answer", ["\nYes", "\n\nYes\n", " Yes ", "\tYes", "，好"])
@pytest.mark.parametrize(("checkpoint", "template", "end"), TEMPLATES)
def test_nothing_before_the_answer_carries_loss_whatever_it_begins_with(checkpoint, template, end, answer):
    """Blanks may make one token with the header's newline, which no prompt ends with: it is not learned."""
    processor = golden_processor(checkpoint, template)
    batch = InternVLXDataCollator(processor)([asked(answer=answer)])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    (supervised,) = torch.nonzero(labels != -100, as_tuple=True)
    assert supervised.tolist() == list(range(int(supervised[0]), int(supervised[-1]) + 1))
    learned = processor.tokenizer.decode(ids[supervised])
    assert (answer + end).endswith(learned)
    assert learned.lstrip().startswith(answer.strip())
    assert len(prompt_ids(processor, asked()["messages"][:1])) <= int(supervised[0])


def test_rows_are_padded_on_the_right_and_padding_carries_no_loss(processor):
    samples = [asked(images=1), asked("Why? " * 9), asked(answer="x")]
    batch = InternVLXDataCollator(processor, pad_to_multiple_of=8)(samples)
    width = batch["input_ids"].shape[1]
    assert width % 8 == 0
    for row, sample in enumerate(samples):
        alone = InternVLXDataCollator(processor)([sample])
        assert ("pixel_values" in alone) is bool(sample["images"])
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "labels"):
            assert torch.equal(batch[name][row, :length], alone[name][0])
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (width - length)
        assert (batch["labels"][row, length:] == -100).all()


def test_images_may_come_as_objects_paths_bytes_or_inside_the_messages(processor, tmp_path):
    image, path = picture(2 * TILE), tmp_path / "a.png"
    image.save(path)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}

    def batch_of(*images, **source):
        content = [{"type": "image", "text": None, **source}, {"type": "text", "text": "What?", "image": None}]
        sample = {"messages": [{"role": "user", "content": content}, answer], "images": list(images)}
        return InternVLXDataCollator(processor)([sample])

    expected = batch_of(image)
    given = [str(path), path, np.asarray(image)]
    given += [{"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}]
    for batch in (*map(batch_of, given), batch_of(image=image), batch_of(path=str(path))):
        require_same_tensors(batch, expected)


@pytest.mark.parametrize("asked", ["{}\nWhich?", [{"type": "image"}, {"type": "text", "text": "Which?"}], "Which?"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_each_page_of_a_pdf_is_an_image_where_the_pdf_stands(asked, as_bytes, processor, tmp_path):
    (tmp_path / "scan.pdf").write_bytes(content := pdf((48, 24), (24, 48)))
    pages = [page.rendered() for page in open_images(tmp_path / "scan.pdf")]

    def encoded(images, mark):
        content = asked.format(mark) if isinstance(asked, str) else [asked[0]] * len(images) + [asked[1]]
        answer = {"role": "assistant", "content": "The first."}
        return SampleEncoder(processor)({"messages": [{"role": "user", "content": content}, answer], "images": images})

    expected = encoded(pages, "<image>\n<image>")
    source = {"bytes": content, "path": None} if as_bytes else str(tmp_path / "scan.pdf")
    found = encoded([source], "<image>")
    assert found.input_ids.tolist() == expected.input_ids.tolist()
    assert found.num_tiles == expected.num_tiles
    assert all(map(np.array_equal, found.images, expected.images))


def test_marks_are_written_where_they_stand_and_images_without_marks_in_front(processor):
    """As in InternVL: a part is followed by the template's newline, a mark only by what the text has there."""
    context = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"

    def prompt(question, images):
        ids = InternVLXDataCollator(processor)([asked(question, images=images)])["input_ids"][0]
        return processor.tokenizer.decode(ids).split("user\n")[1].split("<|im_end|>")[0]

    assert prompt("<image>\nWhat?", 1) == f"{context}\nWhat?"
    assert prompt("Is <image> like <image>?", 2) == f"Is {context} like {context}?"
    assert prompt("What?", 1) == f"{context}\nWhat?"
    assert prompt("What?", 2) == f"{context}\n{context}\nWhat?"


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"messages": []}, "messages=[] … a list"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no turn of the assistant"),
        ({"messages": [{"role": "gpt", "content": "Hi"}]}, "role 'gpt' … one of system, user, assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "expected one of type text, image or video",
        ),
        ({"messages": [{"role": "user"}]}, "turn 0 is … expected {'role'"),
        (asked() | {"images": [{"bytes": b"GIF89a"}]}, "an image of 6 bytes is not an image that Pillow can read"),
        (asked() | {"images": [{"bytes": None}]}, "expected an image, its path or"),
        (asked() | {"images": [7]}, "an image is a int … a path"),
        (dialogue(images=[picture()]), "1 images for 2 image parts"),
    ],
)
def test_a_broken_sample_is_refused_and_says_what_would_be_right(processor, sample, said):
    with refused(said):
        InternVLXDataCollator(processor)([sample])


def test_a_collator_skips_a_broken_sample_and_counts_it(processor, caplog):
    collator = InternVLXDataCollator(processor, on_broken="skip")
    batch = collator([asked(), asked(answer=""), asked(images=1)])
    assert len(batch["input_ids"]) == 2
    assert collator.encoder.counts.as_dict() == {"broken": 1, "too_long": 0, "cut": 0}
    with refused("None of the batch's 1 samples"):
        collator([asked(answer="")])


# ---- max_length


def encoded(processor, sample, max_length=None, **kwargs):
    return SampleEncoder(processor, max_length, **kwargs)(sample)


def test_max_length_truncates_after_the_last_token_that_carries_loss(processor):
    sample = asked(answer="word " * 40, images=1)
    whole = encoded(processor, sample)
    cut = encoded(processor, sample, len(whole) - 30)
    assert cut.was_cut
    assert len(cut) == len(whole) - 30
    np.testing.assert_array_equal(cut.input_ids, whole.input_ids[: len(cut)])
    np.testing.assert_array_equal(cut.labels, whole.labels[: len(cut)])


def test_max_length_never_truncates_within_an_image(processor):
    """Every possible length: an image is there with all its placeholders and pixels, or not at all."""
    sample = dialogue()
    whole = encoded(processor, sample)
    kept = set()
    for length in range(1, len(whole) + 1):
        try:
            cut = encoded(processor, sample, length)
        except ValueError as error:
            assert f"no answer within max_length={length}" in str(error)  # noqa: PT017
            continue
        assert len(cut) <= length
        placeholders = (cut.input_ids == processor.image_token_id).sum()
        assert placeholders == processor.image_seq_length * sum(cut.num_tiles)
        assert len(cut.images) == len(cut.num_tiles) == (cut.input_ids == processor.end_image_token_id).sum()
        assert (cut.input_ids == processor.start_image_token_id).sum() == len(cut.images)
        assert cut.labels[-1] != -100 or not cut.was_cut
        kept.add(len(cut.images))
    assert kept == {1, 2}


def test_truncated_images_are_not_read(processor, tmp_path):
    sample, path = dialogue(), tmp_path / "later.png"
    picture(200, 200).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    sample["images"][1] = str(path)
    with refused("later.png", "is corrupt or truncated"):
        encoded(processor, sample)
    assert len(encoded(processor, sample, len(encoded(processor, dialogue())) - 20).images) == 1


@pytest.mark.parametrize("policy", ["truncate", "skip"])
def test_a_sample_whose_images_are_too_long_is_skipped_and_counted(processor, policy):
    collator = InternVLXDataCollator(processor, max_length=20, on_too_long=policy)
    batch = collator([asked(images=1, size=(TILE, 6 * TILE)), asked("a", "b")])
    assert len(batch["input_ids"]) == 1
    assert collator.encoder.counts.as_dict() == {"broken": 0, "too_long": 1, "cut": 0}


def test_a_sample_that_is_too_long_can_be_an_error(processor):
    collator = InternVLXDataCollator(processor, max_length=20, on_too_long="error")
    with refused("it has", "tokens", "at most max_length=20"):
        collator([asked(answer="word " * 30)])


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"max_length": 0}, "max_length=0"),
        ({"on_too_long": "cut"}, "on_too_long='cut' … one of truncate, skip, error"),
        ({"on_broken": "ignore"}, "on_broken='ignore' … one of skip, error"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0"),
    ],
)
def test_wrong_arguments_are_refused(processor, kwargs, said):
    with refused(said):
        InternVLXDataCollator(processor, **kwargs)


def test_a_template_without_generation_marks_is_refused():
    processor = tiny_processor(tiny_config())
    processor.chat_template = "{{ messages[0]['content'] }}"
    with refused("Training needs a chat template that puts {% generation %}"):
        InternVLXDataCollator(processor)


# ---- The Trainer


@pytest.mark.parametrize("settings", [{}, LVTC], ids=["plain", "lvtc"])
def test_a_plain_trainer_needs_nothing_but_the_collator(tmp_path, settings):
    model = tiny_model(**settings).train()
    samples = [asked(images=i % 3, answer=f"{i} cats") for i in range(6)]
    arguments = training_arguments(tmp_path, per_device_train_batch_size=2)
    collator = InternVLXDataCollator(tiny_processor(model.config))
    trainer = Trainer(model, arguments, train_dataset=samples, data_collator=collator)
    trainer.train()
    assert len(losses(trainer)) == 3
    assert np.isfinite(losses(trainer)).all()
