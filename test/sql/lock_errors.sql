-- What is refused, with SQLSTATE, message, detail and hint.
\set name regress_lock_errors
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/lock.psql
\i :include

-- Names and owners: NULL, empty, too long.  Every verb checks them.
CREATE TABLE verb (n int GENERATED ALWAYS AS IDENTITY, call text);
INSERT INTO verb (call) VALUES ('coord.lock(%s)'), ('coord.try_lock(%s)'), ('coord.unlock(%s)'), ('coord.lease_acquire(%s, ''o'')'), ('coord.lease_acquire(''n'', %s)'),
  ('coord.lease_renew(%s, 1)'), ('coord.lease_release(%s, 1)'), ('coord.lease_break(%s)'), ('coord.fence_check(%s, 1)'), ('coord.fence_guard(''verb'', %s)'),
  ('coord.semaphore_create(%s, 1)'), ('coord.semaphore_resize(%s, 1)'), ('coord.semaphore_drop(%s)'), ('coord.leader_campaign(%s, ''o'')'), ('coord.leader_campaign(''n'', %s)'),
  ('coord.leader_resign(%s, ''o'')'), ('coord.leader_resign(''n'', %s)'), ('coord.once_per(%s, ''1 s'')');
SELECT n, try('SELECT ' || format(call, 'NULL')) FROM verb ORDER BY n;
SELECT n, try('SELECT ' || format(call, '''''')) FROM verb ORDER BY n;
SELECT n, try('SELECT ' || format(call, 'repeat(''x'', 201)')) FROM verb ORDER BY n;
SELECT try('SELECT coord.lock(repeat(''é'', 101))');
SELECT try('SELECT coord.lock_many(NULL)');
SELECT try('SELECT coord.lock_many(ARRAY[''a'', NULL])');
SELECT try('SELECT coord.lock_many(ARRAY[''a'', ''''])');
SELECT try('SELECT coord.lock_many(ARRAY[''a'', repeat(''x'', 201)])');
-- Other arguments that are required.
SELECT try('SELECT coord.lease_renew(''n'', NULL)');
SELECT try('SELECT coord.lease_release(''n'', NULL)');
SELECT try('SELECT coord.fence_check(''n'', NULL)');
SELECT try('SELECT coord.fence_guard(NULL, ''n'')');
SELECT try('SELECT coord.fence_unguard(NULL)');
SELECT try('SELECT coord.semaphore_create(''n'', NULL)');
SELECT try('SELECT coord.semaphore_resize(''n'', NULL)');

-- Unknown modes and scopes.
SELECT try('SELECT coord.lock(''a'', ''shared'')');
SELECT try('SELECT coord.lock(''a'', ''EXCLUSIVE'')');
SELECT try('SELECT coord.try_lock(''a'', '''')');
SELECT try('SELECT coord.unlock(''a'', ''lease'')');
SELECT try('SELECT coord.lock_many(''{a}'', ''x'')');
SELECT try('SELECT coord.lock(''a'', ''share'', ''statement'')');
SELECT try('SELECT coord.try_lock(''a'', ''share'', ''Session'')');
SELECT try('SELECT coord.lock_many(''{a}'', ''share'', '''')');
-- Nothing is taken by them.
SELECT count(*) FROM coord.locks WHERE pid = pg_backend_pid();

-- Times: negative, zero where that is nothing, too long.
SELECT try('SELECT coord.lock(''a'', timeout => ''-1 ms'')');
SELECT try('SELECT coord.lock_many(''{a}'', timeout => ''-1 ms'')');
SELECT try('SELECT coord.lease_acquire(''a'', ''o'', timeout => ''-1 ms'')');
SELECT try('SELECT coord.lease_acquire(''a'', ''o'', ''-30 s'')');
SELECT try('SELECT coord.lease_acquire(''a'', ''o'', ''0'')');
SELECT try('SELECT coord.lease_acquire(''a'', ''o'', ''30000'')');
SELECT try('SELECT coord.lease_acquire(''a'', ''o'', ''1000 years'')');
SELECT try('SELECT coord.leader_campaign(''a'', ''o'', ''-15 s'')');
SELECT try('SELECT coord.leader_campaign(''a'', ''o'', ''2 h'')');
SELECT acquire('a', 'o');
SELECT try('SELECT renew(''a'', ''o'', ''0'')');
SELECT try('SELECT renew(''a'', ''o'', ''-1 s'')');
SELECT try('SELECT renew(''a'', ''o'', ''1 h 1 us'')');
-- Capacities and permits.
SELECT try('SELECT coord.semaphore_create(''s'', 0)');
SELECT try('SELECT coord.semaphore_create(''s'', -1)');
SELECT coord.semaphore_create('s', 1);
SELECT try('SELECT coord.semaphore_resize(''s'', 0)');
SELECT try('SELECT coord.lease_acquire(''s'', ''o'', permits => 0)');
SELECT try('SELECT coord.lease_acquire(''s'', ''o'', permits => -1)');
SELECT coord.semaphore_drop('s');

-- Tokens: of another lease, never given out, of nobody any more.
SELECT acquire('b', 'o');
SELECT try_token('SELECT coord.lease_release(''a'', tok(''b'', ''o''))');
SELECT try_token('SELECT coord.lease_renew(''a'', tok(''b'', ''o''))');
SELECT try_token('SELECT coord.fence_check(''a'', tok(''b'', ''o''))');
SELECT try('SELECT coord.lease_release(''a'', 0)');
SELECT try('SELECT coord.lease_release(''a'', -1)');
SELECT try('SELECT coord.lease_release(''a'', 9007199254740991)');
SELECT try('SELECT coord.lease_release(''never held'', 9007199254740991)');
SELECT release('a', 'o');
SELECT try_token('SELECT renew(''a'', ''o'')');
SELECT try_token('SELECT fence(''a'', ''o'')');
SELECT release('a', 'o');
SELECT coord.lease_release('never held', tok('a', 'o'));
-- By a stranger.
RESET ROLE;
CREATE ROLE lock_stranger;
GRANT coord_user TO lock_stranger;
SET ROLE lock_stranger;
SELECT try_token('SELECT release(''b'', ''o'')');
SELECT try_token('SELECT renew(''b'', ''o'')');
SELECT acquire('b', 'o');
RESET ROLE;
DROP OWNED BY lock_stranger;
DROP ROLE lock_stranger;
SET ROLE :name;

-- In a read-only transaction nothing is written; locks are no writes.
BEGIN READ ONLY;
SELECT coord.lock('a') > 0;
SELECT try('SELECT coord.lease_acquire(''a'', ''o'')');
SELECT try('SELECT release(''b'', ''o'')');
SELECT try('SELECT coord.lease_break(''b'')');
SELECT try('SELECT coord.semaphore_create(''s'', 1)');
SELECT try('SELECT coord.leader_campaign(''a'', ''o'')');
SELECT try('SELECT coord.once_per(''a'', ''1 s'')');
COMMIT;

-- In a copy leases are another database's; locks are not.  After coord.resume() they are this one's.
RESET ROLE;
BEGIN;
UPDATE coord_internal.identity SET database = 1;
SELECT coord.lock('a') > 0;
SELECT try('SELECT coord.lease_acquire(''a'', ''o'')');
ROLLBACK;

-- fence_advance: beyond what there are numbers for; lower than what is given out already it changes nothing.
SELECT try('SELECT coord.fence_advance(NULL)');
SELECT try('SELECT coord.fence_advance(0)');
SELECT try('SELECT coord.fence_advance(-1)');
SELECT try('SELECT coord.fence_advance(9007199254740991)');
SELECT coord.fence_advance(1);
-- A quota: no more locks than coord.max_locks in the cluster.  A new connection has the new setting.
ALTER SYSTEM SET coord.max_locks = 3;
SELECT pg_reload_conf();
\c
SET search_path = :name;
SET ROLE :name;
BEGIN;
SELECT coord.lock('q' || i) > 0 FROM generate_series(1, 3) i;
SELECT try('SELECT coord.lock(''q4'')');
SELECT try('SELECT coord.try_lock(''q4'')');
SELECT regexp_replace(t, 'q[56]', 'q5 or q6') FROM try('SELECT coord.lock_many(''{q5,q6}'', scope => ''session'')') t;
-- What is held already may be asked for again.
SELECT coord.lock('q1') > 0;
COMMIT;
-- All or none.
SELECT regexp_replace(t, 'q[1-4]', 'one of four') FROM try('SELECT coord.lock_many(''{q1,q2,q3,q4}'', scope => ''session'')') t;
SELECT count(*) FROM coord.locks WHERE pid = pg_backend_pid();
BEGIN;
SELECT array_length(coord.lock_many('{q1,q2,q3}'), 1);
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT array_length(coord.lock_many('{q1,q2,q3}'), 1);
ROLLBACK TO s;
SELECT array_length(coord.lock_many('{q4,q5,q6}'), 1);
COMMIT;
-- A session that ends in the middle of a transaction gives back its share, once.
BEGIN;
SELECT array_length(coord.lock_many('{q1,q2,q3}'), 1);
\c
SET search_path = :name;
SET ROLE :name;
DO $$
BEGIN
  FOR i IN 1 .. 6000 LOOP
    EXIT WHEN NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid >> 8 = 77);
    PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
  END LOOP;
END $$;
SELECT array_length(coord.lock_many('{q1,q2,q3}'), 1);
SELECT try('SELECT coord.lock_many(''{q1,q2,q3,q4}'')') ~ '^53400' LIMIT 1;
RESET ROLE;
ALTER SYSTEM RESET coord.max_locks;
SELECT pg_reload_conf();
\c
SELECT array_length(coord.lock_many('{q1,q2,q3,q4}'), 1);
RESET search_path;

\set include :abs_srcdir/include/lock_end.psql
\i :include
