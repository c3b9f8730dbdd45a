-- Two-phase commits of applications: functions and workers outside vote.
\set name regress_twophase_app
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/task.psql
\i :include

SELECT * FROM coord.state_machine('twophase');

-- Participants that leave a row, as many times as they are called; what is in "answers"
-- says no, or raises.
CREATE TABLE calls (n int GENERATED ALWAYS AS IDENTITY, participant text, phase text, role name DEFAULT current_user);
CREATE TABLE answers (participant text, phase text, code text, attempts int);
CREATE FUNCTION answer(doc jsonb, phase text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  a answers;
BEGIN
  INSERT INTO calls (participant, phase) VALUES (doc ->> 'participant', answer.phase);
  SELECT * INTO a FROM answers WHERE participant = doc ->> 'participant' AND answers.phase = answer.phase;
  IF NOT FOUND THEN RETURN true; END IF;
  IF a.code IS NULL THEN RETURN false; END IF;
  RAISE EXCEPTION 'not now' USING ERRCODE = a.code;
END $$;
CREATE FUNCTION try_it(doc jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT answer(doc, 'prepare') $$;
CREATE FUNCTION confirm(doc jsonb) RETURNS void LANGUAGE sql AS $$ SELECT answer(doc, 'commit') $$;
CREATE FUNCTION undo_it(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT answer(doc, 'abort'); SELECT doc $$;
-- What was done and committed, and how it stands.
CREATE FUNCTION calls() RETURNS SETOF text LANGUAGE sql STABLE AS $$ SELECT participant || ' ' || phase FROM calls ORDER BY n $$;
CREATE FUNCTION parts(gtid bigint) RETURNS SETOF text LANGUAGE sql STABLE AS $$
  SELECT concat_ws(' ', participant, kind, state, queue, error) FROM coord.twophase_participants p WHERE p.gtid = parts.gtid ORDER BY participant $$;
CREATE FUNCTION tx(gtid bigint) RETURNS SETOF text LANGUAGE sql STABLE AS $$
  SELECT concat_ws(' ', label, status, participants, owner = current_user, decided_at, reason) FROM coord.twophase_transactions t WHERE t.gtid = tx.gtid $$;
CREATE FUNCTION no_gtid(t text) RETURNS text LANGUAGE sql
  RETURN regexp_replace(t, '\m(transaction |twophase_abort\()[0-9]+', '\1N', 'g');
CREATE FUNCTION try_tx(statement text) RETURNS SETOF text LANGUAGE sql AS $$ SELECT no_gtid(t) FROM try(statement) AS t $$;
SET client_min_messages = error;

-- Functions: try and confirm, each in a transaction of its own.
SELECT coord.twophase_begin('transfer') AS g \gset
SELECT :g BETWEEN 1 AND 9007199254740991 AS gtid, tx(:g), coord.twophase_outcome(:g);
SELECT coord.twophase_enlist(:g, 'stock', 'try_it', 'confirm', 'undo_it', payload => '{"n": 3}');
SELECT coord.twophase_enlist(:g, 'bank', 'try_it', 'confirm', 'undo_it');
SELECT parts(:g);
SELECT calls();
CALL coord.twophase_commit(:g);
SELECT calls();
SELECT parts(:g);
SELECT tx(:g);
SELECT coord.twophase_outcome(:g);
-- Again it is harmless, and to abort it comes too late.
CALL coord.twophase_commit(:g);
SELECT calls();
SELECT try_tx(format('SELECT coord.twophase_abort(%s)', :g));
-- Nobody is taken in any more.
SELECT try_tx(format('SELECT coord.twophase_enlist(%s, ''late'', ''try_it'')', :g));

-- What a function is given: the payload, and who and what it is.
CREATE TABLE given (n int GENERATED ALWAYS AS IDENTITY, doc jsonb);
CREATE FUNCTION keep(doc jsonb) RETURNS boolean LANGUAGE sql AS $$ INSERT INTO given (doc) VALUES (doc) RETURNING true $$;
CREATE FUNCTION keep_too(doc jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO given (doc) VALUES (doc) $$;
SELECT coord.twophase_begin() AS g \gset
SELECT coord.twophase_enlist(:g, 'stock', 'keep', 'keep_too', 'keep_too', payload => '{"sku": "a", "n": 3}');
CALL coord.twophase_commit(:g);
SELECT doc - 'gtid' - 'idempotency_key' AS doc, (doc ->> 'gtid')::bigint = :g AS gtid, replace(doc ->> 'idempotency_key', :'g', 'N') AS key FROM given ORDER BY n;

-- One says no: who said yes is told to abort, who said no is not.
TRUNCATE calls;
INSERT INTO answers VALUES ('stock', 'prepare');
SELECT coord.twophase_begin('refused') AS g \gset
SELECT coord.twophase_enlist(:g, p, 'try_it', 'confirm', 'undo_it') FROM unnest('{bank,stock}'::text[]) p;
CALL coord.twophase_commit(:g);
SELECT calls();
SELECT tx(:g);
SELECT parts(:g);
SELECT coord.twophase_outcome(:g);
CALL coord.twophase_commit(:g);
SELECT coord.twophase_abort(:g, 'once more'), tx(:g);
-- The same when it raises what does not pass by itself.
UPDATE answers SET code = '23514';
SELECT coord.twophase_begin() AS g \gset
SELECT coord.twophase_enlist(:g, p, 'try_it', 'confirm', 'undo_it') FROM unnest('{bank,stock}'::text[]) p;
CALL coord.twophase_commit(:g);
SELECT tx(:g);
-- What passes by itself is tried again until the time is up.
UPDATE answers SET code = '40001';
TRUNCATE calls;
SELECT coord.twophase_begin(timeout => '1 min') AS g \gset
SELECT coord.twophase_enlist(:g, p, 'try_it', 'confirm', 'undo_it') FROM unnest('{bank,stock}'::text[]) p;
CALL coord.twophase_commit(:g);
SELECT parts(:g);
SELECT at('2030-01-01 00:00:30+00');
CALL coord.twophase_commit(:g);
SELECT at('2030-01-01 00:01:00+00');
CALL coord.twophase_commit(:g);
SELECT calls();
SELECT tx(:g);
-- And goes through when it passes in time.
UPDATE answers SET code = '40001';
SELECT coord.twophase_begin(timeout => '1 min') AS g \gset
SELECT coord.twophase_enlist(:g, 'stock', 'try_it', 'confirm', 'undo_it');
CALL coord.twophase_commit(:g);
TRUNCATE answers, calls;
SELECT at('2030-01-01 00:01:30+00');
CALL coord.twophase_commit(:g);
SELECT calls();

-- Commit is tried until it succeeds, whatever the error; so is abort.
TRUNCATE calls;
INSERT INTO answers VALUES ('bank', 'commit', 'P0001');
SELECT coord.twophase_begin() AS g \gset
SELECT coord.twophase_enlist(:g, p, 'try_it', 'confirm', 'undo_it') FROM unnest('{bank,stock}'::text[]) p;
CALL coord.twophase_commit(:g);
SELECT parts(:g);
SELECT coord.twophase_outcome(:g);
DO $$ BEGIN FOR i IN 1..60 LOOP PERFORM at(clock() + '2 min'); CALL run(); END LOOP; END $$;
SELECT count(*) FROM coord.saga_log l JOIN coord.twophase_participants p ON p.saga_id = l.saga_id WHERE p.gtid = :g AND event = 'attempt_failed';
SELECT parts(:g);
TRUNCATE answers;
SELECT at(clock() + '2 min');
CALL run();
SELECT parts(:g);
SELECT participant, phase, count(*) FROM calls GROUP BY 1, 2 ORDER BY 1, 2;
INSERT INTO answers VALUES ('bank', 'abort', 'P0001'), ('stock', 'prepare', NULL);
SELECT coord.twophase_begin() AS g \gset
SELECT coord.twophase_enlist(:g, p, 'try_it', 'confirm', 'undo_it') FROM unnest('{bank,stock}'::text[]) p;
CALL coord.twophase_commit(:g);
DO $$ BEGIN FOR i IN 1..60 LOOP PERFORM at(clock() + '2 min'); CALL run(); END LOOP; END $$;
SELECT parts(:g);
TRUNCATE answers;
SELECT at(clock() + '2 min');
CALL run();
SELECT parts(:g);

-- Commit and abort may be left out; nobody at all may take part.
TRUNCATE calls;
SELECT coord.twophase_begin() AS g \gset
SELECT coord.twophase_enlist(:g, 'only', 'try_it');
CALL coord.twophase_commit(:g);
SELECT calls();
SELECT parts(:g);
SELECT coord.twophase_begin() AS g \gset
CALL coord.twophase_commit(:g);

-- Aborted before anybody was asked: nobody hears of it.
TRUNCATE calls;
SELECT coord.twophase_begin() AS g \gset
SELECT coord.twophase_enlist(:g, 'bank', 'try_it', 'confirm', 'undo_it');
SELECT coord.twophase_abort(:g, 'not wanted');
SELECT coord.twophase_abort(:g, 'not wanted at all'), tx(:g);
CALL coord.twophase_commit(:g);
CALL run();
SELECT calls();
SELECT parts(:g);
-- The time is up before anybody was asked, and by somebody who looks.
SELECT coord.twophase_begin('slow', '10 s') AS g \gset
SELECT coord.twophase_enlist(:g, 'bank', 'try_it', 'confirm', 'undo_it');
SELECT at(clock() + '10 s');
SELECT try_tx(format('SELECT coord.twophase_enlist(%s, ''late'', ''try_it'')', :g));
CALL run();
SELECT status, reason FROM coord.twophase_transactions WHERE gtid = :g;
-- or by who commits
SELECT coord.twophase_begin('slow', '10 s') AS g \gset
SELECT coord.twophase_enlist(:g, 'bank', 'try_it', 'confirm', 'undo_it');
SELECT at(clock() + '10 s');
CALL coord.twophase_commit(:g);
SELECT calls();

-- Workers outside: three phases, each claimed.  Completing is yes.
CREATE FUNCTION claim_tx(gtid bigint, queue text, lease interval DEFAULT '30 s') RETURNS SETOF text LANGUAGE sql AS $$
  WITH c AS (SELECT * FROM coord.task_claim(claim_tx.queue, 1, 'w', claim_tx.lease)),
    noted AS (INSERT INTO held (key, step, phase, task_id, token) SELECT step, step, phase, task_id, token FROM c)
  SELECT concat_ws(' ', saga, step, phase, action, CASE WHEN attempt > 1 THEN 'attempt ' || attempt END, CASE WHEN null_compensation THEN 'null' END,
    payload - 'gtid' - 'idempotency_key', replace(idempotency_key, gtid::text, 'N')) FROM c $$;
SELECT coord.twophase_begin('outside') AS g \gset
SELECT coord.twophase_enlist(:g, 'card', 'reserve', 'capture', 'release', queue => 'app.cards', payload => '{"amount": 10}');
SELECT coord.twophase_enlist(:g, 'bank', 'try_it', 'confirm', 'undo_it');
CALL coord.twophase_commit(:g);
SELECT parts(:g);
SELECT step, phase, queue, status FROM coord.tasks WHERE queue = 'app.cards';
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_complete(id('card'), tok('card'));
CALL coord.twophase_commit(:g);
SELECT parts(:g);
SELECT coord.twophase_outcome(:g);
SELECT claim_tx(:g, 'app.cards');
-- A commit that fails, even for good, is offered again.
SELECT coord.task_fail(id('card'), tok('card'), 'no such card', retryable => false, retry_in => '0');
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_complete(id('card'), tok('card'), '{"success": false, "error": "still not"}');
SELECT at(clock() + '2 min');
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_complete(id('card'), tok('card'), '{"captured": 10}');
CALL run();
SELECT parts(:g);

-- Failing is no, however it is said.
SELECT coord.twophase_begin('outside, no') AS g \gset
SELECT coord.twophase_enlist(:g, 'card', 'reserve', 'capture', 'release', queue => 'app.cards');
SELECT coord.twophase_enlist(:g, 'bank', 'try_it', 'confirm', 'undo_it');
TRUNCATE calls;
CALL coord.twophase_commit(:g);
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_fail(id('card'), tok('card'), 'no money', retryable => true);
CALL coord.twophase_commit(:g);
SELECT tx(:g);
SELECT calls();
-- It may have had an effect: its abort is offered as well, until it is done.
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_fail(id('card'), tok('card'), 'later', retryable => false, retry_in => '0');
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_complete(id('card'), tok('card'));
CALL run();
SELECT parts(:g);
-- A lease that expires is no vote: it is offered again, and may still be a yes.
SELECT coord.twophase_begin('outside, slow', '5 min') AS g \gset
SELECT coord.twophase_enlist(:g, 'card', 'reserve', queue => 'app.cards');
CALL coord.twophase_commit(:g);
SELECT claim_tx(:g, 'app.cards');
SELECT at(clock() + '31 s');
CALL coord.twophase_commit(:g);
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_complete(id('card'), tok('card'));
CALL coord.twophase_commit(:g);
-- The labels of commit and abort are that of prepare.
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_complete(id('card'), tok('card'));
-- Abort without prepare: the time was up before anybody claimed it.
SELECT coord.twophase_begin('outside, never', '10 s') AS g \gset
SELECT coord.twophase_enlist(:g, 'card', 'reserve', 'capture', 'release', queue => 'app.cards');
CALL coord.twophase_commit(:g);
SELECT at(clock() + '10 s');
CALL coord.twophase_commit(:g);
SELECT tx(:g);
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_complete(id('card'), tok('card'));
CALL run();
SELECT parts(:g);
-- A worker that claimed in time and votes when it is decided is told so.
SELECT coord.twophase_begin('outside, late', '10 s') AS g \gset
SELECT coord.twophase_enlist(:g, 'card', 'reserve', 'capture', 'release', queue => 'app.cards');
CALL coord.twophase_commit(:g);
SELECT claim_tx(:g, 'app.cards');
SELECT at(clock() + '10 s');
CALL run();
SELECT tx(:g);
SELECT try_task(format('SELECT coord.task_complete(%s, %s)', id('card'), tok('card')));
CALL run();
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_complete(id('card'), tok('card'));
CALL run();
SELECT parts(:g);

-- Nobody decides alone: neither forward nor back.
SELECT coord.twophase_begin('alone', '5 min') AS g \gset
SELECT coord.twophase_enlist(:g, 'card', 'reserve', 'capture', 'release', queue => 'app.cards');
SELECT coord.twophase_enlist(:g, 'bank', 'try_it', 'confirm', 'undo_it');
CALL coord.twophase_commit(:g);
SELECT saga_id AS s FROM coord.twophase_participants WHERE gtid = :g AND participant = 'bank' \gset
SELECT parts(:g);
SELECT try_tx(no) FROM unnest(ARRAY[
  format('SELECT coord.saga_signal(%s, ''decision'')', :s), format('SELECT coord.saga_cancel(%s)', :s),
  format('SELECT coord.saga_skip(%s, ''decision'')', :s), format('SELECT coord.saga_abandon(%s)', :s),
  format('SELECT coord.saga_patch(%s, ''{}'')', :s)]) AS no;
SELECT parts(:g);
SELECT coord.twophase_abort(:g, 'enough');
CALL run();
SELECT parts(:g);
SELECT claim_tx(:g, 'app.cards');
SELECT coord.task_complete(id('card'), tok('card'));
CALL run();

-- Definitions of participants are nobody's own.
SELECT count(*) FROM coord.saga_definitions WHERE name LIKE 'twophase/%';
RESET ROLE;
SELECT count(*) AS made FROM coord_internal.saga_name WHERE name LIKE 'twophase/%' AND owner = :'name'::regrole;
SELECT min(name) AS d FROM coord_internal.saga_name WHERE name LIKE 'twophase/%' AND owner = :'name'::regrole \gset
SET ROLE :name;
CREATE FUNCTION try_name(statement text, name text) RETURNS SETOF text LANGUAGE sql AS $$ SELECT replace(t, name, 'twophase/X') FROM try(format(statement, name)) AS t $$;
SELECT try_name('SELECT coord.saga_start(%L)', :'d');
SELECT try_name('SELECT coord.saga_drop(%L)', :'d');
SELECT try_name('SELECT coord.saga_activate(%L, 1)', :'d');
SELECT try('SELECT coord.saga_define(''twophase/mine'', ARRAY[coord.step(''a'', ''act'')])');
SELECT try('SELECT coord.saga_define_json(''mine'', ''{"participant": true, "steps": [{"name": "prepare", "action": "try_it"}]}'')');
SELECT try('SELECT coord.saga_define(''mine'', ARRAY[coord.step(''prepare'', ''try_it'')])');

-- Mistakes.
SELECT coord.twophase_begin('mistakes', '1 hour') AS g \gset
CREATE FUNCTION wrong(doc jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'a' $$;
SELECT try_tx(replace(bad, 'G', :'g')) FROM unnest(ARRAY[
  'SELECT coord.twophase_begin(timeout => ''0'')', 'SELECT coord.twophase_begin(timeout => ''-1 s'')', 'SELECT coord.twophase_begin(timeout => ''1 year'')',
  'SELECT coord.twophase_begin(repeat(''x'', 300))',
  'SELECT coord.twophase_enlist(NULL, ''a'', ''try_it'')', 'SELECT coord.twophase_enlist(G, NULL, ''try_it'')', 'SELECT coord.twophase_enlist(G, ''a'', NULL)',
  'SELECT coord.twophase_enlist(G, '''', ''try_it'')',
  'SELECT coord.twophase_enlist(G, ''a'', ''nothing'')', 'SELECT coord.twophase_enlist(G, ''a'', ''confirm'')', 'SELECT coord.twophase_enlist(G, ''a'', ''try_it'', ''wrong'')',
  'SELECT coord.twophase_enlist(G, ''a'', ''try_it'', abort => ''try_it'')',
  'SELECT coord.twophase_enlist(G, ''a'', ''x'', queue => ''q'', server => ''s'')', 'SELECT coord.twophase_enlist(G, ''a'', ''x'', commit => ''y'', server => ''s'')',
  'SELECT coord.twophase_enlist(G, ''a'', ''SELECT 1'', server => ''nowhere'')',
  'SELECT coord.twophase_enlist(G, ''a'', ''try_it'', payload => ''[1]'')', 'SELECT coord.twophase_enlist(G, ''a'', ''try_it'', payload => ''{"gtid": 1}'')',
  'SELECT coord.twophase_enlist(1, ''a'', ''try_it'')', 'SELECT coord.twophase_abort(1)', 'SELECT coord.twophase_abort(NULL)', 'SELECT coord.twophase_outcome(NULL)']) AS bad;
SELECT coord.twophase_enlist(:g, 'a', 'try_it', 'confirm', payload => '{"n": 1}');
SELECT coord.twophase_enlist(:g, 'a', 'try_it', 'confirm', payload => '{"n": 1}');
SELECT try_tx(format('SELECT coord.twophase_enlist(%s, ''a'', ''try_it'', ''confirm'', payload => ''{"n": 2}'')', :g));
SELECT try_tx(format('SELECT coord.twophase_enlist(%s, ''a'', ''try_it'')', :g));
\set VERBOSITY sqlstate
CALL coord.twophase_commit(1);
CALL coord.twophase_commit(NULL);
BEGIN;
CALL coord.twophase_commit(:g);
ROLLBACK;
\set VERBOSITY default
-- A begin that is rolled back leaves nothing.
BEGIN;
SELECT coord.twophase_begin() AS r \gset
ROLLBACK;
SELECT try_tx(format('SELECT coord.twophase_enlist(%s, ''a'', ''try_it'')', :r));

-- Another role does not see it; a member of its owner may go on with it.
RESET ROLE;
CREATE ROLE regress_twophase_other;
GRANT coord_user TO regress_twophase_other;
SET ROLE regress_twophase_other;
SELECT count(*) FROM coord.twophase_transactions;
SELECT count(*) FROM coord.twophase_participants;
SELECT coord.twophase_outcome(:g);
SELECT try_tx(format('SELECT coord.twophase_abort(%s)', :g));
SELECT try_tx(format('SELECT coord.twophase_enlist(%s, ''b'', ''try_it'')', :g));
\set VERBOSITY sqlstate
CALL coord.twophase_commit(:g);
\set VERBOSITY default
RESET ROLE;
GRANT :name TO regress_twophase_other;
GRANT CREATE ON SCHEMA :name TO regress_twophase_other;
SET ROLE regress_twophase_other;
-- Each participant runs as who enlisted it.
CREATE FUNCTION theirs(doc jsonb) RETURNS boolean LANGUAGE sql AS $$ INSERT INTO calls (participant, phase) VALUES (doc ->> 'participant', 'prepare') RETURNING true $$;
SELECT coord.twophase_enlist(:g, 'b', 'theirs');
SET ROLE :name;
TRUNCATE calls;
CALL coord.twophase_commit(:g);
SELECT participant, phase, role FROM calls ORDER BY n;
SELECT parts(:g);
RESET ROLE;
SET ROLE regress_twophase_other;
CALL run();
SELECT participant, phase, role FROM calls ORDER BY n;
CALL coord.twophase_commit(:g);
SELECT parts(:g);
RESET ROLE;

-- What was decided is forgotten after coord.twophase_retention.
SET ROLE :name;
SELECT at(clock() + '8 days');
CALL run();
SELECT count(*) FROM coord.twophase_transactions;
SELECT count(*) FROM coord.twophase_participants;

RESET ROLE;
DROP FUNCTION theirs;
REVOKE ALL ON SCHEMA :name FROM regress_twophase_other;
REVOKE coord_user, :name FROM regress_twophase_other;
\set include :abs_srcdir/include/task_end.psql
\i :include
SET client_min_messages = warning;
DROP ROLE regress_twophase_other;
