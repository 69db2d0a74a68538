"""Makes ``docs/api.md`` from the routes and the request models."""

from __future__ import annotations

from typing import Any

from handlers.api.routes import ROUTES
from handlers.operations import OPERATIONS
from handlers.schemas.strict import Strict

_NOT_USED = "Accepted for compatibility"
_HEAD = """# API reference

Made from the routes and the request models by `.ci/reference`; `/docs` of a running service has the same with
answers and a form to try it. A field that is not listed is refused by name, and null is the same as leaving an optional
field out. **works**: the field has its effect. **accepted**: it has none, and is accepted because clients send it.
**refused**: any value but those given is a 400 that names the field.

"""
_MOVING = """
## Moving from another server

**OpenAI**: change the base URL and the model's name. Audio, images, stored completions and hosted tools are refused by
name. With RESPONSES_STORE_BYTES, responses of `/v1/responses` are kept in the process's memory, each caller's apart,
for `previous_response_id`, `GET` and `DELETE`; otherwise none is.

**vLLM**: change the base URL. `guided_*`, `structured_outputs`, `top_k`, `min_p`, `repetition_penalty`, `min_tokens`,
`allowed_token_ids`, `bad_words`, `truncate_prompt_tokens`, `cache_salt` and the others above have vLLM's names and
meaning. Beam search is refused, and so are unknown fields; LoRA adapters are models of their own.

**llama.cpp**: `/v1/completions` instead of `/completion`. `grammar` (GBNF), `json_schema`, `n_predict`,
`reasoning_format` and `timings_per_token` have its meaning, `cache_prompt` is always on, and samplers that this server
does not have are refused unless they are off. GGUF files are served as they are: `MODEL_NAME=/path/model.gguf`.

**Ollama**: `/v1/chat/completions` instead of `/api/chat`; `options` are fields of the request, `num_predict` is
`max_tokens`, `format` is `response_format`, and `keep_alive` is the setting IDLE_UNLOAD_SECONDS.
"""


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    models: dict[str, type[Any]] = {}
    described: dict[str, type[Any]] = {}  # the request models so far
    for operation in dict.fromkeys(route.operation for route in ROUTES):
        paths = ", ".join(f"`{route.method} {route.plain_path}`" for route in ROUTES if route.operation == operation)
        entry = OPERATIONS[operation]
        same = next((name for name, request in described.items() if request is entry.request), None)
        described[operation] = entry.request
        if same is not None and issubclass(entry.request, Strict) and entry.request.model_fields:
            parts.append(f"## {operation}\n\n{entry.summary} {paths}\n\nFields as in [{same}](#{same}).\n\n")
            continue
        fields = _rows(entry.request, models)
        table = f"| field | | type | default |\n|---|---|---|---|\n{fields}" if fields else "No fields.\n"
        parts.append(f"## {operation}\n\n{entry.summary} {paths}\n\n{table}\n")
    shown: set[str] = set()
    parts.append("## Objects in requests\n\n")
    while missing := [name for name in models if name not in shown]:
        for name in missing:
            shown.add(name)
            parts.append(
                f"### {name}\n\n| field | | type | default |\n|---|---|---|---|\n{_rows(models[name], models)}\n"
            )
    return "".join(parts).rstrip("\n") + "\n" + _MOVING


def _rows(model: type[Any], models: dict[str, type[Any]]) -> str:
    """Return a table's rows, and add the models that the fields refer to."""
    if not issubclass(model, Strict):
        return ""
    schema = model.model_json_schema(by_alias=True)
    refused = model.unsupported
    rows = []
    for name, field in schema.get("properties", {}).items():
        if name in refused:
            continue
        text = field.get("description", "")
        state = "accepted" if text.startswith(_NOT_USED) else "works"
        default = "required" if name in schema.get("required", ()) else _shown(field.get("default"))
        rows.append(f"| `{name}` | {state}. {text} | {_type(field)} | {default} |\n")
    for field in model.model_fields.values():
        _collect(field.annotation, models)
    for name, unsupported in refused.items():
        rows.append(f"| `{name}` | refused: {unsupported.message}. | | |\n")
    return "".join(rows)


def _collect(annotation: Any, models: dict[str, type[Any]]) -> None:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        models.setdefault(annotation.__name__, annotation)
    for part in getattr(annotation, "__args__", ()):
        _collect(part, models)


def _type(field: dict[str, Any]) -> str:
    """Return a JSON schema's type in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if options := [option for option in field.get("anyOf", field.get("oneOf", ())) if option != {"type": "null"}]:
        return " or ".join(dict.fromkeys(map(_type, options)))
    if "enum" in field:
        return ", ".join(f"`{_shown(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_type(field.get('items', {}))}"
    limits = [f"{sign} {field[key]}" for key, sign in (("minimum", "from"), ("maximum", "to")) if key in field] + [
        f"{field[key]} characters at {word}" for key, word in (("maxLength", "most"),) if key in field
    ]
    return " ".join([kind, *limits])


def _shown(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
