"""Every kind of AWS Lambda's events, driven through the handler on a fake model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from handlers.context import Context
from handlers.lambda_function import Function
from handlers.local import invoke
from runtime.errors import EngineRestarting, InvalidRequest, SettingsError, TooManyRequests
from runtime.events.aws_lambda.kinds import FunctionError
from runtime.events.aws_lambda.worker import LambdaReply
from runtime.events.envelope import encode
from runtime.settings import Settings
from tests.support.fakes import FakeEngine, fake_context
from tests.support.lambda_events import FOLDER, NAMES, Invocation, attributes, load, sqs

REJECTED = "0000000{}-1d2e-4f3a-8b4c-5d6e7f8091a2"
OUTCOMES: dict[str, Any] = {  # HTTP status | error's class | ids of batchItemFailures | operation whose answer it is
    "alb_health_check": 200,
    "alb_multi_value": 404,
    "alb_post": 200,
    "apigw_http_v1": 200,
    "apigw_http_v2_post": 200,
    "apigw_http_v2_query": 400,
    "apigw_http_v2_route": 200,
    "apigw_http_v2_stage": 200,
    "apigw_rest_admin": 403,
    "apigw_rest_base64": 200,
    "apigw_rest_custom_domain": 200,
    "apigw_rest_get_query": 200,
    "apigw_rest_post": 200,
    "apigw_websocket": "InvalidRequest",
    "direct": "complete",
    "direct_error": "InvalidRequest",
    "eventbridge": "complete",
    "eventbridge_schedule": "InvalidRequest",
    "function_url_base64": 200,
    "function_url_iam_head": 200,
    "function_url_stream": 400,
    "s3": "InvalidRequest",
    "sns": "generate",
    "sqs_dead_letter_queue": [],
    "sqs_fifo": [REJECTED.format(2), REJECTED.format(3)],
    "sqs_from_eventbridge": [],
    "sqs_from_sns": [],
    "sqs_standard": [REJECTED.format(2)],
}


def _function(ctx: Context | None = None, send: Any = None, **settings: Any) -> Function:
    return Function(Settings.load(**{"idempotency": "memory"} | settings), ctx or fake_context(), send)


async def _answer(event: Any, ctx: Context | None = None, **settings: Any) -> Any:
    return await _function(ctx, **settings).answer(event, Invocation())


@pytest.mark.parametrize("name", NAMES)
async def test_every_fixture_ends_as_its_kind_does(name: str) -> None:
    """An answer in the event's own form, messages to deliver again, or an error with the class's name."""
    outcome = OUTCOMES[name]
    if isinstance(outcome, str) and outcome[0].isupper():
        with pytest.raises(FunctionError) as caught:
            await _answer(load(name))
        assert type(caught.value).__name__ == outcome
        assert json.loads(str(caught.value))["error"]["message"]
        return
    answer = await _answer(load(name))
    json.dumps(answer)  # Lambda takes nothing else
    if isinstance(outcome, int):
        assert answer["statusCode"] == outcome
    elif isinstance(outcome, list):
        assert answer == {"batchItemFailures": [{"itemIdentifier": found} for found in outcome]}
    else:
        assert answer["text"].endswith("Hello there.")
        assert ("Once upon" in answer["text"]) == (outcome == "generate")


def test_every_fixture_names_its_source() -> None:
    """In the table beside them."""
    table = (FOLDER / "README.md").read_text()
    assert [name for name in NAMES if f"{name}.json" not in table] == []
    assert len(NAMES) >= 15


async def test_an_unknown_event_is_told_what_was_expected() -> None:
    """Whatever it is, JSON's plain values among it."""
    for event in (None, 1, "x", [], {}, {"Records": []}, {"Records": [1]}, {"requestContext": {}}, load("s3")):
        with pytest.raises(FunctionError, match="expected one of API Gateway"):
            await _answer(event)


@pytest.mark.parametrize(
    "event",
    [
        {"version": "2.0", "requestContext": {"http": None}},
        {"requestContext": {}, "httpMethod": "GET", "path": None},
        {"requestContext": {"elb": {}}, "httpMethod": "GET", "path": "/", "queryStringParameters": 5},
        {"Records": [{"eventSource": "aws:sqs", "messageId": "1"}]},
        {"Records": [{"EventSource": "aws:sns"}]},
        {"id": 1, "source": "x", "detail-type": "warmstart.complete", "detail": {}},
    ],
)
async def test_an_event_that_is_not_what_it_looks_like(event: Any) -> None:
    """Is said to be so, before anything is begun."""
    with pytest.raises(FunctionError, match="does not have the structure of"):
        await _answer(event)


