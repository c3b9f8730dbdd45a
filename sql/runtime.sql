-- ---------------------------------------------------------------------------
-- The engine of this database: pause, resume, drain, workers, what is stuck.
-- ---------------------------------------------------------------------------

CREATE FUNCTION coord.pause(reason text DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_pause' LANGUAGE C;
CREATE FUNCTION coord.resume(reason text DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_resume' LANGUAGE C;
CREATE PROCEDURE coord.drain(timeout interval DEFAULT '5 min', INOUT drained boolean DEFAULT NULL)
  AS 'MODULE_PATHNAME', 'coord_drain' LANGUAGE C;
CREATE FUNCTION coord.start_worker()
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_start_worker' LANGUAGE C;
CREATE FUNCTION coord.grant_use(kind text, name text, grantee name)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_grant_use' LANGUAGE C;
CREATE FUNCTION coord.revoke_use(kind text, name text, grantee name)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_revoke_use' LANGUAGE C;

-- The role that a stored oid means now: in a copy under another system identifier
-- oids are other roles', so it goes by the name that was noted; 0, which is
-- nobody, where there is none.
CREATE FUNCTION coord_internal.role_here(role oid) RETURNS oid
  LANGUAGE sql STABLE
  RETURN coalesce((SELECT a.oid FROM coord_internal.principal p JOIN pg_authid a ON a.rolname = p.name
                   WHERE p.role = role_here.role), 0);
CREATE FUNCTION coord_internal.is_foreign() RETURNS boolean
  LANGUAGE sql STABLE
  RETURN EXISTS (SELECT FROM coord_internal.identity
                 WHERE system_identifier <> coord_internal.system_identifier());

-- What coord.resume() does to a copy: take it for what it now is.  True if there
-- was anything to do.
CREATE FUNCTION coord_internal.adopt_identity() RETURNS boolean
  LANGUAGE sql
BEGIN ATOMIC
  UPDATE coord_internal.saga SET owner = coord_internal.role_here(owner)
    WHERE coord_internal.is_foreign() AND home <> coord_internal.home() AND owner <> coord_internal.role_here(owner);
  UPDATE coord_internal.saga_archive SET owner = coord_internal.role_here(owner)
    WHERE coord_internal.is_foreign() AND owner <> coord_internal.role_here(owner);
  UPDATE coord_internal.saga_log SET owner = coord_internal.role_here(owner)
    WHERE coord_internal.is_foreign() AND owner <> coord_internal.role_here(owner);
  UPDATE coord_internal.saga_name SET owner = coord_internal.role_here(owner)
    WHERE coord_internal.is_foreign() AND owner <> coord_internal.role_here(owner);
  UPDATE coord_internal.saga_version SET definer = coord_internal.role_here(definer)
    WHERE coord_internal.is_foreign() AND definer <> coord_internal.role_here(definer);
  UPDATE coord_internal.saga_request SET role = coord_internal.role_here(role)
    WHERE coord_internal.is_foreign() AND role <> coord_internal.role_here(role);
  DELETE FROM coord_internal.use_grant
    WHERE coord_internal.is_foreign() AND coord_internal.role_here(role) = 0;
  UPDATE coord_internal.use_grant SET role = coord_internal.role_here(role),
      granted_by = coord_internal.role_here(granted_by)
    WHERE coord_internal.is_foreign()
      AND (role, granted_by) <> (coord_internal.role_here(role), coord_internal.role_here(granted_by));
  UPDATE coord_internal.task SET owner = coord_internal.role_here(owner)
    WHERE coord_internal.is_foreign() AND owner <> coord_internal.role_here(owner);
  UPDATE coord_internal.subscription SET owner = coord_internal.role_here(owner)
    WHERE coord_internal.is_foreign() AND owner <> coord_internal.role_here(owner);
  UPDATE coord_internal.task_gone SET owner = coord_internal.role_here(owner)
    WHERE coord_internal.is_foreign() AND owner <> coord_internal.role_here(owner);
  DELETE FROM coord_internal.queue_role
    WHERE coord_internal.is_foreign() AND coord_internal.role_here(role) = 0;
  UPDATE coord_internal.queue_role SET role = coord_internal.role_here(role)
    WHERE coord_internal.is_foreign() AND role <> coord_internal.role_here(role);
  UPDATE coord_internal.saga_signal SET role = coord_internal.role_here(role)
    WHERE coord_internal.is_foreign() AND role <> coord_internal.role_here(role);
  UPDATE coord_internal.lease SET role = coord_internal.role_here(role)
    WHERE coord_internal.is_foreign() AND role <> coord_internal.role_here(role);
  UPDATE coord_internal.semaphore SET role = coord_internal.role_here(role)
    WHERE coord_internal.is_foreign() AND role <> coord_internal.role_here(role);
  UPDATE coord_internal.once SET role = coord_internal.role_here(role)
    WHERE coord_internal.is_foreign() AND role <> coord_internal.role_here(role);
  UPDATE coord_internal.lease_log SET role = coord_internal.role_here(role)
    WHERE coord_internal.is_foreign() AND role <> coord_internal.role_here(role);
  UPDATE coord_internal.twophase_decision SET role = coord_internal.role_here(role)
    WHERE coord_internal.is_foreign() AND role <> coord_internal.role_here(role);
  UPDATE coord_internal.twophase_log SET role = coord_internal.role_here(role)
    WHERE coord_internal.is_foreign() AND role <> coord_internal.role_here(role);
  UPDATE coord_internal.twophase_incarnation SET adopted_by = coord_internal.role_here(adopted_by)
    WHERE coord_internal.is_foreign() AND adopted_by <> coord_internal.role_here(adopted_by);
  UPDATE coord_internal.event_log SET owner = coord_internal.role_here(owner)
    WHERE coord_internal.is_foreign() AND owner <> coord_internal.role_here(owner);
  UPDATE coord_internal.stream SET owner = coord_internal.role_here(owner)
    WHERE coord_internal.is_foreign() AND owner <> coord_internal.role_here(owner);
  DELETE FROM coord_internal.principal WHERE coord_internal.is_foreign();
  INSERT INTO coord_internal.principal
    SELECT oid, rolname FROM pg_authid
    WHERE coord_internal.is_foreign()
      AND oid IN (SELECT owner FROM coord_internal.saga UNION ALL SELECT owner FROM coord_internal.saga_name
                  UNION ALL SELECT definer FROM coord_internal.saga_version
                  UNION ALL SELECT role FROM coord_internal.queue_role
                  UNION ALL SELECT role FROM coord_internal.use_grant
                  UNION ALL SELECT granted_by FROM coord_internal.use_grant
                  UNION ALL SELECT role FROM coord_internal.lease UNION ALL SELECT role FROM coord_internal.semaphore
                  UNION ALL SELECT role FROM coord_internal.twophase_decision
                  UNION ALL SELECT role FROM coord_internal.twophase_log);
  UPDATE coord_internal.saga SET home = coord_internal.home() WHERE home <> coord_internal.home();
  WITH me AS (
    SELECT coord_internal.system_identifier() AS system_identifier,
           (SELECT oid FROM pg_database WHERE datname = current_database()) AS database
  ), foreign_rows AS (
    DELETE FROM coord_internal.identity i USING me
    WHERE (i.system_identifier, i.database) IS DISTINCT FROM (me.system_identifier, me.database)
    RETURNING i.system_identifier
  ), own_row AS (
    INSERT INTO coord_internal.identity
    SELECT * FROM me WHERE NOT EXISTS (SELECT FROM coord_internal.identity i
      WHERE (i.system_identifier, i.database) = (me.system_identifier, me.database))
  )
  SELECT EXISTS (SELECT FROM foreign_rows);
END;

CREATE FUNCTION coord_internal.ring() RETURNS void
  AS 'MODULE_PATHNAME', 'coord_internal_ring' LANGUAGE C;

CREATE VIEW coord.workers WITH (security_barrier) AS
  SELECT w.pid, w.backend_type, w.state, w.started_at,
         CASE WHEN seen.it THEN w.saga_id END AS saga_id,
         CASE WHEN seen.it THEN v.definition #>> ARRAY['steps', w.ordinal::text, 'name'] END AS step,
         CASE WHEN seen.it THEN w.phase END AS phase,
         w.since
  FROM coord_internal.workers() w
  LEFT JOIN coord_internal.saga_version v ON v.id = w.definition
  CROSS JOIN LATERAL (SELECT (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(w.owner) AS it) AS seen;

-- What stops a suspended saga: the step that failed for good, or that cannot be run.
CREATE VIEW coord_internal.stopped_saga WITH (security_barrier) AS
  SELECT s.id, s.name, s.status, s.backward, coalesce(t.finished_at, s.started_at, s.created_at) AS since,
         v.definition #>> ARRAY['steps', t.ordinal::text, 'name'] AS step,
         coalesce(t.error, s.error) AS error, t.gave_up, t.sqlstate = 'ZC006' AS cannot_be_undone,
         NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = s.owner) AS ownerless
  FROM coord_internal.live_saga s
  JOIN coord_internal.saga_version v ON (v.name, v.version) = (s.name, s.version)
  LEFT JOIN LATERAL (
    SELECT ordinal, error, sqlstate, finished_at, status IN ('failed', 'compensation_failed') AS gave_up
    FROM coord_internal.saga_step t
    WHERE t.saga_id = s.id AND s.status = 'suspended' AND t.error IS NOT NULL
      AND t.status = ANY (CASE WHEN s.backward THEN '{compensation_failed,compensating}'::text[]
                          ELSE '{failed,ready}'::text[] END)
    ORDER BY gave_up DESC, t.ordinal DESC LIMIT 1) t ON true
  WHERE s.status IN ('paused', 'suspended');

-- Sagas for which a worker has something to do, since when.
CREATE VIEW coord_internal.waiting_for_worker WITH (security_barrier) AS
  SELECT id, wake_at AS at FROM coord_internal.saga WHERE wake_at IS NOT NULL
  UNION ALL
  SELECT saga_id, at FROM coord_internal.saga_inbox
  UNION ALL
  SELECT t.saga_id, t.available_at FROM coord_internal.task t JOIN coord_internal.saga s ON s.id = t.saga_id
  WHERE t.queue = '' AND t.status = 'ready' AND s.status IN ('running', 'compensating')
    AND s.backward = (t.phase = 'compensation')
  UNION ALL
  SELECT saga_id, lease_expires_at FROM coord_internal.task WHERE queue <> '' AND status = 'running';

CREATE VIEW coord.stuck WITH (security_barrier) AS
  SELECT 'saga'::text AS kind, s.id::text AS id, s.name, s.since,
         CASE WHEN s.status = 'paused' THEN 'an operator, who paused it'
              WHEN s.step IS NULL THEN 'an operator: ' || coalesce(s.error, 'it cannot be run')
              ELSE format('an operator: %s "%s" %s: %s',
                          CASE WHEN s.backward THEN 'the compensation of step' ELSE 'step' END, s.step,
                          CASE WHEN s.gave_up THEN 'failed' ELSE 'cannot be run' END, s.error) END AS waits_for,
         CASE WHEN s.status = 'paused' THEN 'Resume it.'
              WHEN s.ownerless THEN 'The role that started it was dropped, so nobody can run it: give it up, and start it anew as another role.'
              WHEN s.cannot_be_undone THEN 'To try again would not help: skip the compensation, and undo by hand what that saga did.'
              WHEN s.backward THEN 'Remove the cause and retry; or coord.saga_skip() the compensation when it was done by hand.'
              ELSE 'Remove the cause and retry; or coord.saga_skip() the step, coord.saga_patch() the input; or give it up with coord.saga_cancel(), after the pivot with coord.saga_abandon().' END AS hint,
         CASE WHEN s.status = 'paused' THEN format('SELECT coord.saga_resume(%s)', s.id)
              WHEN s.ownerless THEN format('SELECT coord.saga_abandon(%s)', s.id)
              WHEN s.cannot_be_undone THEN format('SELECT coord.saga_skip(%s, %L)', s.id, s.step)
              ELSE format('SELECT coord.saga_retry(%s)', s.id) END AS repair
  FROM coord_internal.stopped_saga s
  UNION ALL
  SELECT 'saga', s.id::text, s.name, s.deadline_at,
         'its remaining steps: the deadline has passed, but so was the pivot',
         'It goes on by itself. coord.saga_steps shows where it is.',
         format('SELECT coord.saga_retry(%s)', s.id)
  FROM coord.sagas s
  WHERE s.finished_at IS NULL AND s.status = 'running' AND s.deadline_at < coord_internal.now()
    AND EXISTS (SELECT FROM coord.saga_definitions d
                CROSS JOIN LATERAL jsonb_array_elements(d.definition -> 'steps') AS e
                JOIN coord.saga_steps t ON t.saga_id = s.id AND t.step = e ->> 'name'
                WHERE (d.name, d.version) = (s.name, s.version)
                  AND e ->> 'pivot' = 'true' AND t.status = 'completed')
  UNION ALL
  SELECT 'request', r.saga_id::text, r.name, r.at,
         format('whoever has the saga in hand: "%s" was asked for by %s', r.verb, coord_internal.role_name(r.role)),
         'The running step is let finish first. coord.workers shows it.',
         format('SELECT coord.saga_cancel(%s, interrupt => true)', r.saga_id)
  FROM coord_internal.waiting_request r
  WHERE r.at < coord_internal.now() - '1 min'::interval
  UNION ALL
  SELECT 'queue', NULL, q.queue, q.oldest_ready_at,
         CASE WHEN q.paused THEN format('an operator: the queue is paused, and tasks that are ready: %s', q.ready)
              ELSE format('a worker outside: nobody has claimed for a minute, and tasks that are ready: %s', q.ready) END,
         CASE WHEN q.paused THEN 'Resume it.'
              ELSE 'Start its workers, which call coord.task_claim(); members of the tasks'' owners, or granted the use of the queue.' END,
         CASE WHEN q.paused THEN format('SELECT coord.queue_configure(%L, paused => false)', q.queue)
              ELSE format('SELECT * FROM coord.tasks WHERE queue = %L', q.queue) END
  FROM coord_internal.stuck_queue q
  UNION ALL
  SELECT 'engine', NULL, current_database(), p.paused_at,
         format('an operator: %s paused the engine%s', p.paused_by, coalesce(': ' || p.reason, '')),
         'Nothing runs in this database until it is resumed.', 'SELECT coord.resume()'
  FROM coord_internal.engine_pause p
  UNION ALL
  SELECT 'engine', NULL, current_database(), NULL,
         'an operator: this database is a copy', 'Resume it if it shall act; the original goes on acting as well.',
         'SELECT coord.resume()'
  WHERE coord_internal.engine_state() = 'copy'
  UNION ALL
  SELECT 'engine', NULL, current_database(), NULL,
         'an operator: coord.enabled is off', 'Nothing runs in this cluster until it is on; SELECT pg_reload_conf() after the repair.',
         'ALTER SYSTEM SET coord.enabled = on'
  WHERE coord_internal.engine_state() = 'disabled'
  UNION ALL
  SELECT 'worker', NULL, current_database(), min(s.at),
         CASE WHEN w.n = 0 THEN 'a worker: none runs here, and due sagas: '
              ELSE 'a worker: all are in long steps, and due sagas: ' END || count(DISTINCT s.id),
         CASE WHEN w.n = 0 THEN 'Add coord to shared_preload_libraries; raise max_worker_processes when the log says so; or drain with CALL coord.run_pending().'
              ELSE 'coord.workers shows what they do; raise coord.max_workers if that is how it should be.' END,
         'SELECT coord.start_worker()'
  FROM coord_internal.waiting_for_worker s
  CROSS JOIN (SELECT count(*) AS n, count(*) FILTER (WHERE since < clock_timestamp() - '1 min'::interval) AS long
              FROM coord_internal.workers() WHERE backend_type = 'coord worker') w
  WHERE s.at < coord_internal.now() - '1 min'::interval
    AND w.n = w.long
    AND s.id NOT IN (SELECT saga_id FROM coord_internal.workers() WHERE saga_id IS NOT NULL)
    AND coord_internal.engine_state() = 'running'
  GROUP BY w.n
  UNION ALL
  SELECT 'in_doubt', d.gid, d.server_name, d.prepared_at,
         format('an operator: it is prepared at server "%s", and %s', d.server_name, d.reason),
         'It keeps its locks there until it is finished. Find out how it ended elsewhere; doc/twophase.md says how.', d.repair
  FROM coord.twophase_in_doubt d
  UNION ALL
  SELECT 'participant', p.gtid::text, array_to_string(p.servers, ', '), p.decided_at,
         'participants that have not acknowledged a decision to commit: ' || array_to_string(p.servers, ', '),
         'It is tried again until they are back. coord.twophase_servers says what went wrong the last time.',
         'SELECT * FROM coord.twophase_resolve()'
  FROM coord.twophase_pending p
  WHERE p.decided_at < coord_internal.now() - '1 min'::interval;
