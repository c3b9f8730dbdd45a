-- Branches beside each other, of steps that wait and steps that do not.
\set name regress_saga_parallel
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/saga_waits.psql
\i :include
CREATE FUNCTION item(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM note(context, format('%s[%s]', context ->> 'step', context ->> 'index')); RETURN context -> 'item'; END $$;
CREATE FUNCTION undo_item(context jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM note(context, format('undo %s[%s]', context ->> 'step', context ->> 'index')); END $$;
-- The steps of a saga by status.
CREATE FUNCTION steps(key text) RETURNS text LANGUAGE sql STABLE
  RETURN (SELECT string_agg(status || ': ' || steps, '; ' ORDER BY status COLLATE "C") FROM
    (SELECT status, string_agg(step, ' ' ORDER BY ordinal) AS steps FROM coord.saga_steps WHERE saga_id = find(steps.key) AND item IS NULL GROUP BY status) s);

-- Every kind of step at once, and what comes after all of them.
SELECT coord.saga_define('child', ARRAY[coord.step('c1', 'act', compensation => 'undo'), coord.step_signal('s', 'go')]);
SELECT coord.saga_define('all', ARRAY[coord.step('top', 'act', compensation => 'undo'),
  coord.step('local', 'act', compensation => 'undo', after => '{top}'), coord.step('second', 'act', compensation => 'undo'),
  coord.step('items', 'item', for_each => '$.input[*]', max_parallel => 1, compensation => 'undo_item', after => '{top}'),
  coord.step_signal('signal', 'go', after => '{top}'), coord.step('after signal', 'act', compensation => 'undo'),
  coord.step_sleep('sleep', '1 h', after => '{top}'), coord.step('after sleep', 'act', compensation => 'undo'),
  coord.step_saga('kid', 'child', after => '{top}'),
  coord.step('bottom', 'act', after => '{second,items,after signal,after sleep,kid}')]);
SELECT coord.saga_start('all', '[0, 1]', key => 'all') IS NOT NULL;
CALL coord.run_pending(1) \gset
SELECT unattended();
CALL coord.run_pending() \gset
SELECT steps('all'), (SELECT wake_at - clock() FROM coord.sagas WHERE id = find('all'));
SELECT unattended();
SELECT show('all');
SELECT regexp_replace(coord.saga_picture(find('all')), '\n  classDef.*', '');
SELECT coord.saga_signal(child(find('all'), 'kid'), 'go');
CALL coord.run_pending() \gset
SELECT steps('all');
SELECT unattended();
SELECT next('all');
CALL coord.run_pending() \gset
SELECT steps('all'), (SELECT wake_at FROM coord.sagas WHERE id = find('all'));
SELECT unattended();
SELECT coord.saga_signal(find('all'), 'go', '"late"');
CALL coord.run_pending() \gset
SELECT show('all'), traced('all');
SELECT coord.saga_timeline(find('all'));

-- One branch fails while the others wait: nothing new is begun, what waits is taken back, what is completed is undone in reverse order of completion.
INSERT INTO fault VALUES ('local', 1, '40001', 'once');
SELECT count(coord.saga_start('all', '[0, 1]', key => key)) FROM unnest('{signal fails,cancelled,skipped}'::text[]) AS key;
SELECT coord.saga_start('all', '[0, 1]', key => 'deadline', deadline => '30 min') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT steps('signal fails');
SELECT unattended();
SELECT coord.saga_signal(find('signal fails'), 'go', '{"success": false, "error": "refused"}');
CALL coord.run_pending() \gset
SELECT show('signal fails'), traced('signal fails');
SELECT string_agg(what, ', ' ORDER BY n) FROM trace t JOIN coord.sagas s ON s.id = t.saga WHERE s.name = 'child' AND s.cause = 'cancelled';
SELECT coord.saga_cancel(find('cancelled'), 'enough');
CALL coord.run_pending() \gset
SELECT steps('cancelled'), traced('cancelled');
SELECT coord.saga_skip(find('skipped'), step) FROM unnest('{signal,sleep,kid}'::text[]) AS step;
CALL coord.run_pending() \gset
SELECT steps('skipped');
SELECT unattended();
SELECT at(clock() + '10 s') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT steps('skipped'), traced('skipped');
SELECT at(clock() + '30 min') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT steps('deadline'), traced('deadline');
SELECT status, cause FROM coord.sagas WHERE id = find('deadline');
SELECT unattended();
TRUNCATE fault;

-- Paused, patched, resumed with everything in hand; then given up.
SELECT count(coord.saga_start('all', '[0, 1]', key => key)) FROM unnest('{paused,abandoned}'::text[]) AS key;
CALL coord.run_pending(3) \gset
SELECT coord.saga_pause(find('paused')), coord.saga_abandon(find('abandoned'), 'give up');
CALL coord.run_pending() \gset
SELECT coord.saga_signal(find('paused'), 'go'), coord.saga_signal(child(find('paused'), 'kid'), 'go') WHERE child(find('paused'), 'kid') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT steps('paused');
SELECT unattended();
SELECT coord.saga_patch(find('paused'), '[5]'), coord.saga_resume(find('paused'));
CALL coord.run_pending() \gset
SELECT coord.saga_signal(find('paused'), 'go'), coord.saga_signal(child(find('paused'), 'kid'), 'go');
CALL coord.run_pending() \gset
SELECT steps('paused');
SELECT unattended();
SELECT next('paused');
CALL coord.run_pending() \gset
SELECT steps('paused'), traced('paused');
SELECT steps('abandoned');

-- Two branches fail at a time, and a third later: it is one failure.
INSERT INTO fault VALUES ('x[0]', 1, 'P0001', 'x failed'), ('y[0]', 1, 'P0001', 'y failed'), ('late', 9, 'P0001', 'late failed');
SELECT coord.saga_define('two', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('x', 'item', for_each => '$.input[*]', after => '{a}'), coord.step('y', 'item', for_each => '$.input[*]', after => '{a}', compensation => 'undo_item'),
  coord.step('late', 'act', after => '{x,y}')]);
SELECT coord.saga_define('two suspend', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('x', 'item', for_each => '$.input[*]', after => '{a}'), coord.step('y', 'item', for_each => '$.input[*]', after => '{a}', compensation => 'undo_item'),
  coord.step_signal('z', 'go', after => '{a}'), coord.step('late', 'act', after => '{x,y,z}')], on_exhausted => 'suspend');
