-- Leases: acquire, acquire again, renew, release, break, expiry, savepoints, several changes in one transaction.
\set name regress_lock_lease
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/lock.psql
\i :include

-- One owner has it; the defaults are 30 s, no waiting, one permit.
SELECT acquire('a', 'one');
SELECT acquire('a', 'two');
SELECT leases();
-- Nobody has to be in a transaction or the same session: the owner is a name.
SELECT token = tok('a', 'one') AS token, granted_at - clock() AS granted_at, expires_at - clock() AS expires_in, ttl, permits, capacity, waiters FROM coord.leases WHERE name = 'a';
-- Acquired again it is the same grant with a fresh time to live, also a shorter or a longer one.
SELECT at(clock() + interval '10 s');
SELECT acquire('a', 'one');
SELECT acquire('a', 'one', '5 s');
SELECT acquire('a', 'one', '1 min');
SELECT granted_at, ttl FROM coord.leases WHERE name = 'a';
SELECT acquire('a', 'two');

-- Renewing: without a ttl by what is stored, else for that long from now on; shorter is possible, longer is stored.
SELECT at(clock() + interval '5 s');
SELECT renew('a', 'one');
SELECT renew('a', 'one', '10 s');
SELECT leases();
SELECT renew('a', 'one');
SELECT renew('a', 'one', '2 min');
SELECT leases();
SELECT renew('a', 'one');
-- A renewal within the stored ttl needs no transaction id and may be made in a read-only transaction; a longer one may not.
BEGIN READ ONLY;
SELECT renew('a', 'one');
SELECT pg_current_xact_id_if_assigned() IS NULL;
SELECT try('SELECT renew(''a'', ''one'', ''3 min'')');
COMMIT;
-- Such a renewal counts at once, whatever becomes of the transaction; of a longer one only what is stored does.  The rest
-- comes with the commit.
BEGIN;
SELECT renew('a', 'one', '1 s');
ROLLBACK;
SELECT leases();
BEGIN;
SELECT renew('a', 'one', '3 min');
ROLLBACK;
SELECT leases();
BEGIN;
SAVEPOINT s;
SELECT renew('a', 'one', '4 min');
ROLLBACK TO s;
COMMIT;
SELECT leases();
BEGIN;
SELECT renew('a', 'one', '3 min');
COMMIT;
SELECT leases();

-- Release: true once.
SELECT release('a', 'one');
SELECT release('a', 'one');
SELECT leases();
SELECT try_token('SELECT renew(''a'', ''one'')');
SELECT acquire('a', 'two');
SELECT try_token('SELECT renew(''a'', ''one'')');
SELECT release('a', 'one');
SELECT leases();
-- The same owner after a release: another grant.
SELECT release('a', 'two');
SELECT acquire('a', 'two');
SELECT release('a', 'two');

-- Expiry: at the moment itself it is over, for everybody, and for the holder though nobody has taken it.
SELECT acquire('e', 'one');
SELECT at(clock() + interval '29.999 s');
SELECT ttl_ms FROM coord.lease_acquire('e', 'two');
SELECT leases();
SELECT at(clock() + interval '0.001 s');
SELECT leases();
SELECT try_token('SELECT renew(''e'', ''one'')');
SELECT release('e', 'one');
SELECT acquire('e', 'two');
SELECT try_token('SELECT renew(''e'', ''one'')');
-- The same owner after the end: another grant.
SELECT at(clock() + interval '30 s');
SELECT acquire('e', 'two');
SELECT release('e', 'two');
-- The first after an end gets it though the row of the last one is still there.
SELECT acquire('e', 'one', '1 s');
SELECT at(clock() + interval '1 s');
SELECT acquire('e', 'two', '1 s');
SELECT count(*) FROM coord.leases WHERE name = 'e';
SELECT at(clock() + interval '1 s');
-- A release after the end takes away the row, and says that it was over.
SELECT release('e', 'two');
SELECT release('e', 'two');