# Messages


async def test_what_is_said_is_what_the_operation_says() -> None:
    """The answer to a direct invocation is the operation's own, and its error OpenAI's error object as text."""
    ctx = fake_context(FakeEngine())
    payload = {"prompt": "x", "seed": 1}
    expected = await invoke("complete", payload, ctx=fake_context(FakeEngine()))
    assert encode(await _answer({"operation": "complete", "payload": payload}, ctx)) == encode(expected)
    with pytest.raises(InvalidRequest) as error:
        await invoke("complete", {"prompt": []}, ctx=fake_context())
    with pytest.raises(FunctionError) as caught:
        await _answer({"operation": "complete", "payload": {"prompt": []}})
    assert str(caught.value) == encode(error.value.openai()).decode()


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"operation": "complete", "payloads": {}}, "payloads: unknown"),
        ({"operation": "complete", "payload": []}, "must be a JSON object"),
        ({"operation": "nope"}, "no operation 'nope'"),
        ({"operation": "clear_cache"}, "EVENTS_OPERATIONS"),
        ({"operation": "complete", "id": "a b"}, "id: "),
        ({"operation": "complete", "deadline": "soon"}, "Warmstart-Deadline"),
        ({"operation": "complete", "deadline": 1}, "deadline"),
    ],
)
async def test_wrong_direct_invocations(event: Any, said: str) -> None:
    """Each is told what is wrong."""
    with pytest.raises(FunctionError) as caught:
        await _answer(event)
    assert said in str(caught.value)


async def test_a_repeated_invocation_is_answered_without_working_again() -> None:
    """Lambda repeats an invocation that nobody waits for under the same request id; ids of one's own go before that."""
    engine = FakeEngine()
    function = _function(fake_context(engine))
    event = {"operation": "complete", "payload": {"prompt": "x"}}
    first = await function.answer(event, Invocation("one"))
    assert await function.answer(event, Invocation("one")) == first
    assert len(engine.jobs) == 1
    await function.answer(event, Invocation("two"))
    assert len(engine.jobs) == 2
    named = event | {"id": "mine"}
    assert await function.answer(named, Invocation("three")) == await function.answer(named, Invocation("four"))
    assert len(engine.jobs) == 3
    with pytest.raises(FunctionError, match="another payload") as caught:
        await function.answer(named | {"payload": {"prompt": "y"}}, Invocation("five"))
    assert type(caught.value).__name__ == "IdempotencyMismatch"


async def test_a_redelivered_message_is_answered_without_working_again() -> None:
    """By its id, and by the sender's own, which goes before that; to the same queue."""
    engine, sent = FakeEngine(), list[LambdaReply]()
    function = _function(fake_context(engine), lambda record, answer: sent.append(answer))
    event = sqs({"messageAttributes": attributes(Warmstart_Operation="complete"), "body": '{"prompt": "x"}'})
    again = sqs(event["Records"][0] | {"attributes": {"ApproximateReceiveCount": "2"}})
    for delivered in (event, again):
        assert await function.answer(delivered, Invocation()) == {"batchItemFailures": []}
    assert len(engine.jobs) == 1
    first, second = sent
    assert first.body == second.body
    assert (first.headers["Warmstart-Attempt"], second.headers["Warmstart-Attempt"]) == ("1", "2")


@pytest.mark.parametrize("failure", [TooManyRequests("full"), EngineRestarting("died"), RuntimeError("planted")])
async def test_busy_and_faulty_messages_come_again(failure: Exception) -> None:
    """And are worked on again then; those that are done are not."""
    engine = FakeEngine(failure=failure)
    function = _function(fake_context(engine))
    complete = attributes(Warmstart_Operation="complete")
    one, two = ({"messageAttributes": complete, "body": json.dumps({"prompt": text})} for text in "xy")
    assert await function.answer(sqs(one), Invocation()) == {"batchItemFailures": []}
    engine.fail_after = 0
    assert await function.answer(sqs(one, two), Invocation()) == {
        "batchItemFailures": [{"itemIdentifier": "message-2"}]
    }
    engine.fail_after = None
    assert await function.answer(sqs(one, two), Invocation()) == {"batchItemFailures": []}
    assert len(engine.jobs) == 3


