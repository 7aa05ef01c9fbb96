"""Drop the functions that revision 0002 once made: services call those whose names carry a version."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

FUNCTIONS = (
    "record(jsonb, jsonb, jsonb, timestamptz)",
    "fill_batches(jsonb, timestamptz, results.events[])",
    "lock_batches(jsonb)",
    "append_events(results.events[])",
)


def upgrade() -> None:
    """Drop them."""
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION IF EXISTS results.{function}")
