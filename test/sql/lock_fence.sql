-- Fences: a transaction that checks its token, and tables that want it checked.
\set name regress_lock_fence
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/lock.psql
\i :include
-- How many fences this transaction holds.
CREATE FUNCTION fences() RETURNS SETOF text LANGUAGE sql STABLE AS $$
  SELECT format('%s %s', count(*), mode) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid >> 8 = 78 GROUP BY mode ORDER BY mode $$;

-- The current token passes, as often as it is asked; another one does not.
SELECT acquire('a', 'one');
BEGIN;
SELECT fence('a', 'one');
SELECT fence('a', 'one');
SELECT fences();
COMMIT;
SELECT fences();
SELECT try_token('SELECT coord.fence_check(''a'', 1)');
SELECT try_token('SELECT coord.fence_check(''nobody has it'', 1)');
SELECT release('a', 'one');
SELECT try_token('SELECT fence(''a'', ''one'')');
SELECT acquire('a', 'two');
SELECT try_token('SELECT fence(''a'', ''one'')');
-- A token of another name.
SELECT acquire('b', 'one');
SELECT try_token('SELECT coord.fence_check(''b'', tok(''a'', ''two''))');
-- A check that fails leaves no fence.
BEGIN;
SELECT try_token('SELECT fence(''a'', ''one'')');
SELECT fences();
COMMIT;
-- One that has run out is stale, though nobody else has it.
SELECT at(clock() + interval '30 s');
SELECT try_token('SELECT fence(''a'', ''two'')');
-- But not in a transaction that has passed before, in which nobody else can be granted it.
SELECT acquire('a', 'two');
BEGIN;
SELECT fence('a', 'two');
SELECT at(clock() + interval '30 s');
SELECT fences();
COMMIT;

-- The transaction's own grant passes before it is committed, not after it is rolled back or given back.
BEGIN;
SELECT acquire('a', 'three');
SELECT fence('a', 'three');
SELECT release('a', 'three');
SELECT try_token('SELECT fence(''a'', ''three'')');
COMMIT;
BEGIN;
SAVEPOINT s;
SELECT acquire('a', 'four');
SELECT coord.fence_check('a', token) IS NOT NULL AS passed, token AS t FROM held ORDER BY n DESC LIMIT 1 \gset
ROLLBACK TO s;
SELECT try_token(format('SELECT coord.fence_check(''a'', %s)', :t));
COMMIT;

-- ROLLBACK TO SAVEPOINT undoes no write that was made before, so it does not drop the fence either.
SELECT acquire('a', 'five');
BEGIN;
SAVEPOINT s;
SELECT fence('a', 'five');
ROLLBACK TO s;
SELECT fences();
ROLLBACK TO s;
SELECT fences();
COMMIT;
SELECT fences();
BEGIN;
DO $$
BEGIN
  BEGIN
    PERFORM fence('a', 'five');
    RAISE division_by_zero;
  EXCEPTION WHEN division_by_zero THEN
    NULL;
  END;
END $$;
SELECT fences();
ROLLBACK;
SELECT fences();

-- An exclusive lock of the session is checked by its token in that session; the transaction then holds it, too.
SELECT coord.lock('l', 'exclusive', 'session') AS t \gset
SELECT coord.fence_check('l', :t);
BEGIN;
SELECT coord.fence_check('l', :t);
SELECT coord.unlock('l');
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid >> 8 = 77;
COMMIT;
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid >> 8 = 77;
SELECT try_token(format('SELECT coord.fence_check(''l'', %s)', :t));
-- Another mode has no token of its own.
SELECT coord.lock('l', 'share', 'session') AS t \gset
SELECT try_token(format('SELECT coord.fence_check(''l'', %s)', :t));
SELECT coord.unlock('l', 'share');
BEGIN;
SELECT coord.lock('l') AS t \gset
SELECT coord.fence_check('l', :t);
COMMIT;
SELECT try_token(format('SELECT coord.fence_check(''l'', %s)', :t));
-- After pg_advisory_unlock_all() it is not held any more.
SELECT coord.lock('l', 'exclusive', 'session') AS t \gset
SELECT pg_advisory_unlock_all();
SELECT try_token(format('SELECT coord.fence_check(''l'', %s)', :t));
-- Leaders are checked the same way.
SELECT coord.fence_check('election', token) FROM coord.leader_campaign('election', 'one');
-- A semaphore has no current token.
SELECT coord.semaphore_create('pool', 2);
SELECT acquire('pool', 'one');
SELECT try('SELECT fence(''pool'', ''one'')');
SELECT fences();

