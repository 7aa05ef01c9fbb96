"""What the writer does under the locks of its batches, as functions: one call, and one round trip, per flush.

Their names carry a version: a change of text, arguments or answer that services of two versions would not both take
is a new function beside the old one, which a later contract revision drops. None of them mentions the type of a
table's rows, so that a table may get a column.
"""

from parallax.db.operations import run_sql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

FUNCTIONS = ("append_events_v1", "lock_batches_v1", "fill_batches_v1", "record_v1")


def upgrade() -> None:
    """Create them."""
    for function in FUNCTIONS:
        run_sql("results", f"{function}.sql")
