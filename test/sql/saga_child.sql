-- Sagas that are steps of sagas.
\set name regress_saga_child
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/saga_waits.psql
\i :include
-- What the steps of all sagas did since the last look.
CREATE FUNCTION did() RETURNS text LANGUAGE sql AS $$ WITH gone AS (DELETE FROM trace RETURNING n, what) SELECT string_agg(what, ', ' ORDER BY n) FROM gone $$;
CREATE FUNCTION kid(key text, VARIADIC steps text[] DEFAULT '{kid}') RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE id bigint := find(key); step text;
BEGIN
  FOREACH step IN ARRAY steps LOOP id := child(id, step); END LOOP;
  RETURN id;
END $$;

-- The path gives the input, the output is the result.
SELECT coord.saga_define('child', ARRAY[coord.step('c1', 'act', compensation => 'undo'), coord.step('c2', 'echo', compensation => 'undo')]);
SELECT coord.saga_define('parent', ARRAY[coord.step('p1', 'act', compensation => 'undo'), coord.step_saga('kid', 'child', '$.input.for_kid'), coord.step('p2', 'act', compensation => 'undo'), coord.step_signal('go', 'go')]);
SELECT coord.saga_start('parent', '{"for_kid": {"x": [1]}}', key => 'parent', priority => 3, correlation_id => '01234567-89ab-cdef-0123-456789abcdef', labels => '{"l": 1}') IS NOT NULL;
CALL coord.run_pending(1) \gset
SELECT show('parent');
SELECT shown(kid('parent'));
SELECT unattended();
CALL coord.run_pending() \gset
SELECT step, status, result #> '{c2,input}' FROM coord.saga_steps WHERE saga_id = find('parent') ORDER BY ordinal;
SELECT name, status, key, input, priority, labels, correlation_id, owner, cause, finished_at, wake_at, coord.saga_status(id) FROM coord.sagas WHERE id = kid('parent');
SELECT output = (SELECT output -> 'kid' FROM coord.sagas WHERE id = find('parent')), output -> 'c1', coord.saga_output(id) -> 'c1' FROM coord.sagas WHERE id = kid('parent');
SELECT unattended();
-- It is finished, but for its parent, who may want it undone: for everybody else there is nothing to do.
SELECT coord.saga_wait(id), coord.saga_cancel(id), coord.saga_pause(id), coord.saga_resume(id), coord.saga_retry(id), coord.saga_skip(id, 'c1'), coord.saga_abandon(id) FROM (SELECT kid('parent') AS id) AS k;
SELECT try(format('SELECT coord.saga_patch(%s, ''{}'')', kid('parent')));
SELECT try('SELECT coord.saga_drop(''child'')');
SELECT kid('parent') AS kid \gset
SELECT coord.saga_signal(find('parent'), 'go');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('parent')), coord.saga_status(:kid), coord.saga_output(:kid) -> 'c1', did();
SELECT finished_at, owner FROM coord.sagas WHERE id = :kid;
SELECT unattended();

