-- Failure of a saga: what is undone, in which order, with what in hand, and what
-- the pivot changes.
\set name regress_saga_compensate
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

-- In reverse order; the failed step itself is not undone, its effect was rolled back.
SELECT coord.saga_define('line', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act', compensation => 'undo'),
  coord.step('c', 'act'), coord.step('d', 'act', compensation => 'undo'), coord.step('e', 'act', compensation => 'undo'), coord.step('f', 'act')]);
INSERT INTO fault VALUES ('e', 1, 'P0001', 'out of e');
SELECT coord.saga_start('line', key => 'line') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('line');
SELECT traced('line');
SELECT finished_at IS NOT NULL, wake_at, output FROM coord.sagas WHERE id = find('line');
SELECT coord.saga_output(find('line'));

-- Nothing had to be undone: failed.
UPDATE fault SET what = 'a';
SELECT coord.saga_start('line', key => 'first') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('first');
SELECT traced('first');
SELECT coord.saga_define('no way back', ARRAY[coord.step('x', 'act'), coord.step('a', 'act')]);
SELECT coord.saga_start('no way back', key => 'no way back') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('no way back');
SELECT traced('no way back');

-- Against the edges of a graph.  "late" comes first in the list and last in time.
UPDATE fault SET what = 'end';
SELECT coord.saga_define('graph', ARRAY[coord.step('late', 'act', compensation => 'undo', after => '{left,right}'),
  coord.step('top', 'act', compensation => 'undo', after => '{}'), coord.step('right', 'act', compensation => 'undo', after => '{top}'),
  coord.step('left', 'act', compensation => 'undo', after => '{top}'),
  coord.step('skipped', 'act', compensation => 'undo', after => '{top}', condition => 'false'),
  coord.step('end', 'act', after => '{late}')]);
SELECT coord.saga_start('graph', key => 'graph') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('graph');
WITH ran AS (SELECT what, n FROM trace WHERE saga = find('graph'))
SELECT bool_and(u2.n < u1.n) AS against_the_edges, count(*)
FROM (VALUES ('top', 'left'), ('top', 'right'), ('left', 'late'), ('right', 'late')) AS e (first, second)
JOIN ran u1 ON u1.what = 'undo ' || first JOIN ran u2 ON u2.what = 'undo ' || second;
SELECT string_agg(what, ', ' ORDER BY n) FILTER (WHERE what !~ 'undo') = regexp_replace(string_agg(what, ', ' ORDER BY n DESC) FILTER (WHERE what ~ 'undo'), 'undo ', '', 'g')
  AS reverse_of_completion FROM trace WHERE saga = find('graph');

-- An optional step that fails is recorded and nothing else; one that was completed is undone.
DELETE FROM fault;
INSERT INTO fault VALUES ('maybe', 1, 'P0001', 'never mind'), ('end', 1, 'P0001', 'at the end');
SELECT coord.saga_define('optional', ARRAY[coord.step('maybe', 'act', compensation => 'undo', optional => true),
  coord.step('after', 'act', compensation => 'undo', optional => true, trigger_rule => 'all_done'), coord.step('end', 'act', trigger_rule => 'all_done')]);
SELECT coord.saga_start('optional', key => 'optional') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('optional');
SELECT traced('optional');

