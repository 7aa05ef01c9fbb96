"""Runs Alembic, apart from everything else because of its size: 12 MB that only a migration needs."""

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text


def apply(connection: Connection, folder: Path, schema: str, number: str) -> None:
    """Run one revision of ``folder``/versions and commit it together with the schema's new number.

    The connection must be in no transaction: parts of a revision may have to run outside of one.
    """
    with connection.begin():
        connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)

    def to_revision(current: Any, _context: Any) -> Any:
        return script._upgrade_revs(number, current)  # noqa: SLF001 - Alembic's own documented recipe

    with EnvironmentContext(config, script, fn=to_revision) as environment:
        environment.configure(connection=connection, version_table_schema=schema, transaction_per_migration=True)
        environment.run_migrations()
