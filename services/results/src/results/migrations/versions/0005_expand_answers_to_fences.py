"""Keep what executors answer to fences of inspections, and since when their heartbeats come without a gap."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that an older version need not fill."""
    op.execute("""
        ALTER TABLE results.executors
            ADD COLUMN fences jsonb NOT NULL DEFAULT '[]',
            ADD COLUMN steady_since timestamptz
    """)
