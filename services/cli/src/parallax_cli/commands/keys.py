"""``keys``: who may use the API of a running installation."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import typer

from parallax.errors import InvalidInputError
from parallax_cli.connect import Target
from parallax_cli.console import stderr, stdout
from parallax_cli.exits import guarded
from parallax_cli.logs import log_nothing
from parallax_cli.options import AsJson
from parallax_cli.tables import keys_table

T = TypeVar("T")

SCOPES = ("read", "submit", "cancel", "admin")

keys = typer.Typer(
    help="Make, list and revoke keys of the API (needs PARALLAX_DATABASE_URL).",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KeyId = Annotated[str, typer.Argument(help="Id of the key, as `keys list` shows it.", show_default=False)]


@keys.command()
@guarded
def create(
    *,
    scope: Annotated[str, typer.Option(help=f"What it allows: {', '.join(SCOPES)}; every key reads.")],
    label: Annotated[str, typer.Option(help="Whose it is.")] = "",
    days: Annotated[float | None, typer.Option(help="Days until it expires; never when left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. Only a hash is kept: it cannot be shown again."""
    from results.api import keys as stored  # noqa: PLC0415 - brings the database along

    if scope not in SCOPES:
        raise InvalidInputError(f"--scope {scope}: allowed: {', '.join(SCOPES)}")
    lifetime = timedelta(days=days) if days is not None else None
    chosen = stored.Scope(scope)
    key = _with_database(
        lambda engine: stored.create(engine, chosen, now=datetime.now(UTC), label=label, lifetime=lifetime)
    )
    if as_json:
        typer.echo(json.dumps({"key": key, "scope": scope, "label": label}))
        return
    stderr().print("keep it safe, it is not shown again:", soft_wrap=True)
    stdout().print(key, soft_wrap=True)


@keys.command("list")
@guarded
def list_keys(*, as_json: AsJson = False) -> None:
    """List keys, newest first, without their secrets."""
    from results.api import keys as stored  # noqa: PLC0415 - as above

    found = _with_database(stored.listed)
    if as_json:
        typer.echo(json.dumps([key._asdict() for key in found], default=str))
    else:
        stdout().print(keys_table(found))


@keys.command()
@guarded
def revoke(key_id: KeyId) -> None:
    """Make a key useless at once."""
    from results.api import keys as stored  # noqa: PLC0415 - as above

    if not _with_database(lambda engine: stored.revoke(engine, key_id, now=datetime.now(UTC))):
        raise InvalidInputError(f"there is no key {key_id!r}; `parallax keys list` lists them")
    stdout().print(f"key {key_id} is revoked", soft_wrap=True)


@keys.command()
@guarded
def expire(key_id: KeyId, *, days: Annotated[float, typer.Option(help="Days from now.", min=0)]) -> None:
    """Let a key end some days from now, or sooner than it would."""
    from results.api import keys as stored  # noqa: PLC0415 - as above

    moment = datetime.now(UTC) + timedelta(days=days)
    if not _with_database(lambda engine: stored.expire(engine, key_id, at=moment)):
        raise InvalidInputError(f"there is no key {key_id!r}; `parallax keys list` lists them")
    stdout().print(f"key {key_id} ends at {moment:%Y-%m-%d %H:%M} UTC", soft_wrap=True)


def _with_database(work: Callable[[Any], Awaitable[T]]) -> T:
    from parallax.db.engine import create_engine  # noqa: PLC0415 - as above
    from parallax.db.migrations import check  # noqa: PLC0415
    from parallax.process import required  # noqa: PLC0415

    log_nothing()
    url = required(Target().environment, "PARALLAX_DATABASE_URL", "postgresql://USER@HOST/NAME")

    async def run() -> T:
        engine = create_engine(url, application_name="parallax keys", pool_size=1)
        try:
            await check(engine, package="results", schema="results")
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(run())
