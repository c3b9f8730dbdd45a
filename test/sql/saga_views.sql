-- The views: their columns, and who sees what.
\set name regress_saga_views
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

-- Columns in order, with types: callers are written against them.
SELECT format('%s: %s', c.relname, string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum))
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'coord'::regnamespace AND c.relkind = 'v' GROUP BY c.relname ORDER BY c.relname COLLATE "C";
-- All of them are security barriers; there is nothing but views.
SELECT relname, reloptions FROM pg_class WHERE relnamespace = 'coord'::regnamespace AND relkind = 'v' AND reloptions IS DISTINCT FROM '{security_barrier=true}';
SELECT relname, relkind FROM pg_class WHERE relnamespace = 'coord'::regnamespace AND relkind NOT IN ('v', 'c');

-- One saga of every kind: waiting, suspended, completed, compensated.
SELECT coord.saga_define('mine', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act')]);
SELECT coord.saga_define('given', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act')], on_exhausted => 'suspend');
SELECT coord.saga_start('mine', key => 'completed') IS NOT NULL;
CALL coord.run_pending() \gset
INSERT INTO fault VALUES ('b', 1, 'P0001');
SELECT coord.saga_start('mine', key => 'compensated') IS NOT NULL, coord.saga_start('given', key => 'suspended') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_start('given', key => 'waiting', start_at => clock() + interval '1 day') IS NOT NULL;

-- Live and archived sagas look alike.
SELECT key, name, version, status, direction, cause, error, output, owner, started_at IS NOT NULL, finished_at IS NOT NULL, wake_at IS NOT NULL FROM coord.sagas WHERE owner = 'regress_saga_views' ORDER BY id;
SELECT key, ordinal, step, item, phase, t.status, attempt, result, t.error, sqlstate, error_detail, error_context IS NOT NULL, next_attempt_at, t.started_at, t.finished_at
  FROM coord.sagas s JOIN coord.saga_steps t ON t.saga_id = s.id WHERE owner = 'regress_saga_views' ORDER BY s.id, ordinal;
SELECT key, event, step, phase, attempt, role, reason, l.error, sqlstate, at FROM coord.saga_log l JOIN coord.sagas s ON s.id = saga_id WHERE owner = 'regress_saga_views' ORDER BY l.id;

-- Who sees what.
RESET ROLE;
CREATE ROLE regress_saga_views_reader IN ROLE coord_reader;
CREATE ROLE regress_saga_views_member IN ROLE coord_reader, regress_saga_views;
CREATE ROLE regress_saga_views_use IN ROLE coord_user;
CREATE ROLE regress_saga_views_admin IN ROLE coord_admin;
CREATE ROLE regress_saga_views_monitor IN ROLE pg_monitor;
CREATE ROLE regress_saga_views_noinherit NOINHERIT IN ROLE regress_saga_views;
GRANT USAGE ON SCHEMA coord TO regress_saga_views_noinherit;
GRANT SELECT ON ALL TABLES IN SCHEMA coord TO regress_saga_views_noinherit;
CREATE ROLE regress_saga_views_nobody;
SET ROLE :name;
SELECT coord.grant_use('saga', 'given', 'regress_saga_views_use');
SELECT set_config('regress.before', (SELECT string_agg(id::text, ',') FROM coord.sagas WHERE owner = 'regress_saga_views'), false) IS NOT NULL;
CREATE FUNCTION seen() RETURNS text LANGUAGE sql AS $$
  SELECT format('%s: %s sagas, %s steps, %s log rows, %s definitions, %s stuck', current_user,
    (SELECT string_agg(key, ' ' ORDER BY id) FROM coord.sagas WHERE owner = 'regress_saga_views'),
    (SELECT count(*) FROM coord.saga_steps WHERE saga_id = ANY (string_to_array(current_setting('regress.before'), ',')::bigint[])),
    (SELECT count(*) FROM coord.saga_log WHERE saga_id = ANY (string_to_array(current_setting('regress.before'), ',')::bigint[])),
    (SELECT string_agg(name, ' ' ORDER BY name) FROM coord.saga_definitions WHERE owner = 'regress_saga_views'),
    (SELECT count(*) FROM coord.stuck WHERE id = ANY (string_to_array(current_setting('regress.before'), ','))))
$$;
SELECT seen();
SET ROLE regress_saga_views_reader;
SELECT seen();
SET ROLE regress_saga_views_member;
SELECT seen();
SET ROLE regress_saga_views_use;
SELECT seen();
SET ROLE regress_saga_views_admin;
SELECT seen();
SET ROLE regress_saga_views_monitor;
SELECT seen();
-- A member who must SET ROLE first is a member.
SET ROLE regress_saga_views_noinherit;
SELECT seen();
SET ROLE regress_saga_views_nobody;
SELECT try('SELECT seen()');
-- Nobody changes them.
SET ROLE regress_saga_views_admin;
SELECT try('DELETE FROM coord.saga_definitions');
SELECT try($$UPDATE coord.saga_log SET reason = 'none'$$);
SELECT try('SELECT * FROM coord_internal.saga');
-- A function in a query does not see rows that the view hides.
SET ROLE regress_saga_views_reader;
CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE NOTICE 'leaked %', $1; RETURN true; END $$;
SELECT count(*) FROM coord.sagas WHERE pg_temp.leak(key);
SELECT count(*) FROM coord.saga_steps WHERE pg_temp.leak(step);
SELECT count(*) FROM coord.saga_definitions WHERE pg_temp.leak(name);
SELECT count(*) FROM coord.saga_log WHERE pg_temp.leak(step);
SELECT count(*) FROM coord.stuck WHERE pg_temp.leak(name);
DROP FUNCTION pg_temp.leak;

-- A renamed owner has the new name, a dropped one keeps the last that was known.
RESET ROLE;
ALTER ROLE regress_saga_views_use RENAME TO regress_saga_views_renamed;
GRANT ALL ON trace, fault TO regress_saga_views_renamed;
SET ROLE regress_saga_views_renamed;
SELECT coord.saga_start('given', key => 'of the renamed') AS id \gset
SELECT coord.saga_abandon(:id);
SELECT owner FROM coord.sagas WHERE id = :id;
RESET ROLE;
REVOKE ALL ON trace, fault FROM regress_saga_views_renamed;
ALTER ROLE regress_saga_views_renamed RENAME TO regress_saga_views_again;
SELECT owner FROM coord.sagas WHERE id = :id;
SET ROLE :name;
SELECT coord.saga_abandon(find('suspended')), coord.saga_abandon(find('waiting'));
RESET ROLE;
DROP OWNED BY regress_saga_views_noinherit;
DROP ROLE regress_saga_views_again, regress_saga_views_reader, regress_saga_views_member, regress_saga_views_admin, regress_saga_views_monitor,
  regress_saga_views_noinherit, regress_saga_views_nobody;

\set include :abs_srcdir/include/saga_end.psql
\i :include
