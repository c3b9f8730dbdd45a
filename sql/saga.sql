-- ---------------------------------------------------------------------------
-- Sagas: tables and functions.
-- ---------------------------------------------------------------------------

-- A name belongs to the role that defined it first.
CREATE TABLE coord_internal.saga_name (
  name text PRIMARY KEY,
  owner oid NOT NULL,
  active_version integer NOT NULL,
  created_at timestamptz NOT NULL
);

-- Immutable; ids are never used again, so a parsed definition never goes stale.
CREATE SEQUENCE coord_internal.saga_version_id MAXVALUE 9007199254740991;
CREATE TABLE coord_internal.saga_version (
  id bigint PRIMARY KEY DEFAULT nextval('coord_internal.saga_version_id'),
  name text NOT NULL,
  version integer NOT NULL,
  definition jsonb NOT NULL,
  search_path text NOT NULL,
  definer oid NOT NULL,
  created_at timestamptz NOT NULL,
  UNIQUE (name, version)
);

-- Unfinished sagas: the queue.  Rows are short-lived, so space is reused by
-- vacuum often and early.
CREATE SEQUENCE coord_internal.saga_id MAXVALUE 9007199254740991;
CREATE TABLE coord_internal.saga (
  id bigint PRIMARY KEY DEFAULT nextval('coord_internal.saga_id'),
  definition bigint NOT NULL,
  home bigint NOT NULL,
  owner oid NOT NULL,
  status text NOT NULL DEFAULT 'running' CONSTRAINT saga_status CHECK
    (status IN ('running', 'paused', 'suspended', 'compensating', 'completed')),
  backward boolean NOT NULL DEFAULT false,
  cause text CONSTRAINT saga_cause CHECK
    (cause IN ('step_failed', 'cancelled', 'deadline', 'abandoned')),
  error text,
  key text,
  input jsonb NOT NULL,
  priority integer NOT NULL DEFAULT 0,
  labels jsonb,
  correlation_id uuid,
  created_at timestamptz NOT NULL,
  start_at timestamptz,
  started_at timestamptz,
  wake_at timestamptz,
  deadline_at timestamptz,
  next_sequence integer NOT NULL DEFAULT 1,
  has_steps boolean NOT NULL DEFAULT false,
  parent_id bigint,                             -- the saga that has this one as a step
  finished_at timestamptz                       -- completed, and kept until the parent is finished
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02,
        autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_vacuum_insert_threshold = -1,
        autovacuum_analyze_scale_factor = 0.5, autovacuum_analyze_threshold = 10000);
-- "id + 0", because the claim by id must never be planned through this index,
-- however few rows the planner believes there are.
CREATE INDEX saga_wake ON coord_internal.saga (wake_at, (id + 0));
CREATE INDEX saga_priority ON coord_internal.saga (priority DESC, wake_at, id)
  WHERE priority > 0;

CREATE INDEX saga_parent ON coord_internal.saga (parent_id) WHERE parent_id IS NOT NULL;

