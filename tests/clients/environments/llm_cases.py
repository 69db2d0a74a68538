"""Simon Willison's ``llm``: a model of extra-openai-models.yaml, from Python and on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(os.environ.setdefault("LLM_USER_PATH", tempfile.mkdtemp()))  # read by the import

import llm
from cases import KEY, MODEL, URL, main, raises
from pydantic import BaseModel, Field

ENTRY = """- model_id: {name}
  model_name: {model}
  api_base: {url}/v1
  can_stream: true
  supports_schema: true
  supports_tools: true
  completion: {completion}
"""
(FOLDER / "extra-openai-models.yaml").write_text(
    ENTRY.format(name="small", model=MODEL, url=URL, completion="false")
    + ENTRY.format(name="text", model=MODEL, url=URL, completion="true")
    + ENTRY.format(name="absent", model="nosuch", url=URL, completion="false")
)
os.environ["OPENAI_API_KEY"] = KEY


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


def case_prompt() -> None:
    response = llm.get_model("small").prompt("Hi", system="Be brief.", temperature=0, max_tokens=40)
    assert response.text()
    assert response.usage().output > 0


def case_whole() -> None:
    assert llm.get_model("small").prompt("Hi", stream=False, max_tokens=20).text()


def case_text_model() -> None:
    assert llm.get_model("text").prompt("Once upon a time", max_tokens=20).text()


def case_options() -> None:
    options = {"seed": 1, "top_p": 0.9, "stop": "x", "presence_penalty": 0.1, "frequency_penalty": 0.1}
    assert llm.get_model("small").prompt("Hi", logit_bias='{"5": -100}', max_tokens=20, **options).text()


def case_conversation() -> None:
    conversation = llm.get_model("small").conversation()
    conversation.prompt("Hi", max_tokens=20).text()
    assert conversation.prompt("And?", max_tokens=20).text()


def case_schema() -> None:
    City.model_validate_json(llm.get_model("small").prompt("Paris?", schema=City, max_tokens=200, temperature=0).text())


def case_tools() -> None:
    def get_weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    chain = llm.get_model("small").chain("Weather in Rome?", tools=[get_weather], options={"max_tokens": 40})
    assert chain.text() is not None


async def case_async() -> None:
    assert await llm.get_async_model("small").prompt("Hi", max_tokens=20).text()


def case_command() -> None:
    command = [str(Path(sys.executable).with_name("llm")), "-m", "small", "Hi", "-o", "max_tokens", "20"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    listed = subprocess.run([command[0], "logs", "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(listed)[0]["model"] == "small"


def case_unknown_model() -> None:
    raises(Exception, lambda: llm.get_model("absent").prompt("Hi").text())


if __name__ == "__main__":
    main(globals())
