# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""InternVL's conversation templates as chat templates, byte for byte the prompts that its checkpoints were trained on;
and what other models' chat templates lack."""

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from ..processing.chat_templates import CONTENT_MACRO, has_generation_marks
from ..processing.literals import IMG_CONTEXT_TOKEN
from ..processing.template_limits import TemplateLimitError, bounded

_SHANGHAI_AI = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_WANXIANG = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
_CHATML = {
    "system": "<|im_start|>system\n",
    "user": "<|im_start|>user\n",
    "assistant": "<|im_start|>assistant\n",
    "end": "<|im_end|>",
    "between": "",
    "system_message": _SHANGHAI_AI,
}

# text that a template writes before each role's text, after it and between turns, and the default system message
TEMPLATES = {
    "internlm2-chat": _CHATML,
    "Hermes-2": _CHATML,
    "phi3-chat": {
        "system": "<|system|>\n",
        "user": "<|user|>\n",
        "assistant": "<|assistant|>\n",
        "end": "<|end|>",
        "between": "",
        "system_message": _SHANGHAI_AI,
    },
    "internvl2_5": _CHATML | {"between": "\n", "system_message": _WANXIANG},
}

_JINJA = (
    CONTENT_MACRO
    + """\
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system_message = render(messages[0]['content']) -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system_message = SYSTEM_MESSAGE -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- SYSTEM + system_message + END + BETWEEN -}}
{%- for message in turns -%}
    {%- if message['tool_calls'] -%}
        {{- raise_exception('Got a message with tool_calls, which this chat template does not write.') -}}
    {%- endif -%}
    {%- set text = render(message['content'] or '') -%}
    {%- if message['role'] == 'user' -%}
        {{- USER -}}
        {%- if text -%}
            {{- text + END -}}
        {%- endif -%}
    {%- elif message['role'] == 'assistant' -%}
        {{- ASSISTANT -}}
        {%- if text -%}
            {%- generation -%}
                {{- text + END -}}
            {%- endgeneration -%}
        {%- endif -%}
    {%- else -%}
        {{- raise_exception('Got a message of role ' ~ message['role'] ~ ', expected user and assistant, and system only first.') -}}
    {%- endif -%}
    {%- if text -%}
        {{- BETWEEN -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- ASSISTANT -}}
{%- endif -%}
"""
)


def chat_template(name: str) -> str:
    """A conversation template of InternVL as Jinja, for `tokenizer.chat_template`.

    The system block is always written, with the template's own message if the conversation has none. A message without
    text leaves only its role's header, as in InternVL. An image becomes `<IMG_CONTEXT>` and a newline, as
    `InternVLXProcessor` expects. The generation marks enclose the text that a model is trained to write, including the
    end marker. No template writes the BOS token: the tokenizer and the processor add it, and so does
    `tokenizer.apply_chat_template` with `tokenize=True` and `tokenizer_kwargs={"add_special_tokens": True}`.

    Args:
        name: `template` in an InternVL checkpoint's config: internlm2-chat, Hermes-2, phi3-chat or internvl2_5.

    Raises:
        ValueError: if there is no such template.
    """
    if name not in TEMPLATES:
        raise ValueError(f"Unknown conversation template {name!r}, expected one of {', '.join(TEMPLATES)}.")
    constants = {field.upper(): json.dumps(text, ensure_ascii=False) for field, text in TEMPLATES[name].items()}
    definitions = "".join(f"{{%- set {field} = {text} -%}}\n" for field, text in constants.items())
    return definitions + _JINJA


def template_tokens(name: str) -> list[str]:
    """The special tokens that a conversation template of InternVL writes."""
    texts = (TEMPLATES[name][field] for field in ("system", "user", "assistant", "end"))
    return list(dict.fromkeys(token for text in texts for token in re.findall(r"<\|\w+\|>", text)))


