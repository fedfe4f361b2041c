# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""Chat templates that strangers wrote: they write what they wrote before, or are refused by the number of their steps."""

import jinja2
import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from internvlx_hf.conversion.templates import TEMPLATES, chat_template, with_generation_marks, with_images
from internvlx_hf.processing import template_limits
from internvlx_hf.processing.chat_templates import DEFAULT_CHAT_TEMPLATE
from internvlx_hf.processing.template_limits import MAX_TEMPLATE, TemplateLimitError, bounded
from refusals import refused
from tiny import tiny_config, tiny_processor

PLAIN = """\
{%- for message in messages if message.role != 'tool' -%}
    {{- '<|' + message['role'] ~ loop.index ~ '|>' + message['content'] | trim | replace('a', 'b') + '\\n' * 2 -}}
    {%- if loop.last and messages | length > 1 and 'user' in messages | map(attribute='role') -%}
        {{- messages[1:] | tojson(indent=2) ~ '%5d' % 3 ~ '{:>4}'.format('x') ~ 'x'.center(9) -}}
    {%- endif -%}
{%- endfor -%}
"""
HONEST = [DEFAULT_CHAT_TEMPLATE, *map(chat_template, TEMPLATES), with_images(PLAIN)]
HONEST.append(with_generation_marks(with_images(PLAIN)))
LONG = "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = GROWN %}{% endfor %}{{ ns.x }}"
HOSTILE = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for a in [1, 1] recursive %}{% if loop.depth < 60 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% filter upper %}{% for a in range(99999) %}{% for b in range(99) %}{% endfor %}{% endfor %}{% endfilter %}",
    "{% for a in range(9999) %}{{ 'x' in range(99999) }}{% endfor %}",
    "{% for a in range(9999) %}{{ range(99999) | select | sum }}{% endfor %}",
    "{% set l = range(99999) | list %}{{ l | select('in', l) | list | length }}",
    LONG.replace("START", "'a'").replace("GROWN", "ns.x ~ ns.x"),
    LONG.replace("START", "[1]").replace("GROWN", "ns.x + ns.x"),
    LONG.replace("START", "[1]").replace("GROWN", "[ns.x, ns.x]"),
    LONG.replace("START", "3").replace("GROWN", "ns.x * ns.x"),
    "{% for a in range(99999) %}" + "x" * 100_000 + "{% endfor %}",
    # constant expressions, which jinja would compute while it compiles
    "{% set x = 9 ** (9 ** 9) %}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ 'a' | center(10 ** 10) }}",
    "{{ 'a'.ljust(10 ** 10) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ '\\\\' " + "| tojson" * 60 + " }}",
    "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
]


def conversation(role: str = "assistant") -> list[dict]:
    texts = [{"role": ("user", role)[i % 2], "content": f" a text {i}"} for i in range(6)]
    return [{"role": "system", "content": "a system"}, *texts]


@pytest.mark.parametrize("template", HONEST)
def test_honest_template_writes_the_same_within_the_limits(template):
    _compile_jinja_template.cache_clear()
    settings = {"return_assistant_tokens_mask": "endgeneration" in template, "add_generation_prompt": True}
    expected = render_jinja_template([conversation()], chat_template=template, **settings)
    assert render_jinja_template([conversation()], chat_template=bounded(template), **settings) == expected
    assert expected[0][0].count("text 5")


@pytest.mark.slow
@pytest.mark.parametrize("template", HOSTILE)
def test_template_that_would_not_end_is_refused(template, monkeypatch):
    # a fifth of the real number, so that the tests end sooner
    monkeypatch.setattr(template_limits, "MAX_STEPS", 400_000)
    with pytest.raises(TemplateLimitError):
        render_jinja_template([conversation()], chat_template=bounded(template))


def test_the_processor_refuses_it_and_another_s_template_keeps_its_own_environment():
    processor = tiny_processor(tiny_config("llama"))
    with refused("cannot write the conversation: It takes more than 2000000 steps"):
        processor.apply_chat_template(conversation(), HOSTILE[8])
    with refused("has 200001 characters", f"at most {MAX_TEMPLATE}"):
        processor.apply_chat_template(conversation(), " " * (MAX_TEMPLATE + 1))
    with refused("'urlize'", by=jinja2.TemplateAssertionError):
        render_jinja_template([conversation()], chat_template=bounded("{{ 'a' | urlize }}"))
    environment = _compile_jinja_template("another's").environment
    assert type(environment) is jinja2.sandbox.ImmutableSandboxedEnvironment
