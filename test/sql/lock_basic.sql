-- Named locks in one session: scopes, counting, savepoints, tokens, several at once, views.
\set name regress_lock_basic
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/lock.psql
\i :include
-- What this session holds, by coord's own view, and how many tags the lock manager knows.
CREATE FUNCTION locks() RETURNS SETOF text LANGUAGE sql STABLE AS $$
  SELECT format('%s: %s, %s', name, mode, scope) FROM coord.locks WHERE pid = pg_backend_pid() ORDER BY name COLLATE "C", mode $$;
CREATE FUNCTION tags() RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid >> 8 IN (77, 78, 79) $$;

-- A transaction's lock goes with it.
BEGIN;
SELECT coord.lock('a') AS t1 \gset
SELECT locks();
COMMIT;
SELECT locks();
SELECT tags();
BEGIN;
SELECT coord.lock('a') AS t2 \gset
ROLLBACK;
SELECT locks();
SELECT tags();
-- Outside a block the transaction is the statement.
SELECT coord.lock('a') AS t3 \gset
SELECT locks();
-- Each grant has a higher token, also after one that was rolled back.
SELECT :t1 < :t2 AND :t2 < :t3;

-- In one transaction it is one grant, however often it is asked for.
BEGIN;
SELECT coord.lock('a') AS t1 \gset
SELECT coord.lock('a') AS t2 \gset
SELECT coord.try_lock('a') AS t3 \gset
SELECT :t1 = :t2 AND :t2 = :t3;
SELECT locks();
-- What the transaction holds is not unlocked.
SELECT coord.unlock('a');
SELECT locks();
COMMIT;
SELECT tags();

-- A session's lock stays until it is given back as often as it was taken.
SELECT coord.lock('s', scope => 'session') AS t1 \gset
BEGIN;
SELECT coord.lock('s', scope => 'session') AS t2 \gset
ROLLBACK;
SELECT coord.try_lock('s', scope => 'session') AS t3 \gset
SELECT :t1 = :t2 AND :t2 = :t3;
SELECT locks();
SELECT coord.unlock('s');
SELECT coord.unlock('s');
SELECT locks();
SELECT coord.unlock('s');
SELECT locks();
SELECT tags();
SELECT coord.unlock('s');
SELECT coord.unlock('never taken');
-- A grant after that is another one.
SELECT coord.lock('s', scope => 'session') > :t1;
SELECT coord.unlock('s');

-- Both at a time: the session's outlives the transaction, the transaction's the unlock.
BEGIN;
SELECT coord.lock('b') AS t1 \gset
SELECT coord.lock('b', scope => 'session') AS t2 \gset
SELECT :t1 = :t2;
SELECT locks();
SELECT coord.unlock('b');
SELECT coord.unlock('b');
SELECT locks();
SELECT tags();
SELECT coord.lock('b', scope => 'session') = :t1;
COMMIT;
SELECT locks();
SELECT coord.unlock('b');
SELECT tags();
-- The session's first, then the transaction's too.
SELECT coord.lock('b', scope => 'session') AS t1 \gset
BEGIN;
SELECT coord.lock('b') = :t1;
SELECT coord.unlock('b');
SELECT locks();
COMMIT;
SELECT tags();

-- Modes of one name are held side by side, and given back each by itself.
SELECT coord.lock('m', 'intent_share', 'session') AS is_ \gset
SELECT coord.lock('m', 'share', 'session') AS s \gset
SELECT coord.lock('m', 'exclusive', 'session') AS x \gset
SELECT coord.lock('m', 'intent_exclusive', 'session') AS ix \gset
SELECT coord.lock('m', 'share_intent_exclusive', 'session') AS six \gset
SELECT locks();
-- Only an exclusive grant has a token of its own; the others are told the last one.
SELECT :is_ <= :s AND :s < :x AND :x <= :ix AND :ix <= :six;
SELECT coord.unlock('m', mode) FROM unnest(ARRAY['share', 'share', 'intent_share', 'intent_exclusive', 'share_intent_exclusive']) mode;
SELECT locks();
SELECT coord.unlock('m');
SELECT tags();
BEGIN;
SELECT coord.lock('m', 'share') AS s \gset
SELECT coord.lock('n', 'share') AS n \gset
-- Nobody else takes a token meanwhile, so nothing has raised it.
SELECT :s = :n;
SELECT coord.lock('n') > :n;
COMMIT;

-- NULL is the default.
BEGIN;
SELECT coord.lock('d', NULL, NULL, NULL) > 0;
SELECT coord.try_lock('d2', NULL, NULL) > 0;
SELECT coord.lock_many(ARRAY['d3'], NULL, NULL, NULL) IS NOT NULL;
SELECT locks();
ROLLBACK;
SELECT coord.lock('d', scope => 'session') > 0;
SELECT coord.unlock('d', NULL);
-- A timeout of 0 does not wait; here nobody is waited for.
SELECT coord.lock('d', timeout => '0') > 0;

-- ROLLBACK TO SAVEPOINT drops what was first taken behind the savepoint, and nothing else.
BEGIN;
SELECT coord.lock('before') AS before \gset
SAVEPOINT s1;
SELECT coord.lock('before') = :before;
SELECT coord.lock('inside') AS inside \gset
SELECT coord.lock('of the session', scope => 'session') > 0;
SAVEPOINT s2;
SELECT coord.lock('inside') = :inside;
SELECT coord.lock('deep') > 0;
RELEASE s2;
SELECT locks();
ROLLBACK TO s1;
SELECT locks();
SELECT tags();
-- Taken again it is another grant.
SELECT coord.lock('inside') > :inside;
SAVEPOINT s3;
SELECT coord.lock('released') AS released \gset
RELEASE s3;
SELECT coord.lock('released') = :released;
SELECT locks();
COMMIT;
SELECT coord.unlock('of the session');
SELECT tags();
-- The same for a block of plpgsql.
DO $$
BEGIN
  BEGIN
    PERFORM coord.lock('caught');
    RAISE division_by_zero;
  EXCEPTION WHEN division_by_zero THEN
    NULL;
  END;
  RAISE NOTICE '% tags', (SELECT count(*) FROM coord.locks WHERE pid = pg_backend_pid());