# put before a template that writes text only, to turn each message's content into text
_FLAT_MESSAGES = (
    CONTENT_MACRO.partition("{%- if tools")[0]
    + """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- set content = render(message['content']) if message['content'] else message['content'] -%}
    {%- set flat.messages = flat.messages + [dict(message, content=content)] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
)


def with_images(template: str) -> str:
    """Extend a text chat template so that it also writes images, as `InternVLXProcessor` expects them."""
    return _FLAT_MESSAGES + template


# put before a template that ignores a content that is a string, as LLaVA's do, to turn it into a part
_PART_MESSAGES = """\
{%- set listed = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- set is_text = message['content'] is string -%}
    {%- set content = [{'type': 'text', 'text': message['content']}] if is_text else message['content'] -%}
    {%- set listed.messages = listed.messages + [dict(message, content=content)] -%}
{%- endfor -%}
{%- set messages = listed.messages -%}
"""

# Wraps a template without marks: marks the text that an answer adds to its prompt, except trailing white space.
_MARKED = (
    "{%- macro written(messages, add_generation_prompt) -%}TEMPLATE{%- endmacro -%}"
    + """\
{%- set whole = written(messages, add_generation_prompt) -%}
{%- set done = namespace(text='') -%}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' and loop.index0 > 0 and messages[loop.index0 - 1]['role'] != 'system' -%}
        {%- set before = written(messages[:loop.index0], true) -%}
        {%- set after = written(messages[:loop.index], false) -%}
        {%- if before.startswith(done.text) and after.startswith(before) and whole.startswith(after) -%}
            {{- before[done.text | length:] -}}
            {%- set done.text = after.rstrip() -%}
            {%- generation -%}
                {{- done.text[before | length:] -}}
            {%- endgeneration -%}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{{- whole[done.text | length:] -}}
"""
)


def with_generation_marks(template: str) -> str:
    """Extend a chat template so that it writes the same and marks the assistant's answers, as training needs.

    An answer is marked only if the prompt up to it is a prefix of the whole, which does not hold for every template.
    """
    return _MARKED.replace("TEMPLATE", template)


def adapt_template(tokenizer: PreTrainedTokenizerFast, source: str, notes: list[str], remedy: str) -> None:
    """Extend a chat template so that it writes images, contents that are strings, and marks around the assistant's
    answers.

    Args:
        tokenizer: its `chat_template` is replaced.
        source: where the template is from, for messages.
        notes: receives a note if the template cannot be marked.
        remedy: how to give another template, for messages.

    Raises:
        ValueError: if the template cannot be made to write images.
    """
    if not _writes_images(tokenizer):
        tokenizer.chat_template = with_images(tokenizer.chat_template)
        if not _writes_images(tokenizer):
            raise ValueError(f"The chat template of {source} does not write a user's message with an image. {remedy}")
    if "question" not in (_rendered(tokenizer, "question") or ""):
        tokenizer.chat_template = _PART_MESSAGES + tokenizer.chat_template
    if has_generation_marks(tokenizer.chat_template):
        return
    marked = with_generation_marks(tokenizer.chat_template)
    if _marks_answers(tokenizer, marked):
        tokenizer.chat_template = marked
    else:
        notes.append(
            "The chat template does not mark the assistant's answers, so the model can answer but cannot be trained. "
            + remedy
        )


def _rendered(tokenizer: PreTrainedTokenizerFast, content: str | list[dict]) -> str | None:
    """The prompt of a user's message, None if the template cannot write it."""
    messages: Any = [{"role": "user", "content": content}]
    try:
        return rendered(tokenizer, messages)
    except TemplateLimitError:
        raise
    except Exception:  # a template may raise any error for unknown content
        return None


def rendered(tokenizer: PreTrainedTokenizerFast, messages: list[dict]) -> str:
    """The prompt of a conversation, within the limits of a chat template's work."""
    bounded(tokenizer.get_chat_template())
    return tokenizer.apply_chat_template(messages, tokenize=False)  # type: ignore[return-value]


def _writes_images(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the chat template writes an image part as its placeholder, along with the text."""
    prompt = _rendered(tokenizer, [{"type": "image"}, {"type": "text", "text": "question"}]) or ""
    return prompt.count(IMG_CONTEXT_TOKEN) == 1 and "question" in prompt


def _marks_answers(tokenizer: PreTrainedTokenizerFast, template: str) -> bool:
    """Whether a template marks every answer of a conversation and otherwise writes the same as the tokenizer's own."""
    texts = ("first question", "first answer", "second question", "second answer")
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True)]
    try:
        expected = rendered(tokenizer, turns)
        tokens: dict[str, Any] = tokenizer.special_tokens_map
        found: Any = render_jinja_template(
            [turns], chat_template=bounded(template), return_assistant_tokens_mask=True, **tokens
        )
    except TemplateLimitError:
        raise
    except Exception:  # as above
        return False
    (prompt,), (spans,) = found
    marked = [prompt[start:end].lstrip() for start, end in spans]
    answers = texts[1::2]
    return prompt == expected and len(marked) == 2 and all(map(str.startswith, marked, answers))
