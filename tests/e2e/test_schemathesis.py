"""The served description against the served behaviour: schemathesis, all its checks, good data and bad.

``EXAMPLES`` examples are generated per operation beside those that its coverage phase derives from the description;
of an operation without fields there is only the one request to make, and those with methods that it does not have.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import positive_data_acceptance

from app import ROUTES
from handlers.api.openapi import build
from handlers.context import RequestLimits
from handlers.operations import OPERATIONS
from handlers.schemas.base import Sampling
from tests.support.fake_encoder import ENCODER, FakeEncoder
from tests.support.fakes import INFO, fake_context, serving
from tests.support.soak import SOAK, soak

EXAMPLES = soak(200, 40)
# Bounds that the description does not know of, as wide as anything that is generated: what it calls valid must pass.
LIMITS = RequestLimits(max_prompt_chars=10**9, max_sequences=10**7)
# A body of a field or two has few distinct forms; those that generate text have many.
MANY = {f"{r.method} {r.plain_path}" for r in ROUTES if issubclass(OPERATIONS[r.operation].request, Sampling)}


@pytest.fixture
def url() -> Iterator[str]:
    """The base URL of the real application on a fake model, on a real port, on a thread of its own.

    The fake model stays loaded and the default whatever is asked for, so no operation can spoil the tests of another.
    """
    started, found = threading.Event(), list[str]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        info = replace(INFO, vocabulary_size=10**10, encoder=replace(ENCODER, max_tokens=10**9, normalized=False))
        ctx = fake_context(FakeEncoder(words=("Hello",), info=info), limits=LIMITS)
        async with serving(ctx, max_body_bytes=10**8, idempotency="off") as base:  # ids are generated twice, too
            found.append(base)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(30)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    loop.close()


DOCUMENT = json.loads(json.dumps(build(ROUTES, "0.test")))


# Another path of the same operation, with the same form of errors, is tried in the full form only.
FIRST = {(r.method, r.operation, r.errors): r.plain_path for r in reversed(ROUTES)}
ALIASES = {r.plain_path for r in ROUTES} - {*FIRST.values()}

# What counts the tokens of a request takes the same request: cases of all its fields are derived in the full form only.
COUNTED = {"/v1/chat/completions/input_tokens", "/v1/messages/count_tokens", "/v1/responses/input_tokens"}
# Events of every operation have the same attributes, and data that the operation's own path tries: the short form has
# data that may be missing, of a field or two, and of many.
EVENTS = [f"warmstart.{name}" for name in (OPERATIONS if SOAK else ("health", "tokenize", "generate"))]


def _components() -> dict[str, Any]:
    """The described schemas, with events of the operations that are tried."""
    components: dict[str, Any] = deepcopy(DOCUMENT["components"])
    event = components["schemas"]["Event"]
    event["properties"]["type"]["enum"] = [name for name in event["properties"]["type"]["enum"] if name in EVENTS]
    event["anyOf"] = [one for one in event["anyOf"] if one["properties"]["type"]["const"] in EVENTS]
    return components


@pytest.fixture(params=sorted(DOCUMENT["paths"].keys() - (set() if SOAK else ALIASES)))
def description(request: pytest.FixtureRequest) -> BaseSchema:
    """The description of one path, read when its test runs: what is tried is derived from it, which takes a second.

    It is without idempotency keys: this service keeps no records, so that it refuses them.
    """
    request.node._nodeid = request.node.nodeid  # schemathesis writes to it, and pytest 9.2 has no such attribute
    path = deepcopy(DOCUMENT["paths"][request.param])
    for operation in path.values():
        operation["parameters"] = [one for one in operation.get("parameters", []) if one["name"] != "Idempotency-Key"]
    made = schemathesis.openapi.from_dict(DOCUMENT | {"paths": {request.param: path}, "components": _components()})
    made.config.phases.coverage.enabled = SOAK or request.param not in COUNTED
    made.hook(filter_case)
    made.hook(map_path_parameters)
    return made


api = schemathesis.pytest.from_fixture("description")


def test_tested_description_is_the_served_one(url: str) -> None:
    """What is tested below is what the service gives out."""
    assert requests.get(f"{url}/openapi.json", timeout=10).json() == DOCUMENT


def _as_read(value: Any, schema: dict[str, Any]) -> Any:
    """What the service reads of a value: in place of a number, texts and booleans that mean one are one."""
    for option in schema.get("anyOf", ()):  # an object that may be null
        schema = option if "$ref" in option else schema
    if "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, dict):
        return {name: _as_read(item, schema.get("properties", {}).get(name, {})) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_read(item, schema.get("items", {})) for item in value]
    return _number(value, schema)


def _number(value: Any, field: dict[str, Any]) -> Any:
    kinds = {field.get("type"), *(option.get("type") for option in field.get("anyOf", []))}
    if not kinds & {"number", "integer"} or not isinstance(value, str | bool):
        return value
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def _event_as_read(event: Any) -> Any:
    """The same of an event's data, by what its type asks for; in place of 1, no attribute is 1.0."""
    if isinstance(event, dict):
        event = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in event.items()
        }
    operation = OPERATIONS.get(str(event.get("type")).removeprefix("warmstart.")) if isinstance(event, dict) else None
    if operation is None or "data" not in event:
        return event
    return event | {"data": _as_read(event["data"], {"$ref": f"#/components/schemas/{operation.request.__name__}"})}


