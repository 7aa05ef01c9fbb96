"""Keys of the API: made once, shown once, kept only as a hash, and never deleted but revoked.

A key reads ``plx_<key id>_<secret>``. The id finds the row; the hash of the whole key is compared in constant
time. The secret has 256 random bits, so a plain SHA-256 is as good as a slow hash and costs a request nothing.
"""

import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from parallax.db.engine import transaction
from parallax.errors import InvalidInputError
from results.api.queries.reading import reading
from results.tables import api_keys

_KEY: Final = re.compile(r"plx_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_LAST_USED_STEP: Final = timedelta(minutes=1)
"""How exact ``last_used_at`` is: not every request of a busy key writes to its row."""
MAX_LABEL_CHARS: Final = 200


class Scope(StrEnum):
    """What a key allows. Every key reads; ``admin`` allows everything."""

    READ = "read"
    SUBMIT = "submit"
    CANCEL = "cancel"
    ADMIN = "admin"

    def allows(self, wanted: "Scope") -> bool:
        """Whether a key of this scope may do what needs ``wanted``."""
        return self is Scope.ADMIN or wanted in {Scope.READ, self}


class Key(NamedTuple):
    """A key without its secret."""

    key_id: str
    label: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class Refused(NamedTuple):
    """Why a key opens nothing: ``malformed``, ``unknown``, ``revoked`` or ``expired``."""

    reason: str


_COLUMNS: Final = tuple(api_keys.c[name] for name in Key._fields)


async def create(
    engine: AsyncEngine, scope: Scope, *, now: datetime, label: str = "", lifetime: timedelta | None = None
) -> str:
    """Make a key and return it. It cannot be shown again.

    Raises:
        InvalidInputError: The label is too long or holds what no database stores, or the lifetime is not positive.
    """
    if len(label) > MAX_LABEL_CHARS or not label.isprintable():
        raise InvalidInputError(f"the label of a key is at most {MAX_LABEL_CHARS} printable characters")
    if lifetime is not None and lifetime <= timedelta(0):
        raise InvalidInputError("the lifetime of a key is longer than nothing")
    key_id = secrets.token_hex(6)
    key = f"plx_{key_id}_{secrets.token_urlsafe(32)}"
    values = {
        "key_id": key_id,
        "label": label,
        "secret_hash": _hash(key),
        "scope": scope.value,
        "created_at": now,
        "expires_at": None if lifetime is None else now + lifetime,
    }
    async with transaction(engine) as connection:
        await connection.execute(insert(api_keys).values(values))
    return key


async def listed(engine: AsyncEngine) -> list[Key]:
    """Every key, the newest first."""
    async with reading(engine) as connection:
        found = await connection.execute(select(*_COLUMNS).order_by(api_keys.c.created_at.desc(), api_keys.c.key_id))
        return [Key(**{**row, "scope": Scope(row["scope"])}) for row in found.mappings()]


async def revoke(engine: AsyncEngine, key_id: str, *, now: datetime) -> bool:
    """Make a key useless at once; false when there is none of this id. Repeating it changes nothing."""
    async with transaction(engine) as connection:
        result = await connection.execute(
            text("UPDATE results.api_keys SET revoked_at = coalesce(revoked_at, :now) WHERE key_id = :key_id"),
            {"now": now, "key_id": key_id},
        )
    return bool(result.rowcount)


async def expire(engine: AsyncEngine, key_id: str, *, at: datetime) -> bool:
    """Let a key end at a moment, or end sooner than it would; false when there is none of this id."""
    async with transaction(engine) as connection:
        result = await connection.execute(
            text("UPDATE results.api_keys SET expires_at = least(coalesce(expires_at, :at), :at) WHERE key_id = :id"),
            {"at": at, "id": key_id},
        )
    return bool(result.rowcount)


async def any_usable(engine: AsyncEngine, *, now: datetime) -> bool:
    """Whether anybody could use the API at all."""
    async with reading(engine) as connection:
        found = await connection.execute(
            text(
                "SELECT EXISTS (SELECT FROM results.api_keys"
                " WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > :now))"
            ),
            {"now": now},
        )
        return bool(found.scalar_one())


async def verify(engine: AsyncEngine, key: str, *, now: datetime) -> Key | Refused:
    """The row of a key that opens something, or why it does not."""
    parsed = _KEY.fullmatch(key)
    if parsed is None:
        return Refused("malformed")
    async with reading(engine) as connection:
        found = await connection.execute(
            select(api_keys.c.secret_hash, *_COLUMNS).where(api_keys.c.key_id == parsed.group(1))
        )
        record = found.mappings().one_or_none()
        stored = bytes(32) if record is None else bytes(record["secret_hash"])
        if not hmac.compare_digest(stored, _hash(key)) or record is None:
            return Refused("unknown")
        if record["revoked_at"] is not None:
            return Refused("revoked")
        if record["expires_at"] is not None and record["expires_at"] <= now:
            return Refused("expired")
        await _note_use(connection, record["key_id"], record["last_used_at"], now)
        return Key(**{**{name: record[name] for name in Key._fields}, "scope": Scope(record["scope"])})


async def _note_use(connection: AsyncConnection, key_id: str, last: datetime | None, now: datetime) -> None:
    if last is None or now - last >= _LAST_USED_STEP:
        await connection.execute(update(api_keys).where(api_keys.c.key_id == key_id).values(last_used_at=now))


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
