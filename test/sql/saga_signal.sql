-- Steps that wait for a signal, and coord.saga_signal().
\set name regress_saga_signal
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/saga_waits.psql
\i :include

-- It waits; the payload is the result.
SELECT coord.saga_define('approval', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step_signal('approval', 'approved', timeout => '2 days'), coord.step('b', 'echo')]);
SELECT coord.saga_start('approval', key => 'approval') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('approval'), (SELECT wake_at - clock() FROM coord.sagas WHERE id = find('approval'));
SELECT next_attempt_at - clock(), started_at = clock(), finished_at FROM coord.saga_steps WHERE saga_id = find('approval') AND step = 'approval';
SELECT unattended();
SELECT coord.saga_signal(find('approval'), 'approved', '{"by": "ann"}');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('approval')), coord.saga_output(find('approval')) -> 'approval', coord.saga_output(find('approval')) #> '{b,results}';

-- Payloads: none is null.  {"success": false} is a failure, with its reason.
SELECT coord.saga_define('go', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step_signal('go', 'go'), coord.step('b', 'act')]);
CREATE TABLE payloads (n int GENERATED ALWAYS AS IDENTITY, payload jsonb);
INSERT INTO payloads (payload) VALUES (NULL), ('null'), ('1'), ('"x"'), ('[]'), ('[{"success": false}]'), ('{}'), ('{"success": true}'), ('{"success": null}'), ('{"success": "false"}'), ('{"success": false}'),
  ('{"success": false, "error": "too dear"}'), ('{"success": false, "error": {"code": 7}}'), ('{"success": false, "error": null}');
SELECT count(coord.saga_start('go', key => 'go ' || n)) FROM payloads;
CALL coord.run_pending() \gset
SELECT count(coord.saga_signal(find('go ' || n), 'go', payload)) FROM payloads;
CALL coord.run_pending() \gset
SELECT format('%s: %s', payload, (SELECT concat_ws(' ', coord.saga_status(saga_id), status, 'result ' || result::text, error, sqlstate) FROM coord.saga_steps WHERE saga_id = find('go ' || n) AND step = 'go')) FROM payloads ORDER BY n;
SELECT show('go 12'), traced('go 12');
SELECT event, step, phase, attempt, error, sqlstate FROM coord.saga_log WHERE saga_id = find('go 12');

-- Early: before it begins, before the saga begins, in the transaction that starts it, in any transaction that is rolled back not at all.
SELECT coord.saga_start('go', key => 'early') AS id \gset
SELECT coord.saga_signal(:id, 'go', '"early"');
CALL coord.run_pending() \gset
SELECT show('early');
SELECT coord.saga_start('go', key => 'in one go') IS NOT NULL, coord.saga_signal(coord.saga_find('go', 'in one go'), 'go', '"in one go"');
SELECT coord.saga_start('go', key => 'later', start_at => clock() + '1 h') IS NOT NULL;
SELECT coord.saga_signal(find('later'), 'go', '"before its time"');
CALL coord.run_pending() \gset
SELECT show('in one go');
SELECT show('later'), traced('later');
SELECT unattended();
SELECT coord.saga_start('go', key => 'rolled back') IS NOT NULL;
CALL coord.run_pending() \gset
BEGIN;
SELECT coord.saga_signal(find('rolled back'), 'go', '"rolled back"');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT coord.saga_signal(find('rolled back'), 'go', '"rolled back"');
ROLLBACK TO s;
COMMIT;
CALL coord.run_pending() \gset
SELECT show('rolled back');
SELECT unattended();
SELECT coord.saga_signal(find('rolled back'), 'go');
SELECT next('later');
CALL coord.run_pending() \gset
SELECT show('later');
SELECT show('rolled back');

