-- ---------------------------------------------------------------------------
-- What all capabilities stand on: identity, engine state, principals, grants.
-- ---------------------------------------------------------------------------

-- Its name is the version that the library looks for.
CREATE FUNCTION coord_internal.version_1_0() RETURNS void
  LANGUAGE sql IMMUTABLE AS $$ $$;

CREATE FUNCTION coord_internal.system_identifier() RETURNS bigint
  AS 'MODULE_PATHNAME', 'coord_internal_system_identifier' LANGUAGE C;
CREATE FUNCTION coord_internal.now() RETURNS timestamptz
  AS 'MODULE_PATHNAME', 'coord_internal_now' LANGUAGE C;
CREATE FUNCTION coord_internal.sees_all() RETURNS boolean
  AS 'MODULE_PATHNAME', 'coord_internal_sees_all' LANGUAGE C STABLE;
CREATE FUNCTION coord_internal.is_mine(role oid) RETURNS boolean
  AS 'MODULE_PATHNAME', 'coord_internal_is_mine' LANGUAGE C STABLE;
CREATE FUNCTION coord_internal.engine_state() RETURNS text
  AS 'MODULE_PATHNAME', 'coord_internal_engine_state' LANGUAGE C;
CREATE FUNCTION coord_internal.state_changed() RETURNS trigger
  AS 'MODULE_PATHNAME', 'coord_internal_state_changed' LANGUAGE C;
CREATE FUNCTION coord_internal.home() RETURNS bigint
  AS 'MODULE_PATHNAME', 'coord_internal_home' LANGUAGE C;

-- Which database this is; more than one row, or another's: it is a copy.
CREATE TABLE coord_internal.identity (
  system_identifier bigint NOT NULL,
  database oid NOT NULL
);
INSERT INTO coord_internal.identity
  SELECT coord_internal.system_identifier(), oid
  FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database();

-- A row while coord.pause() holds.
CREATE TABLE coord_internal.engine_pause (
  paused_at timestamptz NOT NULL,
  paused_by name NOT NULL,
  reason text
);

-- COPY of a restore into either is noticed by a worker that is there already.
CREATE TRIGGER state_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON coord_internal.identity
  FOR EACH STATEMENT EXECUTE FUNCTION coord_internal.state_changed();
CREATE TRIGGER state_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON coord_internal.engine_pause
  FOR EACH STATEMENT EXECUTE FUNCTION coord_internal.state_changed();

-- The launcher and this database's workers, from shared memory.
CREATE FUNCTION coord_internal.workers(OUT pid int, OUT backend_type text, OUT state text,
    OUT started_at timestamptz, OUT saga_id bigint, OUT definition bigint, OUT ordinal int,
    OUT phase text, OUT owner oid, OUT since timestamptz)
  RETURNS SETOF record AS 'MODULE_PATHNAME', 'coord_internal_workers' LANGUAGE C;

-- The name of each role that owns work, for copies where oids differ.
CREATE TABLE coord_internal.principal (
  role oid PRIMARY KEY,
  name name NOT NULL
);

-- coord.grant_use()
CREATE TABLE coord_internal.use_grant (
  kind text NOT NULL CONSTRAINT use_grant_kind CHECK
    (kind IN ('saga', 'queue', 'subscription', 'lock', 'stream')),
  name text NOT NULL,
  role oid NOT NULL,
  granted_by oid NOT NULL,
  granted_at timestamptz NOT NULL
);
-- Not unique: coord.resume() renumbers roles in a copy, row by row.
CREATE INDEX use_grant_name ON coord_internal.use_grant (kind, name, role);

SELECT pg_catalog.pg_extension_config_dump('coord_internal.identity', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.engine_pause', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.principal', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.use_grant', '');

CREATE FUNCTION coord.state_machine(name text,
    OUT from_state text, OUT event text, OUT to_state text, OUT why text)
  RETURNS SETOF record
  AS 'MODULE_PATHNAME', 'coord_state_machine' LANGUAGE C STABLE;