SELECT coord.saga_define('after pivot', ARRAY[coord.step('a', 'act', pivot => true), coord.step('x', 'item', for_each => '$.input[*]', after => '{a}'), coord.step('y', 'item', for_each => '$.input[*]', after => '{a}'),
  coord.step_signal('z', 'go', after => '{a}'), coord.step('late', 'act', after => '{x,y,z}')]);
SELECT coord.saga_start('two', '[0, 1]', key => 'two') IS NOT NULL, coord.saga_start('two suspend', '[0, 1]', key => 'two suspend') IS NOT NULL, coord.saga_start('after pivot', '[0, 1]', key => 'after pivot') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('two'), traced('two');
SELECT steps('two suspend'), steps('after pivot');
SELECT unattended();
SELECT name, waits_for, no_ids(repair) FROM coord.stuck WHERE kind = 'saga' ORDER BY id::bigint;
-- what comes for a suspended saga is kept; one of the two is retried by name, then the other
SELECT coord.saga_signal(find('two suspend'), 'go', '"kept"'), coord.saga_signal(find('after pivot'), 'go', '"kept"');
CALL coord.run_pending() \gset
SELECT steps('two suspend');
SELECT unattended();
DELETE FROM fault WHERE what = 'x[0]';
SELECT coord.saga_retry(find('two suspend'), 'x') IS NOT NULL, coord.saga_retry(find('after pivot'), 'x') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT key, coord.saga_status(find(key)), status FROM unnest('{two suspend,after pivot}'::text[]) AS key JOIN coord.saga_steps t ON t.saga_id = find(key) AND t.step IN ('y', 'late') AND t.item IS NULL ORDER BY key COLLATE "C", ordinal;
SELECT unattended();
DELETE FROM fault WHERE what = 'y[0]';
SELECT coord.saga_retry(find('two suspend'), 'y'), coord.saga_skip(find('after pivot'), 'y', '"skipped"');
CALL coord.run_pending() \gset
SELECT key, coord.saga_status(find(key)), step, status FROM unnest('{two suspend,after pivot}'::text[]) AS key JOIN coord.saga_steps t ON t.saga_id = find(key) AND t.step IN ('x', 'y', 'late') AND t.item IS NULL ORDER BY key COLLATE "C", ordinal;
SELECT waits_for FROM coord.stuck WHERE kind = 'saga' ORDER BY id::bigint;
SELECT unattended();
TRUNCATE fault;
SELECT coord.saga_retry(id::bigint) FROM coord.stuck WHERE kind = 'saga' ORDER BY id::bigint;
CALL coord.run_pending() \gset
SELECT show('two suspend'), traced('two suspend');
SELECT show('after pivot'), traced('after pivot');