-- Inputs: the first item of the path; none is {}; by default that of the parent.
CREATE TABLE inputs (n int GENERATED ALWAYS AS IDENTITY, path jsonpath);
INSERT INTO inputs (path) VALUES ('$.input'), ('$.input.list'), ('$.input.list[*]'), ('$.input.null'), ('$.input.missing'), ('$.results'), ('$.step'), ('"constant"'), ('strict $.input.missing'), ('$.input.n + 1'), ('$');
SELECT count(coord.saga_define('input ' || n, ARRAY[coord.step('a', 'act'), coord.step_saga('kid', 'child', path)])) FROM inputs;
SELECT coord.saga_define('default input', ARRAY[coord.step_saga('kid', 'child')]);
SELECT count(coord.saga_start('input ' || n, '{"list": [7, 8], "null": null, "n": 1}', key => 'input ' || n)) FROM inputs;
SELECT coord.saga_start('default input', '{"d": 1}', key => 'default input') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT format('%s: %s', path, (SELECT concat_ws(' ', status, error, sqlstate, CASE WHEN path::text <> '$' THEN result #> '{c2,input}' ELSE result #> '{c2,input,input}' END) FROM coord.saga_steps WHERE saga_id = find('input ' || n) AND step = 'kid')) FROM inputs ORDER BY n;
SELECT result #> '{c2,input}' FROM coord.saga_steps WHERE saga_id = find('default input');
SELECT count(coord.saga_drop('input ' || n)) FROM inputs;
SELECT did() IS NOT NULL;

-- A child that fails has undone itself; its step is failed, and is not undone.
INSERT INTO fault VALUES ('c2', 1, 'P0001', 'c2 is broken');
SELECT coord.saga_define('broken', ARRAY[coord.step('c1', 'act', compensation => 'undo'), coord.step('c2', 'act', compensation => 'undo')]);
SELECT coord.saga_define('of broken', ARRAY[coord.step('p1', 'act', compensation => 'undo'), coord.step_saga('kid', 'broken'), coord.step('p2', 'act')]);
SELECT coord.saga_start('of broken', key => 'of broken') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('of broken');
SELECT did();
SELECT no_ids(error), sqlstate, event, step, attempt FROM coord.saga_log WHERE saga_id = find('of broken');
SELECT unattended();
UPDATE fault SET what = 'c1';
SELECT coord.saga_start('of broken', key => 'nothing done') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('nothing done');
SELECT did();
TRUNCATE fault;

-- The parent turns back later: the child is undone as a unit, at its place in the order.
INSERT INTO fault VALUES ('p3', 1, 'P0001', 'p3 is broken');
SELECT coord.saga_define('back', ARRAY[coord.step('p1', 'act', compensation => 'undo'), coord.step_saga('kid', 'child'), coord.step('p2', 'act', compensation => 'undo'), coord.step('p3', 'act')]);
SELECT coord.saga_start('back', key => 'back') IS NOT NULL;
CALL coord.run_pending(3) \gset
CALL coord.run_pending(1) \gset
SELECT kid('back') AS kid \gset
SELECT unattended();
CALL coord.run_pending() \gset
SELECT step, status, phase FROM coord.saga_steps WHERE saga_id = find('back') ORDER BY ordinal;
SELECT coord.saga_status(find('back')), did();
SELECT status, cause, no_ids(error) FROM coord.sagas WHERE id = :kid;
SELECT unattended();
-- its compensation fails: it is the child that is stuck; the parent waits for it
INSERT INTO fault VALUES ('undo c1', 9, 'P0001', 'cannot undo c1');
SELECT coord.saga_start('back', key => 'back stuck') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT step, status, phase FROM coord.saga_steps WHERE saga_id = find('back stuck') ORDER BY ordinal;
SELECT coord.saga_status(find('back stuck'));
SELECT name, waits_for, no_ids(repair) FROM coord.stuck WHERE kind = 'saga' ORDER BY id::bigint;
SELECT unattended();
SELECT did();
DELETE FROM fault WHERE what = 'undo c1';
SELECT coord.saga_retry(kid('back stuck'), 'c1');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('back stuck')), did();
SELECT unattended();
-- its compensation is waited for over a retry
INSERT INTO fault VALUES ('undo c1', 1, '40001');
SELECT coord.saga_start('back', key => 'back retried') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('back retried')), coord.saga_status(kid('back retried'));
SELECT unattended();
SELECT at(clock() + '2 s') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('back retried')), did();
TRUNCATE fault;

-- Nested: a child of a child of a child.
SELECT coord.saga_define('level 3', ARRAY[coord.step('l3', 'act', compensation => 'undo'), coord.step_signal('s3', 'go', condition => '$.input.wait')]);
SELECT coord.saga_define('level 2', ARRAY[coord.step('l2', 'act', compensation => 'undo'), coord.step_saga('kid', 'level 3'), coord.step('l2 end', 'act', compensation => 'undo')]);
SELECT coord.saga_define('level 1', ARRAY[coord.step('l1', 'act', compensation => 'undo'), coord.step_saga('kid', 'level 2'), coord.step('l1 end', 'act', compensation => 'undo')]);
SELECT coord.saga_define('level 0', ARRAY[coord.step('l0', 'act', compensation => 'undo'), coord.step_saga('kid', 'level 1'), coord.step('l0 end', 'act', compensation => 'undo'), coord.step('end', 'act')]);
SELECT coord.saga_start('level 0', '{"wait": false}', key => 'nested') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('nested')), coord.saga_output(find('nested')), did();
INSERT INTO fault VALUES ('end', 1, 'P0001', 'the end');
SELECT coord.saga_start('level 0', '{"wait": false}', key => 'nested back') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('nested back')), did();
TRUNCATE fault;
-- cancelled and overdue while the innermost waits; given up; and failed there
SELECT coord.saga_start('level 0', '{"wait": true}', key => 'nested cancelled') IS NOT NULL, coord.saga_start('level 0', '{"wait": true}', key => 'nested overdue', deadline => '1 h') IS NOT NULL,
  coord.saga_start('level 0', '{"wait": true}', key => 'nested abandoned') IS NOT NULL, coord.saga_start('level 0', '{"wait": true}', key => 'nested failed') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT did();