-- At any isolation level, and in a read-only transaction.
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT fence('a', 'five');
COMMIT;

-- Guarded tables: no write without having passed.
CREATE TABLE account (id int PRIMARY KEY, n int);
INSERT INTO account VALUES (1, 0);
SELECT coord.fence_guard('account', 'a');
SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'account'::regclass ORDER BY tgname;
SELECT try('INSERT INTO account VALUES (2, 0)');
SELECT try('UPDATE account SET n = 1');
SELECT try('DELETE FROM account');
SELECT try('TRUNCATE account');
SELECT try('INSERT INTO account VALUES (1, 5) ON CONFLICT (id) DO UPDATE SET n = 5');
SELECT try('MERGE INTO account USING (VALUES (1)) v (id) ON account.id = v.id WHEN MATCHED THEN UPDATE SET n = 1');
SELECT try('MERGE INTO account USING (VALUES (2)) v (id) ON account.id = v.id WHEN NOT MATCHED THEN INSERT VALUES (2, 1)');
SELECT try('MERGE INTO account USING (VALUES (1)) v (id) ON account.id = v.id WHEN MATCHED THEN DELETE');
COPY account FROM stdin;
3	0
\.
-- Reading is free, and what writes no row writes nothing.
SELECT * FROM account;
UPDATE account SET n = 1 WHERE false;
-- Having passed for another name does not help.
BEGIN;
SELECT acquire('c', 'one');
SELECT fence('c', 'one');
SELECT try('UPDATE account SET n = 1');
ROLLBACK;
-- Holding the lease is not enough: it is the check that keeps a successor out.
BEGIN;
SELECT fence('a', 'five');
INSERT INTO account VALUES (2, 0);
UPDATE account SET n = n + 1;
DELETE FROM account WHERE id = 2;
MERGE INTO account USING (VALUES (1), (2)) v (id) ON account.id = v.id WHEN MATCHED THEN UPDATE SET n = n + 1 WHEN NOT MATCHED THEN INSERT VALUES (v.id, 7);
COPY account FROM stdin;
3	0
\.
SELECT * FROM account ORDER BY id;
TRUNCATE account;
ROLLBACK;
-- Passed is for one transaction.
SELECT try('UPDATE account SET n = 1');
-- Passed in a savepoint that is rolled back: the fence is still held, so it still counts.
BEGIN;
SAVEPOINT s;
SELECT fence('a', 'five');
ROLLBACK TO s;
UPDATE account SET n = 1;
ROLLBACK;
-- Passed by a grant that a savepoint undoes: the holder is the one of before, whose token was not checked.
BEGIN;
SAVEPOINT s;
SELECT coord.lease_break('a');
SELECT acquire('a', 'thief');
SELECT fence('a', 'thief');
ROLLBACK TO s;
SELECT try('UPDATE account SET n = 1');
SELECT fence('a', 'five');
UPDATE account SET n = 1;
ROLLBACK;
-- A lock's token does as well.
SELECT coord.fence_guard('account', 'l');
SELECT try('UPDATE account SET n = 1');
BEGIN;
SELECT coord.fence_check('l', coord.lock('l'));
UPDATE account SET n = 3;
COMMIT;
SELECT * FROM account;
-- The same guard again changes nothing; unguard says whether there was one.
SELECT oid AS trigger, xmin AS version FROM pg_trigger WHERE tgrelid = 'account'::regclass AND tgname = 'coord_fence_guard' \gset
SELECT coord.fence_guard('account', 'l');
SELECT oid = :trigger AND xmin = :version FROM pg_trigger WHERE tgrelid = 'account'::regclass AND tgname = 'coord_fence_guard';
SELECT coord.fence_unguard('account');
SELECT coord.fence_unguard('account');
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'account'::regclass;
UPDATE account SET n = 4;

