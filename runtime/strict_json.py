"""JSON as RFC 8259 has it, from strangers: every fault is an ``InvalidRequest``."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from runtime.errors import InvalidRequest


def loads(data: bytes | str) -> Any:
    """Decode one JSON text.

    Raises:
        InvalidRequest: it is not JSON, not UTF-8, nested too deep, or holds NaN, Infinity or an endless number, all of
            which Python's decoder would let pass or fail on in ways of its own.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        return json.loads(text, parse_constant=_refuse)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deep") from None
    except ValueError:  # int() refuses thousands of digits
        raise InvalidRequest("the body holds a number with too many digits") from None


def _refuse(constant: str) -> NoReturn:
    raise InvalidRequest(f"the body holds {constant}, which is not JSON")