async def test_a_standard_queues_messages_run_together_and_no_more_than_allowed() -> None:
    """As many at once as EVENTS_CONCURRENCY says."""
    engine, most = FakeEngine(pause=0.001), 0
    body = {"messageAttributes": attributes(Warmstart_Operation="complete")}
    event = sqs(*(body | {"body": json.dumps({"prompt": str(i)})} for i in range(10)))

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, engine.open_streams)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await _answer(event, fake_context(engine), events_concurrency=4)
    watching.cancel()
    assert most == 4
    assert len(engine.jobs) == 10


async def test_a_fifo_queues_messages_run_in_order_and_stop_at_the_first_failure() -> None:
    """What comes behind it is not even begun, whatever group it is of."""
    engine = FakeEngine()
    arn = "arn:aws:sqs:eu-central-1:123456789012:warmstart.fifo"
    complete = attributes(Warmstart_Operation="complete")
    bodies = ['{"prompt": "1"}', '{"prompt": "2"}', "{", '{"prompt": "4"}']
    event = sqs(*({"eventSourceARN": arn, "messageAttributes": complete, "body": body} for body in bodies))
    answer = await _answer(event, fake_context(engine))
    assert [found["itemIdentifier"] for found in answer["batchItemFailures"]] == ["message-3", "message-4"]
    assert len(engine.jobs) == 2


async def test_answers_go_where_send_puts_them() -> None:
    """Results and errors of all messages; what it has taken is done with, also what nothing can be made of."""
    sent = list[tuple[str, LambdaReply]]()
    function = _function(send=lambda message, answer: sent.append((message.get("messageId", ""), answer)))
    assert await function.answer(load("sqs_standard"), Invocation()) == {"batchItemFailures": []}
    assert await function.answer(load("sqs_fifo"), Invocation()) == {"batchItemFailures": []}
    kinds = [
        (id[:8], answer.kind, answer.headers.get("Warmstart-Id")) for id, answer in sorted(sent, key=lambda s: s[0])
    ]
    assert kinds == [
        ("00000001", "result", "order-1"),
        ("00000001", "result", REJECTED.format(1)),
        ("00000002", "error", REJECTED.format(2)),
        ("00000002", "error", None),
        ("00000003", "result", REJECTED.format(3)),
        ("00000003", "result", REJECTED.format(3)),
    ]
    errors = [answer for _, answer in sent if answer.kind == "error"]
    assert all("Warmstart-Reason" in answer.headers and b'"error"' in answer.body for answer in errors)
    for name in ("sns", "eventbridge", "eventbridge_schedule"):
        await function.answer(load(name), Invocation())
    assert [answer.kind for _, answer in sent[6:]] == ["result", "result", "error"]
    with pytest.raises(FunctionError):  # somebody waits for this one
        await function.answer(load("direct_error"), Invocation())
    assert len(sent) == 9


async def test_an_answer_that_cannot_be_sent_is_sent_at_the_next_delivery() -> None:
    """The message comes again, and is not worked on again."""
    engine, tries = FakeEngine(), 0

    def send(message: Any, answer: LambdaReply) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionError("planted")

    function = _function(fake_context(engine), send)
    event = load("sqs_dead_letter_queue")
    assert len((await function.answer(event, Invocation()))["batchItemFailures"]) == 1
    assert await function.answer(event, Invocation()) == {"batchItemFailures": []}
    assert (tries, len(engine.jobs)) == (2, 1)


async def test_messages_of_senders_that_wait_no_longer() -> None:
    """Their own deadline rejects them, and nothing is generated."""
    engine = FakeEngine()
    late = attributes(Warmstart_Operation="complete", Warmstart_Deadline=f"{time.time() - 1:.3f}")
    answer = await _answer(sqs({"messageAttributes": late, "body": '{"prompt": "x"}'}), fake_context(engine))
    assert len(answer["batchItemFailures"]) == 1
    assert engine.jobs == []


# Time


def _endless() -> FakeEngine:
    return FakeEngine(words=("word ",) * 100_000, pause=0.001)


