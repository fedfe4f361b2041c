"""Boxes in answers: thousandths of the upright image, whatever its size, orientation, tiles and thumbnail; and back."""

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.Image import Exif

from image_cases import saved
from internvlx_hf.processing.boxes import LabelledBox, decode_answer, format_boxes, parse_boxes
from internvlx_hf.processing.pdf_files import open_images
from pdf_cases import pdf
from refusals import refused
from tiny import tiny_config, tiny_processor, tiny_tokenizer

ORIENTATION = 0x0112
SIDES = st.integers(1, 5000)
LABELS = st.text(st.characters(exclude_characters="<>", exclude_categories=("Cs",))).map(str.strip)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(tiny_config(), max_patches=12, slicing="edge")


@st.composite
def boxes_in_images(draw):
    size = draw(SIDES), draw(SIDES)
    boxes = []
    for _ in range(draw(st.integers(1, 5))):
        x, y = (sorted(draw(st.lists(st.integers(0, side), min_size=2, max_size=2))) for side in size)
        boxes.append(LabelledBox(draw(LABELS), x[0], y[0], x[1], y[1]))
    return size, boxes


@given(boxes_in_images())
def test_written_boxes_are_read_again_to_half_a_thousandth(case):
    size, boxes = case
    found = parse_boxes(format_boxes(boxes, size), size)
    assert [box.label for box in found] == [box.label for box in boxes]
    for own, read in zip(boxes, found, strict=True):
        for value, expected, side in zip(read[1:], own[1:], 2 * size, strict=True):
            assert abs(value - expected) <= side / 2000 + 1e-9
    assert parse_boxes(format_boxes(found, size), size) == found


@given(st.text(alphabet="<refbox>/[], 0123456789-.", max_size=200), SIDES, SIDES)
def test_any_text_gives_ordered_boxes_within_the_image(text, width, height):
    for box in parse_boxes(text, (width, height)):
        assert 0 <= box.left <= box.right <= width
        assert 0 <= box.top <= box.bottom <= height


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<ref>a cat</ref><box>[[100, 200, 300, 400]]</box>", [("a cat", 20, 20, 60, 40)]),
        (
            "Two:\n<ref>dogs</ref><box>[[0,0,500,500], [500, 500, 1000, 1000]]</box>.",
            [("dogs", 0, 0, 100, 50), ("dogs", 100, 50, 200, 100)],
        ),
        ("<ref>a</ref> and <ref>b</ref><box>[[0, 0, 10, 10]]</box>", [("b", 0, 0, 2, 1)]),
        ("<box>[100, 200, 300, 400]</box>", [("", 20, 20, 60, 40)]),
        ("a cat[[100, 200, 300, 400]]", [("", 20, 20, 60, 40)]),  # without its tags, which are special tokens
        ("<ref>a</ref><box>[[300, 400, 100, 200]]</box>", [("a", 20, 20, 60, 40)]),
        ("<ref>a</ref><box>[[-5, 0, 1003, 12.5]]</box>", [("a", 0, 0, 200, 1.25)]),
        ("<ref>a</ref><box>[[1, 2, 3]]</box>", []),
        ("<ref>a</ref><box>[[1, 2, 3", []),
        ("the list [1, 2, 3, 4] of numbers", []),
    ],
)
def test_the_forms_that_models_write_are_read(text, expected):
    assert parse_boxes(text, (200, 100)) == expected


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(40, 200), st.integers(40, 200)),
    orientation=st.integers(1, 8),
    slicing=st.sampled_from(("edge", "area", "ratio")),
    corners=st.lists(st.floats(0.1, 0.9), min_size=4, max_size=4),
)
@example(size=(140, 40), orientation=1, slicing="edge", corners=[0.4921875, 0.5, 0.4921875, 0.5])
def test_a_box_is_where_the_tiles_show_it(size, orientation, slicing, corners, processor):
    """A rectangle on a stored, turned photo: its place in the tiles, in thousandths, is its place in the upright image."""
    exif = Exif()
    exif[ORIENTATION] = orientation
    x, y = (sorted(corners[axis::2]) for axis in (0, 1))
    stored = np.zeros((size[1], size[0], 3), np.uint8)
    rows, columns = (
        slice(int(ends[0] * side), int(ends[1] * side) + 4) for ends, side in ((y, size[1]), (x, size[0]))
    )
    stored[rows, columns] = 255
    photo = Image.open(io.BytesIO(saved(Image.fromarray(stored), exif=exif)))
    upright = np.asarray(ImageOps.exif_transpose(photo))
    seen = np.argwhere(upright[..., 0] > 0)
    (top, left), (bottom, right) = seen.min(0), seen.max(0) + 1
    kwargs = {"slicing": slicing, "return_tensors": "pt", "do_normalize": False, "do_rescale": False}
    tiles = processor.image_processor([photo], **kwargs).pixel_values[:, 0].numpy()
    rule = processor.image_processor.tiling_rule({"slicing": slicing})
    plan = rule.plan(*processor.image_processor.upright_size(photo, {}))
    grid = tiles[: plan.rows * plan.columns].reshape(plan.rows, plan.columns, *tiles.shape[1:])
    views = [grid.transpose(0, 2, 1, 3).reshape(plan.rows * tiles.shape[1], -1)]
    views += [tiles[-1]] if plan.has_thumbnail else []
    for view in views:
        bright = np.argwhere(view > max(20, view.max() / 2))  # where it is thin, nothing is white
        if not len(bright):
            continue  # too thin to be seen there
        (y0, x0), (y1, x1) = bright.min(0), bright.max(0) + 1
        shares = x0 / view.shape[1], y0 / view.shape[0], x1 / view.shape[1], y1 / view.shape[0]
        (box,) = processor.parse_boxes(f"<box>[[{', '.join(str(1000 * share) for share in shares)}]]</box>", photo)
        pixel = np.array(upright.shape[1::-1]) / view.shape[::-1]  # of the view, in pixels of the image
        tolerance = np.tile(1 + pixel, 2)
        assert (np.abs(np.array(box[1:]) - (left, top, right, bottom)) <= tolerance).all()


