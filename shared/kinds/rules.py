"""What pydantic's core schemas tell of how a model is validated: what its rules look at, and whose code runs."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, PlainValidator, WrapValidator
from pydantic_core import SchemaValidator

from solewriter.shared.entity import CONCERNS, Entity
from solewriter.shared.frozen import FrozenMap
from solewriter.shared.models import Task

_MAKES_OTHERS: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_OF_PYDANTIC: Final = "init_private_attributes"  # its own function to be called behind a model's making
_PLAIN: Final = frozenset({"bool", "int", "float", "str", "datetime", "literal"})  # types of pydantic core schemas
_ALIKE: Final = frozenset({str, int, float, bool, bytes, tuple, frozenset, FrozenMap})
_ENUM_CODE: Final = frozenset({"_missing_", "__eq__", "__hash__", "value", "__getattribute__"})
"""What an enum may define that runs when one of its values is validated, compared, looked up or written"""


def _looks_around(schema: Any) -> bool:
    """Whether a validator somewhere in a pydantic core schema is told of the other fields."""
    if isinstance(schema, dict):
        return schema.get("type") == "with-info" or any(_looks_around(item) for item in schema.values())
    return isinstance(schema, list | tuple) and any(_looks_around(item) for item in schema)


def is_plain(schema: Any) -> bool:
    """Whether a pydantic core schema is that of a plain value, which the library's own code validates."""
    while schema["type"] == "nullable":
        schema = schema["schema"]
    if schema["type"] == "enum":
        theirs = [base for base in schema["cls"].__mro__ if base.__module__ not in ("enum", "builtins")]
        return not any(_ENUM_CODE & vars(base).keys() for base in theirs)
    return schema["type"] in _PLAIN


def recasts(model: type[Entity], concern: frozenset[str] | None) -> bool:
    """Whether code of the user's may make other values of those that it made before."""
    return concern is None or converts(_without_rules(model.__pydantic_core_schema__))


def _without_rules(schema: Any) -> Any:
    """A model's core schema without its rules, all of which said that they only look."""
    if schema["type"] == "definitions":
        return {**schema, "schema": _without_rules(schema["schema"])}
    return _without_rules(schema["schema"]) if schema["type"] == "function-after" else schema


def converts(schema: Any) -> bool:
    """Whether a function of others than ours is somewhere in a pydantic core schema."""
    if isinstance(schema, dict):
        if schema.get("custom_init"):
            return True
        if schema.get("post_init") and schema["cls"].model_post_init.__name__ != _OF_PYDANTIC:
            return True
        if str(schema.get("type")).startswith("function-"):
            given = schema["function"]["function"]
            if getattr(given, "__module__", "") != FrozenMap.__module__:
                return True
        return any(converts(item) for name, item in schema.items() if name != "serialization")
    return isinstance(schema, list | tuple) and any(map(converts, schema))


def made_anew(model: type[BaseModel]) -> frozenset[str]:
    """The fields whose default factory may make another value each time."""
    factories = {name: field.default_factory for name, field in model.model_fields.items()}
    return frozenset(name for name, factory in factories.items() if factory is not None and not _makes_alike(factory))


def _makes_alike(factory: Any) -> bool:
    """Whether it is a class of which every instance without arguments is the same."""
    is_model = isinstance(factory, type) and issubclass(factory, BaseModel)
    return factory in _ALIKE or (is_model and not made_anew(factory))


def _makes_its_schema(model: type[Entity]) -> bool:
    """Whether it says itself how it is validated."""
    return any("__get_pydantic_core_schema__" in vars(base) for base in model.__mro__ if base is not BaseModel)


def concern_of(model: type[Entity]) -> frozenset[str] | None:
    """The fields that the model's rules look at; None where validation is more than fields and rules that say so.

    Raises TypeError for a rule that names what is no field: it would not be asked where it matters.
    """
    found = model.__pydantic_decorators__
    if found.field_validators or found.root_validators or found.validators:
        return None
    if model.__pydantic_post_init__ and model.model_post_init.__name__ != _OF_PYDANTIC:
        return None
    if model.__pydantic_custom_init__ or _makes_its_schema(model):
        return None
    if _looks_around(model.__pydantic_core_schema__):
        return None
    names: set[str] = set()
    for rule in found.model_validators.values():
        fields = getattr(getattr(model, rule.cls_var_name), CONCERNS, None)
        if rule.info.mode != "after" or fields is None:
            return None
        if unknown := [name for name in fields if name not in model.model_fields]:
            raise TypeError(f"{model.__name__}.{rule.cls_var_name}: concerns {unknown[0]!r}, which is no field")
        names.update(fields)
    return frozenset(names)