-- In a transaction: the grant is its own from the beginning, and goes with it.
BEGIN;
SELECT acquire('t', 'one');
SELECT acquire('t', 'one');
SELECT acquire('t', 'two');
SELECT renew('t', 'one', '10 s');
SELECT renew('t', 'one', '1 min');
SELECT fence('t', 'one');
SELECT token AS t1 FROM held ORDER BY n DESC LIMIT 1 \gset
ROLLBACK;
SELECT leases();
-- Its number is never given out again.
SELECT token > :t1 FROM coord.lease_acquire('t', 'one');
SELECT try_token(format('SELECT coord.lease_renew(''t'', %s)', :t1));
SELECT coord.lease_release('t', :t1);
SELECT coord.lease_break('t');
BEGIN;
SELECT acquire('t', 'one');
SELECT renew('t', 'one', '10 s');
COMMIT;
SELECT leases();
-- Release and acquire by another in one transaction; rolled back, everything is as it was.
BEGIN;
SELECT release('t', 'one');
SELECT acquire('t', 'two');
SELECT acquire('t', 'one');
ROLLBACK;
SELECT leases();
BEGIN;
SELECT release('t', 'one');
SELECT release('t', 'one');
SELECT try_token('SELECT renew(''t'', ''one'')');
SELECT acquire('t', 'two');
SELECT release('t', 'two');
SELECT acquire('t', 'three');
COMMIT;
SELECT leases();
SELECT coord.lease_break('t');
BEGIN;
SELECT acquire('t', 'one');
SELECT release('t', 'one');
COMMIT;
SELECT leases();
-- Two names, one of them given back.
BEGIN;
SELECT acquire('t1', 'one');
SELECT acquire('t2', 'one');
SELECT release('t1', 'one');
COMMIT;
SELECT leases();
SELECT release('t2', 'one');

-- Savepoints: what is rolled back was never granted, or never given back.
BEGIN;
SELECT acquire('s1', 'one');
SAVEPOINT s;
SELECT acquire('s2', 'one');
SELECT release('s1', 'one');
SELECT acquire('s1', 'two');
SAVEPOINT deeper;
SELECT acquire('s3', 'one');
RELEASE deeper;
ROLLBACK TO s;
SELECT acquire('s1', 'two');
SELECT acquire('s2', 'two');
SAVEPOINT kept;
SELECT acquire('s4', 'one');
RELEASE kept;
COMMIT;
SELECT leases();
-- Nothing of them is left in the lock manager.
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid >> 8 IN (77, 78, 79);
BEGIN;
SAVEPOINT s;
SELECT release('s1', 'one');
SELECT release('s2', 'two');
SELECT release('s4', 'one');
ROLLBACK TO s;
COMMIT;
SELECT leases();
DO $$
BEGIN
  BEGIN
    PERFORM acquire('caught', 'one');
    RAISE division_by_zero;
  EXCEPTION WHEN division_by_zero THEN
    NULL;
  END;
END $$;
SELECT acquire('caught', 'two');

-- Breaking takes it from whoever has it, and is recorded.
SELECT coord.lease_break('s1', 'the machine is gone');
SELECT try_token('SELECT renew(''s1'', ''one'')');
SELECT try_token('SELECT fence(''s1'', ''one'')');
SELECT release('s1', 'one');
SELECT coord.lease_break('s1');
SELECT coord.lease_break('never held', 'x');
SELECT acquire('s1', 'two');
SELECT coord.lease_break('s1');
-- One that has run out is nobody's.
SELECT acquire('s1', 'three', '1 s');
SELECT at(clock() + interval '1 s');
SELECT coord.lease_break('s1', 'too late');
-- Rolled back, it was not broken, and nothing is recorded.
BEGIN;
SELECT coord.lease_break('s2', 'by mistake');
SELECT acquire('s2', 'three');
ROLLBACK;
SELECT leases();
SELECT name, owner, token = tok(name, owner) AS token, event, role, reason FROM coord.lease_log WHERE role = current_user ORDER BY at, token;
-- In the transaction of a break the next one can have it.
BEGIN;
SELECT coord.lease_break('s2', 'moved');
SELECT acquire('s2', 'three');
COMMIT;
SELECT leases();

