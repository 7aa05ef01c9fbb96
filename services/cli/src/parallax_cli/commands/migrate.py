"""``migrate``: the schemas of an installation, before and after a roll-out."""

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from parallax.errors import InvalidInputError
from parallax_cli.connect import Target
from parallax_cli.console import stdout
from parallax_cli.exits import guarded
from parallax_cli.logs import log_nothing
from parallax_cli.options import AsJson

if TYPE_CHECKING:
    from parallax.db.migrations import Phase, Revision


@guarded
def migrate(
    *,
    before: Annotated[bool, typer.Option("--before", help="Only what may run before a roll-out: it adds.")] = False,
    after: Annotated[bool, typer.Option("--after", help="Only what may run after a roll-out: it removes.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing, say what is due.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the schemas of the database at PARALLAX_DATABASE_URL to this version, while services use them.

    Without --before and --after both phases run: for a new database, or when no service runs.
    """
    from parallax_cli import schemas  # noqa: PLC0415 - brings the database along

    if before and after:
        raise InvalidInputError("--before and --after: one belongs before a roll-out, the other after it")
    phase = _phase(before=before, after=after)
    url = _database_url()
    log_nothing()
    applied = () if check else asyncio.run(schemas.migrate_all(url, phase))
    left = asyncio.run(schemas.pending_in_all(url))
    if as_json:
        typer.echo(json.dumps({"applied": _documents(applied), "pending": _documents(left)}))
        return
    out = stdout()
    for revision in applied:
        out.print(f"done: {revision}", soft_wrap=True)
    for revision in left:
        out.print(f"{'before' if revision.phase == 'expand' else 'after'} the roll-out: {revision}", soft_wrap=True)
    if not applied and not left:
        out.print("nothing to do", soft_wrap=True)


def _phase(*, before: bool, after: bool) -> "Phase | None":
    from parallax.db.migrations import Phase  # noqa: PLC0415 - as above

    return Phase.EXPAND if before else Phase.CONTRACT if after else None


def _database_url() -> str:
    from parallax.process import required  # noqa: PLC0415 - as above

    return required(Target().environment, "PARALLAX_DATABASE_URL", "postgresql://USER@HOST/NAME")


def _documents(revisions: "Sequence[Revision]") -> list[dict[str, str]]:
    return [revision._asdict() for revision in revisions]
