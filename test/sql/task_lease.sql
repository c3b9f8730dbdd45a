-- What becomes of a claimed task: completed, failed, extended, given back, taken away, expired; and what a token is
-- worth afterwards.
\set name regress_task_lease
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/task.psql
\i :include

SELECT coord.saga_define('work', ARRAY[coord.step('do', queue => 'lease.work', compensation => 'undo', max_attempts => 3, retry_delay => '10 s', retry_max_delay => '10 s')]);
CREATE FUNCTION start(key text, saga text DEFAULT 'work') RETURNS void LANGUAGE sql AS $$ SELECT coord.saga_start(saga, key => start.key) $$;
-- Starts a saga and claims its task.
CREATE PROCEDURE bring(key text, state text DEFAULT 'running') LANGUAGE plpgsql AS $$
DECLARE
  n int;
  got text;
BEGIN
  PERFORM start(key);
  COMMIT;
  CALL coord.run_pending(NULL, n);
  SELECT claim('lease.work', worker => 'w1') INTO STRICT got;
  COMMIT;
  CASE state
    WHEN 'running' THEN NULL;
    WHEN 'completed' THEN PERFORM coord.task_complete(id(key), tok(key));
    WHEN 'failed' THEN PERFORM coord.task_fail(id(key), tok(key), 'no', false);
    WHEN 'to be retried' THEN PERFORM coord.task_fail(id(key), tok(key), 'no', retry_in => '1 h');
    WHEN 'released' THEN PERFORM coord.task_release(id(key), tok(key));
    WHEN 'revoked' THEN PERFORM coord.task_revoke(id(key), 'test');
    WHEN 'claimed again' THEN
      PERFORM coord.task_release(id(key), tok(key));
      PERFORM coord.task_claim('lease.work');  -- the other one's token
    WHEN 'finished' THEN
      PERFORM coord.task_complete(id(key), tok(key));
      COMMIT;
      CALL coord.run_pending(NULL, n);
    WHEN 'cancelled' THEN
      PERFORM coord.task_release(id(key), tok(key));
      PERFORM coord.saga_cancel(find(key));
      COMMIT;
      CALL coord.run_pending(NULL, n);
    WHEN 'abandoned' THEN PERFORM coord.saga_abandon(find(key));
    WHEN 'expired' THEN PERFORM at(clock() + interval '31 s');
    WHEN 'expired and swept' THEN
      PERFORM at(clock() + interval '31 s');
      CALL coord.run_pending(NULL, n);
  END CASE;
  COMMIT;
END $$;
CREATE TABLE states (n int GENERATED ALWAYS AS IDENTITY, state text);
INSERT INTO states (state) VALUES ('running'), ('expired'), ('expired and swept'), ('completed'), ('failed'), ('to be retried'), ('released'), ('revoked'),
  ('claimed again'), ('finished'), ('cancelled'), ('abandoned');

-- In each state do the same thing twice, and look.
CREATE PROCEDURE each(what text) LANGUAGE plpgsql AS $$
DECLARE
  s text;
  k text;
  answers text[];
  old_at timestamptz := clock();
BEGIN
  FOR s IN SELECT state FROM states ORDER BY n LOOP
    k := s || ' ' || clock_timestamp();
    CALL bring(k, s);
    answers := NULL;
    FOR i IN 1..2 LOOP
      answers := answers || answer(format(what, id(k), tok(k)));
      COMMIT;
    END LOOP;
    RAISE NOTICE '%: %, %; then %', s, answers[1], answers[2],
      coalesce((SELECT string_agg(regexp_replace(t, '^.* do| from .*', '', 'g'), ',') FROM tasks(k) AS t), 'gone');
    PERFORM coord.saga_abandon(find(k));
    PERFORM at(old_at);
    COMMIT;
  END LOOP;