-- A grant, a release or a longer ttl cannot be prepared.
BEGIN;
SELECT acquire('p', 'one');
PREPARE TRANSACTION 'lock_lease';
SELECT count(*) FROM coord.leases WHERE name = 'p';
SELECT acquire('p', 'one');
BEGIN;
SELECT release('p', 'one');
PREPARE TRANSACTION 'lock_lease';
BEGIN;
SELECT renew('p', 'one', '1 min');
PREPARE TRANSACTION 'lock_lease';
BEGIN;
SELECT coord.lease_break('p');
PREPARE TRANSACTION 'lock_lease';
SELECT leases();

-- ttl: as it was said, down to a microsecond, up to coord.max_lease; NULL is the default, or that cap where it is shorter.
SELECT ttl_ms FROM coord.lease_acquire('u', 'one', '1 us');
SELECT ttl FROM coord.leases WHERE name = 'u';
SELECT acquire('ttl', 'one', '1 h');
SELECT acquire('ttl', 'one', NULL);
SELECT try('SELECT acquire(''ttl'', ''one'', ''1 h 1 ms'')');
SELECT try('SELECT renew(''ttl'', ''one'', ''1 day'')');
-- The cap is a setting of superusers.
SELECT try('SET coord.max_lease = ''1 day''');
RESET ROLE;
SET coord.max_lease = '10 s';
SET ROLE :name;
SELECT try('SELECT acquire(''ttl2'', ''one'', ''11 s'')');
SELECT acquire('ttl2', 'one', NULL);
SELECT acquire('ttl3', 'one', '10 s');
RESET ROLE;
SET coord.max_lease = '2d';
SET ROLE :name;
SELECT acquire('ttl2', 'one', '2 days');
RESET ROLE;
RESET coord.max_lease;
SET ROLE :name;
-- What is stored by a cap of then stays renewable by a cap of now.
SELECT renew('ttl2', 'one');

-- A timeout waits at most so long; whatever the clock of tests says.
SELECT acquire('w', 'one', '1 h');
SELECT acquire('w', 'two', timeout => '10 ms');
SELECT acquire('w', 'two', timeout => NULL);
SELECT * FROM coord.lock_waiters;
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid >> 8 IN (77, 78, 79);
-- Who has gone without is not in the way of the next one.
SELECT release('w', 'one');
SELECT acquire('w', 'two');

-- An error while waiting leaves nothing behind, though only a savepoint is rolled back.
BEGIN;
SAVEPOINT s;
SET LOCAL statement_timeout = '50 ms';
SELECT count(*) FROM coord.lease_acquire('w', 'three', timeout => '1 min');
ROLLBACK TO s;
SELECT * FROM coord.lock_waiters;
SELECT waiters FROM coord.leases WHERE name = 'w';
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid >> 8 IN (77, 78, 79);
COMMIT;

-- Many in one transaction, each with a token higher than the one before.
BEGIN;
SELECT count(*), bool_and(token > before) FROM (SELECT token, lag(token, 1, 0) OVER (ORDER BY i) AS before FROM generate_series(1, 100) i, LATERAL coord.lease_acquire('many/' || i, 'one')) t;
COMMIT;
SELECT count(*) FROM coord.leases WHERE name LIKE 'many/%';
SELECT count(*) FROM coord.leases l WHERE name LIKE 'many/%' AND coord.lease_release(name, token);
SELECT count(*) FROM coord.leases WHERE name LIKE 'many/%';

\set include :abs_srcdir/include/lock_end.psql
\i :include
