-- ---------------------------------------------------------------------------
-- The event log: what was published, and streams.
-- ---------------------------------------------------------------------------

-- Both share it.  CACHE 1: src/event/event_shared.c relies on the order.
CREATE SEQUENCE coord_internal.event_position MAXVALUE 9007199254740991 CACHE 1;

CREATE TYPE coord.event AS (
  pos bigint,
  stream text,
  version bigint,
  type text,
  key text,
  data jsonb,
  metadata jsonb,
  event_id uuid,
  coordination_id text,
  step_id text,
  correlation_id uuid,
  causation_id uuid,
  published_at timestamptz
);

-- Published events; partitions by position are made when they are needed.
CREATE TABLE coord_internal.event_log (
  pos bigint NOT NULL,
  published_at timestamptz NOT NULL,
  owner oid NOT NULL,
  type text NOT NULL,
  key text,
  data jsonb NOT NULL,
  metadata jsonb,
  event_id uuid NOT NULL,
  correlation_id uuid,
  causation_id uuid
) PARTITION BY RANGE (pos);

CREATE TABLE coord_internal.stream (
  stream text PRIMARY KEY,
  owner oid NOT NULL,
  created_at timestamptz NOT NULL,
  truncated_before bigint NOT NULL DEFAULT 1,
  tombstoned_at timestamptz,
  tombstoned_by oid,
  reason text
);

CREATE TABLE coord_internal.stream_event (
  pos bigint NOT NULL,
  version bigint NOT NULL,
  published_at timestamptz NOT NULL,
  stream text NOT NULL,
  type text NOT NULL,
  data jsonb NOT NULL,
  metadata jsonb,
  event_id uuid,
  coordination_id text,
  step_id text,
  correlation_id uuid,
  causation_id uuid,
  PRIMARY KEY (stream, version)
);
CREATE UNIQUE INDEX stream_event_pos ON coord_internal.stream_event (pos);
CREATE UNIQUE INDEX stream_event_id ON coord_internal.stream_event (stream, event_id) WHERE event_id IS NOT NULL;
CREATE INDEX stream_event_coordination ON coord_internal.stream_event (coordination_id, pos) WHERE coordination_id IS NOT NULL;

-- What can be told again from the events, as long as these are there: after a truncation
-- it is all there is of them.
CREATE TABLE coord_internal.stream_snapshot (
  stream text NOT NULL,
  reducer bigint NOT NULL,
  version bigint NOT NULL,
  pos bigint NOT NULL,
  state jsonb NOT NULL,
  taken_at timestamptz NOT NULL,
  PRIMARY KEY (stream, reducer, version)
);

SELECT pg_catalog.pg_extension_config_dump('coord_internal.stream_snapshot', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.event_position', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.event_log', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.stream', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.stream_event', '');

CREATE FUNCTION coord_internal.publishers(OUT pid int, OUT pos bigint, OUT since timestamptz)
  RETURNS SETOF record AS 'MODULE_PATHNAME', 'coord_internal_publishers' LANGUAGE C;

