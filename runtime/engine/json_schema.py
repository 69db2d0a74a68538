"""Rewrites JSON Schemas (draft 2020-12, with older drafts' keywords) in the keywords that llguidance has.

Every text that the rewritten schema allows is valid under the given one. Where that cannot be had, the keyword is
refused by its name and place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from runtime.engine.schema_facts import ALL_TYPES, SchemaFacts, canonical, listed, members, required

FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())  # noqa: SIM905
"""The formats of strings that are enforced."""

_DRAFT = re.compile(r"https?://json-schema\.org/(draft-0[467]|draft/20(?:19-09|20-12))/schema#?")
_MOST_UNIQUE = 5  # values of which all arrays without repetition are listed: 326 arrays
_MOST_OPTIONS = 64  # of a oneOf that are compared in pairs
_SINGLE = ("items", "additionalItems", "additionalProperties")  # keywords whose value is one schema
_LISTS = ("allOf", "anyOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "dependencies", "not")

Node = dict[str, Any]


class UnsupportedKeyword(ValueError):
    """A keyword that cannot be enforced; the message names it and its place."""


def rewritten(schema: Any) -> Any:
    """Return a schema without the keywords that llguidance does not have.

    Unknown formats are left out: by the specification they are annotations. So are ``x-guidance``, with which a schema
    could change the library's options, and a ``$schema`` of the document that is not one of json-schema.org's drafts,
    which would have to be fetched.

    Raises:
        UnsupportedKeyword: a keyword cannot be enforced.
    """
    return _Rewriter(schema).document()


@dataclass(frozen=True, slots=True)
class _Found:
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


class _Rewriter:
    """Rewrites the schemas of one document.

    Args:
        root: the document.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._facts = SchemaFacts(root)
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
            found = _Found(keyword, value, node, place, here)
            if keyword == "oneOf":
                options = self._one_of(found)
                if "anyOf" in node:
                    more.append({"anyOf": options})
                else:
                    result["anyOf"] = options
            elif (rule := _RULES.get(keyword)) is None or (parts := rule(self, found)) is None:
                result[keyword] = self._value(found)
            else:
                more += [self._schema(part, place, here) for part in parts]
        if more:
            result["allOf"] = [*listed(result.get("allOf")), *more]
        return result

    def _value(self, found: _Found) -> Any:
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

    def _one_of(self, found: _Found) -> list[Any]:
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

    def _format(self, found: _Found) -> list[Any] | None:
        return None if found.value in FORMATS else []

    def _unique_items(self, found: _Found) -> list[Any]:
        node = found.node
        if found.value is not True or node.get("maxItems") in (0, 1):
            return []
        items = None if "prefixItems" in node else self._facts.values(node.get("items"))
        if items is None or len(items) > _MOST_UNIQUE or not self._only("array", found):
            raise found.refused(f"it needs the type array, and items that list {_MOST_UNIQUE} values at most")
        sizes = range(len(items) + 1)
        return [{"enum": [list(chosen) for size in sizes for chosen in permutations(items, size)]}]

    def _contains(self, found: _Found) -> list[Any]:
        least = found.node.get("minContains", 1)
        if "maxContains" not in found.node and (least == 0 or found.always):
            return [{"minItems": least}]
        raise found.refused()

    def _property_names(self, found: _Found) -> list[Any]:
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

    def _dependent(self, found: _Found) -> list[Any]:
        """Rewrite ``dependentRequired``, ``dependentSchemas``, and ``dependencies``, the older name of both."""
        rules = []
        for name, needed in members(found.node, found.keyword).items():
            then = {"required": needed} if isinstance(needed, list) else needed
            rules.append({"anyOf": [{"properties": {name: False}}, {"allOf": [{"required": [name]}, then]}]})
        if rules and not self._only("object", found):
            raise found.refused("it needs the type object beside it")
        return rules

    def _unevaluated(self, found: _Found) -> list[Any]:
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
        declared = {keyword: dict.fromkeys(members(node, keyword), True) for keyword in _MAPS[:2]}
        return [{**declared, "additionalProperties": found.value}]

    def _least_properties(self, found: _Found) -> list[Any] | None:
        """Keep a number that repeated names, which the library allows, cannot make up."""
        value, named = found.value, len(required(found.here))
        if isinstance(value, int | float) and value <= named:
            return []
        if value == 1:
            return None
        raise found.refused("more than one property needs as many names in required")

    def _not(self, found: _Found) -> list[Any]:
        value, parts = found.value, [part for node in found.here for part in self._facts.parts(node)]
        if value is False or found.always:
            return [not value] if isinstance(value, bool) else [False]
        if (banned := self._facts.values(value)) is not None:
            texts = set(map(canonical, banned))
            for part in parts:
                values = self._facts.values({name: part[name] for name in ("enum", "const") if name in part})
                if values is not None:
                    return [{"enum": [item for item in values if canonical(item) not in texts]}]
        elif isinstance(value, dict) and value.keys() == {"type"}:
            kept = ALL_TYPES - self._facts.types(value)
            if kept and ("integer" in kept) == ("fraction" in kept):
                return [{"type": sorted({"number" if kind in ("integer", "fraction") else kind for kind in kept})}]
        elif isinstance(value, dict) and value.keys() == {"required"} and self._only("object", found):
            return [{"anyOf": [{"properties": {name: False}} for name in required([value])]}]
        raise found.refused("it may exclude types, properties, or some of the values that are listed beside it")

    def _if(self, found: _Found) -> list[Any]:
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

    def _exclusive(self, found: _Found) -> list[Any] | None:
        """Rewrite the fourth draft's boolean ``exclusiveMinimum`` and ``exclusiveMaximum``."""
        bound = found.keyword.removeprefix("exclusive").lower()
        if not isinstance(found.value, bool):
            return None
        return [{found.keyword: found.node[bound]}] if found.value and bound in found.node else []

    def _nothing(self, found: _Found) -> list[Any]:
        """Leave out a keyword without a meaning of its own."""
        return []

    def _only(self, kind: str, found: _Found) -> bool:
        return self._facts.types({"allOf": list(found.here)}) == {kind}


_RULES: dict[str, Callable[[_Rewriter, _Found], list[Any] | None]] = {
    "format": _Rewriter._format,
    "uniqueItems": _Rewriter._unique_items,
    "contains": _Rewriter._contains,
    "propertyNames": _Rewriter._property_names,
    "dependentRequired": _Rewriter._dependent,
    "dependentSchemas": _Rewriter._dependent,
    "dependencies": _Rewriter._dependent,
    "unevaluatedProperties": _Rewriter._unevaluated,
    "unevaluatedItems": _Rewriter._unevaluated,
    "minProperties": _Rewriter._least_properties,
    "not": _Rewriter._not,
    "if": _Rewriter._if,
    "exclusiveMinimum": _Rewriter._exclusive,
    "exclusiveMaximum": _Rewriter._exclusive,
} | dict.fromkeys(("then", "else", "minContains", "maxContains", "x-guidance"), _Rewriter._nothing)
