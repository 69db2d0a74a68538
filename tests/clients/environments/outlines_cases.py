"""Outlines with a remote model, through its OpenAI, vLLM and SGLang clients."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import outlines
from cases import KEY, MODEL, URL, WITH_KEYS, main, raises
from outlines.types import CFG, Regex
from pydantic import BaseModel, ConfigDict, Field


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


def _client(url: str = URL) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def case_openai_text() -> None:
    assert outlines.from_openai(_client(), MODEL)("Hi", max_tokens=20)


def case_openai_schema() -> None:
    City.model_validate_json(outlines.from_openai(_client(), MODEL)("Paris?", City, max_tokens=200))


def case_openai_stream() -> None:
    assert "".join(outlines.from_openai(_client(), MODEL).stream("Hi", max_tokens=20))


def _vllm() -> Any:
    return outlines.from_vllm(_client(), MODEL)


def case_vllm_text() -> None:
    assert _vllm()("Hi", max_tokens=20)


def case_vllm_schema() -> None:
    City.model_validate_json(_vllm()("Paris?", City, max_tokens=200))


def case_vllm_choice() -> None:
    assert _vllm()("Spam?", Literal["spam", "ham"], max_tokens=20) in ("spam", "ham")


def case_vllm_regex() -> None:
    assert _vllm()("A number?", Regex(r"[0-9]{3}"), max_tokens=20).isdigit()


def case_vllm_integer() -> None:
    assert int(_vllm()("A number?", Regex(r"[1-9][0-9]?"), max_tokens=20)) > 0


def case_vllm_grammar() -> None:
    assert _vllm()("Yes?", CFG('start: "yes" | "no"'), max_tokens=20) in ("yes", "no")


def case_vllm_stream() -> None:
    text = "".join(_vllm().stream("Paris?", City, max_tokens=200))
    assert isinstance(json.loads(text), dict)


def case_sglang_schema() -> None:
    City.model_validate_json(outlines.from_sglang(_client(), MODEL)("Paris?", City, max_tokens=200))


def case_sglang_regex() -> None:
    assert outlines.from_sglang(_client(), MODEL)("A number?", Regex(r"[0-9]{3}"), max_tokens=20).isdigit()


def case_errors() -> None:
    raises(Exception, lambda: outlines.from_openai(_client(), "nosuch")("Hi"))
    raises(Exception, lambda: outlines.from_openai(_client(WITH_KEYS), MODEL)("Hi"))


if __name__ == "__main__":
    main(globals())