-- Twice: the first is taken, the second is of no use to anybody, and is forgotten with the saga.
SELECT coord.saga_start('go', key => 'twice') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_signal(find('twice'), 'go', '1'), coord.saga_signal(find('twice'), 'go', '2');
CALL coord.run_pending() \gset
SELECT show('twice');
-- After the end it changes nothing and says what there is.
SELECT coord.saga_signal(find('twice'), 'go', '3'), coord.saga_signal(find('twice'), 'whatever', '3'), coord.saga_signal(find('go 12'), 'go');
CALL coord.run_pending() \gset
SELECT show('twice');
SELECT unattended();

-- In order, one each; those of one name among themselves, whoever waits first; a signal_id counts once, whatever its payload.
SELECT coord.saga_define('order', ARRAY[coord.step_signal('one', 'x'), coord.step_signal('two', 'x'), coord.step_signal('three', 'y'), coord.step_signal('four', 'x')]);
SELECT coord.saga_start('order', key => 'order') IS NOT NULL;
SELECT coord.saga_signal(find('order'), 'x', '1', 'first'), coord.saga_signal(find('order'), 'y', '2', 'first'), coord.saga_signal(find('order'), 'x', '3', 'first');
CALL coord.run_pending() \gset
SELECT show('order');
SELECT coord.saga_signal(find('order'), 'x', '4', 'first');
CALL coord.run_pending() \gset
SELECT show('order');
SELECT coord.saga_signal(find('order'), 'x', '5', 'second'), coord.saga_signal(find('order'), 'x', '6', 'second'), coord.saga_signal(find('order'), 'x', '7', 'third'), coord.saga_signal(find('order'), 'x', '8', 'fourth');
CALL coord.run_pending() \gset
SELECT show('order');
SELECT coord.saga_signal(find('order'), 'x', '9', 'ninth');
SELECT coord.saga_define('beside', ARRAY[coord.step_signal('a', 'x', after => '{}'), coord.step_signal('b', 'x', after => '{}'), coord.step_signal('c', 'y', after => '{}'), coord.step('end', 'act', after => '{a,b,c}')]);
SELECT coord.saga_start('beside', key => 'beside') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_signal(find('beside'), 'x', '1');
CALL coord.run_pending() \gset
SELECT show('beside');
SELECT unattended();
SELECT coord.saga_signal(find('beside'), 'y', '2'), coord.saga_signal(find('beside'), 'x', '3');
CALL coord.run_pending() \gset
SELECT show('beside');

-- Names, ids, arguments.
SELECT coord.saga_start('go', key => 'names') IS NOT NULL;
SELECT try(format('SELECT coord.saga_signal(%s, %s)', id, arguments)) FROM (VALUES (find('names')::text, '''gone'''), (find('names')::text, '''approved'''), (find('names')::text, 'NULL'), ('NULL', '''go'''),
  (find('names')::text, ''''''), ('9007199254740991', '''go'''), ('-1', '''go'''), (find('names')::text, '''go'', NULL, ''''')) AS v (id, arguments);
