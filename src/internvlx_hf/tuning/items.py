# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""What a model is asked: images with a question, or records of training data. All of it is read before a model is
loaded.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image

from ..cost.images import Size, find_images
from ..data.conversations import sample_from_record
from ..data.records import JsonLines
from ..data.samples import media_of, open_media
from ..processing.image_headers import PillowHeader
from ..processing.image_sources import PillowSource
from ..processing.messages import IMAGE, VIDEO, question_about

MOST_NAMED = 5  # broken images in a message


@dataclass(frozen=True)
class Item:
    """One question about one or several images.

    Args:
        name: the image's file, or the record's place.
        messages: the conversation, which ends with the user's turn.
        sources: its images, as paths, `{"bytes": ...}` or Pillow images.
        content: a hash of the images' pixels.
        key: a hash of images and messages.
        sizes: (width, height) of each image as stored, and after its EXIF orientation.
        reference: the answer that the data have, if any.
    """

    name: str
    messages: list[dict]
    sources: list
    content: str
    key: str
    sizes: tuple[list[Size], list[Size]]
    reference: str | None = None

    def open(self) -> list[PIL.Image.Image]:
        """The images, not decoded yet."""
        return _opened(self.sources)

    def sizes_seen(self, upright: bool) -> list[Size]:
        return self.sizes[upright]

    @property
    def question(self) -> str:
        """The text of the last turn."""
        content = self.messages[-1]["content"]
        texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        return " ".join(" ".join(texts).replace(IMAGE.mark, "").split())


