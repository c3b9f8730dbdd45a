-- Running sagas here and now: saga_run() and run_pending().
\set name regress_saga_run
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

SELECT coord.saga_define('s', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act')]);
SELECT coord.saga_define('wait', ARRAY[coord.step('a', 'act', retry_delay => '0'), coord.step('b', 'act', retry_delay => '1 h')]);
\pset tuples_only off
\pset footer off

-- saga_run: to the end, with the result.
CALL coord.saga_run('s', key => 'first') \gset run_
SELECT :run_id = find('first') AS found, :'run_status' AS status, :'run_output' AS output;
SELECT traced('first');
-- The same key: the same one, nothing runs again.
CALL coord.saga_run('s', key => 'first') \gset again_
SELECT :again_id = :run_id AS same, :'again_status' AS status, :'again_output' AS output, traced('first');
\set VERBOSITY sqlstate
CALL coord.saga_run('s', '{"n": 2}', key => 'first');
CALL coord.saga_run('nothing');
CALL coord.saga_run(NULL);
\set VERBOSITY default
-- It fails like any other.
INSERT INTO fault VALUES ('b', 1, 'P0001');
CALL coord.saga_run('s', '{"n": 1}', 'fails') \gset run_
SELECT :'run_status' AS status, :'run_output' AS output, traced('fails');
-- With the clock pinned it does not sleep through a retry: it says how far it came.
UPDATE fault SET code = '40001';
CALL coord.saga_run('wait', key => 'waits') \gset run_
SELECT :'run_status' AS status, :{?run_output} AS has_output;
SELECT show('waits');
-- Its time is kept half a minute ahead, so that a worker takes over if this session is no more.
SELECT wake_at > next_attempt_at AS ahead, wake_at - next_attempt_at AS by FROM coord.sagas s JOIN coord.saga_steps t ON t.saga_id = s.id AND t.step = 'b' WHERE s.id = find('waits');
SELECT next('waits') AS moved;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('waits'));
-- Attempts without a delay are made at once.
DELETE FROM fault;
INSERT INTO fault VALUES ('a', 2, '40001');
CALL coord.saga_run('wait', key => 'at once') \gset run_
SELECT :'run_status' AS status, :'run_output' AS output;
DELETE FROM fault;
-- Null arguments are the defaults.
CALL coord.saga_run('s', NULL, NULL) \gset run_
SELECT :'run_status' AS status, (SELECT input FROM coord.sagas WHERE id = :run_id);

-- Not in a transaction block, not from a function; before any work.
BEGIN;
CALL coord.saga_run('s', key => 'in a block');
ROLLBACK;
BEGIN;
CALL coord.run_pending();
ROLLBACK;
CREATE FUNCTION runs() RETURNS void LANGUAGE plpgsql AS $$ DECLARE t int; BEGIN CALL coord.run_pending(turns => t); END $$;
SELECT runs();
CREATE PROCEDURE set_clause() LANGUAGE plpgsql SET work_mem = '1 MB' AS $$ DECLARE t int; BEGIN CALL coord.run_pending(turns => t); END $$;
CALL set_clause();
SELECT coord.saga_find('s', 'in a block');

-- In a DO block and in a procedure, like COMMIT.
SELECT coord.saga_start('s', key => 'do 1') IS NOT NULL AS started;
DO $$
DECLARE
  t int;
  i bigint;
  s text;
  o jsonb;
BEGIN
  CALL coord.run_pending(NULL, t);
  RAISE NOTICE 'turns made: %, %', t > 0, coord.saga_status(find('do 1'));
  CALL coord.run_pending(turns => t);
  RAISE NOTICE 'turns made: %', t > 0;
  CALL coord.saga_run('s', '{}', 'do 2', i, s, o);
  RAISE NOTICE '% %', s, o;
  PERFORM coord.saga_start('s', key => 'do 3');
  COMMIT;
  CALL coord.run_pending(turns => t);
  RAISE NOTICE '%', coord.saga_status(find('do 3'));
  -- and the loop goes on with its own variables and cursors
  FOR s IN SELECT key FROM coord.sagas WHERE id IN (find('do 1'), find('do 2')) ORDER BY key LOOP
    CALL coord.run_pending(turns => t);
    RAISE NOTICE 'loop: %', s;
  END LOOP;
END $$;
-- What was not committed before is committed by it, as by COMMIT.
DO $$
DECLARE
  t int;
BEGIN
  INSERT INTO fault VALUES ('nothing', 0, 'x');
  CALL coord.run_pending(turns => t);
  RAISE EXCEPTION 'after it';
END $$;
SELECT count(*) FROM fault;
DELETE FROM fault;