-- With a key column each row wants the name of its own.
CREATE TABLE tenant (id int PRIMARY KEY, k text, n int);
INSERT INTO tenant VALUES (1, 'x', 0), (2, 'y', 0), (3, NULL, 0);
SELECT coord.fence_guard('tenant', 't', 'k');
SELECT acquire('t/x', 'me');
SELECT acquire('t', 'me');
BEGIN;
SELECT fence('t/x', 'me');
UPDATE tenant SET n = 1 WHERE k = 'x';
INSERT INTO tenant VALUES (4, 'x', 0);
DELETE FROM tenant WHERE id = 4;
SELECT try('UPDATE tenant SET n = 1');
SELECT try('UPDATE tenant SET n = 1 WHERE k = ''y''');
SELECT try('INSERT INTO tenant VALUES (5, ''y'', 0)');
SELECT try('DELETE FROM tenant WHERE k = ''y''');
-- To change the key wants both names.
SELECT try('UPDATE tenant SET k = ''y'' WHERE id = 1');
SELECT try('UPDATE tenant SET k = ''x'' WHERE id = 2');
SELECT try('UPDATE tenant SET n = 2 WHERE k IS NULL');
-- All rows at a time want the name itself, which is not enough for a row.
SELECT try('TRUNCATE tenant');
COMMIT;
SELECT * FROM tenant ORDER BY id;
BEGIN;
SELECT fence('t', 'me');
SELECT try('UPDATE tenant SET n = 2 WHERE k = ''x''');
TRUNCATE tenant;
ROLLBACK;
SELECT acquire('t/y', 'me');
SELECT acquire('t/', 'me');
BEGIN;
SELECT fence('t/x', 'me'), fence('t/y', 'me');
UPDATE tenant SET k = 'y' WHERE id = 1;
SELECT fence('t/', 'me');
UPDATE tenant SET n = 2 WHERE k IS NULL;
COMMIT;
SELECT * FROM tenant ORDER BY id;
-- Keys of another type, as they are printed; a key that another trigger sets, however it is called; a computed one.
-- One row has one name: a date is printed as the session's DateStyle says.
ALTER TABLE tenant ADD day date DEFAULT '2030-01-31';
SELECT try('SELECT coord.fence_guard(''tenant'', ''t'', ''day'')');
ALTER TABLE tenant ADD at numeric DEFAULT 20300131;
SELECT coord.fence_guard('tenant', 't', 'at');
SELECT try('UPDATE tenant SET n = 3 WHERE id = 1');
CREATE TABLE moved (id int, k text);
SELECT coord.fence_guard('moved', 't', 'k');
CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.k := 'y'; RETURN NEW; END $$;
CREATE TRIGGER zzz BEFORE INSERT OR UPDATE ON moved FOR EACH ROW EXECUTE FUNCTION move();
BEGIN;
SELECT fence('t/x', 'me');
SELECT try('INSERT INTO moved VALUES (1, ''x'')');
SELECT * FROM moved;
ROLLBACK;
CREATE TABLE computed (id int, k text GENERATED ALWAYS AS (CASE id WHEN 1 THEN 'x' ELSE 'y' END) STORED);
SELECT coord.fence_guard('computed', 't', 'k');
BEGIN;
SELECT fence('t/x', 'me');
INSERT INTO computed VALUES (1);
SELECT try('INSERT INTO computed VALUES (2)');
ROLLBACK;
-- The column must be there.
SELECT try('SELECT coord.fence_guard(''tenant'', ''t'', ''nothing'')');
SELECT try('SELECT coord.fence_guard(''tenant'', ''t'', ''ctid'')');
ALTER TABLE tenant DROP COLUMN at;
SELECT try('UPDATE tenant SET n = 3 WHERE id = 1');
SELECT coord.fence_unguard('tenant');

