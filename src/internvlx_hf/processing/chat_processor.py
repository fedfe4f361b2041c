# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Rendering conversations, with their images and videos in place."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import ProcessorMixin
from transformers.utils.chat_template_utils import jinja2, render_jinja_template

from .assistant_masks import assistant_mask
from .boxes import LabelledBox, format_boxes, parse_boxes
from .chat_templates import require_generation_marks, template_words
from .literals import MARKS, VIDEO_MARK
from .messages import (
    IMAGE,
    VIDEO,
    Medium,
    count_marks,
    is_bare,
    media_parts,
    place_media,
    read_messages,
    refuse_tokens,
)
from .template_limits import bounded
from .video_files import flat_videos, is_one_video

IGNORE_INDEX = -100


@dataclass
class ChatMedia:
    """The images and videos of a chat's prompts, and the tokens that the prompts must hold.

    Attributes:
        template: the chat template.
        images, videos: those of each conversation, in order.
        counts: how often each conversation's prompt must hold each image token and each mark.
        tokens: the last two arguments of [`assistant_mask`] for each prompt; None where transformers computes the
            masks.
    """

    template: str
    images: list[list]
    videos: list[list]
    counts: list[dict[str, int]]
    tokens: list[tuple] | None = None

    def check(self, prompts: str | list[str], may_have_none: bool = False) -> None:
        """Checks the rendered prompts, since several texts may together form a token.

        Args:
            may_have_none: whether a template may write no images, as for a prompt that is only text to the caller.
        """
        for prompt, counts in zip([prompts] if isinstance(prompts, str) else prompts, self.counts, strict=True):
            for token, expected in counts.items():
                found = prompt.count(token)
                if found == 0 and may_have_none:
                    continue
                if found != expected and (expected or token not in self.template):
                    raise ValueError(
                        f"The rendered conversation holds {token!r} {found} times, expected {expected}, once for each "
                        f"{'video' if token == VIDEO_MARK else 'image'}: texts of the conversation form it together, "
                        "or the chat template leaves some out."
                    )
            if not prompt:
                raise ValueError(
                    "The conversation is empty, expected a list of messages that the chat template writes."
                )


# passed from `apply_chat_template` to `__call__`: no argument of transformers gets there in all versions
CHAT_MEDIA: ContextVar[ChatMedia | None] = ContextVar("chat_media", default=None)


