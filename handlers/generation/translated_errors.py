"""Errors of a translated request, in terms of the request that the client sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import TypeVar

from runtime.errors import InvalidRequest, ServiceError

E = TypeVar("E", bound=ServiceError)


@contextmanager
def renaming(fields: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Name the client's fields in the errors that are raised inside the block.

    Args:
        fields: pairs of a pattern, which matches the start of a field's path in the translated request, and the
            replacement; the first pattern that matches is used.
    """
    try:
        yield
    except InvalidRequest as error:
        raise renamed(error, fields) from None


def renamed(error: E, fields: Sequence[tuple[str, str]]) -> E:
    """Return an error with the client's name of the field at fault; the same error if no field is.

    Args:
        error: the error; it is not changed, because other requests may raise it, too, which the response cache shares.
        fields: as for ``renaming``.
    """
    if (param := error.param) is None:
        return error
    found = copy(error)
    found.param = name = _renamed(param, fields)
    if error.message.startswith(f"{param}: "):
        found.message = name + error.message.removeprefix(param)
        found.args = (found.message,)
    return found


def _renamed(param: str, fields: Sequence[tuple[str, str]]) -> str:
    for pattern, name in fields:
        if re.match(pattern, param):
            return re.sub(f"^{pattern}", name, param)
    return param
