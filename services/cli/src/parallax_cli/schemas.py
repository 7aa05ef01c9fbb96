"""The schemas of an installation, and how this version's revisions get into them."""

from typing import Final

from parallax.db.engine import UNLIMITED, create_engine
from parallax.db.migrations import Phase, Revision, migrate, pending

SCHEMAS: Final = ("dispatcher", "results")
"""Each is named after the package that owns it."""


async def migrate_all(database_url: str, phase: Phase | None = None) -> tuple[Revision, ...]:
    """Run what is due in every schema, see :func:`parallax.db.migrations.migrate`; returns what was run."""
    engine = create_engine(database_url, application_name="parallax migrate", pool_size=1, limits=UNLIMITED)
    try:
        return tuple([r for name in SCHEMAS for r in await migrate(engine, package=name, schema=name, phase=phase)])
    finally:
        await engine.dispose()


async def pending_in_all(database_url: str) -> tuple[Revision, ...]:
    """What no schema has yet."""
    engine = create_engine(database_url, application_name="parallax migrate", pool_size=1, limits=UNLIMITED)
    try:
        return tuple([r for name in SCHEMAS for r in await pending(engine, package=name, schema=name)])
    finally:
        await engine.dispose()
