-- What operators see and do: views, resolve, force, adopt, restore points, check, DROP.
\set name regress_twophase_operate
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/twophase.psql
\i :include
RESET ROLE;

-- Names as this database would give them: of another incarnation, with this transaction id, part i of n, next participant.
CREATE FUNCTION gid(incarnation int, gtid bigint, part text, next name DEFAULT 'part_a', xid text DEFAULT '0') RETURNS text LANGUAGE sql
  RETURN format('coord:%s:%s:%s:%s:%s:%s.%s', (SELECT replace(id::text, '-', '') FROM coord_internal.twophase_cluster),
    (SELECT oid FROM pg_database WHERE datname = current_database()), incarnation, gtid, part, (SELECT oid FROM pg_foreign_server WHERE srvname = next), xid);
SELECT incarnation AS own FROM coord_internal.twophase_figures() \gset
BEGIN;
SELECT coord.twophase_current() AS mine, coord.twophase_current() - 3600000000 AS base \gset
ROLLBACK;
-- Left behind an hour ago by an earlier incarnation: 100 whole; 200 whose other part has committed, 300 whose other part was rolled back, 400 of which nobody knows;
-- and by this one 500, which was rolled back.
SELECT gid(777, :base + 100, '1/2', 'part_b') AS g100a, gid(777, :base + 100, '2/2', 'part_a') AS g100b,
  gid(777, :base + 400, '1/3', 'part_b') AS g400, gid(:own, :mine, '1/2', 'part_b') AS g500, gid(778, :base + 600, '1/2', 'part_b') AS g600 \gset
\c regress_part_b
BEGIN;
UPDATE account SET balance = balance + 1 WHERE id = 1;
PREPARE TRANSACTION :'g100b';
BEGIN;
SELECT pg_current_xact_id()::text AS committed \gset
COMMIT;
BEGIN;
SELECT pg_current_xact_id()::text AS aborted \gset
ROLLBACK;
\c :home
SET search_path = regress_twophase_operate;
SELECT gid(777, :base + 200, '1/2', 'part_b', :'committed') AS g200, gid(777, :base + 300, '1/2', 'part_b', :'aborted') AS g300 \gset
\c regress_part_a
BEGIN;
UPDATE account SET balance = balance + 1 WHERE id = 1;
PREPARE TRANSACTION :'g100a';
BEGIN;
INSERT INTO account VALUES (200, 200);
PREPARE TRANSACTION :'g200';
BEGIN;
INSERT INTO account VALUES (300, 300);
PREPARE TRANSACTION :'g300';
BEGIN;
INSERT INTO account VALUES (400, 400);
PREPARE TRANSACTION :'g400';
BEGIN;
INSERT INTO account VALUES (500, 500);
PREPARE TRANSACTION :'g500';
BEGIN;
INSERT INTO account VALUES (600, 600);
PREPARE TRANSACTION :'g600';
\c :home
SET search_path = regress_twophase_operate;
SET timezone = 'UTC';
\pset format unaligned
\pset tuples_only on
\pset null '(null)'
-- The one without a decision is rolled back, the others are in doubt.
SELECT server_name, action, no_ids(gid), regexp_replace(detail, 'this is [0-9]+', 'this is N') FROM coord.twophase_resolve() ORDER BY 1, coord_internal.gid_gtid(gid);
SELECT server_name, no_ids(gid), owner = current_user AS mine, regexp_replace(reason, 'this is [0-9]+', 'this is N'), no_ids(repair) FROM coord.twophase_in_doubt ORDER BY server_name, coord_internal.gid_gtid(gid);
SELECT coord.twophase_outcome(:base + 100), coord.twophase_outcome(:mine);

