"""Rewrites JSON Schemas (draft 2020-12, with older drafts' keywords) in the keywords that llguidance has.

Every text that the rewritten schema allows is valid under the given one. Where that cannot be had, the keyword is
refused by its name and place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from runtime.engine.schema_facts import SchemaFacts, listed, members, required
from runtime.engine.schema_rules import Found, Node, Rules

_DRAFT = re.compile(r"https?://json-schema\.org/(draft-0[467]|draft/20(?:19-09|20-12))/schema#?")
_MOST_OPTIONS = 64  # of a oneOf that are compared in pairs
_SINGLE = ("items", "additionalItems", "additionalProperties")  # keywords whose value is one schema
_LISTS = ("allOf", "anyOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")


def rewritten(schema: Any) -> Any:
    """Return a schema without the keywords that llguidance does not have.

    Unknown formats are left out: by the specification they are annotations. So are ``x-guidance``, with which a schema
    could change the library's options, and a ``$schema`` of the document that is not one of json-schema.org's drafts,
    which would have to be fetched.

    Raises:
        UnsupportedKeyword: a keyword cannot be enforced.
    """
    return _Rewriter(schema).document()


class _Rewriter:
    """Rewrites the schemas of one document.

    Args:
        root: the document.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._facts = SchemaFacts(root)
        self._rules = Rules(self._facts)
        self._definitions: dict[str, Any] = {}  # further ones
        self._named: dict[tuple[str, str], str] = {}

    def document(self) -> Any:
        """Return the rewritten document."""
        result = self._schema(self._root, "", ())
        if isinstance(result, dict) and (dialect := result.pop("$schema", None)) is not None:
            known = _DRAFT.fullmatch(dialect) if isinstance(dialect, str) else None
            if known is not None:  # the library knows a draft by one spelling only
                scheme, end = ("http", "#") if known[1].startswith("draft-") else ("https", "")
                result["$schema"] = f"{scheme}://json-schema.org/{known[1]}/schema{end}"
        if self._definitions:
            result["$defs"] = {**members(result, "$defs"), **self._definitions}
        return result

    def _schema(self, node: Any, place: str, around: Sequence[Node]) -> Any:
        """Return a rewritten schema.

        Args:
            node: the schema.
            place: where it is in the document, for errors.
            around: schemas that its values match as well, of which it is a member of ``allOf``.
        """
        if not isinstance(node, dict):
            return node
        here = (*around, node)
        result: Node = {}
        more: list[Any] = []  # further schemas that the values must match
        for keyword, value in node.items():
            found = Found(keyword, value, node, place, here)
            if keyword == "oneOf":
                options = self._one_of(found)
                if "anyOf" in node:
                    more.append({"anyOf": options})
                else:
                    result["anyOf"] = options
            elif (parts := self._rules.parts(found)) is None:
                result[keyword] = self._value(found)
            else:
                more += [self._schema(part, place, here) for part in parts]
        if more:
            result["allOf"] = [*listed(result.get("allOf")), *more]
        return result

    def _value(self, found: Found) -> Any:
        """Return a keyword's value with the schemas in it rewritten."""
        keyword, value = found.keyword, found.value
        at = f"{found.place}.{keyword}" if found.place else keyword
        if keyword in _LISTS and isinstance(value, list):
            around = found.here if keyword == "allOf" else ()
            return [self._schema(item, f"{at}.{i}", around) for i, item in enumerate(value)]
        if keyword in _SINGLE:
            return self._schema(value, at, ())
        if keyword in _COUNTS and isinstance(value, float) and value.is_integer():
            return int(value)
        if keyword in _MAPS and isinstance(value, dict):
            return {name: self._schema(item, f"{at}.{name}", ()) for name, item in value.items()}
        return value

    def _one_of(self, found: Found) -> list[Any]:
        """Return the options of an ``anyOf`` that means the same, which needs that no value matches two of them."""
        options = listed(found.value)
        name = members(found.node, "discriminator").get("propertyName")
        if isinstance(name, str):  # OpenAPI requires the objects to have it
            options = [
                {**option, "required": required([option, {"required": [name]}])} if isinstance(option, dict) else option
                for option in options
            ]
        overlap = self._facts.overlapping(options, _MOST_OPTIONS)
        if overlap is not None:
            first, second = overlap
            raise found.refused(f"its schemas {first} and {second} may match the same value, which anyOf allows")
        at = f"{found.place}.{found.keyword}" if found.place else found.keyword
        return [self._schema(self._without_siblings(option), f"{at}.{i}", ()) for i, option in enumerate(options)]

    def _without_siblings(self, option: Any) -> Any:
        """Return a reference with ``required`` beside it as a reference alone, which may be part of a cycle."""
        if not isinstance(option, dict) or option.keys() != {"$ref", "required"}:
            return option
        target = self._facts.resolve(option["$ref"])
        if not isinstance(target, dict):
            return option
        both = required([target, option])
        if both == required([target]):
            return {"$ref": option["$ref"]}
        key = (option["$ref"], " ".join(both))
        if key not in self._named:
            name = self._named[key] = f"with-discriminator-{len(self._named)}"
            self._definitions[name] = self._schema({**target, "required": both}, option["$ref"], ())
        return {"$ref": f"#/$defs/{self._named[key]}"}
