"""Parses AWS Lambda events that are HTTP requests, and builds the responses in the matching form.

There are three forms: ``v1`` (REST APIs of API Gateway, and HTTP APIs with payload format 1.0), ``v2`` (HTTP APIs of
API Gateway, and Function URLs) and ``alb`` (Application Load Balancers). Sources: AWS's API Gateway developer guide,
"Lambda proxy integrations" and "payload format version"; Lambda developer guide, "Function URLs"; Application Load
Balancer guide, "Lambda functions as targets".
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
    """An HTTP request, in the same shape for all three forms.

    Args:
        form: the event's form.
        method: the method in upper case.
        path: the decoded path as the service's routes have it, without the stage and the prefix of a custom domain's
            mapping.
        query: the decoded query parameters.
        headers: the headers with lower-case names; several values of one name are joined.
        content: the body as the event has it: text, or a JSON value in a handwritten event; None if there is none.
        base64: whether ``content`` is base64.
        multi_value: whether the load balancer expects lists of header values in the response, as it sent lists.
    """

    form: Form
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    content: Any
    base64: bool = False
    multi_value: bool = False

    @property
    def content_type(self) -> tuple[str, str | None]:
        """The body's media type without parameters, and its charset."""
        line = self.headers.get("content-type", "")
        message = Message()
        message["content-type"] = line
        charset = message.get_param("charset")
        named = line.partition(";")[0].strip().lower()
        return named if named.count("/") == 1 else _UNKNOWN, charset if isinstance(charset, str) else None

    def body(self) -> bytes | None:
        """Return the decoded body; None if there is none. An object or array, as in test events, is encoded as JSON.

        Raises:
            InvalidRequest: the body is marked as base64 and is not, or is neither text, object nor array.
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
            raise InvalidRequest("the body is not base64, although isBase64Encoded is set") from None


def read_request(event: Mapping[str, Any], form: Form) -> HttpRequest:
    """Parse an event's HTTP request.

    Raises:
        LookupError, TypeError, AttributeError: the event does not have the documented shape.
    """
    context = event["requestContext"]
    if form == "v2":
        method, path = context["http"]["method"], _path(event["rawPath"], event.get("routeKey"), event)
        query = _grouped(parse_qsl(event.get("rawQueryString") or "", keep_blank_values=True))
        headers = _grouped((event.get("headers") or {}).items())
        if cookies := event.get("cookies"):
            headers["cookie"] = ["; ".join(cookies)]
    else:
        method, path = event["httpMethod"], event["path"]
        query = _members(event, "queryStringParameters", "multiValueQueryStringParameters")
        headers = _members(event, "headers", "multiValueHeaders")
        if form == "v1":
            path = _path(path, event.get("resource"), event)
        else:  # a load balancer does not decode them
            path = unquote(path)
            query = {unquote_plus(name): list(map(unquote_plus, values)) for name, values in query.items()}
    return HttpRequest(
        form,
        str(method).upper(),
        path,
        query,
        {name.lower(): ", ".join(values) for name, values in headers.items()},
        event.get("body"),
        bool(event.get("isBase64Encoded")),
        multi_value=event.get("multiValueHeaders") is not None,
    )


def write_response(request: HttpRequest, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Build the response in the form that the request's sender expects.

    Args:
        request: the request.
        status: the HTTP status.
        headers: the headers, with one value each.
        body: the body, in UTF-8.
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
        if request.multi_value:
            answer["multiValueHeaders"] = {name: [value] for name, value in answer.pop("headers").items()}
    return answer


def _path(path: str, route: str | None, event: Mapping[str, Any]) -> str:
    """Return the path within the API.

    ``path`` itself may begin with the stage, or with a custom domain's mapping to this API; the matched route does not.
    The catch-all route ``$default`` has no path, so there only the stage is removed, which URLs of the default domain
    contain.
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


def _members(event: Mapping[str, Any], single: str, multiple: str) -> dict[str, list[str]]:
    """Return members that come with one value each, with lists of values, or in both ways."""
    if (lists := event.get(multiple)) is not None:
        return {name: list(values) for name, values in lists.items() if values}
    return {name: [value] for name, value in (event.get(single) or {}).items()}


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, value in pairs:
        grouped.setdefault(name, []).append(value)
    return grouped