-- Steps of unfinished sagas to which something happened.
CREATE TABLE coord_internal.saga_step (
  saga_id bigint NOT NULL,
  ordinal integer NOT NULL,
  status text NOT NULL CONSTRAINT saga_step_status CHECK
    (status IN ('pending', 'ready', 'running', 'completed', 'skipped', 'failed',
                'compensating', 'compensated', 'compensation_failed')),
  phase text NOT NULL CONSTRAINT saga_step_phase CHECK (phase IN ('action', 'compensation')),
  attempt integer NOT NULL,
  sequence integer NOT NULL,
  result jsonb,
  has_result boolean NOT NULL,
  error text,
  sqlstate text,
  error_detail text,
  error_context text,
  next_attempt_at timestamptz,
  started_at timestamptz,
  finished_at timestamptz,
  waiting boolean NOT NULL DEFAULT false,       -- for tasks, a signal, a time or a saga
  child bigint,                                 -- the saga that it is
  items integer,                                -- for each of how many
  PRIMARY KEY (saga_id, ordinal)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,
        autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- Finished sagas.  Partitions are made by the engine: no key here.
CREATE TABLE coord_internal.saga_archive (
  id bigint NOT NULL,
  name text NOT NULL,
  version integer NOT NULL,
  owner oid NOT NULL,
  status text NOT NULL CONSTRAINT saga_archive_status CHECK
    (status IN ('completed', 'compensated', 'failed')),
  backward boolean NOT NULL,
  cause text,
  error text,
  key text,
  input jsonb NOT NULL,
  priority integer NOT NULL,
  labels jsonb,
  correlation_id uuid,
  created_at timestamptz NOT NULL,
  started_at timestamptz,
  finished_at timestamptz NOT NULL,
  deadline_at timestamptz,
  steps jsonb NOT NULL
) PARTITION BY RANGE (finished_at);

-- Failed attempts and operators' actions.
CREATE SEQUENCE coord_internal.saga_log_id MAXVALUE 9007199254740991;
CREATE TABLE coord_internal.saga_log (
  id bigint NOT NULL DEFAULT nextval('coord_internal.saga_log_id'),
  saga_id bigint NOT NULL,
  name text NOT NULL,
  owner oid NOT NULL,
  at timestamptz NOT NULL,
  event text NOT NULL,
  step text,
  phase text,
  attempt integer,
  role text,
  reason text,
  error text,
  sqlstate text,
  error_detail text,
  error_context text
) PARTITION BY RANGE (at);

-- One saga per key, for as long as it is kept.
CREATE TABLE coord_internal.saga_key (
  name text NOT NULL,
  key text NOT NULL,
  saga_id bigint NOT NULL,
  input_hash bigint NOT NULL,
  PRIMARY KEY (name, key)
);

-- Operators' requests for sagas that somebody has in hand.
CREATE SEQUENCE coord_internal.saga_request_id MAXVALUE 9007199254740991;
CREATE TABLE coord_internal.saga_request (
  id bigint PRIMARY KEY DEFAULT nextval('coord_internal.saga_request_id'),
  saga_id bigint NOT NULL,
  verb text NOT NULL CONSTRAINT saga_request_verb CHECK
    (verb IN ('cancel', 'pause', 'resume', 'retry', 'skip', 'patch', 'abandon', 'abort')),
  step text,
  argument jsonb,
  role oid NOT NULL,
  reason text,
  at timestamptz NOT NULL
);
CREATE INDEX saga_request_saga ON coord_internal.saga_request (saga_id);

SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_name', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_version', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_version_id', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_id', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_step', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_key', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_log_id', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_request', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.saga_request_id', '');

CREATE FUNCTION coord.step(name text, action text DEFAULT NULL, compensation text DEFAULT NULL,
    after text[] DEFAULT NULL, queue text DEFAULT NULL, server name DEFAULT NULL,
    pivot boolean DEFAULT false, optional boolean DEFAULT false,
    condition jsonpath DEFAULT NULL, trigger_rule text DEFAULT 'none_failed',
    for_each jsonpath DEFAULT NULL, max_parallel int DEFAULT NULL, max_failed_items int DEFAULT 0,
    timeout interval DEFAULT NULL, max_attempts int DEFAULT NULL,
    retry_delay interval DEFAULT '1 s', retry_backoff float8 DEFAULT 2,
    retry_max_delay interval DEFAULT '5 min', retry_on text[] DEFAULT NULL)
  RETURNS jsonb AS 'MODULE_PATHNAME', 'coord_step' LANGUAGE C STABLE;
CREATE FUNCTION coord.step_signal(name text, signal text, timeout interval DEFAULT NULL,
    on_timeout text DEFAULT 'fail', after text[] DEFAULT NULL, condition jsonpath DEFAULT NULL)
  RETURNS jsonb AS 'MODULE_PATHNAME', 'coord_step_signal' LANGUAGE C STABLE;
CREATE FUNCTION coord.step_sleep(name text, duration interval, after text[] DEFAULT NULL,
    condition jsonpath DEFAULT NULL)
  RETURNS jsonb AS 'MODULE_PATHNAME', 'coord_step_sleep' LANGUAGE C STABLE;
CREATE FUNCTION coord.step_saga(name text, saga text, input jsonpath DEFAULT '$.input',
    after text[] DEFAULT NULL, condition jsonpath DEFAULT NULL)
  RETURNS jsonb AS 'MODULE_PATHNAME', 'coord_step_saga' LANGUAGE C STABLE;
CREATE FUNCTION coord.saga_define(name text, steps jsonb[], deadline interval DEFAULT NULL,
    on_exhausted text DEFAULT 'compensate', record_events boolean DEFAULT false)
  RETURNS integer AS 'MODULE_PATHNAME', 'coord_saga_define' LANGUAGE C;
CREATE FUNCTION coord.saga_define_json(name text, definition jsonb)
  RETURNS integer AS 'MODULE_PATHNAME', 'coord_saga_define_json' LANGUAGE C;
CREATE FUNCTION coord.saga_activate(name text, version int)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_saga_activate' LANGUAGE C;
CREATE FUNCTION coord.saga_drop(name text)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_saga_drop' LANGUAGE C;
CREATE FUNCTION coord.saga_start(name text, input jsonb DEFAULT '{}', key text DEFAULT NULL,
    correlation_id uuid DEFAULT NULL, version int DEFAULT NULL, start_at timestamptz DEFAULT NULL,
    deadline interval DEFAULT NULL, priority int DEFAULT 0, labels jsonb DEFAULT NULL,
    on_existing text DEFAULT 'return')
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_saga_start' LANGUAGE C;
CREATE PROCEDURE coord.saga_run(name text, input jsonb DEFAULT '{}', key text DEFAULT NULL,
    INOUT id bigint DEFAULT NULL, INOUT status text DEFAULT NULL, INOUT output jsonb DEFAULT NULL)
  AS 'MODULE_PATHNAME', 'coord_saga_run' LANGUAGE C;
CREATE FUNCTION coord.saga_wait(id bigint, timeout interval DEFAULT '1 min')
  RETURNS text AS 'MODULE_PATHNAME', 'coord_saga_wait' LANGUAGE C;
CREATE FUNCTION coord.saga_status(id bigint)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_saga_status' LANGUAGE C;
CREATE FUNCTION coord.saga_find(name text, key text)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_saga_find' LANGUAGE C;
CREATE FUNCTION coord.saga_signal(id bigint, signal text, payload jsonb DEFAULT NULL,
    signal_id text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_saga_signal' LANGUAGE C;
CREATE FUNCTION coord.saga_cancel(id bigint, reason text DEFAULT NULL, interrupt boolean DEFAULT false)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_saga_cancel' LANGUAGE C;
CREATE FUNCTION coord.saga_pause(id bigint, reason text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_saga_pause' LANGUAGE C;
CREATE FUNCTION coord.saga_resume(id bigint, reason text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_saga_resume' LANGUAGE C;
CREATE FUNCTION coord.saga_retry(id bigint, step text DEFAULT NULL, reason text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_saga_retry' LANGUAGE C;
CREATE FUNCTION coord.saga_skip(id bigint, step text, result jsonb DEFAULT NULL, reason text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_saga_skip' LANGUAGE C;
CREATE FUNCTION coord.saga_patch(id bigint, input jsonb, reason text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_saga_patch' LANGUAGE C;
CREATE FUNCTION coord.saga_abandon(id bigint, reason text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_saga_abandon' LANGUAGE C;
CREATE PROCEDURE coord.run_pending(max_turns int DEFAULT NULL, INOUT turns int DEFAULT NULL)
  AS 'MODULE_PATHNAME', 'coord_run_pending' LANGUAGE C;
CREATE PROCEDURE coord.await(kind text, name text, timeout interval DEFAULT '1 min',
    INOUT ready boolean DEFAULT NULL)
  AS 'MODULE_PATHNAME', 'coord_await' LANGUAGE C;

-- The id, if the current user may see the saga; else 42704.
CREATE FUNCTION coord_internal.check_visible(id bigint)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_internal_check_visible' LANGUAGE C;

-- Times in archived steps are microseconds since 2000-01-01 UTC.
CREATE FUNCTION coord_internal.step_time(us bigint) RETURNS timestamptz
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN '2000-01-01 00:00:00+00'::timestamptz + us * '1 microsecond'::interval;

-- {step: result} of an archived saga.
CREATE FUNCTION coord_internal.steps_output(steps jsonb) RETURNS jsonb
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN (SELECT coalesce(jsonb_object_agg(e ->> 'step', e -> 'result'), '{}')
          FROM jsonb_array_elements(steps) e WHERE e ? 'result');