SELECT coord.saga_define('no signals', ARRAY[coord.step('a', 'act')]);
SELECT coord.saga_start('no signals', key => 'no signals') IS NOT NULL;
SELECT try(format('SELECT coord.saga_signal(%s, ''go'')', find('no signals')));
SELECT coord.saga_signal(find('names'), 'go');
CALL coord.run_pending() \gset
SELECT try('SELECT coord.saga_define(''wrong'', ARRAY[' || step || '])') FROM unnest(ARRAY['coord.step_signal(NULL, ''x'')', 'coord.step_signal(''s'', NULL)', 'coord.step_signal(''s'', '''')', 'coord.step_signal(''s'', ''x'', timeout => ''0'')',
  'coord.step_signal(''s'', ''x'', timeout => ''-1 s'')', 'coord.step_signal(''s'', ''x'', on_timeout => ''continue'')', 'coord.step_signal(''s'', ''x'', timeout => ''1 s'', on_timeout => ''ignore'')', 'coord.step_signal(''s'', ''x'', after => ''{nobody}'')']) AS step;
-- Privileges: those who may see the saga.
RESET ROLE;
CREATE ROLE regress_saga_signal_other;
CREATE ROLE regress_saga_signal_member IN ROLE regress_saga_signal;
GRANT coord_user TO regress_saga_signal_other, regress_saga_signal_member;
GRANT USAGE ON SCHEMA regress_saga_signal TO regress_saga_signal_other;
SET ROLE :name;
SELECT coord.saga_start('order', key => 'privileges') AS id \gset
SET ROLE regress_saga_signal_other;
SELECT try('SELECT coord.saga_signal(' || :id || ', ''x'')');
SELECT try('SELECT coord.saga_signal(' || :id || ', ''nothing'')');
SET ROLE regress_saga_signal_member;
SELECT coord.saga_signal(:id, 'x', '"member"');
SET ROLE :name;
SELECT coord.grant_use('saga', 'order', 'regress_saga_signal_other');
SET ROLE regress_saga_signal_other;
SELECT coord.saga_signal(:id, 'x', '"granted"');
SET ROLE :name;
SELECT coord.revoke_use('saga', 'order', 'regress_saga_signal_other');
SET ROLE regress_saga_signal_other;
SELECT try('SELECT coord.saga_signal(' || :id || ', ''x'')');
RESET ROLE;
GRANT coord_admin TO regress_saga_signal_other;
SET ROLE regress_saga_signal_other;
SELECT coord.saga_signal(:id, 'y', '"admin"'), coord.saga_signal(:id, 'x', '"admin"');
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT coord.saga_output(:id);

-- Timeouts: fail or continue.
SELECT coord.saga_define('times', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step_signal('go', 'go', timeout => '1 h'), coord.step('b', 'act')]);
SELECT coord.saga_define('goes on', ARRAY[coord.step_signal('go', 'go', timeout => '1 h', on_timeout => 'continue'), coord.step('b', 'echo')]);
SELECT count(coord.saga_start(name, key => name || ' ' || n)) FROM unnest('{times,goes on}'::text[]) AS name, generate_series(1, 3) n;
CALL coord.run_pending() \gset
SELECT at(clock() + '59 min 59.999999 s') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('times 1');
SELECT coord.saga_signal(find('times 2'), 'go'), coord.saga_signal(find('goes on 2'), 'go', '"in time"');
SELECT unattended();
SELECT at(clock() + '1 us') IS NOT NULL;
-- what has come by now counts, though its time is over
SELECT coord.saga_signal(find('times 3'), 'go', '"just late"'), coord.saga_signal(find('goes on 3'), 'go', '"just late"');
CALL coord.run_pending() \gset
SELECT show(key), traced(key) FROM unnest('{times 1,times 2,times 3}'::text[]) AS key;
SELECT coord.saga_status(find(key)), coord.saga_output(find(key)) -> 'go', coord.saga_output(find(key)) #> '{b,results}' FROM (SELECT 'goes on ' || n AS key FROM generate_series(1, 3) n) k;
SELECT step, phase, attempt, error, sqlstate FROM coord.saga_log WHERE saga_id = find('times 1');
SELECT coord.saga_signal(find('times 1'), 'go');

-- The deadline passes while it waits; on the way back signals are of no use.
SELECT coord.saga_start('go', key => 'deadline', deadline => '1 h') IS NOT NULL, coord.saga_start('times', key => 'deadline first', deadline => '30 min') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT key, wake_at - clock() FROM coord.sagas WHERE key ~ '^deadline' AND owner = current_user ORDER BY key COLLATE "C";
SELECT unattended();
SELECT at(clock() + '30 min') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('deadline'));
SELECT at(clock() + '30 min') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('deadline'), traced('deadline');
SELECT show('deadline first'), traced('deadline first');
INSERT INTO fault VALUES ('undo a', 1, '40001');
SELECT coord.saga_start('go', key => 'way back') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_cancel(find('way back'), 'never mind');
CALL coord.run_pending() \gset
SELECT coord.saga_signal(find('way back'), 'go');
CALL coord.run_pending() \gset
SELECT show('way back');
SELECT unattended();
SELECT next('way back');
CALL coord.run_pending() \gset
SELECT show('way back');
TRUNCATE fault;

-- What an operator can do to a saga that waits for a signal.
SELECT count(coord.saga_start('times', '{"n": 1}', key => key)) FROM unnest('{paused,retried,skipped,patched,cancelled,abandoned}'::text[]) AS key;
CALL coord.run_pending() \gset
SELECT coord.saga_pause(find('paused')), coord.saga_retry(find('retried')), coord.saga_retry(find('retried'), 'go'), coord.saga_skip(find('skipped'), 'go', '"by hand"'), coord.saga_patch(find('patched'), '{"n": 2}'),
  coord.saga_cancel(find('cancelled')), coord.saga_abandon(find('abandoned'));
SELECT coord.saga_signal(find(key), 'go', '"came"') FROM unnest('{paused,retried,skipped,patched,cancelled,abandoned}'::text[]) AS key;
CALL coord.run_pending() \gset
SELECT show(key), traced(key) FROM unnest('{paused,retried,skipped,patched,cancelled,abandoned}'::text[]) AS key;
SELECT unattended();
SELECT at(clock() + '1 day') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_resume(find('paused'));
CALL coord.run_pending() \gset
SELECT show('paused');
-- paused beyond the timeout, no signal
SELECT coord.saga_start('times', key => 'paused long') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_pause(find('paused long')), at(clock() + '1 day') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_resume(find('paused long'));
CALL coord.run_pending() \gset
SELECT show('paused long');
-- suspended there; a retry waits anew, with a whole timeout
SELECT coord.saga_define('suspends', ARRAY[coord.step_signal('go', 'go', timeout => '1 h'), coord.step('b', 'act')], on_exhausted => 'suspend');
SELECT coord.saga_start('suspends', key => 'suspends') IS NOT NULL, coord.saga_start('suspends', key => 'refused') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_signal(find('refused'), 'go', '{"success": false, "error": "no"}'), at(clock() + '1 h') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('suspends');
SELECT show('refused');
SELECT waits_for, hint, no_ids(repair) FROM coord.stuck WHERE kind = 'saga' ORDER BY id::bigint;
SELECT unattended();
-- a signal for a suspended saga is kept until it goes on
SELECT coord.saga_signal(find('refused'), 'go', '"yes"');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('refused'));
SELECT unattended();
SELECT coord.saga_retry(find('suspends'), 'go'), coord.saga_retry(find('refused'));
CALL coord.run_pending() \gset
SELECT show('suspends'), (SELECT wake_at - clock() FROM coord.sagas WHERE id = find('suspends'));
SELECT show('refused');
SELECT unattended();
SELECT coord.saga_signal(find('suspends'), 'go', '"at last"');
CALL coord.run_pending() \gset
SELECT show('suspends');

-- A condition on a wait.
SELECT coord.saga_define('conditional', ARRAY[coord.step_signal('go', 'go', condition => '$.input.ask'), coord.step('b', 'act')]);
SELECT coord.saga_start('conditional', '{"ask": true}', key => 'ask') IS NOT NULL, coord.saga_start('conditional', '{"ask": false}', key => 'do not ask') IS NOT NULL;
SELECT coord.saga_signal(find('do not ask'), 'go', '"unasked"');
SELECT coord.saga_define('bad condition', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step_signal('go', 'go', condition => 'strict $.input.ask')]);
SELECT coord.saga_start('bad condition', key => 'bad condition') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show(key) FROM unnest('{ask,do not ask,bad condition}'::text[]) AS key;
SELECT coord.saga_signal(find('ask'), 'go');

-- A saga that signals itself, from a step; and one that another signals.
CREATE FUNCTION signal(context jsonb) RETURNS jsonb LANGUAGE sql
  RETURN to_jsonb(coord.saga_signal(coalesce((context #>> '{input,to}')::bigint, (context ->> 'saga_id')::bigint), 'go', context -> 'step'));
SELECT coord.saga_define('itself', ARRAY[coord.step('before', 'signal'), coord.step_signal('one', 'go'), coord.step_signal('two', 'go'), coord.step('beside', 'signal', after => '{one}')]);
SELECT coord.saga_start('itself', key => 'itself') IS NOT NULL;
SELECT coord.saga_start('go', key => 'the other') AS other \gset
SELECT coord.saga_define('other', ARRAY[coord.step('a', 'signal', for_each => '$.input.items[*]')]);
SELECT coord.saga_start('other', jsonb_build_object('to', :other, 'items', '[1, 2]'::jsonb), key => 'other') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('itself');
SELECT show('the other');
SELECT show('other');
-- what a step that fails has sent was never sent
CREATE FUNCTION signal_and_fail(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM signal(context); RAISE 'failed'; END $$;
SELECT coord.saga_start('go', key => 'unheard') AS other \gset
SELECT coord.saga_define('unheard', ARRAY[coord.step('a', 'signal_and_fail', max_attempts => 1)]);
SELECT coord.saga_start('unheard', jsonb_build_object('to', :other), key => 'failed') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('unheard');
SELECT unattended();
SELECT coord.saga_cancel(:other);
CALL coord.run_pending() \gset

-- While the engine is paused signals are taken, and looked at afterwards.
SELECT coord.saga_start('go', key => 'engine paused') IS NOT NULL;
CALL coord.run_pending() \gset
RESET ROLE;
SELECT coord.pause('test');
SET ROLE :name;
SELECT coord.saga_signal(find('engine paused'), 'go', '"kept"');
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('engine paused'));
RESET ROLE;
SELECT coord.resume();
SET ROLE :name;
CALL coord.run_pending() \gset
SELECT show('engine paused');

-- Running in the caller's session it takes its own signals, and comes back while it waits, since the clock stands still.
SELECT coord.saga_define('run', ARRAY[coord.step('a', 'signal'), coord.step_signal('go', 'go'), coord.step('b', 'act')]);
CREATE TABLE ran (id bigint, status text, output jsonb);
DO $$
DECLARE id bigint; status text; output jsonb;
BEGIN
  CALL coord.saga_run('run', '{}', NULL, id, status, output);
  INSERT INTO ran VALUES (id, status, output);
END $$;
SELECT status, output FROM ran;
SELECT unattended();

-- Told of something while it is suspended it decides nothing about what comes after the step that failed.
CREATE TABLE broken ();
CREATE FUNCTION fragile(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF to_regclass('broken') IS NOT NULL THEN
    RAISE 'broken';
  END IF;
  RETURN '"mended"';
END $$;
SELECT coord.saga_define('stops', ARRAY[coord.step('a', 'fragile', max_attempts => 1), coord.step('b', 'echo'), coord.step_signal('go', 'go')],
  on_exhausted => 'suspend');
SELECT coord.saga_start('stops', key => 'stops') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_signal(find('stops'), 'go');
CALL coord.run_pending() \gset
SELECT step, status FROM coord.saga_steps WHERE saga_id = find('stops') ORDER BY ordinal;
DROP TABLE broken;
SELECT coord.saga_retry(find('stops'));
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('stops'));
SELECT step, status FROM coord.saga_steps WHERE saga_id = find('stops') ORDER BY ordinal;

-- A picture while it waits and afterwards.
SELECT coord.saga_start('approval', key => 'picture') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT at(clock() + '1 h') IS NOT NULL;
SELECT regexp_replace(coord.saga_picture(find('picture')), '\n  classDef.*', '');
SELECT coord.saga_timeline(find('picture'));
SELECT coord.saga_signal(find('picture'), 'approved');
CALL coord.run_pending() \gset
SELECT regexp_replace(coord.saga_picture(find('picture')), '\n  classDef.*', '');
SELECT coord.saga_timeline(find('picture'));
SELECT coord.saga_diagram('approval'), coord.saga_diagram('approval', 'dot');

RESET ROLE;
DROP OWNED BY regress_saga_signal_other, regress_saga_signal_member;
DROP ROLE regress_saga_signal_other, regress_saga_signal_member;
\set include :abs_srcdir/include/saga_waits_end.psql
\i :include
\set include :abs_srcdir/include/saga_end.psql
\i :include
