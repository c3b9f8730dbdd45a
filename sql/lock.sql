-- ---------------------------------------------------------------------------
-- Locks and leases.
-- ---------------------------------------------------------------------------

-- Tokens up to here may have been given out by an earlier run of the server whose
-- clock was behind; see src/lock/lock_token.c.
CREATE SEQUENCE coord_internal.token_floor MAXVALUE 9007199254740991;

-- One row for each lease, for each owner of a semaphore's permits.  A renewal
-- writes nothing: the deadline is in shared memory.
CREATE TABLE coord_internal.lease (
  name text NOT NULL,
  holder text NOT NULL,                         -- '' for what only one can have, else the owner
  kind text NOT NULL CONSTRAINT lease_kind CHECK (kind IN ('lease', 'leader', 'semaphore')),
  owner text NOT NULL,
  role oid NOT NULL,
  token bigint NOT NULL,
  permits integer NOT NULL,
  ttl_us bigint NOT NULL,
  granted_at timestamptz NOT NULL,
  PRIMARY KEY (name, holder)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);

CREATE TABLE coord_internal.semaphore (
  name text PRIMARY KEY,
  capacity integer NOT NULL CONSTRAINT semaphore_capacity CHECK (capacity > 0),
  role oid NOT NULL
);

-- When somebody was the first of a period.
CREATE TABLE coord_internal.once (
  name text PRIMARY KEY,
  at timestamptz NOT NULL,
  role oid NOT NULL
) WITH (fillfactor = 50);

-- What operators did to leases.
CREATE TABLE coord_internal.lease_log (
  at timestamptz NOT NULL,
  name text NOT NULL,
  owner text NOT NULL,
  token bigint NOT NULL,
  event text NOT NULL CONSTRAINT lease_log_event CHECK (event IN ('broken')),
  role oid NOT NULL,
  reason text
);
CREATE INDEX lease_log_at ON coord_internal.lease_log (at);

SELECT pg_catalog.pg_extension_config_dump('coord_internal.token_floor', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.lease', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.semaphore', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.once', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.lease_log', '');

