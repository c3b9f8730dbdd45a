-- What CREATE EXTENSION makes: objects, settings, roles, privileges, state machines.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS coord;
RESET client_min_messages;
\pset format unaligned
\pset tuples_only on
\pset null '(null)'

-- Its objects, as far as they are no mere types of tables.
SELECT pg_describe_object(classid, objid, 0) FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'coord') AND deptype = 'e' AND classid <> 'pg_type'::regclass
ORDER BY pg_describe_object(classid, objid, 0) COLLATE "C";
-- The interface, with the names of arguments and their defaults.
SELECT format('%s%s(%s)%s', CASE prokind WHEN 'p' THEN 'procedure ' END, oid::regproc, pg_get_function_arguments(oid), ' -> ' || pg_get_function_result(oid))
FROM pg_proc WHERE pronamespace = 'coord'::regnamespace ORDER BY proname COLLATE "C", pronargs;
-- No function is STRICT, SECURITY DEFINER, or relies on the caller's search_path.
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'coord'::regnamespace AND (proisstrict OR prosecdef);
SELECT oid::regprocedure FROM pg_proc p WHERE pronamespace IN ('coord'::regnamespace, 'coord_internal'::regnamespace)
  AND prolang = (SELECT oid FROM pg_language WHERE lanname IN ('plpgsql')) AND proconfig IS NULL;
SELECT oid::regprocedure FROM pg_proc p WHERE pronamespace IN ('coord'::regnamespace, 'coord_internal'::regnamespace)
  AND prolang = (SELECT oid FROM pg_language WHERE lanname = 'sql') AND prosqlbody IS NULL AND btrim(prosrc) <> '';

-- The control file's promises.
SELECT extversion, extrelocatable, extnamespace::regnamespace FROM pg_extension WHERE extname = 'coord';

