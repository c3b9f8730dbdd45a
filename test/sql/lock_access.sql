-- Who may use which names, act for whose leases, and see what.
\set name regress_lock_access
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/lock.psql
\i :include

-- Two teams and a member of one of them, an admin, a monitor, a reader, and somebody who is nobody.
RESET ROLE;
SET client_min_messages = warning;
CREATE ROLE lock_red;
CREATE ROLE lock_member;
CREATE ROLE lock_blue;
CREATE ROLE lock_admin;
CREATE ROLE lock_monitor;
CREATE ROLE lock_reader;
CREATE ROLE lock_nobody;
GRANT coord_user TO lock_red, lock_blue, lock_member;
GRANT lock_red TO lock_member;
GRANT coord_admin TO lock_admin;
GRANT pg_monitor TO lock_monitor;
GRANT coord_reader TO lock_reader;
GRANT ALL ON ALL SEQUENCES IN SCHEMA :name TO PUBLIC;
SET client_min_messages = notice;

-- Verbs are for coord_user; to look is for coord_reader and pg_monitor.
CREATE TABLE verb (n int GENERATED ALWAYS AS IDENTITY, call text);
GRANT SELECT ON verb TO PUBLIC;
INSERT INTO verb (call) VALUES ('coord.lock(''x'')'), ('coord.try_lock(''x'')'), ('coord.unlock(''x'')'), ('coord.lock_many(''{x}'')'),
  ('coord.lease_acquire(''x'', ''o'')'), ('coord.lease_renew(''x'', 1)'), ('coord.lease_release(''x'', 1)'), ('coord.lease_break(''x'')'),
  ('coord.fence_check(''x'', 1)'), ('coord.fence_guard(''verb'', ''x'')'), ('coord.fence_unguard(''verb'')'), ('coord.fence_advance(1)'),
  ('coord.semaphore_create(''x'', 1)'), ('coord.semaphore_resize(''x'', 1)'), ('coord.semaphore_drop(''x'')'),
  ('coord.leader_campaign(''x'', ''o'')'), ('coord.leader_resign(''x'', ''o'')'), ('coord.once_per(''x'', ''1 s'')'),
  ('coord.grant_use(''lock'', ''x'', ''lock_red'')'), ('coord.revoke_use(''lock'', ''x'', ''lock_red'')');
SET ROLE lock_nobody;
SELECT current_user, try('SELECT count(*) FROM coord.leases');
SET ROLE lock_monitor;
SELECT try('SELECT ' || call) FROM verb ORDER BY n;
SET ROLE lock_reader;
SELECT try('SELECT ' || call) FROM verb ORDER BY n;
SELECT count(*) FROM (SELECT FROM coord.locks UNION ALL SELECT FROM coord.lock_waiters UNION ALL SELECT FROM coord.leases UNION ALL SELECT FROM coord.leaders UNION ALL SELECT FROM coord.lease_log) v;
SET ROLE lock_blue;
SELECT try('SELECT coord.fence_advance(1)');
SELECT try('SELECT * FROM coord_internal.lease');
SELECT try('SELECT * FROM coord_internal.held_locks()');

