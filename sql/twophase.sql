-- ---------------------------------------------------------------------------
-- Two-phase commit over several servers.
-- ---------------------------------------------------------------------------

-- Whose prepared transactions are ours, wherever this database is restored to.  The
-- resolver makes it, so that a restore brings its own and no second.
CREATE TABLE coord_internal.twophase_cluster (
  id uuid NOT NULL,
  forgotten_gtid bigint NOT NULL DEFAULT 0      -- the highest of the decisions that were dropped
);

-- Runs of history: another one after promotion, restore or copy.  What an earlier
-- one left prepared is not this one's to decide, until it is adopted.
CREATE TABLE coord_internal.twophase_incarnation (
  id integer PRIMARY KEY,
  system_identifier bigint NOT NULL,
  database oid NOT NULL,
  timeline bigint NOT NULL,
  control_file text NOT NULL,                   -- what tells a copied data directory from its original
  first_gtid bigint NOT NULL,
  since timestamptz NOT NULL,
  adopted_at timestamptz,
  adopted_by oid,
  reason text
);

-- Where the resolver looks; written before anything is prepared there.
CREATE TABLE coord_internal.twophase_participant (
  mapping oid PRIMARY KEY,
  server oid NOT NULL,
  role oid NOT NULL,
  since timestamptz NOT NULL,
  acked_gtid bigint NOT NULL DEFAULT 0,         -- decisions up to here are finished there
  seen_at timestamptz,
  failed_at timestamptz,
  error text
);

-- One row for each transaction that committed.  No key here: see src/base/partition.c.
CREATE TABLE coord_internal.twophase_decision (
  gtid bigint NOT NULL,
  at timestamptz NOT NULL,
  incarnation integer NOT NULL,
  role oid NOT NULL,
  correlation_id uuid,
  servers oid[] NOT NULL,
  mappings oid[] NOT NULL,
  gids text[] NOT NULL
) PARTITION BY RANGE (at);

-- What is prepared somewhere and not the resolver's to decide.
CREATE TABLE coord_internal.twophase_in_doubt (
  gid text NOT NULL,
  mapping oid NOT NULL,
  server oid NOT NULL,
  prepared_at timestamptz NOT NULL,
  owner text NOT NULL,
  reason text NOT NULL,
  since timestamptz NOT NULL,
  PRIMARY KEY (gid, server)
);

-- What operators did, and what the resolver did that was not expected.
CREATE SEQUENCE coord_internal.twophase_log_id MAXVALUE 9007199254740991;
CREATE TABLE coord_internal.twophase_log (
  id bigint PRIMARY KEY DEFAULT pg_catalog.nextval('coord_internal.twophase_log_id'),
  at timestamptz NOT NULL,
  event text NOT NULL CONSTRAINT twophase_log_event CHECK
    (event IN ('forced', 'adopted', 'resurrected', 'restore_point')),
  gid text,
  server oid,
  outcome text,
  role oid NOT NULL,
  reason text
);

-- Applications' two-phase commits: the row is the decision.
CREATE TABLE coord_internal.twophase_app (
  gtid bigint PRIMARY KEY,
  owner oid NOT NULL,
  status text NOT NULL DEFAULT 'open' CONSTRAINT twophase_app_status CHECK
    (status IN ('open', 'preparing', 'committed', 'aborted')),
  label text,
  correlation_id uuid,
  created_at timestamptz NOT NULL,
  deadline_at timestamptz NOT NULL,
  decided_at timestamptz,
  reason text,
  decision bigint                               -- under which servers were prepared
) WITH (fillfactor = 70);
CREATE INDEX twophase_app_deadline ON coord_internal.twophase_app (deadline_at)
  WHERE status IN ('open', 'preparing');
CREATE INDEX twophase_app_decided ON coord_internal.twophase_app (decided_at)
  WHERE decided_at IS NOT NULL;

