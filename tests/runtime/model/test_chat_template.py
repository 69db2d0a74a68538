"""Templates render as transformers renders them, and can do no harm."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from runtime.errors import InvalidRequest, ModelUnavailable
from runtime.model.chat_template import ChatTemplate
from runtime.model.chat_turns import TurnForm
from runtime.types import Message, TemplateOptions
from tests.support.models import CHATML

TURNS: list[dict[str, Any]] = [
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
    "arithmetic": "{{ 10**9 * 10**9 + 2.5 * 2 }}{{ 'ab' * 3 }}{{ 3 * [1] }}{{ 2 ** 0.5 }}",
    "the date": "{{ strftime_now('%Y-%m') }}",
    "generation prompt": "{{ add_generation_prompt }}",
    "what a message says in JSON": LOOP
    + "{{ m.content | tojson }}{{ [m.content] | tojson(ensure_ascii=true) }}{% endfor %}",
    "text in other texts": LOOP
    + "{{ '%s-' % m.content }}{{ '{}'.format(m.content) }}{{ [m.content, 'x'] | join('|') }}{% endfor %}",
    "lost and split": LOOP + "{{ (m.content ~ '').split('e')[-1] }}{{ [m.content] | join | trim }}{% endfor %}",
    "printed as it is": "{{ messages }}",
    "a macro that is asked": "{% macro say(m) %}{{ m.content }}{% endmacro %}" + LOOP + "{% set t = say(m) %}"
    "{% if 'brief' in t and t.startswith('Be ') %}{{ t.split('brief')[1].strip() }}{% endif %}{% endfor %}",
    "a macro": "{% macro say(m) -%}[{{ m.role | upper }}]{%- endmacro %}" + LOOP + "{{ say(m) }}{% endfor %}",
}


def render(template: str, turns: list[dict[str, Any]], special_tokens: Any = SPECIAL) -> str:
    """A rendered chat without stand-ins."""
    chat = ChatTemplate(template, special_tokens)
    return str(chat.marks.unmark(chat.render([Message(turn["role"], turn["content"]) for turn in turns])))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_it_renders_as_transformers_does(template: str) -> None:
    """Byte for byte, for whatever chat templates make use of."""
    (expected,), _ = render_jinja_template([TURNS], chat_template=template, add_generation_prompt=True, **SPECIAL)
    assert render(template, TURNS) == expected


def test_the_embedded_models_template(embedded_snapshot: Any) -> None:
    """With and without a system message."""
    tokenizer = embedded_snapshot.tokenizer
    for turns in (TURNS, TURNS[1:]):
        (expected,), _ = render_jinja_template(
            [turns], chat_template=tokenizer.chat_template, add_generation_prompt=True, **tokenizer.special_tokens
        )
        assert render(tokenizer.chat_template, turns, tokenizer.special_tokens) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
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
    with pytest.raises(InvalidRequest, match="chat template does not take these messages"):
        render(template, TURNS)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[0].content.index('nowhere') }}", "ValueError"),
        ("{{ messages[0].content.nothing() }}", "has no attribute 'nothing'"),
        ("{{ '%c' % 99999999 }}", "OverflowError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ raise_exception('no: ' + messages[0].content) }}", 'no: Be "brief"'),
        ("{{ raise_exception(messages[0].content * 100) }}", "Be "),
        ("{% for i in range(99999999) %}x{% endfor %}", "range"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "renders more than 67108864 characters"),
        ("{{ 'x' * 1000000000 }}", "result of [*] is too large"),
        ("{{ 'x' * 10000000 * 10000000 }}", "result of [*] is too large"),
        ("{{ 9 ** (9 ** 9) }}", "result of [*][*] is too large"),
    ],
)
def test_a_template_that_fails_refuses_the_messages(template: str, reason: str) -> None:
    """Whatever a program can raise, and what would take all memory, with a short reason in true characters."""
    with pytest.raises(InvalidRequest, match=reason) as caught:
        render(template, TURNS)
    assert caught.value.param == "messages"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ x | nothing }}", "{{", "{% tag %}", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}"]
)
def test_a_template_that_does_not_compile_makes_chats_unavailable(template: str) -> None:
    """It is no fault of the messages, and prompts without a template still work."""
    with pytest.raises(ModelUnavailable, match="chat template cannot be compiled"):
        render(template, TURNS)


def test_content_as_parts() -> None:
    """As OpenAI's clients send it."""
    template = ChatTemplate(LOOP + "{{ m.content[0].type }}:{{ m.content[0].text }};{% endfor %}", SPECIAL)
    assert (
        template.marks.unmark(template.render([Message("user", "a"), Message("user", "b")], form=TurnForm(parts=True)))
        == "text:a;text:b;"
    )


def rendered(template: str, turns: list[Message], **options: Any) -> str:
    """A chat rendered with options, without stand-ins."""
    chat = ChatTemplate(template, SPECIAL)
    return str(chat.marks.unmark(chat.render(turns, options=TemplateOptions(**options))))


@pytest.mark.parametrize(
    ("last", "end"),
    [
        pytest.param("The answer", "The answer", id="a text"),
        pytest.param("The answer is ", "The answer is ", id="white space at the end is kept if the template keeps it"),
        pytest.param("a<|im_end|>\nb", "a<|im_end|>\nb", id="control text in it"),
    ],
)
def test_the_last_message_is_continued(last: str, end: str) -> None:
    """The prompt ends with the message's text, without the token that would end the message."""
    turns = [Message("user", "Hi"), Message("assistant", last)]
    assert rendered(CHATML, turns, continue_final_message=True).endswith("<|im_start|>assistant\n" + end)


@pytest.mark.parametrize(
    ("template", "last"),
    [(CHATML, " "), (LOOP + "{{ m.content[:2] }}{% endfor %}", "abcd")],
    ids=["without text", "cut off by the template"],
)
def test_a_message_that_cannot_be_continued(template: str, last: str) -> None:
    """It is refused with the field's name."""
    with pytest.raises(InvalidRequest, match="cannot be continued") as caught:
        rendered(template, [Message("user", last)], continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_without_the_start_of_an_answer() -> None:
    """The prompt ends with the last message."""
    assert rendered("{{ add_generation_prompt }}", [], add_generation_prompt=False) == "False"
    assert rendered("{{ add_generation_prompt }}", [Message("user", "x")]) == "True"


def test_arguments() -> None:
    """They are variables of the template, which reads them as JSON values; texts in them count as a message's."""
    template = "{{ 1 if thinking is false }}{{ list[1] }}{% if level == 'high' and d['k'] %}{{ level }}{% endif %}"
    options = TemplateOptions(arguments='{"thinking": false, "list": [1, "two"], "level": "high", "d": {"k": 1}}')
    chat = ChatTemplate(template, SPECIAL)
    text = chat.render([], options=options)
    assert chat.marks.unmark(text) == "1twohigh"
    assert chat.marks.first_of_message(text, 1, len(text)) == 1
    assert chat.marks.first_of_message(text, 0, 1) is None
