-- Starting sagas: keys, versions, times, priorities, and whose they are.
\set name regress_saga_start
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

SELECT coord.saga_define('s', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act')]);

-- A saga as it is started.
SELECT coord.saga_start('s', '{"n": 1}', key => 'new', correlation_id => '00000000-0000-0000-0000-000000000001', priority => 7, labels => '{"env": "test"}', deadline => '1 day') AS id \gset
\x on
SELECT id = :id AS id, name, version, status, direction, cause, key, input, output, error, owner, priority, labels, correlation_id, created_at, started_at, finished_at, wake_at, deadline_at
  FROM coord.sagas WHERE id = :id;
\x off
SELECT saga_id = :id, ordinal, step, item, phase, status, attempt, result, error, next_attempt_at, started_at, finished_at FROM coord.saga_steps WHERE saga_id = :id ORDER BY ordinal;
SELECT :id < 9007199254740991 AND :id > 0;
CALL coord.run_pending() \gset
\x on
SELECT id = :id AS id, name, version, status, direction, cause, key, input, output, error, owner, priority, labels, correlation_id, created_at, started_at, finished_at, wake_at, deadline_at
  FROM coord.sagas WHERE id = :id;
\x off
SELECT saga_id = :id, ordinal, step, item, phase, status, attempt, result, error, next_attempt_at, started_at, finished_at FROM coord.saga_steps WHERE saga_id = :id ORDER BY ordinal;

-- A key stands for one request.
SELECT coord.saga_start('s', '{"n": 1}', key => 'key') AS id \gset
SELECT coord.saga_start('s', '{"n": 1}', key => 'key') = :id, coord.saga_find('s', 'key') = :id;
SELECT coord.saga_start('s', '{ "n" : 1.0 }', key => 'key', priority => 9, labels => '{}') = :id;
SELECT priority, labels FROM coord.sagas WHERE id = :id;
SELECT try($$SELECT coord.saga_start('s', '{"n": 2}', key => 'key')$$);
SELECT try($$SELECT coord.saga_start('s', key => 'key')$$);
SELECT try($$SELECT coord.saga_start('s', '{"n": 1}', key => 'key', on_existing => 'error')$$);
SELECT try($$SELECT coord.saga_start('s', '{"n": 2}', key => 'key', on_existing => 'error')$$);
SELECT try($$SELECT coord.saga_start('s', '{"n": 2}', key => 'key', on_existing => 'restart_failed')$$);
SELECT count(*) FROM coord.sagas WHERE key = 'key' AND owner = current_user;
SELECT coord.saga_find('s', 'other'), coord.saga_find('other', 'key');
SELECT try($$SELECT coord.saga_find('s', NULL)$$);
SELECT try($$SELECT coord.saga_find(NULL, 'key')$$);
-- The same key of another name is another one.
SELECT coord.saga_define('other', ARRAY[coord.step('a', 'act')]);
SELECT coord.saga_start('other', '{"n": 3}', key => 'key') <> :id;
-- Finished, it is still the one with the key.
CALL coord.run_pending() \gset
SELECT coord.saga_status(:id), coord.saga_start('s', '{"n": 1}', key => 'key') = :id;
SELECT try($$SELECT coord.saga_start('s', '{"n": 2}', key => 'key')$$);
SELECT coord.saga_start('s', '{"n": 1}', key => 'key', on_existing => 'restart_failed') = :id;

-- After failed or compensated: anew, if asked for; the input may be another one.
INSERT INTO fault VALUES ('a', 1, 'P0001');
SELECT coord.saga_start('s', key => 'again') AS id \gset
CALL coord.run_pending() \gset
SELECT coord.saga_status(:id), coord.saga_start('s', key => 'again') = :id, coord.saga_start('s', key => 'again', on_existing => 'return') = :id;
UPDATE fault SET what = 'b';
SELECT coord.saga_start('s', key => 'again', on_existing => 'restart_failed') AS second \gset
SELECT :second > :id, coord.saga_find('s', 'again') = :second;
SELECT coord.saga_start('s', key => 'again', on_existing => 'restart_failed') = :second;
CALL coord.run_pending() \gset
SELECT coord.saga_status(:second);
DELETE FROM fault;
SELECT coord.saga_start('s', '{"n": 2}', key => 'again', on_existing => 'restart_failed') AS third \gset
CALL coord.run_pending() \gset
SELECT :third > :second, coord.saga_status(:third), coord.saga_status(:id), coord.saga_status(:second);
SELECT coord.saga_start('s', '{"n": 2}', key => 'again', on_existing => 'restart_failed') = :third;
SELECT status, input FROM coord.sagas WHERE key = 'again' AND owner = current_user ORDER BY id;

-- Rolled back, it was never started and the key is free.
BEGIN;
SELECT coord.saga_start('s', '{"n": 1}', key => 'rolled back') AS id \gset
SELECT coord.saga_start('s', '{"n": 1}', key => 'rolled back') = :id;
SELECT coord.saga_status(:id);
ROLLBACK;
SELECT try(format('SELECT coord.saga_status(%s)', :id)), coord.saga_find('s', 'rolled back');
CALL coord.run_pending();
SELECT coord.saga_start('s', '{"n": 2}', key => 'rolled back') AS id \gset
SELECT coord.saga_abandon(:id);
-- A savepoint too.
BEGIN;
SAVEPOINT s;
SELECT coord.saga_start('s', key => 'savepoint') AS id \gset
ROLLBACK TO s;
SELECT coord.saga_find('s', 'savepoint');
SELECT coord.saga_start('s', '{"n": 2}', key => 'savepoint') AS id \gset
COMMIT;
SELECT status, input FROM coord.sagas WHERE id = :id;
CALL coord.run_pending() \gset
SELECT coord.saga_status(:id);

-- Not before start_at; the deadline counts from there.
SELECT coord.saga_start('s', key => 'later', start_at => clock() + interval '2 h', deadline => '1 h') AS id \gset
SELECT wake_at, deadline_at, started_at FROM coord.sagas WHERE id = :id;
CALL coord.run_pending();
SELECT at('2030-01-01 01:59:59.999999+00');
CALL coord.run_pending();
SELECT at('2030-01-01 02:00:00+00');
CALL coord.run_pending() \gset
SELECT status, started_at, finished_at FROM coord.sagas WHERE id = :id;
-- One that has passed is now.
SELECT coord.saga_start('s', key => 'past', start_at => '2029-01-01', deadline => '1 h') AS id \gset
SELECT wake_at, deadline_at FROM coord.sagas WHERE id = :id;
CALL coord.run_pending() \gset
SELECT coord.saga_status(:id);

-- Versions: the active one, or the one that is asked for; instances keep theirs.
SELECT coord.saga_start('s', key => 'version 1') IS NOT NULL;
SELECT coord.saga_define('s', ARRAY[coord.step('only', 'act')]);
SELECT coord.saga_start('s', key => 'version 2') IS NOT NULL, coord.saga_start('s', key => 'version 1 again', version => 1) IS NOT NULL;
SELECT coord.saga_activate('s', 1);
SELECT coord.saga_start('s', key => 'active 1') IS NOT NULL, coord.saga_start('s', key => 'version null', version => NULL) IS NOT NULL;
CALL coord.run_pending() \gset
SELECT key, version, status, traced(key) FROM coord.sagas WHERE key ~ 'version|active' AND owner = current_user ORDER BY id;
SELECT try($$SELECT coord.saga_start('s', version => 3)$$);
SELECT try($$SELECT coord.saga_start('s', version => 0)$$);
SELECT try($$SELECT coord.saga_start('s', version => -1)$$);

-- Higher priority first, then the older one.
SELECT coord.saga_define('one', ARRAY[coord.step('a', 'act')]);
SELECT coord.saga_start('one', key => key, priority => p) IS NOT NULL FROM (VALUES ('p0', 0), ('p1', 1), ('p-1', -1), ('p0 younger', 0), ('p5', 5), ('pnull', NULL)) AS v (key, p);
CALL coord.run_pending() \gset
SELECT key FROM trace JOIN coord.sagas ON id = saga WHERE name = 'one' AND owner = current_user ORDER BY n;

-- The correlation id: as given, else the session's, else a random one; steps have it, and what they start has it.
CREATE FUNCTION correlation(jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(current_setting('coord.correlation_id')) $$;
SELECT coord.saga_define('child', ARRAY[coord.step('a', 'correlation')]);
CREATE FUNCTION start_child(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(coord.saga_start('child', key => 'child of ' || (context ->> 'key'))) $$;
SELECT coord.saga_define('parent', ARRAY[coord.step('a', 'correlation'), coord.step('child', 'start_child')]);
SET coord.correlation_id = '00000000-0000-0000-0000-00000000000a';
SELECT coord.saga_start('parent', key => 'from the session') IS NOT NULL, coord.saga_start('parent', key => 'given', correlation_id => '00000000-0000-0000-0000-00000000000b') IS NOT NULL;
RESET coord.correlation_id;
SELECT coord.saga_start('parent', key => 'random') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT s.key, CASE s.key WHEN 'random' THEN 'random' ELSE s.correlation_id::text END, s.output ->> 'a' = s.correlation_id::text, c.status, c.correlation_id = s.correlation_id, c.output ->> 'a' = s.correlation_id::text
  FROM coord.sagas s JOIN coord.sagas c ON c.id = (s.output ->> 'child')::bigint WHERE s.name = 'parent' AND s.owner = current_user ORDER BY s.id;
SHOW coord.correlation_id;
\set VERBOSITY sqlstate
SET coord.correlation_id = 'not a uuid';
\set VERBOSITY default

-- Wrong arguments; none leaves anything behind.
SELECT count(*) AS before FROM coord.sagas \gset
SELECT try($$SELECT coord.saga_start(NULL)$$);
SELECT try($$SELECT coord.saga_start('s', labels => '[]')$$);
SELECT try($$SELECT coord.saga_start('s', labels => '"x"')$$);
SELECT try($$SELECT coord.saga_start('s', key => '')$$);
SELECT try($$SELECT coord.saga_start('s', key => repeat('x', 201))$$);
SELECT try($$SELECT coord.saga_start('s', deadline => '0')$$);
SELECT try($$SELECT coord.saga_start('s', deadline => '-1 s')$$);
SELECT try($$SELECT coord.saga_start('s', start_at => 'infinity')$$);
SELECT try($$SELECT coord.saga_start('s', start_at => '-infinity')$$);
SELECT try($$SELECT coord.saga_start('s', on_existing => 'replace')$$);
SELECT count(*) = :before FROM coord.sagas;
-- Nulls are the defaults.
SELECT coord.saga_start('one', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) AS id \gset
SELECT status, key, input, priority, labels, deadline_at FROM coord.sagas WHERE id = :id;
SELECT coord.saga_cancel(:id);

-- Who may start: who may use the name, and may execute every function.
RESET ROLE;
CREATE ROLE regress_saga_start_other IN ROLE coord_user;
CREATE ROLE regress_saga_start_reader IN ROLE coord_reader;
GRANT ALL ON trace, fault TO regress_saga_start_other;
GRANT USAGE ON SCHEMA regress_saga_start TO regress_saga_start_other;
SET ROLE regress_saga_start_other;
SELECT try($$SELECT coord.saga_start('one')$$);
SET ROLE :name;
SELECT coord.grant_use('saga', 'one', 'regress_saga_start_other');
SET ROLE regress_saga_start_other;
SELECT coord.saga_start('one', key => 'as another') AS id \gset
-- It is his now; with his rights it runs.
SELECT owner, status FROM coord.sagas WHERE id = :id;
CALL coord.run_pending() \gset
SELECT coord.saga_status(:id);
SET ROLE :name;
-- The definer does not see it: he is not a member.
SELECT count(*) FROM coord.sagas WHERE id = :id;
SELECT try($$SELECT coord.saga_start('one', key => 'as another')$$);
SELECT coord.saga_find('one', 'as another');
REVOKE EXECUTE ON FUNCTION act, undo FROM PUBLIC;
SET ROLE regress_saga_start_other;
SELECT try($$SELECT coord.saga_start('one')$$);
SET ROLE :name;
GRANT EXECUTE ON FUNCTION act, undo TO PUBLIC;
REVOKE USAGE ON SCHEMA regress_saga_start FROM PUBLIC;
RESET ROLE;
REVOKE USAGE ON SCHEMA regress_saga_start FROM regress_saga_start_other;
SET ROLE regress_saga_start_other;
\set VERBOSITY sqlstate
SELECT coord.saga_start('one');
\set VERBOSITY default
RESET ROLE;
GRANT USAGE ON SCHEMA regress_saga_start TO PUBLIC;
SET ROLE regress_saga_start_reader;
SELECT try($$SELECT coord.saga_start('one')$$);
-- A SECURITY DEFINER wrapper starts it as its owner.
SET ROLE :name;
CREATE FUNCTION wrapper() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = regress_saga_start AS $$ SELECT coord.saga_start('one', key => 'wrapped') $$;
SET ROLE regress_saga_start_reader;
SELECT wrapper() AS id \gset
SET ROLE :name;
SELECT owner FROM coord.sagas WHERE id = :id;
CALL coord.run_pending() \gset
SELECT coord.saga_status(:id);
-- A function that is gone meets the caller, not the operator.
DROP FUNCTION undo;
SELECT try($$SELECT coord.saga_start('s', version => 1)$$);
RESET ROLE;
REVOKE ALL ON trace, fault FROM regress_saga_start_other;
DROP ROLE regress_saga_start_other, regress_saga_start_reader;

\set include :abs_srcdir/include/saga_end.psql
\i :include
