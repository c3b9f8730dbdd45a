-- ---------------------------------------------------------------------------
-- Tasks and queues: what can be seen of them.
-- ---------------------------------------------------------------------------

-- Whose tasks the current user may claim and end besides those of his own roles.
CREATE VIEW coord_internal.granted_queue WITH (security_barrier) AS
  SELECT DISTINCT name, granted_by FROM coord_internal.use_grant
  WHERE kind = 'queue' AND coord_internal.is_mine(role);

CREATE VIEW coord_internal.visible_queue WITH (security_barrier) AS
  SELECT q.* FROM coord_internal.queue q
  WHERE (SELECT coord_internal.sees_all())
     OR EXISTS (SELECT FROM coord_internal.queue_role r WHERE r.queue = q.name AND coord_internal.is_mine(r.role))
     OR q.name IN (SELECT name FROM coord_internal.granted_queue);

CREATE VIEW coord.tasks WITH (security_barrier) AS
  SELECT t.id AS task_id, t.saga_id, v.definition #>> ARRAY['steps', t.ordinal::text, 'name'] AS step,
         nullif(t.item, -1) AS item,
         -- of a two-phase commit's participant: prepare, commit, abort
         CASE WHEN NOT v.definition ? 'participant' THEN t.phase::text WHEN t.phase = 'compensation' THEN 'abort'
              ELSE v.definition #>> ARRAY['steps', t.ordinal::text, 'name'] END AS phase, nullif(t.queue, '') AS queue,
         CASE WHEN t.status = 'ready' AND t.available_at > coord_internal.now() THEN 'delayed'
              ELSE t.status END AS status,
         t.attempt, CASE WHEN t.status = 'running' THEN t.worker END AS worker,
         CASE WHEN t.status = 'running' THEN t.lease_expires_at END AS lease_expires_at, t.available_at
  FROM coord_internal.task t JOIN coord_internal.saga_version v ON v.id = t.definition
  WHERE t.status IN ('ready', 'held', 'running', 'stopped')
    AND ((SELECT coord_internal.sees_all()) OR coord_internal.is_mine(t.owner)
         OR EXISTS (SELECT FROM coord_internal.granted_queue g WHERE g.name = t.queue
                    AND pg_has_role(g.granted_by, t.owner, 'MEMBER'))
         OR v.name IN (SELECT name FROM coord_internal.granted_saga));

CREATE VIEW coord.queues WITH (security_barrier) AS
  SELECT q.name AS queue, q.paused, q.max_running, q.rate_limit, t.ready, t.running, t.delayed, t.oldest_ready_at,
         greatest(coord_internal.queue_last_claim(q.name), t.last_claim_at) AS last_claim_at
  FROM coord_internal.visible_queue q
  CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE w.wanted AND w.available_at <= coord_internal.now()) AS ready,
           count(*) FILTER (WHERE w.status = 'running') AS running,
           count(*) FILTER (WHERE w.wanted AND w.available_at > coord_internal.now()) AS delayed,
           min(w.available_at) FILTER (WHERE w.wanted AND w.available_at <= coord_internal.now()) AS oldest_ready_at,
           max(w.claimed_at) AS last_claim_at
    FROM (SELECT k.status, k.available_at, k.claimed_at,
                 -- as a claim looks at it: not while the saga is stopped
                 k.status = 'ready' AND s.status IN ('running', 'compensating')
                   AND s.backward = (k.phase = 'compensation') AS wanted
          FROM coord_internal.task k LEFT JOIN coord_internal.saga s ON s.id = k.saga_id
          WHERE k.queue = q.name) AS w) AS t;

-- Queues that nobody claims from although he could.
CREATE VIEW coord_internal.stuck_queue WITH (security_barrier) AS
  SELECT q.queue, q.paused, q.ready, q.oldest_ready_at, q.last_claim_at
  FROM coord.queues q
  WHERE q.ready > 0 AND coord_internal.engine_state() = 'running'
    AND (q.paused
         OR q.oldest_ready_at < coord_internal.now() - '1 min'::interval
            AND coalesce(q.last_claim_at < coord_internal.now()
                         - greatest('1 min', least(coalesce(2 / q.rate_limit, 0), 1e9) * '1 s'::interval), true)
            AND coalesce(q.running < q.max_running, true));
