-- Steps of a hostile role in somebody's own session, CALL coord.run_pending().
-- The same in background workers: test/t/030_security.pl.
-- A pinned clock keeps the workers away.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS coord;
SET coord.test_now = '2030-01-01 00:00:00+00';
\getenv srcdir PG_ABS_SRCDIR
\set attacks :srcdir '/attacks.sql'
\set ECHO none
\o /dev/null
\i :attacks
\o
\set ECHO all

CREATE FUNCTION pg_temp.attack(kind text, VARIADIC statements text[]) RETURNS bigint LANGUAGE sql AS $$
  SELECT coord.saga_start('mallory: ' || kind, jsonb_build_object('sql', statements)) $$;
CREATE FUNCTION pg_temp.outcome() RETURNS SETOF text LANGUAGE sql AS $$
  SELECT jsonb_array_elements_text(output -> 'attempt') FROM coord.sagas
  WHERE id = (SELECT max(id) FROM coord.sagas) $$;

-- She cannot become anybody else, whoever's session it is.
SET ROLE sec_mallory;
SELECT pg_temp.attack('attempt',
  'SELECT * FROM vault.secret', 'RESET ROLE', 'SET ROLE NONE', 'SET ROLE sec_boss', 'SET LOCAL ROLE sec_boss',
  'SET SESSION AUTHORIZATION sec_boss', 'SET SESSION AUTHORIZATION DEFAULT', 'RESET SESSION AUTHORIZATION',
  $$SELECT set_config('role', 'none', false)$$, $$SELECT set_config('session_authorization', 'sec_boss', false)$$,
  'SELECT den.as_boss()', 'SELECT den.as_session()', 'RESET ALL', 'SELECT * FROM vault.secret') > 0 AS started;
RESET ROLE;
CALL coord.run_pending() \g /dev/null
SELECT o AS outcome FROM pg_temp.outcome() o;

SET ROLE sec_mallory;
SELECT pg_temp.attack('attempt', 'SELECT * FROM vault.secret', 'RESET ROLE', 'SET ROLE sec_boss',
  'SET SESSION AUTHORIZATION DEFAULT', 'SELECT den.as_session()') > 0 AS started;
SET ROLE sec_boss;
CALL coord.run_pending() \g /dev/null
SELECT o AS outcome FROM pg_temp.outcome() o;

-- Also when it is her own session, which somebody else logged in to.
SET ROLE sec_mallory;
SELECT pg_temp.attack('attempt', 'SELECT * FROM vault.secret', 'RESET ROLE', 'SET ROLE sec_boss',
  'SET SESSION AUTHORIZATION DEFAULT', 'SELECT den.as_session()') > 0 AS started;
CALL coord.run_pending() \g /dev/null
SELECT o AS outcome FROM pg_temp.outcome() o;

-- She cannot end the transaction, run the engine inside itself, or leave
-- anything in a session that is not hers.
SELECT pg_temp.attack('attempt',
  'COMMIT', 'ROLLBACK', 'SAVEPOINT s', $$PREPARE TRANSACTION 's'$$,
  'DO $d$ BEGIN COMMIT; END $d$', 'DO $d$ BEGIN ROLLBACK; END $d$',
  'CALL coord.run_pending()', 'DO $d$ DECLARE n int; BEGIN CALL coord.run_pending(NULL, n); END $d$',
  $$CALL coord.saga_run('alice: look')$$, $$ALTER SYSTEM SET coord.enabled = off$$,
  'CREATE TEMP TABLE t (x int)', 'CREATE TEMP VIEW t AS SELECT 1', 'PREPARE p AS SELECT 1',
  'DECLARE c CURSOR WITH HOLD FOR SELECT 1', 'LISTEN l', 'UNLISTEN *', 'DEALLOCATE ALL', 'CLOSE ALL', 'DISCARD ALL',
  'DISCARD TEMP', 'SELECT pg_terminate_backend(pg_backend_pid())', 'SELECT pg_cancel_backend(pg_backend_pid())',
  $$SET coord.test_now = ''$$) > 0 AS started;