CREATE FUNCTION coord.lock(name text, mode text DEFAULT 'exclusive', scope text DEFAULT 'transaction',
    timeout interval DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_lock' LANGUAGE C;
CREATE FUNCTION coord.try_lock(name text, mode text DEFAULT 'exclusive', scope text DEFAULT 'transaction')
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_try_lock' LANGUAGE C;
CREATE FUNCTION coord.unlock(name text, mode text DEFAULT 'exclusive')
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_unlock' LANGUAGE C;
CREATE FUNCTION coord.lock_many(names text[], mode text DEFAULT 'exclusive', scope text DEFAULT 'transaction',
    timeout interval DEFAULT NULL)
  RETURNS bigint[] AS 'MODULE_PATHNAME', 'coord_lock_many' LANGUAGE C;

CREATE FUNCTION coord.lease_acquire(name text, owner text, ttl interval DEFAULT '30 s',
    timeout interval DEFAULT '0', permits int DEFAULT 1)
  RETURNS TABLE (token bigint, ttl_ms bigint, expires_at timestamptz)
  AS 'MODULE_PATHNAME', 'coord_lease_acquire' LANGUAGE C ROWS 1;
CREATE FUNCTION coord.lease_renew(name text, token bigint, ttl interval DEFAULT NULL)
  RETURNS timestamptz AS 'MODULE_PATHNAME', 'coord_lease_renew' LANGUAGE C;
CREATE FUNCTION coord.lease_release(name text, token bigint)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_lease_release' LANGUAGE C;
CREATE FUNCTION coord.lease_break(name text, reason text DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_lease_break' LANGUAGE C;

CREATE FUNCTION coord.fence_check(name text, token bigint)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_fence_check' LANGUAGE C;
CREATE FUNCTION coord.fence_guard(tbl regclass, name text, key_column name DEFAULT NULL)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_fence_guard' LANGUAGE C;
CREATE FUNCTION coord.fence_unguard(tbl regclass)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_fence_unguard' LANGUAGE C;
CREATE FUNCTION coord.fence_advance(min_token bigint)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_fence_advance' LANGUAGE C;
CREATE FUNCTION coord_internal.fence_guard()
  RETURNS trigger AS 'MODULE_PATHNAME', 'coord_internal_fence_guard' LANGUAGE C;

CREATE FUNCTION coord.semaphore_create(name text, capacity int)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_semaphore_create' LANGUAGE C;
CREATE FUNCTION coord.semaphore_resize(name text, capacity int)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_semaphore_resize' LANGUAGE C;
CREATE FUNCTION coord.semaphore_drop(name text)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_semaphore_drop' LANGUAGE C;
CREATE FUNCTION coord.leader_campaign(name text, owner text, ttl interval DEFAULT '15 s')
  RETURNS TABLE (is_leader boolean, leader text, token bigint, ttl_ms bigint)
  AS 'MODULE_PATHNAME', 'coord_leader_campaign' LANGUAGE C ROWS 1;
CREATE FUNCTION coord.leader_resign(name text, owner text)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_leader_resign' LANGUAGE C;
CREATE FUNCTION coord.once_per(name text, period interval)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_once_per' LANGUAGE C;

-- What the sessions of this database hold and wait for by name, as far as they
-- have said it in shared memory.
CREATE FUNCTION coord_internal.held_locks(OUT pid int, OUT classid oid, OUT objid oid, OUT objsubid int2,
    OUT pg_mode text, OUT name text, OUT mode text, OUT scope text, OUT role oid, OUT token bigint,
    OUT since timestamptz, OUT waiting boolean)
  RETURNS SETOF record AS 'MODULE_PATHNAME', 'coord_internal_held_locks' LANGUAGE C;
CREATE FUNCTION coord_internal.lease_states(OUT name text, OUT owner text, OUT role oid, OUT token bigint,
    OUT granted_at timestamptz, OUT expires_at timestamptz, OUT ttl interval, OUT permits int, OUT capacity int,
    OUT leader boolean, OUT live boolean)
  RETURNS SETOF record AS 'MODULE_PATHNAME', 'coord_internal_lease_states' LANGUAGE C;

-- The lock manager's own rows of coord's classes in this database; see src/lock/lock_key.h.
CREATE VIEW coord_internal.lock_row WITH (security_barrier) AS
  SELECT l.pid, l.classid, l.objid, l.objsubid, l.mode, l.granted, l.waitstart,
         CASE l.objsubid >> 8 WHEN 77 THEN 'lock' WHEN 78 THEN 'fence' WHEN 79 THEN 'gate' ELSE 'session' END AS space
  FROM pg_locks l
  WHERE l.locktype = 'advisory' AND l.objsubid >> 8 IN (77, 78, 79, 80)
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database());

CREATE VIEW coord.locks WITH (security_barrier) AS
  SELECT h.name,
         CASE l.mode WHEN 'ExclusiveLock' THEN 'exclusive' WHEN 'ShareLock' THEN 'share'
           WHEN 'ShareRowExclusiveLock' THEN 'share_intent_exclusive'
           WHEN 'RowExclusiveLock' THEN 'intent_exclusive' ELSE 'intent_share' END AS mode,
         -- what a session still says it holds after it has released all is the transaction's
         CASE WHEN h.scope = 'session' AND NOT EXISTS
                (SELECT FROM coord_internal.lock_row m WHERE m.space = 'session' AND m.pid = l.pid)
           THEN 'transaction' ELSE h.scope END AS scope, l.pid, coord_internal.role_name(h.role) AS owner, h.token, h.since AS granted_at,
         (SELECT count(*) FROM coord_internal.lock_row w
          WHERE (w.classid, w.objid, w.objsubid) = (l.classid, l.objid, l.objsubid) AND NOT w.granted)::int AS waiters
  FROM coord_internal.lock_row l
  LEFT JOIN coord_internal.held_locks() h
    ON (h.pid, h.classid, h.objid, h.objsubid, h.pg_mode) = (l.pid, l.classid, l.objid, l.objsubid, l.mode)
       AND NOT h.waiting
  WHERE l.space = 'lock' AND l.granted
    AND ((SELECT coord_internal.sees_all()) OR coord_internal.is_mine(h.role));

CREATE VIEW coord.lock_waiters WITH (security_barrier) AS
  SELECT w.name, w.position, w.pid, coord_internal.role_name(w.role) AS owner, w.mode,
         w.since AS waiting_since, pg_blocking_pids(w.pid) AS blocked_by
  FROM (SELECT h.name, h.pid, h.role, h.mode, h.since,
               row_number() OVER (PARTITION BY h.name, h.mode = 'lease'
                 ORDER BY l.waitstart NULLS FIRST, h.since)::int AS position
        FROM coord_internal.held_locks() h
        LEFT JOIN coord_internal.lock_row l
          ON (l.pid, l.classid, l.objid, l.objsubid) = (h.pid, h.classid, h.objid, h.objsubid) AND NOT l.granted
        WHERE h.waiting) AS w
  WHERE (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(w.role);

CREATE VIEW coord.leases WITH (security_barrier) AS
  SELECT s.name, s.owner, s.token, s.granted_at, s.expires_at, s.ttl, s.permits, s.capacity,
         (SELECT count(*) FROM coord_internal.held_locks() h
          WHERE h.waiting AND h.mode = 'lease' AND h.name = s.name)::int AS waiters
  FROM coord_internal.lease_states() s
  WHERE s.live AND ((SELECT coord_internal.sees_all()) OR coord_internal.is_mine(s.role));

CREATE VIEW coord.leaders WITH (security_barrier) AS
  SELECT s.name, s.owner AS leader, s.token, s.granted_at AS elected_at, s.expires_at, s.ttl
  FROM coord_internal.lease_states() s
  WHERE s.live AND s.leader AND ((SELECT coord_internal.sees_all()) OR coord_internal.is_mine(s.role));

CREATE VIEW coord.lease_log WITH (security_barrier) AS
  SELECT g.at, g.name, g.owner, g.token, g.event, coord_internal.role_name(g.role) AS role, g.reason
  FROM coord_internal.lease_log g
  WHERE (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(g.role);
