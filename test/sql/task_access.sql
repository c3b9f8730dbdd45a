-- Who may claim and end whose tasks, see and configure which queues.
\set name regress_task_access
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/task.psql
\i :include

-- A shop defines a saga; a member and a web role use it; a worker is granted the queue; a stranger has a saga of his
-- own on a queue of the same name; an admin, a reader, and somebody who is nobody.
RESET ROLE;
SET client_min_messages = warning;
CREATE ROLE task_member;
CREATE ROLE task_web;
CREATE ROLE task_worker;
CREATE ROLE task_stranger;
CREATE ROLE task_admin;
CREATE ROLE task_monitor;
CREATE ROLE task_nobody;
GRANT coord_user TO task_member, task_web, task_worker, task_stranger;
GRANT coord_admin TO task_admin;
GRANT pg_monitor TO task_monitor;
GRANT :name TO task_member;
GRANT ALL ON ALL TABLES IN SCHEMA :name TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA :name TO PUBLIC;
SET client_min_messages = notice;
SET ROLE :name;
SELECT coord.saga_define('shop', ARRAY[coord.step('pay', queue => 'access.pay', compensation => 'refund')]);
SELECT coord.grant_use('saga', 'shop', 'task_web');
SELECT coord.grant_use('queue', 'access.pay', 'task_worker');
SELECT coord.grant_use('queue', 'access.pay', 'task_worker');
SET ROLE task_stranger;
SELECT coord.saga_define('strange', ARRAY[coord.step('pay', queue => 'access.pay')]);
-- A grant comprises what the grantor himself may use: nothing of the shop's.
SELECT coord.grant_use('queue', 'access.pay', 'task_stranger');
SELECT count(coord.saga_start('strange', key => 'strange 1'));
SET ROLE task_web;
SELECT count(coord.saga_start('shop', key => 'web 1'));
SET ROLE :name;
SELECT count(coord.saga_start('shop', key => 'shop ' || i)) FROM generate_series(1, 9) i;
-- Only the owner's members run them here; the others' are run as a superuser.
RESET ROLE;
CALL run();

-- What each sees.
CREATE FUNCTION sees() RETURNS text LANGUAGE sql AS $$
  SELECT format('%s: %s tasks, queue: %s, stuck: %s', current_user, (SELECT count(*) FROM coord.tasks WHERE queue = 'access.pay'),
    (SELECT ready FROM coord.queues WHERE queue = 'access.pay'), (SELECT count(*) FROM coord.stuck WHERE name = 'access.pay')) $$;
SET ROLE :name; SELECT sees();
SET ROLE task_member; SELECT sees();
SET ROLE task_web; SELECT sees();
SET ROLE task_worker; SELECT sees();
SET ROLE task_stranger; SELECT sees();
SET ROLE task_admin; SELECT sees();
SET ROLE task_monitor; SELECT sees();
-- A function in a query sees no row that its reader may not see.
SET ROLE task_stranger;
CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE 'sees %', $1; RETURN true; END $$;
SELECT count(*) FROM coord.tasks WHERE pg_temp.leak(step);
SELECT count(*) FROM coord.queues WHERE pg_temp.leak(queue);

-- What each gets.
SET ROLE task_nobody; SELECT try('SELECT coord.task_claim(''access.pay'')');
SET ROLE task_monitor; SELECT try('SELECT coord.task_claim(''access.pay'')');
SET ROLE task_stranger; SELECT claim('access.pay', 100);
SET ROLE task_web; SELECT claim('access.pay', 100);
SET ROLE task_member; SELECT claim('access.pay', 2);
SET ROLE task_worker; SELECT claim('access.pay', 2);
SET ROLE task_admin; SELECT claim('access.pay', 2);
SET ROLE :name; SELECT claim('access.pay', 2);

