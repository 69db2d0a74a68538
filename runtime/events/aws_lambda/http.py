"""AWS Lambda's events that are HTTP requests, and what an answer to each looks like.

Three forms: ``v1`` (REST APIs of API Gateway, and its HTTP APIs where they are told to use format 1.0), ``v2`` (HTTP
APIs of API Gateway, and Function URLs) and ``alb`` (Application Load Balancers). Sources: AWS's API Gateway developer
guide, "Lambda proxy integrations" and "payload format version"; Lambda developer guide, "Function URLs"; Application
Load Balancer guide, "Lambda functions as targets".
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, unquote_plus

from runtime.errors import InvalidRequest

Form = Literal["v1", "v2", "alb"]

_UNKNOWN = "application/octet-stream"  # RFC 9110 section 8.3
_FIELD = re.compile(r"\{(\w+)\+?\}")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, whichever form it came in.

    Args:
        form: of the event.
        method: in capitals.
        path: decoded, as the service knows it: without the stage, and without what a domain's mapping puts before it.
        query: decoded.
        headers: by their names in small letters; several lines of one name are joined.
        content: the body as it stands in the event: text, or what an event that was written by hand has in its place;
            None if there is none.
        base64: whether it is base64 there.
        many: whether the load balancer wants lists of header values back, because it sent such.
    """

    form: Form
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    content: Any
    base64: bool = False
    many: bool = False

    @property
    def content_type(self) -> tuple[str, str | None]:
        """The body's type without parameters, and its charset."""
        line = self.headers.get("content-type", "")
        message = Message()
        message["content-type"] = line
        charset = message.get_param("charset")
        named = line.partition(";")[0].strip().lower()
        return named if named.count("/") == 1 else _UNKNOWN, charset if isinstance(charset, str) else None

    def body(self) -> bytes | None:
        """The body; None if there is none. An object or array, as in test events, stands for its JSON.

        Raises:
            InvalidRequest: it is said to be base64 and is not, or it is neither text, object nor array.
        """
        if self.content is None or self.content == "":
            return None
        if isinstance(self.content, dict | list) and not self.base64:
            return json.dumps(self.content).encode()
        if not isinstance(self.content, str):
            raise InvalidRequest("the event's body must be a string, or a JSON object without isBase64Encoded")
        if not self.base64:
            return self.content.encode("utf-8", "surrogatepass")
        try:
            return b64decode(self.content, validate=True)
        except ValueError:
            raise InvalidRequest("the body is not base64, as isBase64Encoded says") from None


def read_request(event: Mapping[str, Any], form: Form) -> HttpRequest:
    """The request in an event.

    Raises:
        LookupError, TypeError, AttributeError: the event is not what it looks like.
    """
    context = event["requestContext"]
    if form == "v2":
        method, path = context["http"]["method"], _path(event["rawPath"], event.get("routeKey"), event)
        query = _lists(parse_qsl(event.get("rawQueryString") or "", keep_blank_values=True))
        headers = _lists((event.get("headers") or {}).items())
        if cookies := event.get("cookies"):
            headers["cookie"] = ["; ".join(cookies)]
    else:
        method, path = event["httpMethod"], event["path"]
        query = _many(event, "queryStringParameters", "multiValueQueryStringParameters")
        headers = _many(event, "headers", "multiValueHeaders")
        if form == "v1":
            path = _path(path, event.get("resource"), event)
        else:  # a load balancer leaves them as they came
            path = unquote(path)
            query = {unquote_plus(name): list(map(unquote_plus, found)) for name, found in query.items()}
    return HttpRequest(
        form,
        str(method).upper(),
        path,
        query,
        {name.lower(): ", ".join(found) for name, found in headers.items()},
        event.get("body"),
        bool(event.get("isBase64Encoded")),
        many=event.get("multiValueHeaders") is not None,
    )


def write_response(request: HttpRequest, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """An answer as whoever sent the event wants it.

    Args:
        request: answered.
        status: of the answer.
        headers: one value each.
        body: UTF-8.
    """
    answer: dict[str, Any] = {
        "statusCode": status,
        "headers": dict(headers),
        "body": "" if request.method == "HEAD" else body.decode(),
        "isBase64Encoded": False,
    }
    if request.form == "v2":
        answer["cookies"] = []
    if request.form == "alb":
        answer["statusDescription"] = f"{status} {HTTPStatus(status).phrase}"
        if request.many:
            answer["multiValueHeaders"] = {name: [value] for name, value in answer.pop("headers").items()}
    return answer


def _path(path: str, route: str | None, event: Mapping[str, Any]) -> str:
    """The path within the API.

    ``path`` itself may begin with the stage, or with what a custom domain maps to this API; the route that matched does
    not. A catch-all ``$default`` has no path, so there only the stage can go, which the default domain asks for.
    """
    template = (route or "").rpartition(" ")[2]  # "POST /generate" in format 2.0
    fields = event.get("pathParameters") or {}
    if template.startswith("/"):
        return unquote(_FIELD.sub(lambda field: fields[field[1]], template))
    context = event["requestContext"]
    stage = f"/{context.get('stage')}"
    if ".execute-api." in context.get("domainName", "") and (path + "/").startswith(stage + "/"):
        path = path[len(stage) :] or "/"
    return unquote(path)


def _many(event: Mapping[str, Any], single: str, many: str) -> dict[str, list[str]]:
    """Members that come with one value each, or with all of them, or in both ways."""
    if (found := event.get(many)) is not None:
        return {name: list(values) for name, values in found.items() if values}
    return {name: [value] for name, value in (event.get(single) or {}).items()}


def _lists(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found