-- Partitions: by whatever way one writes to them, also those that come later and have their columns in another order.
CREATE TABLE part (k text, n int) PARTITION BY LIST (k);
CREATE TABLE part_x PARTITION OF part FOR VALUES IN ('x');
CREATE TABLE part_y (n int, k text);
SELECT coord.fence_guard('part', 't', 'k');
ALTER TABLE part ATTACH PARTITION part_y FOR VALUES IN ('y');
-- TRUNCATE of a partition that came later is guarded once the guard is said again.
SELECT coord.fence_guard('part', 't', 'k');
SELECT try('INSERT INTO part VALUES (''x'', 1)');
SELECT try('INSERT INTO part_x VALUES (''x'', 1)');
SELECT try('INSERT INTO part_y VALUES (1, ''y'')');
BEGIN;
SELECT fence('t/x', 'me');
INSERT INTO part VALUES ('x', 1);
INSERT INTO part_x VALUES ('x', 2);
SELECT try('INSERT INTO part VALUES (''y'', 1)');
SELECT try('UPDATE part SET k = ''y''');
SELECT try('TRUNCATE part');
SELECT try('TRUNCATE part_x');
SELECT fence('t/y', 'me');
UPDATE part SET k = 'y' WHERE n = 1;
SELECT tableoid::regclass, * FROM part ORDER BY n;
SELECT fence('t', 'me');
TRUNCATE part_x;
TRUNCATE part;
COMMIT;
SELECT try('TRUNCATE part_y');
SELECT coord.fence_unguard('part');
INSERT INTO part VALUES ('y', 1);
TRUNCATE part_x;

-- What a foreign key deletes is a write like any other.
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent ON DELETE CASCADE);
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1);
SELECT coord.fence_guard('child', 'a');
SELECT try('DELETE FROM parent');
BEGIN;
SELECT fence('a', 'five');
DELETE FROM parent;
COMMIT;
SELECT count(*) FROM child;

-- Only the owner of a table guards it, and only tables are guarded.
CREATE VIEW look AS SELECT 1 AS one;
SELECT try('SELECT coord.fence_guard(''look'', ''a'')');
SELECT try('SELECT coord.fence_unguard(''look'')');
SELECT try('SELECT coord.fence_guard(0, ''a'')');
CREATE TEMP TABLE mine_too (i int);
SELECT coord.fence_guard('mine_too', 'a');
SELECT try('INSERT INTO mine_too VALUES (1)');
RESET ROLE;
CREATE ROLE lock_stranger;
GRANT coord_user TO lock_stranger;
GRANT ALL ON account, child TO lock_stranger;
SET ROLE lock_stranger;
SELECT try('SELECT coord.fence_guard(''account'', ''a'')');
SELECT try('SELECT coord.fence_unguard(''child'')');
-- Who may write to it is held by the guard all the same, and calls nothing of coord's that he would have to be granted.
SELECT try('INSERT INTO child VALUES (1)');
-- The trigger's function is good for nothing else.
SELECT try('CREATE TRIGGER t BEFORE INSERT ON account FOR EACH ROW EXECUTE FUNCTION coord_internal.fence_guard()');
RESET ROLE;
REVOKE ALL ON account, child FROM lock_stranger;
DROP ROLE lock_stranger;
SET ROLE :name;

\set include :abs_srcdir/include/lock_end.psql
\i :include
