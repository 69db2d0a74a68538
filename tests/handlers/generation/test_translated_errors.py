"""handlers.generation.translated_errors: errors name the fields that the client sent."""

from __future__ import annotations

import pytest

from handlers.generation import messages_input, responses_input
from handlers.generation.translated_errors import renaming
from runtime.errors import ContextLengthExceeded, InvalidRequest, ServiceError


@pytest.mark.parametrize(
    ("fields", "param", "name"),
    [
        (responses_input.FIELDS, "messages.1.content", "input"),
        (responses_input.FIELDS, "response_format.json_schema.schema", "text.format.schema"),
        (responses_input.FIELDS, "response_format", "text.format"),
        (responses_input.FIELDS, "tools.3.function.parameters", "tools.3.parameters"),
        (responses_input.FIELDS, "max_completion_tokens", "max_output_tokens"),
        (responses_input.FIELDS, "seed", "seed"),
        (messages_input.FIELDS, "messages.1.content", "messages"),
        (messages_input.FIELDS, "tools.3.function.parameters", "tools.3.input_schema"),
        (messages_input.FIELDS, "tools.3.function.name", "tools.3.name"),
        (messages_input.FIELDS, "stop.0", "stop_sequences.0"),
        (messages_input.FIELDS, "thinking_token_budget", "thinking.budget_tokens"),
    ],
)
def test_names(fields: tuple[tuple[str, str], ...], param: str, name: str) -> None:
    """The field and the start of the message are renamed; what has the same name stays."""
    with pytest.raises(InvalidRequest) as caught, renaming(fields):
        raise InvalidRequest(f"{param}: is wrong", param=param)
    assert (caught.value.param, caught.value.message, str(caught.value)) == (name, *[f"{name}: is wrong"] * 2)


def test_shared_errors() -> None:
    """The error itself stays as it is, because the response cache may raise it in other requests, too."""
    error = ContextLengthExceeded("too long", param="messages")
    with pytest.raises(ContextLengthExceeded) as caught, renaming(responses_input.FIELDS):
        raise error
    assert (caught.value.param, error.param) == ("input", "messages")


def test_other_errors() -> None:
    """Errors that name no field pass."""
    for error in (InvalidRequest("no"), ServiceError("no")):
        with pytest.raises(ServiceError) as caught, renaming(responses_input.FIELDS):
            raise error
        assert caught.value is error
