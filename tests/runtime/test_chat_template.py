"""Templates render as transformers renders them, and can do no harm."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from runtime.chat_template import render_chat
from tests.models import CHATML

TURNS = [
    {"role": "system", "content": 'Be "brief" & <kind>.\n'},
    {"role": "user", "content": "H\u00e4?  {{ 7 }}"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": ""},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

LOOP = "{% for m in messages %}"
TEMPLATES = {
    "chatml": CHATML,
    "names": "{{ bos_token }}{% if not tools and documents is none %}x{% endif %}{{ eos_token }}{{ pad_token }}",
    "blocks are trimmed": "a\n  {% for m in messages %}\n  {{ m.role }}\n  {% endfor %}\n  b\n",
    "tojson escapes no HTML": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2, sort_keys=true) }}",
    "continue": LOOP + "{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "break": LOOP + "{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}" + LOOP + "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys(['x']) }}",
    "generation marks nothing": LOOP + "{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}"
    "{{ x is defined }}{% endfor %}",
    "the date": "{{ strftime_now('%Y-%m') }}",
    "generation prompt": "{{ add_generation_prompt }}",
    "a macro": "{% macro say(m) -%}[{{ m.role | upper }}]{%- endmacro %}" + LOOP + "{{ say(m) }}{% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_it_renders_as_transformers_does(template: str) -> None:
    """Byte for byte, for whatever chat templates make use of."""
    (expected,), _ = render_jinja_template([TURNS], chat_template=template, add_generation_prompt=True, **SPECIAL)
    assert render_chat(template, TURNS, SPECIAL) == expected


def test_the_embedded_models_template(embedded_snapshot: Any) -> None:
    """With and without a system message."""
    tokenizer = embedded_snapshot.tokenizer
    for turns in (TURNS, TURNS[1:]):
        (expected,), _ = render_jinja_template(
            [turns], chat_template=tokenizer.chat_template, add_generation_prompt=True, **tokenizer.special_tokens
        )
        assert render_chat(tokenizer.chat_template, turns, tokenizer.special_tokens) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% if %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ dict.__class__.__bases__[0] }}",
        "{% set ns = namespace(__init__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ messages[0]['nothing'].more }}",
    ],
)
def test_what_is_wrong_or_forbidden_is_a_template_error(template: str) -> None:
    """Refusals, bad syntax, changes to the arguments and ways into the interpreter."""
    with pytest.raises(jinja2.TemplateError):
        render_chat(template, TURNS, SPECIAL)