SELECT coord.saga_status(kid('nested cancelled', 'kid', 'kid', 'kid')), (SELECT output FROM coord.sagas WHERE id = kid('nested cancelled', 'kid', 'kid', 'kid'));
SELECT unattended();
SELECT coord.saga_cancel(find('nested cancelled'), 'changed my mind');
CALL coord.run_pending(1) \gset
SELECT unattended();
CALL coord.run_pending() \gset
SELECT show('nested cancelled');
SELECT did();
SELECT kid('nested abandoned', 'kid', 'kid', 'kid') AS innermost \gset
SELECT coord.saga_abandon(find('nested abandoned'), 'given up');
CALL coord.run_pending() \gset
SELECT status, cause, no_ids(error), did() FROM coord.sagas WHERE id = :innermost;
SELECT coord.saga_signal(kid('nested failed', 'kid', 'kid', 'kid'), 'go', '{"success": false, "error": "deep down"}');
CALL coord.run_pending() \gset
SELECT show('nested failed');
SELECT did();
SELECT at(clock() + '1 h') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('nested overdue');
SELECT did();
SELECT unattended();

-- Whatever the child is doing when its parent is cancelled, or is overdue.
INSERT INTO fault VALUES ('busy[1]', 99, '40001', 'busy');
CREATE FUNCTION item(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM note(context, format('%s[%s]', context ->> 'step', context ->> 'index')); RETURN context -> 'item'; END $$;
CREATE FUNCTION undo_item(context jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM note(context, format('undo %s[%s]', context ->> 'step', context ->> 'index')); END $$;
SELECT coord.saga_define('sleeps', ARRAY[coord.step('c1', 'act', compensation => 'undo'), coord.step_sleep('s', '1 day')]);
SELECT coord.saga_define('listens', ARRAY[coord.step('c1', 'act', compensation => 'undo'), coord.step_signal('s', 'go')]);
SELECT coord.saga_define('retries', ARRAY[coord.step('c1', 'act', compensation => 'undo'), coord.step('busy[1]', 'act', max_attempts => 9)]);
SELECT coord.saga_define('items', ARRAY[coord.step('c1', 'act', compensation => 'undo'), coord.step('busy', 'item', for_each => '$.input[*]', max_attempts => 9, compensation => 'undo_item')]);
SELECT coord.saga_define('fails', ARRAY[coord.step('c1', 'act', compensation => 'undo'), coord.step('busy[1]', 'act', max_attempts => 1)], on_exhausted => 'suspend');
SELECT coord.saga_define('of ' || name, ARRAY[coord.step('p1', 'act', compensation => 'undo'), coord.step_saga('kid', name), coord.step('p2', 'act')]) FROM unnest('{sleeps,listens,retries,items,fails}'::text[]) AS name;
SELECT count(coord.saga_start('of ' || name, '[0, 1]', key => what || ' of ' || name, deadline => CASE what WHEN 'deadline' THEN '12 h'::interval END))
FROM unnest('{sleeps,listens,retries,items,fails}'::text[]) AS name, unnest('{cancel,deadline,paused,skip,abandon,by hand}'::text[]) AS what;
CALL coord.run_pending() \gset
SELECT did() IS NOT NULL;
SELECT coord.saga_status(find('cancel of ' || name)), coord.saga_status(kid('cancel of ' || name)) FROM unnest('{sleeps,listens,retries,items,fails}'::text[]) AS name;
SELECT unattended();
SELECT name, kid(what || ' of ' || name) AS id, what INTO kids FROM unnest('{sleeps,listens,retries,items,fails}'::text[]) AS name, unnest('{cancel,deadline,paused,skip,abandon,by hand}'::text[]) AS what;
SELECT name, coord.saga_pause(id) FROM kids WHERE what = 'paused' ORDER BY id;
SELECT name, coord.saga_cancel(find(what || ' of ' || name)) FROM kids WHERE what IN ('cancel', 'paused') ORDER BY id;
SELECT name, coord.saga_skip(find(what || ' of ' || name), 'kid', '"skipped"') FROM kids WHERE what = 'skip' ORDER BY id;
SELECT name, coord.saga_abandon(find(what || ' of ' || name)) FROM kids WHERE what = 'abandon' ORDER BY id;
SELECT name, coord.saga_cancel(id, 'by hand') FROM kids WHERE what = 'by hand' ORDER BY id;
SELECT unattended();
CALL coord.run_pending() \gset
SELECT at(clock() + '12 h') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT unattended();
SELECT k.what, k.name, s.status, s.cause, no_ids(s.error) AS error, p.status AS parent, p.cause, no_ids(p.error) AS error, (SELECT string_agg(t.what, ', ' ORDER BY n) FROM trace t WHERE t.saga IN (s.id, p.id))
FROM kids k JOIN coord.sagas s USING (id) JOIN coord.sagas p ON p.id = find(k.what || ' of ' || k.name) ORDER BY k.what COLLATE "C", k.id;
SELECT count(*) FROM coord.sagas WHERE finished_at IS NULL AND owner = current_user;
TRUNCATE fault, trace;

-- A child past its own pivot cannot be undone: its parent is suspended, and coord.stuck says why.
SELECT coord.saga_define('final', ARRAY[coord.step('c1', 'act'), coord.step('pivot', 'act', pivot => true), coord.step_signal('c2', 'go'), coord.step('c3', 'act')]);
SELECT coord.saga_define('of final', ARRAY[coord.step('p1', 'act', compensation => 'undo'), coord.step_saga('kid', 'final'), coord.step_signal('p2', 'go')]);
SELECT count(coord.saga_start('of final', key => key)) FROM unnest('{final,final skipped,final abandoned}'::text[]) AS key;
CALL coord.run_pending() \gset
SELECT count(coord.saga_signal(kid(key), 'go')) FROM unnest('{final,final skipped,final abandoned}'::text[]) AS key;
CALL coord.run_pending() \gset
SELECT count(coord.saga_signal(find(key), 'go', '{"success": false, "error": "too late"}')) FROM unnest('{final,final skipped,final abandoned}'::text[]) AS key;
CALL coord.run_pending() \gset
SELECT show('final');
SELECT name, no_ids(waits_for), hint, no_ids(repair) FROM coord.stuck WHERE kind = 'saga' AND id = find('final')::text;
SELECT coord.saga_status(kid('final'));
SELECT unattended();
SELECT coord.saga_retry(find('final'));
CALL coord.run_pending() \gset
SELECT show('final');
SELECT unattended();
SELECT coord.saga_skip(find('final skipped'), 'kid', reason => 'refunded by hand'), coord.saga_abandon(find('final abandoned'));
CALL coord.run_pending() \gset
SELECT show('final skipped');
SELECT show('final abandoned');
SELECT coord.saga_skip(find('final'), 'kid');
CALL coord.run_pending() \gset
SELECT unattended();
SELECT did();
-- The parent turns back while the child is on its way after its pivot: the child goes on, and the parent waits for it.
SELECT coord.saga_start('of final', key => 'on the way') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_cancel(find('on the way'));
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('on the way')), coord.saga_status(kid('on the way'));
SELECT unattended();
SELECT coord.saga_signal(kid('on the way'), 'go');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('on the way')), coord.saga_status(kid('on the way'));
SELECT unattended();
SELECT name, no_ids(waits_for) FROM coord.stuck WHERE kind = 'saga' AND id = find('on the way')::text;
SELECT coord.saga_skip(find('on the way'), 'kid');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('on the way')), did();

