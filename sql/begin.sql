\echo Use "CREATE EXTENSION coord" to load this file. \quit

-- Two schemas: coord is the interface, coord_internal is not.
CREATE SCHEMA coord;
CREATE SCHEMA coord_internal;
REVOKE ALL ON SCHEMA coord, coord_internal FROM PUBLIC;

-- Roles are the cluster's, so they may be there already.  coord_worker is what
-- background workers log in as: it must not be able to do anything.
DO $$
DECLARE
  r name;
BEGIN
  FOREACH r IN ARRAY ARRAY['coord_reader', 'coord_user', 'coord_admin'] LOOP
    IF pg_catalog.to_regrole(r) IS NULL THEN
      EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', r);
    END IF;
  END LOOP;
  IF pg_catalog.to_regrole('coord_worker') IS NULL THEN
    -- 15 and 16 let a background worker in only as a role that can log in; it
    -- has no password.
    EXECUTE 'CREATE ROLE coord_worker '
      || CASE WHEN pg_catalog.current_setting('server_version_num')::int < 170000
              THEN 'LOGIN' ELSE 'NOLOGIN' END;
  ELSIF EXISTS (SELECT FROM pg_catalog.pg_roles
                WHERE rolname = 'coord_worker'
                  AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls))
     OR EXISTS (SELECT FROM pg_catalog.pg_auth_members
                WHERE member = 'coord_worker'::pg_catalog.regrole) THEN
    RAISE EXCEPTION USING
      ERRCODE = 'object_not_in_prerequisite_state',
      MESSAGE = 'role "coord_worker" exists and has privileges',
      DETAIL = 'Background workers log in as coord_worker, which must be powerless.',
      HINT = 'Revoke its attributes and memberships, or drop it.';
  END IF;
  GRANT coord_reader TO coord_user;
  GRANT coord_user TO coord_admin;
  EXECUTE pg_catalog.format('GRANT CONNECT ON DATABASE %I TO coord_worker',
                            pg_catalog.current_database());
END
$$;

GRANT USAGE ON SCHEMA coord TO coord_reader, pg_monitor;