-- max_turns: at most so many; one turn is one saga's.
SELECT count(coord.saga_start('s', key => 'turn ' || i)) AS started FROM generate_series(1, 3) i;
CALL coord.run_pending(0);
SELECT count(*) FROM trace JOIN coord.sagas ON id = saga WHERE key ~ '^turn';
CALL coord.run_pending(1);
SELECT count(*) FILTER (WHERE started_at IS NOT NULL) AS begun FROM coord.sagas WHERE key ~ '^turn' AND owner = current_user;
CALL coord.run_pending(NULL) \gset
SELECT status, count(*) FROM coord.sagas WHERE key ~ '^turn' AND owner = current_user GROUP BY status;
CALL coord.run_pending();
CALL coord.run_pending(-1);

-- What becomes due while it runs is run as well.
CREATE FUNCTION start_next(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE n int := context #> '{input,n}';
BEGIN
  IF n > 0 THEN RETURN to_jsonb(coord.saga_start('nest', jsonb_build_object('n', n - 1), key => 'nest ' || n - 1)); END IF;
  RETURN '"end"';
END $$;
SELECT coord.saga_define('nest', ARRAY[coord.step('a', 'start_next')]);
SELECT coord.saga_start('nest', '{"n": 5}', key => 'nest 5') IS NOT NULL AS started;
CALL coord.run_pending() \gset
SELECT status, count(*) FROM coord.sagas WHERE name = 'nest' AND owner = current_user GROUP BY status;

-- Only sagas of roles that the caller is a member of.
RESET ROLE;
CREATE ROLE regress_saga_run_other IN ROLE coord_user;
CREATE ROLE regress_saga_run_member IN ROLE coord_user, regress_saga_run;
CREATE ROLE regress_saga_run_reader IN ROLE coord_reader;
SET ROLE :name;
SELECT coord.saga_start('s', key => 'whose') IS NOT NULL AS started;
SET ROLE regress_saga_run_other;
CALL coord.run_pending();
SET ROLE regress_saga_run_reader;
\set VERBOSITY sqlstate
CALL coord.run_pending();
CALL coord.saga_run('s');
\set VERBOSITY default
SET ROLE :name;
SELECT coord.saga_status(find('whose'));
-- A member runs it as its owner, not as himself.
CREATE FUNCTION who(jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('current_user', current_user, 'path', current_setting('search_path')) $$;
SELECT coord.saga_define('who', ARRAY[coord.step('a', 'who')]);
SELECT coord.saga_start('who', key => 'who') IS NOT NULL AS started;
SET ROLE regress_saga_run_member;
SET search_path = pg_catalog;
CALL coord.run_pending() \gset
SELECT current_user, current_setting('search_path');
RESET search_path;
SET search_path = regress_saga_run;
SET ROLE :name;
SELECT coord.saga_output(find('who')), coord.saga_status(find('whose'));

-- A step leaves nothing behind in the caller's session.
CREATE FUNCTION leaks(jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('work_mem', '77MB', false), set_config('application_name', 'leaked', false), set_config('search_path', 'pg_catalog', false), set_config('regress.leak', 'leaked', false);
END $$;
CREATE FUNCTION settings(jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_array(current_setting('work_mem'), current_setting('application_name') = 'leaked', current_setting('search_path'), current_setting('regress.leak', true)) $$;
SELECT coord.saga_define('leaks', ARRAY[coord.step('a', 'leaks'), coord.step('b', 'settings')]);
SET work_mem = '5MB';
SELECT coord.saga_start('leaks', key => 'leaks') IS NOT NULL AS started;
CALL coord.run_pending() \gset
SELECT coord.saga_output(find('leaks')) -> 'b' AS next_step, current_setting('work_mem') AS work_mem, current_setting('application_name') = 'leaked' AS leaked,
  current_setting('search_path') AS path, nullif(current_setting('regress.leak', true), '') AS leak;
RESET work_mem;
-- Nor can it commit, or end the caller's transaction.
CREATE FUNCTION commits(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
CREATE FUNCTION calls_commit(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL commits(); END $$;
CREATE FUNCTION runs_more(jsonb) RETURNS void LANGUAGE plpgsql AS $$ DECLARE t int; BEGIN CALL coord.run_pending(turns => t); END $$;
SELECT count(coord.saga_define(f, ARRAY[coord.step('a', f)])) AS defined, count(coord.saga_start(f, key => f)) AS started FROM unnest('{commits,calls_commit,runs_more}'::text[]) AS f;
CALL coord.run_pending() \gset
SELECT key, s.status, sqlstate FROM coord.sagas s JOIN coord.saga_steps t ON t.saga_id = s.id WHERE key IN ('commits', 'calls_commit', 'runs_more') AND owner = current_user ORDER BY key;
-- Deferred constraints are the step's own affair: the failure is its failure.
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION orphan(jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO regress_saga_run.child VALUES (1) $$;
SELECT coord.saga_define('deferred', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'orphan')]);
SELECT coord.saga_start('deferred', key => 'deferred') IS NOT NULL AS started;
CALL coord.run_pending() \gset
SELECT show('deferred');
RESET ROLE;
DROP ROLE regress_saga_run_other, regress_saga_run_member, regress_saga_run_reader;

\set include :abs_srcdir/include/saga_end.psql
\i :include
