"""Once created the functions of a flush under names without a version; revision 0004 creates those in use today.

Nothing is left to do. Databases that were made with this revision keep it, and revision 0007 drops what it made.
"""

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Do nothing."""
