"""Rules that express keywords of JSON Schema by others, where that is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from runtime.engine.schema_facts import ALL_TYPES, SchemaFacts, canonical, listed, members, required

FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())  # noqa: SIM905
"""The formats of strings that are enforced."""

_MOST_UNIQUE = 5  # values of which all arrays without repetition are listed: 326 arrays
_MOST_LISTED = 20_000  # values that rules list
_APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "dependencies", "not")

Node = dict[str, Any]


class UnsupportedKeyword(ValueError):
    """A keyword that cannot be enforced; the message names it and its place."""


@dataclass(frozen=True, slots=True)
class Found:
    """A keyword at its place.

    Args:
        keyword: its name.
        value: its value.
        node: the schema that has it.
        place: where the schema is in the document.
        here: the schema, and those around it that its values match as well.
    """

    keyword: str
    value: Any
    node: Node
    place: str
    here: Sequence[Node]

    @property
    def always(self) -> bool:
        """Whether the value is a schema that everything matches."""
        return self.value is True or self.value == {}

    def refused(self, reason: str = "it cannot be enforced") -> UnsupportedKeyword:
        """Return the error for it."""
        at = f" at {self.place}" if self.place else ""
        return UnsupportedKeyword(f"{self.keyword}{at} is not supported here: {reason}")


class Rules:
    """The rules for one document.

    Args:
        facts: what is known about its schemas.
    """

    def __init__(self, facts: SchemaFacts) -> None:
        self._facts = facts
        self._listed = 0  # values

    def parts(self, found: Found) -> list[Any] | None:
        """Return the schemas that say the same as a keyword together; None if it stays as it is.

        Raises:
            UnsupportedKeyword: it cannot be said so.
        """
        rule = _RULES.get(found.keyword)
        return None if rule is None else rule(self, found)

    def _format(self, found: Found) -> list[Any] | None:
        return None if found.value in FORMATS else []

    def _unique_items(self, found: Found) -> list[Any]:
        node = found.node
        if found.value is not True or node.get("maxItems") in (0, 1):
            return []
        items = None if "prefixItems" in node else self._facts.values(node.get("items"))
        if items is None or len(items) > _MOST_UNIQUE or not self._only("array", found):
            raise found.refused(f"it needs the type array, and items that list {_MOST_UNIQUE} values at most")
        sizes = range(len(items) + 1)
        arrays = [list(chosen) for size in sizes for chosen in permutations(items, size)]
        self._count(arrays, found)
        return [{"enum": arrays}]

    def _contains(self, found: Found) -> list[Any]:
        least = found.node.get("minContains", 1)
        if "maxContains" not in found.node and (least == 0 or found.always):
            return [{"minItems": least}]
        raise found.refused()

    def _property_names(self, found: Found) -> list[Any]:
        value, node = found.value, found.node
        if found.always or value == {"type": "string"}:
            return []
        others = node.get("additionalProperties", True)
        if (names := self._facts.values(value)) is not None:
            allowed = [name for name in names if isinstance(name, str)]
            known = {name: True if name in members(node) else others for name in allowed}
            refused = {name: False for name in members(node) if name not in allowed}
            return [{"properties": {**known, **refused}, "additionalProperties": False}]
        plain = isinstance(value, dict) and value.keys() <= {"type", "pattern", "title", "description"}
        if plain and "pattern" in value and not {"properties", "patternProperties", "required"} & node.keys():
            return [{"patternProperties": {value["pattern"]: others}, "additionalProperties": False}]
        raise found.refused("it may list names, or be a pattern without properties beside it")

    def _dependent(self, found: Found) -> list[Any]:
        """Rewrite ``dependentRequired``, ``dependentSchemas``, and ``dependencies``, the older name of both."""
        rules = []
        for name, needed in members(found.node, found.keyword).items():
            then = {"required": needed} if isinstance(needed, list) else needed
            rules.append({"anyOf": [{"properties": {name: False}}, {"allOf": [{"required": [name]}, then]}]})
        if rules and not self._only("object", found):
            raise found.refused("it needs the type object beside it")
        return rules

    def _unevaluated(self, found: Found) -> list[Any]:
        node = found.node
        if found.always:
            return []
        if len(found.here) > 1 or any(keyword in node for keyword in _APPLICATORS):
            raise found.refused("it needs a schema without others beside it, such as allOf or $ref")
        if found.keyword == "unevaluatedItems":
            begun = [True for _ in listed(node.get("prefixItems"))]
            return [] if "items" in node else [{"prefixItems": begun, "items": found.value}]
        if "additionalProperties" in node:
            return []
        declared = {
            keyword: dict.fromkeys(members(node, keyword), True) for keyword in ("properties", "patternProperties")
        }
        return [{**declared, "additionalProperties": found.value}]

    def _least_properties(self, found: Found) -> list[Any] | None:
        """Keep a number that repeated names, which the library allows, cannot make up."""
        value, named = found.value, len(required(found.here))
        if isinstance(value, int | float) and value <= named:
            return []
        if value == 1:
            return None
        raise found.refused("more than one property needs as many names in required")

    def _not(self, found: Found) -> list[Any]:
        value, parts = found.value, [part for node in found.here for part in self._facts.parts(node)]
        if value is False or found.always:
            return [not value] if isinstance(value, bool) else [False]
        if (banned := self._facts.values(value)) is not None:
            texts = set(map(canonical, banned))
            for part in parts:
                values = self._facts.values({name: part[name] for name in ("enum", "const") if name in part})
                if values is not None:
                    self._count(values, found)
                    return [{"enum": [item for item in values if canonical(item) not in texts]}]
        elif isinstance(value, dict) and value.keys() == {"type"}:
            kept = ALL_TYPES - self._facts.types(value)
            if kept and ("integer" in kept) == ("fraction" in kept):
                return [{"type": sorted({"number" if kind in ("integer", "fraction") else kind for kind in kept})}]
        elif isinstance(value, dict) and value.keys() == {"required"} and self._only("object", found):
            return [{"anyOf": [{"properties": {name: False}} for name in required([value])]}]
        raise found.refused("it may exclude types, properties, or some of the values that are listed beside it")

    def _if(self, found: Found) -> list[Any]:
        """Rewrite a condition that tests one property, all of whose values are listed."""
        value, here = found.value, found.here
        then, otherwise = found.node.get("then", True), found.node.get("else", True)
        if then is True and otherwise is True:
            return []
        needs = required([value]) if isinstance(value, dict) else []
        tested = members(value) if isinstance(value, dict) else {}
        names = {*tested}
        declared = [members(part)[name] for part in here for name in names & members(part).keys()]
        values = self._facts.values({"allOf": declared})
        matching = self._facts.values(next(iter(tested.values()), None))
        plain = len(names) == 1 and {*needs} <= names and value.keys() <= {"properties", "required"}
        if not plain or values is None or matching is None or not self._only("object", found):
            raise found.refused("it may test one property of an object, all of whose values are listed")
        self._count(values, found)
        (name,) = names
        texts = set(map(canonical, matching))
        cases = [
            {"allOf": [{"properties": {name: {"enum": chosen}}, "required": [name]}, result]}
            for matches, result in ((True, then), (False, otherwise))
            if (chosen := [item for item in values if (canonical(item) in texts) == matches])
        ]
        if name not in required(here):
            cases.append({"allOf": [{"properties": {name: False}}, otherwise if needs else then]})
        return [{"anyOf": cases}]

    def _exclusive(self, found: Found) -> list[Any] | None:
        """Rewrite the fourth draft's boolean ``exclusiveMinimum`` and ``exclusiveMaximum``."""
        bound = found.keyword.removeprefix("exclusive").lower()
        if not isinstance(found.value, bool):
            return None
        return [{found.keyword: found.node[bound]}] if found.value and bound in found.node else []

    def _nothing(self, found: Found) -> list[Any]:
        """Leave out a keyword without a meaning of its own."""
        return []

    def _count(self, values: Sequence[Any], found: Found) -> None:
        """Count values that a rule lists.

        Raises:
            UnsupportedKeyword: there are too many of them in the document.
        """
        self._listed += len(values)
        if self._listed > _MOST_LISTED:
            raise found.refused(f"more than {_MOST_LISTED} values would have to be listed")

    def _only(self, kind: str, found: Found) -> bool:
        return self._facts.types({"allOf": list(found.here)}) == {kind}


_RULES: dict[str, Callable[[Rules, Found], list[Any] | None]] = {
    "format": Rules._format,
    "uniqueItems": Rules._unique_items,
    "contains": Rules._contains,
    "propertyNames": Rules._property_names,
    "dependentRequired": Rules._dependent,
    "dependentSchemas": Rules._dependent,
    "dependencies": Rules._dependent,
    "unevaluatedProperties": Rules._unevaluated,
    "unevaluatedItems": Rules._unevaluated,
    "minProperties": Rules._least_properties,
    "not": Rules._not,
    "if": Rules._if,
    "exclusiveMinimum": Rules._exclusive,
    "exclusiveMaximum": Rules._exclusive,
} | dict.fromkeys(("then", "else", "minContains", "maxContains", "x-guidance"), Rules._nothing)