END $$;

-- Several at once: tokens in the order of the names as given.
BEGIN;
SELECT coord.lock_many(ARRAY['m3', 'm1', 'm2']) AS tokens \gset
SELECT locks();
SELECT (:'tokens'::bigint[])[1] = coord.lock('m3'), (:'tokens'::bigint[])[2] = coord.lock('m1'), (:'tokens'::bigint[])[3] = coord.lock('m2');
-- All different.
SELECT count(DISTINCT t) FROM unnest(:'tokens'::bigint[]) t;
COMMIT;
SELECT coord.lock_many('{}');
BEGIN;
SELECT array_length(coord.lock_many(ARRAY['x1', 'x2'], 'share'), 1);
SELECT locks();
ROLLBACK;
-- A name twice is refused, and nothing is taken.
BEGIN;
SELECT try('SELECT coord.lock_many(ARRAY[''b'', ''a'', ''b''])');
SELECT locks();
COMMIT;
SELECT try('SELECT coord.lock_many(ARRAY[''a'', ''b'', ''a''], scope => ''session'')');
SELECT locks();
-- Counted each by itself.
SELECT coord.lock('c2', scope => 'session') > 0;
SELECT array_length(coord.lock_many(ARRAY['c1', 'c2', 'c3'], scope => 'session'), 1);
SELECT name, coord.unlock(name) FROM unnest(ARRAY['c1', 'c2', 'c3', 'c2', 'c2']) name;
SELECT tags();
-- A thousand names.
BEGIN;
SELECT count(DISTINCT t) FROM unnest(coord.lock_many(ARRAY(SELECT 'n' || i FROM generate_series(1, 1000) i))) t;
SELECT tags();
SELECT count(*) FROM coord.locks WHERE pid = pg_backend_pid();
COMMIT;
SELECT tags();

-- Names count by their bytes: letters, spaces, the longest, other scripts.
BEGIN;
SELECT coord.lock(name) > 0 FROM unnest(ARRAY['A', 'a', 'a ', ' a', 'ä', repeat('x', 200), repeat('é', 100), 'tenant/42', E'a\tb']) name;
SELECT name = repeat('x', 200) AS longest, octet_length(name) FROM coord.locks WHERE octet_length(name) = 200 ORDER BY name COLLATE "C";
SELECT tags();
COMMIT;

-- A user's advisory locks are others: neither function reaches the other's.
BEGIN;
SELECT coord.lock('a') > 0;
SELECT pg_advisory_unlock(classid::bigint << 32 | objid::bigint) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid >> 8 = 77;
SELECT coord.unlock('b'), pg_try_advisory_lock(classid::bigint << 32 | objid::bigint), pg_advisory_unlock(classid::bigint << 32 | objid::bigint)
  FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid >> 8 = 77;
-- None of its tags is one of core's or of Citus'.
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid < 19457;
SELECT locks();
COMMIT;
-- pg_advisory_unlock_all() and DISCARD ALL release the session's locks, and the views know.
SELECT coord.lock('a', scope => 'session') > 0;
SELECT coord.lock('b', 'share', 'session') > 0;
SELECT pg_advisory_unlock_all();
SELECT locks();
SELECT coord.unlock('a'), coord.unlock('b', 'share');
SELECT coord.lock('a', scope => 'session') AS t1 \gset
-- In a transaction that holds it as well, only the transaction is left.
BEGIN;
SELECT coord.lock('a') = :t1;
SELECT coord.lock('c') > 0;
SELECT pg_advisory_unlock_all();
SELECT coord.unlock('a');
SELECT locks();
COMMIT;
SELECT locks();
SELECT coord.lock('a', scope => 'session') > :t1;
-- Also when it counted more than one.
SELECT coord.lock('a', scope => 'session') > 0;
RESET ROLE;
DISCARD ALL;
SET ROLE :name;
SET search_path = :name;
SELECT locks();
SELECT coord.unlock('a');
SELECT tags();
-- What is taken after it is counted anew.
SELECT coord.lock('a', scope => 'session') > 0;
SELECT coord.unlock('a'), coord.unlock('a');
RESET ROLE;
SET timezone = 'UTC';
SET intervalstyle = 'postgres';
SET jit = off;
SET coord.test_now = '2030-01-01 00:00:00+00';
SET ROLE :name;

-- The view in full: owner is the role that took it, the token the one that was returned.
BEGIN;
SELECT coord.lock('v', 'exclusive', 'session') AS t \gset
SELECT name, mode, scope, pid = pg_backend_pid() AS mine, owner, token = :t AS token, granted_at <= clock_timestamp() AND granted_at > now() - interval '1 min' AS granted_at, waiters
  FROM coord.locks WHERE name = 'v';
COMMIT;
SELECT * FROM coord.lock_waiters;
SELECT coord.unlock('v');

-- A lock and a lease of the same name have nothing to do with each other.
BEGIN;
SELECT coord.lock('both') > 0;
SELECT acquire('both', 'me');
SELECT locks();
SELECT leases();
COMMIT;
SELECT locks();
SELECT leases();

\set include :abs_srcdir/include/lock_end.psql
\i :include