def _promises_too_much(body: Any) -> bool:
    """Whether more tokens are promised than there may be: JSON Schema cannot compare two fields."""
    if not isinstance(body, dict):
        return False
    names = ("max_new_tokens", "max_length", "max_tokens", "max_completion_tokens", "n_predict")
    bounds = [body.get(name) for name in names]
    least = body.get("min_tokens", body.get("min_new_tokens"))
    numbers = [bound for bound in bounds if isinstance(bound, int | float) and bound >= 0]
    return isinstance(least, int | float) and least > 0 and least >= min(numbers, default=16)  # the least default


def _contradicts_itself(body: Any) -> bool:
    """Whether two fields contradict each other, which JSON Schema cannot express well: several that constrain the text,
    limits on tokens beside them or tools, no end beside either, tools in both forms, log-probabilities of a prompt that
    is streamed, two ends of a prompt, a choice among tools that names another, two tools of one name, the same option
    of a question twice, a conversation that ends with the assistant's turn, a length that a prompt fills, or another
    number of queries than of documents. The same goes for dimensions and names of prompts that the model does not have.
    """
    if not isinstance(body, dict):
        return False
    if body.get("dimensions") not in (None, ENCODER.width, *ENCODER.dimensions):
        return True
    if any(body.get(name) not in (None, "document", *ENCODER.prompts) for name in ("prompt_name", "input_type")):
        return True
    for pair in (("queries", "documents"), ("text_1", "text_2")):
        first, second = (body.get(name) for name in pair)
        if isinstance(first, list) and len(first) not in (1, len(second) if isinstance(second, list) else 1):
            return True
    constraints = [name for name in CONSTRAINTS if body.get(name) not in (None, {"type": "text"})]
    if len(constraints) + (body.get("ignore_eos") is True) > 1:
        return True
    if (body.get("tools") and body.get("functions")) or (body.get("reasoning") and body.get("reasoning_effort")):
        return True
    if body.get("stream") is True and body.get("prompt_logprobs") is not None:
        return True
    if body.get("output_format") is not None and (body.get("output_config") or {}).get("format") is not None:
        return True
    for question in body.get("questions") or ():
        options = [repr(option.get("value")) for option in question.get("choices") or ()]
        if len(set(options)) < len(options):
            return True
    prompts = body["prompt"] if isinstance(body.get("prompt"), list) else []
    longest = max((len(ids) for ids in (prompts, *prompts) if isinstance(ids, list)), default=1)
    if isinstance(body.get("max_length"), int | float) and body["max_length"] <= longest:
        return True
    limited = body.get("allowed_token_ids") or body.get("bad_words") or body.get("ignore_eos") is True
    if limited and (constraints or body.get("tools") or body.get("functions") or body.get("thinking_token_budget")):
        return True
    if body.get("skip_special_tokens") is False and (body.get("tools") or body.get("functions")):
        return True
    if body.get("add_generation_prompt") is body.get("continue_final_message") is True:
        return True
    defined = [*(body.get("tools") or ()), *(body.get("functions") or ())]
    tools: list[Any] = [tool.get("function", tool).get("name") for tool in defined]
    choice = body.get("tool_choice")
    chosen = [choice] if isinstance(choice, dict) and choice.get("type") in ("function", "tool") else []
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        chosen = choice.get("allowed_tools", choice)["tools"]
    if isinstance(body.get("function_call"), dict):
        chosen = [body["function_call"]]
    named = [function.get("function", function).get("name") for function in chosen]
    turns = body.get("messages") or [{}]
    prefilled = turns[-1].get("role") == "assistant"
    return len(set(tools)) < len(tools) or not set(named) <= set(tools) or prefilled


