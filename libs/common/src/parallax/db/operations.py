"""What revisions are made of, beside Alembic's own operations: changes that do not stop those who use the schema."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

from alembic import op
from sqlalchemy import text

_VALID = text("""
    SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relname = :name AND c.relnamespace = to_regnamespace(:schema)
""")


def run_sql(package: str, name: str) -> None:
    """Run the one statement of a file in ``package``/migrations/sql."""
    statement = (files(package) / "migrations" / "sql" / name).read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statement)


def create_index(schema: str, name: str, on: str) -> None:
    """Build an index while its table is read and written. What the revision did before is committed.

    Idempotent: an index that is there is left alone, and one that an earlier try left unfinished is built again.
    """
    with _waiting_outside_a_transaction():
        valid = op.get_bind().execute(_VALID, {"schema": schema, "name": name}).scalar_one_or_none()
        if valid is False:
            op.execute(f"DROP INDEX CONCURRENTLY {schema}.{name}")
        if not valid:
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {on}")


def drop_index(schema: str, name: str) -> None:
    """Drop an index while its table is read and written. What the revision did before is committed. Idempotent."""
    with _waiting_outside_a_transaction():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {schema}.{name}")


@contextmanager
def _waiting_outside_a_transaction() -> Iterator[None]:
    """Concurrent statements wait for transactions that may be long, and nobody waits for them meanwhile: no limit."""
    with op.get_context().autocommit_block():
        limit = op.get_bind().execute(text("SHOW lock_timeout")).scalar_one()
        op.execute("SET lock_timeout = 0")
        try:
            yield
        finally:
            op.execute(f"SET lock_timeout = '{limit}'")