class ChatProcessor(ProcessorMixin):
    """A processor that renders conversations and checks that a prompt holds exactly the tokens of its images and
    videos.
    """

    image_token: str
    start_image_token: str
    end_image_token: str
    image_token_id: int
    start_image_token_id: int | None
    end_image_token_id: int | None
    wrap_images: bool

    @property  # type: ignore[misc]
    def image_token_ids(self) -> list[int]:  # type: ignore[override]
        """Ids of `image_tokens`."""
        return [self.image_token_id, *self.wrapper_ids]

    @property
    def wrapper_ids(self) -> list[int]:
        """Ids of the start and the end token, empty for images without them."""
        return [token_id for token_id in (self.start_image_token_id, self.end_image_token_id) if token_id is not None]

    @property
    def image_tokens(self) -> tuple[str, ...]:
        """All tokens that stand for an image in a prompt: its placeholder, and start and end where it has them."""
        return (self.image_token, *filter(None, (self.start_image_token, self.end_image_token)))

    @property
    def literals(self) -> tuple[str, ...]:
        """Tokens and marks that stand for an image or a video. Other text may hold them only if they are escaped."""
        return (*self.image_tokens, *MARKS)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation,
        chat_template=None,
        tools=None,
        documents=None,
        *,
        images: ImageInput | None = None,
        videos=None,
        return_labels: bool = False,
        **kwargs,
    ):
        """Renders conversations, and with `tokenize=True` tokenizes them and makes tiles of their images and videos.

        Whatever the assistant or a tool wrote is text, even if it looks like an image token. (In a prompt that is not
        tokenized, such a token has U+2060 after its first character.)

        Args:
            conversation: a list of messages, or a list of such lists. Image parts of a message look like
                `{"type": "image", "image" | "path" | "url" | "base64": ...}` or like OpenAI's `image_url` parts. In
                conversations without image parts, marks `<image>` in the users' turns stand for `images`. Video parts
                look like `{"type": "video", "video" | "path" | "url": ...}`; a list in them is a list of frames.
            images: images for the marks, or for image parts without an image of their own, in order; flat or one list
                per conversation. Without marks and image parts, they go in front of the first user's turn.
            videos: likewise for videos, whose mark is `<video>`.
            return_labels: also return `labels` for training, in the shape of `input_ids`: -100 except for tokens that
                overlap the text that the template marks as written by the assistant (default: False). An answer that
                begins with a blank may share its first token with the end of the turn's header, so strip it. Implies
                `tokenize` and `return_dict`.
            kwargs: as for `ProcessorMixin.apply_chat_template`.

        Raises:
            ValueError: if the template does not write something that is given (a role, a part, tools, ...); if a
                message's text holds an image token; if the number of marks or parts differs from that of `images` or
                `videos`; if a conversation has both marks and parts; or if `return_labels` is set and the template has
                no `{% generation %}` marks.
        """
        template = self.resolve_chat_template(chat_template)
        processor_kwargs = dict(kwargs.pop("processor_kwargs", None) or {})
        refuse_other_media({**kwargs, **processor_kwargs})
        images = processor_kwargs.pop("images", None) if images is None else images
        videos = processor_kwargs.pop("videos", None) if videos is None else videos
        self._refuse_unwritten(template, tools=tools, documents=documents)
        conversations, is_batch = _as_batch(conversation)
        tokenize = kwargs.get("tokenize", False) or return_labels
        conversations, chat = self._read_chat(conversations, images, videos, template, tokenize)
        wants_mask = kwargs.get("return_assistant_tokens_mask", False)
        if return_labels:
            require_generation_marks(template, "return_labels=True")
            kwargs |= {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        if processor_kwargs:
            kwargs["processor_kwargs"] = processor_kwargs
        inputs = self._render(chat, conversations if is_batch else conversations[0], tools, documents, **kwargs)
        if return_labels:
            inputs["labels"] = self._labels(inputs["input_ids"], inputs["assistant_masks"])
            if not wants_mask:
                del inputs["assistant_masks"]
        return inputs

    def parse_boxes(self, text: str, image) -> list[LabelledBox]:
        """The boxes that an answer writes as `<ref>…</ref><box>[[…]]</box>`, in pixels of the image, see
        [`parse_boxes`].

        Args:
            image: the image that was asked about, in any form that the processor takes, or its upright (width,
                height). Pixels count as the processor sees the image: upright, unless it has
                `do_exif_transpose=False`.
        """
        return parse_boxes(text, self._box_size(image))

    def format_boxes(self, boxes: Iterable[Sequence], image) -> str:
        """The text that `parse_boxes` reads as these boxes, see [`format_boxes`], for the answers of training data.

        Args:
            boxes: (label, left, top, right, bottom) of each, in pixels of the image.
            image: as for `parse_boxes`.

        Raises:
            ValueError: if a box is not within the image, its corners are in another order, or its label holds a tag.
        """
        return format_boxes(boxes, self._box_size(image))

    def _box_size(self, image) -> tuple[int, int]:
        if isinstance(image, tuple | list) and len(image) == 2 and all(isinstance(side, int) for side in image):
            return image[0], image[1]
        return self.image_processor.upright_size(self.image_processor.fetch_images(image), {})

    def _render(self, chat: ChatMedia, conversation, tools, documents, **kwargs):
        token = CHAT_MEDIA.set(chat)
        try:
            out: Any = super().apply_chat_template(
                conversation, chat.template, tools=tools, documents=documents, **kwargs
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"The chat template cannot write the conversation: {error}") from error
        finally:
            CHAT_MEDIA.reset(token)
        if not kwargs.get("tokenize"):
            chat.check(out, may_have_none=True)
        elif chat.tokens and kwargs.get("return_assistant_tokens_mask") and kwargs.get("return_dict"):
            variables = {**self.tokenizer.special_tokens_map, **kwargs, "tools": tools, "documents": documents}
            rendered: Any = render_jinja_template(_as_batch(conversation)[0], chat_template=chat.template, **variables)
            masks = [assistant_mask(spans, *tokens) for spans, tokens in zip(rendered[1], chat.tokens, strict=True)]
            out["assistant_masks"] = _as_type_of(out["input_ids"], masks)
        return out

    def resolve_chat_template(self, chat_template: str | None = None) -> str:
        """The template of that name, or the default template for None; any other text is itself a template.

        Raises:
            ValueError: if there is no default template, or the template is not valid Jinja or longer than is allowed.
        """
        templates = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        template = templates.get(chat_template or "default", chat_template)
        if template is None:
            raise ValueError(
                f"There is no chat template 'default', expected `chat_template` to be one of {', '.join(templates)}, "
                "or Jinja."
            )
        return bounded(template)

    def _refuse_unwritten(self, template: str, **given) -> None:
        for name, value in given.items():
            if not value:
                continue
            if name not in template_words(template):
                raise ValueError(
                    f"Got {name}={value!r:.100}, but the chat template writes no {name}: {template!r:.200}"
                )
            refuse_tokens(value, name, self.literals)

    def _read_chat(self, conversations: list, images, videos, template: str, tokenize: bool):
        """The conversations with their images and videos in place, and the tokens that their prompts must hold."""
        words = template_words(template)
        read = []
        for index, messages in enumerate(conversations):
            with _errors_named(index, len(conversations)):
                read.append(read_messages(messages, self.image_tokens, words))
        counts = [dict.fromkeys(self.literals, 0) for _ in read]
        # videos first, so that images without marks go in front of videos without marks
        read, own_videos = self._place(read, videos, VIDEO, tokenize, counts)
        read, own_images = self._place(read, images, IMAGE, tokenize, counts)
        return read, ChatMedia(template, own_images, own_videos, counts)

    def _place(self, conversations: list[list[dict]], given, medium: Medium, tokenize: bool, counts: list[dict]):
        """The conversations with their images (or videos) in place, and the images of each. Adds their tokens to
        `counts`.
        """
        num_places = []
        for index, messages in enumerate(conversations):
            with _errors_named(index, len(conversations)):
                num_places.append(sum(map(is_bare, media_parts(messages, medium))) + count_marks(messages, medium))
        shares = [None] * len(num_places) if given is None else self._split_by_conversation(given, num_places, medium)
        token = self.image_token if medium is IMAGE else VIDEO_MARK
        placed: list[list[dict]] = []
        own: list[list] = []
        for index, (messages, share) in enumerate(zip(conversations, shares, strict=True)):
            marks, parts = count_marks(messages, medium), len(media_parts(messages, medium))
            if marks and share is None and not tokenize:
                counts[index][medium.mark] += marks  # the marks stay for the call that tokenizes the prompt
                placed.append(messages)
                own.append([])
                continue
            with _errors_named(index, len(conversations)):
                messages, found = place_media(messages, share, medium, token)
            counts[index][token] += marks or parts or len(found)
            placed.append(messages)
            own.append(found)
        return placed, own

    def _split_by_conversation(self, given, num_places: list[int], medium: Medium) -> list[list]:
        """The images, or videos, split by conversation."""
        if medium is IMAGE:
            given = self.image_processor.fetch_images(given)
        flatten = flat_images if medium is IMAGE else flat_videos
        is_nested = isinstance(given, list | tuple) and all(isinstance(own, list | tuple) for own in given)
        if is_nested and len(given) == len(num_places) and not (medium is VIDEO and any(map(is_frame_list, given))):
            return [flatten(own) for own in given]
        flat = flatten(given)
        if len(num_places) == 1:
            return [flat]
        if len(flat) != sum(num_places):
            raise ValueError(
                f"Got {len(flat)} {medium.kind}s for {sum(num_places)} places in {len(num_places)} conversations, "
                f"expected one for each, or a list of {medium.kind}s for each conversation."
            )
        ends = np.cumsum(num_places).tolist()
        return [flat[end - places : end] for end, places in zip(ends, num_places, strict=True)]

    def _labels(self, input_ids, assistant_masks):
        """(texts, length), of the type of `input_ids`: the ids that the assistant wrote, -100 elsewhere."""
        placeholder_ids = set(self.image_token_ids)
        labels = [
            [
                int(token) if is_assistant and int(token) not in placeholder_ids else IGNORE_INDEX
                for token, is_assistant in zip(ids, mask, strict=True)
            ]
            for ids, mask in zip(input_ids, assistant_masks, strict=True)
        ]
        return _as_type_of(input_ids, labels)


def _as_type_of(input_ids, rows: list[list[int]]):
    if isinstance(input_ids, torch.Tensor):
        return torch.tensor(rows, device=input_ids.device)
    return np.array(rows) if isinstance(input_ids, np.ndarray) else rows


def flat_images(images) -> list:
    if isinstance(images, list | tuple) and not images:
        return []
    return make_flat_list_of_images(images)  # type: ignore[return-value]


def is_frame_list(videos: list | tuple) -> bool:
    return bool(videos) and is_one_video(videos)


def refuse_other_media(kwargs: Mapping[str, object]) -> None:
    if kwargs.get("audio") is not None:
        raise ValueError(f"Got audio={kwargs['audio']!r:.100}, expected images, videos and text only.")


def _as_batch(conversation) -> tuple[list, bool]:
    """A list of conversations, and whether the input was a batch. A pipeline's `Chat` is a conversation."""
    conversation = getattr(conversation, "messages", conversation)
    if not isinstance(conversation, list | tuple) or not conversation:
        raise ValueError(f"The conversation is {conversation!r:.100}, expected a list of messages, or of such lists.")
    conversations = [getattr(messages, "messages", messages) for messages in conversation]
    is_batch = isinstance(conversations[0], list | tuple)
    return (conversations, True) if is_batch else ([conversation], False)


@contextmanager
def _errors_named(index: int, num_conversations: int):
    """Adds the conversation to the message of an error."""
    try:
        yield
    except ValueError as error:
        name = "The conversation" if num_conversations == 1 else f"Conversation {index}"
        raise ValueError(f"{name} is not understood: {error}.") from error
