-- Elections, and what is done once per period.
\set name regress_lock_leader
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/lock.psql
\i :include
CREATE FUNCTION campaign(name text, owner text, ttl interval DEFAULT '15 s') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  c record;
  had bigint := tok(campaign.name, campaign.owner);
BEGIN
  SELECT * INTO STRICT c FROM coord.leader_campaign(campaign.name, campaign.owner, campaign.ttl);
  IF c.is_leader THEN
    INSERT INTO held (name, owner, token) VALUES (campaign.name, campaign.owner, c.token);
  END IF;
  RETURN format('%s: %s, %s token, %s ms', CASE WHEN c.is_leader THEN 'leads' ELSE 'follows' END, c.leader,
    CASE WHEN NOT c.is_leader THEN CASE WHEN c.token = tok(campaign.name, c.leader) THEN 'the leader''s' ELSE 'ANOTHER' END
      WHEN c.token = had THEN 'same' ELSE 'new' END, c.ttl_ms);
END $$;

-- The first leads; the others are told who does, with his token and for how long.
SELECT campaign('e', 'one');
SELECT campaign('e', 'two');
SELECT at(clock() + interval '10 s');
SELECT campaign('e', 'two');
-- The leader stays by campaigning again.
SELECT campaign('e', 'one');
SELECT campaign('e', 'one', '1 min');
SELECT name, leader, token = tok(name, leader) AS token, elected_at, expires_at, ttl FROM coord.leaders;
-- It is a lease: renewed, checked, shown and broken like any.
SELECT renew('e', 'one', '20 s');
SELECT fence('e', 'one');
SELECT leases();
-- Who does not come back in time is followed by the next one.
SELECT at(clock() + interval '20 s');
SELECT * FROM coord.leaders;
SELECT campaign('e', 'two');
SELECT campaign('e', 'one');
SELECT try_token('SELECT fence(''e'', ''one'')');
SELECT try_token('SELECT renew(''e'', ''one'')');
-- Resigning: for who leads, and once.
SELECT coord.leader_resign('e', 'one');
SELECT coord.leader_resign('e', 'two');
SELECT coord.leader_resign('e', 'two');
SELECT coord.leader_resign('nobody campaigned', 'two');
SELECT * FROM coord.leaders;
SELECT try_token('SELECT fence(''e'', ''two'')');
SELECT campaign('e', 'one');
SELECT coord.lease_break('e', 'test');
SELECT campaign('e', 'two');
SELECT release('e', 'two');
-- In a transaction: undone with it.
BEGIN;
SELECT campaign('e', 'one');
SELECT fence('e', 'one');
SELECT campaign('e', 'two');
ROLLBACK;
SELECT campaign('e', 'two');
BEGIN;
SELECT coord.leader_resign('e', 'two');
SELECT campaign('e', 'one');
ROLLBACK;
SELECT campaign('e', 'one');
BEGIN;
SELECT coord.leader_resign('e', 'two');
SELECT campaign('e', 'one');
COMMIT;
SELECT name, leader FROM coord.leaders;
-- What is held as a lease is nobody's election, and a semaphore is none.
SELECT acquire('lease', 'one');
SELECT name FROM coord.leaders;
SELECT coord.semaphore_create('pool', 2);
SELECT try('SELECT campaign(''pool'', ''one'')');
SELECT try('SELECT coord.leader_resign(''pool'', ''one'')');
-- NULL is the default.
SELECT ttl_ms FROM coord.leader_campaign('e2', 'one', NULL);

-- Once per period: for the first, and for the first after it; counted from the last time.
SELECT coord.once_per('daily', '1 day');
SELECT coord.once_per('daily', '1 day');
SELECT at(clock() + interval '23 h 59 min');
SELECT coord.once_per('daily', '1 day');
SELECT at(clock() + interval '1 min');
SELECT coord.once_per('daily', '1 day');
SELECT coord.once_per('daily', '1 day');
-- Whatever each asks for: it is the time since the last one that counts.
SELECT at(clock() + interval '1 h');
SELECT coord.once_per('daily', '2 h');
SELECT coord.once_per('daily', '1 h');
SELECT coord.once_per('daily', '1 h');
-- Long after.
SELECT at(clock() + interval '10 days');
SELECT coord.once_per('daily', '1 day');
-- Each name by itself, and none of leases, locks or semaphores.
SELECT coord.once_per('weekly', '7 days');
SELECT coord.once_per('lease', '1 s');
SELECT coord.once_per('e', '1 s');
SELECT coord.lock('daily') > 0;
-- Rolled back, it was nobody.
SELECT at(clock() + interval '1 day');
BEGIN;
SELECT coord.once_per('daily', '1 day');
SELECT coord.once_per('daily', '1 day');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT coord.once_per('daily', '1 day');
ROLLBACK TO s;
SELECT coord.once_per('daily', '1 day');
COMMIT;
SELECT coord.once_per('daily', '1 day');
-- A clock that was set back by more than a period does not stop it for that long.
SELECT at(clock() - interval '12 h');
SELECT coord.once_per('daily', '1 day');
SELECT at(clock() - interval '3 days');
SELECT coord.once_per('daily', '1 day');
SELECT coord.once_per('daily', '1 day');
-- Errors.
SELECT try('SELECT coord.once_per(''daily'', ''0'')');
SELECT try('SELECT coord.once_per(''daily'', ''-1 s'')');
SELECT try('SELECT coord.once_per(''daily'', NULL)');
SELECT try('SELECT coord.once_per(NULL, ''1 s'')');
BEGIN READ ONLY;
SELECT try('SELECT coord.once_per(''daily'', ''1 s'')');
COMMIT;

\set include :abs_srcdir/include/lock_end.psql
\i :include