-- The child is stopped by hand: the parent waits, coord.stuck shows the child.
SELECT coord.saga_start('of listens', key => 'hand') IS NOT NULL, coord.saga_start('of fails', '[]', key => 'suspended') IS NOT NULL;
INSERT INTO fault VALUES ('busy[1]', 99, 'P0001', 'broken');
CALL coord.run_pending() \gset
SELECT coord.saga_pause(kid('hand'), 'wait a little'), coord.saga_signal(kid('hand'), 'go');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('hand')), coord.saga_status(kid('hand')), coord.saga_status(find('suspended')), coord.saga_status(kid('suspended'));
SELECT name, waits_for, no_ids(repair) FROM coord.stuck WHERE kind = 'saga' ORDER BY id::bigint;
SELECT unattended();
-- a retry of the parent is not for the child
SELECT coord.saga_retry(find('suspended')), coord.saga_retry(find('suspended'), 'kid');
SELECT coord.saga_resume(kid('hand')), coord.saga_skip(kid('suspended'), 'busy[1]', '"by hand"');
CALL coord.run_pending() \gset
SELECT show('hand');
SELECT show('suspended');
TRUNCATE fault, trace;
-- The parent is paused: the child goes on, the parent takes notice of it afterwards.
SELECT coord.saga_start('of listens', key => 'parent paused') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_pause(find('parent paused')), coord.saga_signal(kid('parent paused'), 'go');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('parent paused')), coord.saga_status(kid('parent paused'));
SELECT unattended();
SELECT coord.saga_resume(find('parent paused'));
CALL coord.run_pending() \gset
SELECT show('parent paused');