CONSTRAINTS = (
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "json_schema",
    "grammar",
)


def filter_case(context: Any, case: schemathesis.Case) -> bool:
    """Drop right data that promises too much or contradicts itself, and wrong data that is none here.

    The one thing in which the service takes more than its description says is numbers: it also takes texts and
    booleans that mean one (``"0.5"``). A body that is valid once they are written as numbers is dropped; whatever else
    is wrong with a body must be refused.
    """
    batch = case.media_type == "application/cloudevents-batch+json"
    if not isinstance(case.body, list if batch else dict):
        return True
    schema = case.operation.definition.raw["requestBody"]["content"][case.media_type]["schema"]
    validator = jsonschema.Draft202012Validator(schema | {"components": DOCUMENT["components"]})
    if case.path == "/events":
        events = case.body if batch else [case.body]
        if any(isinstance(event, dict) and _promises_too_much(event.get("data")) for event in events):
            return False
        if validator.is_valid(case.body) and any(_contradicts_itself(event.get("data")) for event in events):
            return False
        read: Any = [_event_as_read(event) for event in events] if batch else _event_as_read(case.body)
        if batch and not validator.is_valid(case.body):  # is answered event by event
            return False
    else:
        if _promises_too_much(case.body) or (validator.is_valid(case.body) and _contradicts_itself(case.body)):
            return False
        read = _as_read(case.body, schema)
    if repr(read) == repr(case.body):  # which tells True from 1
        return True
    return not validator.is_valid(read)


def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Name the model that there is in every other path; one that is generated is never served."""
    if path_parameters and len(str(path_parameters.get("model", ""))) in range(1, 256, 2):
        return path_parameters | {"model": "fake"}
    return path_parameters


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """One connection for all requests of a test; a new one for each takes longer than the request."""
    with requests.Session() as made:
        yield made


@pytest.fixture
def tried() -> Iterator[Counter[tuple[str, str]]]:
    """Counts the requests of a test, of which many must be good and many bad. How many varies with the hash seed."""
    counts: Counter[tuple[str, str]] = Counter()
    yield counts
    for label in MANY & {label for label, _ in counts}:
        good, bad = counts[label, "positive"], counts[label, "negative"]
        assert good >= EXAMPLES // 5
        assert bad >= EXAMPLES // 5


@api.parametrize()
@settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
def test_service_is_what_it_says(
    case: schemathesis.Case, url: str, session: requests.Session, tried: Counter[tuple[str, str]]
) -> None:
    """Whatever is generated from the description, the answer is one that the description allows, and never 5xx."""
    response = case.call(base_url=url, session=session)
    # Elsewhere what is not there is 404, which is allowed for; a router of events would send that again.
    missing = response.status_code == 422 and re.search(rb"not_found|files_off", response.content) is not None
    case.validate_response(response, excluded_checks=[positive_data_acceptance] if missing else None)
    assert response.status_code < 500
    assert case.meta is not None
    tried[case.operation.label, case.meta.generation.mode.value] += 1