-- A lease is acted for by members of the role that acquired it, and by coord_admin.
SET ROLE lock_red;
SELECT acquire('job', 'worker');
SET ROLE lock_blue;
SELECT try_token('SELECT renew(''job'', ''worker'')');
SELECT try_token('SELECT release(''job'', ''worker'')');
-- Of a lease with the same owner's name he is told nothing but that it is taken.
SELECT acquire('job', 'worker');
SELECT acquire('job', 'another');
-- The token is what a fence asks for, whoever has it: a step may have got it from him who acquired.
SELECT fence('job', 'worker');
SET ROLE lock_member;
SELECT acquire('job', 'worker');
SELECT renew('job', 'worker');
SELECT release('job', 'worker');
SET ROLE lock_red;
SELECT acquire('job', 'worker');
SET ROLE lock_admin;
SELECT renew('job', 'worker');
SELECT release('job', 'worker');
SET ROLE lock_red;
SELECT campaign.is_leader FROM coord.leader_campaign('election', 'worker') campaign;
SET ROLE lock_blue;
SELECT is_leader, leader FROM coord.leader_campaign('election', 'worker');
SELECT try('SELECT coord.leader_resign(''election'', ''worker'')');
SET ROLE lock_member;
SELECT coord.leader_resign('election', 'worker');
-- A semaphore is changed by members of the role that created it, and by coord_admin; its permits are for everybody.
SET ROLE lock_red;
SELECT coord.semaphore_create('pool', 3);
SELECT acquire('pool', 'r');
SET ROLE lock_blue;
SELECT acquire('pool', 'b');
SELECT try('SELECT coord.semaphore_resize(''pool'', 4)');
SELECT try('SELECT coord.semaphore_drop(''pool'')');
SELECT try_token('SELECT release(''pool'', ''r'')');
SET ROLE lock_member;
SELECT coord.semaphore_resize('pool', 4);
SET ROLE lock_admin;
SELECT coord.semaphore_resize('pool', 5);
-- Breaking is for everybody who may use the name; what was done is told to him who did it and to who sees all.
SET ROLE lock_blue;
SELECT coord.lease_break('pool', 'blue needs it');
SELECT name, owner, role, reason FROM coord.lease_log ORDER BY owner;
SET ROLE lock_red;
SELECT count(*) FROM coord.lease_log;
SET ROLE lock_monitor;
SELECT name, owner, role, reason FROM coord.lease_log WHERE reason = 'blue needs it' ORDER BY owner;

-- Views: each sees what members of his roles have; coord_admin and pg_monitor all.
SET ROLE lock_red;
SELECT coord.lock('red', scope => 'session') > 0;
SELECT acquire('red', 'r');
SELECT is_leader FROM coord.leader_campaign('red election', 'r');
SET ROLE lock_blue;
SELECT coord.lock('blue', scope => 'session') > 0;
SELECT acquire('blue', 'b');
SELECT is_leader FROM coord.leader_campaign('blue election', 'b');
RESET ROLE;
CREATE FUNCTION sees() RETURNS text LANGUAGE sql AS $$
  SELECT format('%s: locks %s, leases %s, leaders %s', current_user, (SELECT string_agg(name, ' ' ORDER BY name) FROM coord.locks),
    (SELECT string_agg(name, ', ' ORDER BY name) FROM coord.leases), (SELECT string_agg(name, ', ' ORDER BY name) FROM coord.leaders)) $$;
SET ROLE lock_red; SELECT sees();
SET ROLE lock_member; SELECT sees();
SET ROLE lock_blue; SELECT sees();
SET ROLE lock_reader; SELECT sees();
SET ROLE lock_monitor; SELECT sees();
SET ROLE lock_admin; SELECT sees();
-- A function in a query sees no row that its reader may not see.
SET ROLE lock_blue;
CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN IF $1 !~ '^blue' THEN RAISE 'sees %', $1; END IF; RETURN true; END $$;
SELECT count(*) FROM coord.leases WHERE pg_temp.leak(name);
SELECT count(*) FROM coord.leaders WHERE pg_temp.leak(name);
SELECT count(*) FROM coord.locks WHERE pg_temp.leak(name);
-- What this session holds it may give back as whatever role.
SELECT coord.unlock('red');
SET ROLE lock_red;
SELECT coord.unlock('blue');
SELECT coord.lease_break('blue');

