-- ---------------------------------------------------------------------------
-- Tasks: steps that are handed out, to workers outside the database (queue) or to
-- coord's own (parallel branches, items), and what comes back for a saga.
-- ---------------------------------------------------------------------------

-- A queue is known once a definition uses it or somebody configures it.
CREATE TABLE coord_internal.queue (
  name text PRIMARY KEY,
  max_running integer CONSTRAINT queue_max_running CHECK (max_running > 0),
  rate_limit float8 CONSTRAINT queue_rate_limit CHECK (rate_limit > 0),
  paused boolean NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL
);

-- Whose queue it is: the roles whose definitions use it, or who configured it first.
CREATE TABLE coord_internal.queue_role (
  queue text NOT NULL,
  role oid NOT NULL
);
CREATE INDEX queue_role_queue ON coord_internal.queue_role (queue, role);

-- One row for each piece of work that was handed out, until its saga is finished
-- or, for items, the step.  A claim changes no indexed column, so it is a HOT
-- update: nothing but "rank" and "position", which never change, leads to a task
-- that is ready, and so is the completion.  A page is filled to less than a third,
-- since one client may claim all tasks on it and complete them at once: only as
-- long as both new versions, which are a little longer, find room beside the first
-- do updates leave the indexes alone.
-- Domains, not CHECKs of the table: those are parsed anew by each statement.
CREATE DOMAIN coord_internal.task_phase AS text
  CONSTRAINT task_phase CHECK (VALUE IN ('action', 'compensation'));
CREATE DOMAIN coord_internal.task_status AS text CONSTRAINT task_status CHECK
  (VALUE IN ('ready', 'held', 'running', 'completed', 'skipped', 'failed', 'stopped', 'cancelled'));
CREATE SEQUENCE coord_internal.task_id MAXVALUE 9007199254740991;
CREATE TABLE coord_internal.task (
  id bigint PRIMARY KEY DEFAULT nextval('coord_internal.task_id'),
  saga_id bigint NOT NULL,
  ordinal integer NOT NULL,
  item integer NOT NULL DEFAULT -1,             -- -1: the step is not for each of something
  phase coord_internal.task_phase NOT NULL,
  definition bigint NOT NULL,
  owner oid NOT NULL,
  queue text NOT NULL,                          -- '': coord's own workers
  rank bigint NOT NULL,                         -- minus the priority
  position bigint NOT NULL,                     -- place in the queue among equal ranks
  status coord_internal.task_status NOT NULL DEFAULT 'ready',
  attempt integer NOT NULL DEFAULT 0,
  claims integer NOT NULL DEFAULT 0,
  token bigint NOT NULL DEFAULT 0,
  worker text,
  null_compensation boolean NOT NULL DEFAULT false,
  available_at timestamptz NOT NULL,
  claimed_at timestamptz,
  lease_expires_at timestamptz,
  item_value jsonb,
  given jsonb,                                  -- compensation of an item: its result
  result jsonb,
  error text,
  sqlstate text,
  error_detail text,
  error_context text,
  created_at timestamptz NOT NULL,
  started_at timestamptz,
  finished_at timestamptz
) WITH (fillfactor = 28, autovacuum_vacuum_scale_factor = 0.02,
        autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_vacuum_insert_threshold = -1,
        autovacuum_analyze_scale_factor = 0.5, autovacuum_analyze_threshold = 10000);
CREATE INDEX task_queue ON coord_internal.task (queue, rank, position, id);
CREATE UNIQUE INDEX task_saga ON coord_internal.task (saga_id, ordinal, phase, item);

-- What is remembered of tasks that are gone while somebody may still hold a token.
CREATE TABLE coord_internal.task_gone (
  id bigint PRIMARY KEY,
  saga_id bigint NOT NULL,
  owner oid NOT NULL,
  queue text NOT NULL,
  token bigint NOT NULL,
  status text NOT NULL CONSTRAINT task_gone_status CHECK (status IN ('completed', 'cancelled')),
  at timestamptz NOT NULL
);
CREATE INDEX task_gone_at ON coord_internal.task_gone (at);

