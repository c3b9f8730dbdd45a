-- ---------------------------------------------------------------------------
-- Subscriptions: who handles which events, and how far.
-- ---------------------------------------------------------------------------

CREATE SEQUENCE coord_internal.subscription_id;
CREATE TABLE coord_internal.subscription (
  id bigint PRIMARY KEY,
  name text NOT NULL UNIQUE,
  owner oid NOT NULL,
  created_at timestamptz NOT NULL,
  search_path text NOT NULL,
  types text[] NOT NULL,
  streams text[],
  handler text,
  takes_event boolean NOT NULL,
  emits text,
  filter jsonpath,
  batch boolean NOT NULL,
  batch_size int NOT NULL,
  max_attempts int NOT NULL,
  on_error text NOT NULL,
  paused_at timestamptz,
  paused_by oid,
  pause_reason text,
  problem text
);

-- A move of the cursor is a new row, the last one counts: a row that is updated
-- would be read through all its dead versions while somebody keeps a snapshot.
CREATE TABLE coord_internal.subscription_cursor (
  subscription bigint NOT NULL,
  move bigint NOT NULL,
  position bigint NOT NULL,
  moved_at timestamptz NOT NULL,
  PRIMARY KEY (subscription, move)
);

-- Events behind the cursor that are not done: failed, waiting behind one that has
-- failed, parked, or given back by a consumer.  due_at: to be tried then; null and not
-- parked: waits behind one of the same key.
CREATE TABLE coord_internal.subscription_event (
  subscription bigint NOT NULL,
  pos bigint NOT NULL,
  key text,
  event coord.event NOT NULL,
  attempts int NOT NULL DEFAULT 0,
  due_at timestamptz,
  parked_at timestamptz,
  token bigint,
  failed_at timestamptz,
  sqlstate text,
  error text,
  PRIMARY KEY (subscription, pos)
);
CREATE INDEX subscription_event_due ON coord_internal.subscription_event (subscription, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX subscription_event_key ON coord_internal.subscription_event (subscription, key, pos) WHERE key IS NOT NULL;

-- What a consumer outside has in hand: what was read after one position up to
-- another, but for what was put aside then.
CREATE SEQUENCE coord_internal.subscription_token;
CREATE TABLE coord_internal.subscription_delivery (
  subscription bigint NOT NULL,
  token bigint NOT NULL,
  after_pos bigint NOT NULL,
  upto_pos bigint NOT NULL,
  aside bigint[],
  lease_until timestamptz NOT NULL,
  PRIMARY KEY (subscription, token)
);

-- Subscriptions of the same name that keep tables in step, and what empties these.
CREATE TABLE coord_internal.projection (name text PRIMARY KEY, reset text);

SELECT pg_catalog.pg_extension_config_dump('coord_internal.projection', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.subscription', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.subscription_id', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.subscription_cursor', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.subscription_event', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.subscription_token', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.subscription_delivery', '');

CREATE FUNCTION coord_internal.event_head() RETURNS bigint
  AS 'MODULE_PATHNAME', 'coord_internal_event_head' LANGUAGE C;

CREATE FUNCTION coord.subscribe(name text, types text[] DEFAULT '{*}', handler text DEFAULT NULL, emits text DEFAULT NULL,
    streams text[] DEFAULT NULL, start_from text DEFAULT 'now', from_position bigint DEFAULT NULL,
    filter jsonpath DEFAULT NULL, mode text DEFAULT 'each', batch_size int DEFAULT 500, parallel int DEFAULT 1,
    max_attempts int DEFAULT 10, on_error text DEFAULT 'park_key', server name DEFAULT NULL)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_subscribe' LANGUAGE C;
CREATE FUNCTION coord.unsubscribe(name text)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_unsubscribe' LANGUAGE C;
CREATE FUNCTION coord.subscription_pause(name text, reason text DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_subscription_pause' LANGUAGE C;
CREATE FUNCTION coord.subscription_resume(name text, reason text DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_subscription_resume' LANGUAGE C;
CREATE FUNCTION coord.subscription_seek(name text, to_position bigint DEFAULT NULL, to_time timestamptz DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_subscription_seek' LANGUAGE C;
CREATE FUNCTION coord.parked_replay(name text, key text DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_parked_replay' LANGUAGE C;
CREATE FUNCTION coord.parked_drop(name text, pos bigint, reason text DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_parked_drop' LANGUAGE C;

CREATE FUNCTION coord.subscription_poll(name text, max_events int DEFAULT 100, lease interval DEFAULT '30 s',
    timeout interval DEFAULT '0')
  RETURNS TABLE (token bigint, pos bigint, type text, key text, data jsonb, metadata jsonb, stream text, version bigint,
                 event_id uuid, correlation_id uuid, causation_id uuid, published_at timestamptz, attempt int)
  AS 'MODULE_PATHNAME', 'coord_subscription_poll' LANGUAGE C;
CREATE FUNCTION coord.subscription_ack(name text, token bigint, upto bigint DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_subscription_ack' LANGUAGE C;
CREATE FUNCTION coord.subscription_nack(name text, token bigint, positions bigint[] DEFAULT NULL,
    retry_in interval DEFAULT '0')
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_subscription_nack' LANGUAGE C;
CREATE FUNCTION coord.subscription_extend(name text, token bigint, lease interval DEFAULT '30 s')
  RETURNS timestamptz AS 'MODULE_PATHNAME', 'coord_subscription_extend' LANGUAGE C;

CREATE FUNCTION coord.projection_define(name text, types text[], handler text, reset text DEFAULT NULL)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_projection_define' LANGUAGE C;
CREATE FUNCTION coord.projection_rebuild(name text)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_projection_rebuild' LANGUAGE C;
CREATE FUNCTION coord.projection_wait(name text, "position" bigint, timeout interval DEFAULT '10 s')
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_projection_wait' LANGUAGE C;

CREATE VIEW coord.subscriptions WITH (security_barrier) AS
  SELECT s.name, coord_internal.role_name(s.owner) AS owner,
         CASE WHEN s.paused_at IS NOT NULL THEN 'paused'
              WHEN s.problem IS NOT NULL THEN 'blocked'
              WHEN s.on_error = 'stop' AND q.parked > 0 THEN 'stopped'
              ELSE 'active' END AS state,
         c.position, h.head, CASE WHEN h.head > c.position THEN h.head - c.position WHEN h.head IS NOT NULL THEN 0 END AS lag_events,
         CASE WHEN h.head > c.position THEN coord_internal.now() - l.at WHEN h.head IS NOT NULL THEN interval '0' END AS lag_time,
         coalesce(s.problem, e.error) AS last_error, q.parked, q.waiting, d.leased, s.handler, s.types, s.streams, s.emits, s.paused_at,
         s.pause_reason, c.moved_at, s.created_at
  FROM coord_internal.subscription s
  CROSS JOIN LATERAL (SELECT k.position, k.moved_at FROM coord_internal.subscription_cursor k
    WHERE k.subscription = s.id ORDER BY k.move DESC LIMIT 1) c
  CROSS JOIN (SELECT coord_internal.event_head() AS head) h
  LEFT JOIN LATERAL (SELECT g.published_at AS at FROM coord_internal.event_log g WHERE g.pos > c.position
    ORDER BY g.pos LIMIT 1) l ON true
  LEFT JOIN LATERAL (SELECT i.error FROM coord_internal.subscription_event i WHERE i.subscription = s.id AND i.error IS NOT NULL
    ORDER BY i.failed_at DESC LIMIT 1) e ON true
  CROSS JOIN LATERAL (SELECT count(i.parked_at) AS parked, count(*) - count(i.parked_at) AS waiting
    FROM coord_internal.subscription_event i WHERE i.subscription = s.id) q
  CROSS JOIN LATERAL (SELECT count(*) AS leased FROM coord_internal.subscription_delivery d WHERE d.subscription = s.id) d
  WHERE ((SELECT coord_internal.sees_all()) OR coord_internal.is_mine(s.owner));

-- What was given up, and what waits behind it.
CREATE VIEW coord.parked WITH (security_barrier) AS
  SELECT s.name, i.pos, i.key, (i.event).type, i.attempts, i.parked_at, i.failed_at, i.sqlstate, i.error, i.event,
         (SELECT count(*) FROM coord_internal.subscription_event w
          WHERE w.subscription = i.subscription AND w.key = i.key AND w.pos > i.pos) AS waiting
  FROM coord_internal.subscription_event i JOIN coord_internal.subscription s ON s.id = i.subscription
  WHERE i.parked_at IS NOT NULL AND ((SELECT coord_internal.sees_all()) OR coord_internal.is_mine(s.owner));

CREATE VIEW coord.projections WITH (security_barrier) AS
  SELECT s.name, s.owner, s.state, s.position, s.head, s.lag_events, s.lag_time, s.last_error, s.handler, p.reset, s.types
  FROM coord_internal.projection p JOIN coord.subscriptions s ON s.name = p.name;