@pytest.mark.parametrize("name", ["apigw_rest_post", "apigw_http_v2_post", "alb_post", "function_url_base64"])
async def test_a_request_that_takes_too_long_is_answered_before_lambda_ends_it(name: str) -> None:
    """With 504, and its generation stops."""
    engine = _endless()
    event = load(name)
    function = _function(fake_context(engine))
    answer = await function.answer(_long(event), Invocation(seconds=1.05))
    assert answer["statusCode"] == 504
    assert "deadline_exceeded" in answer["body"]
    assert engine.open_streams == 0


def _long(event: dict[str, Any]) -> dict[str, Any]:
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 100_000}
    text = {"prompt": "x", "max_new_tokens": 100_000}
    body = chat if "chat" in json.dumps(event) else text
    return event | {"body": json.dumps(body), "isBase64Encoded": False}


async def test_messages_that_take_too_long_come_again() -> None:
    """Those that are done do not; the others are given back in time, and another delivery may do them at once."""
    engine = _endless()
    function = _function(fake_context(engine))
    complete = attributes(Warmstart_Operation="complete")
    event = sqs(
        {"messageAttributes": complete, "body": '{"prompt": "x", "max_new_tokens": 2}'},
        {"messageAttributes": complete, "body": '{"prompt": "x", "max_new_tokens": 100000}'},
    )
    answer = await function.answer(event, Invocation(seconds=2))
    assert answer == {"batchItemFailures": [{"itemIdentifier": "message-2"}]}
    assert engine.open_streams == 0
    engine.words = ("Hello",)
    assert await function.answer(event, Invocation()) == {"batchItemFailures": []}


async def test_an_invocation_that_takes_too_long_ends_with_its_error() -> None:
    """By which a caller or a state machine can tell it."""
    event = {"operation": "complete", "payload": {"prompt": "x", "max_new_tokens": 100_000}}
    with pytest.raises(FunctionError) as caught:
        await _function(fake_context(_endless())).answer(event, Invocation(seconds=1.05))
    assert type(caught.value).__name__ == "DeadlineExceeded"


# The function


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"api_keys_file": "/nowhere"}, "API_KEYS"),
        ({"rate_limit_enabled": True}, "RATE_LIMIT_ENABLED"),
        ({"allowed_ips": "10.0.0.0/8"}, "ALLOWED_IPS"),
        ({"audit_log": "/nowhere", "audit_key": "k" * 32}, "AUDIT_LOG"),
        ({"events_operations": "nope"}, "EVENTS_OPERATIONS"),
    ],
)
def test_settings_that_it_cannot_keep_are_refused(settings: dict[str, Any], name: str) -> None:
    """Nobody is to believe in a lock that is not there."""
    with pytest.raises(SettingsError, match=name):
        _function(**settings)


async def test_admin_operations_are_nobodys_unless_named() -> None:
    """There are no keys here that could have that scope."""
    event = load("apigw_rest_admin")
    assert "EVENTS_OPERATIONS" in (await _answer(event))["body"]
    assert (await _answer(event, events_operations="load_model"))["statusCode"] == 200


def test_called_as_lambda_calls_it() -> None:
    """From a thread without a loop, again and again: everything runs on one loop, which outlives the calls."""
    loops = set()
    ctx = fake_context()

    def observe(usage: Any) -> None:
        loops.add(asyncio.get_running_loop())

    function = _function(replace(ctx, new_id=lambda: (observe(None), "id")[1]))
    for number in range(3):
        chat = load("apigw_http_v2_post")
        assert function(chat, Invocation(f"request-{number}"))["statusCode"] == 200
    assert len(loops) == 1


def test_waiting_for_the_model_is_bounded() -> None:
    """Lambda would begin the container anew; a load that lasts goes on, and the first answer waits for it."""
    ctx = fake_context()

    async def watch(name: str) -> Any:
        yield ctx.models.status()[0]
        await asyncio.Event().wait()

    ctx.models.watch = watch  # type: ignore[method-assign, assignment]
    _function(ctx).load(0.01)


def test_importing_it_does_nothing() -> None:
    """Neither settings are read nor a model is loaded before ``handler`` is asked for; a wrong setting shows then."""
    code = (
        "import sys, handlers.lambda_function as f; assert 'torch' not in sys.modules;"
        "from runtime.errors import SettingsError\n"
        "try: f.handler\nexcept SettingsError as error: print(error)\n"
        "try: f.other\nexcept AttributeError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={"DTYPE": "int3"}, capture_output=True, text=True, check=True
    )
    assert "DTYPE" in run.stdout
    assert "no attribute 'other'" in run.stdout
