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
CREATE FUNCTION coord_internal.engine_state() RETURNS text
  AS 'MODULE_PATHNAME', 'coord_internal_engine_state' LANGUAGE C;
CREATE FUNCTION coord_internal.state_changed() RETURNS void
  AS 'MODULE_PATHNAME', 'coord_internal_state_changed' LANGUAGE C;

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
  granted_at timestamptz NOT NULL,
  PRIMARY KEY (kind, name, role)
);

SELECT pg_catalog.pg_extension_config_dump('coord_internal.identity', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.engine_pause', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.principal', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.use_grant', '');

CREATE FUNCTION coord.state_machine(name text,
    OUT from_state text, OUT event text, OUT to_state text, OUT why text)
  RETURNS SETOF record
  AS 'MODULE_PATHNAME', 'coord_state_machine' LANGUAGE C STABLE;

COMMENT ON FUNCTION coord.state_machine(text) IS
'The legal transitions of a state machine: state, event, next state, reason.
name: saga or step. Errors: 42704 unknown machine, 22004 null.
Example: SELECT * FROM coord.state_machine(''saga'');';