-- No such saga; no right to its functions; one of another role.
SELECT coord.saga_define('nobody', ARRAY[coord.step('p1', 'act', compensation => 'undo'), coord.step_saga('kid', 'nobody''s')]);
SELECT coord.saga_start('nobody', key => 'nobody') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('nobody');
SELECT coord.saga_define('nobody suspends', ARRAY[coord.step_saga('kid', 'nobody''s')], on_exhausted => 'suspend');
SELECT coord.saga_start('nobody suspends', '{"x": 1}', key => 'nobody suspends') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('nobody suspends');
SELECT unattended();
-- defined, and retried
SELECT coord.saga_define('nobody''s', ARRAY[coord.step('a', 'act')]);
SELECT coord.saga_retry(find('nobody suspends'), 'kid');
CALL coord.run_pending() \gset
SELECT show('nobody suspends');
RESET ROLE;
CREATE ROLE regress_saga_child_other;
GRANT coord_user TO regress_saga_child_other;
GRANT USAGE, CREATE ON SCHEMA regress_saga_child TO regress_saga_child_other;
SET ROLE regress_saga_child_other;
CREATE FUNCTION others(jsonb) RETURNS jsonb LANGUAGE sql RETURN to_jsonb(current_user::text);
CREATE FUNCTION hidden(jsonb) RETURNS jsonb LANGUAGE sql RETURN to_jsonb(current_user::text);
REVOKE EXECUTE ON FUNCTION hidden FROM PUBLIC;
SELECT coord.saga_define('others', ARRAY[coord.step('a', 'others')]), coord.saga_define('hidden', ARRAY[coord.step('a', 'hidden')]);
SET ROLE :name;
SELECT coord.saga_define('of others', ARRAY[coord.step_saga('kid', 'others')]), coord.saga_define('of hidden', ARRAY[coord.step_saga('kid', 'hidden')]);
SELECT coord.saga_start('of others', key => 'not granted') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('not granted');
SET ROLE regress_saga_child_other;
SELECT coord.grant_use('saga', 'others', 'regress_saga_child'), coord.grant_use('saga', 'hidden', 'regress_saga_child');
SET ROLE :name;
SELECT coord.saga_start('of others', key => 'granted') IS NOT NULL, coord.saga_start('of hidden', key => 'hidden') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('granted');
SELECT show('hidden');
SELECT unattended();
SET ROLE regress_saga_child_other;
SELECT coord.saga_drop('others'), coord.saga_drop('hidden');
RESET ROLE;
DROP OWNED BY regress_saga_child_other;
DROP ROLE regress_saga_child_other;
SET ROLE :name;

-- A saga that starts itself comes to an end, with an error.
SELECT coord.saga_define('itself', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step_saga('kid', 'itself')]);
SELECT did() IS NOT NULL, coord.saga_start('itself', key => 'itself') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT status, right(no_ids(error), 89) FROM coord.sagas WHERE id = find('itself');
SELECT count(*) > 10, count(*) < 100, bool_and(status = 'compensated') FROM coord.sagas WHERE name = 'itself' AND owner = current_user;
SELECT count(*) FILTER (WHERE what = 'a') = count(*) FILTER (WHERE what = 'undo a') FROM trace;
SELECT count(DISTINCT sqlstate), min(sqlstate) FROM coord.saga_steps t JOIN coord.sagas s ON s.id = t.saga_id WHERE s.name = 'itself' AND t.sqlstate <> 'P0001';
SELECT unattended();
-- unless it says when to stop
SELECT coord.saga_define('countdown', ARRAY[coord.step_saga('kid', 'countdown', '$.input - 1', condition => '$.input > 0'), coord.step('b', 'echo')]);
SELECT coord.saga_start('countdown', '3', key => 'countdown') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('countdown')), coord.saga_output(find('countdown')) #> '{kid,kid,kid,b,input}', coord.saga_output(find('countdown')) #> '{kid,kid,kid,kid}';
TRUNCATE trace;

