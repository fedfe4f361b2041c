# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Chat templates: the default template, and checks of any template without rendering it."""

import re
from functools import lru_cache

from transformers.utils.chat_template_utils import _compile_jinja_template, jinja2

# The start of every template of this package: it writes a message's content and rejects what it cannot write. An image
# is written as its token and a newline.
CONTENT_MACRO = """\
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content is not defined or content is mapping or content is not iterable -%}
        {{- raise_exception('A message has the content ' ~ content ~ ', expected a string or a list of parts.') -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] in ['image', 'image_url'] -%}
                {{- '<IMG_CONTEXT>\\n' -}}
            {%- elif part['type'] == 'text' and part['text'] is string -%}
                {{- part['text'] -}}
            {%- elif part['type'] is string and part['type'] != 'text' -%}
                {{- raise_exception('A message has a part of type ' + part['type'] + ', expected text or image.') -}}
            {%- else -%}
                {{- raise_exception('A message has the part ' ~ part ~ ', expected one of type text or image.') -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if tools or documents -%}
    {{- raise_exception('Got tools or documents, which this chat template does not write.') -}}
{%- endif -%}
"""

# ChatML as InternVL2.5 writes it, without a default system message. The generation marks enclose what a model is
# trained to write, including the end marker.
DEFAULT_CHAT_TEMPLATE = (
    CONTENT_MACRO
    + """\
{%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('Got a message of role ' ~ message['role'] ~ ', expected system, user or assistant.') -}}
    {%- elif message['tool_calls'] -%}
        {{- raise_exception('Got a message with tool_calls, which this chat template does not write.') -}}
    {%- endif -%}
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
)


@lru_cache
def template_words(chat_template: str) -> frozenset[str]:
    """Every name and string in a chat template's code. The template cannot write a key that is not among them.

    Raises:
        ValueError: if the template is not valid Jinja.
    """
    try:
        tree = _compile_jinja_template(chat_template).environment.parse(chat_template)
    except jinja2.TemplateError as error:
        raise ValueError(f"The chat template {chat_template!r:.200} is not valid Jinja: {error}") from error
    nodes = jinja2.nodes
    words = {node.name for node in tree.find_all(nodes.Name)} | {node.attr for node in tree.find_all(nodes.Getattr)}
    return frozenset(words | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)})


def has_generation_marks(chat_template: str) -> bool:
    """Whether a chat template marks the assistant's text."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", chat_template) is not None


def require_generation_marks(chat_template: str, what: str) -> None:
    """Raises `ValueError` if a chat template does not mark the assistant's text, which `what` needs."""
    if not has_generation_marks(chat_template):
        raise ValueError(
            f"{what} needs a chat template that puts {{% generation %}} and {{% endgeneration %}} around what the "
            f"assistant writes, but this one does not: {chat_template!r:.200}"
        )
