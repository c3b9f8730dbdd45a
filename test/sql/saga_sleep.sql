-- Steps that sleep.
\set name regress_saga_sleep
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/saga_waits.psql
\i :include

SELECT coord.saga_define('nap', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step_sleep('nap', '1 h'), coord.step('b', 'act')]);
SELECT coord.saga_start('nap', key => 'nap') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('nap'), (SELECT wake_at - clock() FROM coord.sagas WHERE id = find('nap'));
SELECT unattended();
-- not a microsecond too early
SELECT at(clock() + '59 min 59.999999 s') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('nap');
SELECT at(clock() + '1 us') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('nap');
SELECT step, finished_at - started_at FROM coord.saga_steps WHERE saga_id = find('nap') ORDER BY ordinal;
SELECT coord.saga_timeline(find('nap'));
SELECT coord.saga_diagram('nap');

-- Each beside the other, and one after the other; the saga is woken for the first that ends.
SELECT coord.saga_define('naps', ARRAY[coord.step_sleep('long', '3 h', after => '{}'), coord.step_sleep('short', '1 h', after => '{}'), coord.step('b', 'act'), coord.step_sleep('second', '1 h', after => '{short}'), coord.step('end', 'act', after => '{long,second,b}')]);
SELECT coord.saga_start('naps', key => 'naps') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('naps'), (SELECT wake_at - clock() FROM coord.sagas WHERE id = find('naps'));
SELECT next('naps');
CALL coord.run_pending() \gset
SELECT show('naps'), (SELECT wake_at - clock() FROM coord.sagas WHERE id = find('naps'));
SELECT unattended();
SELECT next('naps');
CALL coord.run_pending() \gset
SELECT show('naps'), (SELECT wake_at - clock() FROM coord.sagas WHERE id = find('naps'));
SELECT next('naps');
CALL coord.run_pending() \gset
SELECT show('naps');
-- Woken late it has slept enough, and the next one begins then.
SELECT coord.saga_start('naps', key => 'late') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT at(clock() + '1 day') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('late'), (SELECT wake_at - clock() FROM coord.sagas WHERE id = find('late'));
SELECT next('late');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('late'));

-- Durations.
SELECT try('SELECT coord.saga_define(''wrong'', ARRAY[' || step || '])') FROM unnest(ARRAY['coord.step_sleep(NULL, ''1 s'')', 'coord.step_sleep(''s'', NULL)', 'coord.step_sleep(''s'', ''0'')', 'coord.step_sleep(''s'', ''-1 s'')',
  'coord.step_sleep(''s'', ''1 day -25 h'')', 'coord.step_sleep(''s'', ''1 s'', after => ''{s}'')']) AS step;
SELECT coord.saga_define('long', ARRAY[coord.step_sleep('s', '1 month 1 day')]);
SELECT coord.saga_define('short', ARRAY[coord.step_sleep('s', '1 us')]);
SELECT coord.saga_start('long', key => 'long') IS NOT NULL, coord.saga_start('short', key => 'short') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT key, justify_hours(wake_at - clock()) FROM coord.sagas WHERE id IN (find('long'), find('short')) ORDER BY id;
SELECT next('short');
CALL coord.run_pending() \gset
SELECT next('long');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('long')), coord.saga_status(find('short')), coord.saga_output(find('long'));

-- A condition.
SELECT coord.saga_define('conditional', ARRAY[coord.step_sleep('s', '1 h', condition => '$.input.tired'), coord.step('b', 'act')]);
SELECT coord.saga_start('conditional', '{"tired": true}', key => 'tired') IS NOT NULL, coord.saga_start('conditional', '{}', key => 'awake') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('tired');
SELECT show('awake');
SELECT next('tired');
CALL coord.run_pending() \gset
SELECT show('tired');

