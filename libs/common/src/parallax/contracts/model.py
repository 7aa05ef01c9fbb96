"""The strict base of every message and document, how others' are read, and the constrained strings they are made of.

Writers are strict, and so are the documents that users send: a misspelt key is a mistake that its author must see.
What one service wrote for another is read with :func:`read`, which ignores what a newer version added.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

M = TypeVar("M", bound=BaseModel)

MAX_NAME_LENGTH = 128
"""Bound on ids chosen by users: they become part of keys, log lines and table cells."""


class Strict(BaseModel):
    """An immutable document that refuses unknown fields and converts nothing silently.

    Infinity and NaN are refused where a number is meant: JSON has neither, and would say ``null`` instead.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


READING: Final[Mapping[str, bool]] = {"reading": True}
"""The validation context of what another service wrote, perhaps in a newer version."""


def read(model: type[M], body: bytes | str) -> M:
    """The document that another service wrote, in this version or another one: fields it adds are ignored at any depth.

    Raises:
        pydantic.ValidationError: The body is not such a document.
    """
    return model.model_validate_json(body, extra="ignore", context=READING)


def read_document(model: type[M], document: object) -> M:
    """The same for a document that the database has parsed already.

    Raises:
        pydantic.ValidationError: It is not such a document.
    """
    return model.model_validate(document, strict=False, extra="ignore", context=READING)


def unknown_as(substitute: str) -> WrapValidator:
    """Marks a field whose unknown values readers take for ``substitute``, because that does no harm.

    Every other field with a closed set of values makes its message unreadable to older versions when a value is
    added: there a new value is a new version of the message.
    """

    def validate(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return handler(value)
        except ValidationError:
            if info.context is READING and isinstance(value, str):
                return substitute
            raise

    return WrapValidator(validate)


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME_LENGTH)]
"""An id chosen by a user: letters, digits, dot, underscore and dash, at most 128 characters."""

JobId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=80)]
"""The id of a job: lower-case letters, digits and dashes, at most 80 characters."""

RegionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=32)]
"""A region's name in the catalog; it is part of a queue's name."""

Version = Literal[1]
"""The version of every message; it counts incompatible changes."""

Timestamp = AwareDatetime
"""A moment with its UTC offset."""


def utc_text(moment: datetime) -> str:
    """The moment as RFC 3339 text, for logs and hashes."""
    return moment.isoformat()