RESET ROLE;
CALL coord.run_pending() \g /dev/null
SELECT o AS outcome FROM pg_temp.outcome() o;

-- What she leaves for the commit is refused in a session that is not hers, and
-- in hers run as her.
SET ROLE sec_mallory;
SELECT pg_temp.attack('execute', 'INSERT INTO den.bait VALUES (1)') AS a \gset
SELECT pg_temp.attack('execute', 'INSERT INTO den.bait2 VALUES (1)') AS b \gset
SELECT pg_temp.attack('execute', 'SET CONSTRAINTS ALL DEFERRED', 'INSERT INTO den.bait VALUES (1)') AS c \gset
SELECT pg_temp.attack('execute', 'INSERT INTO den.bait3 VALUES (1)') AS d \gset
RESET ROLE;
CALL coord.run_pending(4) \g /dev/null
SELECT * FROM den.loot;
SET ROLE sec_mallory;
SELECT pg_temp.attack('execute', 'INSERT INTO den.bait VALUES (1)') AS a \gset
SELECT pg_temp.attack('execute', 'INSERT INTO den.bait2 VALUES (1)') AS b \gset
SELECT pg_temp.attack('execute', 'INSERT INTO den.bait3 VALUES (1)') AS d \gset
CALL coord.run_pending() \g /dev/null
SELECT status FROM coord.sagas WHERE id IN (:a, :b, :d) ORDER BY id;
SELECT label, who, count(*) FROM den.loot GROUP BY label, who ORDER BY label;
RESET ROLE;
CLOSE ALL;
TRUNCATE den.loot;

-- A cursor that would be read at commit, by a session that is hers alone.
SET ROLE sec_mallory;
SELECT pg_temp.attack('execute', $$DECLARE c CURSOR WITH HOLD FOR SELECT den.trap('cursor')$$) > 0 AS started;
CALL coord.run_pending() \g /dev/null
RESET ROLE;
SELECT DISTINCT who FROM den.loot WHERE who <> 'sec_mallory';
CLOSE ALL;
TRUNCATE den.loot;

-- Settings of a step end with it; neither coord nor the caller sees them.
SET ROLE sec_mallory;
SELECT pg_temp.attack('execute', $$SELECT set_config('den.setting', 'left', false)$$, 'SET search_path = den',
  'SET row_security = off', 'SET transaction_read_only = on', 'SET default_transaction_read_only = on',
  'SET statement_timeout = 1', 'SET coord.correlation_id = ''00000000-0000-0000-0000-000000000001''') AS id \gset
RESET ROLE;
CALL coord.run_pending() \g /dev/null
SELECT status, error FROM coord.sagas WHERE id = :id;
SELECT current_setting('den.setting', true) AS setting, current_setting('search_path') AS search_path,
       current_setting('row_security') AS row_security, current_setting('transaction_read_only') AS read_only,
       current_setting('default_transaction_read_only') AS default_read_only,
       current_setting('statement_timeout') AS statement_timeout, current_setting('coord.correlation_id') AS correlation_id;

-- So they do when it fails.
SET ROLE sec_mallory;
SELECT pg_temp.attack('execute', $$SELECT set_config('den.setting', 'left', false)$$, 'SET search_path = den',
  'SET transaction_read_only = on', 'SELECT 1/0') AS id \gset
RESET ROLE;
CALL coord.run_pending() \g /dev/null
SELECT status, error FROM coord.sagas WHERE id = :id;
SELECT current_setting('den.setting', true) AS setting, current_setting('search_path') AS search_path,
       current_setting('transaction_read_only') AS read_only, current_user = session_user AS still_me;

