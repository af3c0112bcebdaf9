"""What pydantic does for a kind, where it is not on the way of every change: one field's validation by itself, and what
it finds wrong, told as refusals that name the fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, TypeAdapter, ValidationError

from solewriter.shared.config import PROBLEM_MAX, PROBLEMS_MAX
from solewriter.shared.errors import InvalidMutation, clean, in_words, safe_repr

NO_SUCH_FIELD: Final = "no such field"


def field_adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    """What validates one field by itself, as its model declares it."""
    field = model.model_fields[name]
    annotated: Any = field.annotation
    for item in field.metadata:
        annotated = Annotated[annotated, item]
    config = None if _is_model(field.annotation) else model.model_config
    return TypeAdapter(annotated, config=config)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def problems(error: ValidationError) -> InvalidMutation:
    """pydantic's findings as a refusal: each failing field and what is wrong with it."""
    fields: dict[str, str] = {}
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(step) for step in item["loc"]) or str(item.get("ctx", {}).get("field", "entity"))
        fields.setdefault(clean(where, 200), clean(item["msg"], PROBLEM_MAX))
        if len(fields) == PROBLEMS_MAX:
            break
    listed = "; ".join(f"{name}: {problem}" for name, problem in fields.items())
    return InvalidMutation(f"{error.title}: {listed}", fields=fields)


def problems_of_field(kind: str, name: str, error: ValidationError) -> InvalidMutation:
    """The same of a field that was validated by itself."""
    found = problems(error).fields
    named = {name if where == "entity" else f"{name}.{where}": problem for where, problem in found.items()}
    return InvalidMutation(f"{kind}.{name}: {next(iter(found.values()))}", fields=named)


class NoEntity(Exception):
    """What a model's own validator returned in its place, which pydantic hands on: None, without a `return`."""

    def __init__(self, made: object) -> None:
        super().__init__(f"its validator returned {safe_repr(made)}, and not the entity")


def validator_failure(kind: str, error: Exception) -> InvalidMutation:
    """A validator of the user's that raised what pydantic does not take for an answer, a TypeError say."""
    problem = clean(str(error) if type(error) is NoEntity else f"its validator raised {in_words(error)}", PROBLEM_MAX)
    return InvalidMutation(f"{kind}: {problem}", fields={"entity": problem})


def no_changes(given: Any) -> TypeError:
    """The error for what is no mapping from fields to what becomes of them."""
    return TypeError(
        f"changes are a mapping, by the names of fields, not {safe_repr(given)}: a target is an entity or a Ref, such "
        "as Task.ref(id)"
    )


def no_such_field(kind: str, name: str) -> InvalidMutation:
    return InvalidMutation(f"{kind} has no field {safe_repr(name)}", fields={name: NO_SUCH_FIELD})