-- A condition; a failure after the parent's pivot; a retry starts another child.
SELECT coord.saga_define('conditional', ARRAY[coord.step_saga('kid', 'child', condition => '$.input.wanted')]);
SELECT coord.saga_start('conditional', '{}', key => 'not wanted') IS NOT NULL;
SELECT coord.saga_define('after pivot', ARRAY[coord.step('p', 'act', pivot => true), coord.step_saga('kid', 'broken'), coord.step('p2', 'act')]);
INSERT INTO fault VALUES ('c2', 1, 'P0001', 'c2 is broken');
SELECT coord.saga_start('after pivot', key => 'after pivot') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('not wanted');
SELECT show('after pivot');
SELECT name, no_ids(waits_for), no_ids(repair) FROM coord.stuck WHERE kind = 'saga' ORDER BY id::bigint;
SELECT unattended();
SELECT kid('after pivot') AS first \gset
TRUNCATE fault;
SELECT coord.saga_retry(find('after pivot'));
CALL coord.run_pending() \gset
SELECT show('after pivot');
SELECT did(), coord.saga_status(:first);
SELECT unattended();

-- Two beside each other: the one fails, the other is told to turn back, whatever it does.
INSERT INTO fault VALUES ('c2', 1, 'P0001', 'c2 is broken');
SELECT coord.saga_define('two', ARRAY[coord.step_saga('sleeping', 'sleeps', after => '{}'), coord.step_saga('listening', 'listens', after => '{}'), coord.step_saga('failing', 'broken', after => '{}'), coord.step_saga('done', 'child', after => '{}'),
  coord.step('end', 'act', after => '{sleeping,listening,failing,done}')]);
UPDATE fault SET attempts = 0;
SELECT coord.saga_define('broken later', ARRAY[coord.step_sleep('c0', '1 min'), coord.step('c2', 'act', compensation => 'undo')]);
SELECT coord.saga_define('two later', ARRAY[coord.step_saga('sleeping', 'sleeps', after => '{}'), coord.step_saga('listening', 'listens', after => '{}'), coord.step_saga('failing', 'broken later', after => '{}'), coord.step_saga('done', 'child', after => '{}'),
  coord.step('end', 'act', after => '{sleeping,listening,failing,done}')]);
SELECT coord.saga_start('two later', key => 'two later') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT step, status FROM coord.saga_steps WHERE saga_id = find('two later') ORDER BY ordinal;
UPDATE fault SET attempts = 1;
SELECT coord.saga_start('two', key => 'two') IS NOT NULL;
SELECT at(clock() + '1 min') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT step, status, no_ids(error) FROM coord.saga_steps WHERE saga_id = find('two') ORDER BY ordinal;
SELECT step, status, no_ids(error) FROM coord.saga_steps WHERE saga_id = find('two later') ORDER BY ordinal;
SELECT coord.saga_status(find('two')), coord.saga_status(find('two later'));
SELECT count(*) FILTER (WHERE what ~ '^c'), count(*) FILTER (WHERE what ~ '^undo') FROM trace;
SELECT unattended();
TRUNCATE fault, trace;

-- Children that are completed stay until their parent is finished; their name can be dropped, and used anew, then.
SELECT coord.saga_define('temporary', ARRAY[coord.step('c1', 'act', compensation => 'undo')]);
SELECT coord.saga_define('of temporary', ARRAY[coord.step_saga('kid', 'temporary'), coord.step_signal('go', 'go'), coord.step_saga('kid2', 'temporary')]);
SELECT coord.saga_start('of temporary', key => 'temporary') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT try('SELECT coord.saga_drop(''temporary'')');
-- the next child is of the version that is active then
SELECT coord.saga_define('temporary', ARRAY[coord.step('c2', 'act', compensation => 'undo')]);
SELECT coord.saga_signal(find('temporary'), 'go');
CALL coord.run_pending() \gset
SELECT coord.saga_output(find('temporary')), coord.saga_drop('temporary');
SELECT try('SELECT coord.saga_start(''of temporary'', key => ''without'') IS NOT NULL');
CALL coord.run_pending() \gset
SELECT show('without');
SELECT did();