-- After the pivot tasks are retried without limit, however often they fail for a reason that passes.
INSERT INTO fault VALUES ('x[0]', 6, '40001', 'for now');
SELECT coord.saga_define('no limit', ARRAY[coord.step('a', 'act', pivot => true), coord.step('x', 'item', for_each => '$.input[*]', retry_delay => '0', max_attempts => 2), coord.step('b', 'act')]);
SELECT coord.saga_start('no limit', '[0, 1]', key => 'no limit') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('no limit'), (SELECT count(*) FROM coord.saga_log WHERE saga_id = find('no limit'));

-- A pivot in a branch: the other branch fails before it is completed, or after.
INSERT INTO fault VALUES ('before', 1, 'P0001', 'failed before'), ('after', 1, 'P0001', 'failed after');
SELECT coord.saga_define('before', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('pivot', 'item', for_each => '$.input[*]', pivot => true, after => '{a}'), coord.step('next', 'act'), coord.step('before', 'act', after => '{a}', compensation => 'undo')]);
SELECT coord.saga_start('before', '[0, 1]', key => 'before') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('before'), traced('before');
SELECT coord.saga_define('afterwards', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('pivot', 'item', for_each => '$.input[*]', pivot => true, after => '{a}'), coord.step('next', 'act'),
  coord.step_signal('s', 'go', after => '{a}'), coord.step('after', 'act', compensation => 'undo')]);
SELECT coord.saga_start('afterwards', '[0, 1]', key => 'afterwards', deadline => '1 h') IS NOT NULL, coord.saga_start('afterwards', '[0, 1]', key => 'refused') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT steps('afterwards'), (SELECT wake_at FROM coord.sagas WHERE id = find('afterwards'));
SELECT unattended();
SELECT try(format('SELECT coord.saga_cancel(%s)', find('afterwards')));
SELECT at(clock() + '2 h') IS NOT NULL;
SELECT coord.saga_signal(find('afterwards'), 'go'), coord.saga_signal(find('refused'), 'go', '{"success": false}');
CALL coord.run_pending() \gset
SELECT show('afterwards');
SELECT show('refused');
SELECT name, waits_for, no_ids(repair) FROM coord.stuck WHERE kind = 'saga' ORDER BY id::bigint;
SELECT unattended();
DELETE FROM fault;
SELECT coord.saga_retry(find('afterwards')), coord.saga_skip(find('refused'), 's');
CALL coord.run_pending() \gset
SELECT steps('afterwards'), steps('refused'), traced('afterwards');