-- Every table with data, and every sequence, is dumped; parents first; and no column is of a kind that pg_upgrade refuses.
-- (Partitions are made at run time and are nobody's members: they are dumped like any table.)
-- (Participants, and what is in doubt there, go by oids of user mappings: in a restored database they would mean nothing.)
SELECT c.relname FROM pg_class c WHERE relnamespace = 'coord_internal'::regnamespace AND relkind IN ('r', 'S') AND NOT relispartition
  AND EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
  AND c.oid <> ALL (SELECT unnest(extconfig) FROM pg_extension WHERE extname = 'coord');
SELECT n, relname, relkind FROM pg_extension CROSS JOIN unnest(extconfig) WITH ORDINALITY AS u (rel, n) JOIN pg_class c ON c.oid = rel WHERE extname = 'coord' ORDER BY n;
SELECT attrelid::regclass, attname, atttypid::regtype FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid WHERE relnamespace IN ('coord'::regnamespace, 'coord_internal'::regnamespace)
  AND atttypid::regtype::text ~ '^reg' AND atttypid NOT IN ('regclass'::regtype, 'regrole'::regtype, 'regtype'::regtype) AND attnum > 0;
-- Partitioned tables have no key of their own; there is no policy, no enum.
SELECT c.oid::regclass FROM pg_class c JOIN pg_index i ON indrelid = c.oid WHERE relnamespace = 'coord_internal'::regnamespace AND relkind = 'p';
SELECT polname FROM pg_policy JOIN pg_class c ON c.oid = polrelid WHERE relnamespace IN ('coord'::regnamespace, 'coord_internal'::regnamespace);
SELECT typname FROM pg_type WHERE typtype = 'e' AND typnamespace IN ('coord'::regnamespace, 'coord_internal'::regnamespace);
-- Constraints have names that say what they are.
SELECT CASE WHEN contypid <> 0 THEN 'domain ' || contypid::regtype ELSE conrelid::regclass::text END COLLATE "C" AS owner, conname
FROM pg_constraint LEFT JOIN pg_class c ON c.oid = conrelid WHERE connamespace = 'coord_internal'::regnamespace AND contype = 'c' AND relispartition IS NOT TRUE
  ORDER BY owner, conname COLLATE "C";
-- Sequences end where JavaScript's integers do.
SELECT sequencename, max_value FROM pg_sequences WHERE schemaname = 'coord_internal' AND max_value <> 9007199254740991;

-- Settings.
SELECT name, setting, unit, context, vartype, min_val, max_val, boot_val, short_desc FROM pg_settings WHERE name LIKE 'coord.%' AND name NOT LIKE 'coord.debug%' ORDER BY name COLLATE "C";
SHOW coord.test_now;
\set VERBOSITY sqlstate
SET coord.no_such_setting = 1;
SET coord.test_now = 'no time';
SET coord.max_workers = 2;
\set VERBOSITY default
CREATE ROLE regress_base_install;
SET ROLE regress_base_install;
SET coord.test_now = '2030-01-01';
SET coord.correlation_id = '00000000-0000-0000-0000-000000000001';
RESET coord.correlation_id;
RESET ROLE;

-- Roles
SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolpassword IS NOT NULL AS has_password,
  rolcanlogin = (rolname = 'coord_worker' AND current_setting('server_version_num')::int < 170000) AS login_as_it_must
  FROM pg_authid WHERE rolname ~ '^coord_' ORDER BY rolname COLLATE "C";
SELECT format('%s is a member of %s', m.rolname, r.rolname) FROM pg_auth_members JOIN pg_authid m ON m.oid = member JOIN pg_authid r ON r.oid = roleid
  WHERE m.rolname ~ '^coord_' OR r.rolname = 'coord_worker' ORDER BY m.rolname COLLATE "C", r.rolname COLLATE "C";
SELECT has_database_privilege('coord_worker', current_database(), 'CONNECT');

-- PUBLIC may do nothing, here nor in coord_internal.
SELECT n.nspname, has_schema_privilege('regress_base_install', n.oid, 'USAGE'), has_schema_privilege('regress_base_install', n.oid, 'CREATE') FROM pg_namespace n WHERE nspname ~ '^coord' ORDER BY 1;
SELECT p.oid::regprocedure FROM pg_proc p WHERE pronamespace = 'coord'::regnamespace AND has_function_privilege('regress_base_install', p.oid, 'EXECUTE');
SELECT c.oid::regclass FROM pg_class c WHERE relnamespace IN ('coord'::regnamespace, 'coord_internal'::regnamespace) AND relkind IN ('r', 'v', 'p', 'm')
  AND has_table_privilege('regress_base_install', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER');
SELECT c.oid::regclass FROM pg_class c WHERE relnamespace IN ('coord'::regnamespace, 'coord_internal'::regnamespace) AND CASE relkind WHEN 'S' THEN has_sequence_privilege('regress_base_install', c.oid, 'USAGE, SELECT, UPDATE') END;
-- coord_worker neither: what escapes lands on nothing.
SELECT n.nspname FROM pg_namespace n WHERE nspname ~ '^coord' AND has_schema_privilege('coord_worker', n.oid, 'USAGE, CREATE');
-- Roles × functions.
SELECT p.oid::regproc || ': ' || string_agg(r, ' ' ORDER BY n) FROM pg_proc p CROSS JOIN unnest('{coord_reader,pg_monitor,coord_user,coord_admin}'::text[]) WITH ORDINALITY AS u (r, n)
  WHERE pronamespace = 'coord'::regnamespace AND has_function_privilege(r, p.oid, 'EXECUTE') GROUP BY p.oid ORDER BY p.oid::regproc::text COLLATE "C";
SELECT c.oid::regclass FROM pg_class c WHERE relnamespace = 'coord'::regnamespace AND relkind = 'v'
  AND NOT (has_table_privilege('coord_reader', c.oid, 'SELECT') AND has_table_privilege('pg_monitor', c.oid, 'SELECT') AND has_table_privilege('coord_user', c.oid, 'SELECT'));
SELECT c.oid::regclass, r FROM pg_class c CROSS JOIN unnest('{coord_reader,pg_monitor,coord_user,coord_admin}'::text[]) AS r WHERE relnamespace IN ('coord'::regnamespace, 'coord_internal'::regnamespace)
  AND relkind IN ('r', 'v', 'p') AND (has_table_privilege(r, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') OR relnamespace = 'coord_internal'::regnamespace AND has_table_privilege(r, c.oid, 'SELECT'));
SELECT r FROM unnest('{coord_reader,pg_monitor,coord_user,coord_admin}'::text[]) AS r WHERE has_schema_privilege(r, 'coord_internal', 'USAGE') OR has_schema_privilege(r, 'coord', 'CREATE');
DROP ROLE regress_base_install;

-- The state machines: every legal transition.
SELECT from_state, event, to_state, why FROM coord.state_machine('saga');
SELECT from_state, event, to_state, why FROM coord.state_machine('step');
\set VERBOSITY sqlstate
SELECT * FROM coord.state_machine(NULL);
\set VERBOSITY default
SELECT * FROM coord.state_machine('nothing');
