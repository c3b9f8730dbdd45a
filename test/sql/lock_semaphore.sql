-- Semaphores: permits that are leases, and a capacity that is stored.
\set name regress_lock_semaphore
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/lock.psql
\i :include

-- As many owners as there are permits.
SELECT coord.semaphore_create('pool', 3);
SELECT acquire('pool', 'a');
SELECT acquire('pool', 'b');
SELECT acquire('pool', 'c');
SELECT acquire('pool', 'd');
SELECT leases();
-- An owner asking again has what he has.
SELECT at(clock() + interval '10 s');
SELECT acquire('pool', 'b');
SELECT renew('pool', 'c');
SELECT release('pool', 'a');
SELECT acquire('pool', 'd');
SELECT acquire('pool', 'e');
-- Each runs out by itself.
SELECT renew('pool', 'b', '20 s');
SELECT renew('pool', 'd', '40 s');
SELECT at(clock() + interval '30 s');
SELECT leases();
SELECT acquire('pool', 'e', permits => 2);
SELECT leases();
SELECT try_token('SELECT renew(''pool'', ''b'')');
SELECT release('pool', 'b');
SELECT acquire('pool', 'f');
-- Several permits at a time are granted together or not at all, and given back together.
SELECT release('pool', 'd');
SELECT acquire('pool', 'g', permits => 2);
SELECT acquire('pool', 'g', permits => 1);
SELECT release('pool', 'e');
SELECT acquire('pool', 'h', permits => 3);
SELECT acquire('pool', 'h', permits => 2);
SELECT leases();
-- With another number he has to give them back first; more than there are is an error.
SELECT try('SELECT acquire(''pool'', ''h'', permits => 1)');
SELECT try('SELECT acquire(''pool'', ''i'', permits => 4)');
SELECT try('SELECT acquire(''no pool'', ''i'', permits => 2)');
SELECT try('SELECT acquire(''pool'', ''i'', permits => 0)');
SELECT acquire('pool', 'i', permits => NULL);

-- Growing makes room at once; shrinking takes nothing away, and lets nobody in until enough are back.
SELECT coord.semaphore_resize('pool', 4);
SELECT acquire('pool', 'i');
SELECT coord.semaphore_resize('pool', 1);
SELECT leases();
SELECT renew('pool', 'i');
SELECT release('pool', 'i');
SELECT release('pool', 'h');
SELECT acquire('pool', 'j');
SELECT release('pool', 'g');
SELECT acquire('pool', 'j');
SELECT acquire('pool', 'k');
-- Creating again what is there changes nothing; with another capacity it is an error.
SELECT coord.semaphore_create('pool', 1);
SELECT try('SELECT coord.semaphore_create(''pool'', 2)');
SELECT coord.semaphore_resize('pool', 1);
-- It is dropped when nobody has a permit.
SELECT try('SELECT coord.semaphore_drop(''pool'')');
SELECT coord.lease_break('pool', 'test');
SELECT coord.semaphore_drop('pool');
SELECT coord.semaphore_drop('pool');
SELECT try('SELECT coord.semaphore_resize(''pool'', 2)');
-- Then the name is an ordinary lease's.
SELECT acquire('pool', 'a');
SELECT acquire('pool', 'b');
SELECT try('SELECT coord.semaphore_create(''pool'', 2)');
SELECT release('pool', 'a');
SELECT coord.semaphore_create('pool', 2);
-- With permits that have run out it can be dropped, and nothing is left of them.
SELECT acquire('pool', 'a', '1 s');
SELECT acquire('pool', 'b', '1 s');
SELECT at(clock() + interval '1 s');
SELECT coord.semaphore_drop('pool');
RESET ROLE;
SELECT count(*) FROM coord_internal.lease WHERE name = 'pool';
SET ROLE :name;
-- A lease that has run out is not in the way of a semaphore.
SELECT acquire('pool', 'a', '1 s');
SELECT at(clock() + interval '1 s');
SELECT coord.semaphore_create('pool', 2);
SELECT acquire('pool', 'a');
SELECT acquire('pool', 'b');
SELECT acquire('pool', 'c');
SELECT coord.lease_break('pool');
SELECT name, owner, event FROM coord.lease_log WHERE role = current_user ORDER BY at, token;

-- In a transaction: its own permits count, and go with it; capacities, too.
BEGIN;
SELECT acquire('pool', 'a');
SAVEPOINT s;
SELECT acquire('pool', 'b');
SELECT acquire('pool', 'c');
ROLLBACK TO s;
SELECT acquire('pool', 'c');
COMMIT;
SELECT leases();
BEGIN;
SELECT release('pool', 'a');
SELECT acquire('pool', 'd');
SELECT coord.semaphore_resize('pool', 3);
SELECT acquire('pool', 'e');
SELECT acquire('pool', 'f');
ROLLBACK;
SELECT leases();
SELECT acquire('pool', 'd');
-- Created and used in one transaction, by more than one.
BEGIN;
SELECT coord.semaphore_create('new', 20);
SELECT count(*) FROM generate_series(1, 25) i, LATERAL coord.lease_acquire('new', 'owner ' || i);
COMMIT;
SELECT count(*), count(DISTINCT token), min(capacity) FROM coord.leases WHERE name = 'new';
SELECT acquire('new', 'one more');
SELECT count(*) FROM coord.leases l WHERE name = 'new' AND coord.lease_release(name, token);
SELECT coord.semaphore_drop('new');
-- Created and rolled back: never there.
BEGIN;
SELECT coord.semaphore_create('new', 2);
SELECT acquire('new', 'a'), acquire('new', 'b');
ROLLBACK;
SELECT acquire('new', 'a');
SELECT acquire('new', 'b');
-- Dropped and created in one transaction, with another capacity.
SELECT coord.lease_break('pool');
BEGIN;
SELECT coord.semaphore_drop('pool');
SELECT coord.semaphore_create('pool', 5);
COMMIT;
SELECT acquire('pool', 'a', permits => 5);
SELECT leases();

-- An owner's name is his role's: another role of the same owner's name gets nothing of his, and takes nothing away.
RESET ROLE;
CREATE ROLE lock_other;
GRANT coord_user TO lock_other;
SELECT coord.semaphore_resize('pool', 7);
SET ROLE lock_other;
SELECT try('SELECT acquire(''pool'', ''a'')');
SET ROLE :name;
SELECT leases();
SELECT release('pool', 'a');
SELECT leases();
RESET ROLE;
DROP OWNED BY lock_other;
DROP ROLE lock_other;
SET ROLE :name;

\set include :abs_srcdir/include/lock_end.psql
\i :include