-- Errors of the verbs.
SELECT try('SELECT coord.twophase_force(NULL, ''part_a'', ''aborted'', ''why'')');
SELECT try('SELECT coord.twophase_force(''x'', NULL, ''aborted'', ''why'')');
SELECT try('SELECT coord.twophase_force(''x'', ''part_a'', NULL, ''why'')');
SELECT try('SELECT coord.twophase_force(''x'', ''part_a'', ''aborted'', NULL)');
SELECT try('SELECT coord.twophase_force(''x'', ''part_a'', ''aborted'', '''')');
SELECT try('SELECT coord.twophase_force(''x'', ''part_a'', ''commit'', ''why'')');
SELECT try('SELECT coord.twophase_force(''x'', ''part_a'', ''aborted'', ''why'')');
SELECT try(format('SELECT coord.twophase_force(%L, ''no_such_server'', ''aborted'', ''why'')', :'g400'));
SELECT try(format('SELECT coord.twophase_force(%L, ''part_b'', ''aborted'', ''why'')', :'g400'));
SELECT try(format('SELECT coord.twophase_force(%L, ''part_a'', ''aborted'', ''why'')', 'coord:00000000000000000000000000000000:1:1:1:1/2:1.1'));
SELECT try('SELECT coord.twophase_adopt(NULL)');
SELECT try('SELECT coord.twophase_adopt(999)');
SELECT regexp_replace(t, 'incarnation [0-9]+', 'incarnation N') FROM try(format('SELECT coord.twophase_adopt(%s)', :own)) AS t;
SELECT try('SELECT coord.create_restore_point(NULL)');
SELECT try('SELECT coord.create_restore_point('''')');
SELECT try('SELECT coord.create_restore_point(repeat(''x'', 64))');
SELECT try('SELECT * FROM coord.twophase_check(''no_such_server'')');
SELECT * FROM coord.twophase_resolve('no_such_server');
-- In a transaction with participants, whose connections are in use.
BEGIN;
SELECT coord.remote_exec('part_a', 'SELECT 1');
SELECT try('SELECT * FROM coord.twophase_resolve()');
SELECT try('SELECT * FROM coord.twophase_check()');
SELECT try('SELECT coord.twophase_adopt(777)');
SELECT try('SELECT coord.create_restore_point(''x'')');
SELECT try(format('SELECT coord.twophase_force(%L, ''part_a'', ''aborted'', ''why'')', :'g400'));
ROLLBACK;