-- In the caller's session children are run as well.
CREATE TABLE ran (key text, status text, output jsonb);
DO $$
DECLARE id bigint; status text; output jsonb;
BEGIN
  CALL coord.saga_run('level 0', '{"wait": false}', 'run', id, status, output);
  INSERT INTO ran VALUES ('run', status, output);
  CALL coord.saga_run('of broken', '{}', 'run broken', id, status, output);
  INSERT INTO ran VALUES ('run broken', status, output);
  CALL coord.saga_run('level 0', '{"wait": true}', 'run waiting', id, status, output);
  INSERT INTO ran VALUES ('run waiting', status, output);
END $$;
SELECT key, status, output #> '{kid,kid,kid}' FROM ran;
SELECT coord.saga_cancel(find('run waiting'));
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('run waiting')), did();
SELECT unattended();

-- A child is paused, its task ends meanwhile, and then its parent turns back: it does not overlook that.
SELECT coord.saga_define('waits', ARRAY[coord.step('outside', queue => 'child_queue', compensation => 'un')]);
SELECT coord.saga_define('of waits', ARRAY[coord.step_saga('kid', 'waits')]);
SELECT coord.saga_start('of waits', key => 'paused kid') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT task_id, token FROM coord.task_claim('child_queue') \gset
SELECT coord.saga_pause(kid('paused kid'));
SELECT coord.task_complete(:task_id, :token, '{"x": 1}');
SELECT coord.saga_cancel(find('paused kid'));
CALL coord.run_pending() \gset
SELECT coord.saga_status(kid('paused kid'));
SELECT unattended();
SELECT task_id, token FROM coord.task_claim('child_queue') \gset
SELECT coord.task_complete(:task_id, :token);
CALL coord.run_pending() \gset
SELECT shown(kid('paused kid')), shown(find('paused kid'));

-- Pictures.
SELECT coord.saga_start('of listens', key => 'picture') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT at(clock() + '1 h') IS NOT NULL;
SELECT regexp_replace(coord.saga_picture(find('picture')), '\n  classDef.*', '');
SELECT coord.saga_timeline(find('picture'));
SELECT coord.saga_signal(kid('picture'), 'go');
CALL coord.run_pending() \gset
SELECT regexp_replace(coord.saga_picture(find('picture')), '\n  classDef.*', '');
SELECT coord.saga_timeline(find('picture'));
SELECT coord.saga_diagram('of listens', 'dot');

-- The parent waits for longer than what is finished is kept.
SELECT coord.saga_start('parent', key => 'long') IS NOT NULL, coord.saga_start('parent', key => 'long back') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT did() IS NOT NULL, at(clock() + '400 days') IS NOT NULL;
CALL coord.run_pending() \gset
RESET ROLE;
-- as housekeeping does
DO $$
DECLARE partition regclass;
BEGIN
  FOR partition IN SELECT inhrelid FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'coord_internal.saga_archive'::regclass AND relname < 'saga_archive_2031' LOOP
    EXECUTE format('DROP TABLE %s', partition);
  END LOOP;
END $$;
SET ROLE :name;
SELECT coord.saga_signal(find('long'), 'go'), coord.saga_signal(find('long back'), 'go', '{"success": false}');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('long')), coord.saga_status(find('long back')), did();
SELECT status, count(*) FROM coord.sagas WHERE name = 'child' AND owner = current_user AND finished_at IS NOT NULL GROUP BY status ORDER BY status COLLATE "C";
SELECT unattended();

SELECT try('SELECT coord.saga_define(''wrong'', ARRAY[' || step || '])') FROM unnest(ARRAY['coord.step_saga(NULL, ''x'')', 'coord.step_saga(''s'', NULL)', 'coord.step_saga(''s'', '''')', 'coord.step_saga(''s'', ''child'', NULL)', 'coord.step_saga(''s'', ''x'', after => ''{nobody}'')']) AS step;

\set include :abs_srcdir/include/saga_waits_end.psql
\i :include
\set include :abs_srcdir/include/saga_end.psql
\i :include
