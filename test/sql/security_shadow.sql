-- Names and settings of the session that coord is called in mean nothing to
-- coord: hostile operators, functions, types and tables in front of the
-- search_path, formats of dates, event triggers.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS coord;
SET coord.test_now = '2031-05-01 12:00:00+00';
CREATE ROLE sec_mallory;
CREATE ROLE sec_alice;
GRANT coord_user TO sec_mallory, sec_alice;
CREATE SCHEMA home AUTHORIZATION sec_alice;
CREATE SCHEMA trap AUTHORIZATION sec_mallory;
GRANT USAGE ON SCHEMA home, trap TO PUBLIC;

-- Whatever has a name that coord's statements use, springs.
SET ROLE sec_mallory;
CREATE TABLE trap.sprung (what text, who name);
GRANT INSERT, SELECT ON trap.sprung TO PUBLIC;
CREATE FUNCTION trap.spring(what text) RETURNS void LANGUAGE sql AS $$ INSERT INTO trap.sprung VALUES (what, current_user) $$;
DO $$
DECLARE
  t text;
  op text;
BEGIN
  FOREACH t IN ARRAY ARRAY['bigint', 'integer', 'text', 'oid', 'timestamptz', 'jsonb', 'name', 'boolean', 'tid'] LOOP
    FOREACH op IN ARRAY ARRAY['=', '<>', '<', '<=', '>', '>='] LOOP
      EXECUTE format('CREATE FUNCTION trap.op(a %s, b %s) RETURNS boolean LANGUAGE plpgsql AS
        $f$ BEGIN PERFORM trap.spring(%L); RETURN true; END $f$', t, t, t || ' ' || op);
      EXECUTE format('CREATE OPERATOR trap.%s (LEFTARG = %s, RIGHTARG = %s, PROCEDURE = trap.op)', op, t, t);
      EXECUTE format('ALTER FUNCTION trap.op(%s, %s) RENAME TO %I', t, t, 'op ' || op);
    END LOOP;
  END LOOP;
  FOREACH t IN ARRAY ARRAY['||', '->', '->>', '#>>'] LOOP
    EXECUTE format('CREATE FUNCTION trap.%I(a jsonb, b text) RETURNS text LANGUAGE plpgsql AS
      $f$ BEGIN PERFORM trap.spring(%L); RETURN NULL; END $f$', 'op ' || t, t);
    EXECUTE format('CREATE OPERATOR trap.%s (LEFTARG = jsonb, RIGHTARG = text, PROCEDURE = trap.%I)', t, 'op ' || t);
  END LOOP;
END $$;
CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('now'); RETURN '1999-01-01'; END $$;
CREATE FUNCTION trap.max(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('max'); RETURN 99; END $$;
CREATE FUNCTION trap.count(text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('count'); RETURN 0; END $$;
CREATE FUNCTION trap.nextval(text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('nextval'); RETURN 1; END $$;
CREATE FUNCTION trap.pg_has_role(oid, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('pg_has_role'); RETURN true; END $$;
CREATE FUNCTION trap.pg_has_role(oid, oid, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('pg_has_role'); RETURN true; END $$;
CREATE FUNCTION trap.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('unnest'); END $$;
CREATE FUNCTION trap.format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('format'); RETURN ''; END $$;
CREATE FUNCTION trap.jsonb_array_elements(jsonb) RETURNS SETOF jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('jsonb_array_elements'); END $$;
CREATE FUNCTION trap.to_regclass(text) RETURNS regclass LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('to_regclass'); RETURN NULL; END $$;
CREATE FUNCTION trap.pg_get_expr(pg_node_tree, oid) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('pg_get_expr'); RETURN NULL; END $$;
CREATE DOMAIN trap.text AS pg_catalog.text CHECK (trap.spring('text') IS NULL OR true);
CREATE DOMAIN trap.timestamptz AS pg_catalog.timestamptz CHECK (trap.spring('timestamptz') IS NULL OR true);
CREATE VIEW trap.pg_authid AS SELECT 10::oid AS oid, 'nobody'::name AS rolname;
CREATE VIEW trap.pg_class AS SELECT 0::oid AS oid;
CREATE TABLE trap.saga (id bigint);
CREATE FUNCTION trap.work(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring('work'); RETURN '"trapped"'; END $$;
RESET ROLE;

-- Alice, with all that in front of everything, even of pg_catalog.
SET ROLE sec_alice;
CREATE TABLE home.done (what text, who name, path text);
CREATE FUNCTION home.work(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO home.done VALUES (doc OPERATOR(pg_catalog.->>) 'step', current_user, pg_catalog.current_setting('search_path'));
  IF (doc OPERATOR(pg_catalog.#>) '{input,fail}') IS NOT NULL AND doc OPERATOR(pg_catalog.->>) 'step' OPERATOR(pg_catalog.=) 'two' THEN
    RAISE EXCEPTION 'no';
  END IF;
  RETURN '"honest"';
END $$;
-- The traps work: this is what a careless query does.
SET search_path = trap, home, pg_catalog;
SELECT 1 = 2 AS trapped, now() < '2000-01-01' AS when, 'x'::text AS what;
RESET search_path;
RESET ROLE;
SELECT DISTINCT what FROM trap.sprung ORDER BY what;
TRUNCATE trap.sprung;
SET ROLE sec_alice;
SET search_path = home, pg_catalog;
SELECT coord.saga_define('alice', ARRAY[coord.step('one', 'work', 'work'), coord.step('two', 'work', max_attempts => 1)]);
SET search_path = trap, home, pg_catalog;
SELECT coord.saga_start('alice', key => 'a') AS a \gset
SELECT coord.saga_start('alice', key => 'a') AS again \gset
SELECT coord.saga_start('alice', '{"fail": 1}', key => 'b') AS b \gset
SELECT coord.saga_start('alice', key => 'c', start_at => '2031-06-01Z') AS c \gset
CALL coord.run_pending() \g /dev/null
SELECT coord.saga_status(:a);
SELECT coord.saga_status(:b);
SELECT coord.saga_wait(:a, '0');
SELECT coord.saga_find('alice', 'b') OPERATOR(pg_catalog.-) :b;
SELECT coord.saga_output(:a);
SELECT coord.saga_pause(:c);
SELECT coord.saga_resume(:c);
SELECT coord.saga_skip(:c, 'two');
SELECT coord.saga_patch(:c, '{"x": 1}');
SELECT coord.saga_retry(:c);
SELECT coord.saga_cancel(:c);
SELECT status, owner FROM coord.sagas ORDER BY id;
SELECT step, status FROM coord.saga_steps ORDER BY saga_id, ordinal;
SELECT event, role FROM coord.saga_log ORDER BY id;
SELECT name, version, owner FROM coord.saga_definitions;
SELECT kind FROM coord.stuck;
SELECT pg_catalog.length(coord.saga_diagram('alice')) IS NOT NULL AS diagram, pg_catalog.length(coord.saga_picture(:a)) IS NOT NULL AS picture;
SELECT pg_catalog.length(t) IS NOT NULL AS line FROM coord.saga_timeline(:a) t;
SELECT coord.grant_use('saga', 'alice', 'sec_mallory');
SELECT coord.revoke_use('saga', 'alice', 'sec_mallory');
CALL coord.saga_run('alice', key => 'd') \g /dev/null
SELECT coord.saga_define('alice', ARRAY[coord.step('one', 'home.work')]);
SELECT coord.saga_activate('alice', 1);
SELECT coord.saga_drop('alice');
RESET search_path;
RESET ROLE;
SELECT what, who FROM trap.sprung;
-- Her steps ran with the path that was in force when they were defined.
SELECT DISTINCT who, path FROM home.done;

-- An unqualified action is the function that the definer meant, also when the
-- one who starts it has another first in his path or in a temporary schema.
SET ROLE sec_alice;
CREATE FUNCTION home.starts() RETURNS void LANGUAGE sql AS '';
SET search_path = home;
SELECT coord.saga_define('meant', ARRAY[coord.step('one', 'work')]);
RESET search_path;
SELECT definition #>> '{steps,0,action}' AS action, search_path FROM coord.saga_definitions WHERE name = 'meant';
CREATE FUNCTION pg_temp.work(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '"temporary"'::jsonb $$;
CREATE TEMP TABLE done (what text, who name, path text);
SET search_path = pg_temp, trap, home;
SELECT coord.saga_start('meant') AS id \gset
CALL coord.run_pending() \g /dev/null
SELECT coord.saga_output(:id);
RESET search_path;
-- pg_temp is last whatever was asked for, so nothing is found there first.
SET search_path = pg_temp, home, pg_temp;
SELECT coord.saga_define('path', ARRAY[coord.step('one', 'home.work')]);
SET search_path = '';
SELECT coord.saga_define('path', ARRAY[coord.step('one', 'home.work')]);
SET search_path = '"a ""b"', "$user", public;
SELECT coord.saga_define('path', ARRAY[coord.step('one', 'home.work')]);
RESET search_path;
SELECT version, search_path FROM coord.saga_definitions WHERE name = 'path' ORDER BY version;
SELECT coord.saga_start('path', version => 1) AS id \gset
SELECT coord.saga_start('path', version => 2) AS id \gset
SELECT coord.saga_start('path', version => 3) AS id \gset
CALL coord.run_pending() \g /dev/null
SELECT DISTINCT status FROM coord.sagas WHERE name = 'path';
DISCARD TEMP;

-- Formats of dates and places of tables are no business of the caller's.
RESET ROLE;
CREATE FUNCTION pg_temp.partitions() RETURNS TABLE (parent text, bounds text) LANGUAGE sql SET datestyle = 'ISO' SET timezone = 'UTC' AS $$
  SELECT inhparent::regclass::text, pg_get_expr(relpartbound, c.oid)
  FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
  WHERE inhparent IN ('coord_internal.saga_archive'::regclass, 'coord_internal.saga_log'::regclass)
    AND pg_get_expr(relpartbound, c.oid) ~ 'FROM \(''2033'
  ORDER BY 1, 2 $$;
GRANT EXECUTE ON FUNCTION pg_temp.partitions() TO PUBLIC;
SET coord.test_now = '2033-03-05 00:00:00+00';
SET ROLE sec_alice;
SET datestyle = 'SQL, DMY';
SET timezone = '<IST>0';
SET intervalstyle = 'sql_standard';
SET transform_null_equals = on;
SET standard_conforming_strings = off;
SET quote_all_identifiers = on;
SET extra_float_digits = -15;
SET default_table_access_method = heap;
SET default_tablespace = pg_global;
SET enable_indexscan = off;
SELECT coord.saga_start('meant') AS id \gset
CALL coord.run_pending() \g /dev/null
SELECT coord.saga_status(:id);
RESET ALL;
RESET ROLE;
SET client_min_messages = warning;
SET timezone = 'UTC';
SET coord.test_now = '2033-03-05 00:00:00+00';
SELECT * FROM pg_temp.partitions();
-- Another session, another time zone: it finds what was made, and adds to it.
SET coord.test_now = '2033-03-08 12:00:00+00';
SET timezone = 'Asia/Kolkata';
SET ROLE sec_alice;
SELECT coord.saga_start('meant') AS id \gset
CALL coord.run_pending() \g /dev/null
SELECT coord.saga_status(:id);
RESET ROLE;
SET timezone = 'UTC';
SELECT count(*) FROM pg_temp.partitions();
SELECT count(*) AS elsewhere FROM pg_class WHERE relnamespace = 'coord_internal'::regnamespace AND reltablespace <> 0;

-- A transaction that may not write, settings that forbid.
SET ROLE sec_alice;
SET default_transaction_read_only = on;
SELECT coord.saga_status(:id);
\set VERBOSITY sqlstate
SELECT coord.saga_start('meant');
\set VERBOSITY default
RESET default_transaction_read_only;
SET row_security = off;
SELECT coord.saga_status(:id);
RESET row_security;
RESET ROLE;

-- coord makes its partitions as the extension's owner.  An event trigger sees
-- them as any other command of his; only a superuser can make one, and what it
-- calls is not found by the caller's search_path.
CREATE TABLE home.seen (tag text, object text, who name);
GRANT INSERT ON home.seen TO PUBLIC;
CREATE FUNCTION home.audit() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO home.seen SELECT DISTINCT tg_tag, object_type, current_user FROM pg_event_trigger_ddl_commands()
    WHERE schema_name = 'coord_internal' AND object_type = 'table';
END $$;
CREATE EVENT TRIGGER sec_audit ON ddl_command_end EXECUTE FUNCTION home.audit();
SET coord.test_now = '2034-03-05 00:00:00+00';
SET ROLE sec_alice;
SET search_path = trap, home, pg_catalog;
SELECT coord.saga_start('meant') AS id \gset
CALL coord.run_pending() \g /dev/null
SELECT coord.saga_status(:id);
RESET search_path;
CREATE EVENT TRIGGER sec_mine ON ddl_command_end EXECUTE FUNCTION home.audit();
RESET ROLE;
SELECT DISTINCT tag, object, who = current_user AS extension_owner FROM home.seen ORDER BY tag;
SELECT * FROM trap.sprung WHERE who <> 'sec_alice';
DROP EVENT TRIGGER sec_audit;
SET client_min_messages = error;
DROP SCHEMA home, trap CASCADE;
DROP OWNED BY sec_mallory, sec_alice;
DROP ROLE sec_mallory, sec_alice;
DROP EXTENSION coord;
