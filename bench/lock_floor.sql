-- What the floors of bench/lock are made of: a lease as a row, and a table to be
-- written to under a fence.

CREATE TABLE row_lease (name text PRIMARY KEY, owner text NOT NULL, expires_at timestamptz NOT NULL)
  WITH (fillfactor = 70);
CREATE TABLE state (id bigint PRIMARY KEY, part int NOT NULL, step int NOT NULL DEFAULT 0) WITH (fillfactor = 90);
INSERT INTO state (id, part) SELECT i, i % 8 FROM generate_series(0, 9999) i;
GRANT ALL ON row_lease, state TO bench;
VACUUM (FREEZE, ANALYZE) state;

-- A thousand pairs in one statement, the keys first, first + 1, ...
CREATE FUNCTION advisory_loop(first bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  key bigint;
BEGIN
  FOREACH key IN ARRAY ARRAY(SELECT first + i FROM generate_series(1, 1000) i) LOOP
    PERFORM pg_advisory_lock(key);
    PERFORM pg_advisory_unlock(key);
  END LOOP;
END $$;