-- A pivot that is a wait for all items: a cancel takes back what nobody has begun with, and the pivot is not completed.
SELECT coord.saga_define('pivot items', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('pivot', 'item', for_each => '$.input[*]', max_parallel => 1, pivot => true), coord.step('next', 'act')]);
SELECT coord.saga_start('pivot items', '[0, 1, 2]', key => 'pivot items') IS NOT NULL;
CALL coord.run_pending(2) \gset
CALL coord.run_pending(1) \gset
SELECT items('pivot items', 'pivot');
SELECT coord.saga_cancel(find('pivot items'), 'in time');
CALL coord.run_pending() \gset
SELECT show('pivot items'), traced('pivot items');

-- Optional branches, and trigger rules after waits.
INSERT INTO fault VALUES ('maybe[0]', 1, 'P0001', 'never mind');
SELECT coord.saga_define('rules', ARRAY[coord.step('maybe', 'item', for_each => '$.input[*]', optional => true, after => '{}'), coord.step_signal('s', 'go', timeout => '1 h', on_timeout => 'continue', after => '{}'), coord.step_sleep('z', '1 min', condition => 'false', after => '{}')]
  || ARRAY(SELECT coord.step(rule, 'act', after => '{maybe,s,z}', trigger_rule => rule) FROM unnest('{none_failed,all_success,all_done,one_success,one_failed,always}'::text[]) AS rule));
SELECT coord.saga_start('rules', '[0]', key => 'failed') IS NOT NULL, coord.saga_start('rules', '[]', key => 'none') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT key, steps(key) FROM unnest('{failed,none}'::text[]) AS key;
SELECT unattended();
SELECT at(clock() + '1 h') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT key, steps(key) FROM unnest('{failed,none}'::text[]) AS key;
SELECT unattended();

-- A hundred branches that wait, ended in any order.
SELECT coord.saga_define('wide', ARRAY[coord.step('top', 'act')] || ARRAY(SELECT coord.step_signal('s' || i, 'go' || i, after => '{top}') FROM generate_series(1, 50) i ORDER BY i)
  || ARRAY(SELECT coord.step_sleep('z' || i, make_interval(mins => i), after => '{top}') FROM generate_series(1, 50) i ORDER BY i)
  || coord.step('bottom', 'act', after => ARRAY(SELECT 's' || i FROM generate_series(1, 50) i) || ARRAY(SELECT 'z' || i FROM generate_series(1, 50) i)));
SELECT coord.saga_start('wide', key => 'wide') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT status, count(*) FROM coord.saga_steps WHERE saga_id = find('wide') GROUP BY status ORDER BY status COLLATE "C";
SELECT count(coord.saga_signal(find('wide'), 'go' || i, to_jsonb(i))) FROM generate_series(50, 1, -1) i;
CALL coord.run_pending() \gset
SELECT status, count(*), count(*) FILTER (WHERE result = to_jsonb(substr(step, 2)::int)) FROM coord.saga_steps WHERE saga_id = find('wide') AND step ~ '^[sz][0-9]' GROUP BY status ORDER BY status COLLATE "C";
SELECT wake_at - clock() FROM coord.sagas WHERE id = find('wide');
SELECT at(clock() + '50 min') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('wide')), traced('wide');

-- Verbs called by a step of a branch on its own saga, which runs in the saga's turn or as a task.
CREATE FUNCTION cancels(context jsonb) RETURNS jsonb LANGUAGE sql RETURN to_jsonb(coord.saga_cancel((context ->> 'saga_id')::bigint, context ->> 'step'));
SELECT coord.saga_define('cancels', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('cancels', 'cancels', after => '{a}', compensation => 'undo'), coord.step_signal('s', 'go', after => '{a}'), coord.step('b', 'act')]);
SELECT coord.saga_start('cancels', key => 'cancels') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('cancels'), traced('cancels');

\set include :abs_srcdir/include/saga_waits_end.psql
\i :include
\set include :abs_srcdir/include/saga_end.psql
\i :include
