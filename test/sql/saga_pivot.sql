-- The pivot is in somebody's hands when the saga turns back: nothing is undone before
-- it is known how it ends.
\set name regress_saga_pivot
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/task.psql
\i :include
-- The saga, its log of verbs and pivots, and whether coord.stuck has it.
CREATE FUNCTION story(key text) RETURNS SETOF text LANGUAGE sql STABLE AS $$
  SELECT show(story.key)
  UNION ALL
  SELECT '  log: ' || string_agg(concat_ws(' ', event, step), ', ' ORDER BY id) FROM coord.saga_log
    WHERE saga_id = find(story.key) AND event <> 'attempt_failed' HAVING count(*) > 0
  UNION ALL
  SELECT '  stuck: ' || waits_for FROM coord.stuck WHERE kind = 'saga' AND id = find(story.key)::text
$$;

SELECT coord.saga_define('p', ARRAY[coord.step('a', 'act', compensation => 'undo'),
  coord.step('pivot', queue => 'pivot.main', pivot => true, max_attempts => 2),
  coord.step('beside', queue => 'pivot.beside', compensation => 'unbeside', max_attempts => 1, after => '{a}'),
  coord.step('z', 'act', after => '{pivot,beside}')], deadline => '1 h');

-- Cancelled while it is claimed: what is beside it is not given up, nor handed out.
SELECT coord.saga_start('p', key => 'cancel') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT claim('pivot.main', lease => '10 h');
SELECT coord.saga_cancel(find('cancel'));
CALL coord.run_pending() \gset
SELECT story('cancel'); SELECT tasks('cancel'); SELECT traced('cancel');
SELECT claim('pivot.beside');
SELECT coord.saga_cancel(find('cancel'), 'again');
-- It is completed: forward, with what is beside it.
SELECT coord.task_complete(id('cancel'), tok('cancel'), '"paid"');
CALL coord.run_pending() \gset
SELECT story('cancel');
SELECT try('SELECT coord.saga_cancel(find(''cancel''))');
SELECT claim('pivot.beside');
SELECT coord.task_complete(id('cancel'), tok('cancel'));
CALL coord.run_pending() \gset
SELECT story('cancel'); SELECT traced('cancel');

-- It fails, with an attempt left: there is none for it.
SELECT coord.saga_start('p', key => 'fails') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT claim('pivot.main', lease => '10 h');
SELECT coord.saga_cancel(find('fails'));
SELECT coord.task_fail(id('fails'), tok('fails'), 'no', retry_in => '0');
CALL coord.run_pending() \gset
SELECT story('fails'); SELECT tasks('fails');
SELECT claim('pivot.beside');
SELECT coord.task_complete(id('fails'), tok('fails'));
CALL coord.run_pending() \gset
SELECT story('fails'); SELECT traced('fails');

-- Given back, or its lease expires: the same.
SELECT coord.saga_start('p', key => 'released') IS NOT NULL, coord.saga_start('p', key => 'expires') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT claim('pivot.main', 2, lease => '10 s');
SELECT coord.saga_cancel(find('released')), coord.saga_cancel(find('expires'));
SELECT coord.task_release(id('released'), tok('released'));
CALL coord.run_pending() \gset
SELECT show('released'); SELECT show('expires');
SELECT at(clock() + '10 s');
CALL coord.run_pending() \gset
SELECT show('expires');
SELECT try_task(format('SELECT coord.task_complete(%s, %s)', id('expires'), tok('expires')));
CALL clear();

-- Nobody has begun with it: it is given up at once.
SELECT coord.saga_start('p', key => 'free') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT claim('pivot.beside');
SELECT coord.saga_cancel(find('free'));
CALL coord.run_pending() \gset
SELECT show('free'); SELECT tasks('free');
SELECT coord.task_complete(id('free'), tok('free'), '1');
CALL coord.run_pending() \gset
SELECT show('free');
CALL clear();

-- The deadline passes.
SELECT coord.saga_start('p', key => 'late') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT claim('pivot.main', lease => '10 h');
SELECT at(clock() + '1 h');
CALL coord.run_pending() \gset
SELECT story('late');
SELECT coord.task_complete(id('late'), tok('late'));
CALL coord.run_pending() \gset
SELECT story('late');
CALL clear();

-- A step beside it fails for good, then it is completed: suspended, as after any pivot.
SELECT coord.saga_start('p', key => 'beside') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT claim('pivot.main', lease => '10 h'), claim('pivot.beside');
SELECT coord.task_fail(id('beside', 'beside'), tok('beside', 'beside'), 'broken');
CALL coord.run_pending() \gset
SELECT story('beside');
SELECT coord.task_complete(id('beside', 'pivot'), tok('beside', 'pivot'));
CALL coord.run_pending() \gset
SELECT story('beside');
SELECT coord.saga_retry(find('beside'));
CALL coord.run_pending() \gset
SELECT claim('pivot.beside');
SELECT coord.task_complete(id('beside', 'beside'), tok('beside', 'beside'));
CALL coord.run_pending() \gset
SELECT story('beside'); SELECT traced('beside');

-- A pivot for each of something, partly done: it is not completed, and the saga turns back.
SELECT coord.saga_define('each', ARRAY[coord.step('a', 'act', compensation => 'undo'),
  coord.step('pivot', queue => 'pivot.main', for_each => '$.input[*]', pivot => true), coord.step('z', 'act')]);
SELECT coord.saga_start('each', '[0, 1, 2]', key => 'claimed') IS NOT NULL, coord.saga_start('each', '[0, 1, 2]', key => 'partly') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT claim('pivot.main', 4);
SELECT coord.saga_cancel(find('claimed')), coord.saga_cancel(find('partly'));
CALL coord.run_pending() \gset
SELECT tasks();
SELECT array_length(coord.task_complete_many(array_agg(task_id ORDER BY task_id), array_agg(token ORDER BY task_id)), 1)
  FROM held WHERE key IN ('claimed', 'partly') AND step = 'pivot';
CALL coord.run_pending() \gset
SELECT story('claimed'); SELECT traced('claimed');
SELECT story('partly'); SELECT traced('partly');
SELECT * FROM coord.stuck;
\set include :abs_srcdir/include/task_end.psql
\i :include
