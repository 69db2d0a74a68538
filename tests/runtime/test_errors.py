"""The error tree: every error can be rendered in both shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from runtime import errors
from runtime.errors import ServiceError


def tree(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_every_error_renders_in_both_shapes(kind: type[ServiceError]) -> None:
    """OpenAI's object with its four keys, and problem details with status, title, detail and code."""
    error = kind("what is wrong", param="field")
    assert error.openai()["error"].keys() == {"message", "type", "param", "code"}
    problem = json.loads(json.dumps(error.problem()))
    assert (problem["status"], problem["detail"], problem["param"]) == (kind.status, "what is wrong", "field")
    assert 400 <= kind.status < 600
    assert str(error) == "what is wrong"


def test_codes_are_distinct_where_meanings_are() -> None:
    """A program can tell any two errors apart by code; the bases share theirs with nobody but ServiceError itself."""
    kinds = [kind for kind in tree() if kind is not errors.ServiceError]
    assert len({kind.code for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (errors.InvalidRequest, "invalid_request_error"),
        (errors.TooManyRequests, "rate_limit_error"),
        (errors.ModelLoading, "server_error"),
        (errors.InternalError, "server_error"),
    ],
)
def test_the_openai_type_says_whose_fault_it_is(kind: type[ServiceError], expected: str) -> None:
    """The caller's, the rate's, or ours."""
    assert kind("x").type == expected