-- The deadline passes in its sleep; one that is only in the way of the pivot does not count after it.
SELECT coord.saga_start('nap', key => 'deadline', deadline => '30 min') IS NOT NULL;
SELECT coord.saga_define('after the pivot', ARRAY[coord.step('p', 'act', pivot => true), coord.step_sleep('s', '1 h'), coord.step('b', 'act')]);
SELECT coord.saga_start('after the pivot', key => 'after the pivot', deadline => '30 min') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT wake_at - clock() FROM coord.sagas WHERE id IN (find('deadline'), find('after the pivot')) ORDER BY id;
SELECT next('deadline');
CALL coord.run_pending() \gset
SELECT show('deadline'), traced('deadline');
SELECT at(clock() + '1 s') IS NOT NULL;
SELECT waits_for FROM coord.stuck WHERE kind = 'saga' AND id = find('after the pivot')::text;
SELECT unattended();
SELECT next('after the pivot');
CALL coord.run_pending() \gset
SELECT show('after the pivot');

-- What an operator can do to a saga that sleeps.
SELECT count(coord.saga_start('nap', '{"n": 1}', key => key)) FROM unnest('{paused,paused long,retried,skipped,patched,cancelled,interrupted,abandoned}'::text[]) AS key;
CALL coord.run_pending() \gset
SELECT coord.saga_pause(find('paused')), coord.saga_pause(find('paused long')), coord.saga_retry(find('retried')), coord.saga_retry(find('retried'), 'nap'), coord.saga_skip(find('skipped'), 'nap', '"slept"'), coord.saga_patch(find('patched'), '{"n": 2}'),
  coord.saga_cancel(find('cancelled')), coord.saga_cancel(find('interrupted'), interrupt => true), coord.saga_abandon(find('abandoned'));
SELECT unattended();
CALL coord.run_pending() \gset
SELECT show(key), traced(key) FROM unnest('{paused,retried,skipped,patched,cancelled,interrupted,abandoned}'::text[]) AS key;
SELECT at(clock() + '30 min') IS NOT NULL;
SELECT coord.saga_resume(find('paused'));
CALL coord.run_pending() \gset
-- a pause does not lengthen the sleep
SELECT show('paused'), (SELECT wake_at - clock() FROM coord.sagas WHERE id = find('paused'));
SELECT at(clock() + '2 h') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_resume(find('paused long'));
CALL coord.run_pending() \gset
SELECT coord.saga_status(find(key)), coord.saga_output(find(key)) FROM unnest('{paused,paused long,retried,patched}'::text[]) AS key;

-- A cancel while it sleeps is undone at once, and a failure of a branch beside it too.
INSERT INTO fault VALUES ('fails', 1, '40001');
SELECT coord.saga_define('branch', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step_sleep('s', '1 h', after => '{a}'), coord.step('after sleep', 'act'), coord.step('fails', 'act', after => '{a}')]);
SELECT coord.saga_start('branch', key => 'branch') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('branch');
SELECT unattended();
UPDATE fault SET code = 'P0001', attempts = 2;
SELECT at(clock() + '2 s') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('branch'), traced('branch');

-- With the system's clock, in the caller's session, it is slept for real.
CREATE TABLE ran (status text, output jsonb, slept boolean);
SELECT coord.saga_define('real', ARRAY[coord.step_sleep('s', '50 ms'), coord.step('b', 'act')]);
RESET ROLE;
SET coord.test_now = '';
SET ROLE :name;
DO $$
DECLARE id bigint; status text; output jsonb;
BEGIN
  CALL coord.saga_run('real', '{}', NULL, id, status, output);
  INSERT INTO ran SELECT s.status, s.output, finished_at - created_at >= '50 ms' FROM coord.sagas s WHERE s.id = (SELECT max(i.id) FROM coord.sagas i WHERE i.name = 'real');
END $$;
SELECT * FROM ran;

\set include :abs_srcdir/include/saga_waits_end.psql
\i :include
\set include :abs_srcdir/include/saga_end.psql
\i :include