@dataclass
class Items:
    """The questions, by their images: the questions about the same images are one unit, which agrees if all its
    answers do.

    Args:
        listed: number of images or records that were given.
        units: items by the hash of their images.
        broken: why images or records could not be read, by name.
        copies: number of items that ask the same about the same images as another.
    """

    listed: int = 0
    units: dict[str, list[Item]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    copies: int = 0

    def add(self, item: Item) -> None:
        unit = self.units.setdefault(item.content, [])
        if any(other.key == item.key for other in unit):
            self.copies += 1
        else:
            unit.append(item)

    def notes(self) -> list[str]:
        lines = [f"Skipped: {name}: {reason}" for name, reason in self.broken.items()]
        if self.copies:
            lines.append(f"Left out: {self.copies} with the same pixels and question as another.")
        return lines


def load_items(
    images: Sequence[str | os.PathLike | PIL.Image.Image],
    question: str,
    data: str | os.PathLike | None = None,
    skip_broken: bool = False,
    most: int | None = None,
) -> Items:
    """Read and decode images, once.

    Args:
        images: files, folders, patterns (`photos/*.jpg`), PDFs (each page is an image) or Pillow images.
        question: asked about each.
        data: a JSON Lines file of records, as for training, instead of images and a question.
        skip_broken: leave out what cannot be read (default: raise).
        most: read no more than the images of so many units, drawn by their names (default: all).

    Raises:
        ValueError: if there is nothing to ask, or something cannot be read; the message names and counts it.
    """
    found = Items()
    readers = _images(found, images, question_about(question, images=1)) if data is None else _records(Path(data))
    found.listed = len(readers) + len(found.broken)
    if not found.listed:
        raise ValueError(f"{data} has no records, expected questions about images." if data else _NO_IMAGES)
    if most is not None:
        readers.sort(key=lambda reader: hashlib.sha256(f"drawn {reader[0]}".encode()).digest())
    for name, read in readers:
        if most is not None and len(found.units) >= most:
            break
        try:
            found.add(read())
        except (ValueError, OSError) as error:
            found.broken[name] = str(error)
    if found.broken and not skip_broken:
        kind = "images" if data is None else "records"
        shown = [f"{name}: {reason}" for name, reason in list(found.broken.items())[:MOST_NAMED]]
        shown += [f"and {len(found.broken) - MOST_NAMED} more"] if len(found.broken) > MOST_NAMED else []
        raise ValueError(
            f"{len(found.broken)} of {found.listed} {kind} cannot be read; leave them out with --skip-broken. "
            + "; ".join(shown)
        )
    if not found.units:
        raise ValueError("None of the images can be read: " + "; ".join(found.broken.values()))
    return found


_NO_IMAGES = "There are no images to ask about, expected files, folders or patterns such as 'photos/*.jpg'."
# a name, and what reads the item of that name
Readers = list[tuple[str, Callable[[], Item]]]


def _images(found: Items, images: Sequence[str | os.PathLike | PIL.Image.Image], question: str) -> Readers:
    listed = find_images([image for image in images if not isinstance(image, PIL.Image.Image)], skip_broken=True)
    found.broken |= listed.broken
    sources: list[tuple[str, Any]] = [(name, name) for name in listed.names]
    sources += [
        (f"image {number}", image) for number, image in enumerate(images, 1) if isinstance(image, PIL.Image.Image)
    ]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    return [(name, partial(_item, name, messages, [source], None)) for name, source in sources]


def _records(path: Path) -> Readers:
    records, root = JsonLines(path), path.absolute().parent

    def read(index: int) -> Item:
        return _record_item(records.place(index), records[index], root)

    return [(records.place(index), partial(read, index)) for index in range(len(records))]


def _record_item(place: str, record, root: Path) -> Item:
    sample = sample_from_record(record, str(root))
    messages, reference = list(sample["messages"]), None
    if sample.get("videos") or any(part.get("type") == VIDEO.kind for part in _parts(messages)):
        raise ValueError("it has a video, expected images: a frame is one tile, of which nothing can be saved")
    if sample.get("images_kwargs"):
        raise ValueError(f"it sets {sample['images_kwargs']} for its images, expected the settings that are tuned")
    if messages and messages[-1].get("role") == "assistant":
        reference = " ".join(_texts(messages.pop()))
    if not messages or messages[-1].get("role") != "user":
        raise ValueError("it has no question, expected a last turn of the user, or the user's and its answer")
    own = [part for part in _parts(messages) if part.get("type") == IMAGE.kind]
    sources = [*media_of(sample, IMAGE), *(part for part in own if any(key in part for key in IMAGE.keys))]
    if not sources:
        raise ValueError("it is a question without images, expected at least one")
    if own and media_of(sample, IMAGE) and len(sources) > len(media_of(sample, IMAGE)):
        raise ValueError("it has images both in `images` and in parts of messages, expected one of them")
    messages = [{**message, "content": _bare(message["content"])} for message in messages]
    return _item(place, messages, sources, reference)


def _parts(messages: Iterable[Mapping]) -> list[dict]:
    contents = (message.get("content") for message in messages)
    return [part for content in contents if isinstance(content, list) for part in content]


def _texts(message: Mapping) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part.get("text", "") for part in content]


def _bare(content):
    """A message's content with image parts that do not name their images."""
    if isinstance(content, str):
        return content
    return [{"type": IMAGE.kind} if part.get("type") == IMAGE.kind else part for part in content]


def _item(name: str, messages: list[dict], sources: list, reference: str | None) -> Item:
    digest, stored, upright = hashlib.sha256(), [], []
    for image in _opened(sources):
        header = PillowHeader(image)
        upright.append((header.width, header.height))
        stored.append(header.image.size)
        pixels = PillowSource(image, upright=False, convert_rgb=False).decoded().image
        digest.update(f"{pixels.mode} {pixels.size} {header.transposition} ".encode())
        digest.update(pixels.tobytes())
    content = digest.hexdigest()[:32]
    key = hashlib.sha256(json.dumps([content, messages], sort_keys=True).encode()).hexdigest()[:32]
    return Item(name, messages, sources, content, key, (stored, upright), reference)


def _opened(sources: list) -> list[PIL.Image.Image]:
    return [image for source in sources for image in open_media(source)]
