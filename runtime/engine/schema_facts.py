"""What can be proved about a JSON Schema: the values it has, and that two schemas have no value in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

ALL_TYPES: Final = frozenset({"null", "boolean", "integer", "fraction", "string", "array", "object"})
"""The types of values; ``number`` is ``integer`` or ``fraction``."""

ANNOTATIONS: Final = frozenset(
    "$schema $id $comment $anchor $defs definitions title description default examples deprecated readOnly "  # noqa: SIM905
    "writeOnly discriminator nullable example format contentEncoding contentMediaType".split()
)
"""Keywords that do not change which values of a finite set are valid."""

_MOST_STEPS = 20_000  # comparisons of schemas in all proofs
_MOST_PARTS = 64


class SchemaFacts:
    """Answers questions about the schemas inside one document. What it cannot prove it denies.

    Args:
        root: the document, to which references are relative.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        # An identifier inside the document changes what the references below it mean.
        self._resolves = json.dumps(root).count('"$id": ') <= (isinstance(root, dict) and "$id" in root)
        self._steps = 0

    def resolve(self, reference: object) -> Any:
        """Return the schema at a reference inside the document; None for other references."""
        if not isinstance(reference, str) or not self._resolves:
            return None
        if reference != "#" and not reference.startswith("#/"):
            return None
        found = self._root
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                return None
        return found

    def parts(self, schema: Any) -> list[dict[str, Any]]:
        """Return schemas that a value must match, all of them, to match the given one: itself, ``$ref``, ``allOf``."""
        found: list[dict[str, Any]] = []
        waiting = [schema]
        while waiting and len(found) < _MOST_PARTS:
            part = waiting.pop()
            if not isinstance(part, dict) or any(part is known for known in found):
                continue
            found.append(part)
            waiting += [self.resolve(part.get("$ref")), *listed(part.get("allOf"))]
        return found

    def values(self, schema: Any) -> list[Any] | None:
        """Return the only values of a schema; None unless they are listed by it and nothing else limits them."""
        lists = []
        for part in self.parts(schema):
            if not part.keys() <= ANNOTATIONS | {"const", "enum", "type", "$ref", "allOf"}:
                return None
            lists += _listed_values(part)
        if not lists:
            return None
        types = self.types(schema)
        first, *others = lists
        kept = {
            canonical(value): value
            for value in first
            if type_of(value) in types and all(canonical(value) in set(map(canonical, other)) for other in others)
        }
        return list(kept.values())

    def types(self, schema: Any) -> frozenset[str]:
        """Return the types that the values of a schema may have."""
        if schema is False:
            return frozenset()
        types = ALL_TYPES
        for part in self.parts(schema):
            if "type" in part:
                names = part["type"] if isinstance(part["type"], list) else [part["type"]]
                types &= frozenset(kind for name in names for kind in _kinds(name))
            for values in _listed_values(part, with_types=False):
                types &= frozenset(map(type_of, values))
        return types

    def overlapping(self, schemas: Sequence[Any], most: int) -> tuple[int, int] | None:
        """Return the numbers of two schemas that may match the same value; None if it is certain that there are none.

        Args:
            schemas: the schemas.
            most: how many of them are compared in pairs, if no property tells them all apart.
        """
        if self._tagged(schemas):
            return None
        for second, schema in enumerate(schemas):
            if second >= most:
                return 0, second
            for first in range(second):
                if not self._disjoint(schemas[first], schema, 0):
                    return first, second
        return None

    def _tagged(self, schemas: Sequence[Any]) -> bool:
        """Return whether all schemas list values of their own, or are of objects that one property tells apart so."""
        if self._apart(schemas):
            return True
        parts = [self.parts(schema) for schema in schemas]
        if any(self.types(schema) != {"object"} for schema in schemas):
            return False
        names = [name for name in required(parts[0]) if all(name in required(each) for each in parts)] if parts else []
        return any(self._apart([{"allOf": properties(each, name)} for each in parts]) for name in names)

    def _apart(self, schemas: Sequence[Any]) -> bool:
        """Return whether all schemas list their values, and no two of them the same one."""
        lists = [self.values(schema) for schema in schemas]
        texts = [canonical(value) for values in lists for value in values or ()]
        return None not in lists and len(texts) == len(set(texts))

    def _disjoint(self, one: Any, other: Any, depth: int) -> bool:
        self._steps += 1
        if one is False or other is False:
            return True
        if self._steps > _MOST_STEPS or depth > 8 or not isinstance(one, dict) or not isinstance(other, dict):
            return False
        ones, others = self.parts(one), self.parts(other)
        for parts, against in ((ones, other), (others, one)):
            for part in parts:
                for keyword in ("anyOf", "oneOf"):
                    options = listed(part.get(keyword))
                    if options and all(self._disjoint(option, against, depth + 1) for option in options):
                        return True
        if any(
            {*map(canonical, first)}.isdisjoint(map(canonical, second))
            for first in _all_values(ones)
            for second in _all_values(others)
        ):
            return True
        shared = self.types(one) & self.types(other)
        if shared != {"object"}:
            return not shared
        for name in required([*ones, *others]):
            mine, theirs = properties(ones, name), properties(others, name)
            if any(self._disjoint(first, second, depth + 1) for first in mine for second in theirs):
                return True
        return False


def listed(value: object) -> list[Any]:
    """Return a list as it is, anything else as an empty one."""
    return value if isinstance(value, list) else []


def members(part: Mapping[str, Any], keyword: str = "properties") -> dict[str, Any]:
    """Return the schemas that a keyword has by name."""
    found = part.get(keyword)
    return found if isinstance(found, dict) else {}


def properties(parts: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    """Return the schemas that the value of a property must match, all of them."""
    found: list[Any] = []
    for part in parts:
        if name in members(part):
            found.append(members(part)[name])
        elif "additionalProperties" in part and "patternProperties" not in part:
            found.append(part["additionalProperties"])
    return found


def required(parts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the properties that an object must have."""
    names = (name for part in parts for name in listed(part.get("required")) if isinstance(name, str))
    return list(dict.fromkeys(names))


def canonical(value: Any) -> str:
    """Return a text that equal JSON values share: 1 and 1.0 are equal, 1 and true are not."""
    return json.dumps(_whole(value), sort_keys=True)


def type_of(value: Any) -> str:
    """Return a value's type, one of ``ALL_TYPES``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if isinstance(value, int) or value.is_integer() else "fraction"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {name: _whole(item) for name, item in value.items()} if isinstance(value, dict) else value


def _kinds(name: object) -> Iterable[str]:
    return ("integer", "fraction") if name == "number" else (str(name),)


def _listed_values(part: Mapping[str, Any], *, with_types: bool = True) -> list[list[Any]]:
    """Return the lists of values that one schema has: its constant, its enumeration, the values of its type."""
    lists = [[part["const"]]] if "const" in part else []
    if isinstance(part.get("enum"), list):
        lists.append(part["enum"])
    if with_types and part.get("type") == "boolean":
        lists.append([False, True])
    if with_types and part.get("type") == "null":
        lists.append([None])
    return lists


def _all_values(parts: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    return [values for part in parts for values in _listed_values(part)]
