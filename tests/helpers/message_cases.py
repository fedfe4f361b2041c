"""Conversations, templates of every kind, and what a processor makes of them."""

from functools import cache

import numpy as np
import pytest
from PIL import Image

from internvlx_hf import InternVLXImageProcessor, InternVLXProcessor
from internvlx_hf.conversion.templates import chat_template
from internvlx_hf.conversion.tokenizers import convert_tokenizer
from internvlx_hf.processing.processing_internvlx import DEFAULT_CHAT_TEMPLATE
from paths import GOLDEN as GOLDEN_ROOT
from paths import ROOT
from tiny import TILE, tiny_tokenizer

SOURCE = ROOT / "src/internvlx_hf"
GOLDEN = GOLDEN_ROOT / "checkpoints"
IMAGE_TOKENS = ("<IMG_CONTEXT>", "<img>", "</img>")
LITERALS = (*IMAGE_TOKENS, "<image>")
CONTEXT = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
# the default template of processors that were saved before it checked anything
OLD_TEMPLATE = """\
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
# as Hermes' and Qwen's do
TOOL_TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'tool' %}{{- '<tool_response>' }}{%- endif %}
    {%- if message.content is string %}{{- message.content -}}{% endif -%}
    {%- for call in message.tool_calls or [] %}{{- call | tojson }}{%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
"""
TEMPLATES = {
    "default": DEFAULT_CHAT_TEMPLATE,
    "saved before": OLD_TEMPLATE,
    "internvl2_5": chat_template("internvl2_5"),
    "Hermes-2": chat_template("Hermes-2"),
    "phi3-chat": chat_template("phi3-chat"),
    "with tools": TOOL_TEMPLATE,
}
OURS = {name: template for name, template in TEMPLATES.items() if name not in ("saved before", "with tools")}
each_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
each_of_ours = pytest.mark.parametrize("template", OURS.values(), ids=OURS)


@cache
def processor_of(checkpoint=None):
    """A tile takes 4 tokens. Tokenizers of every family, the tiny one by default."""
    tokenizer = convert_tokenizer(GOLDEN / checkpoint) if checkpoint else tiny_tokenizer()
    tokenizer.chat_template = None
    image_processor = InternVLXImageProcessor(size={"height": TILE, "width": TILE})
    return InternVLXProcessor(image_processor, tokenizer, image_seq_length=4)


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (TILE, TILE, 3), dtype=np.uint8))


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def text(content):
    return {"type": "text", "text": content}


def image_part(**source):
    return {"type": "image", **source}


def encode(messages, processor=None, **kwargs):
    kwargs = {"tokenize": True, "return_dict": True, "return_tensors": "pt"} | kwargs
    return (processor or processor_of()).apply_chat_template(messages, **kwargs)


def written(inputs, processor=None):
    return (processor or processor_of()).decode(inputs["input_ids"][0])


TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks."}}]


def expected_of(*content, processor=None):
    """What a user's turn of text and placeholders is in the default template."""
    return f"<|im_start|>user\n{''.join(content)}<|im_end|>\n"
