"""The ledger, its batch counts, the projection of jobs, executors, events and API keys.

``results.tables`` documents the columns; this file says how they are kept.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Fill factor: counters change often, and room on the page keeps their updates out of the indexes.
_LEDGER = """
CREATE TABLE results.executions (
    execution_id      uuid PRIMARY KEY,
    job_id            text COLLATE "C" NOT NULL,
    lane              text COLLATE "C" NOT NULL,
    question_index    integer NOT NULL CHECK (question_index >= 0),
    question_id       text COLLATE "C" NOT NULL,
    model_id          text COLLATE "C" NOT NULL,
    model             text COLLATE "C" NOT NULL,
    region            text COLLATE "C" NOT NULL,
    sample            integer NOT NULL CHECK (sample >= 0),
    status            text COLLATE "C" NOT NULL CHECK (status IN ('completed', 'failed', 'timed_out', 'cancelled')),
    observed          boolean NOT NULL,
    replaced_status   text COLLATE "C",
    provider_id       text,
    messages          jsonb NOT NULL,
    output            jsonb,
    finish_reason     text,
    usage             jsonb,
    receipt           jsonb,
    error             jsonb,
    attempts          jsonb NOT NULL,
    started_at        timestamptz,
    completed_at      timestamptz NOT NULL,
    recorded_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    prompt_tokens     bigint GENERATED ALWAYS AS ((usage ->> 'prompt_tokens')::bigint) STORED,
    completion_tokens bigint GENERATED ALWAYS AS ((usage ->> 'completion_tokens')::bigint) STORED,
    attempt_count     integer NOT NULL GENERATED ALWAYS AS (jsonb_array_length(attempts)) STORED,
    duration_s        double precision
                      GENERATED ALWAYS AS (extract(epoch FROM completed_at - started_at)::double precision) STORED,
    output_chars      integer GENERATED ALWAYS AS (char_length(output ->> 'text')) STORED,
    refused           boolean NOT NULL GENERATED ALWAYS AS (coalesce(output ->> 'refusal', '') <> '') STORED
);
CREATE UNIQUE INDEX executions_in_order
    ON results.executions (job_id, question_index, model_id, region, sample);
CREATE INDEX executions_by_status
    ON results.executions (job_id, status, question_index, model_id, region, sample);

CREATE TABLE results.batches (
    job_id         text COLLATE "C" NOT NULL,
    lane           text COLLATE "C" NOT NULL,
    question_index integer NOT NULL CHECK (question_index >= 0),
    question_id    text COLLATE "C" NOT NULL,
    question       jsonb,
    expected       integer NOT NULL CHECK (expected >= 0),
    completed      integer NOT NULL DEFAULT 0 CHECK (completed >= 0),
    failed         integer NOT NULL DEFAULT 0 CHECK (failed >= 0),
    timed_out      integer NOT NULL DEFAULT 0 CHECK (timed_out >= 0),
    cancelled      integer NOT NULL DEFAULT 0 CHECK (cancelled >= 0),
    recorded       integer NOT NULL GENERATED ALWAYS AS (completed + failed + timed_out + cancelled) STORED,
    opened_at      timestamptz,
    deadline_at    timestamptz,
    completed_at   timestamptz,
    closed_at      timestamptz,
    closed_status  text COLLATE "C" CHECK (closed_status IN ('completed', 'failed', 'timed_out', 'cancelled')),
    closed_error   jsonb,
    PRIMARY KEY (job_id, lane, question_index)
) WITH (fillfactor = 70);
CREATE INDEX batches_in_order ON results.batches (job_id, question_index, lane);
CREATE INDEX batches_by_question ON results.batches (job_id, question_id);
"""

_PROJECTION = """
CREATE TABLE results.jobs (
    job_id            text COLLATE "C" PRIMARY KEY,
    created_at        timestamptz NOT NULL,
    name              text,
    spec              jsonb,
    plan              jsonb,
    questions         integer,
    batches           integer,
    executions        integer,
    retry_of          text COLLATE "C",
    metadata          jsonb NOT NULL DEFAULT '{}',
    submission_sha256 text COLLATE "C",
    submitted_at      timestamptz,
    rejected_at       timestamptz,
    rejected_reason   jsonb,
    problems          jsonb NOT NULL DEFAULT '[]',
    accepted_at       timestamptz,
    started_at        timestamptz,
    cancelled_at      timestamptz,
    cancelled_reason  jsonb,
    finished_at       timestamptz,
    finished_reason   jsonb,
    outcome           text COLLATE "C" CHECK (outcome IN ('completed', 'failed', 'cancelled')),
    counts            jsonb,
    not_started       integer,
    status            text COLLATE "C" NOT NULL GENERATED ALWAYS AS (
        CASE
            WHEN outcome IS NOT NULL THEN outcome
            WHEN cancelled_at IS NOT NULL THEN 'cancelled'
            WHEN started_at IS NOT NULL THEN 'running'
            WHEN accepted_at IS NOT NULL THEN 'queued'
            WHEN rejected_at IS NOT NULL THEN 'rejected'
            ELSE 'submitted'
        END) STORED,
    reason            jsonb GENERATED ALWAYS AS (
        coalesce(finished_reason, cancelled_reason, CASE WHEN accepted_at IS NULL THEN rejected_reason END)) STORED
);
CREATE INDEX jobs_newest ON results.jobs (created_at, job_id);
CREATE INDEX jobs_newest_by_status ON results.jobs (status, created_at, job_id);
CREATE INDEX jobs_waiting ON results.jobs (accepted_at, job_id) WHERE status = 'queued';
CREATE INDEX jobs_by_name ON results.jobs (name, created_at, job_id);
CREATE INDEX jobs_by_origin ON results.jobs (retry_of) WHERE retry_of IS NOT NULL;
CREATE INDEX jobs_by_metadata ON results.jobs USING gin (metadata jsonb_path_ops);

CREATE TABLE results.executors (
    executor_id    text COLLATE "C" PRIMARY KEY,
    region         text COLLATE "C" NOT NULL,
    budget         integer NOT NULL,
    running        jsonb NOT NULL,
    models         jsonb NOT NULL,
    endpoint_state text COLLATE "C" NOT NULL,
    last_error     text,
    stopping       boolean NOT NULL,
    started_at     timestamptz NOT NULL,
    sent_at        timestamptz NOT NULL,
    received_at    timestamptz NOT NULL
);
CREATE INDEX executors_by_age ON results.executors (received_at);
"""

_EVENTS = """
CREATE TABLE results.event_heads (
    job_id text COLLATE "C" PRIMARY KEY,
    last   bigint NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE results.events (
    job_id text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    kind   text COLLATE "C" NOT NULL,
    data   jsonb NOT NULL,
    at     timestamptz NOT NULL,
    PRIMARY KEY (job_id, number)
);
"""

_KEYS = """
CREATE TABLE results.api_keys (
    key_id       text COLLATE "C" PRIMARY KEY,
    label        text NOT NULL DEFAULT '',
    secret_hash  bytea NOT NULL UNIQUE,
    scope        text COLLATE "C" NOT NULL CHECK (scope IN ('read', 'submit', 'cancel', 'admin')),
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);
"""


def upgrade() -> None:
    """Create the schema's first tables."""
    for script in (_LEDGER, _PROJECTION, _EVENTS, _KEYS):
        for statement in script.split(";\n"):
            if statement.strip():
                op.execute(statement)
