"""Tell at once whether a fact of a job was replaced; an index of names that no query uses any more goes.

The index holds only what was replaced, which is little: a new fact has nothing to do with it. It is built while the
ledger is written.
"""

from parallax.db.operations import create_index, drop_index

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the one index, drop the other."""
    create_index("results", "executions_replaced", "results.executions (job_id) WHERE replaced_status IS NOT NULL")
    drop_index("results", "jobs_by_name")
