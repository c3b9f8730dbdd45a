-- SQL at participants inside an ordinary transaction: all of it commits or none.
\set name regress_twophase_exec
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/twophase.psql
\i :include

-- Rows affected, rows returned, rows found; nothing at all.
BEGIN;
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = balance - $1 WHERE id = $2', '[10, 1]');
SELECT coord.remote_exec('part_b', 'UPDATE account SET balance = balance + $1', '[5]');
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = balance WHERE id = 7');
SELECT coord.remote_exec('part_a', 'SELECT * FROM account');
SELECT coord.remote_exec('part_a', 'SET LOCAL work_mem = ''1MB''');
UPDATE account SET balance = balance - 1 WHERE id = 2;
COMMIT;
SELECT balances();
BEGIN;
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 0');
SELECT coord.remote_exec('part_b', 'UPDATE account SET balance = 0');
UPDATE account SET balance = 0;
ROLLBACK;
SELECT balances(), prepared();
-- One statement is a transaction, too: as many participants as it names.
SELECT server, coord.remote_exec(server, 'UPDATE account SET balance = 100') FROM unnest('{part_a,part_b}'::name[]) AS server;
UPDATE account SET balance = 100;
SELECT balances();

-- What the arguments are there: strings as they are, numbers and booleans as text, null, documents as JSON.
SELECT coord.remote_query('part_a', 'SELECT $1::text AS a, $2::int + 1 AS b, $3::boolean AS c, $4::text IS NULL AS d, $5::jsonb AS e, $6::int[] AS f, $7::numeric AS g',
  '["it''s \"x\"", 41, true, null, {"k": [1, 2]}, "{1,2}", 1.50]');
SELECT coord.remote_query('part_a', 'SELECT $1::jsonb AS e', '[[1, {"a": null}]]');
SELECT coord.remote_query('part_a', 'SELECT $1::text AS a', '["é\u2014\n"]');
-- Defaults, and NULL for them.
SELECT coord.remote_query('part_a', 'SELECT 1 AS one', NULL, NULL);
SELECT coord.remote_query(server => 'part_a', sql => 'SELECT 1 AS one', timeout => '1 min');
-- Rows as objects: types keep theirs; an empty result; no column.
SELECT coord.remote_query('part_a', 'SELECT id, balance > 50 AS rich, balance / 3.0 AS third, NULL::int AS none, ARRAY[id, 2] AS list, date ''2030-01-02'' AS day, ''{"a": 1}''::jsonb AS doc, ''x''::name AS n FROM account ORDER BY id');
SELECT coord.remote_query('part_a', 'SELECT * FROM account WHERE false');
SELECT coord.remote_query('part_a', 'UPDATE account SET balance = balance + 1 WHERE id = 1 RETURNING id, balance');
SELECT coord.remote_query('part_a', 'UPDATE account SET balance = balance - 1 WHERE id = 1');
SELECT coord.remote_query('part_a', 'SELECT 1 AS x, 2 AS x');
SELECT balances();

-- A transaction sees its own writes there, and nobody else does before COMMIT.
BEGIN;
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 7 WHERE id = 1');
SELECT coord.remote_query('part_a', 'SELECT balance FROM account WHERE id = 1');
RESET ROLE;
SELECT count(*) FROM coord.twophase_active;
SET ROLE :name;
ROLLBACK;

-- The local transaction fails: nobody commits.
BEGIN;
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 7 WHERE id = 1');
UPDATE account SET balance = -1;
COMMIT;
SELECT balances();
-- A participant refuses a statement: the transaction is aborted, as by any error.
BEGIN;
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 7 WHERE id = 1');
SELECT coord.remote_exec('part_b', 'UPDATE account SET balance = -1 WHERE id = 1');
SELECT coord.remote_exec('part_a', 'SELECT 1');
COMMIT;
SELECT balances(), prepared();

-- A participant refuses its vote: a deferred constraint that fails only there.
SELECT coord.remote_exec('part_b', 'DROP TABLE IF EXISTS pg_temp.nothing');
RESET ROLE;
SELECT coord.remote_exec('part_b', 'CREATE TABLE strict (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)'),
  coord.remote_exec('part_b', 'GRANT ALL ON strict TO PUBLIC');
