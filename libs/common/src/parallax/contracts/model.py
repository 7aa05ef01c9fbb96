"""The strict base of every message and document, and the constrained strings they are made of."""

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints

MAX_NAME_LENGTH = 128
"""Bound on ids chosen by users: they become part of keys, log lines and table cells."""


class Strict(BaseModel):
    """An immutable document that refuses unknown fields and converts nothing silently.

    Infinity and NaN are refused where a number is meant: JSON has neither, and would say ``null`` instead.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME_LENGTH)]
"""An id chosen by a user: letters, digits, dot, underscore and dash, at most 128 characters."""

JobId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=80)]
"""The id of a job: lower-case letters, digits and dashes, at most 80 characters."""

RegionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=32)]
"""A region's name in the catalog; it is part of a queue's name."""

Timestamp = AwareDatetime
"""A moment with its UTC offset."""


def utc_text(moment: datetime) -> str:
    """The moment as RFC 3339 text, for logs and hashes."""
    return moment.isoformat()