CREATE FUNCTION coord.publish(type text, data jsonb DEFAULT '{}', key text DEFAULT NULL, correlation_id uuid DEFAULT NULL,
    metadata jsonb DEFAULT NULL, event_id uuid DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_publish' LANGUAGE C;
CREATE FUNCTION coord.publish_many(type text, data jsonb[], keys text[] DEFAULT NULL, correlation_id uuid DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_publish_many' LANGUAGE C;
CREATE FUNCTION coord.last_position() RETURNS bigint AS 'MODULE_PATHNAME', 'coord_last_position' LANGUAGE C;

CREATE FUNCTION coord.append(stream text, type text, data jsonb, expected_version bigint DEFAULT NULL,
    metadata jsonb DEFAULT NULL, event_id uuid DEFAULT NULL, correlation_id uuid DEFAULT NULL,
    coordination_id text DEFAULT NULL, step_id text DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_append' LANGUAGE C;
CREATE FUNCTION coord.append_many(stream text, events jsonb, expected_version bigint DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_append_many' LANGUAGE C;
CREATE FUNCTION coord.coordinate(coordination_id text, events jsonb)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_coordinate' LANGUAGE C;
CREATE FUNCTION coord.coordination_events(coordination_id text)
  RETURNS SETOF coord.event AS 'MODULE_PATHNAME', 'coord_coordination_events' LANGUAGE C;
CREATE FUNCTION coord.stream_read(stream text, from_version bigint DEFAULT 1, max_events int DEFAULT NULL,
    backward boolean DEFAULT false)
  RETURNS SETOF coord.event AS 'MODULE_PATHNAME', 'coord_stream_read' LANGUAGE C;
CREATE FUNCTION coord.stream_version(stream text)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_stream_version' LANGUAGE C;
CREATE FUNCTION coord.stream_load(stream text, reducer text, initial jsonb DEFAULT '{}', at_version bigint DEFAULT NULL)
  RETURNS TABLE (state jsonb, version bigint, pos bigint) AS 'MODULE_PATHNAME', 'coord_stream_load' LANGUAGE C;
CREATE FUNCTION coord.stream_snapshot(stream text, reducer text, initial jsonb DEFAULT '{}')
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_stream_snapshot' LANGUAGE C;
CREATE FUNCTION coord.stream_truncate(stream text, before_version bigint)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_stream_truncate' LANGUAGE C;
CREATE FUNCTION coord.stream_tombstone(stream text, reason text DEFAULT NULL)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_stream_tombstone' LANGUAGE C;
CREATE FUNCTION coord.log_read(after_position bigint DEFAULT 0, max_events int DEFAULT 1000, types text[] DEFAULT NULL)
  RETURNS SETOF coord.event AS 'MODULE_PATHNAME', 'coord_log_read' LANGUAGE C;

CREATE FUNCTION coord_internal.may_use_stream(name text, owner oid)
  RETURNS boolean AS 'MODULE_PATHNAME', 'coord_internal_may_use_stream' LANGUAGE C STABLE;

-- What is published is for everybody who may use coord; a stream for its owner's
-- members, and for those who were granted its use.
CREATE VIEW coord.events WITH (security_barrier) AS
  SELECT e.pos, NULL::text AS stream, NULL::bigint AS version, e.type, e.key, e.data, e.metadata, e.event_id,
         NULL::text AS coordination_id, NULL::text AS step_id, e.correlation_id, e.causation_id, e.published_at,
         coord_internal.role_name(e.owner) AS owner
  FROM coord_internal.event_log e
  UNION ALL
  SELECT v.pos, v.stream, v.version, v.type, NULL, v.data, v.metadata, v.event_id, v.coordination_id, v.step_id,
         v.correlation_id, v.causation_id, v.published_at, coord_internal.role_name(s.owner)
  FROM coord_internal.stream_event v JOIN coord_internal.stream s ON s.stream = v.stream
  WHERE coord_internal.may_use_stream(s.stream, s.owner);

CREATE VIEW coord.streams WITH (security_barrier) AS
  SELECT s.stream, coord_internal.role_name(s.owner) AS owner, s.created_at,
         (SELECT max(v.version) FROM coord_internal.stream_event v WHERE v.stream = s.stream) AS version,
         s.truncated_before, s.tombstoned_at, s.reason
  FROM coord_internal.stream s
  WHERE coord_internal.may_use_stream(s.stream, s.owner);

-- Who keeps consumers from reading on.
CREATE VIEW coord.horizon_holders WITH (security_barrier) AS
  SELECT p.pid, NULL::text AS gid, p.pos AS position, p.since
  FROM coord_internal.publishers() p
  UNION ALL
  SELECT NULL, x.gid, (l.classid::bigint << 32) | l.objid::bigint, x.prepared
  FROM pg_locks l
  JOIN pg_locks t ON t.virtualtransaction = l.virtualtransaction AND t.pid IS NULL AND t.locktype = 'transactionid'
  JOIN pg_prepared_xacts x ON x.transaction = t.transactionid
  WHERE l.locktype = 'advisory' AND l.objsubid = 20736 AND l.pid IS NULL
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