def test_a_box_counts_pixels_of_the_image_as_the_processor_sees_it(processor, tmp_path):
    exif, path, scan = Exif(), tmp_path / "photo.jpg", tmp_path / "scan.pdf"
    exif[ORIENTATION] = 6
    Image.new("RGB", (200, 100)).save(path, exif=exif)
    scan.write_bytes(pdf((48, 24)))
    text = "<ref>a</ref><box>[[0, 0, 1000, 500]]</box>"
    for image in (path, str(path), Image.open(path), (100, 200), np.zeros((200, 100, 3), np.uint8)):
        assert processor.parse_boxes(text, image) == [("a", 0, 0, 100, 100)]
        assert processor.format_boxes([("a", 0, 0, 100, 100)], image) == text
    (page,) = open_images(scan)
    assert processor.parse_boxes(text, page) == [("a", 0, 0, page.width, page.height / 2)]
    processor = tiny_processor(tiny_config(), do_exif_transpose=False)
    assert processor.parse_boxes(text, path) == [("a", 0, 0, 200, 50)]


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (("a", 0, 0, 101, 50), "Box 0 ('a') has the corners (0, 0) and (101, 50) … within the image of 100x50"),
        (("a", 60, 0, 50, 50), "corners (60, 0) … expected the upper left"),
        (("a</ref>", 0, 0, 1, 1), "label 'a</ref>' … without <ref>"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(box, said):
    with refused(said):
        format_boxes([box], (100, 50))


def test_an_answer_keeps_its_tags_where_they_are_special_tokens():
    tokenizer, text = tiny_tokenizer(), "<ref>a cat</ref><box>[[1, 2, 3, 4]]</box>"
    for _ in ("text", "special tokens"):
        ids = tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
        assert decode_answer(tokenizer, ids) == text
        tokenizer.add_special_tokens({"additional_special_tokens": ["<ref>", "</ref>", "<box>", "</box>"]})
    assert len(ids) > len(tokenizer(text)["input_ids"])
    plain = tokenizer("a cat<|im_end|>", add_special_tokens=False)["input_ids"]
    assert decode_answer(tokenizer, plain) == "a cat"
