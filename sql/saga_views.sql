-- ---------------------------------------------------------------------------
-- Sagas: what can be seen of them.  Each view shows the rows of roles that the
-- reader is a member of, those of sagas that he was given by grant_use(), and
-- to coord_admin and pg_monitor all.
-- ---------------------------------------------------------------------------

-- A role's name, also one that was dropped; else its oid.
CREATE FUNCTION coord_internal.role_name(role oid) RETURNS name
  AS 'MODULE_PATHNAME', 'coord_internal_role_name' LANGUAGE C STABLE;

CREATE VIEW coord_internal.granted_saga WITH (security_barrier) AS
  SELECT DISTINCT name FROM coord_internal.use_grant
  WHERE kind = 'saga' AND coord_internal.is_mine(role);

-- Each arm of a UNION ALL is a view of its own: PostgreSQL flattens a simple
-- UNION ALL whatever the barrier on the view around it, and would then let a
-- cheap leaky condition of a query see rows before the privileges are checked.
CREATE VIEW coord_internal.live_saga WITH (security_barrier) AS
  SELECT s.id, v.name, v.version, s.status, s.backward, s.cause, s.key, s.input, s.error,
         s.owner, s.priority, s.labels, s.correlation_id, s.created_at, s.started_at,
         s.wake_at, s.deadline_at, s.has_steps, v.definition, s.finished_at
  FROM coord_internal.saga s JOIN coord_internal.saga_version v ON v.id = s.definition
  WHERE (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(s.owner)
     OR v.name IN (SELECT name FROM coord_internal.granted_saga);

CREATE VIEW coord_internal.finished_saga WITH (security_barrier) AS
  SELECT a.* FROM coord_internal.saga_archive a
  WHERE (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(a.owner)
     OR a.name IN (SELECT name FROM coord_internal.granted_saga);

CREATE VIEW coord_internal.waiting_request WITH (security_barrier) AS
  SELECT r.saga_id, s.name, r.verb, r.role, r.at
  FROM coord_internal.saga_request r JOIN coord_internal.live_saga s ON s.id = r.saga_id;

CREATE VIEW coord.sagas WITH (security_barrier) AS
  SELECT s.id, s.name, s.version, s.status,
         CASE WHEN s.backward THEN 'backward' ELSE 'forward' END AS direction,
         s.cause, s.key, s.input,
         (SELECT coalesce(jsonb_object_agg(s.definition #>> ARRAY['steps', t.ordinal::text, 'name'], t.result), '{}')
          FROM coord_internal.saga_step t WHERE t.saga_id = s.id AND t.has_result) AS output,
         s.error, coord_internal.role_name(s.owner) AS owner, s.priority, s.labels, s.correlation_id,
         s.created_at, s.started_at, s.finished_at, s.wake_at, s.deadline_at
  FROM coord_internal.live_saga s
  UNION ALL
  SELECT a.id, a.name, a.version, a.status,
         CASE WHEN a.backward THEN 'backward' ELSE 'forward' END,
         a.cause, a.key, a.input, coord_internal.steps_output(a.steps),
         a.error, coord_internal.role_name(a.owner), a.priority, a.labels, a.correlation_id,
         a.created_at, a.started_at, a.finished_at, NULL, a.deadline_at
  FROM coord_internal.finished_saga a;

CREATE VIEW coord_internal.live_item WITH (security_barrier) AS
  SELECT t.saga_id, t.ordinal, s.definition #>> ARRAY['steps', t.ordinal::text, 'name'] AS step, t.item, t.phase,
         t.status, t.attempt, t.result, t.error, t.sqlstate, t.error_detail, t.error_context, t.available_at,
         t.started_at, t.finished_at
  FROM coord_internal.live_saga s JOIN coord_internal.task t ON t.saga_id = s.id
  WHERE t.item >= 0;

CREATE VIEW coord.saga_steps WITH (security_barrier) AS
  SELECT s.id AS saga_id, (d.ordinal - 1)::int AS ordinal, d.step ->> 'name' AS step, NULL::int AS item,
         coalesce(w.phase, t.phase, 'action') AS phase,
         CASE w.phase WHEN 'action' THEN 'running' WHEN 'compensation' THEN 'compensating'
           -- handed out, failed, and not begun anew yet
           ELSE CASE WHEN k.status = 'ready' AND k.attempt > 0 AND k.phase = 'action' THEN 'ready'
                  ELSE coalesce(t.status, 'pending') END END AS status,
         -- a running attempt is not written down before it ends
         CASE WHEN w.phase IS DISTINCT FROM t.phase AND w.phase IS NOT NULL THEN 0
           ELSE coalesce(nullif(k.attempt, 0), t.attempt, 0) END + (w.phase IS NOT NULL)::int AS attempt,
         CASE WHEN t.has_result THEN coalesce(t.result, 'null') END AS result,
         coalesce(t.error, k.error) AS error, coalesce(t.sqlstate, k.sqlstate) AS sqlstate,
         coalesce(t.error_detail, k.error_detail) AS error_detail,
         coalesce(t.error_context, k.error_context) AS error_context,
         coalesce(t.next_attempt_at, CASE WHEN k.status = 'ready' AND k.available_at > coord_internal.now()
                                       THEN k.available_at END) AS next_attempt_at,
         coalesce(t.started_at, w.since) AS started_at, t.finished_at
  FROM coord_internal.live_saga s
  CROSS JOIN LATERAL jsonb_array_elements(s.definition -> 'steps') WITH ORDINALITY AS d (step, ordinal)
  LEFT JOIN coord_internal.saga_step t ON t.saga_id = s.id AND t.ordinal = d.ordinal - 1
  LEFT JOIN coord_internal.task k ON (k.saga_id, k.ordinal, k.phase, k.item) = (t.saga_id, t.ordinal, t.phase, -1)
       AND t.waiting
  LEFT JOIN coord_internal.workers() w ON w.saga_id = s.id AND w.ordinal = d.ordinal - 1
       AND d.step -> 'for_each' IS NULL
  UNION ALL
  SELECT i.saga_id, i.ordinal, i.step, i.item, i.phase,
         CASE i.status WHEN 'held' THEN 'pending' WHEN 'cancelled' THEN 'skipped' WHEN 'stopped' THEN 'ready'
           ELSE CASE WHEN i.phase = 'action' THEN i.status WHEN i.status = 'completed' THEN 'compensated'
                  WHEN i.status = 'failed' THEN 'compensation_failed' ELSE 'compensating' END END,
         i.attempt, i.result, i.error, i.sqlstate, i.error_detail, i.error_context,
         CASE WHEN i.status = 'ready' AND i.available_at > coord_internal.now() THEN i.available_at END,
         i.started_at, i.finished_at
  FROM coord_internal.live_item i
  UNION ALL
  SELECT a.id, (d.ordinal - 1)::int, d.step ->> 'step', NULL,
         coalesce(d.step ->> 'phase', 'action'), d.step ->> 'status',
         coalesce((d.step ->> 'attempt')::int, 1), d.step -> 'result', d.step ->> 'error',
         d.step ->> 'sqlstate', d.step ->> 'error_detail', d.step ->> 'error_context', NULL,
         coord_internal.step_time((d.step ->> 'started_at')::bigint),
         coord_internal.step_time((d.step ->> 'finished_at')::bigint)
  FROM coord_internal.finished_saga a
  CROSS JOIN LATERAL jsonb_array_elements(a.steps) WITH ORDINALITY AS d (step, ordinal);

CREATE VIEW coord.saga_definitions WITH (security_barrier) AS
  SELECT v.name, v.version, v.version = n.active_version AS active, v.definition,
         v.search_path, coord_internal.role_name(n.owner) AS owner,
         coord_internal.role_name(v.definer) AS definer, v.created_at
  FROM coord_internal.saga_version v JOIN coord_internal.saga_name n USING (name)
  WHERE ((SELECT coord_internal.sees_all()) OR coord_internal.is_mine(n.owner)
         OR v.name IN (SELECT name FROM coord_internal.granted_saga))
    AND NOT v.definition ? 'participant';         -- those are of two-phase commits

CREATE VIEW coord.saga_log WITH (security_barrier) AS
  SELECT saga_id, at, event, step, phase, attempt, role, reason, error, sqlstate,
         error_detail, error_context, id
  FROM coord_internal.saga_log l
  WHERE (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(owner)
     OR name IN (SELECT name FROM coord_internal.granted_saga);

CREATE FUNCTION coord.saga_output(id bigint) RETURNS jsonb
  LANGUAGE sql STABLE
  RETURN (SELECT s.output FROM coord.sagas s
          WHERE s.id = coord_internal.check_visible(saga_output.id));

-- ---------------------------------------------------------------------------
-- Pictures
-- ---------------------------------------------------------------------------

-- A text within quotes of mermaid or dot: quotes, markup and, in dot, backslashes
-- must not break out.
CREATE FUNCTION coord_internal.picture_text(t text, format text) RETURNS text
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN replace(replace(replace(replace(replace(
           CASE format WHEN 'dot' THEN replace(t, E'\\', E'\\\\') ELSE t END,
           '&', '&amp;'), '"', '&quot;'), '<', '&lt;'), '>', '&gt;'), E'\n', ' ');

-- The graph of a definition; states may colour it.
CREATE FUNCTION coord_internal.picture(definition jsonb, states jsonb, format text) RETURNS text
  LANGUAGE sql STABLE
BEGIN ATOMIC
  WITH steps AS (
    SELECT d.ordinal - 1 AS n, d.step, d.step ->> 'name' AS name, states ->> (d.step ->> 'name') AS state
    FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS d (step, ordinal)
  ), edges AS (
    SELECT b.n AS from_n, s.n AS to_n, s.step ->> 'condition' AS condition
    FROM steps s CROSS JOIN LATERAL jsonb_array_elements_text(s.step -> 'after') AS a (name)
    JOIN steps b ON b.name = a.name
  ), labels AS (
    SELECT n, step, state, coord_internal.picture_text(name, format)
        || CASE WHEN step ->> 'pivot' = 'true' THEN ' (pivot)' ELSE '' END
        || CASE WHEN step ->> 'optional' = 'true' THEN ' (optional)' ELSE '' END
        || coalesce(' (queue ' || coord_internal.picture_text(step ->> 'queue', format) || ')', '')
        || coalesce(' (signal ' || coord_internal.picture_text(step ->> 'signal', format) || ')', '')
        || coalesce(' (sleep ' || coord_internal.picture_text(step ->> 'duration', format) || ')', '')
        || coalesce(' (saga ' || coord_internal.picture_text(step ->> 'saga', format) || ')', '')
        || CASE WHEN step ? 'for_each' THEN ' (for each)' ELSE '' END
        || coalesce(': ' || state, '') AS label
    FROM steps
  )
  SELECT CASE format
    WHEN 'mermaid' THEN concat_ws(E'\n', 'graph TD',
      (SELECT string_agg(format('  s%s["%s"]', n, label) || coalesce(':::' || state, ''), E'\n' ORDER BY n) FROM labels),
      (SELECT string_agg(format('  s%s -->%s s%s', from_n,
                                coalesce('|"' || coord_internal.picture_text(condition, format) || '"|', ''), to_n),
                         E'\n' ORDER BY to_n, from_n) FROM edges),
      (SELECT string_agg(format('  s%s -. undo .-> c%s["%s"]', n, n,
                                coord_internal.picture_text(step ->> 'compensation', format)), E'\n' ORDER BY n)
       FROM labels WHERE step ? 'compensation'),
      CASE WHEN states IS NOT NULL THEN concat_ws(E'\n',
        '  classDef completed fill:#b7e4c7', '  classDef failed fill:#ffadad',
        '  classDef compensation_failed fill:#ffadad', '  classDef compensated fill:#ffd6a5',
        '  classDef compensating fill:#ffd6a5', '  classDef running fill:#a0c4ff',
        '  classDef ready fill:#caf0f8', '  classDef skipped fill:#eeeeee',
        '  classDef pending fill:#ffffff') END)
    WHEN 'dot' THEN concat_ws(E'\n', 'digraph saga {',
      (SELECT string_agg(format('  s%s [shape=box, label="%s"];', n, label), E'\n' ORDER BY n) FROM labels),
      (SELECT string_agg(format('  s%s -> s%s%s;', from_n, to_n,
                                coalesce(' [label="' || coord_internal.picture_text(condition, format) || '"]', '')),
                         E'\n' ORDER BY to_n, from_n) FROM edges),
      (SELECT string_agg(format('  s%s -> c%s [style=dashed, label="undo"]; c%s [shape=box, style=dashed, label="%s"];',
                                n, n, n, coord_internal.picture_text(step ->> 'compensation', format)), E'\n' ORDER BY n)
       FROM labels WHERE step ? 'compensation'),
      '}')
    END;
END;

-- Raises errors for SQL functions: code, message, hint.
CREATE FUNCTION coord_internal.raise(code text, message text, hint text) RETURNS boolean
  AS 'MODULE_PATHNAME', 'coord_internal_raise' LANGUAGE C;

CREATE FUNCTION coord_internal.check_format(format text) RETURNS text
  LANGUAGE sql STABLE
  RETURN CASE WHEN coalesce(format, 'mermaid') IN ('mermaid', 'dot') THEN coalesce(format, 'mermaid')
         ELSE coord_internal.raise('22023', format('unknown format "%s"', format), 'It is mermaid or dot.')::text END;

CREATE FUNCTION coord_internal.check_saga_name(name text) RETURNS text
  AS 'MODULE_PATHNAME', 'coord_internal_check_saga_name' LANGUAGE C;

CREATE FUNCTION coord.saga_diagram(name text, format text DEFAULT 'mermaid') RETURNS text
  LANGUAGE sql STABLE
  RETURN (SELECT coord_internal.picture(d.definition, NULL, coord_internal.check_format(saga_diagram.format))
          FROM coord.saga_definitions d
          WHERE d.name = coord_internal.check_saga_name(saga_diagram.name) AND d.active);

CREATE FUNCTION coord.saga_picture(id bigint, format text DEFAULT 'mermaid') RETURNS text
  LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT coord_internal.picture(
      coalesce((SELECT d.definition FROM coord.saga_definitions d
                WHERE (d.name, d.version) = (s.name, s.version)
                  AND (SELECT array_agg(e.step ->> 'name' ORDER BY e.n)
                       FROM jsonb_array_elements(d.definition -> 'steps') WITH ORDINALITY AS e (step, n))
                    = (SELECT array_agg(t.step ORDER BY t.ordinal) FROM coord.saga_steps t WHERE t.saga_id = s.id AND t.item IS NULL)),
               -- the definition is gone, or the name was used again: the steps in a row
               (SELECT jsonb_build_object('steps', jsonb_agg(jsonb_build_object('name', t.step,
                  'after', CASE WHEN t.before IS NULL THEN '[]' ELSE jsonb_build_array(t.before) END) ORDER BY t.ordinal))
                FROM (SELECT step, ordinal, lag(step) OVER (ORDER BY ordinal) AS before
                      FROM coord.saga_steps WHERE saga_id = s.id AND item IS NULL) t)),
      (SELECT jsonb_object_agg(t.step, t.status) FROM coord.saga_steps t WHERE t.saga_id = s.id AND t.item IS NULL),
      coord_internal.check_format(saga_picture.format))
  FROM coord.sagas s WHERE s.id = coord_internal.check_visible(saga_picture.id);
END;

CREATE FUNCTION coord.saga_timeline(id bigint) RETURNS SETOF text
  LANGUAGE sql STABLE
BEGIN ATOMIC
  WITH steps AS (
    SELECT t.*, greatest(t.started_at, coalesce(t.finished_at, CASE WHEN t.started_at IS NOT NULL THEN coord_internal.now() END)) AS ended_at
    FROM coord.saga_steps t WHERE t.saga_id = coord_internal.check_visible(saga_timeline.id) AND t.item IS NULL
  ), span AS (
    SELECT min(started_at) AS t0, greatest(extract(epoch FROM max(ended_at) - min(started_at)), 0.000001) AS total,
           max(length(step)) AS width FROM steps
  )
  SELECT format('%s %s %s%s %s', rpad(s.step, span.width),
      rpad(s.status, 19),
      repeat(' ', coalesce(floor(extract(epoch FROM s.started_at - span.t0) / span.total * 40)::int, 0)),
      CASE WHEN s.started_at IS NULL THEN '' ELSE
        repeat('=', greatest(1, ceil(extract(epoch FROM s.ended_at - s.started_at) / span.total * 40)::int)) END,
      CASE WHEN s.started_at IS NULL THEN '' ELSE
        round(extract(epoch FROM s.ended_at - s.started_at) * 1000, 3) || ' ms' END)
  FROM steps s CROSS JOIN span ORDER BY s.ordinal;
END;
