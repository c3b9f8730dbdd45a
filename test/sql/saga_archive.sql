-- Finished sagas and the log go to partitions that are made ahead of time.
-- (They are dropped by workers: test/t has that.)
\set name regress_saga_archive
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

SELECT coord.saga_define('s', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'act')]);
RESET ROLE;
CREATE FUNCTION partitions(parent text) RETURNS TABLE (partition oid, since timestamptz, until timestamptz) LANGUAGE sql SECURITY DEFINER SET datestyle = 'ISO' AS $$
  SELECT c.oid, substring(bound FROM 'FROM \(''([^'']+)''\)')::timestamptz, substring(bound FROM 'TO \(''([^'']+)''\)')::timestamptz
  FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid CROSS JOIN pg_get_expr(c.relpartbound, c.oid) AS bound
  WHERE inhparent = ('coord_internal.' || parent)::regclass
$$;
CREATE FUNCTION covered(moment timestamptz) RETURNS boolean LANGUAGE sql
  RETURN (SELECT count(*) = 2 FROM unnest('{saga_archive,saga_log}'::text[]) AS parent CROSS JOIN partitions(parent) WHERE since <= moment AND moment < until);
SET ROLE :name;

-- Years of it, a finished saga and a failed one every few days: all of them are kept, and the next days always have a place.
SHOW coord.saga_retention;
CREATE TABLE visited (moment timestamptz, covered boolean, ahead boolean);
CREATE PROCEDURE visit(moment timestamptz) LANGUAGE plpgsql AS $$
DECLARE t int;
BEGIN
  PERFORM at(moment);
  PERFORM coord.saga_start('s', key => 'good ' || moment);
  DELETE FROM fault;
  COMMIT;
  CALL coord.run_pending(turns => t);
  PERFORM coord.saga_start('s', key => 'bad ' || moment);
  INSERT INTO fault VALUES ('b', 1, 'P0001');
  COMMIT;
  CALL coord.run_pending(turns => t);
  INSERT INTO visited VALUES (moment, covered(moment), covered(moment + interval '30 days' / 8 / 4));
  COMMIT;
END $$;
DO $$ BEGIN FOR i IN 1 .. 12 LOOP CALL visit('2041-01-01 00:00:00+00'::timestamptz + i * interval '61 hours'); END LOOP; END $$;
SELECT count(*), bool_and(covered), bool_and(ahead) FROM visited;
-- A clock that goes back, or far ahead: the same.
CALL visit('2040-12-31 23:59:59.999999+00');
CALL visit('2040-06-01 00:00:00+00');
CALL visit('2199-12-31 23:59:59.999999+00');
CALL visit('2041-01-03 00:00:00+00');
SELECT count(*), bool_and(covered), bool_and(ahead) FROM visited;
SELECT split_part(key, ' ', 1), status, count(*) FROM coord.sagas WHERE owner = current_user GROUP BY 1, 2 ORDER BY 1;
SELECT count(*), count(DISTINCT saga_id) FROM coord.saga_log WHERE saga_id IN (SELECT id FROM coord.sagas WHERE owner = current_user);

-- However the session writes times.
SET datestyle = 'German, DMY';
SET timezone = 'Asia/Kathmandu';
SET intervalstyle = 'sql_standard';
CALL visit('2042-02-01 12:00:00+00');
CALL visit('2042-02-27 12:00:00+00');
SET datestyle = 'Postgres, MDY';
SET timezone = 'America/St_Johns';
CALL visit('2042-03-09 07:00:00+00');
RESET datestyle;
SET datestyle = 'ISO';
SET timezone = 'UTC';
RESET intervalstyle;
SELECT count(*), bool_and(covered), bool_and(ahead) FROM visited;
SELECT count(*) FROM coord.sagas WHERE owner = current_user AND finished_at IS NOT NULL;

-- Partitions do not overlap and have keys; they are no longer than an eighth of the retention.
RESET ROLE;
SELECT parent, count(*) > 10, max(until - since) <= interval '30 days' / 8, bool_and(since < until) FROM unnest('{saga_archive,saga_log}'::text[]) AS parent CROSS JOIN partitions(parent) GROUP BY parent ORDER BY parent;
SELECT DISTINCT parent, (SELECT string_agg(pg_get_indexdef(indexrelid, k::int, true), ', ' ORDER BY k) FROM pg_index CROSS JOIN generate_series(1, indnatts) k WHERE indrelid = partition AND indisprimary) AS key
  FROM unnest('{saga_archive,saga_log}'::text[]) AS parent CROSS JOIN partitions(parent) ORDER BY parent;
-- They belong to the owner of the extension, and nobody else may look at them.
SELECT count(*) FROM unnest('{saga_archive,saga_log}'::text[]) AS parent CROSS JOIN partitions(parent) JOIN pg_class c ON c.oid = partition
  WHERE relowner <> (SELECT extowner FROM pg_extension WHERE extname = 'coord') OR relacl IS NOT NULL;

-- An archived saga, its steps and its key are as they were.
SET ROLE :name;
SELECT at('2041-01-20 00:00:00+00');
SELECT coord.saga_start('s', '{"n": 1}', key => 'kept', labels => '{"l": 1}', priority => 3) AS id \gset
CALL coord.run_pending() \gset
SELECT name, version, status, key, input, labels, priority, error FROM coord.sagas WHERE id = :id;
SELECT step, phase, status, attempt, result, error, sqlstate, started_at, finished_at FROM coord.saga_steps WHERE saga_id = :id ORDER BY ordinal;
SELECT count(*) = 0 FROM coord.sagas WHERE id = :id AND finished_at IS NULL;
SELECT coord.saga_start('s', '{"n": 1}', key => 'kept') = :id;
RESET ROLE;
SELECT count(*) FROM coord_internal.saga WHERE id = :id;
SELECT count(*) FROM coord_internal.saga_step WHERE saga_id = :id;
-- The partitions of that far future are not for the other tests.
DO $$ DECLARE p regclass; BEGIN
  FOR p IN SELECT partition FROM unnest('{saga_archive,saga_log}'::text[]) AS parent CROSS JOIN regress_saga_archive.partitions(parent) WHERE since > '2040-01-01' LOOP
    EXECUTE format('DROP TABLE %s', p);
  END LOOP;
END $$;

\set include :abs_srcdir/include/saga_end.psql
\i :include
