# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL's own way to ask about images: `model.chat(tokenizer, pixel_values, question, generation_config)`."""

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

IMAGE_MARK = "<image>"
START, END, CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"


class ChatMixin:
    @torch.no_grad()
    def chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixel_values: torch.Tensor | None,
        question: str,
        generation_config: GenerationConfig | dict | None = None,
        history: list[tuple[str, str]] | None = None,
        return_history: bool = False,
        num_patches_list: list[int] | None = None,
    ) -> str | tuple[str, list[tuple[str, str]]]:
        """Answer a question about any number of images, as InternVL2's remote code does.

        Args:
            tokenizer: with a chat template and InternVL's image tokens.
            pixel_values: (tiles, 3, H, W), the tiles of all images of the conversation; None for text only.
            question: `<image>` marks where an image goes. Without a mark, the first question of a conversation with
                images gets one in front.
            generation_config: arguments of `generate`; a dict or a `GenerationConfig`.
            history: the questions and answers so far, as an earlier call returned them.
            return_history: also return the history with this turn.
            num_patches_list: tiles of each image; unset: `pixel_values` is one image.

        Returns:
            The answer, or (answer, history).

        Raises:
            ValueError: if marks, images and tiles do not match, or a message contains an image token of its own.
        """
        history = list(history or [])
        if pixel_values is not None and not history and IMAGE_MARK not in question:
            question = f"{IMAGE_MARK}\n{question}"
        if num_patches_list is None:
            num_patches_list = [] if pixel_values is None else [len(pixel_values)]
        tiles = 0 if pixel_values is None else len(pixel_values)
        if tiles != sum(num_patches_list):
            raise ValueError(
                f"`num_patches_list`={num_patches_list} adds up to {sum(num_patches_list)} tiles, got {tiles}."
            )

        query = chat_query(tokenizer, history, question, num_patches_list, self.config.image_seq_length)
        inputs = tokenizer(query, return_tensors="pt", add_special_tokens=not _starts_with_bos(tokenizer, query))
        inputs = {name: inputs[name].to(self.device) for name in ("input_ids", "attention_mask")}
        if pixel_values is not None:
            inputs["pixel_values"] = pixel_values.to(self.device)
        if isinstance(generation_config, GenerationConfig):
            kwargs = {"generation_config": generation_config}
        else:
            kwargs = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
            kwargs |= generation_config or {}
        output = self.generate(**inputs, **kwargs)
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        return (answer, [*history, (question, answer)]) if return_history else answer


def chat_query(
    tokenizer: PreTrainedTokenizerBase,
    history: list[tuple[str, str]],
    question: str,
    num_patches_list: list[int],
    image_seq_length: int,
) -> str:
    """The prompt of a conversation, its `<image>` marks filled with the images' placeholders in reading order."""
    messages = []
    for asked, answered in history:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    messages.append({"role": "user", "content": question})
    for turn, message in enumerate(messages):
        smuggled = [token for token in (CONTEXT, START, END) if token in message["content"]]
        if smuggled:
            raise ValueError(
                f"Turn {turn} ({message['role']}) contains the image token {smuggled[0]!r} as text. Mark the place of an "
                f"image with {IMAGE_MARK!r}."
            )
    marks = sum(message["content"].count(IMAGE_MARK) for message in messages)
    if marks != len(num_patches_list):
        raise ValueError(
            f"The conversation has {marks} {IMAGE_MARK!r} marks, but {len(num_patches_list)} images were given."
        )
    query = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for tiles in num_patches_list:
        query = query.replace(IMAGE_MARK, START + CONTEXT * image_seq_length * tiles + END, 1)
    return query


def _starts_with_bos(tokenizer: PreTrainedTokenizerBase, query: str) -> bool:
    return tokenizer.bos_token is not None and query.startswith(tokenizer.bos_token)
