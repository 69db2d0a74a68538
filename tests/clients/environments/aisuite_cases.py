"""aisuite: chat completions through its OpenAI provider, with tools that it runs."""

from __future__ import annotations

from typing import Any

import aisuite
from cases import KEY, MODEL, URL, WITH_KEYS, main, raises

HI: Any = [{"role": "user", "content": "Hi"}]


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def _ask(name: str = MODEL, url: str = URL, **fields: Any) -> Any:
    client = aisuite.Client({"openai": {"base_url": f"{url}/v1", "api_key": KEY, "max_retries": 0}})
    return client.chat.completions.create(
        **{"model": f"openai:{name}", "messages": HI, "temperature": 0, "max_tokens": 100} | fields
    )


def case_chat() -> None:
    assert _ask().choices[0].message.content


def case_stream() -> None:
    assert "".join(chunk.choices[0].delta.content or "" for chunk in _ask(stream=True))


def case_fields() -> None:
    assert len(_ask(n=2, seed=1, stop=["x"], top_p=0.9).choices) == 2


def case_tools() -> None:
    answer = _ask(tools=[get_weather], max_turns=2, tool_choice="required", parallel_tool_calls=False)
    assert answer.choices[0].intermediate_messages


def case_errors() -> None:
    assert "nosuch" in str(raises(Exception, lambda: _ask("nosuch")))
    assert "401" in str(raises(Exception, lambda: _ask(url=WITH_KEYS)))


if __name__ == "__main__":
    main(globals())
