"""One registered model, a `Kind`: its name, its fields, and how a change of it is validated, stored and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from solewriter.shared.config import COLUMNS_MAX
from solewriter.shared.entity import Entity, Lifecycle
from solewriter.shared.errors import InvalidMutation, SchemaMismatch
from solewriter.shared.kinds.blocklayout import BlockLayout
from solewriter.shared.kinds.columns import column_of, earlier_names, from_us, values_of
from solewriter.shared.kinds.defaults import keep_numbers, other_numbers, stored_default
from solewriter.shared.kinds.enginefields import refuse_own, refuse_unlike
from solewriter.shared.kinds.fieldtypes import all_parts, models_in, refuse_unsuitable, with_moments
from solewriter.shared.kinds.payload import (
    decode,
    differing_fields,
    encode,
    is_alike,
    spans_of,
    without_bytes,
)
from solewriter.shared.kinds.rules import Rules, concern_of, is_plain, made_anew, recasts, refuse_forgetful
from solewriter.shared.kinds.schema import Schema, shape_of
from solewriter.shared.kinds.validation import (
    NoEntity,
    field_adapter,
    no_such_field,
    problems,
    problems_of_field,
    validator_failure,
)
from solewriter.shared.models import COORDINATED, Task
from solewriter.shared.readiness import DEPENDS

_SAME_IF_EQUAL: Final = frozenset({str, int, bool, bytes})  # not so (1,) and (True,), 0.0 and -0.0, Decimal 1 and 1.00
_NO_DEFAULT: Final = object()
_NOTHING: Final = encode({})
STAMPS: Final = ("created_by", "created_at", "updated_at")  # filled in by the engine where a model declares them
IN_HEADER: Final = frozenset({"id", "version", "updated_at"})


class Kind:
    """One registered model. Raises TypeError, naming the field, for a model that cannot be stored."""

    def __init__(self, model: type[Entity]) -> None:
        model.model_rebuild()
        refuse_unsuitable(model)
        refuse_own(model)
        refuse_forgetful(model, *all_parts(model))
        if issubclass(model, Task):
            refuse_unlike(model, Task, COORDINATED)
        self.model = model
        self.name = model.kind_name
        self.lifecycle: Lifecycle | None = model.lifecycle
        self.stamps = frozenset(name for name in STAMPS if name in model.model_fields)
        status = {self.lifecycle.field} if self.lifecycle else set()
        self.claimable = issubclass(model, Task)
        claims = {"attempts", "claim"} if self.claimable else set[str]()
        self.fixed = frozenset({"id", "version", *self.stamps, *status, *claims})  # no update sets these
        if len(model.column_names) > COLUMNS_MAX:
            raise TypeError(f"{self.name} declares more than {COLUMNS_MAX} columns")
        self.columns = tuple(column_of(model, name) for name in model.column_names)
        self.parts = all_parts(model)  # the classes inside its fields
        self.holders = frozenset(name for name in model.model_fields if any(models_in(model, name)))  # of parts
        self.moments = with_moments(model)  # fields that hold some
        self.made_anew = made_anew(model) - IN_HEADER  # fields whose default may be another one each time
        self.parts_made_anew = any(map(made_anew, self.parts))
        self._defaults = {
            name: field.get_default()
            for name, field in model.model_fields.items()
            if not field.is_required() and field.default_factory is None and name not in IN_HEADER
        }
        self.other_numbers = other_numbers(model, self._defaults)
        self.layout = BlockLayout(self.name, self.columns, self._defaults)
        self._stored_names = frozenset(model.model_fields) - IN_HEADER
        self._stored_defaults = [
            (name, self._defaults.get(name, _NO_DEFAULT)) for name in model.model_fields if name not in IN_HEADER
        ]
        self._earlier_names = [(name, was) for name in model.model_fields if (was := earlier_names(model, name))]
        self._earlier_stamps = [name for name, was in self._earlier_names if "updated_at" in was]
        stored_defaults = {name: stored_default(model, name, default) for name, default in self._defaults.items()}
        self.schema = Schema(
            0, 0, self.name, self.columns, stored_defaults, "updated_at" in self.stamps, shape_of(model)
        )
        self._concern = concern_of(model)  # fields that its rules look at; None: each change validates everything
        self.recasts = recasts(model, self._concern)  # its code may make other values of those that it made
        self._rules = Rules(model, self._concern, alone=not self.recasts)
        # of tasks: whether they may depend on what no request names, by code of the class or by a default
        self.may_link = self.claimable and (self.recasts or bool(self._defaults.get("dependencies", True)))
        self.checks_fields = not model.__pydantic_decorators__.field_validators and self._concern is not None
        self._field_validators: dict[str, Callable[[Any], Any]] = {}
        self._plain_fields: frozenset[str] | None = None  # made at the first update
        self._orders: dict[str, tuple[Any, ...] | None] = {}  # likewise of those that were asked for
        self._digest = self.schema.digest()
        self.schema_id = self._digest.hex()  # as a request says of which class a whole entity is
        self._same_as_ours, self._others = self.schema, dict[bytes, dict[str, Any]]()  # see `_other_defaults`

    @property
    def plain_fields(self) -> frozenset[str]:
        """The fields that can be changed by themselves, and whose validation runs nobody's code; of tasks, none that
        decides what they wait for.
        """
        found = self._plain_fields
        if found is None:
            free = frozenset[str]() if self._concern is None else self._stored_names - self._concern - self.fixed
            if self.claimable:
                free -= DEPENDS
            plain = [name for name in free if is_plain(field_adapter(self.model, name).core_schema)]
            found = self._plain_fields = frozenset(plain)
        return found

    def order_of(self, name: str) -> tuple[Any, ...] | None:
        """The values of a field in their order, where the order is not their own: of an enum's, and of literals."""
        if name not in self._orders:
            self._orders[name] = values_of(self.model, name)
        return self._orders[name]

    def fixed_because(self, name: str) -> str:
        """Why one of the `fixed` fields cannot be updated."""
        if self.lifecycle is not None and name == self.lifecycle.field:
            return "changes by a transition only"
        return "never changes" if name in ("id", "created_by", "created_at") else "is set by the engine"

    # --- building ----------------------------------------------------------------------------------------------------

    def validate(self, values: Mapping[str, Any]) -> Entity:
        """A whole entity from plain values. Raises InvalidMutation."""
        try:
            made: Entity = self.model.__pydantic_validator__.validate_python(values)
            if not isinstance(made, self.model):
                raise NoEntity(made)
        except ValidationError as error:
            raise problems(error) from None
        except Exception as error:
            raise validator_failure(self.name, error) from error
        return made

    def change_fields(
        self, stored: Mapping[str, Any], changes: Mapping[str, Any], header: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The stored fields of a valid entity with some of them replaced, validated. Raises InvalidMutation.

        `header` is what the record says itself (id, version, updated_at). Validating the changed fields alone, and then
        the rules that concern them, is the same as validating everything, and costs a tenth where there are none.
        """
        if self._concern is None:
            return self.stored_fields(self.validate({**stored, **changes, **header()}), stored)
        merged = dict(stored)
        if self._concern.isdisjoint(changes) or self._rules.hold(whole := {**stored, **changes, **header()}):
            for name, value in changes.items():
                self.keep(merged, name, self.field(name, value))
        else:
            made = self.validate(whole).__dict__
            for name in changes:
                self.keep(merged, name, made[name])
        return keep_numbers(merged, stored, self.other_numbers) if self.other_numbers else merged

    def keep(self, stored: dict[str, Any], name: str, value: Any) -> None:
        """Put a valid value among the stored fields, or leave it out if it is the default."""
        default = self._defaults.get(name, _NO_DEFAULT)
        if value is default or (type(value) is type(default) and _is_stored_alike(value, default)):
            stored.pop(name, None)
        else:
            stored[name] = value

    def field(self, name: str, value: Any) -> Any:
        """One field's value, validated by that field alone. Raises InvalidMutation."""
        validate = self._field_validators.get(name)
        if validate is None:
            if name not in self.model.model_fields:
                raise no_such_field(self.name, name)
            validate = self._field_validators[name] = field_adapter(self.model, name).validator.validate_python
        try:
            return validate(value)
        except ValidationError as error:
            raise problems_of_field(self.name, name, error) from None

    def check_known(self, name: str, value: Any) -> Any:
        """The value itself, where fields cannot be validated one by one. Raises InvalidMutation for no field."""
        if name not in self.model.model_fields:
            raise no_such_field(self.name, name)
        return value

    def check_coordinated(self, stored: Mapping[str, Any]) -> None:
        """Raises InvalidMutation, or whatever a column does, where code of a class of tasks makes what the class does
        not say of a field by which the engine coordinates.
        """
        if self.claimable:
            for name in COORDINATED:
                if name in stored:
                    self.field(name, stored[name])
        self.layout.cut(stored, "", 0, 0)

    def payload(self, stored: Mapping[str, Any]) -> bytes:
        """The bytes of the stored fields. Raises InvalidMutation, naming the field, for what has no bytes."""
        try:
            return encode(stored)
        except (OverflowError, UnicodeEncodeError):
            raise without_bytes(self.name, stored) from None

    def read_back(self, key: str, version: int, time_us: int, payload: bytes, before: bytes) -> bytes:
        """What `recasts` need before they are stored: what is read is validated again, and what is not as it was
        `before` has to stay what it is. The payload itself, or with numbers as they are read: those of a part's default
        may be written as others. Raises InvalidMutation.
        """
        altered = set(differing_fields(payload, before or _NOTHING))
        try:
            made = self.validate(self._whole(decode(payload), key, version, time_us))
        except InvalidMutation as error:
            if self._concern is not None and altered.isdisjoint(name.partition(".")[0] for name in error.fields):
                return payload  # of what was stored before, by a class that took it
            raise InvalidMutation(f"{self.name} could not be read back: {error}", fields=error.fields) from error
        if self._concern is None:  # all of it was validated: what is left out as a default is its result, too
            altered |= self._stored_names.difference(spans_of(payload))
        again = self.payload(self.stored_fields(made))
        names = [name for name in differing_fields(payload, again) if name in altered]
        if not names:
            return payload
        held, read = spans_of(payload), spans_of(again)
        absent: dict[str, Any] = {name: encode(default) for name, default in self.schema.defaults.items()}
        both = absent | held, absent | read
        others = [name for name in names if not is_alike(*(decode(one.get(name, _NOTHING)) for one in both))]
        if others:
            fields = dict.fromkeys(others, "its validator makes something else of its own result")
            raise InvalidMutation(f"{self.name} would be read back with other {', '.join(others)}", fields=fields)
        kept = {name: span for name, span in held.items() if name not in names}
        return self.payload(kept | {name: read[name] for name in names if name in read})

    def replace_fields(self, payload: bytes, changes: Mapping[str, Any]) -> tuple[bytes, Mapping[str, Any]]:
        """The payload with other values of some fields, each validated by itself; and all of its fields, the others as
        bytes: to copy these costs half of taking them apart. Raises InvalidMutation.
        """
        spans = spans_of(payload)
        for name, value in changes.items():
            self.keep(spans, name, self.field(name, value))
        if self.other_numbers:
            keep_numbers(spans, spans_of(payload), self.other_numbers)
        return self.payload(spans), spans

    def fields_of(self, schema: Schema, payload: bytes) -> dict[str, Any]:
        """The stored fields of a record, as plain values. Those of an older schema keep the defaults of their time."""
        values: dict[str, Any] = decode(payload)
        if schema is not self._same_as_ours and (others := self._other_defaults(schema)) is not None:
            stored = {**others, **values}
            values = {name: value for name, value in stored.items() if name in self.model.model_fields}
            for name, earlier in self._earlier_names:
                if (
                    name not in values
                    and name not in schema.defaults
                    and (found := next((one for one in earlier if one in stored), None))
                ):
                    values[name] = stored[found]
        return values

    def stored_fields(self, entity: Entity, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The fields that a payload holds, of an entity from anywhere: those that differ from their defaults; and from
        what was stored `before`.
        """
        values, stored = entity.__dict__, {}
        for name, default in self._stored_defaults:
            value = values.get(name, default)
            if value is not default and (type(value) is not type(default) or not _is_stored_alike(value, default)):
                stored[name] = value
        return stored if before is None else keep_numbers(stored, before, self.other_numbers)

    # --- reading -----------------------------------------------------------------------------------------------------

    def decode_entity(self, schema: Schema, key: str, version: int, time_us: int, payload: bytes) -> Entity:
        """The entity of a record, validated. Records of an older schema keep the defaults of their time."""
        values = self._whole(self.fields_of(schema, payload), key, version, time_us)
        if self._earlier_stamps and schema.stamped:  # which was in no payload
            for name in self._earlier_stamps:
                if name not in schema.defaults:
                    values.setdefault(name, from_us(time_us))
        try:
            made: Entity = self.model.__pydantic_validator__.validate_python(values)
            if not isinstance(made, self.model):
                raise NoEntity(made)
        except ValidationError as error:
            raise SchemaMismatch(
                f"{self.name} {key!r} was stored under another shape of its class: {problems(error)}", kind=self.name
            ) from None
        except Exception as error:
            raise SchemaMismatch(
                f"{self.name} {key!r} cannot be made of what is stored: {validator_failure(self.name, error)}",
                kind=self.name,
            ) from error
        return made

    def _whole(self, values: dict[str, Any], key: str, version: int, time_us: int) -> dict[str, Any]:
        """What an entity is made of when it is read: its stored fields, and what its record says itself."""
        values["id"] = key
        values["version"] = version
        if "updated_at" in self.stamps:
            values["updated_at"] = from_us(time_us)  # the time of its newest record
        return values

    def _other_defaults(self, schema: Schema) -> dict[str, Any] | None:
        """The defaults of a stored schema that are not those of the class here, None if all of it is the same. Others
        stay out: no default was ever validated. Remembered, because it is asked at every decode.
        """
        digest = schema.digest()
        if digest == self._digest:
            self._same_as_ours = schema
            return None
        found = self._others.get(digest)
        if found is None:
            ours = self.schema.defaults
            found = self._others[digest] = {
                name: value
                for name, value in schema.defaults.items()
                if name not in ours or encode(value) != encode(ours[name])
            }
        return found


def _is_stored_alike(value: Any, default: Any) -> bool:
    """Whether two values of one type are."""
    if value != default:
        return bool(default != default and value != value)  # NaN, which a class may have and its field not take
    return type(value) in _SAME_IF_EQUAL or bool(encode(value) == encode(default))
