# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""One question about many images or videos. Answers are appended to a JSON Lines file, where a later run resumes."""

import os
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import PIL.Image

from ..evaluation.answering import Answer, Answerer, chat_inputs
from ..processing.image_files import names_image
from ..processing.image_settings import PROCESSOR, ImageSettings
from ..processing.pdf_files import names_pdf, open_images, without_pages
from ..processing.video_files import Video, names_video, open_video
from .bulk import BATCH_SIZE, Item, Outcome, Prompt, answer_all, digest, earlier_keys
from .session import question_parts

QUESTION_TOKENS = 64  # of a prompt, beside those of images: prompts of one question differ by their images


def _absolute(image: str) -> str:
    """The absolute path of a file; other names, such as URLs, as they are."""
    return os.path.abspath(image) if os.path.exists(without_pages(image)) else image


def model_settings(model: str, answerer: Answerer) -> dict[str, Any]:
    """The part of the settings that says which model answers, and how it slices images."""
    names = ("slicing", "max_patches", *ImageSettings.names(PROCESSOR), *answerer.images_kwargs)
    images = {name: value for name, value in answerer.image_settings.given.items() if name in names}
    return {"model": model, **answerer.version, **images}


def earlier_settings(settings: dict[str, Any], answerer: Answerer) -> dict[str, Any]:
    """The settings as files that do not name the model's version have them."""
    return {name: value for name, value in settings.items() if name not in answerer.version}


class ImageJob:
    """One question about each of many images, PDFs or videos.

    Args:
        images: their absolute paths or URLs.
        known: the settings of a line that counts as an answer; the first are written.
    """

    unit = "image"

    def __init__(
        self, answerer: Answerer, images: Sequence[str], question: str, system: str | None, known: Sequence[dict]
    ):
        self.processor, self.config = answerer.processor, answerer.model.config
        self.images_kwargs, self.changed = answerer.images_kwargs, answerer.changed_processor
        self.images, self.question, self.system, self.known = images, question, system, known

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images[index]

    def read(self, index: int) -> Item:
        image = self.images[index]
        line = {"image": image, "question": self.question, "settings": self.known[0]}
        return Item(image, line, image, [_key(line | {"settings": settings}) for settings in self.known])

    def measure(self, item: Item) -> tuple[int, int]:
        media, processor = _open(item.question), self.changed
        videos = [one for one in media if isinstance(one, Video)]
        sizes = [processor.image_processor.upright_size(one, {}) for one in media if not isinstance(one, Video)]
        if len(sizes) == 1 and not videos:
            (item.size,) = sizes
        frames = sum(map(len, processor.video_processor.choose_frames(videos)))
        tiles = [processor.frame_size(None)] * frames
        for rule, choice, size in zip(*processor.plan_images(sizes, num_frames=frames), sizes, strict=True):
            tiles += choice.of_plan(rule.plan(*size))
        return QUESTION_TOKENS + processor.num_placeholders(tiles), len(tiles)

    def prompt(self, item: Item) -> Prompt:
        instruction = [] if self.system is None else [{"role": "system", "content": _text_parts(self.system)}]
        asked = {"role": "user", "content": question_parts(self.question, _open(item.question))}
        inputs = chat_inputs(self.processor, [[*instruction, asked]], self.images_kwargs, add_generation_prompt=True)
        sizes = inputs.get("tile_sizes")
        sizes = () if sizes is None else sizes.tolist()
        return Prompt(inputs["input_ids"][0].tolist(), inputs.get("pixel_values"), tile_sizes=sizes)

    def finish(self, item: Item, answer: Answer) -> dict:
        return item.line | {
            "answer": answer.text.strip(),
            "tokens": answer.num_tokens,
            "finish_reason": answer.finish_reason,
        }

    def broken(self, item: Item) -> dict:
        return item.line | {"error": item.error}


def answer_images(
    answerer: Answerer,
    images: Sequence[str],
    question: str,
    out: Path,
    settings: dict[str, Any],
    batch_size: int = BATCH_SIZE,
    system: str | None = None,
    same_settings: dict[str, Any] | None = None,
    num_workers: int | None = None,
    **generation_kwargs,
) -> Outcome:
    """Ask about each image and append a line `{"image", "question", "settings", "answer", "tokens", "finish_reason"}`
    to `out`.

    Images of similar cost are answered together, and their lines are written then, so the lines' order is not that of
    the images. A PDF is asked about as a whole; its pages are images. `finish_reason` is "length" if the answer is cut
    off (see `Answer`). The path of an image's file is written as an absolute path. `boxes` lists the boxes of an
    answer about a single image, in its pixels. The line of an image that cannot be read, or that the model cannot be
    asked about, has `"error"` instead of an answer. The next run tries it again.

    Args:
        images: paths or URLs of images, PDFs or videos. Videos are recognized by their file name extension.
        settings: everything else that the answers depend on.
        same_settings: settings of earlier lines that count as `settings` (default: none).
        batch_size, num_workers, generation_kwargs: see [`answer_all`].

    Raises:
        ValueError: if `out` has lines that this function did not write, or wrote with other settings.
    """
    known = [settings] if same_settings is None else [settings, same_settings]
    done = image_keys(out, known)
    job = ImageJob(answerer, list(dict.fromkeys(map(_absolute, images))), question, system, known)
    return answer_all(answerer, job, out, done, batch_size, num_workers, **generation_kwargs)


def image_keys(path: Path, known: Sequence[Mapping] = ()) -> set[bytes]:
    """What identifies the answers of a file. Raises: ValueError: see [`earlier_keys`]."""
    return earlier_keys(
        path, lambda line: None if "error" in line else _key(line), b'{"image": ', known, itemgetter("settings")
    )


def _key(line: Mapping) -> bytes:
    """What identifies the answer of a line. A relative path stands for the file in the working directory."""
    return digest([_absolute(line["image"]), line["question"], line["settings"]])


def list_files(names: Iterable[str]) -> list[str]:
    """The names, with each folder replaced by the images, PDFs and videos in it and its subfolders. Each file is named
    once.

    Raises:
        ValueError: if a folder has none.
    """
    found: list[str] = []
    for name in names:
        if not os.path.isdir(name):
            found.append(_absolute(name))
            continue
        files = sorted(str(path) for path in Path(os.path.abspath(name)).rglob("[!.]*") if path.is_file())
        files = [file for file in files if names_image(file) or names_pdf(file) or names_video(file)]
        if not files:
            raise ValueError(f"The folder {name} has no images or videos.")
        found += files
    return list(dict.fromkeys(found))


def _open(image: str) -> list[PIL.Image.Image | Video]:
    return [open_video(image)] if names_video(image) else list(open_images(image))


def _text_parts(text: str) -> list[dict]:
    return [{"type": "text", "text": text}]
