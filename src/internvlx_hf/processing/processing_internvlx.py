# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Processor of InternVL-X: puts as many placeholders into the text as the images' tiles take tokens."""

import re
from collections.abc import Iterator

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import PreTokenizedInput, TextInput

# attribute of the tokenizer that names a token (as in native InternVL), and the token that InternVL itself uses
_IMAGE_TOKENS = {
    "context_image_token": "<IMG_CONTEXT>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
}
IGNORE_INDEX = -100

# ChatML as InternVL2.5 writes it, without a system message of its own. What a model is trained to write, the end
# marker included, lies between the generation marks.
DEFAULT_CHAT_TEMPLATE = """\
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] == 'image' -%}
                {{- '<IMG_CONTEXT>\\n' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
            {{- render(message['content']) + '<|im_end|>' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- render(message['content']) + '<|im_end|>' -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


_TEXT_DEFAULTS = {"padding_side": "left"}


class InternVLXProcessorKwargs(ProcessingKwargs, total=False):
    # where transformers 5.18 looks for what later versions take from the processor's `text_kwargs`
    _defaults = {"text_kwargs": _TEXT_DEFAULTS}


class InternVLXProcessor(ProcessorMixin):
    """Joins `InternVLXImageProcessor` and a tokenizer.

    Each `<IMG_CONTEXT>` in a text stands for one image and becomes `<img>`, `image_seq_length` times the image's number of
    tiles `<IMG_CONTEXT>`, `</img>`. Texts are padded on the left, unless the tokenizer was made with a `padding_side` or a
    call gives one.

    Args:
        image_processor: an `InternVLXImageProcessor`.
        tokenizer: its attributes `context_image_token`, `start_image_token` and `end_image_token` name the three tokens;
            without them its vocabulary must hold those of InternVL.
        image_seq_length: placeholders a tile takes, `config.image_seq_length` of the model.
        chat_template: by default the tokenizer's, or else ChatML as InternVL2.5 writes it.

    Raises:
        ValueError: the tokenizer has no image tokens, or `image_seq_length` is not positive.
    """

    # makes every save_pretrained copy this file into the checkpoint
    _auto_class = "AutoProcessor"
    valid_processor_kwargs = InternVLXProcessorKwargs
    text_kwargs = _TEXT_DEFAULTS

    def __init__(
        self, image_processor=None, tokenizer=None, image_seq_length: int = 256, chat_template=None, **kwargs
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        if image_seq_length < 1:
            raise ValueError(f"image_seq_length={image_seq_length}, expected a positive number of tokens a tile.")
        self.image_seq_length = image_seq_length
        if image_processor.crop_to_patches is None:  # made without a word about tiles
            image_processor.crop_to_patches = True
        self.image_token, self.start_image_token, self.end_image_token = (
            _image_token(tokenizer, attribute) for attribute in _IMAGE_TOKENS
        )
        self.image_token_id, self.start_image_token_id, self.end_image_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.start_image_token, self.end_image_token]
        )
        if self.chat_template is None:
            default_template = DEFAULT_CHAT_TEMPLATE.replace(_IMAGE_TOKENS["context_image_token"], self.image_token)
            self.chat_template = tokenizer.chat_template or default_template
        # what saving sets and loading drops: with it here, a loaded processor equals the one that was saved
        self.auto_map = {"AutoProcessor": f"{type(self).__module__.rpartition('.')[-1]}.{type(self).__name__}"}

    @property
    def image_token_ids(self) -> list[int]:
        """Ids of everything that an image becomes in `input_ids`."""
        return [self.image_token_id, self.start_image_token_id, self.end_image_token_id]

    @property
    def unused_input_names(self) -> list[str]:
        return ["num_patches"]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | PreTokenizedInput | list[TextInput] | list[PreTokenizedInput] | None = None,
        **kwargs: Unpack[InternVLXProcessorKwargs],
    ) -> BatchFeature:
        """Tokenizes texts and cuts their images into tiles.

        Args:
            images: all images in the order of their placeholders, flat or a list per text.
            text: one text or several, with one image token for each image.

        Returns:
            `input_ids` and `attention_mask` (texts, length), and `pixel_values` (tiles, 3, H, W) if there are images.

        Raises:
            ValueError: there are more or fewer images than image tokens.
        """
        return super().__call__(images=images, text=text, **kwargs)

    def prepare_inputs_layout(self, images=None, text=None, **kwargs):
        if isinstance(images, list | tuple) and not _holds_anything(images):
            images = None
        return super().prepare_inputs_layout(images=images, text=text, **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs):
        # later versions of transformers than 5.18 count the images as well, but never sample by sample
        super().validate_inputs(images=images, text=text, **kwargs)
        if text is None:
            return
        num_tokens = [sample.count(self.image_token) for sample in text]
        if images is None:
            if any(num_tokens):
                raise ValueError(
                    f"Found {sum(num_tokens)} {self.image_token} tokens in the text but no images were passed."
                )
            return
        self._require_as_many_images(sum(num_tokens), len(make_flat_list_of_images(images)), "total ")
        is_nested = isinstance(images, list | tuple) and all(isinstance(sample, list | tuple) for sample in images)
        if is_nested and len(images) == len(text):
            for index, sample_images in enumerate(images):
                self._require_as_many_images(num_tokens[index], len(sample_images), place=f" in sample {index}")

    def _require_as_many_images(self, num_tokens: int, num_images: int, total: str = "", place: str = ""):
        if num_tokens != num_images:
            raise ValueError(
                f"The {total}number of {self.image_token} tokens in the prompts should be the same as the number of images "
                f"passed. Found {total}{num_tokens} {self.image_token} tokens and {num_images} images{place}."
            )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """What takes the place of one image token: `image_seq_length` placeholders for each of the image's tiles."""
        num_placeholders = self.image_seq_length * int(image_inputs["num_patches"][image_idx])
        return f"{self.start_image_token}{self.image_token * num_placeholders}{self.end_image_token}"

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs) -> MultiModalData:
        """What images of these sizes (height, width) will take, without looking at a pixel.

        Returns:
            `num_image_patches`: tiles of each image; `num_image_tokens`: its tokens in `input_ids`, the start and
            end tokens included.
        """
        if image_sizes is None:
            return MultiModalData()
        images_kwargs = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)["images_kwargs"]
        num_tiles = [
            self.image_processor.get_number_of_image_patches(height, width, images_kwargs)
            for height, width in image_sizes
        ]
        num_tokens = [2 + self.image_seq_length * tiles for tiles in num_tiles]
        return MultiModalData(num_image_tokens=num_tokens, num_image_patches=num_tiles)

    def apply_chat_template(
        self, conversation, chat_template=None, tools=None, documents=None, *, return_labels: bool = False, **kwargs
    ):
        """Renders conversations, and with `tokenize=True` tokenizes them and cuts their images into tiles.

        Args:
            conversation: a list of messages, or a list of such lists. Parts of a message that are images look like
                `{"type": "image", "image" | "path" | "url" | "base64": ...}` or like OpenAI's `image_url` parts.
            return_labels: also return `labels` for training, shaped as `input_ids`: -100 everywhere but in the tokens that
                overlap what the template marks as written by the assistant. (An answer that begins with a blank may share
                its first token with the end of the turn's header: strip it.) Implies `tokenize` and `return_dict`.
            kwargs: as for `ProcessorMixin.apply_chat_template`.

        Raises:
            ValueError: a message's text holds one of the image tokens, which only images may bring in; or labels are
                wanted of a template without `{% generation %}` marks.
        """
        self._refuse_image_tokens(conversation, tools=tools, documents=documents)
        if not return_labels:
            return super().apply_chat_template(conversation, chat_template, tools=tools, documents=documents, **kwargs)
        wants_mask = kwargs.pop("return_assistant_tokens_mask", False)
        kwargs |= {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        self._require_generation_marks(chat_template)
        inputs = super().apply_chat_template(conversation, chat_template, tools=tools, documents=documents, **kwargs)
        inputs["labels"] = self._labels(inputs["input_ids"], inputs["assistant_masks"])
        if not wants_mask:
            del inputs["assistant_masks"]
        return inputs

    def _refuse_image_tokens(self, conversation, **other_inputs):
        is_batch = bool(conversation) and isinstance(conversation[0], list | tuple)
        for messages in conversation if is_batch else [conversation]:
            for turn, message in enumerate(messages):
                self._refuse_image_tokens_in(message, f"turn {turn} ({message.get('role')})")
        for name, value in other_inputs.items():
            self._refuse_image_tokens_in(value, name)

    def _refuse_image_tokens_in(self, value, place: str):
        for text in _texts(value):
            for token in (self.image_token, self.start_image_token, self.end_image_token):
                if token in text:
                    raise ValueError(
                        f"The text of {place} holds the image token {token!r}, which stands for image data. Expected "
                        "text without it, and images as parts of their own: {'type': 'image', ...}."
                    )

    def _require_generation_marks(self, chat_template: str | None):
        template = chat_template
        if isinstance(self.chat_template, dict):
            template = self.chat_template.get(chat_template or "default", chat_template)
        elif chat_template is None:
            template = self.chat_template
        if not re.search(r"\{%-?\s*generation\s*-?%\}", template or ""):
            raise ValueError(
                "return_labels=True needs a chat template that puts {% generation %} and {% endgeneration %} around what "
                f"the assistant writes, but this one does not: {template!r:.200}"
            )

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
        if isinstance(input_ids, torch.Tensor):
            return torch.tensor(labels, device=input_ids.device)
        return np.array(labels) if isinstance(input_ids, np.ndarray) else labels


def _image_token(tokenizer, attribute: str) -> str:
    token = getattr(tokenizer, attribute, None) or _IMAGE_TOKENS[attribute]
    if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
        raise ValueError(
            f"The tokenizer has no token {token!r} (its attribute {attribute}), expected one for images. Add it with "
            f"tokenizer.add_special_tokens({{'{attribute}': '{token}'}}) and resize the model's embeddings."
        )
    return token


def _holds_anything(images: list | tuple) -> bool:
    return any(_holds_anything(image) if isinstance(image, list | tuple) else True for image in images)


def _texts(value) -> Iterator[str]:
    """All strings in a message, but for those that say where an image is."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        is_image = value.get("type") in ("image", "image_url")
        for key, item in value.items():
            if not (is_image and key in ("image", "image_url", "url", "path", "base64")):
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
