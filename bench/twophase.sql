-- The subject of bench/twophase, and postgres_fdw and dblink.  Run in a copy of the floor's
-- database.  The participants are databases shard1, shard2, ...; the odd ones in the
-- cluster p1, the others in p2.  The servers near1, near2, ... lead there, far1, far2,
-- ... through a proxy; gone leads to shard4 through a proxy of its own.

\getenv work COORD_BENCH
CREATE EXTENSION postgres_fdw;
CREATE EXTENSION dblink;
GRANT coord_user TO bench;

SELECT format('CREATE SERVER %I FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host %L, dbname %L, parallel_commit %L)',
  name, :'work' || '/' || host, 'shard' || i, 'true')
FROM (
  SELECT 'near' || i, CASE WHEN i % 2 = 1 THEN 'p1' ELSE 'p2' END, i FROM generate_series(1, 16) i UNION ALL
  SELECT 'far' || i, CASE WHEN i % 2 = 1 THEN 'far1' ELSE 'far2' END, i FROM generate_series(1, 16) i UNION ALL
  SELECT 'gone', 'gone', 4) AS s (name, host, i) \gexec
SELECT format('CREATE USER MAPPING FOR bench SERVER %I OPTIONS (user %L, password %L)', srvname, 'bench', 'bench'),
  format('GRANT USAGE ON FOREIGN SERVER %I TO bench', srvname)
FROM pg_foreign_server \gexec

-- postgres_fdw: which servers is the search_path's choice.
CREATE SCHEMA near;
CREATE SCHEMA far;
GRANT USAGE ON SCHEMA near, far TO bench;
SELECT format('CREATE FOREIGN TABLE %I.%I (id int, bal bigint) SERVER %I OPTIONS (schema_name %L, table_name %L)',
  side, 'acc' || i, side || i, 'public', 'acc')
FROM unnest(ARRAY['near', 'far']) side, generate_series(1, 2) i \gexec
GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA near, far TO bench;

-- dblink: two-phase commit by hand, one statement after the other.
CREATE PROCEDURE bench_dblink(server1 text, server2 text, account int, amount int) LANGUAGE plpgsql AS $$
DECLARE
  conns text[] := coalesce(dblink_get_connections(), '{}');
  gid text;
BEGIN
  IF server1 <> ALL (conns) THEN PERFORM dblink_connect(server1, server1); END IF;
  IF server2 <> ALL (conns) THEN PERFORM dblink_connect(server2, server2); END IF;
  PERFORM dblink_exec(server1, format('BEGIN; UPDATE acc SET bal = bal - %s WHERE id = %s', amount, account));
  PERFORM dblink_exec(server2, format('BEGIN; UPDATE acc SET bal = bal + %s WHERE id = %s', amount, account));
  INSERT INTO transfer (account, amount) VALUES (bench_dblink.account, bench_dblink.amount)
    RETURNING 'dblink_' || id INTO gid;
  PERFORM dblink_exec(server1, format('PREPARE TRANSACTION %L', gid || '_1'));
  PERFORM dblink_exec(server2, format('PREPARE TRANSACTION %L', gid || '_2'));
  INSERT INTO decision VALUES (gid);
  COMMIT;
  PERFORM dblink_exec(server1, format('COMMIT PREPARED %L', gid || '_1'));
  PERFORM dblink_exec(server2, format('COMMIT PREPARED %L', gid || '_2'));
END $$;

-- The branches of row "participants": an amount for each of the others from the first
-- of n participants, all of one side, near or far.  (Its body is checked when it runs:
-- BENCH_FLOORS=1 works without it.)
CREATE FUNCTION bench_branches(side text, n int, account int, amount int) RETURNS jsonb[] LANGUAGE plpgsql AS $$
BEGIN
  RETURN (
    SELECT array_agg(coord.branch((side || i)::name, 'UPDATE acc SET bal = bal + $1 WHERE id = $2',
        jsonb_build_array(CASE WHEN i = 1 THEN -amount * (n - 1) ELSE amount END, account), 1) ORDER BY i) ||
      coord.branch(NULL, 'INSERT INTO transfer (account, amount) VALUES ($1, $2)',
        jsonb_build_array(account, amount * (n - 1)))
    FROM generate_series(1, n) i);
END $$;

-- Accounts of transactions that are left unfinished.
CREATE SEQUENCE leave MAXVALUE 16000 CYCLE;
GRANT USAGE ON SEQUENCE leave TO bench;

CHECKPOINT;