-- The next role's step finds nothing of hers, nor of the caller's own.
CREATE TEMP TABLE mine (x int);
SET ROLE sec_alice;
SELECT coord.saga_start('alice: look') AS id \gset
RESET ROLE;
CALL coord.run_pending() \g /dev/null
SELECT output #>> '{look,who}' AS who, output #> '{look,cursors}' AS cursors, output #> '{look,locks}' AS locks,
       output #>> '{look,setting}' AS setting, output #>> '{look,search_path}' AS search_path
FROM coord.sagas WHERE id = :id;

-- A caller's own things survive what others' steps did in his session, and are
-- not added to.
PREPARE mine AS SELECT 1 AS one;
SELECT pg_advisory_lock(7);
INSERT INTO mine VALUES (3);
SET ROLE sec_mallory;
SELECT pg_temp.attack('attempt', 'DROP TABLE pg_temp.mine', 'DEALLOCATE mine', 'SELECT * FROM mine', 'TRUNCATE mine',
  'ALTER TABLE pg_temp.mine ADD y int', 'CREATE TRIGGER t AFTER INSERT ON pg_temp.mine EXECUTE FUNCTION den.trap_trigger(1)') > 0 AS started;
SELECT pg_temp.attack('execute', $$CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'$$) > 0 AS started;
SELECT pg_temp.attack('execute', $$CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (den.trap(VALUE) IS NOT NULL)$$) > 0 AS started;
RESET ROLE;
-- Who refuses the type, and in which words, depends on PostgreSQL's minor version.
SET client_min_messages = error;
CALL coord.run_pending() \g /dev/null
SET client_min_messages = warning;
SELECT jsonb_array_elements_text(output -> 'attempt') AS outcome FROM coord.sagas WHERE output ? 'attempt' ORDER BY id DESC LIMIT 7;
SELECT 'whose type?'::text;
SELECT label, who FROM den.loot;
SELECT proname AS left_behind FROM pg_proc
  WHERE pronamespace = pg_my_temp_schema() AND proowner = 'sec_mallory'::regrole;
EXECUTE mine;
SELECT * FROM mine;
SELECT pg_advisory_unlock(7);
DEALLOCATE mine;

-- What a caller has open is not for her to read.
BEGIN;
DECLARE mine CURSOR WITH HOLD FOR SELECT v FROM vault.secret;
COMMIT;
SET ROLE sec_mallory;
CREATE FUNCTION den.fetch(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  open refcursor := 'mine';
  r record;
BEGIN
  FETCH open INTO r;
  INSERT INTO den.loot VALUES (r::text, current_user);
  RETURN to_jsonb(r);
END $$;
SELECT coord.saga_define('mallory: fetch', ARRAY[coord.step('fetch', 'den.fetch')]);
SELECT coord.saga_start('mallory: fetch') AS id \gset
RESET ROLE;
CALL coord.run_pending() \g /dev/null
SELECT label FROM den.loot;
FETCH mine;
CLOSE ALL;
SET ROLE sec_mallory;
SELECT coord.saga_abandon(:id) IN ('completed', 'failed') AS done_with;
RESET ROLE;

-- A session lock that her step took does not stay in a session of somebody else's.
SET ROLE sec_mallory;
SELECT pg_temp.attack('execute', 'SELECT pg_advisory_lock(8)') > 0 AS started;
SELECT pg_temp.attack('execute', 'SELECT pg_advisory_lock(9)', 'SELECT 1/0') > 0 AS started;
RESET ROLE;
CALL coord.run_pending() \g /dev/null
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT pg_advisory_unlock_all();

-- A step that pretends that the caller cancelled fails by itself and stops
-- nobody else.
SET ROLE sec_mallory;
CREATE FUNCTION den.pretend(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'cancelled?' USING ERRCODE = 'query_canceled'; END $$;
SELECT coord.saga_define('mallory: pretend', ARRAY[coord.step('pretend', 'den.pretend', max_attempts => 1)]);
SELECT coord.saga_start('mallory: pretend', priority => 9) AS pretend \gset
SET ROLE sec_alice;
SELECT coord.saga_start('alice: look') AS id \gset
RESET ROLE;
CALL coord.run_pending() \g /dev/null
SELECT name, status, error FROM coord.sagas WHERE id IN (:pretend, :id) ORDER BY id;

-- A step may use coord, also upon itself; its own saga is dealt with when the
-- step has ended, by this session or a worker.
SET ROLE sec_mallory;
CREATE FUNCTION den.upon_itself(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  status text;
BEGIN
  PERFORM den.trap('upon itself ' || (doc ->> 'step'));
  EXECUTE format('SELECT coord.saga_%s(%s)', doc #>> '{input,verb}', doc ->> 'saga_id') INTO status;
  RETURN to_jsonb(status);
END $$;
CREATE FUNCTION den.note(doc jsonb) RETURNS void LANGUAGE sql AS $$ SELECT den.trap('note ' || (doc ->> 'step')) $$;
SELECT coord.saga_define('mallory: upon itself', ARRAY[
  coord.step('one', 'den.upon_itself', 'den.note'), coord.step('two', 'den.note')]);
SELECT coord.saga_start('mallory: upon itself', '{"verb": "cancel"}') AS cancel \gset
CALL coord.run_pending() \g /dev/null
SELECT coord.saga_wait(:cancel, '10 s');
SELECT status, cause, output FROM coord.sagas WHERE id = :cancel;
SELECT * FROM den.loot ORDER BY label DESC;
SELECT coord.saga_start('mallory: upon itself', '{"verb": "pause"}') AS pause \gset
CALL coord.run_pending() \g /dev/null
SELECT coord.saga_wait(:pause, '10 s');
SELECT status, output FROM coord.sagas WHERE id = :pause;
SELECT coord.saga_start('mallory: upon itself', '{"verb": "abandon"}') AS abandon \gset
CALL coord.run_pending() \g /dev/null
SELECT coord.saga_wait(:abandon, '10 s');
SELECT status, cause, output FROM coord.sagas WHERE id = :abandon;
CREATE FUNCTION den.have_child(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT to_jsonb(coord.saga_start('mallory: attempt', jsonb_build_object('sql', jsonb_build_array('RESET ROLE', 'SELECT * FROM vault.secret')))) $$;
SELECT coord.saga_define('mallory: parent', ARRAY[coord.step('child', 'den.have_child')]);
SELECT coord.saga_start('mallory: parent') AS parent \gset
RESET ROLE;
CALL coord.run_pending() \g /dev/null
SELECT p.status AS parent, c.status AS child, c.owner, c.output, c.correlation_id = p.correlation_id AS same_correlation
FROM coord.sagas p JOIN coord.sagas c ON c.id = (p.output ->> 'child')::bigint WHERE p.id = :parent;

-- Started by a function with its definer's rights, a saga is the definer's; it
-- gives whoever called no more.
SET ROLE sec_alice;
CREATE FUNCTION home.start_look() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS $$ SELECT coord.saga_start('alice: look') $$;
GRANT USAGE ON SCHEMA home TO sec_mallory;
SET ROLE sec_mallory;
SELECT home.start_look() AS id \gset
\set VERBOSITY sqlstate
SELECT coord.saga_status(:id);
\set VERBOSITY default
RESET ROLE;
CALL coord.run_pending() \g /dev/null
SELECT owner, output #>> '{look,who}' AS who FROM coord.sagas WHERE id = :id;

\set ECHO none
\o /dev/null
SELECT coord.saga_abandon(id) FROM coord.sagas WHERE finished_at IS NULL;
\o
\set ECHO all
DROP SCHEMA vault, den, home CASCADE;
DROP OWNED BY sec_mallory, sec_alice, sec_boss;
DROP ROLE sec_mallory, sec_alice, sec_boss;
DROP EXTENSION coord;