-- Ending: what is not his to claim is not his to end, though he knows the token.
SET ROLE task_stranger;
SELECT try_task(format('SELECT coord.task_complete(%s, %s)', id('shop 1'), tok('shop 1')));
SELECT try_task(format('SELECT coord.task_complete_many(ARRAY[%s], ARRAY[%s])', id('shop 1'), tok('shop 1')));
SELECT try_task(format('SELECT coord.task_fail(%s, %s, ''x'')', id('shop 1'), tok('shop 1')));
SELECT try_task(format('SELECT coord.task_extend(%s, %s)', id('shop 1'), tok('shop 1')));
SELECT try_task(format('SELECT coord.task_release(%s, %s)', id('shop 1'), tok('shop 1')));
SELECT try_task(format('SELECT coord.task_revoke(%s)', id('shop 1')));
-- With another token he learns no more.
SELECT try_task(format('SELECT coord.task_complete(%s, 1)', id('shop 1')));
SET ROLE task_worker;
SELECT coord.task_complete(id('shop 3'), tok('shop 3'));
SELECT coord.task_fail(id('shop 4'), tok('shop 4'), 'x');
-- He could end what others of the queue have claimed, if he had the token; but to take it away is not for him.
SELECT try_task(format('SELECT coord.task_revoke(%s)', id('shop 1')));
SELECT try_task(format('SELECT coord.task_complete(%s, 1)', id('strange 1')));
SET ROLE task_web;
SELECT coord.task_extend(id('web 1'), tok('web 1')) > clock();
SELECT try_task(format('SELECT coord.task_extend(%s, %s)', id('shop 1'), tok('shop 1')));
SET ROLE task_member;
SELECT coord.task_revoke(id('shop 5'), 'mine');
SET ROLE task_admin;
SELECT coord.task_revoke(id('web 1'), 'all are mine');
SELECT coord.task_complete(id('strange 1'), tok('strange 1'));
RESET ROLE;
SELECT role, reason FROM coord.saga_log WHERE event = 'revoked' AND saga_id IN (SELECT id FROM coord.sagas WHERE key IN ('web 1', 'shop 5')) ORDER BY id;

-- Configuring, and granting use.
SET ROLE task_worker;
SELECT try('SELECT coord.queue_configure(''access.pay'', 1)');
SELECT try('SELECT coord.grant_use(''queue'', ''access.pay'', ''task_nobody'')');
SELECT coord.queue_configure('access.worker');
SET ROLE task_nobody;
SELECT try('SELECT coord.queue_configure(''access.pay'', 1)');
SET ROLE task_stranger;
SELECT try('SELECT coord.queue_configure(''access.worker'', 1)');
SELECT try('SELECT coord.task_claim(''access.worker'')');
SELECT try('SELECT coord.task_claim(''access.worke'')');
SET ROLE task_admin;
SELECT coord.queue_configure('access.worker', 2);
SELECT try('SELECT coord.task_claim(''access.worke'')');
SELECT max_running FROM coord.queues WHERE queue = 'access.worker';

-- Taking use back: of those who gave it.
SET ROLE task_stranger;
SELECT coord.revoke_use('queue', 'access.pay', 'task_worker');
SET ROLE task_worker;
SELECT claim('access.pay');
SET ROLE task_admin;
SELECT coord.grant_use('queue', 'access.pay', 'task_worker');
SET ROLE :name;
SELECT coord.revoke_use('queue', 'access.pay', 'task_worker');
SELECT coord.revoke_use('queue', 'access.pay', 'task_worker');
-- The admin's grant is left, which is one to all.
SET ROLE task_stranger;
SELECT count(coord.saga_start('strange', key => 'strange 2'));
RESET ROLE;
CALL run();
SET ROLE task_worker;
SELECT claim('access.pay', 100);
SET ROLE task_admin;
SELECT coord.revoke_use('queue', 'access.pay', 'task_worker');
SET ROLE task_worker;
SELECT try('SELECT coord.task_claim(''access.pay'')');
SELECT try_task(format('SELECT coord.task_complete(%s, %s)', id('strange 2'), tok('strange 2')));

-- A grantor who loses what he gave.
SET ROLE task_member;
SELECT coord.grant_use('queue', 'access.pay', 'task_worker');
RESET ROLE;
REVOKE :name FROM task_member;
SET ROLE :name;
SELECT coord.task_release(id('shop 6'), tok('shop 6'));
SET ROLE task_worker;
SELECT claim('access.pay', 100);
SET ROLE task_member;
SELECT try('SELECT coord.task_claim(''access.pay'')');
SET ROLE :name;
SELECT count(*) > 0 FROM claim('access.pay', 100);

RESET ROLE;
SELECT DISTINCT coord.saga_abandon(id) FROM coord.sagas WHERE finished_at IS NULL AND name IN ('shop', 'strange');
DELETE FROM coord_internal.saga_key WHERE name = 'strange';
SELECT coord.saga_drop('strange');
DELETE FROM coord_internal.use_grant WHERE kind = 'queue' AND name LIKE 'access.%';
SET client_min_messages = warning;
DROP OWNED BY task_member, task_web, task_worker, task_stranger, task_admin, task_monitor, task_nobody;
DROP ROLE task_member, task_web, task_worker, task_stranger, task_admin, task_monitor, task_nobody;
SET ROLE :name;
\set include :abs_srcdir/include/task_end.psql
\i :include
