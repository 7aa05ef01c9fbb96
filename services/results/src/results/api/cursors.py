"""Opaque cursors of keyset pages: where the last page ended, bound to the question that was asked.

A cursor is base64url over a JSON array ``[version, fingerprint, key...]``. It is not a secret and holds nothing
but values of rows its reader has seen; it is checked like any other input.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar, get_type_hints

from results.api.problems import ApiError, Kind, Place

MAX_CURSOR_CHARS: Final = 2_000
_VERSION: Final = 1

Key = TypeVar("Key", bound=tuple[Any, ...])


def encode(key: tuple[object, ...], filters: Mapping[str, object]) -> str:
    """The cursor behind a row, usable with the same filters only. Moments travel as ISO text."""
    parts = [part.isoformat() if isinstance(part, datetime) else part for part in key]
    document = json.dumps([_VERSION, _fingerprint(filters), *parts], separators=(",", ":"))
    return base64.urlsafe_b64encode(document.encode()).decode().rstrip("=")


def decode(cursor: str | None, filters: Mapping[str, object], key: type[Key]) -> Key | None:
    """The key in a cursor: a named tuple of ``str``, ``int`` and ``datetime``; ``None`` without a cursor.

    Raises:
        ApiError: It is not a cursor, or one of another listing or other filters.
    """
    if cursor is None:
        return None
    kinds = list(get_type_hints(key).values())
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        document = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise _invalid("it was not made by this service") from error
    if not isinstance(document, list) or document[:1] != [_VERSION] or len(document) != len(kinds) + 2:
        raise _invalid("it was not made for this listing")
    if document[1] != _fingerprint(filters):
        raise _invalid("it was made with other filters; start again without a cursor")
    made: Callable[..., Key] = key
    return made(*(_part(value, kind) for value, kind in zip(document[2:], kinds, strict=True)))


def _part(value: object, kind: object) -> object:
    if kind is datetime and isinstance(value, str):
        return _moment(value)
    if kind is int and type(value) is int and abs(value) < 2**31:
        return value
    if kind is str and isinstance(value, str) and value.isprintable():
        return value
    raise _invalid("it was not made for this listing")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise _invalid("it was not made for this listing") from error
    if moment.tzinfo is None or not 1 < moment.year < 9999:
        raise _invalid("it was not made for this listing")
    return moment


def _fingerprint(filters: Mapping[str, object]) -> str:
    document = json.dumps({name: str(value) for name, value in filters.items()}, sort_keys=True)
    return hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _invalid(message: str) -> ApiError:
    place = Place(message=message, parameter="cursor", allowed="the value of next_cursor, as it was given")
    return ApiError(Kind.INVALID_CURSOR, f"cursor: {message}", errors=[place])
