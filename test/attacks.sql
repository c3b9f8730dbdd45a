-- What the security tests share, in sessions and in workers: roles, something
-- to be stolen, and step functions that try to.  To be run as superuser.
--
--   sec_mallory  hostile; may use coord, may not read vault.secret
--   sec_alice    her victim, of whom she knows only the name
--   sec_boss     member of sec_mallory; may read vault.secret
--
-- den.trap(label) notes in den.loot as whom it was run.

CREATE ROLE sec_mallory;
CREATE ROLE sec_alice;
CREATE ROLE sec_boss;
GRANT coord_user TO sec_mallory, sec_alice, sec_boss;
GRANT sec_mallory TO sec_boss;

CREATE SCHEMA vault;
CREATE TABLE vault.secret (v text);
INSERT INTO vault.secret VALUES ('the secret');
GRANT USAGE ON SCHEMA vault TO sec_alice, sec_boss;
GRANT SELECT ON vault.secret TO sec_alice, sec_boss;

CREATE SCHEMA den AUTHORIZATION sec_mallory;
SET ROLE sec_mallory;
GRANT USAGE ON SCHEMA den TO PUBLIC;
CREATE TABLE den.loot (label text, who name);
GRANT SELECT, INSERT ON den.loot TO PUBLIC;

CREATE FUNCTION den.trap(label text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO den.loot VALUES (trap.label, current_user);
  RETURN trap.label;
END $$;
CREATE FUNCTION den.trap_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM den.trap(TG_ARGV[0]);
  IF TG_NARGS > 1 THEN
    EXECUTE TG_ARGV[1];
  END IF;
  RETURN NULL;
END $$;

-- Each insert makes something happen at commit: the trap; one that springs
-- another; one that opens a cursor that would live on.
CREATE TABLE den.bait (x int);
CREATE TABLE den.bait2 (x int);
CREATE TABLE den.bait3 (x int);
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON den.bait DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION den.trap_trigger('deferred');
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON den.bait2 DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION den.trap_trigger('deferred twice', 'INSERT INTO den.bait VALUES (2)');
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON den.bait3 DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION den.trap_trigger('deferred cursor',
    'DECLARE late CURSOR WITH HOLD FOR SELECT den.trap(''late cursor'')');

-- Functions that want to be somebody else by their own settings.
CREATE FUNCTION den.as_boss() RETURNS name LANGUAGE sql SET role = 'sec_boss'
  AS 'SELECT current_user';
CREATE FUNCTION den.as_session() RETURNS name LANGUAGE sql SET role = 'none'
  AS 'SELECT current_user';

-- Runs input.sql, an array of statements, each by itself; returns for each
-- "done" or the SQLSTATE, and at the end who it is now.
CREATE FUNCTION den.attempt(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  statement text;
  outcome text;
  result jsonb := '[]';
BEGIN
  FOR statement IN SELECT jsonb_array_elements_text(doc #> '{input,sql}') LOOP
    BEGIN
      EXECUTE statement;
      outcome := 'done';
    EXCEPTION WHEN OTHERS THEN
      outcome := SQLSTATE;
    END;
    result := result || jsonb_build_array(outcome || ' ' || statement);
  END LOOP;
  RETURN result || jsonb_build_array(format('%s', current_user));
END $$;
-- The same without catching anything.
CREATE FUNCTION den.execute(doc jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  statement text;
BEGIN
  FOR statement IN SELECT jsonb_array_elements_text(doc #> '{input,sql}') LOOP
    EXECUTE statement;
  END LOOP;
  RETURN to_jsonb(current_user);
END $$;
SELECT coord.saga_define('mallory: attempt', ARRAY[coord.step('attempt', 'den.attempt')]);
SELECT coord.saga_define('mallory: execute', ARRAY[coord.step('execute', 'den.execute', max_attempts => 1)]);
RESET ROLE;

-- What another role's step finds in the session that ran hers.
CREATE SCHEMA home AUTHORIZATION sec_alice;
SET ROLE sec_alice;
CREATE FUNCTION home.look_around(doc jsonb) RETURNS jsonb LANGUAGE sql AS $$
  SELECT jsonb_build_object(
    'who', current_user,
    'temporary', (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema())
      + (SELECT count(*) FROM pg_proc WHERE pronamespace = pg_my_temp_schema())
      + (SELECT count(*) FROM pg_type WHERE typnamespace = pg_my_temp_schema()),
    'prepared', (SELECT coalesce(jsonb_agg(name ORDER BY name), '[]') FROM pg_prepared_statements),
    'cursors', (SELECT coalesce(jsonb_agg(name ORDER BY name), '[]') FROM pg_cursors WHERE is_holdable),
    'locks', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    'setting', coalesce(current_setting('den.setting', true), ''),
    'search_path', current_setting('search_path'),
    'row_security', current_setting('row_security'),
    'read_only', current_setting('transaction_read_only'))
$$;
SET search_path = home;
SELECT coord.saga_define('alice: look', ARRAY[coord.step('look', 'home.look_around')]);
RESET search_path;
RESET ROLE;
