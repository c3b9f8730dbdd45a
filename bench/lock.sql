-- The subject of bench/lock.  Run in a copy of the floor's database.

GRANT coord_user TO bench;

-- Like advisory_loop.
CREATE FUNCTION lock_loop(first bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY(SELECT (first + i)::text FROM generate_series(1, 1000) i) LOOP
    PERFORM coord.lock(name, scope => 'session');
    PERFORM coord.unlock(name);
  END LOOP;
END $$;

-- The lease of a client, for as long as a round may take; again is the same.
CREATE FUNCTION bench_lease(client int, OUT name text, OUT token bigint) LANGUAGE plpgsql AS $$
BEGIN
  name := 'state' || CASE WHEN current_setting('bench.shared', true) = 'on' THEN '' ELSE '/' || client END;
  SELECT l.token INTO STRICT token FROM coord.lease_acquire(name, 'bench', '10 min', '10 s') l;
END $$;

CHECKPOINT;
