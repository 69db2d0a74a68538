"""Errors of a translated request, in terms of the request that the client sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

from runtime.errors import InvalidRequest


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
        if (param := error.param) is None:
            raise
        renamed = copy(error)  # other requests may raise the same error, which the response cache shares
        renamed.param = name = _renamed(param, fields)
        if error.message.startswith(f"{param}: "):
            renamed.message = name + error.message.removeprefix(param)
            renamed.args = (renamed.message,)
        raise renamed from None


def _renamed(param: str, fields: Sequence[tuple[str, str]]) -> str:
    for pattern, name in fields:
        if re.match(pattern, param):
            return re.sub(f"^{pattern}", name, param)
    return param