-- Something has happened that a waiting saga does not know of yet: a task is
-- finished, a signal has come, a saga that it waits for has ended.
CREATE TABLE coord_internal.saga_inbox (
  saga_id bigint NOT NULL,
  at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX saga_inbox_saga ON coord_internal.saga_inbox (saga_id);

-- Signals, until their saga is finished.
CREATE SEQUENCE coord_internal.saga_signal_id MAXVALUE 9007199254740991;
CREATE TABLE coord_internal.saga_signal (
  id bigint NOT NULL DEFAULT nextval('coord_internal.saga_signal_id'),
  saga_id bigint NOT NULL,
  signal text NOT NULL,
  signal_id text,
  payload jsonb,
  role oid NOT NULL,
  at timestamptz NOT NULL,
  consumed boolean NOT NULL DEFAULT false
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX saga_signal_saga ON coord_internal.saga_signal (saga_id, id);
CREATE UNIQUE INDEX saga_signal_once ON coord_internal.saga_signal (saga_id, signal, signal_id);

SELECT pg_catalog.pg_extension_config_dump('coord_internal.queue', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.queue_role', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.task', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.task_id', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.task_gone', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_inbox', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_signal', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_signal_id', '');

CREATE FUNCTION coord.task_claim(queue text, max_tasks int DEFAULT 1, worker text DEFAULT NULL,
    lease interval DEFAULT '30 s', timeout interval DEFAULT '0')
  RETURNS TABLE (task_id bigint, token bigint, saga_id bigint, saga text, step text, phase text,
    action text, item int, attempt int, idempotency_key text, null_compensation boolean,
    payload jsonb, lease_expires_at timestamptz)
  AS 'MODULE_PATHNAME', 'coord_task_claim' LANGUAGE C;
CREATE FUNCTION coord.task_complete(task_id bigint, token bigint, result jsonb DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_task_complete' LANGUAGE C;
CREATE FUNCTION coord.task_complete_many(task_ids bigint[], tokens bigint[], results jsonb DEFAULT NULL)
  RETURNS bigint[] AS 'MODULE_PATHNAME', 'coord_task_complete_many' LANGUAGE C;
CREATE FUNCTION coord.task_fail(task_id bigint, token bigint, error text, retryable boolean DEFAULT true,
    retry_in interval DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_task_fail' LANGUAGE C;
CREATE FUNCTION coord.task_extend(task_id bigint, token bigint, lease interval DEFAULT '30 s')
  RETURNS timestamptz AS 'MODULE_PATHNAME', 'coord_task_extend' LANGUAGE C;
CREATE FUNCTION coord.task_release(task_id bigint, token bigint)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_task_release' LANGUAGE C;
CREATE FUNCTION coord.task_revoke(task_id bigint, reason text DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_task_revoke' LANGUAGE C;
CREATE FUNCTION coord.queue_configure(queue text, max_running int DEFAULT NULL,
    rate_limit float8 DEFAULT NULL, paused boolean DEFAULT NULL)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_queue_configure' LANGUAGE C;

-- When a lease ends that is wanted until then: with the step's timeout at the latest.
CREATE FUNCTION coord_internal.lease_end(definition bigint, ordinal int, claimed_at timestamptz,
    wanted timestamptz)
  RETURNS timestamptz AS 'MODULE_PATHNAME', 'coord_internal_lease_end' LANGUAGE C STABLE STRICT;
-- When somebody last claimed from a queue, as far as shared memory knows.
CREATE FUNCTION coord_internal.queue_last_claim(queue text)
  RETURNS timestamptz AS 'MODULE_PATHNAME', 'coord_internal_queue_last_claim' LANGUAGE C;