-- The document of a compensation: the step's own result, and why.
DELETE FROM fault;
INSERT INTO fault VALUES ('c', 1, '22012', 'why');
CREATE TABLE document (n int GENERATED ALWAYS AS IDENTITY, d jsonb);
CREATE FUNCTION keep(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ INSERT INTO document (d) VALUES (context) RETURNING d $$;
CREATE FUNCTION nothing(jsonb) RETURNS void LANGUAGE sql AS '';
SELECT coord.saga_define('document', ARRAY[coord.step('a', 'act', compensation => 'keep'), coord.step('b', 'nothing', compensation => 'keep'), coord.step('c', 'act')]);
SELECT coord.saga_start('document', '{"n": 1}', key => 'document', correlation_id => '00000000-0000-0000-0000-000000000001') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('document');
SELECT jsonb_pretty(d - 'saga_id' - 'idempotency_key') FROM document ORDER BY n;
SELECT no_ids(replace(d ->> 'idempotency_key', d ->> 'saga_id', 'ID')), (d ->> 'saga_id')::bigint = find('document') FROM document ORDER BY n;

-- A compensation is retried on its own account, 25 attempts, and the saga waits for it.
DELETE FROM fault;
INSERT INTO fault VALUES ('a', 1, '40001', 'boom'), ('undo a', 2, '40001', 'boom'), ('c', 99, 'P0001', 'out of c');
SELECT coord.saga_define('retried', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act', compensation => 'undo'), coord.step('c', 'act')]);
SELECT coord.saga_start('retried', key => 'retried') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('retried');
SELECT next('retried');
CALL coord.run_pending() \gset
SELECT show('retried');
SELECT next_attempt_at > clock() FROM coord.saga_steps WHERE saga_id = find('retried') AND step = 'a';
SELECT next('retried');
CALL coord.run_pending() \gset
SELECT next('retried');
CALL coord.run_pending() \gset
SELECT show('retried');
SELECT traced('retried');
SELECT step, phase, attempt FROM coord.saga_log WHERE saga_id = find('retried') ORDER BY id;

-- Exhausted, it suspends the saga; coord.stuck says so; the rest is not undone before it.
SELECT coord.saga_define('exhausted', ARRAY[coord.step('x', 'act', compensation => 'undo'),
  coord.step('a', 'act', compensation => 'undo', retry_delay => '0'), coord.step('c', 'act')]);
DELETE FROM fault;
INSERT INTO fault VALUES ('undo a', 25, '40001', 'still locked'), ('c', 1, 'P0001', 'out of c');
SELECT coord.saga_start('exhausted', key => 'exhausted') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('exhausted');
SELECT no_ids(format('%s|%s|%s|%s|%s', kind, name, waits_for, hint, repair)) FROM coord.stuck WHERE kind = 'saga';
SELECT wake_at FROM coord.sagas WHERE id = find('exhausted');
SELECT count(*) FROM coord.saga_log WHERE saga_id = find('exhausted') AND phase = 'compensation';
CALL coord.run_pending() \gset
-- Retried, it has all its attempts again.
UPDATE fault SET attempts = 24 WHERE what = 'undo a';
SELECT coord.saga_retry(find('exhausted'), reason => 'unlocked');
CALL coord.run_pending() \gset
SELECT show('exhausted');
SELECT traced('exhausted');

-- What is not worth another attempt suspends at once.  max_attempts goes for both phases.
UPDATE fault SET code = '22012' WHERE what = 'undo a';
SELECT coord.saga_start('exhausted', key => 'at once') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('at once');
SELECT coord.saga_skip(find('at once'), 'a', reason => 'done by hand');
CALL coord.run_pending() \gset
SELECT show('at once');
UPDATE fault SET code = '40001' WHERE what = 'undo a';
SELECT coord.saga_define('exhausted', ARRAY[coord.step('a', 'act', compensation => 'undo', retry_delay => '0', max_attempts => 2), coord.step('c', 'act')]);
SELECT coord.saga_start('exhausted', key => 'two') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('two');
SELECT coord.saga_abandon(find('two'), 'so be it');
SELECT show('two');
-- A compensation that says "success": false has failed; its result is no result.
CREATE FUNCTION undo_says(context jsonb) RETURNS jsonb LANGUAGE sql RETURN context -> 'input';
SELECT coord.saga_define('undo says', ARRAY[coord.step('a', 'act', compensation => 'undo_says'), coord.step('c', 'act')]);
SELECT coord.saga_start('undo says', '{"success": false, "error": "cannot be undone"}', key => 'undo says') IS NOT NULL;
SELECT coord.saga_start('undo says', '{"success": true}', key => 'undo does') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('undo says');
SELECT show('undo does');
-- Skipped by hand, nothing was undone.
SELECT coord.saga_skip(find('undo says'), 'a');
SELECT show('undo says');
CALL coord.run_pending() \gset
SELECT show('undo says');

-- on_exhausted suspend: nothing is undone until somebody says so.
DELETE FROM fault;
INSERT INTO fault VALUES ('b', 1, 'P0001', 'ask me');
SELECT coord.saga_define('suspend', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act', compensation => 'undo')], on_exhausted => 'suspend');
SELECT coord.saga_start('suspend', key => key) IS NOT NULL FROM unnest('{s1,s2,s3}'::text[]) AS key;
CALL coord.run_pending() \gset
SELECT show('s1');
SELECT coord.saga_cancel(find('s1'), 'give it back');
DELETE FROM fault;
SELECT coord.saga_retry(find('s2'));
SELECT coord.saga_skip(find('s3'), 'b', '{"by": "hand"}');
CALL coord.run_pending() \gset
SELECT show('s1');
SELECT show('s2');
SELECT show('s3');

-- Before the pivot: back.  After it: only forward.
SELECT coord.saga_define('pivot', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('p', 'act', pivot => true), coord.step('z', 'act', max_attempts => 2)]);
INSERT INTO fault VALUES ('p', 1, 'P0001', 'no pivot');
SELECT coord.saga_start('pivot', key => 'before') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('before');
-- What is worth it is retried without limit, more than max_attempts;
DELETE FROM fault;
INSERT INTO fault VALUES ('z', 4, '40001', 'not yet');
SELECT coord.saga_start('pivot', key => 'after') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT next('after');
CALL coord.run_pending() \gset
SELECT next('after');
CALL coord.run_pending() \gset
SELECT next('after');
CALL coord.run_pending() \gset
SELECT show('after');
SELECT next('after');
CALL coord.run_pending() \gset
SELECT show('after');
SELECT traced('after');
-- what is not suspends the saga, and it cannot be cancelled.
UPDATE fault SET code = '23503', message = 'for good';
SELECT coord.saga_start('pivot', key => 'stuck') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('stuck');
SELECT no_ids(format('%s|%s|%s|%s|%s', kind, name, waits_for, hint, repair)) FROM coord.stuck WHERE kind = 'saga';
SELECT try(format('SELECT coord.saga_cancel(%s)', find('stuck')));
SELECT coord.saga_skip(find('stuck'), 'z');
CALL coord.run_pending() \gset
SELECT show('stuck');
SELECT traced('stuck');
-- A step beside the pivot that fails after it was completed: forward as well.
SELECT coord.saga_define('beside', ARRAY[coord.step('p', 'act', pivot => true, after => '{}'), coord.step('z', 'act', compensation => 'undo', after => '{}')]);
SELECT coord.saga_start('beside', key => 'beside') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('beside');
SELECT coord.saga_abandon(find('beside'));
-- A pivot that is skipped was not passed.
SELECT coord.saga_define('skipped pivot', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('p', 'act', pivot => true, condition => 'false'), coord.step('z', 'act')]);
SELECT coord.saga_start('skipped pivot', key => 'skipped pivot') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('skipped pivot');

-- One that was skipped by hand is not undone.
SELECT coord.saga_start('line', key => 'skipped by hand') IS NOT NULL;
SELECT coord.saga_skip(find('skipped by hand'), 'b', '{"by": "hand"}');
INSERT INTO fault VALUES ('e', 1, 'P0001', 'out of e');
CALL coord.run_pending() \gset
SELECT show('skipped by hand');
SELECT traced('skipped by hand');

\set include :abs_srcdir/include/saga_end.psql
\i :include
