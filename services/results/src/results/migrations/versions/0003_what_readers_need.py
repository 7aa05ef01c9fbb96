"""Tell at once whether a fact of a job was replaced; an index of names that no query uses any more goes.

The index holds only what was replaced, which is little: a new fact has nothing to do with it.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the one index, drop the other."""
    op.execute("CREATE INDEX executions_replaced ON results.executions (job_id) WHERE replaced_status IS NOT NULL")
    op.execute("DROP INDEX results.jobs_by_name")


def downgrade() -> None:
    """The other way round."""
    op.execute("CREATE INDEX jobs_by_name ON results.jobs (name, created_at, job_id)")
    op.execute("DROP INDEX results.executions_replaced")
