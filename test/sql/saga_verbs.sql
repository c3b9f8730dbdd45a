-- What operators do to sagas: each verb in each state, what it returns, that
-- repeating it is harmless, and that it is in the log.
\set name regress_saga_verbs
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

SELECT coord.saga_define('forward', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act', compensation => 'undo'), coord.step('c', 'act')],
  on_exhausted => 'suspend');
SELECT coord.saga_define('back', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act', compensation => 'undo'), coord.step('c', 'act')]);

-- Brings a new saga into a state, which is its key.
CREATE PROCEDURE bring(state text) LANGUAGE plpgsql AS $$
DECLARE
  turns int;
BEGIN
  DELETE FROM fault;
  IF state ~ 'new' THEN
    NULL;
  ELSIF state ~ 'waiting' THEN  -- for the next attempt of b
    INSERT INTO fault VALUES ('b', 99, '40001');
  ELSIF state ~ 'backward' THEN
    INSERT INTO fault VALUES ('c', 1, 'P0001'), ('undo a', 99, CASE state WHEN 'suspended backward' THEN 'P0001' ELSE '40001' END);
  ELSIF state ~ 'suspended' THEN
    INSERT INTO fault VALUES ('b', 1, 'P0001');
  ELSIF state ~ 'compensated' THEN
    INSERT INTO fault VALUES ('c', 1, 'P0001');
  ELSIF state ~ 'failed' THEN
    INSERT INTO fault VALUES ('a', 1, 'P0001');
  END IF;
  PERFORM coord.saga_start(CASE WHEN state ~ 'backward|compensated|failed' THEN 'back' ELSE 'forward' END,
    start_at => CASE WHEN state = 'new' THEN clock() + interval '1 h' END, key => state);
  COMMIT;
  CALL coord.run_pending(turns => turns);
  IF state ~ 'paused' THEN
    PERFORM coord.saga_pause(find(state));
  END IF;
  COMMIT;
  DELETE FROM fault;
END $$;
CREATE TABLE states (n int GENERATED ALWAYS AS IDENTITY, state text);
INSERT INTO states (state) VALUES ('new'), ('waiting'), ('suspended'), ('paused waiting'), ('paused backward'), ('backward'), ('suspended backward'),
  ('completed'), ('compensated'), ('failed');

-- In each state do a verb twice, then let the saga run to its end.
CREATE PROCEDURE each(verb text) LANGUAGE plpgsql AS $$
DECLARE
  s text;
  before text;
  answers text[];
  done text;
  old_at timestamptz := clock();
  turns int;
BEGIN
  FOR s IN SELECT state FROM states ORDER BY n LOOP
    CALL bring(s);
    before := coord.saga_status(find(s));
    SELECT array_agg(t) INTO answers FROM generate_series(1, 2) i,
      LATERAL (SELECT CASE a WHEN 'no error' THEN coord.saga_status(find(s)) ELSE a END AS t
               FROM try(replace(verb, 'ID', (find(s) + i - i)::text)) AS a) t;
    COMMIT;
    FOR i IN 1 .. 30 LOOP
      EXIT WHEN next(s) IS NOT TRUE;
      COMMIT;
      CALL coord.run_pending(turns => turns);
    END LOOP;
    SELECT string_agg(concat_ws(' ', event, step, reason, 'by ' || role, 'at ' || CASE at WHEN old_at THEN 'once' END), ', ' ORDER BY id) INTO done
      FROM coord.saga_log WHERE saga_id = find(s) AND event NOT IN ('attempt_failed') AND NOT (event = 'pause' AND s ~ 'paused' AND reason IS NULL);
    RAISE INFO '%', format('%s (%s): %s; log: %s; in the end: %s', s, before, array_to_string(answers, ' / '), done,
      (SELECT string_agg(trim(l), ' | ') FROM show(s) AS l));
    RAISE INFO '%', format('    did: %s', traced(s));
    IF coord.saga_status(find(s)) NOT IN ('completed', 'compensated', 'failed') THEN
      PERFORM coord.saga_abandon(find(s));
    END IF;
    PERFORM at(old_at);
    COMMIT;
    -- the key is free for the next one
    PERFORM forget(s);
    COMMIT;
  END LOOP;
END $$;
RESET ROLE;
CREATE FUNCTION forget(key text) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
  DELETE FROM coord_internal.saga_key k WHERE k.key = forget.key AND name IN ('forward', 'back');
  UPDATE coord_internal.saga_archive a SET key = NULL WHERE a.key = forget.key AND name IN ('forward', 'back');
$$;
SET ROLE :name;

CALL each($$SELECT coord.saga_cancel(ID, 'not wanted')$$);
CALL each($$SELECT coord.saga_pause(ID, 'wait')$$);
CALL each($$SELECT coord.saga_resume(ID, 'go')$$);
CALL each($$SELECT coord.saga_retry(ID, reason => 'again')$$);
CALL each($$SELECT coord.saga_retry(ID, 'b', 'again b')$$);
CALL each($$SELECT coord.saga_retry(ID, 'a', 'again a')$$);
CALL each($$SELECT coord.saga_skip(ID, 'b', '{"by": "hand"}', 'by hand')$$);
CALL each($$SELECT coord.saga_skip(ID, 'a', reason => 'by hand')$$);
CALL each($$SELECT coord.saga_skip(ID, 'c', reason => 'by hand')$$);
CALL each($$SELECT coord.saga_patch(ID, '{"patched": true}', 'new input')$$);
CALL each($$SELECT coord.saga_abandon(ID, 'give up')$$);

-- The function's result is the status after it.
CALL bring('waiting');
SELECT coord.saga_pause(find('waiting'));
SELECT coord.saga_resume(find('waiting'));
SELECT coord.saga_retry(find('waiting'));
SELECT coord.saga_patch(find('waiting'), '{}');
SELECT coord.saga_cancel(find('waiting'));
SELECT coord.saga_cancel(find('waiting'));
SELECT coord.saga_pause(find('waiting'));
SELECT coord.saga_resume(find('waiting'));
CALL coord.run_pending() \gset
SELECT coord.saga_cancel(find('waiting'));
SELECT show('waiting');
SELECT forget('waiting');

-- A skipped step's result is what the next ones see; without one, there is none.
CREATE FUNCTION results(context jsonb) RETURNS jsonb LANGUAGE sql RETURN context -> 'results';
SELECT coord.saga_define('results', ARRAY[coord.step('a', 'act'), coord.step('b', 'act'), coord.step('c', 'results')]);
SELECT coord.saga_start('results', key => 'results') IS NOT NULL;
SELECT coord.saga_skip(find('results'), 'a', '{"by": "hand"}'), coord.saga_skip(find('results'), 'b');
CALL coord.run_pending() \gset
SELECT coord.saga_output(find('results')), show('results');
SELECT coord.saga_start('results', key => 'null result') IS NOT NULL;
SELECT coord.saga_skip(find('null result'), 'a', 'null');
CALL coord.run_pending() \gset
SELECT coord.saga_output(find('null result'));

-- A patched input is what the next steps see; what is done is done.
CREATE FUNCTION inputs(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN PERFORM note(context, context ->> 'step'); RETURN context -> 'input'; END $$;
SELECT coord.saga_define('patch', ARRAY[coord.step('a', 'inputs'), coord.step('b', 'inputs')], on_exhausted => 'suspend');
INSERT INTO fault VALUES ('b', 1, 'P0001');
SELECT coord.saga_start('patch', '{"n": 1}', key => 'patch') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_patch(find('patch'), '{"n": 2}');
DELETE FROM fault;
SELECT coord.saga_retry(find('patch'));
CALL coord.run_pending() \gset
SELECT input, output FROM coord.sagas WHERE id = find('patch');
SELECT try(format('SELECT coord.saga_patch(%s, %L)', find('patch'), '{}'));
SELECT try(format('SELECT coord.saga_patch(%s, NULL)', find('patch')));
-- The key stands for the request as it was made.
SELECT coord.saga_start('patch', '{"n": 1}', key => 'patch') = find('patch');
SELECT try($$SELECT coord.saga_start('patch', '{"n": 2}', key => 'patch')$$);

-- A saga that is paused before its time keeps its time.
SELECT at('2030-01-01 00:00:00+00');
SELECT coord.saga_start('forward', key => 'early', start_at => clock() + interval '1 h') IS NOT NULL;
SELECT coord.saga_pause(find('early')), coord.saga_resume(find('early'));
CALL coord.run_pending();
SELECT traced('early');
SELECT coord.saga_skip(find('early'), 'b');
CALL coord.run_pending();
SELECT coord.saga_patch(find('early'), '{}');
CALL coord.run_pending();
SELECT at('2030-01-01 01:00:00+00');
CALL coord.run_pending() \gset
SELECT traced('early');
-- Cancelled before its time it has failed at once, with nothing done.
SELECT coord.saga_start('forward', key => 'never', start_at => clock() + interval '1 h') IS NOT NULL;
SELECT coord.saga_cancel(find('never'));
SELECT show('never');
SELECT started_at, wake_at, finished_at FROM coord.sagas WHERE id = find('never');

-- The first failure suspends; what was beside it is not begun before that is settled.
SELECT coord.saga_define('two stops', ARRAY[coord.step('a', 'act', after => '{}', retry_delay => '0'), coord.step('b', 'act', after => '{}'), coord.step('end', 'act', after => '{a,b}')],
  on_exhausted => 'suspend');
INSERT INTO fault VALUES ('a', 99, 'P0001'), ('b', 99, 'P0001');
SELECT coord.saga_start('two stops', key => 'two stops') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('two stops');
SELECT coord.saga_retry(find('two stops'));
CALL coord.run_pending() \gset
SELECT show('two stops');
SELECT coord.saga_skip(find('two stops'), 'a');
CALL coord.run_pending() \gset
SELECT show('two stops');
SELECT coord.saga_skip(find('two stops'), 'b');
CALL coord.run_pending() \gset
SELECT show('two stops');

-- Unknown sagas, steps, and nulls.
SELECT coord.saga_start('forward', key => 'errors', start_at => clock() + interval '1 h') IS NOT NULL;
SELECT try($$SELECT coord.saga_cancel(0)$$);
SELECT try($$SELECT coord.saga_status(-1)$$);
SELECT try($$SELECT coord.saga_output(9007199254740991)$$);
SELECT try($$SELECT coord.saga_pause(NULL)$$);
SELECT try($$SELECT coord.saga_resume(NULL)$$);
SELECT try($$SELECT coord.saga_cancel(NULL)$$);
SELECT try($$SELECT coord.saga_retry(NULL)$$);
SELECT try($$SELECT coord.saga_skip(NULL, 'a')$$);
SELECT try($$SELECT coord.saga_patch(NULL, '{}')$$);
SELECT try($$SELECT coord.saga_abandon(NULL)$$);
SELECT try($$SELECT coord.saga_status(NULL)$$);
SELECT try($$SELECT coord.saga_output(NULL)$$);
SELECT try($$SELECT coord.saga_wait(NULL)$$);
SELECT try(format('SELECT coord.saga_skip(%s, NULL)', find('errors')));
SELECT try(format('SELECT coord.saga_skip(%s, %L)', find('errors'), 'd'));
SELECT try(format('SELECT coord.saga_skip(%s, %L)', find('errors'), 'something else'));
SELECT try(format('SELECT coord.saga_retry(%s, %L)', find('errors'), 'd'));
SELECT coord.saga_cancel(find('errors'), NULL, NULL);

-- Waiting
SELECT coord.saga_wait(find('errors'));
SELECT coord.saga_wait(find('errors'), NULL);
SELECT coord.saga_start('forward', key => 'wait', start_at => clock() + interval '1 h') IS NOT NULL;
SELECT coord.saga_wait(find('wait'), '0');
SELECT try(format('SELECT coord.saga_wait(%s, %L)', find('wait'), '-1 s'));
SELECT coord.saga_pause(find('wait'));
SELECT coord.saga_wait(find('wait'));
BEGIN;
SELECT coord.saga_resume(find('wait'));
SELECT try(format('SELECT coord.saga_wait(%s)', find('wait')));
ROLLBACK;
BEGIN;
SELECT coord.saga_start('forward', key => 'wait here') AS id \gset
SELECT try(format('SELECT coord.saga_wait(%s)', :id));
ROLLBACK;
SELECT try(format('SELECT coord.saga_wait(%s)', :id));
SELECT coord.saga_abandon(find('wait'));

-- A verb is the transaction's.
SELECT coord.saga_start('forward', key => 'rolled back', start_at => clock() + interval '1 h') IS NOT NULL;
BEGIN;
SELECT coord.saga_pause(find('rolled back'), 'not really');
SAVEPOINT s;
SELECT coord.saga_cancel(find('rolled back'), 'not at all');
ROLLBACK TO s;
SELECT coord.saga_status(find('rolled back'));
ROLLBACK;
SELECT coord.saga_status(find('rolled back'));
SELECT count(*) FROM coord.saga_log WHERE saga_id = find('rolled back');
BEGIN;
SELECT coord.saga_pause(find('rolled back')), coord.saga_resume(find('rolled back')), coord.saga_patch(find('rolled back'), '{"n": 1}'),
  coord.saga_skip(find('rolled back'), 'a'), coord.saga_cancel(find('rolled back'));
COMMIT;
SELECT status, input FROM coord.sagas WHERE id = find('rolled back');
SELECT event, step, role FROM coord.saga_log WHERE saga_id = find('rolled back') ORDER BY id;

-- Whose: members of the owner, coord_admin, and whom it was given to; for all others there is no such saga.
RESET ROLE;
CREATE ROLE regress_saga_verbs_other IN ROLE coord_user;
CREATE ROLE regress_saga_verbs_member IN ROLE coord_user, regress_saga_verbs;
CREATE ROLE regress_saga_verbs_admin IN ROLE coord_admin;
CREATE ROLE regress_saga_verbs_reader IN ROLE coord_reader;
SET ROLE :name;
SELECT coord.saga_start('forward', key => 'whose', start_at => clock() + interval '1 h') AS id \gset
SET ROLE regress_saga_verbs_other;
SELECT try(format('SELECT coord.saga_pause(%s)', :id));
SELECT try(format('SELECT coord.saga_status(%s)', :id));
SELECT try(format('SELECT coord.saga_output(%s)', :id));
SELECT try(format('SELECT coord.saga_wait(%s)', :id));
SELECT try(format('SELECT * FROM coord.saga_timeline(%s)', :id));
SELECT try(format('SELECT coord.saga_picture(%s)', :id));
SELECT coord.saga_find('forward', 'whose');
SELECT try($$SELECT coord.grant_use('saga', 'forward', 'regress_saga_verbs_other')$$);
SET ROLE regress_saga_verbs_member;
SELECT coord.saga_pause(:id, 'as a member');
SET ROLE regress_saga_verbs_admin;
SELECT coord.saga_resume(:id, 'as an admin');
SET ROLE regress_saga_verbs_reader;
SELECT try(format('SELECT coord.saga_pause(%s)', :id));
SET ROLE :name;
SELECT coord.grant_use('saga', 'forward', 'regress_saga_verbs_other');
SELECT coord.grant_use('saga', 'forward', 'regress_saga_verbs_other');
SET ROLE regress_saga_verbs_other;
SELECT coord.saga_status(:id), coord.saga_find('forward', 'whose') = :id;
SELECT coord.saga_cancel(:id, 'as one who may use it');
SET ROLE :name;
SELECT coord.revoke_use('saga', 'forward', 'regress_saga_verbs_other');
SELECT coord.revoke_use('saga', 'forward', 'regress_saga_verbs_other');
SET ROLE regress_saga_verbs_other;
SELECT try(format('SELECT coord.saga_status(%s)', :id));
SELECT try($$SELECT coord.saga_start('forward')$$);
SET ROLE :name;
SELECT event, role, reason FROM coord.saga_log WHERE saga_id = :id ORDER BY id;
SELECT try($$SELECT coord.grant_use('saga', 'forwrad', 'regress_saga_verbs_other')$$);
SELECT try($$SELECT coord.grant_use('saga', 'forward', 'regress_saga_verbs_nobody')$$);
SELECT try($$SELECT coord.grant_use('sagas', 'forward', 'regress_saga_verbs_other')$$);
SELECT try($$SELECT coord.grant_use(NULL, 'forward', 'regress_saga_verbs_other')$$);
SELECT try($$SELECT coord.grant_use('saga', NULL, 'regress_saga_verbs_other')$$);
SELECT try($$SELECT coord.grant_use('saga', 'forward', NULL)$$);
SELECT try($$SELECT coord.revoke_use('saga', 'forward', NULL)$$);
SELECT try($$SELECT coord.grant_use('queue', 'q', 'regress_saga_verbs_other')$$);
RESET ROLE;
DROP ROLE regress_saga_verbs_other, regress_saga_verbs_member, regress_saga_verbs_admin, regress_saga_verbs_reader;

\set include :abs_srcdir/include/saga_end.psql
\i :include
