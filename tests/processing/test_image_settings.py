"""Settings of the image processor that are nearly right, and samples that name their images twice."""

import pytest

from internvlx_hf import InternVLXImageProcessor
from internvlx_hf.data.conversations import sample_from_record
from internvlx_hf.data.samples import read_conversation

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
        with pytest.raises(ValueError, match=f"{name}'.*Did you mean `{meant}`"):
            make()


def test_settings_of_other_processors_are_kept():
    saved = {"max_num_patches": 3, "do_grayscale": False, "image_processor_type": "X", "processor_class": "Y"}
    assert InternVLXImageProcessor.from_dict(saved).max_num_patches == 3


@pytest.mark.parametrize("images", [["a.png"], "a.png"])
def test_a_sample_with_both_image_and_images_is_refused(images):
    both = {"image": "b.png", "images": images}
    with pytest.raises(ValueError, match="both `images` and `image`"):
        sample_from_record({"conversations": CONVERSATION, **both})
    with pytest.raises(ValueError, match="both `images` and `image`"):
        read_conversation({"messages": MESSAGES, **both})


@pytest.mark.parametrize("none", [[], None, ""])
def test_an_empty_list_of_images_hides_no_image(none):
    record = {"conversations": CONVERSATION, "image": "b.png", "images": none}
    assert sample_from_record(record)["images"] == ["b.png"]
    with pytest.raises(ValueError, match=r"b\.png' does not exist"):
        read_conversation({"messages": MESSAGES, "image": "b.png", "images": none})


@pytest.mark.parametrize("image", ["file:///data/a.png", "FILE:///data/a.png", "https://host/a.png"])
def test_urls_are_not_taken_for_paths_below_the_root(image):
    assert sample_from_record({"conversations": CONVERSATION, "image": image}, "/root")["images"] == [image]
