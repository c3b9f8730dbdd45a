-- Deadlines: a failure before the pivot, a row in coord.stuck after it.
\set name regress_saga_deadline
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

SELECT coord.saga_define('s', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act', retry_delay => '3 h', retry_max_delay => '10 h', retry_backoff => 1, max_attempts => 50)],
  deadline => '1 h');
SELECT coord.saga_define('p', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('p', 'act', pivot => true), coord.step('b', 'act', max_attempts => 1)], deadline => '1 h');

-- In time.
SELECT coord.saga_start('s', key => 'in time') IS NOT NULL;
SELECT deadline_at FROM coord.sagas WHERE id = find('in time');
SELECT at('2030-01-01 00:59:59.999999+00');
CALL coord.run_pending() \gset
SELECT show('in time');
-- Not begun in time: nothing runs.
SELECT coord.saga_start('s', key => 'not begun') IS NOT NULL;
SELECT at('2030-01-01 01:59:59.999999+00');
CALL coord.run_pending() \gset
SELECT show('not begun');
-- The start's own deadline instead of the definition's.
SELECT coord.saga_start('s', key => 'own', deadline => '1 day') IS NOT NULL;
SELECT deadline_at FROM coord.sagas WHERE id = find('own');
SELECT at('2030-01-01 03:00:00+00');
CALL coord.run_pending() \gset
SELECT show('own');

-- In the pause before another attempt: it is woken by the deadline, not after it.
INSERT INTO fault VALUES ('b', 99, '40001');
SELECT at('2030-01-02 00:00:00+00');
SELECT coord.saga_start('s', key => 'pause') IS NOT NULL;
-- until the next attempt lies behind the deadline
CREATE PROCEDURE until_behind(key text) LANGUAGE plpgsql AS $$
DECLARE t int;
BEGIN
  FOR i IN 1 .. 50 LOOP
    CALL coord.run_pending(turns => t);
    EXIT WHEN (SELECT next_attempt_at > deadline_at FROM coord.saga_steps JOIN coord.sagas ON saga_id = id WHERE id = find(until_behind.key) AND step = 'b');
    PERFORM at((SELECT next_attempt_at FROM coord.saga_steps WHERE saga_id = find(until_behind.key) AND step = 'b'));
  END LOOP;
END $$;
CALL until_behind('pause');
SELECT status, wake_at = deadline_at, (SELECT next_attempt_at > deadline_at FROM coord.saga_steps WHERE saga_id = id AND step = 'b') FROM coord.sagas WHERE id = find('pause');
SELECT next('pause'), clock();
CALL coord.run_pending() \gset
SELECT regexp_replace(show('pause'), 'ready( attempt [0-9]+)?', 'ready');
SELECT traced('pause');
SELECT event, step, phase, error FROM coord.saga_log WHERE saga_id = find('pause') AND event <> 'attempt_failed' ORDER BY id;

-- A compensation is not bound by it.
SELECT at('2030-01-03 00:00:00+00');
DELETE FROM fault;
INSERT INTO fault VALUES ('b', 1, 'P0001'), ('undo a', 1, '40001');
SELECT coord.saga_define('slow undo', ARRAY[coord.step('a', 'act', compensation => 'undo', retry_delay => '3 h'), coord.step('b', 'act')], deadline => '1 min');
SELECT coord.saga_start('slow undo', key => 'slow undo') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT status, deadline_at FROM coord.sagas WHERE id = find('slow undo');
SELECT next('slow undo');
CALL coord.run_pending() \gset
SELECT show('slow undo');
SELECT traced('slow undo');

-- After the pivot it goes on, and is to be seen.
SELECT at('2030-01-04 00:00:00+00');
DELETE FROM fault;
INSERT INTO fault VALUES ('b', 2, '40001');
SELECT coord.saga_start('p', key => 'after pivot') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT count(*) FROM coord.stuck WHERE kind = 'saga';
SELECT at('2030-01-04 01:00:00.000001+00');
SELECT kind, name, since, waits_for, hint, no_ids(repair) FROM coord.stuck WHERE kind = 'saga';
CALL coord.run_pending() \gset
SELECT show('after pivot');
SELECT next('after pivot');
CALL coord.run_pending() \gset
SELECT show('after pivot');
SELECT count(*) FROM coord.stuck WHERE kind = 'saga';
-- Before the pivot it goes back.
INSERT INTO fault VALUES ('p', 1, '40001');
SELECT at('2030-01-05 00:00:00+00');
SELECT coord.saga_start('p', key => 'before pivot') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT at('2030-01-05 01:00:00+00');
CALL coord.run_pending() \gset
SELECT show('before pivot');

-- A saga that is paused or suspended waits for its operator; then the deadline counts.
SELECT at('2030-01-06 00:00:00+00');
DELETE FROM fault;
SELECT coord.saga_start('s', key => 'paused') IS NOT NULL;
SELECT coord.saga_pause(find('paused'));
SELECT at('2030-01-06 02:00:00+00');
CALL coord.run_pending();
SELECT coord.saga_status(find('paused'));
SELECT coord.saga_resume(find('paused'));
CALL coord.run_pending() \gset
SELECT show('paused');
-- With on_exhausted suspend as well: the deadline is a failure that no attempt can mend.
SELECT coord.saga_define('suspend', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act')], deadline => '1 h', on_exhausted => 'suspend');
INSERT INTO fault VALUES ('b', 1, '40001');
SELECT coord.saga_start('suspend', key => 'suspend') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT at('2030-01-06 04:00:00+00');
CALL coord.run_pending() \gset
SELECT show('suspend');
-- A month is a month of the calendar or 30 days; a day is a day: it is in the future at any rate.
SELECT coord.saga_start('s', key => 'a month', deadline => '1 month') IS NOT NULL;
SELECT deadline_at - clock() BETWEEN interval '28 days' AND interval '31 days' FROM coord.sagas WHERE id = find('a month');
SELECT coord.saga_abandon(find('a month'));

\set include :abs_srcdir/include/saga_end.psql
\i :include