-- Who takes part: what its saga is made by, or SQL for a server.
CREATE TABLE coord_internal.twophase_app_participant (
  gtid bigint NOT NULL,
  participant text NOT NULL,
  owner oid NOT NULL,
  definition bigint,
  server name,
  sql text,
  payload jsonb,
  saga_id bigint,
  PRIMARY KEY (gtid, participant),
  CONSTRAINT twophase_app_participant_kind CHECK ((definition IS NULL) = (server IS NOT NULL AND sql IS NOT NULL))
) WITH (fillfactor = 80);

SELECT pg_catalog.pg_extension_config_dump('coord_internal.twophase_cluster', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.twophase_incarnation', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.twophase_decision', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.twophase_log', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.twophase_app', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.twophase_app_participant', '');
SELECT pg_catalog.pg_extension_config_dump('coord_internal.twophase_log_id', '');

CREATE FUNCTION coord.remote_exec(server name, sql text, args jsonb DEFAULT '[]', timeout interval DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_remote_exec' LANGUAGE C;
CREATE FUNCTION coord.remote_query(server name, sql text, args jsonb DEFAULT '[]', timeout interval DEFAULT NULL)
  RETURNS SETOF jsonb AS 'MODULE_PATHNAME', 'coord_remote_query' LANGUAGE C;
CREATE FUNCTION coord.twophase_current()
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_twophase_current' LANGUAGE C;
CREATE FUNCTION coord.branch(server name, sql text, args jsonb DEFAULT '[]', expect_rows bigint DEFAULT NULL)
  RETURNS jsonb AS 'MODULE_PATHNAME', 'coord_branch' LANGUAGE C STABLE;
CREATE PROCEDURE coord.twophase_run(branches jsonb[], return_at text DEFAULT 'applied', INOUT gtid bigint DEFAULT NULL,
    INOUT outcome text DEFAULT NULL, INOUT row_counts bigint[] DEFAULT NULL)
  AS 'MODULE_PATHNAME', 'coord_twophase_run' LANGUAGE C;
CREATE PROCEDURE coord.twophase_run_json(branches jsonb, return_at text DEFAULT 'applied', INOUT gtid bigint DEFAULT NULL,
    INOUT outcome text DEFAULT NULL, INOUT row_counts bigint[] DEFAULT NULL)
  AS 'MODULE_PATHNAME', 'coord_twophase_run_json' LANGUAGE C;
CREATE FUNCTION coord.twophase_begin(label text DEFAULT NULL, timeout interval DEFAULT '1 min')
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_twophase_begin' LANGUAGE C;
CREATE FUNCTION coord.twophase_enlist(gtid bigint, participant text, prepare text, commit text DEFAULT NULL,
    abort text DEFAULT NULL, queue text DEFAULT NULL, server name DEFAULT NULL, payload jsonb DEFAULT NULL)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_twophase_enlist' LANGUAGE C;
CREATE PROCEDURE coord.twophase_commit(gtid bigint, INOUT outcome text DEFAULT NULL)
  AS 'MODULE_PATHNAME', 'coord_twophase_commit' LANGUAGE C;
CREATE FUNCTION coord.twophase_abort(gtid bigint, reason text DEFAULT NULL)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_twophase_abort' LANGUAGE C;
CREATE FUNCTION coord.twophase_outcome(gtid bigint)
  RETURNS text AS 'MODULE_PATHNAME', 'coord_twophase_outcome' LANGUAGE C;
CREATE FUNCTION coord.twophase_resolve(server name DEFAULT NULL)
  RETURNS TABLE (gid text, server_name name, action text, detail text)
  AS 'MODULE_PATHNAME', 'coord_twophase_resolve' LANGUAGE C;
CREATE FUNCTION coord.twophase_force(gid text, server name, outcome text, reason text)
  RETURNS void AS 'MODULE_PATHNAME', 'coord_twophase_force' LANGUAGE C;
CREATE FUNCTION coord.twophase_adopt(incarnation int, reason text DEFAULT NULL)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_twophase_adopt' LANGUAGE C;
CREATE FUNCTION coord.create_restore_point(label text)
  RETURNS pg_lsn AS 'MODULE_PATHNAME', 'coord_create_restore_point' LANGUAGE C;
CREATE FUNCTION coord.twophase_check(server name DEFAULT NULL)
  RETURNS TABLE (server_name name, check_name text, ok boolean, detail text)
  AS 'MODULE_PATHNAME', 'coord_twophase_check' LANGUAGE C;

CREATE FUNCTION coord_internal.twophase_sessions(OUT gtid bigint, OUT pid int, OUT role oid, OUT since timestamptz,
    OUT participants int)
  RETURNS SETOF record AS 'MODULE_PATHNAME', 'coord_internal_twophase_sessions' LANGUAGE C;
CREATE FUNCTION coord_internal.twophase_unacknowledged()
  RETURNS SETOF bigint AS 'MODULE_PATHNAME', 'coord_internal_twophase_unacknowledged' LANGUAGE C;
CREATE FUNCTION coord_internal.twophase_figures(OUT incarnation int, OUT first_gtid bigint, OUT many boolean,
    OUT resolver_pid int, OUT committed bigint, OUT rolled_back bigint, OUT resurrected bigint)
  RETURNS record AS 'MODULE_PATHNAME', 'coord_internal_twophase_figures' LANGUAGE C;
CREATE FUNCTION coord_internal.gid_gtid(gid text)
  RETURNS bigint AS 'MODULE_PATHNAME', 'coord_internal_gid_gtid' LANGUAGE C IMMUTABLE;

CREATE VIEW coord.twophase_active WITH (security_barrier) AS
  SELECT s.gtid, s.pid, coord_internal.role_name(s.role) AS owner, s.participants, s.since
  FROM coord_internal.twophase_sessions() s
  WHERE (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(s.role);

-- A decision of this run that its session saw acknowledged is not in the list; one of
-- an earlier run is finished when a reading of each server since has said so.
CREATE VIEW coord.twophase_pending WITH (security_barrier) AS
  SELECT d.gtid, d.at AS decided_at, coord_internal.role_name(d.role) AS owner,
         ARRAY(SELECT f.srvname FROM pg_foreign_server f WHERE f.oid = ANY (d.servers) ORDER BY 1) AS servers,
         d.correlation_id
  FROM coord_internal.twophase_decision d, coord_internal.twophase_figures() g
  WHERE CASE WHEN d.gtid >= g.first_gtid AND NOT g.many
             THEN d.gtid IN (SELECT coord_internal.twophase_unacknowledged())
             ELSE EXISTS (SELECT FROM unnest(d.mappings) m JOIN coord_internal.twophase_participant p ON p.mapping = m
                          WHERE p.acked_gtid < d.gtid) END
    AND NOT EXISTS (SELECT FROM coord_internal.twophase_sessions() s WHERE s.gtid = d.gtid)
    AND ((SELECT coord_internal.sees_all()) OR coord_internal.is_mine(d.role));

-- What can be known is said in "repair"; where nothing is, an operator must find out.
CREATE VIEW coord.twophase_in_doubt WITH (security_barrier) AS
  SELECT i.gid, f.srvname AS server_name, i.prepared_at, i.owner, i.reason,
         CASE WHEN EXISTS (SELECT FROM coord_internal.twophase_decision d WHERE d.gtid = coord_internal.gid_gtid(i.gid))
              THEN format('SELECT coord.twophase_force(%L, %L, %L, %L);', i.gid, f.srvname, 'committed', 'why')
              WHEN g.incarnation <> n.incarnation
                   AND NOT EXISTS (SELECT FROM coord_internal.twophase_incarnation a
                                   WHERE a.id = n.incarnation AND a.adopted_at IS NOT NULL)
              THEN format('SELECT coord.twophase_adopt(%s, %L);', n.incarnation, 'why')
              ELSE format('SELECT coord.twophase_force(%L, %L, %L, %L); -- or %L', i.gid, f.srvname, 'aborted', 'why',
                          'committed') END AS repair
  FROM coord_internal.twophase_in_doubt i
  CROSS JOIN coord_internal.twophase_figures() g
  CROSS JOIN LATERAL (SELECT split_part(i.gid, ':', 4)::int AS incarnation) AS n
  LEFT JOIN pg_foreign_server f ON f.oid = i.server
  WHERE (SELECT coord_internal.sees_all());

CREATE VIEW coord.twophase_servers WITH (security_barrier) AS
  SELECT f.srvname AS server_name, coord_internal.role_name(u.umuser) AS mapping, p.since, p.seen_at, p.failed_at, p.error
  FROM coord_internal.twophase_participant p
  LEFT JOIN pg_foreign_server f ON f.oid = p.server
  LEFT JOIN pg_user_mapping u ON u.oid = p.mapping
  WHERE (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(p.role);

CREATE VIEW coord.twophase_history WITH (security_barrier) AS
  SELECT d.at, d.gtid, 'committed' AS event, NULL::text AS gid,
         ARRAY(SELECT f.srvname FROM pg_foreign_server f WHERE f.oid = ANY (d.servers) ORDER BY 1) AS servers,
         d.incarnation, coord_internal.role_name(d.role) AS owner, d.correlation_id, NULL::text AS reason
  FROM coord_internal.twophase_decision d
  WHERE (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(d.role)
  UNION ALL
  SELECT l.at, coord_internal.gid_gtid(l.gid), concat_ws(' ', l.event, l.outcome), l.gid,
         ARRAY(SELECT f.srvname FROM pg_foreign_server f WHERE f.oid = l.server),
         NULL, coord_internal.role_name(l.role), NULL, l.reason
  FROM coord_internal.twophase_log l
  WHERE (SELECT coord_internal.sees_all());

-- Applications' transactions.
CREATE VIEW coord.twophase_transactions WITH (security_barrier) AS
  SELECT a.gtid, a.label, a.status, coord_internal.role_name(a.owner) AS owner,
         (SELECT count(*) FROM coord_internal.twophase_app_participant p WHERE p.gtid = a.gtid) AS participants,
         a.created_at, a.deadline_at, a.decided_at, a.reason, a.correlation_id
  FROM coord_internal.twophase_app a
  WHERE (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(a.owner);

-- Their participants.  A server's is prepared and told by the transaction that decides.
CREATE VIEW coord.twophase_participants WITH (security_barrier) AS
  SELECT p.gtid, p.participant,
         CASE WHEN p.server IS NOT NULL THEN 'server'
              WHEN v.definition #>> '{steps,0,queue}' IS NOT NULL THEN 'queue' ELSE 'functions' END AS kind,
         CASE WHEN p.server IS NOT NULL AND a.status = 'committed' THEN 'committed'
              WHEN p.saga_id IS NULL THEN CASE a.status WHEN 'aborted' THEN 'aborted' ELSE 'enlisted' END
              WHEN s.status = 'suspended' THEN 'suspended'
              WHEN s.backward THEN 'aborting'
              WHEN s.id IS NOT NULL AND a.status = 'committed' THEN 'committing'
              WHEN t.status = 'completed' THEN 'prepared'
              WHEN s.id IS NOT NULL THEN 'preparing'
              ELSE a.status END AS state,
         coord_internal.role_name(p.owner) AS owner, p.server AS server_name,
         v.definition #>> '{steps,0,queue}' AS queue, p.saga_id,
         (SELECT l.error FROM coord_internal.saga_step l WHERE l.saga_id = p.saga_id AND l.error IS NOT NULL
          ORDER BY l.ordinal DESC LIMIT 1) AS error
  FROM coord_internal.twophase_app_participant p
  JOIN coord_internal.twophase_app a ON a.gtid = p.gtid
  LEFT JOIN coord_internal.saga_version v ON v.id = p.definition
  LEFT JOIN coord_internal.saga s ON s.id = p.saga_id
  LEFT JOIN coord_internal.saga_step t ON t.saga_id = s.id AND t.ordinal = 0
  WHERE (SELECT coord_internal.sees_all()) OR coord_internal.is_mine(a.owner) OR coord_internal.is_mine(p.owner);