-- Closed prefixes: by coord_admin only, to a role and its members; the admin himself is never shut out.
SET ROLE lock_red;
SELECT try('SELECT coord.grant_use(''lock'', ''closed/'', ''lock_red'')');
SET ROLE lock_blue;
SELECT acquire('closed/1', 'before', '1 h');
SELECT coord.lock('closed/1', scope => 'session') > 0;
SET ROLE lock_admin;
SELECT coord.grant_use('lock', 'closed/', 'lock_red');
SELECT coord.grant_use('lock', 'closed/', 'lock_red');
SELECT try('SELECT coord.grant_use(''lock'', ''closed/'', ''no_such_role'')');
RESET ROLE;
UPDATE verb SET call = replace(replace(call, '''x''', '''closed/1'''), '{x}', '{closed/1}');
DELETE FROM verb WHERE call ~ 'fence_advance|unguard|use';
SET ROLE lock_blue;
-- Every verb asks, also about what he holds already; all but giving back a lock.
SELECT call FROM verb WHERE NOT EXISTS (SELECT FROM try('SELECT ' || call) t WHERE t ~ '^42501: (permission denied for lock name "closed/1"|must be owner)') ORDER BY n;
SELECT coord.lock('closed/1', scope => 'session');
SELECT try('SELECT coord.lock(''closed/'')');
SELECT try('SELECT coord.lock_many(''{open, closed/1}'')');
SELECT name FROM coord.locks;
-- What begins otherwise is open.
SELECT coord.lock('closed') > 0, coord.lock('Closed/1') > 0, coord.lock('x/closed/1') > 0;
SET ROLE lock_red;
SELECT coord.lock('closed/1') > 0;
SET ROLE lock_member;
SELECT coord.lock('closed/1') > 0;
SET ROLE lock_admin;
SELECT coord.lock('closed/1') > 0;
SELECT coord.lease_break('closed/1');
RESET ROLE;
SELECT coord.lock('closed/1') > 0;
-- The longest prefix that fits decides.
SET ROLE lock_admin;
SELECT coord.grant_use('lock', 'closed/blue', 'lock_blue');
SET ROLE lock_red;
SELECT try('SELECT coord.lock(''closed/blue/1'')');
SELECT coord.lock('closed/blu') > 0;
SET ROLE lock_blue;
SELECT coord.lock('closed/blue/1') > 0;
SELECT try('SELECT coord.lock(''closed/blu'')');
-- To several.
SET ROLE lock_admin;
SELECT coord.grant_use('lock', 'closed/', 'lock_blue');
SET ROLE lock_blue;
SELECT coord.lock('closed/1') > 0;
SET ROLE lock_red;
SELECT coord.lock('closed/1') > 0;
-- With the last grant the prefix is open again.
SET ROLE lock_admin;
SELECT coord.revoke_use('lock', 'closed/', 'lock_red');
SELECT coord.revoke_use('lock', 'closed/', 'lock_red');
SET ROLE lock_red;
SELECT try('SELECT coord.lock(''closed/1'')');
SET ROLE lock_admin;
SELECT coord.revoke_use('lock', 'closed/', 'lock_blue');
SELECT coord.revoke_use('lock', 'closed/blue', 'lock_blue');
SET ROLE lock_red;
SELECT coord.lock('closed/1') > 0, coord.lock('closed/blue/1') > 0;
-- Rolled back, it was never closed.
RESET ROLE;
BEGIN;
SELECT coord.grant_use('lock', 'closed/', 'lock_blue');
SET LOCAL ROLE lock_red;
SELECT try('SELECT coord.lock(''closed/1'')');
ROLLBACK;
SET ROLE lock_red;
SELECT coord.lock('closed/1') > 0;
RESET ROLE;
BEGIN;
SAVEPOINT s;
SELECT coord.grant_use('lock', 'closed/', 'lock_blue');
SET LOCAL ROLE lock_red;
SELECT try('SELECT coord.lock(''closed/1'')');
ROLLBACK TO s;
SET LOCAL ROLE lock_red;
SELECT coord.lock('closed/1') > 0;
COMMIT;

RESET ROLE;
DO $$ BEGIN PERFORM coord.lease_break(name) FROM (SELECT DISTINCT name FROM coord.leases) l; END $$;
DROP FUNCTION pg_temp.leak(text);
REVOKE ALL ON ALL SEQUENCES IN SCHEMA :name FROM PUBLIC;
DROP OWNED BY lock_red, lock_member, lock_blue, lock_admin, lock_monitor, lock_reader, lock_nobody;
DROP ROLE lock_red, lock_member, lock_blue, lock_admin, lock_monitor, lock_reader, lock_nobody;
SET ROLE :name;

\set include :abs_srcdir/include/lock_end.psql
\i :include
