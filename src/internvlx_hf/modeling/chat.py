# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL's chat interface: `model.chat(tokenizer, pixel_values, question, generation_config)`."""

import re
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from .literal_text import (
    IMAGE_MARK,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    MARK_AS_TEXT,
    escaped,
    literals_as_text,
)

logger = logging.get_logger(__name__)

History = list[tuple[str, str]]  # (question, answer)


class ChatMixin:
    """`chat` and `batch_chat` for a model with these attributes:"""

    config: Any
    device: Any
    generate: Any

    # system message of `chat` and `batch_chat`; None: the chat template's own
    system_message: str | None = None

    @torch.no_grad()
    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | None,
        question: str,
        generation_config: GenerationConfig | dict | None = None,
        history: History | None = None,
        return_history: bool = False,
        num_patches_list: list[int] | None = None,
        IMG_START_TOKEN: str = IMG_START_TOKEN,
        IMG_END_TOKEN: str = IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
        verbose: bool = False,
    ) -> str | tuple[str, History]:
        """Answer a question about any number of images, as InternVL2's remote code does.

        Args:
            tokenizer: has a chat template and InternVL's image tokens, such as `processor.tokenizer`.
            pixel_values: (tiles, 3, H, W), the tiles of all images in the conversation, from
                `processor.image_processor(images, return_tensors="pt")["pixel_values"]`; None for text only.
            question: `<image>` marks where an image goes. Without a mark, the first question of a conversation with
                images gets one in front. Write U+2060 after the `<` to have it read as text.
            generation_config: a dict of `generate` arguments, with which an answer always ends at the chat template's
                end marker; or a `GenerationConfig`, whose `eos_token_id`, if set, takes precedence.
            history: the questions and answers so far, as an earlier call returned them. Answers are always read as
                text.
            return_history: also return the history including this turn.
            num_patches_list: tiles of each image (default: all of `pixel_values` are one image's).
            IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN: the tokens around and of an image. A tokenizer without
                InternVL's start and end tokens, such as that of a model converted from LLaVA, writes images without.
            verbose: log the prompt and the answer.

        Returns:
            The answer, or (answer, history).

        Raises:
            ValueError: if `tokenizer` or `pixel_values` has the wrong type, if marks, images and tiles do not match,
                or if a question or the system message contains an image token.
        """
        history = list(history or [])
        _require_inputs(tokenizer, pixel_values, [*(text for turn in history for text in turn), question])
        if num_patches_list is None:
            num_patches_list = [] if pixel_values is None else [len(pixel_values)]
        question = opening_question(question, history, pixel_values is not None)
        image_tokens = _known_tokens(tokenizer, (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN))
        query = self._checked_query(tokenizer, question, history, num_patches_list, image_tokens)
        _require_tiles(pixel_values, num_patches_list)
        answer = self._answers(tokenizer, pixel_values, [query], generation_config, image_tokens)[0]
        if verbose:
            _log_turn(query, answer, image_tokens)
        return (answer, [*history, (question, answer)]) if return_history else answer

    @torch.no_grad()
    def batch_chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | None,
        questions: list[str],
        generation_config: GenerationConfig | dict | None = None,
        num_patches_list: list[int] | None = None,
        history: None = None,
        return_history: bool = False,
        IMG_START_TOKEN: str = IMG_START_TOKEN,
        IMG_END_TOKEN: str = IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
        verbose: bool = False,
        image_counts: list[int] | None = None,
    ) -> list[str]:
        """Answer several questions about an image each, as InternVL2's remote code does.

        Args:
            pixel_values: (tiles, 3, H, W), the tiles of all images; None for text only.
            questions: each gets an `<image>` in front unless it has one.
            num_patches_list: tiles of each question's image, 0 for a question without one (default: one tile each).
            history, return_history: not supported, as in InternVL2.
            image_counts: InternVL's older name for `num_patches_list`.

        The other arguments are those of `chat`.

        Raises:
            NotImplementedError: if `history` or `return_history` is set.
            ValueError: as in `chat`, or if the numbers of questions and images differ.
        """
        if history is not None or return_history:
            raise NotImplementedError(
                "`batch_chat` answers single questions. Use `chat` for conversations of several turns."
            )
        _require_inputs(tokenizer, pixel_values, questions)
        num_patches_list = image_counts if num_patches_list is None else num_patches_list
        if num_patches_list is None:
            num_patches_list = [0 if pixel_values is None else 1] * len(questions)
        if len(num_patches_list) != len(questions):
            raise ValueError(
                f"`num_patches_list`={num_patches_list} has {len(num_patches_list)} images for {len(questions)} "
                "questions, expected one for each question."
            )
        image_tokens = _known_tokens(tokenizer, (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN))
        queries = []
        for question, tiles in zip(questions, num_patches_list, strict=True):
            question = opening_question(question, [], tiles > 0)
            queries.append(self._checked_query(tokenizer, question, [], [tiles] if tiles else [], image_tokens))
        _require_tiles(pixel_values, num_patches_list)
        answers = self._answers(tokenizer, pixel_values, queries, generation_config, image_tokens)
        if verbose:
            for query, answer in zip(queries, answers, strict=True):
                _log_turn(query, answer, image_tokens)
        return answers

    def _checked_query(self, tokenizer, question, history, num_patches_list, image_tokens) -> str:
        """`chat_query`, with an error for anything ambiguous."""
        context = image_tokens[1]
        if tokenizer.convert_tokens_to_ids(context) != self.config.image_token_id:
            raise ValueError(
                f"The model's images are written with token {self.config.image_token_id}, but the tokenizer's "
                f"{context!r} is {tokenizer.convert_tokens_to_ids(context)}."
            )
        questions = [*(asked for asked, _ in history), question]
        _refuse_image_tokens([*questions, self.system_message or ""], image_tokens)
        _require_marks(questions, self.system_message or "", len(num_patches_list))
        image_seq_length = self.config.image_seq_length
        query = chat_query(
            tokenizer, question, history, num_patches_list, image_seq_length, self.system_message, image_tokens
        )
        counts = dict.fromkeys(image_tokens, len(num_patches_list)) | {
            context: image_seq_length * sum(num_patches_list)
        }
        for token in _literal_tokens(image_tokens):
            if query.count(token) != counts.get(token, 0):
                raise ValueError(f"Adjacent texts of the conversation form the image token {token!r}: {query!r:.200}")
        return query

    def _answers(self, tokenizer, pixel_values, queries: list[str], generation_config, image_tokens) -> list[str]:
        has_bos = tokenizer.bos_token is not None and queries[0].startswith(tokenizer.bos_token)
        with literals_as_text(tokenizer, queries, (*_literal_tokens(image_tokens), IMAGE_MARK)):
            inputs = tokenizer(
                queries, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=not has_bos
            )
        inputs = {name: inputs[name].to(self.device) for name in ("input_ids", "attention_mask")}
        if pixel_values is not None:
            inputs["pixel_values"] = pixel_values.to(self.device)
        stop = end_marker(tokenizer)
        stop_id = {} if stop is None else {"eos_token_id": tokenizer.convert_tokens_to_ids(stop)}
        if isinstance(generation_config, GenerationConfig):
            own_stop = {} if generation_config.eos_token_id is not None else stop_id
            kwargs = {"generation_config": generation_config, **own_stop}
        else:
            kwargs = {"pad_token_id": tokenizer.pad_token_id} | dict(generation_config or {}) | stop_id
        output = self.generate(**inputs, **kwargs)
        answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.partition(stop)[0].strip() if stop else answer.strip() for answer in answers]


