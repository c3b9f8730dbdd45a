-- Who sees and may do what: views, functions, grants; coord's own tables.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS coord;
SET coord.test_now = '2030-01-01 00:00:00+00';
CREATE ROLE sec_owner;
CREATE ROLE sec_member;
CREATE ROLE sec_stranger;
CREATE ROLE sec_grantee;
CREATE ROLE sec_reader;
CREATE ROLE sec_monitor;
CREATE ROLE sec_admin;
GRANT coord_user TO sec_owner, sec_member, sec_stranger, sec_grantee;
GRANT coord_reader TO sec_reader;
GRANT pg_monitor TO sec_monitor;
GRANT coord_admin TO sec_admin;
GRANT sec_owner TO sec_member;
CREATE SCHEMA ops AUTHORIZATION sec_owner;
GRANT USAGE, CREATE ON SCHEMA ops TO PUBLIC;
CREATE FUNCTION pg_temp.code(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE statement;
  RETURN 'done';
EXCEPTION WHEN OTHERS THEN
  RETURN SQLSTATE || ' ' || regexp_replace(SQLERRM, '\d+', 'N');
END $$;

-- One saga that is finished, one that is suspended, one that waits.
SET ROLE sec_owner;
CREATE FUNCTION ops.work(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF doc #>> '{input,fail}' IS NOT NULL THEN
    RAISE EXCEPTION 'the secret error' USING DETAIL = 'the secret detail';
  END IF;
  RETURN '"the secret result"';
END $$;
SELECT coord.saga_define('secret', ARRAY[coord.step('secret step', 'ops.work', max_attempts => 1)], on_exhausted => 'suspend');
SELECT coord.saga_start('secret', '{"the": "secret input"}', key => 'done') AS done \gset
SELECT coord.saga_start('secret', '{"fail": true}', key => 'stopped') AS stopped \gset
CALL coord.run_pending() \g /dev/null
SELECT coord.saga_start('secret', key => 'waits', start_at => '2031-01-01') AS waits \gset
SELECT coord.saga_status(:done), coord.saga_status(:stopped), coord.saga_status(:waits);
RESET ROLE;

-- Rows of each view, for each role.
CREATE FUNCTION pg_temp.sees() RETURNS TABLE (sagas bigint, steps bigint, definitions bigint, log bigint, stuck bigint) LANGUAGE sql AS $$
  SELECT (SELECT count(*) FROM coord.sagas), (SELECT count(*) FROM coord.saga_steps),
    (SELECT count(*) FROM coord.saga_definitions), (SELECT count(*) FROM coord.saga_log),
    (SELECT count(*) FROM coord.stuck WHERE kind = 'saga') $$;
SET ROLE sec_owner;
SELECT * FROM pg_temp.sees();
SET ROLE sec_member;
SELECT * FROM pg_temp.sees();
SET ROLE sec_stranger;
SELECT * FROM pg_temp.sees();
SET ROLE sec_grantee;
SELECT * FROM pg_temp.sees();
SET ROLE sec_reader;
SELECT * FROM pg_temp.sees();
SET ROLE sec_monitor;
SELECT * FROM pg_temp.sees();
SET ROLE sec_admin;
SELECT * FROM pg_temp.sees();
RESET ROLE;

-- A function in WHERE that tells what it is given is given nothing.
SET ROLE sec_stranger;
CREATE FUNCTION ops.tell(VARIADIC anyarray) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN RAISE WARNING 'told: %', $1; RETURN true; END $$;
CREATE FUNCTION ops.tell_json(jsonb) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN RAISE WARNING 'told: %', $1; RETURN true; END $$;
CREATE FUNCTION ops.tell_json_op(jsonb, jsonb) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN RAISE WARNING 'told: %', $1; RETURN true; END $$;
CREATE OPERATOR ops.<<< (LEFTARG = jsonb, PROCEDURE = ops.tell_json_op, RIGHTARG = jsonb);
SELECT count(*) FROM coord.sagas WHERE ops.tell(name, key, error) AND ops.tell_json(input) AND input OPERATOR(ops.<<<) '1';
SELECT count(*) FROM coord.sagas WHERE key::int > 0;
SELECT count(*) FROM coord.saga_steps WHERE ops.tell(step, error, error_detail) AND ops.tell_json(result);
SELECT count(*) FROM coord.saga_steps WHERE 1 / ordinal > 0;
SELECT count(*) FROM coord.saga_definitions WHERE ops.tell(name, search_path) AND ops.tell_json(definition);
SELECT count(*) FROM coord.saga_log WHERE ops.tell(event, error, error_detail, error_context);
SELECT count(*) FROM coord.stuck WHERE kind = 'saga' AND ops.tell(name, waits_for, hint, repair);
SELECT count(*) FROM coord.workers WHERE step IS NOT NULL AND ops.tell(step);

-- What she may not see does not exist, in the same words as what does not.
CREATE TEMP TABLE verb (template text);
INSERT INTO verb VALUES
  ('SELECT coord.saga_status(%s)'), ('SELECT coord.saga_output(%s)'), ('SELECT coord.saga_wait(%s, ''0'')'),
  ('SELECT coord.saga_cancel(%s)'), ('SELECT coord.saga_cancel(%s, interrupt => true)'), ('SELECT coord.saga_pause(%s)'),
  ('SELECT coord.saga_resume(%s)'), ('SELECT coord.saga_retry(%s)'), ('SELECT coord.saga_retry(%s, ''secret step'')'),
  ('SELECT coord.saga_skip(%s, ''secret step'')'), ('SELECT coord.saga_patch(%s, ''{}'')'), ('SELECT coord.saga_abandon(%s)'),
  ('SELECT coord.saga_picture(%s)'), ('SELECT coord.saga_timeline(%s)');
SELECT template, pg_temp.code(format(template, 999999)) AS unknown,
       pg_temp.code(format(template, 999999)) = ALL (ARRAY[pg_temp.code(format(template, :done)),
         pg_temp.code(format(template, :stopped)), pg_temp.code(format(template, :waits))]) AS same
FROM verb;
CREATE TEMP TABLE named (template text);
INSERT INTO named VALUES
  ('SELECT coord.saga_start(%L)'), ('SELECT coord.saga_start(%L, version => 1)'), ('SELECT coord.saga_activate(%L, 1)'),
  ('SELECT coord.saga_diagram(%L)'), ('SELECT coord.grant_use(''saga'', %L, ''sec_stranger'')'),
  ('SELECT coord.revoke_use(''saga'', %L, ''sec_owner'')');
SELECT template, pg_temp.code(format(template, 'nobody')) AS unknown,
       replace(pg_temp.code(format(template, 'secret')), 'secret', 'nobody') = pg_temp.code(format(template, 'nobody')) AS same
FROM named;
-- Neither do near names give them away.
\set VERBOSITY default
SELECT coord.saga_start('secreet');
SELECT coord.saga_drop('nobody') IS NOT DISTINCT FROM coord.saga_drop('secret') AS same;
SELECT coord.saga_find('secret', 'done') AS invisible, coord.saga_find('nobody', 'done') AS unknown;
-- A name that is taken cannot be had.
SELECT coord.saga_define('secret', ARRAY[coord.step('mine', 'ops.work')]);
CALL coord.saga_run('secret');
RESET ROLE;
SELECT count(*) AS versions FROM coord.saga_definitions WHERE name = 'secret';
SELECT id = :done AS done, status FROM coord.sagas WHERE id IN (:done, :stopped, :waits) ORDER BY id;

-- Use, granted by the owner.
SET ROLE sec_owner;
SELECT coord.grant_use('saga', 'secret', 'sec_grantee'), coord.grant_use('saga', 'secret', 'sec_grantee');
SET ROLE sec_grantee;
SELECT * FROM pg_temp.sees();
SELECT coord.saga_start('secret', key => 'mine') AS mine \gset
SELECT coord.saga_find('secret', 'done') = :done AS found, coord.saga_status(:done), coord.saga_output(:done);
SELECT owner FROM coord.sagas WHERE id = :mine;
SELECT coord.saga_cancel(:waits, 'by grant');
SELECT role, reason FROM coord.saga_log WHERE saga_id = :waits;
-- It gives neither the name nor the right to hand it on.
SELECT coord.saga_define('secret', ARRAY[coord.step('mine', 'ops.work')]);
SELECT pg_temp.code($$SELECT coord.saga_activate('secret', 1)$$), pg_temp.code($$SELECT coord.saga_drop('secret')$$) IN ('done', '42704 saga "secret" does not exist') AS not_dropped,
       pg_temp.code($$SELECT coord.grant_use('saga', 'secret', 'sec_stranger')$$);
RESET ROLE;
SELECT count(*) AS still_there FROM coord.saga_definitions WHERE name = 'secret';
-- Nor does a grantee run another's steps in his own session.
SET ROLE sec_owner;
SELECT coord.saga_start('secret', '{"of": "the owner"}', key => 'not yours') AS theirs \gset
SET ROLE sec_grantee;
CALL coord.run_pending(1) \g /dev/null
CALL coord.saga_run('secret', '{"of": "the owner"}', 'not yours') \g /dev/null
SELECT coord.saga_status(:theirs), coord.saga_status(:mine);
SET ROLE sec_owner;
CALL coord.saga_run('secret', '{"of": "the owner"}', 'not yours') \g /dev/null
SELECT coord.saga_status(:theirs);
SELECT coord.revoke_use('saga', 'secret', 'sec_grantee');
SET ROLE sec_grantee;
SELECT * FROM pg_temp.sees();
SELECT pg_temp.code(format('SELECT coord.saga_status(%s)', :done)), coord.saga_status(:mine);
RESET ROLE;

-- A function's rights are its caller's: started by a grantee it needs his.
SET ROLE sec_owner;
REVOKE EXECUTE ON FUNCTION ops.work FROM PUBLIC;
SELECT coord.grant_use('saga', 'secret', 'sec_grantee');
SET ROLE sec_grantee;
SELECT pg_temp.code($$SELECT coord.saga_start('secret')$$);
CREATE FUNCTION ops.mine(doc jsonb) RETURNS void LANGUAGE sql AS '';
SELECT pg_temp.code($$SELECT coord.saga_define('mine', ARRAY[coord.step('a', 'ops.work')])$$);
SELECT pg_temp.code($$SELECT coord.saga_define('mine', ARRAY[coord.step('a', 'ops.mine', 'ops.work')])$$);
RESET ROLE;

-- A function in a temporary schema, which will be another one tomorrow.
SET ROLE sec_stranger;
CREATE FUNCTION pg_temp.gone(doc jsonb) RETURNS void LANGUAGE sql AS '';
SELECT pg_temp.code($$SELECT coord.saga_define('gone', ARRAY[coord.step('a', 'pg_temp.gone')])$$) <> 'done' AS refused;
-- Nor one that cannot be seen.
SELECT pg_temp.code($$SELECT coord.saga_define('internal', ARRAY[coord.step('a', 'coord_internal.steps_output')])$$);
RESET ROLE;

-- coord_reader looks, and that is all; pg_monitor has the views.
SELECT r.role, count(*) FILTER (WHERE has_function_privilege(r.role, p.oid, 'EXECUTE')) AS may_call,
       string_agg(p.proname, ' ' ORDER BY p.proname) FILTER (WHERE has_function_privilege(r.role, p.oid, 'EXECUTE')) AS functions
FROM (VALUES ('public'::name), ('coord_reader'), ('pg_monitor')) AS r (role)
CROSS JOIN pg_proc p WHERE p.pronamespace = 'coord'::regnamespace GROUP BY r.role ORDER BY r.role;
SELECT string_agg(p.proname, ' ' ORDER BY p.proname) AS only_for_admins FROM pg_proc p
WHERE p.pronamespace = 'coord'::regnamespace AND NOT has_function_privilege('coord_user', p.oid, 'EXECUTE');
SET ROLE sec_reader;
SELECT pg_temp.code($$SELECT coord.saga_start('secret')$$), pg_temp.code('SELECT coord.saga_cancel(1)'), pg_temp.code('SELECT coord.pause()');
SET ROLE sec_stranger;
SELECT pg_temp.code('SELECT coord.pause()'), pg_temp.code('SELECT coord.resume()'), pg_temp.code('SELECT coord.start_worker()'),
       pg_temp.code('CALL coord.drain()');
-- Membership of pg_monitor shows; it does not let act.
SET ROLE sec_monitor;
SELECT pg_temp.code(format('SELECT coord.saga_cancel(%s)', :stopped));
RESET ROLE;
GRANT coord_user TO sec_monitor;
SET ROLE sec_monitor;
SELECT pg_temp.code(format('SELECT coord.saga_cancel(%s)', :stopped)), pg_temp.code(format('SELECT coord.saga_patch(%s, ''{}'')', :stopped)),
       pg_temp.code($$SELECT coord.saga_drop('secret')$$) IN ('done', '42704 saga "secret" does not exist') AS not_dropped, pg_temp.code('SELECT coord.pause()');
RESET ROLE;
SELECT count(*) AS still_there FROM coord.saga_definitions WHERE name = 'secret';
SELECT coord.saga_status(:stopped);

-- Nobody but the owner of the extension gets at what is inside, coord_admin
-- neither.
SELECT relkind, count(*) > 0 AS some,
       count(*) FILTER (WHERE has_table_privilege('coord_admin', oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')) AS open_tables
FROM pg_class WHERE relnamespace = 'coord_internal'::regnamespace AND relkind IN ('r', 'p', 'v') GROUP BY relkind ORDER BY relkind;
SELECT count(*) FILTER (WHERE has_sequence_privilege('coord_admin', oid, 'SELECT, UPDATE, USAGE')) AS open_sequences
FROM pg_class WHERE relnamespace = 'coord_internal'::regnamespace AND relkind = 'S';
SELECT has_schema_privilege('coord_admin', 'coord_internal', 'USAGE, CREATE') AS internal,
       has_schema_privilege('coord_admin', 'coord', 'CREATE') AS create_in_coord;
SELECT relname FROM pg_class WHERE relnamespace = 'coord'::regnamespace AND relkind IN ('v', 'r')
  AND has_table_privilege('coord_admin', oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER');
SET ROLE sec_admin;
SELECT pg_temp.code('SELECT * FROM coord_internal.saga'), pg_temp.code('SELECT coord_internal.adopt_identity()');
CREATE TABLE ops.child () INHERITS (coord_internal.saga_archive);
CREATE TRIGGER t BEFORE INSERT ON coord_internal.saga EXECUTE FUNCTION suppress_redundant_updates_trigger();
CREATE VIEW coord.fake AS SELECT 1;
RESET ROLE;
-- Every view has its barrier.
SELECT relname FROM pg_class WHERE relnamespace IN ('coord'::regnamespace, 'coord_internal'::regnamespace) AND relkind = 'v'
  AND NOT coalesce('security_barrier=true' = ANY (reloptions) OR 'security_barrier=on' = ANY (reloptions) OR 'security_barrier' = ANY (reloptions), false);
-- No function of coord's has its owner's rights.
SELECT proname FROM pg_proc WHERE pronamespace IN ('coord'::regnamespace, 'coord_internal'::regnamespace) AND prosecdef;

-- Roles that come and go.
SELECT coord.saga_abandon(id) IS NOT NULL AS ended FROM coord.sagas WHERE finished_at IS NULL ORDER BY id;
REVOKE sec_owner FROM sec_member;
SET ROLE sec_member;
SELECT * FROM pg_temp.sees();
RESET ROLE;
DROP SCHEMA ops CASCADE;
DROP OWNED BY sec_owner, sec_member, sec_stranger, sec_grantee, sec_reader, sec_monitor, sec_admin;
DROP ROLE sec_owner, sec_member, sec_stranger, sec_grantee, sec_reader, sec_monitor, sec_admin;
DROP EXTENSION coord;
