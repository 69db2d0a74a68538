"""The base class of all request models: unknown fields are refused, and null is the same as leaving a field out."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from handlers.schemas.unsupported import Unsupported

T = TypeVar("T")

_ABOUT = ("title", "description", "default")  # keys of a field's JSON schema that are not part of its type


class Strict(BaseModel):
    """A request, or an object inside one. Unknown fields and values of the wrong type are refused."""

    # Built on first use, because building all of them slows the start.
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )
    unsupported: ClassVar[Mapping[str, Unsupported]] = MappingProxyType({})
    """Unsupported fields of OpenAI's API, accepted with a neutral value only."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: object) -> object:
        """Drop optional fields that are null and unsupported ones with a neutral value; refuse the latter otherwise."""
        if not isinstance(data, dict):
            return data
        wrong = [name for name in cls.unsupported if name in data and not cls.unsupported[name].allows(data[name])]
        if wrong:
            raise ValidationError.from_exception_data(
                cls.__name__, [_refusal(name, cls.unsupported[name], data[name]) for name in wrong]
            )
        return {
            name: value
            for name, value in data.items()
            if name not in cls.unsupported and (value is not None or not _optional(cls, name))
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the JSON schema, extended by the nulls and unsupported fields that ``_leave_out`` accepts."""
        written = handler(schema)
        described = handler.resolve_ref_schema(written)
        fields: dict[str, Any] = described.get("properties", {})
        fields |= {name: _nullable(field) for name, field in fields.items() if _optional(cls, name)}
        fields |= {name: field.schema for name, field in cls.unsupported.items()}
        return written


def _optional(model: type[BaseModel], name: str) -> bool:
    field = model.model_fields.get(name)
    return field is not None and not field.is_required()


def _refusal(name: str, field: Unsupported, value: object) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError(field.code, "{message}", {"message": field.message}), loc=(name,), input=value
    )


def _nullable(field: dict[str, Any]) -> dict[str, Any]:
    """Extend a field's JSON schema by null, in the form that pydantic gives an optional type."""
    options = field.get("anyOf", [{k: value for k, value in field.items() if k not in _ABOUT}])
    if {"type": "null"} in options:
        return field
    return {"anyOf": [*options, {"type": "null"}]} | {k: value for k, value in field.items() if k in _ABOUT}


def check_needs(value: T, info: ValidationInfo, flag: str) -> T:
    """Return a field's value after checking the rule of ``needs``; for a validator of the field.

    Args:
        value: the field's value; None and False need nothing.
        info: pydantic's information, with the fields before this one.
        flag: the other field, a boolean before this one.

    Raises:
        PydanticCustomError: the other field is not true.
    """
    if value is not None and value is not False and info.data.get(flag, True) is not True:
        raise PydanticCustomError("needs", "needs {flag} to be true", {"flag": flag})
    return value


def needs(field: str, kind: str, flag: str) -> dict[str, Any]:
    """Return a JSON schema rule: if ``field`` has the type ``kind``, then the field ``flag`` must be true."""
    return {
        "if": {"required": [field], "properties": {field: {"type": kind}}},
        "then": {"required": [flag], "properties": {flag: {"const": True}}},
    }