def opening_question(question: str, history: History, has_images: bool) -> str:
    """The question as the prompt has it: with an `<image>` in front if it opens a conversation whose images have no
    mark.
    """
    if has_images and not history and IMAGE_MARK not in question:
        return f"{IMAGE_MARK}\n{question}"
    return question


def chat_query(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    history: History,
    num_patches_list: list[int],
    image_seq_length: int,
    system_message: str | None = None,
    image_tokens: tuple[str, str, str] = (IMG_START_TOKEN, IMG_CONTEXT_TOKEN, IMG_END_TOKEN),
) -> str:
    """The prompt of a conversation, with each `<image>` mark replaced by an image's placeholders in reading order.

    As in InternVL, marks without an image stay, and images without a mark are left out. Unlike in InternVL, answers
    are text: marks and image tokens in them are escaped, for `literals_as_text`.
    """
    literals = (*_literal_tokens(image_tokens), IMAGE_MARK)
    messages = [] if system_message is None else [{"role": "system", "content": system_message}]
    for asked, answered in history:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": escaped(answered, literals)}]
    messages.append({"role": "user", "content": question})
    query = _rendered(tokenizer, messages, add_generation_prompt=True)
    start, context, end = image_tokens
    for tiles in num_patches_list:
        query = query.replace(IMAGE_MARK, start + context * image_seq_length * tiles + end, 1)
    return query


