-- The engine of the database: pause, resume, drain, and who may.
\set name regress_engine
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
RESET ROLE;
CREATE ROLE regress_engine_admin IN ROLE coord_admin;
SET ROLE :name;
SELECT coord.saga_define('s', ARRAY[coord.step('a', 'act'), coord.step('b', 'act')]);

-- Pausing: true, and false where it is so already.
SET ROLE regress_engine_admin;
SELECT coord.resume();
SELECT coord.pause('maintenance');
SELECT coord.pause('again');
SELECT kind, id, name = current_database(), since, waits_for, hint, repair FROM coord.stuck WHERE kind = 'engine';
-- Sagas can be started and looked at, and nothing runs; run_pending and saga_run say why.
SET ROLE :name;
SELECT coord.saga_start('s', key => 'paused') IS NOT NULL;
CALL coord.run_pending();
CALL coord.saga_run('s', key => 'run while paused') \gset run_
SELECT :'run_status', :{?run_output};
SELECT show('paused');
SELECT traced('run while paused');
-- Verbs work.
SELECT coord.saga_pause(find('paused')), coord.saga_resume(find('paused')), coord.saga_skip(find('paused'), 'b');
SET ROLE regress_engine_admin;
SELECT coord.resume('done');
SELECT coord.resume();
SELECT count(*) FROM coord.stuck WHERE kind = 'engine';
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT show('paused');
-- The saga that saga_run() could not run is held for half a minute, then anybody's.
SELECT next('run while paused'), clock();
CALL coord.run_pending() \gset
SELECT show('run while paused');

-- A pause is the transaction's.
SET ROLE regress_engine_admin;
BEGIN;
SELECT coord.pause();
SELECT kind, waits_for FROM coord.stuck WHERE kind = 'engine';
ROLLBACK;
SELECT count(*) FROM coord.stuck WHERE kind = 'engine';
BEGIN;
SELECT coord.pause();
SAVEPOINT s;
SELECT coord.resume();
ROLLBACK TO s;
SELECT coord.pause();
COMMIT;
SELECT kind, waits_for FROM coord.stuck WHERE kind = 'engine';
SELECT coord.resume();
SET ROLE :name;
SELECT coord.saga_start('s', key => 'goes on') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('goes on'));

-- Draining: pauses, then waits until nothing runs.
SET ROLE regress_engine_admin;
CALL coord.drain();
SELECT waits_for FROM coord.stuck WHERE kind = 'engine';
CALL coord.drain('1 min');
CALL coord.drain(NULL);
SELECT coord.resume();
\set VERBOSITY sqlstate
CALL coord.drain('-1 s');
BEGIN;
CALL coord.drain();
ROLLBACK;
-- Refused before any work.
SELECT count(*) FROM coord.stuck WHERE kind = 'engine';
\set VERBOSITY default
BEGIN;
CALL coord.drain();
ROLLBACK;

-- For coord_admin only.
SET ROLE :name;
SELECT try('SELECT coord.pause()');
SELECT try('SELECT coord.resume()');
SELECT try('SELECT coord.start_worker()');
\set VERBOSITY sqlstate
CALL coord.drain();
\set VERBOSITY default
-- A grant of the function alone is not enough.
RESET ROLE;
CREATE ROLE regress_engine_granted IN ROLE coord_user;
GRANT EXECUTE ON FUNCTION coord.pause(text), coord.resume(text), coord.start_worker() TO regress_engine_granted;
SET ROLE regress_engine_granted;
SELECT try('SELECT coord.pause()');
SELECT try('SELECT coord.resume()');
SELECT try('SELECT coord.start_worker()');
RESET ROLE;
DROP OWNED BY regress_engine_granted;
DROP ROLE regress_engine_granted;
SELECT count(*) FROM coord.stuck WHERE kind = 'engine';

-- Switched off by coord.enabled: the same.
SET client_min_messages = warning;
ALTER SYSTEM SET coord.enabled = off;
SELECT pg_reload_conf();
-- A session takes new settings between two commands.
\set ECHO none
SELECT $$DO 'BEGIN IF coord_internal.engine_state() <> ''disabled'' THEN PERFORM pg_sleep(0.01); END IF; END'$$ FROM generate_series(1, 1000) \gexec
\set ECHO all
SET ROLE :name;
SELECT coord.saga_start('s', key => 'disabled') IS NOT NULL;
CALL coord.run_pending();
SELECT coord.saga_status(find('disabled'));
SELECT kind, id, name = current_database(), since, waits_for, hint, repair FROM coord.stuck WHERE kind = 'engine';
RESET ROLE;
ALTER SYSTEM RESET coord.enabled;
SELECT pg_reload_conf();
\set ECHO none
SELECT $$DO 'BEGIN IF coord_internal.engine_state() = ''disabled'' THEN PERFORM pg_sleep(0.01); END IF; END'$$ FROM generate_series(1, 1000) \gexec
\set ECHO all
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('disabled'));

-- A copy does not act: its identity is another database's.
RESET ROLE;
UPDATE coord_internal.identity SET database = 1;
SET ROLE :name;
SELECT coord.saga_start('s', key => 'copy') IS NOT NULL;
CALL coord.run_pending();
SELECT kind, id, name = current_database(), since, waits_for, hint, repair FROM coord.stuck WHERE kind = 'engine';
SET ROLE regress_engine_admin;
SELECT coord.resume();
SELECT coord.resume();
RESET ROLE;
SELECT count(*), bool_and(database = (SELECT oid FROM pg_database WHERE datname = current_database())) FROM coord_internal.identity;
SELECT count(*) FROM coord.stuck WHERE kind = 'engine';
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT show('copy');
-- From another cluster, where roles were others, it obeys only who may resume it; then they are found again by name.
RESET ROLE;
INSERT INTO coord_internal.identity VALUES (1, 1);
SET ROLE :name;
SELECT try($$SELECT coord.saga_start('s', key => 'from afar')$$);
CALL coord.run_pending();
SET ROLE regress_engine_admin;
SELECT kind, waits_for, repair FROM coord.stuck WHERE kind = 'engine';
SELECT coord.resume();
SET ROLE :name;
SELECT coord.saga_start('s', key => 'from afar') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('from afar');
SELECT owner, status FROM coord.sagas WHERE key = 'copy' AND name = 's';

-- Workers: the launcher is here; what else is here depends on what there was to do.
RESET ROLE;
SELECT backend_type, state FROM coord.workers WHERE backend_type = 'coord launcher';
SET ROLE regress_engine_admin;
SELECT coord.start_worker() IS NOT NULL;
RESET ROLE;
SELECT count(*) FROM coord.workers WHERE backend_type NOT IN ('coord launcher', 'coord worker') OR state NOT IN ('starting', 'running', 'idle');
DROP ROLE regress_engine_admin;

\set include :abs_srcdir/include/saga_end.psql
\i :include
