# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""One question about many images or videos. Answers are appended to a JSON Lines file, where a later run resumes."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image
from tqdm import tqdm

from ..evaluation.answering import Answer, Answerer, Messages
from ..processing.image_files import names_image
from ..processing.image_settings import PROCESSOR, ImageSettings
from ..processing.image_sources import PillowSource
from ..processing.pdf_files import PdfPage, names_pdf, open_images, without_pages
from ..processing.video_files import Video, names_video, open_video
from .session import question_parts

Item = TypeVar("Item")


def _key(line: dict) -> str:
    """What identifies the answer of a line. A relative path stands for the file in the working directory."""
    return json.dumps([_absolute(line["image"]), line["question"], line["settings"]], sort_keys=True)


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


def answer_images(
    answerer: Answerer,
    images: Sequence[str],
    question: str,
    out: Path,
    settings: dict[str, Any],
    batch_size: int = 1,
    system: str | None = None,
    same_settings: dict[str, Any] | None = None,
    **generation_kwargs,
) -> tuple[int, int]:
    """Ask about each image and append a line `{"image", "question", "settings", "answer", "tokens", "finish_reason"}` to `out`.

    A PDF is asked about as a whole; its pages are images. `finish_reason` is "length" if the answer is cut off (see `Answer`). The path of an image's file is written as an absolute path. The line of an image that cannot be read, or that the model cannot
    be asked about, has `"error"` instead of an answer. The next run tries the image again.

    Args:
        images: paths or URLs of images, PDFs or videos. Videos are recognized by their file name extension.
        settings: everything else that the answers depend on. Lines of `out` with other settings do not count as answers.
        same_settings: settings of earlier lines that count as `settings` (default: none).
        generation_kwargs: see [`Answerer.answer`].

    Returns:
        How many images this run answered, and how many have errors.

    Raises:
        ValueError: if `out` has lines that this function did not write.
    """
    answered = {_key(line) for line in read_lines(out) if "error" not in line}
    known = [settings] if same_settings is None else [settings, same_settings]
    pending = [
        image
        for image in dict.fromkeys(map(_absolute, images))
        if answered.isdisjoint(_key(_line(image, question, each)) for each in known)
    ]
    errors = 0
    with out.open("a", encoding="utf-8") as file, tqdm(pending, desc="Answering", unit="image") as progress:
        for batch in batches(pending, batch_size):
            conversations: dict[str, Messages] = {}
            failed: dict[str, str] = {}
            for image in batch:
                try:
                    conversations[image] = _conversation(image, question, system)
                except ValueError as error:
                    failed[image] = str(error)
            answers = _answers(answerer, conversations, failed, generation_kwargs)
            for image in batch:
                result: dict[str, Any] = {"error": failed[image]} if image in failed else {}
                if image in answers:
                    text, tokens, reason = answers[image]
                    result = {"answer": text.strip(), "tokens": tokens, "finish_reason": reason}
                write_line(file, _line(image, question, settings) | result)
            errors += len(failed)
            progress.update(len(batch))
    return len(pending) - errors, errors


def _answers(
    answerer: Answerer, conversations: Mapping[str, Messages], failed: dict[str, str], generation_kwargs: dict
) -> dict[str, Answer]:
    """The answers by image, in one batch; one by one if that fails. Adds to `failed` why an image has none."""
    try:
        answers = answerer.answer(list(conversations.values()), **generation_kwargs) if conversations else []
        return dict(zip(conversations, answers, strict=True))
    except ValueError as error:  # such as a video that is cut off, which is found when its frames are decoded
        if len(conversations) == 1:
            failed[next(iter(conversations))] = str(error)
            return {}
    found: dict[str, Answer] = {}
    for image, conversation in conversations.items():
        found |= _answers(answerer, {image: conversation}, failed, generation_kwargs)
    return found


def list_files(names: Iterable[str]) -> list[str]:
    """The names, with each folder replaced by the images, PDFs and videos in it and its subfolders. Each file is named once.

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


def read_lines(path: Path, key: Callable[[dict], Any] = _key, start: bytes = b'{"image": ') -> list[dict]:
    """The lines of an earlier run. An incomplete last line is removed from the file.

    Args:
        key: returns what identifies a line (default: of a line of [`answer_images`]).
        start: how every line begins.

    Raises:
        ValueError: if a line was not written by the same command.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    complete, _, partial = content.rpartition(b"\n")
    found = []
    for number, line in enumerate(complete.split(b"\n") if complete else [], start=1):
        try:
            record = json.loads(line)
            key(record)
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number} was not written by this command: {line[:80]!r}. Choose another file."
            ) from None
        found.append(record)
    if partial:
        if not partial.startswith(start[: len(partial)]):
            raise ValueError(
                f"{path} ends with {partial[:80]!r}, which this command did not write. Choose another file."
            )
        with path.open("r+b") as file:
            file.truncate(len(content) - len(partial))
    return found


def _line(image: str, question: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {"image": image, "question": question, "settings": settings}


def write_line(file, line: dict[str, Any]) -> None:
    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    file.flush()


def _conversation(image: str, question: str, system: str | None) -> Messages:
    media: list[PIL.Image.Image | Video]
    if names_video(image):
        media = [open_video(image)]
    else:
        media = [
            page if isinstance(page, PdfPage) else PillowSource(page, upright=False, convert_rgb=False).decoded().image
            for page in open_images(image)
        ]
    instruction = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    return [*instruction, {"role": "user", "content": question_parts(question, media)}]


def batches(items: Sequence[Item], size: int) -> Iterable[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