def end_marker(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token that the chat template writes after an answer, or the EOS token if the template writes several."""
    answer = "answer"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    marker = _rendered(tokenizer, messages).rpartition(answer)[2].strip()
    is_token = tokenizer.convert_tokens_to_ids(marker) not in (None, tokenizer.unk_token_id)
    return marker if is_token else tokenizer.eos_token


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **kwargs) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)  # type: ignore[return-value]


def _known_tokens(tokenizer, image_tokens: tuple[str, str, str]) -> tuple[str, str, str]:
    """The image tokens, with "" for start and end if they are InternVL's and the tokenizer has neither."""
    start, context, end = image_tokens
    ids = tokenizer.convert_tokens_to_ids([IMG_START_TOKEN, IMG_END_TOKEN])
    has_none = all(index in (None, tokenizer.unk_token_id) for index in ids)
    return ("", context, "") if has_none and (start, end) == (IMG_START_TOKEN, IMG_END_TOKEN) else image_tokens


def _literal_tokens(image_tokens: tuple[str, str, str]) -> tuple[str, ...]:
    """InternVL's image tokens and the caller's."""
    start, _, end = image_tokens
    wrappers = (IMG_START_TOKEN, IMG_END_TOKEN) if start or end else ()
    return tuple(filter(None, dict.fromkeys((IMG_CONTEXT_TOKEN, *wrappers, *image_tokens))))


def _refuse_image_tokens(texts: list[str], image_tokens: tuple[str, str, str]):
    for text in texts:
        for token in _literal_tokens(image_tokens):
            if token in text:
                raise ValueError(
                    f"The message {text!r:.200} contains the image token {token!r} as text. Mark the place of an "
                    f"image with {IMAGE_MARK!r}."
                )


def _require_marks(questions: list[str], system_message: str, num_images: int):
    as_text = f"To write the mark as text, use {MARK_AS_TEXT!r}."
    if IMAGE_MARK in system_message:
        raise ValueError(
            f"The system message {system_message!r:.200} has {IMAGE_MARK!r}, which belongs in questions. {as_text}"
        )
    marks = sum(question.count(IMAGE_MARK) for question in questions)
    if marks != num_images:
        raise ValueError(
            f"The conversation has {marks} {IMAGE_MARK!r} marks, but {num_images} images were given. {as_text}"
        )


def _require_inputs(tokenizer, pixel_values, texts: list[str]):
    if hasattr(tokenizer, "image_processor"):
        raise ValueError(
            f"`tokenizer` is a {type(tokenizer).__name__}, expected its tokenizer: `processor.tokenizer`."
        )
    is_tiles = isinstance(pixel_values, torch.Tensor) and pixel_values.ndim == 4
    if pixel_values is not None and not is_tiles:
        shape = f" of shape {tuple(pixel_values.shape)}" if hasattr(pixel_values, "shape") else ""
        raise ValueError(
            f"`pixel_values` is {pixel_values!r:.100}{shape}, expected a tensor (tiles, 3, H, W) or None. Make one "
            "from a path, "
            'a URL or a Pillow image with `processor.image_processor(image, return_tensors="pt")["pixel_values"]`.'
        )
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"A message is {text!r:.100}, expected text.")


def _require_tiles(pixel_values: torch.Tensor | None, num_patches_list: list[int]):
    tiles = 0 if pixel_values is None else len(pixel_values)
    if tiles != sum(num_patches_list):
        raise ValueError(
            f"`num_patches_list`={num_patches_list} adds up to {sum(num_patches_list)} tiles, got {tiles}."
        )


def _log_turn(query: str, answer: str, image_tokens: tuple[str, str, str]):
    start, context, end = map(re.escape, image_tokens)
    # at warning level, so that the default log level shows it
    logger.warning("%s%s", re.sub(f"{start}(?:{context})+{end}", IMAGE_MARK, query), answer)
