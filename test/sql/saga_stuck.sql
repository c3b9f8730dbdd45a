-- coord.stuck: what waits for an operator says what for, and its statement repairs it.
\set name regress_saga_stuck
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
RESET ROLE;
CREATE ROLE regress_saga_stuck_admin IN ROLE coord_admin;
GRANT USAGE ON SCHEMA regress_saga_stuck TO regress_saga_stuck_admin;
CREATE VIEW stuck AS SELECT kind, name, since, waits_for, hint, no_ids(repair) AS repair FROM coord.stuck WHERE kind <> 'worker';
GRANT SELECT ON stuck TO PUBLIC;
-- Runs the statements of coord.stuck as they stand there.
CREATE FUNCTION repair() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  statement text;
  answer text;
BEGIN
  FOR statement IN SELECT repair FROM coord.stuck WHERE kind <> 'worker' LOOP
    EXECUTE statement INTO answer;
    RETURN NEXT answer;
  END LOOP;
END $$;
SET ROLE :name;

-- A step that failed, under on_exhausted suspend.
SELECT coord.saga_define('s', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act')], on_exhausted => 'suspend');
INSERT INTO fault VALUES ('b', 99, 'P0001', 'no credit');
SELECT coord.saga_start('s', key => 'suspended') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT * FROM stuck;
-- Retried while the cause is still there it comes back.
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SELECT count(*) FROM stuck;
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT count(*) FROM stuck;
DELETE FROM fault;
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT count(*), coord.saga_status(find('suspended')) FROM stuck;
SELECT event, role FROM coord.saga_log WHERE saga_id = find('suspended') AND event = 'retry' ORDER BY id;

-- Paused.
SELECT coord.saga_start('s', key => 'paused') IS NOT NULL;
SELECT coord.saga_pause(find('paused'), 'lunch');
SELECT * FROM stuck;
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SET ROLE :name;
SELECT count(*) FROM stuck;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('paused'));

-- A compensation that failed.
SELECT coord.saga_define('back', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act')]);
INSERT INTO fault VALUES ('b', 99, 'P0001', 'no credit'), ('undo a', 99, 'P0001', 'cannot undo');
SELECT coord.saga_start('back', key => 'compensation') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT * FROM stuck;
DELETE FROM fault;
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT count(*), coord.saga_status(find('compensation')) FROM stuck;

-- After the pivot.
SELECT coord.saga_define('pivot', ARRAY[coord.step('p', 'act', pivot => true), coord.step('b', 'act')], deadline => '1 h');
INSERT INTO fault VALUES ('b', 99, 'P0001', 'no way');
SELECT coord.saga_start('pivot', key => 'after pivot') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT * FROM stuck;
DELETE FROM fault;
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT count(*), coord.saga_status(find('after pivot')) FROM stuck;
-- Late after the pivot: it waits for nobody, but somebody may want to hurry it.
INSERT INTO fault VALUES ('b', 1, '40001', 'busy');
SELECT coord.saga_define('pivot', ARRAY[coord.step('p', 'act', pivot => true), coord.step('b', 'act', retry_delay => '1000 h', retry_max_delay => '1000 h')], deadline => '1 h');
SELECT coord.saga_start('pivot', key => 'late') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT at('2030-01-01 01:00:01+00');
SELECT * FROM stuck;
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SET ROLE :name;
DELETE FROM fault;
CALL coord.run_pending() \gset
SELECT count(*), coord.saga_status(find('late')) FROM stuck;

-- A function that was dropped.
SELECT at('2030-01-02 00:00:00+00');
CREATE FUNCTION dropped(context jsonb) RETURNS jsonb LANGUAGE sql RETURN '"before"'::jsonb;
SELECT coord.saga_define('dropped', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'dropped')]);
SELECT coord.saga_start('dropped', key => 'dropped') IS NOT NULL;
DROP FUNCTION dropped;
CALL coord.run_pending() \gset
SELECT * FROM stuck;
SELECT show('dropped');
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT count(*) FROM stuck;
CREATE FUNCTION dropped(context jsonb) RETURNS jsonb LANGUAGE sql RETURN '"after"'::jsonb;
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT count(*) FROM stuck;
-- no attempt was charged for what could not be run
SELECT show('dropped');

-- The right to execute it was lost; then the right to its schema; the compensation's as well.
RESET ROLE;
CREATE ROLE regress_saga_stuck_starter IN ROLE coord_user;
GRANT ALL ON trace, fault TO regress_saga_stuck_starter;
GRANT EXECUTE ON FUNCTION act, undo TO regress_saga_stuck_starter;
SET ROLE :name;
REVOKE EXECUTE ON FUNCTION act, undo FROM PUBLIC;
SELECT coord.grant_use('saga', 'back', 'regress_saga_stuck_starter');
SET ROLE regress_saga_stuck_starter;
SELECT coord.saga_start('back', key => 'revoked') AS id \gset
RESET ROLE;
REVOKE EXECUTE ON FUNCTION act FROM regress_saga_stuck_starter;
SET ROLE regress_saga_stuck_starter;
CALL coord.run_pending() \gset
SELECT * FROM regress_saga_stuck.stuck;
RESET ROLE;
GRANT EXECUTE ON FUNCTION act TO regress_saga_stuck_starter;
REVOKE EXECUTE ON FUNCTION undo FROM regress_saga_stuck_starter;
INSERT INTO fault VALUES ('b', 1, 'P0001', 'no credit');
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SET ROLE regress_saga_stuck_starter;
CALL coord.run_pending() \gset
SELECT * FROM regress_saga_stuck.stuck;
RESET ROLE;
GRANT EXECUTE ON FUNCTION undo TO regress_saga_stuck_starter;
DELETE FROM fault;
REVOKE USAGE ON SCHEMA regress_saga_stuck FROM PUBLIC;
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SET ROLE regress_saga_stuck_starter;
CALL coord.run_pending() \gset
SELECT name, waits_for FROM coord.stuck WHERE kind <> 'worker';
RESET ROLE;
GRANT USAGE ON SCHEMA regress_saga_stuck TO PUBLIC;
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SET ROLE regress_saga_stuck_starter;
CALL coord.run_pending() \gset
SELECT count(*), coord.saga_status(:id) FROM regress_saga_stuck.stuck;
-- why it failed is still known
SELECT error FROM coord.sagas WHERE id = :id;

-- The owner was dropped: nobody may run it any more; it can be given up.
SELECT coord.saga_start('back', key => 'no owner') AS id \gset
RESET ROLE;
DROP OWNED BY regress_saga_stuck_starter;
DROP ROLE regress_saga_stuck_starter;
CALL coord.run_pending() \gset
SELECT kind, name, since, regexp_replace(waits_for, 'OID [0-9]+', 'OID N'), hint, repair FROM stuck;
SET ROLE regress_saga_stuck_admin;
SELECT * FROM repair();
SELECT count(*) FROM stuck;
SELECT status, cause, owner FROM coord.sagas WHERE id = :id;

-- The engine itself.
SELECT coord.pause('moving house');
SELECT kind, name = current_database(), since, waits_for, hint, repair FROM coord.stuck;
SELECT * FROM repair();
SELECT count(*) FROM stuck;

RESET ROLE;
DROP OWNED BY regress_saga_stuck_admin;
DROP ROLE regress_saga_stuck_admin;

\set include :abs_srcdir/include/saga_end.psql
\i :include