def has_rules(model: type[Entity]) -> bool:
    """Whether a model has rules other than those that come with the house."""
    rules = model.__pydantic_decorators__.model_validators.values()
    return any(getattr(getattr(model, rule.cls_var_name), "__module__", "") != Task.__module__ for rule in rules)


def refuse_forgetful(*models: type[BaseModel]) -> None:
    """Raises TypeError for a validator that never returns anything: pydantic has None then, in place of the entity or
    of a field's value.
    """
    for model in models:
        for name, function, what, instead in _validators(model):
            if _returns_nothing(function):
                problem = f"returns nothing, and that would be {what}: end it with `return {instead}`"
                raise TypeError(f"{model.__name__}.{name}: {problem}")


def _validators(model: type[BaseModel]) -> Iterator[tuple[str, Any, str, str]]:
    """What validates a model or one of its fields: its name, itself, what becomes of its result, what that should be.
    Not what comes before a whole model, whose None pydantic does not take.
    """
    whole = "the entity" if issubclass(model, Entity) else "the part"
    by_handler = "what its handler returns"
    for rule in model.__pydantic_decorators__.model_validators.values():
        if rule.info.mode != "before":
            instead = by_handler if rule.info.mode == "wrap" else "self"
            yield rule.cls_var_name, getattr(model, rule.cls_var_name), whole, instead
    for check in model.__pydantic_decorators__.field_validators.values():
        names = ", ".join(check.info.fields).replace("*", "all fields")
        instead = by_handler if check.info.mode == "wrap" else "the value"
        yield check.cls_var_name, getattr(model, check.cls_var_name), f"the value of {names}", instead
    for name, field in model.model_fields.items():
        for one in field.metadata:
            if isinstance(one, AfterValidator | BeforeValidator | PlainValidator | WrapValidator):
                instead = by_handler if isinstance(one, WrapValidator) else "the value"
                yield f"{name}'s validator", one.func, "its value", instead


def _returns_nothing(function: Any) -> bool:
    """Whether each return of a function is one of None. False where that does not show: it is no plain one of Python's,
    or only ever raises.
    """
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None or code.co_flags & _MAKES_OTHERS:
        return False
    steps = [*dis.get_instructions(code)]
    ends = [_is_of_none(before, step) for before, step in pairwise(steps) if "RETURN" in step.opname]
    return bool(ends) and all(ends)


def _is_of_none(before: dis.Instruction, step: dis.Instruction) -> bool:
    if step.opname == "RETURN_CONST":  # of 3.12 and 3.13
        return step.argval is None
    loads_none = before.opname == "LOAD_CONST" and before.argval is None
    return step.opname == "RETURN_VALUE" and loads_none and not step.is_jump_target


class Rules:
    """The rules of a model that say which fields they look at, asked with these alone: at half of the cost of
    validating all of it, and less where the others are large.
    """

    def __init__(self, model: type[Entity], concern: frozenset[str] | None, *, alone: bool) -> None:
        """Not `alone`: they cannot be asked so, because what they look at may be made anew each time."""
        self._model = model
        self._concern = concern or frozenset()
        self._alone = alone
        self._validator: SchemaValidator | None = None

    def hold(self, values: Mapping[str, Any]) -> bool:
        """Whether they do, of the fields of a whole entity. False also where only validating all of it tells: where a
        rule looks at more than it says, for one.
        """
        if not self._alone:
            return False
        if self._validator is None:
            self._validator = SchemaValidator(_narrow(self._model.__pydantic_core_schema__, self._concern))
        try:
            self._validator.validate_python({name: values[name] for name in self._concern if name in values})
        except Exception:  # a rule is code of the user's, and meets an entity without its other fields
            return False
        return True


def _narrow(schema: Any, names: frozenset[str]) -> Any:
    """A model's core schema with these fields only."""
    if schema["type"] == "model-fields":
        return {**schema, "fields": {name: field for name, field in schema["fields"].items() if name in names}}
    return {**schema, "schema": _narrow(schema["schema"], names)}
