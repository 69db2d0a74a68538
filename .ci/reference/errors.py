"""Makes ``docs/errors.md`` from the error tree of ``runtime/errors.py``; what to do is in ``error_advice.md``."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from runtime.error_response import error_body
from runtime.errors import ServiceError
from runtime.settings import Settings

_HEAD = """# Errors

Every error has a stable `code`, which is the heading here. Statuses, titles and meanings are those of
`runtime/errors.py`, from which `.ci/reference` makes this page. [Troubleshooting](troubleshooting.md) begins with a
symptom instead of a code.

The same error looks like this on `/v1/*` and `/chat/completions` (OpenAI's form), on `/v1/messages` (Anthropic's),
below `/api` (Ollama's), and on the other routes (RFC 9457):

```json
{openai}
{anthropic}
{ollama}
{problem}
```

A message names the field and the limit, and never a path or a secret. The response's `X-Request-Id` is in the service's
log lines of that request. **Retry** says whether the same request can succeed later; where the service knows when,
`Retry-After` has the seconds, and the official clients of OpenAI and Anthropic wait for them.

| code | status | retry |
|---|---:|---|
"""

_ADVICE = Path(__file__).with_name("error_advice.md")


def page() -> str:
    """Return the page.

    Raises:
        ValueError: a code has no advice, an advice has no code, or an advice names a setting that does not exist.
    """
    classes = list(dict.fromkeys(_tree(ServiceError)))
    codes = {kind.code: kind for kind in reversed(classes)}  # the first class of a code describes it
    advice = dict(re.findall(r"^## (\w+)\n\n(.*?)\n(?=\n## |\Z)", _ADVICE.read_text(), re.DOTALL | re.MULTILINE))
    if unmatched := set(codes) ^ set(advice):
        raise ValueError(f"codes without advice, or advice without a code: {sorted(unmatched)}")
    known = {name.upper() for name in Settings.model_fields} | {"HF_TOKEN", "GET"}
    named = set(re.findall(r"`([A-Z][A-Z_]+)\b[^`]*`", " ".join(advice.values())))
    if unknown := named - known:
        raise ValueError(f"the advice names settings that do not exist: {sorted(unknown)}")
    kinds = [codes[code] for code in sorted(codes, key=lambda code: (codes[code].status, code))]
    rows = [f"| [{kind.code}](#{kind.code}) | {kind.status} | {_retry(kind)} |\n" for kind in kinds]
    sections = [
        f"\n## {kind.code}\n\n**{kind.status} {kind.title}.** {_description(kind)}\n\n"
        f"**What to do.** {advice[kind.code]}\n"
        for kind in kinds
    ]
    example = codes["invalid_request"]("temperature must be at most 2", param="temperature")
    head = _HEAD
    for form in ("openai", "anthropic", "ollama", "problem"):
        head = head.replace(f"{{{form}}}", json.dumps(error_body(example, form)))
    return head + "".join(rows) + "".join(sections)


def _tree(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _tree(sub)


def _retry(kind: type[ServiceError]) -> str:
    return "yes" if kind.retryable else "no"


def _description(kind: type[ServiceError]) -> str:
    """Return what the class says about itself, as Markdown."""
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    return re.sub(r"``([^`]+)``", r"`\1`", text)