SET ROLE :name;
BEGIN;
UPDATE account SET balance = 7 WHERE id = 1;
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 7 WHERE id = 1');
SELECT coord.remote_exec('part_b', 'INSERT INTO strict VALUES (1), (1)');
COMMIT;
SELECT balances(), prepared();
-- What cannot be prepared there: temporary objects, NOTIFY, cursors WITH HOLD.
BEGIN;
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 7 WHERE id = 1');
SELECT coord.remote_exec('part_b', 'CREATE TEMP TABLE t (i int)');
COMMIT;
BEGIN;
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 7 WHERE id = 1');
SELECT coord.remote_exec('part_b', 'NOTIFY regress_twophase');
SELECT coord.remote_exec('part_b', 'UPDATE account SET balance = 7 WHERE id = 1');
COMMIT;
BEGIN;
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 7 WHERE id = 1');
SELECT coord.remote_exec('part_b', 'UPDATE account SET balance = 7 WHERE id = 1');
SELECT coord.remote_exec('part_b', 'DECLARE c CURSOR WITH HOLD FOR SELECT 1');
COMMIT;
SELECT balances(), prepared();
-- The only one that writes commits in one phase, and may do these.
SELECT coord.remote_exec('part_b', 'CREATE TEMP TABLE t (i int)');
SELECT coord.remote_exec('part_b', 'NOTIFY regress_twophase');
-- Nothing of it is left for the next transaction: temporary tables, settings, session locks, roles.
BEGIN;
SELECT coord.remote_exec('part_b', 'SET work_mem = ''123kB'''), coord.remote_exec('part_b', 'SELECT pg_advisory_lock(1)'),
  coord.remote_exec('part_b', 'LISTEN regress_twophase'), coord.remote_exec('part_b', 'SET search_path = pg_catalog');
COMMIT;
SELECT coord.remote_query('part_b', $$SELECT to_regclass('pg_temp.t') AS t, current_setting('work_mem') <> '123kB' AS reset, to_regclass('account') AS account,
  (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND pid = pg_backend_pid()) AS locks, (SELECT count(*) FROM pg_listening_channels()) AS channels$$);
-- DDL.
RESET ROLE;
BEGIN;
SELECT coord.remote_exec('part_a', 'CREATE TABLE made (i int)'), coord.remote_exec('part_b', 'CREATE TABLE made (i int)');
ROLLBACK;
SELECT coord.remote_query('part_a', 'SELECT to_regclass(''made'') AS made');
BEGIN;
SELECT coord.remote_exec('part_a', 'CREATE TABLE made (i int)'), coord.remote_exec('part_b', 'CREATE TABLE made (i int)');
COMMIT;
SELECT coord.remote_query('part_b', 'SELECT to_regclass(''made'') AS made');
-- What cannot be in a transaction cannot be there.
\set VERBOSITY sqlstate
SELECT coord.remote_exec('part_a', 'VACUUM account');
\set VERBOSITY default
SET ROLE :name;

-- Isolation and access as here.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT coord.remote_query('part_a', 'SELECT current_setting(''transaction_isolation'') AS level');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT coord.remote_query('part_a', 'SELECT current_setting(''transaction_isolation'') AS level');
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 101 WHERE id = 1');
COMMIT;
BEGIN READ ONLY;
SELECT coord.remote_query('part_a', 'SELECT current_setting(''transaction_read_only'') AS read_only');
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 7 WHERE id = 1');
ROLLBACK;
SELECT balances();
-- lock_timeout there is coord's.
SET coord.twophase_lock_timeout = '1234ms';
SELECT coord.remote_query('part_a', 'SELECT current_setting(''lock_timeout'') AS lock_timeout');
RESET coord.twophase_lock_timeout;

-- The id of a transaction, and what became of it.
BEGIN;
SELECT coord.twophase_current() = coord.twophase_current() AS same, coord.twophase_current() AS first \gset
SELECT :'same', coord.twophase_outcome(:first);
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 100 WHERE id = 1');
COMMIT;
SELECT coord.twophase_outcome(:first);
BEGIN;
SELECT coord.twophase_current() AS second \gset
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 0 WHERE id = 1');
ROLLBACK;
SELECT coord.twophase_outcome(:second), :second > :first;
-- Also without a participant, and when a savepoint is rolled back.
BEGIN;
SELECT coord.twophase_current() AS third \gset
COMMIT;
SELECT coord.twophase_outcome(:third);
BEGIN;
SAVEPOINT s;
SELECT coord.twophase_current() AS fourth \gset
ROLLBACK TO s;
SELECT coord.twophase_current() = :fourth;
COMMIT;
SELECT coord.twophase_outcome(:fourth);
SELECT coord.twophase_outcome(1), coord.twophase_outcome(9007199254740991), coord.twophase_outcome(-1);
-- It is in the history, with what belongs together.
SET coord.correlation_id = '00000000-0000-0000-0000-000000000005';
BEGIN;
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 100'), coord.remote_exec('part_b', 'UPDATE account SET balance = 100');
COMMIT;
RESET coord.correlation_id;
SELECT event, gid, servers, owner = current_user AS mine, correlation_id, reason FROM coord.twophase_history ORDER BY gtid DESC LIMIT 1;
SELECT event, servers FROM coord.twophase_history WHERE gtid IN (:first, :second, :third) ORDER BY gtid;
-- Readers are not recorded, nor a participant that wrote alone.
SELECT count(*) AS before FROM coord.twophase_history \gset
SELECT coord.remote_exec('part_a', 'SELECT 1'), coord.remote_exec('part_b', 'SELECT 1');
SELECT coord.remote_exec('part_a', 'UPDATE account SET balance = 100'), coord.remote_exec('part_b', 'SELECT 1');
SELECT count(*) - :before FROM coord.twophase_history;

SELECT balances(), prepared();
\set include :abs_srcdir/include/twophase_end.psql
\i :include
