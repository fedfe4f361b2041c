"""Settings of the image processor that are nearly right, and samples that name their images twice."""

import pytest
import torch

from image_cases import random_image
from internvlx_hf import InternVLXImageProcessor
from internvlx_hf.data.conversations import sample_from_record
from internvlx_hf.data.samples import read_conversation
from refusals import refusals, refused

CONVERSATION = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]


@pytest.mark.parametrize(
    ("name", "meant"), [("slicng", "slicing"), ("max_patch", "max_patches"), ("use_thumbnails", "use_thumbnail")]
)
def test_a_misspelt_setting_raises_and_names_the_right_one(name, meant):
    for make in (
        lambda: InternVLXImageProcessor(**{name: 1}),
        lambda: InternVLXImageProcessor.from_dict({name: 1}),
        lambda: InternVLXImageProcessor().get_number_of_image_patches(100, 100, {name: 1}),
    ):
        with refused(f"{name}'", f"Did you mean `{meant}`"):
            make()


def test_settings_of_other_processors_are_kept():
    saved = {"max_num_patches": 3, "do_grayscale": False, "image_processor_type": "X", "processor_class": "Y"}
    assert InternVLXImageProcessor.from_dict(saved).max_num_patches == 3


@pytest.mark.parametrize("images", [["a.png"], "a.png"])
@pytest.mark.parametrize(
    ("read", "record"),
    [(sample_from_record, {"conversations": CONVERSATION}), (read_conversation, {"messages": MESSAGES})],
)
def test_a_sample_with_both_image_and_images_is_refused(images, read, record):
    with refused("both `images` and `image`"):
        read({**record, "image": "b.png", "images": images})


@pytest.mark.parametrize("none", [[], None, ""])
def test_an_empty_list_of_images_hides_no_image(none):
    record = {"conversations": CONVERSATION, "image": "b.png", "images": none}
    assert sample_from_record(record)["images"] == ["b.png"]
    with refused("b.png' does not exist"):
        read_conversation({"messages": MESSAGES, "image": "b.png", "images": none})


@pytest.mark.parametrize("image", ["file:///data/a.png", "FILE:///data/a.png", "https://host/a.png"])
def test_urls_are_not_taken_for_paths_below_the_root(image):
    assert sample_from_record({"conversations": CONVERSATION, "image": image}, "/root")["images"] == [image]


def test_a_call_can_give_each_image_its_own_maximum():
    processor = InternVLXImageProcessor(size={"height": 28, "width": 28}, slicing="ratio")
    images = [random_image(*size) for size in ((56, 28), (84, 28), (56, 56))]
    inputs = processor(images, max_patches=[2, 1, 6], return_tensors="pt")
    alone = [
        processor(one, max_patches=most, return_tensors="pt") for one, most in zip(images, (2, 1, 6), strict=True)
    ]
    assert inputs["num_patches"].tolist() == [3, 1, 5] == [int(one["num_patches"]) for one in alone]
    assert torch.equal(inputs["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ([2], "max_patches has 1 numbers for 2 images"),
        ([2, 0], "max_patches=0 … a whole number from 1"),
        ([2, "3"], "max_patches"),
    ],
)
def test_maxima_that_do_not_fit_the_images_are_refused(limits, error):
    with refused(error):
        InternVLXImageProcessor()([random_image(9, 9)] * 2, max_patches=limits)


BUDGET = {"max_image_tokens": 512}
test_what_is_no_setting_of_the_image_processor_is_refused = refusals(
    (lambda: InternVLXImageProcessor(max_patches=[2, 3]), "max_patches=[2, 3]", "one number"),
    (
        lambda: InternVLXImageProcessor().get_number_of_image_patches(9, 9, {"max_patches": [2, 3]}),
        "max_patches=[2, 3]",
        "a whole number from 1",
    ),
    *(
        (call, "max_image_tokens=512", "is a setting of InternVLXProcessor")
        for call in (
            lambda: InternVLXImageProcessor(**BUDGET),
            lambda: InternVLXImageProcessor()(random_image(9, 9), **BUDGET),
            lambda: InternVLXImageProcessor().get_number_of_image_patches(9, 9, BUDGET),
        )
    ),
)
