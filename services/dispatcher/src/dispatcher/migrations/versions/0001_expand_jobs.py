"""Jobs and their progress, their questions, and cancellations that came before their job."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A job's row is small whatever the number of its questions: advancing a batch reads and writes just this row.
# Fill factor: the row is updated with every batch, and room on the page keeps old versions out of the way.
_JOBS = """
CREATE TABLE dispatcher.jobs (
    id             text COLLATE "C" PRIMARY KEY,
    position       bigint GENERATED ALWAYS AS IDENTITY,
    content_sha256 bytea NOT NULL,
    accepted       jsonb NOT NULL,
    template       jsonb NOT NULL,
    state          jsonb NOT NULL,
    phase          text NOT NULL CHECK (phase IN ('queued', 'running', 'ending', 'finished')),
    due_at         timestamptz,
    finished       jsonb,
    accepted_at    timestamptz NOT NULL,
    changed_at     timestamptz NOT NULL,
    CHECK ((phase = 'finished') = (finished IS NOT NULL))
) WITH (fillfactor = 70)
"""

_JOBS_COMMENTS = (
    "COMMENT ON COLUMN dispatcher.jobs.position IS 'order of admission'",
    "COMMENT ON COLUMN dispatcher.jobs.content_sha256 IS 'tells a repeated submission from a conflicting one'",
    "COMMENT ON COLUMN dispatcher.jobs.accepted IS 'JobAccepted as announced, to say the same when asked again'",
    "COMMENT ON COLUMN dispatcher.jobs.template IS 'all that tasks are made from, save the question'",
    "COMMENT ON COLUMN dispatcher.jobs.state IS 'dispatcher.progress.Job'",
    "COMMENT ON COLUMN dispatcher.jobs.due_at IS 'when the reaper has to look at the job'",
    "COMMENT ON COLUMN dispatcher.jobs.finished IS 'JobFinished as announced'",
)

_JOBS_INDEXES = (
    "CREATE INDEX jobs_due ON dispatcher.jobs (due_at) WHERE due_at IS NOT NULL",
    "CREATE INDEX jobs_queued ON dispatcher.jobs (position) WHERE phase = 'queued'",
    "CREATE INDEX jobs_active ON dispatcher.jobs (id) WHERE phase IN ('running', 'ending')",
    "CREATE INDEX jobs_finished ON dispatcher.jobs (changed_at) WHERE phase = 'finished'",
)

_QUESTIONS = """
CREATE TABLE dispatcher.questions (
    job_id         text COLLATE "C" NOT NULL REFERENCES dispatcher.jobs ON DELETE CASCADE,
    question_index integer NOT NULL CHECK (question_index >= 0),
    id             text COLLATE "C" NOT NULL,
    text           text NOT NULL,
    tags           jsonb NOT NULL,
    metadata       jsonb NOT NULL,
    PRIMARY KEY (job_id, question_index),
    UNIQUE (job_id, id)
)
"""

# Only for jobs that ask for a part of their matrix; a batch without a row here has no executions.
_CHOSEN = """
CREATE TABLE dispatcher.chosen_batches (
    job_id         text COLLATE "C" NOT NULL REFERENCES dispatcher.jobs ON DELETE CASCADE,
    lane           text COLLATE "C" NOT NULL,
    question_index integer NOT NULL,
    size           integer NOT NULL CHECK (size > 0),
    cells          jsonb NOT NULL,
    PRIMARY KEY (job_id, lane, question_index)
)
"""

_TOMBSTONES = """
CREATE TABLE dispatcher.tombstones (
    job_id     text COLLATE "C" PRIMARY KEY,
    reason     text NOT NULL,
    created_at timestamptz NOT NULL
)
"""


def upgrade() -> None:
    """Create the tables."""
    for statement in (_JOBS, *_JOBS_COMMENTS, *_JOBS_INDEXES, _QUESTIONS, _CHOSEN, _TOMBSTONES):
        op.execute(statement)
    op.execute("CREATE INDEX tombstones_by_age ON dispatcher.tombstones (created_at)")