END $$;
-- The first value of a query, or its error.
CREATE FUNCTION answer(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
BEGIN
  EXECUTE query INTO result;
  RETURN result;
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE;
END $$;
\set VERBOSITY terse
CALL each('SELECT coord.task_complete(%s, %s)');
CALL each('SELECT coord.task_fail(%s, %s, ''boom'')');
CALL each('SELECT coord.task_fail(%s, %s, ''boom'', false)');
CALL each('SELECT coord.task_extend(%s, %s, ''1 min'')');
CALL each('SELECT coord.task_release(%s, %s)');
CALL each('SELECT coord.task_revoke(%s)');
CALL each('SELECT coord.task_complete_many(ARRAY[%s], ARRAY[%s]) <> ''{}''');
\set VERBOSITY default

-- What the errors say.
CALL bring('a', 'claimed again');
SELECT try_task(format('SELECT coord.task_complete(%s, %s)', id('a'), tok('a')));
CALL bring('b', 'cancelled');
SELECT try_task(format('SELECT coord.task_extend(%s, %s)', id('b'), tok('b')));
SELECT try_task('SELECT coord.task_complete(9007199254740991, 1)');
SELECT try_task('SELECT coord.task_complete(0, 1)');
SELECT try('SELECT coord.task_complete(NULL, 1)');
SELECT try('SELECT coord.task_complete(1, NULL)');
SELECT try('SELECT coord.task_fail(NULL, 1, ''x'')');
SELECT try('SELECT coord.task_fail(1, NULL, ''x'')');
SELECT try('SELECT coord.task_fail(1, 1, NULL)');
SELECT try('SELECT coord.task_fail(1, 1, ''x'', retry_in => ''-1 s'')');
SELECT try('SELECT coord.task_extend(NULL, 1)');
SELECT try('SELECT coord.task_extend(1, NULL)');
SELECT try('SELECT coord.task_extend(1, 1, ''0'')');
SELECT try('SELECT coord.task_release(NULL, 1)');
SELECT try('SELECT coord.task_release(1, NULL)');
SELECT try('SELECT coord.task_revoke(NULL)');
SELECT try_task('SELECT coord.task_revoke(9007199254740991)');

-- Attempts are counted, logged, and used up.
CALL clear();
DO $$ BEGIN PERFORM start('c'); END $$;
CALL run();
SELECT claim('lease.work', worker => 'w1');
SELECT coord.task_fail(id('c'), tok('c'), 'first', retry_in => '5 s');
SELECT tasks('c');
SELECT claim('lease.work');
SELECT at(clock() + interval '5 s');
SELECT claim('lease.work');
SELECT at(clock() + interval '30 s');
SELECT claim('lease.work', worker => 'w2');
-- The lease of the second attempt has expired, and another one has the task: nothing of it is accepted.
SELECT coord.task_fail(id('c'), tok('c'), 'third');
CALL run();
SELECT show('c');
SELECT event, step, phase, attempt, role, error, sqlstate, error_context FROM coord.saga_log WHERE saga_id = find('c') ORDER BY id;
SELECT claim('lease.work');
SELECT coord.task_complete(id('c'), tok('c'), '"undone"');
CALL run();
SELECT show('c');

-- The pause before the next attempt is the step's.
CALL clear();
CALL bring('d');
SELECT coord.task_fail(id('d'), tok('d'), 'again');
SELECT available_at BETWEEN clock() AND clock() + interval '10 s' FROM coord.tasks WHERE saga_id = find('d');
-- A result that says so is a failure, as that of a function is: for good, unless retry_on has P0001.
CALL bring('e');
SELECT coord.task_complete(id('e'), tok('e'), '{"success": false, "error": "card declined"}');
CALL run();
SELECT show('e');
SELECT coord.saga_define('stubborn', ARRAY[coord.step('do', queue => 'lease.work', retry_on => '{P0001}')]);
DO $$ BEGIN PERFORM start('f', 'stubborn'); END $$;
CALL run();
SELECT claim('lease.work', 10);
SELECT coord.task_complete(id('f'), tok('f'), '{"success": false}');
SELECT tasks('f') ~ 'ready|delayed';
-- Twenty-five attempts if nothing else is said; past the pivot as many as it takes.
SELECT coord.saga_define('pivot', ARRAY[coord.step('point', 'act', pivot => true), coord.step('do', queue => 'lease.work', max_attempts => 1)]);
DO $$ BEGIN PERFORM start('g', 'pivot'); END $$;
CALL run();
SELECT claim('lease.work');
SELECT coord.task_fail(id('g'), tok('g'), 'not yet', retry_in => '0');
SELECT claim('lease.work');
SELECT coord.task_fail(id('g'), tok('g'), 'never', retryable => false);
CALL run();
SELECT show('g');

-- A lease never ends before it did, nor after the step's timeout.
SELECT coord.saga_define('timed', ARRAY[coord.step('do', queue => 'lease.work', timeout => '1 min')]);
DO $$ BEGIN PERFORM start('h', 'timed'); END $$;
CALL run();
SELECT claim('lease.work', lease => '40 s');
SELECT coord.task_extend(id('h'), tok('h'), '10 s') - clock();
SELECT coord.task_extend(id('h'), tok('h'), '50 s') - clock();
SELECT coord.task_extend(id('h'), tok('h'), '1 h') - clock();
SELECT at(clock() + interval '1 min');
CALL run();
SELECT event, attempt, error, sqlstate FROM coord.saga_log WHERE saga_id = find('h') ORDER BY id;
-- Nobody has taken it, so its token is still good, but not for longer.
SELECT coord.task_extend(id('h'), tok('h'), '1 h') - clock();
SELECT coord.task_complete(id('h'), tok('h'));
CALL run();
SELECT show('h');

CALL clear();
-- The token grows with each claim, also if the clock does not.
CALL bring('i');
SELECT coord.task_release(id('i'), tok('i'));
SELECT at(clock() + interval '1 h');
SELECT claim('lease.work');
SELECT coord.task_release(id('i'), tok('i'));
SELECT at(clock() - interval '1 h');
SELECT claim('lease.work');
SELECT array_agg(token ORDER BY n) = array_agg(token ORDER BY token) AND count(DISTINCT token) = 3 FROM held WHERE key = 'i';

-- Many at once.
CALL clear();
DO $$ BEGIN PERFORM start('m' || i) FROM generate_series(1, 6) i; END $$;
CALL run();
SELECT claim('lease.work', 5);
SELECT coord.task_release(id('m4'), tok('m4'));
WITH args AS (
  -- a good one, it again, one with an old token, a failure, one given back, one unknown, one never claimed
  SELECT ARRAY[id('m1'), id('m1'), id('m2'), id('m3'), id('m4'), 9007199254740991, id('m5')] AS ids,
    ARRAY[tok('m1'), tok('m1'), 1, tok('m3'), tok('m4'), 1, tok('m5')] AS tokens)
SELECT array_agg(key ORDER BY key)
FROM args CROSS JOIN unnest(coord.task_complete_many(ids, tokens, '[{"n": 1}, {"n": 1}, 2, {"success": false}, 4, 5, null]')) AS u (id) JOIN held ON task_id = u.id;
CALL run();
SELECT key, status, error, output FROM coord.sagas WHERE id IN (find('m1'), find('m2'), find('m3'), find('m4'), find('m5')) ORDER BY key;
SELECT coord.task_complete_many('{}', '{}');
SELECT coord.task_complete_many('{}', '{}', 'null');
SELECT try('SELECT coord.task_complete_many(''{1}'', ''{1,2}'')');
SELECT try('SELECT coord.task_complete_many(''{1}'', ''{1}'', ''[]'')');
SELECT try('SELECT coord.task_complete_many(''{1}'', ''{1}'', ''{}'')');
SELECT try('SELECT coord.task_complete_many(''{1}'', ''{1}'', ''1'')');
SELECT try('SELECT coord.task_complete_many(''{1,NULL}'', ''{1,2}'')');
SELECT try('SELECT coord.task_complete_many(NULL, ''{1,2}'')');
SELECT try('SELECT coord.task_complete_many(''{1}'', NULL)');

-- A worker's own writes and the completion are one transaction.
CREATE TABLE ledger (what text);
BEGIN;
INSERT INTO ledger VALUES ('lost');
SELECT coord.task_complete(id('m2'), tok('m2'));
ROLLBACK;
BEGIN;
INSERT INTO ledger VALUES ('kept');
SELECT coord.task_complete(id('m2'), tok('m2'));
COMMIT;
CALL run();
SELECT show('m2');
SELECT * FROM ledger;

-- Taking away is audited.
SELECT event, step, attempt, role, reason FROM coord.saga_log WHERE event = 'revoked' AND saga_id IN (SELECT id FROM coord.sagas WHERE owner = current_user) ORDER BY id LIMIT 1;

\set include :abs_srcdir/include/task_end.psql
\i :include
