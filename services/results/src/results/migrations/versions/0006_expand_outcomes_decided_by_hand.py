"""Keep what people decide about single answers: that one is a refusal, or is none, whatever the rules say."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table: every decision is a row of its own, so that its history stays."""
    op.execute(
        """
        CREATE TABLE results.judgements (
            number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            job_id text COLLATE "C" NOT NULL,
            execution_id uuid NOT NULL,
            outcome text,
            by_rules text NOT NULL,
            rules_version integer NOT NULL,
            author text NOT NULL,
            note text,
            at timestamptz NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX judgements_of_a_job ON results.judgements (job_id, execution_id, number)")
