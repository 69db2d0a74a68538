"""runtime.engine.gbnf: llama.cpp's grammars match the same texts as there."""

from __future__ import annotations

import random

import pytest

from runtime.engine.gbnf import gbnf_to_lark
from runtime.errors import InternalError, InvalidRequest
from runtime.types import Grammar
from tests.support.grammars import TOKENIZER, compiler, walk

COMPILER = compiler()
SUMS = """
# sums of numbers, each with white space behind it
root  ::= (sum "=" ws number "\\n")+
sum   ::= number ([-+*/] number)*
number ::= [0-9]+ ws | "(" ws sum ")" ws
ws    ::= [ \\t\\n]*
"""
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= ([ \t\n] ws)?
"""


def matches(grammar: str, text: str) -> bool:
    """Return whether a whole text matches."""
    matcher = COMPILER.compile(Grammar("gbnf", grammar, "grammar"))
    try:
        matcher.accept(TOKENIZER.encode(text))
    except InternalError:
        return False
    return bool(matcher.matcher.is_accepting()) and not matcher.forced


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= "a"{5,5}', ["aaaaa"], ["aaaa", "aaaaaa"]),
        ('root ::= "a"{2,} "b"? | "c"{1}', ["aa", "aaab", "c"], ["ab", "cc", ""]),
        ('root ::= [a-z]+ "b"', ["ab", "abbb"], ["b", "abc"]),
        ('root ::= [a-z]+ tail\ntail ::= "b" tail | "."', ["ab.", "abb.", "a."], ["ab", "b"]),
        (SUMS, ["1+2=3\n", "(1 -2 )*3=4\n5=5\n"], ["1+2=3", "1+=3\n"]),
        (JSON, ['{"a": [1, -2.5e3, {"b": null}], "\\u00e9": "\\n x"}', "{ }\n\n"], ["[]", '{"a"}', '{"a": "\n"}']),
        ('root ::= [^\\n]+ "\\n"', ["x é\n"], ["\n", "x"]),
        ("root ::= .{2}", ["\n😀", "ab"], ["a", "abc"]),
        (
            r'root ::= "\x41\u00e9\U0001F600\t\r\n\\\"" [\]\[\-^]',
            ['Aé😀\t\r\n\\"]', 'Aé😀\t\r\n\\"^'],
            ['Aé😀\t\r\n\\"\\'],
        ),
        ("root ::= [-a]+ [a-]", ["-a", "a-", "--"], ["b", "-"]),
        ("root ::= [&~/#.]+", ["&&~~//#."], ["a"]),
        (
            'root ::=\n  "a" |\n  (\n    "b" # c\n    | "d"\n  )\n\nother ::= missing-x\nmissing-x ::= "x"\n',
            ["a", "b"],
            ["c"],
        ),
        ('root ::= x "" | ""\nx ::= "x" # the end', ["x", ""], ["xx"]),
        ('root ::= "a"\nroot ::= "b"', ["b"], ["a"]),
    ],
)
def test_texts_that_match(grammar: str, good: list[str], bad: list[str]) -> None:
    """As llama.cpp's guide has it, also where a piece could take characters that the next one needs."""
    assert [text for text in good if not matches(grammar, text)] == []
    assert [text for text in bad if matches(grammar, text)] == []


def test_tokens() -> None:
    """By their ids, also all but one."""
    grammar = Grammar("gbnf", "root ::= <[5]> !<[6]>{2}", "grammar")
    start = COMPILER.compile(grammar)
    assert start.forced == [5]
    for seed in range(5):
        assert walk(COMPILER.compile(grammar), random.Random(seed)) is not None


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("root ::= this is (not valid GBNF", "line 1: \\) is expected"),
        ('other ::= "a"', "rule root is missing"),
        ('root ::= "a"\n\n  other', "line 3: ::= is expected"),
        ('root ::= "a', "end is not expected"),
        ("root ::= [a", "end is not expected"),
        ("root ::= []", "no character"),
        ("root ::= [z-a]", "range"),
        ('root ::= "\\q"', "escape"),
        ('root ::= "\\xZ1"', "escape"),
        ('root ::= "\\UFFFFFFFF"', "not a character"),
        ('root ::= "a"{3,2}', "at most n"),
        ('root ::= "a"{x}', "is expected"),
        ('root ::= *"a"', "end of the rule"),
        ('root ::= ) "a"', "end of the rule"),
        ("root ::= missing", "rule missing is missing"),
        ("root ::= !<x>", "needs its id"),
        ("root ::= <unknown>", "unknown special token"),
        ("root ::= root", "nothing matches"),
        ("root ::= " + "(" * 20_000, "recursion"),
        ('root ::= "' + "a" * 30_000 + '" root?', "the limit is 20000"),
    ],
)
def test_wrong_grammars_are_refused_by_name(grammar: str, said: str) -> None:
    """With the line."""
    with pytest.raises(InvalidRequest, match=f"^grammar: .*{said}"):
        COMPILER.compile(Grammar("gbnf", grammar, "grammar"))


def test_one_terminal_or_one_for_each_character() -> None:
    """A terminal takes as long a text as it can, so only grammars without recursion have long ones."""
    assert gbnf_to_lark('root ::= "ab"') == "start: R0\nR0: (/\\u{61}\\u{62}/)"
    assert gbnf_to_lark('root ::= "ab" root?') == "start: r0\nr0: (/\\u{61}/ /\\u{62}/ (r0)?)"
