# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Boxes in answers, as InternVL writes them: `<ref>a cat</ref><box>[[103, 250, 640, 998]]</box>`.

A coordinate counts thousandths of the upright image's width or height, from its top left corner. Tiles and the
thumbnail show the image stretched to their grid, so neither the grid nor the thumbnail changes what a coordinate
means.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

REF, REF_END, BOX, BOX_END = BOX_TOKENS = ("<ref>", "</ref>", "<box>", "</box>")
SCALE = 1000  # the coordinate of the right and of the lower edge

_NUMBER = r"-?\d+(?:\.\d+)?"
_CORNERS = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]"
_LIST = rf"{_CORNERS}(?:\s*,\s*{_CORNERS})*"
# without `<box>`, which `skip_special_tokens` removes, only a list in two brackets is one of boxes
_FOUND = re.compile(
    rf"(?:{REF}(?P<label>(?:(?!{REF}|{REF_END}).)*){REF_END}\s*)?(?:{BOX}\s*\[?\s*(?P<tagged>{_LIST})|\[\s*(?P<bare>{_LIST})\s*\])",
    re.DOTALL,
)


class LabelledBox(NamedTuple):
    """A box in pixels of the upright image, and what is in it ("" if the answer does not say)."""

    label: str
    left: float
    top: float
    right: float
    bottom: float


def parse_boxes(text: str, size: tuple[int, int]) -> list[LabelledBox]:
    """The boxes of an answer, in order. A list of several boxes gives each the same label.

    Corners are ordered and clipped to the image. What is not four numbers in brackets is text, such as a box that the
    end of the answer cuts off. A tokenizer that removes the tags as special tokens leaves `[[103, 250, 640, 998]]`,
    whose label is "".

    Args:
        size: (width, height) of the upright image.
    """
    found = []
    for match in _FOUND.finditer(text):
        for corners in re.findall(_CORNERS, match["tagged"] or match["bare"]):
            shares = [min(max(float(number) / SCALE, 0.0), 1.0) for number in re.findall(_NUMBER, corners)]
            x, y = (sorted(side * share for share in shares[axis::2]) for axis, side in enumerate(size))
            found.append(LabelledBox((match["label"] or "").strip(), x[0], y[0], x[1], y[1]))
    return found


def format_boxes(boxes: Iterable[Sequence], size: tuple[int, int]) -> str:
    """The text that `parse_boxes` reads as these boxes, each corner to the nearest thousandth of the image. For
    training data.

    Args:
        boxes: (label, left, top, right, bottom), in pixels of the upright image. Neighbours with the same label share
            a list.
        size: (width, height) of the upright image.

    Raises:
        ValueError: if a box is not within the image, its corners are in another order, or its label holds a tag.
    """
    for number, (label, left, top, right, bottom) in enumerate(boxes := list(boxes)):
        if any(tag in label for tag in BOX_TOKENS):
            raise ValueError(
                f"Box {number} has the label {label!r:.100}, expected text without {', '.join(BOX_TOKENS)}."
            )
        if not (0 <= left <= right <= size[0] and 0 <= top <= bottom <= size[1]):
            raise ValueError(
                f"Box {number} ({label!r:.100}) has the corners {(left, top)} and {(right, bottom)}, expected the "
                f"upper left and the lower right one, within the image of {size[0]}x{size[1]} pixels."
            )
    texts = []
    for label, same in groupby(boxes, key=lambda box: box[0]):
        corners = [
            [round(SCALE * value / side) for value, side in zip(box[1:], 2 * size, strict=True)] for box in same
        ]
        texts.append((f"{REF}{label}{REF_END}" if label else "") + f"{BOX}{corners}{BOX_END}")
    return "\n".join(texts)


def decode_answer(tokenizer, ids: Sequence[int]) -> str:
    """The text of generated ids without special tokens, but for the tags of boxes, which most of InternVL's tokenizers
    call special.
    """
    special, ids = set(tokenizer.all_special_ids), [int(token) for token in ids]
    tags = special & set(tokenizer.convert_tokens_to_ids(list(BOX_TOKENS))) - {tokenizer.unk_token_id}
    if tags.isdisjoint(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)
    return tokenizer.decode([token for token in ids if token not in special or token in tags])
