-- Failed attempts: which are made again, when, and how often.
\set name regress_saga_retry
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

-- A serialization failure is made again, three attempts in all; each is in the log,
-- and the step's own work is undone.
SELECT coord.saga_define('three', ARRAY[coord.step('a', 'act')]);
INSERT INTO fault VALUES ('a', 2, '40001');
SELECT coord.saga_start('three', key => 'twice') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('twice');
SELECT traced('twice');
-- Not before its time.
CALL coord.run_pending() \gset
SELECT next('twice');
CALL coord.run_pending() \gset
SELECT show('twice');
SELECT next('twice');
CALL coord.run_pending() \gset
SELECT show('twice');
SELECT traced('twice');
SELECT event, step, phase, attempt, role, reason, error, sqlstate, error_detail FROM coord.saga_log
  WHERE saga_id = find('twice') ORDER BY id;
-- Where it was raised.
SELECT no_ids(error_context) FROM coord.saga_log WHERE saga_id = find('twice') ORDER BY id LIMIT 1;

-- The third is the last.
UPDATE fault SET attempts = 3;
SELECT coord.saga_start('three', key => 'thrice') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT next('thrice');
CALL coord.run_pending() \gset
SELECT next('thrice');
CALL coord.run_pending() \gset
SELECT show('thrice');
SELECT error_detail, no_ids(error_context) LIKE 'PL/pgSQL function%' FROM coord.saga_steps WHERE saga_id = find('thrice');
SELECT traced('thrice');

-- The other code: at once the end.
UPDATE fault SET code = '23505';
SELECT coord.saga_start('three', key => 'at once') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('at once');