-- What is in doubt keeps what it needs from being dropped, however.
-- (Which of the mappings is met first is PostgreSQL's business.)
\set VERBOSITY terse
DROP SERVER part_a CASCADE;
DROP USER MAPPING FOR CURRENT_USER SERVER part_a;
DROP EXTENSION postgres_fdw CASCADE;
DROP EXTENSION coord CASCADE;
\c regress_part_b
DROP DATABASE :"home";
\c :home
SET search_path = regress_twophase_operate;
SET timezone = 'UTC';
\pset format unaligned
\pset tuples_only on
\pset null '(null)'
\set VERBOSITY default
SELECT try('DROP USER MAPPING FOR CURRENT_USER SERVER part_a');
SELECT coord.twophase_outcome(:base + 100), coord.twophase_outcome(:base + 400), coord.twophase_outcome(:base + 700);

-- Adoption: 100 is rolled back everywhere, 200 and 300 go the other part's way, of 400 nobody knows; 600 is another's.
SELECT coord.twophase_adopt(777, 'the old server is gone');
SELECT server_name, regexp_replace(reason, 'this is [0-9]+', 'this is N'), no_ids(repair) FROM coord.twophase_in_doubt ORDER BY coord_internal.gid_gtid(gid);
SELECT coord.twophase_outcome(:base + 100), coord.twophase_outcome(:base + 200), coord.twophase_outcome(:base + 300), coord.twophase_outcome(:base + 400);
SELECT r ->> 'id', r ->> 'balance' FROM coord.remote_query('part_a', 'SELECT id, balance FROM account ORDER BY id') AS r;
SELECT r ->> 'id', r ->> 'balance' FROM coord.remote_query('part_b', 'SELECT id, balance FROM account ORDER BY id') AS r;
-- Again changes nothing.
SELECT coord.twophase_adopt(777);
-- By hand: once aborted it stays so.
SELECT coord.twophase_force(:'g400', 'part_a', 'aborted', 'nobody misses it');
SELECT try(format('SELECT coord.twophase_force(%L, ''part_a'', ''aborted'', ''why'')', :'g400'));
\c regress_part_a
BEGIN;
INSERT INTO account VALUES (400, 400);
PREPARE TRANSACTION :'g400';
\c :home
SET search_path = regress_twophase_operate;
\pset format unaligned
\pset tuples_only on
SELECT try(format('SELECT coord.twophase_force(%L, ''part_a'', ''committed'', ''why'')', :'g400'));
-- The resolver knows how the other parts ended, as the incarnation is adopted.
SELECT server_name, action FROM coord.twophase_resolve() ORDER BY 1, 2;
SELECT coord.twophase_force(:'g600', 'part_a', 'committed', 'seen on paper');
SELECT count(*) FROM coord.twophase_in_doubt;
SELECT coord.twophase_outcome(:base + 400), coord.twophase_outcome(:base + 600);
SELECT event, no_ids(gid), servers, owner = current_user AS mine, reason FROM coord.twophase_history WHERE event <> 'committed' ORDER BY coord_internal.gid_gtid(gid), event, gid, at;

-- A restore point here and at all participants.
SELECT coord.create_restore_point('regress_twophase') <= pg_current_wal_insert_lsn();
SELECT event, reason FROM coord.twophase_history WHERE event = 'restore_point';

-- What is wrong, in plain words.
SELECT server_name, check_name, ok, regexp_replace(regexp_replace(detail, 'role "[^"]*"', 'role "X"', 'g'), '(Connected as )"[^"]*"|[0-9]+', '\1N', 'g')
  FROM coord.twophase_check('part_a');
SELECT server_name, check_name, detail FROM coord.twophase_check() WHERE NOT ok;
CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (dbname 'regress_no_such_database', host :'socket', port :'port');
CREATE FOREIGN DATA WRAPPER regress_wrapper;
CREATE SERVER wrapped FOREIGN DATA WRAPPER regress_wrapper;
SELECT server_name, check_name, regexp_replace(regexp_replace(detail, 'Role "[^"]*"', 'Role "X"', 'g'), 'FOR [^ ]*', 'FOR X') FROM coord.twophase_check('other') WHERE NOT ok;
SELECT server_name, check_name, detail FROM coord.twophase_check('wrapped') WHERE NOT ok;
CREATE USER MAPPING FOR CURRENT_USER SERVER other;
SELECT server_name, check_name, regexp_replace(detail, 'connection to .* failed', 'connection to X failed') FROM coord.twophase_check('other') WHERE NOT ok;
ALTER SERVER other OPTIONS (SET dbname 'regress_part_a', ADD options '-c default_transaction_read_only=on');
SELECT server_name, check_name, detail FROM coord.twophase_check('other') WHERE NOT ok;
CREATE USER MAPPING FOR :name SERVER other OPTIONS (user :'name');
SET ROLE :name;
SELECT server_name, check_name, detail FROM coord.twophase_check('other') WHERE NOT ok;
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER other TO :name;
SET ROLE :name;
SELECT server_name, check_name, detail FROM coord.twophase_check('other') WHERE NOT ok;
RESET ROLE;
ALTER USER MAPPING FOR :name SERVER other OPTIONS (ADD password 'secret');
SET ROLE :name;
SELECT server_name, check_name, detail FROM coord.twophase_check('other') WHERE NOT ok;
SELECT DISTINCT server_name FROM coord.twophase_check() ORDER BY 1;
RESET ROLE;
SET client_min_messages = warning;
DROP SERVER other CASCADE;
DROP FOREIGN DATA WRAPPER regress_wrapper CASCADE;
SET client_min_messages = notice;

-- A transaction that is open at a participant; what nothing needs.
BEGIN;
SELECT coord.remote_exec('part_a', 'SELECT 1');
DROP USER MAPPING FOR CURRENT_USER SERVER part_a;
ROLLBACK;
SELECT count(*) FROM coord.twophase_servers WHERE server_name LIKE 'part\__';
DROP USER MAPPING FOR :name SERVER part_b;
DROP USER MAPPING FOR CURRENT_USER SERVER part_b;
SELECT count(*) FROM coord.twophase_resolve();
SELECT server_name, failed_at IS NULL, error FROM coord.twophase_servers WHERE server_name LIKE 'part\__' ORDER BY 1;
\set include :abs_srcdir/include/twophase_end.psql
\i :include
