"""DSPy: its language model with three adapters, typed signatures, tools, streams and errors."""

from __future__ import annotations

import os
from typing import Any, Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read by the import: no request for the list of prices

import dspy
from cases import KEY, MODEL, URL, WITH_KEYS, main, raises
from pydantic import BaseModel, ConfigDict, Field


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)


class Judge(dspy.Signature):
    """Judge a text."""

    text: str = dspy.InputField()
    label: Literal["spam", "ham"] = dspy.OutputField()


def _lm(**fields: Any) -> dspy.LM:
    defaults: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": KEY, "cache": False}
    return dspy.LM(**defaults | {"max_tokens": 300, "temperature": 0, "num_retries": 0} | fields)


def _guided(**properties: Any) -> dspy.LM:
    """Return a model whose JSON follows a schema; the library passes its own only to models that it knows."""
    closed = {"type": "object", "required": list(properties), "additionalProperties": False, "properties": properties}
    return _lm(extra_body={"guided_json": closed})


def case_call() -> None:
    assert _lm()("Hi")[0]


def case_messages() -> None:
    assert _lm()(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])[0]


def case_several() -> None:
    assert len(_lm(temperature=1)("Hi", n=2)) == 2


def case_logprobs() -> None:
    assert _lm()("Hi", logprobs=True, top_logprobs=2)[0]["logprobs"]


def case_text_model() -> None:
    assert _lm(model_type="text")("Once upon a time")[0]


def case_responses_model() -> None:
    assert _lm(model_type="responses")("Hi")[0]


def case_json_adapter() -> None:
    with dspy.context(lm=_guided(label={"enum": ["spam", "ham"]}), adapter=dspy.JSONAdapter()):
        assert dspy.Predict(Judge)(text="Hi").label in ("spam", "ham")


def case_chat_adapter() -> None:
    answer = r"\[\[ ## label ## \]\]\n(spam|ham)\n\n\[\[ ## completed ## \]\]"
    with dspy.context(lm=_lm(extra_body={"guided_regex": answer}), adapter=dspy.ChatAdapter()):
        assert dspy.Predict(Judge)(text="Hi").label in ("spam", "ham")


def case_chain_of_thought() -> None:
    answer = (
        r"\[\[ ## reasoning ## \]\]\n[a-z ]{1,40}\n\n\[\[ ## label ## \]\]\n(spam|ham)\n\n\[\[ ## completed ## \]\]"
    )
    with dspy.context(lm=_lm(extra_body={"guided_regex": answer})):
        assert dspy.ChainOfThought(Judge)(text="Hi").reasoning


def case_model_as_output() -> None:
    class Find(dspy.Signature):
        """Find the city."""

        text: str = dspy.InputField()
        city: City = dspy.OutputField()

    with dspy.context(lm=_guided(city=City.model_json_schema()), adapter=dspy.JSONAdapter()):
        assert isinstance(dspy.Predict(Find)(text="Paris?").city, City)


async def case_async() -> None:
    assert (await _lm().acall("Hi"))[0]


def case_usage() -> None:
    lm = _lm()
    lm("Hi")
    assert lm.history[-1]["usage"]["completion_tokens"] > 0


def case_errors() -> None:
    raises(Exception, lambda: _lm(model="openai/nosuch")("Hi"))
    raises(dspy.LMAuthError, lambda: _lm(api_base=f"{WITH_KEYS}/v1")("Hi"))
    raises(dspy.ContextWindowExceededError, lambda: _lm()("word " * 20000))


if __name__ == "__main__":
    main(globals())