-- What is worth another attempt by default: classes 08, 40, 53, 57 and codes 55P03, 58030.
CREATE TABLE code (code text PRIMARY KEY);
CREATE FUNCTION fails(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION USING ERRCODE = context #>> '{input,code}', MESSAGE = 'code ' || (context #>> '{input,code}');
END $$;
SELECT coord.saga_define('code', ARRAY[coord.step('a', 'fails')]);
SELECT coord.saga_define('listed', ARRAY[coord.step('a', 'fails', retry_on => '{23505,P0,XX000}')]);
SELECT coord.saga_define('all', ARRAY[coord.step('a', 'fails', retry_on => '{*}')]);
INSERT INTO code VALUES ('08000'), ('08006'), ('40001'), ('40P01'), ('40002'), ('53100'), ('53300'), ('57P01'), ('57P03'),
  ('55P03'), ('58030'), ('55006'), ('58P01'), ('25P03'), ('22012'), ('23505'), ('23503'), ('42501'), ('P0001'), ('P0002'), ('XX000'), ('XX001'), ('ZC006');
SELECT count(coord.saga_start(name, jsonb_build_object('code', code), key => name || code))
  FROM code, unnest('{code,listed,all}'::text[]) AS name;
CALL coord.run_pending() \gset
SELECT code, string_agg(name, ', ' ORDER BY name) AS retried_under FROM code LEFT JOIN coord.sagas s ON s.key IN ('code' || code, 'listed' || code, 'all' || code)
  AND s.status = 'running' AND s.owner = current_user
  GROUP BY code ORDER BY code;
SELECT count(coord.saga_abandon(id)) FROM coord.sagas WHERE name IN ('code', 'listed', 'all') AND finished_at IS NULL AND owner = current_user;

-- Another attempt comes within the bound: delay * backoff ^ (attempt - 1), at most the maximum.
SELECT coord.saga_define('slower', ARRAY[coord.step('a', 'fails', max_attempts => 12,
  retry_delay => '10 s', retry_backoff => 3, retry_max_delay => '5 min')]);
CREATE TABLE delays (attempt int, delay interval);
CREATE FUNCTION within() RETURNS SETOF text LANGUAGE sql AS $$
  INSERT INTO delays SELECT attempt, next_attempt_at - clock()
    FROM coord.saga_steps WHERE saga_id = find('slower') AND next_attempt_at IS NOT NULL;
  SELECT format('attempt %s: %s', attempt, status || CASE WHEN next_attempt_at IS NULL THEN '' ELSE
      CASE WHEN next_attempt_at >= clock()
            AND next_attempt_at <= clock() + least(interval '5 min', interval '10 s' * 3 ^ (attempt - 1))
           THEN ' within the bound' ELSE ' OUT OF BOUNDS ' || next_attempt_at END END)
    FROM coord.saga_steps WHERE saga_id = find('slower');
$$;
SELECT coord.saga_start('slower', '{"code": "40001"}', key => 'slower') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within(), next('slower');
CALL coord.run_pending() \gset
SELECT within();
-- Full jitter: they are not all the bound itself, nor all zero.
SELECT count(*), count(DISTINCT delay) > 3, bool_and(delay <= interval '5 min') FROM delays;

-- No delay at all: the attempts come one after the other.
SELECT coord.saga_define('no delay', ARRAY[coord.step('a', 'act', retry_delay => '0', max_attempts => 5)]);
UPDATE fault SET code = '40P01', attempts = 4;
SELECT coord.saga_start('no delay', key => 'no delay') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('no delay');
-- One attempt.
SELECT coord.saga_define('once', ARRAY[coord.step('a', 'act', max_attempts => 1)]);
SELECT coord.saga_start('once', key => 'once') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('once');

-- A step that waits does not hold up another one.
DELETE FROM fault;
INSERT INTO fault VALUES ('slow', 1, '40001');
SELECT coord.saga_define('both', ARRAY[coord.step('slow', 'act', after => '{}'), coord.step('quick', 'act', after => '{}'),
  coord.step('end', 'act', after => '{slow,quick}')]);
SELECT coord.saga_start('both', key => 'both') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('both');
SELECT next('both');
CALL coord.run_pending() \gset
SELECT show('both');
SELECT traced('both');

-- An object with "success": false is a failure, and what the step did is undone.
CREATE FUNCTION says(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note(context, 'says ' || (context ->> 'attempt'));
  RETURN context #> '{input,say}';
END $$;
SELECT coord.saga_define('says', ARRAY[coord.step('a', 'says')]);
SELECT coord.saga_define('says again', ARRAY[coord.step('a', 'says', retry_on => '{P0001}')]);
CREATE TABLE said (key text PRIMARY KEY, say jsonb);
INSERT INTO said VALUES ('1', '{"success": false, "error": "no stock"}'), ('2', '{"success": false}'), ('3', '{"success": false, "error": 42}'),
  ('4', '{"success": false, "error": {"code": 1}}'), ('5', '{"success": true, "error": "ignored"}'), ('6', '{"success": "false"}'),
  ('7', '{"success": null}'), ('8', '[{"success": false}]'), ('9', 'false'), ('10', 'null'), ('11', '{}');
SELECT count(coord.saga_start('says', jsonb_build_object('say', say), key => key)) FROM said;
CALL coord.run_pending() \gset
SELECT key, say, show(key), traced(key) FROM said ORDER BY length(key), key;
SELECT coord.saga_start('says again', '{"say": {"success": false, "error": "later"}}', key => 'again') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('again');
SELECT coord.saga_abandon(find('again'));

-- A step's timeout is 57014, and worth another attempt.  The timeout is the step's: the statement's own stays.
CREATE FUNCTION sleeps(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note(context, 'sleeps');
  IF (context ->> 'attempt')::int < 2 THEN PERFORM pg_sleep(600); END IF;
END $$;
SELECT coord.saga_define('sleeps', ARRAY[coord.step('a', 'sleeps', timeout => '20 ms', retry_delay => '0')]);
SET statement_timeout = '10 min';
SELECT coord.saga_start('sleeps', key => 'sleeps') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('sleeps');
SELECT traced('sleeps');
SELECT attempt, error, sqlstate FROM coord.saga_log WHERE saga_id = find('sleeps');
SHOW statement_timeout;
RESET statement_timeout;
-- Under on_exhausted suspend.
SELECT coord.saga_define('sleeps', ARRAY[coord.step('a', 'sleeps', timeout => '1 ms', max_attempts => 1)], on_exhausted => 'suspend');
SELECT coord.saga_start('sleeps', key => 'sleeps once') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('sleeps once');
SELECT coord.saga_abandon(find('sleeps once'));

-- A step that catches the cancel is too late all the same, and what it did is undone.
CREATE FUNCTION stubborn(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note(context, 'stubborn');
  PERFORM pg_sleep(600);
EXCEPTION WHEN query_canceled THEN NULL;
END $$;
SELECT coord.saga_define('stubborn', ARRAY[coord.step('a', 'stubborn', timeout => '20 ms', max_attempts => 1)]);
SELECT coord.saga_start('stubborn', key => 'stubborn') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('stubborn');

-- The caller's own timeout ends the CALL, charges nobody, and leaves the saga as it was.
SELECT coord.saga_define('sleeps', ARRAY[coord.step('a', 'sleeps')]);
SELECT coord.saga_start('sleeps', key => 'interrupted') IS NOT NULL;
SET statement_timeout = '50 ms';
\set VERBOSITY sqlstate
CALL coord.run_pending() \gset
\set VERBOSITY default
RESET statement_timeout;
SELECT show('interrupted');
SELECT coord.saga_cancel(find('interrupted'));

-- A step that raises this code itself has failed; it does not stop the others.
SELECT coord.saga_start('code', '{"code": "57014"}', key => 'raises 57014') IS NOT NULL;
UPDATE fault SET what = '';
SELECT coord.saga_start('once', key => 'behind it') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('raises 57014');
SELECT show('behind it');
SELECT coord.saga_abandon(find('raises 57014'));

-- A condition that raises fails the step like its action.
SELECT coord.saga_define('condition', ARRAY[coord.step('a', 'act', condition => 'strict $.input.missing', retry_on => '{2203A}', retry_delay => '0')]);
SELECT coord.saga_start('condition', key => 'condition') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('condition');

-- A step that catches its errors and a step that fails without a message.
CREATE FUNCTION catches(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  BEGIN
    PERFORM note(context, 'lost');
    RAISE EXCEPTION 'caught';
  EXCEPTION WHEN OTHERS THEN
    PERFORM note(context, 'kept');
  END;
  RETURN '"caught"';
END $$;
CREATE FUNCTION nothing_to_say(jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING MESSAGE = ''; END $$;
SELECT coord.saga_define('catches', ARRAY[coord.step('a', 'catches'), coord.step('b', 'nothing_to_say')]);
SELECT coord.saga_start('catches', key => 'catches') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('catches');
SELECT traced('catches');

\set include :abs_srcdir/include/saga_end.psql
\i :include
