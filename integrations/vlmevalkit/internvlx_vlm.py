# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A model class for VLMEvalKit. README.md explains its use."""

import re
from string import ascii_uppercase

import torch
from vlmeval.dataset import DATASET_MODALITY, DATASET_TYPE
from vlmeval.vlm.base import BaseModel

from internvlx_hf.evaluation import Answerer, marks_as_text
from internvlx_hf.processing.image_settings import ImageSettings

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CHINESE = "请直接回答选项字母。"
YES_OR_NO = "Please answer yes or no."
IN_DETAIL = "Answer this question in detail."

# parts of data set names by which InternVL distinguishes them
MOST_TILES = {
    12: ("ChartQA", "MMMU", "MME-RealWorld", "VCR_", "OCRVQA"),
    18: ("DocVQA", "DUDE", "MMLongBench_DOC", "SLIDEVQA"),
    24: ("InfoVQA", "OCRBench", "HRBench"),
}
DEFAULT_MOST_TILES = 6
TILES_OF_ALL_IMAGES = 64
IN_OWN_WORDS = (
    "MathVista",
    "MathVision",
    "MathVerse",
    "VCR",
    "MTVQA",
    "MMVet",
    "CRPE",
    "MIA-Bench",
    "MM-Math",
    "DynaMath",
)


class InternVLX(BaseModel):
    """An InternVL-X checkpoint.

    Args:
        model_path: a folder or Hub id.
        max_patches: most tiles an image takes, the thumbnail not counted; unset: as many as InternVL allows for the data set.
        slicing, use_thumbnail, ...: fields of `ImageSettings` in place of the checkpoint's own.
        dtype, device_map, attn_implementation: as in `from_pretrained`; by default bfloat16 on the GPU, if there is one.
        generation_kwargs: of `generate`; by default greedy, at most 4096 tokens.
    """

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(
        self,
        model_path: str,
        dtype: str | torch.dtype = torch.bfloat16,
        device_map: str | dict | None = None,
        attn_implementation: str | None = None,
        **generation_kwargs,
    ):
        super().__init__()
        given = {name: generation_kwargs.pop(name) for name in ImageSettings.names() if name in generation_kwargs}
        self.image_settings = ImageSettings(**given).given
        attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        self.answerer = Answerer.from_pretrained(
            model_path,
            self.image_settings,
            dtype=dtype,
            device_map=device_map or ("cuda" if torch.cuda.is_available() else "cpu"),
            **attention,
        )
        self.generation_kwargs = {"max_new_tokens": 4096, **generation_kwargs}

    def use_custom_prompt(self, dataset: str) -> bool:
        """Whether to use InternVL's prompts, for images with questions of common kinds, or VLMEvalKit's own."""
        return DATASET_MODALITY(dataset) == "IMAGE" and DATASET_TYPE(dataset) in PROMPTS

    def build_prompt(self, line, dataset: str) -> list[dict]:
        """A sample's row as a message, its images first."""
        images = self.dump_image(line, dataset)
        images = [images] if isinstance(images, str) else images
        text = PROMPTS[DATASET_TYPE(dataset)](line, dataset)
        return [*({"type": "image", "value": path} for path in images), {"type": "text", "value": text}]

    def generate_inner(self, message: list[dict], dataset: str | None = None) -> str:
        """Args: message: parts of `type` "text" or "image" and their `value`, the text or a path."""
        return self._answer([{"role": "user", "content": message}], dataset)

    def chat_inner(self, message: list[dict], dataset: str | None = None) -> str:
        """Args: message: turns of `role` and `content`, whose parts are as in `generate_inner`; the last is the user's."""
        return self._answer(message, dataset)

    def _answer(self, turns: list[dict], dataset: str | None) -> str:
        parts = [part for turn in turns for part in turn["content"]]
        images = sum(part["type"] == "image" for part in parts)
        settings = {"max_patches": most_tiles(dataset, images), **self.image_settings}
        answerer = Answerer(self.answerer.model, self.answerer.processor, settings)
        (answer,) = answerer.answer([as_conversation(turns, images)], **self.generation_kwargs)
        return answer.text.strip()


def most_tiles(dataset: str | None, images: int) -> int:
    """InternVL's maximum number of tiles per image: more for dense documents, fewer if a question has many images."""
    names = {tiles: parts for tiles, parts in MOST_TILES.items() if any(part in (dataset or "") for part in parts)}
    return max(1, min(max(names, default=DEFAULT_MOST_TILES), TILES_OF_ALL_IMAGES // max(images, 1)))


def as_conversation(turns: list[dict], images: int) -> list[dict]:
    """Messages for `apply_chat_template`. Several images are numbered as in InternVL's training: "Image-1: <image>"."""
    number = 0
    conversation = []
    for turn in turns:
        content = []
        for part in turn["content"]:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["value"]})
            elif part["type"] == "image":
                number += 1
                content += [{"type": "text", "text": f"Image-{number}: "}] if images > 1 else []
                content.append({"type": "image", "path": part["value"]})
            else:
                raise ValueError(f"A message has a part of type {part['type']!r}, expected 'text' or 'image'.")
        conversation.append({"role": turn["role"], "content": content})
    return marks_as_text(conversation)


def choice_prompt(line, dataset: str) -> str:
    hint = [line["hint"]] if _is_there(line, "hint") else []
    options = [f"{letter}. {line[letter]}" for letter in ascii_uppercase if _is_there(line, letter)]
    text = "\n".join([*map(str, hint), str(line["question"]), *options])
    if not options:
        return f"{text}\n{SHORT_ANSWER}"
    return f"{text}\n{LETTER_CHINESE if re.search('[一-鿿]', text) else LETTER}"


def yes_or_no_prompt(line, dataset: str) -> str:
    if "HallusionBench" in dataset or "AMBER" in dataset:
        return f"{line['question']} {YES_OR_NO} {SHORT_ANSWER}"
    return f"{line['question']} {SHORT_ANSWER}" if "MME" in dataset else line["question"]


def question_prompt(line, dataset: str) -> str:
    if "LLaVABench" in dataset or "WildVision" in dataset:
        return f"{line['question']}\n{IN_DETAIL}"
    in_own_words = any(part in dataset for part in IN_OWN_WORDS)
    return line["question"] if in_own_words else f"{line['question']}\n{SHORT_ANSWER}"


PROMPTS = {"MCQ": choice_prompt, "Y/N": yes_or_no_prompt, "VQA": question_prompt}


def _is_there(line, column: str) -> bool:
    """Whether a row's value is present and not pandas' NaN."""
    return column in line and line[column] is not None and line[column] == line[column]
