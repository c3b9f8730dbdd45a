-- The event log: publish, read in order, transactions, errors, privileges.
\set name regress_event_log
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS coord;
DROP ROLE IF EXISTS regress_event_log, regress_event_reader;
CREATE ROLE regress_event_log; CREATE ROLE regress_event_reader;
GRANT coord_user TO regress_event_log; GRANT coord_reader TO regress_event_reader;
RESET client_min_messages;
\pset format unaligned
\pset tuples_only on
\set VERBOSITY sqlstate
SET ROLE regress_event_log;
SELECT coalesce(max(pos), 0) AS start FROM coord.events \gset
CREATE TEMP TABLE x (what text, pos bigint);

SELECT coord.last_position() IS NULL;
INSERT INTO x SELECT 'placed', coord.publish('order.placed', '{"order": 1}', 'order-1', '01234567-89ab-cdef-0123-456789abcdef', '{"by": "me"}', '11111111-89ab-4def-8123-456789abcdef');
INSERT INTO x SELECT 'paid', coord.publish('order.paid');
SELECT coord.last_position() = (SELECT pos FROM x WHERE what = 'paid'), (SELECT pos FROM x WHERE what = 'paid') > (SELECT pos FROM x WHERE what = 'placed');
SELECT coord.publish_many('tick', ARRAY['{"n": 1}', '2', 'null']::jsonb[], ARRAY['a', NULL, 'b']) = coord.last_position();
SELECT coord.publish_many('tick', '{}') IS NULL;
SELECT type, key, data, metadata, stream, version, coordination_id, step_id, correlation_id, causation_id FROM coord.log_read(:start);
SELECT event_id, published_at <= clock_timestamp() FROM coord.log_read(:start, 1);
SELECT count(DISTINCT event_id) FROM coord.log_read(:start);

-- What is asked for.
SELECT string_agg(type, ',' ORDER BY pos) FROM coord.log_read(:start, types => '{order.*}');
SELECT string_agg(type, ',' ORDER BY pos) FROM coord.log_read(:start, types => '{order.paid,ti*}');
SELECT count(*) FROM coord.log_read(:start, types => '{*}');
SELECT count(*) FROM coord.log_read(:start, types => '{}');
SELECT count(*) FROM coord.log_read(:start, types => '{order}');
SELECT string_agg(type, ',' ORDER BY pos) FROM coord.log_read(:start, 2);
SELECT count(*) FROM coord.log_read(:start, 0) a, coord.log_read(coord.last_position()) b;
SELECT count(*) FROM coord.log_read(9007199254740991);
SELECT count(*) = (SELECT count(*) FROM coord.events) FROM coord.log_read(max_events => NULL);

-- The default of the correlation.
SET coord.correlation_id = 'aaaaaaaa-89ab-4def-8123-456789abcdef';
SELECT coord.publish('correlated') > 0, coord.publish_many('correlated', '{1}') > 0;
RESET coord.correlation_id;
SELECT correlation_id FROM coord.log_read(:start, types => '{correlated}');

-- A transaction's own are not read before it commits, and are gone with it; savepoints.
BEGIN;
SELECT coord.publish('mine') > 0;
SELECT count(*) FROM coord.log_read(:start, types => '{mine}');
SELECT pid = pg_backend_pid(), gid, position = coord.last_position() FROM coord.horizon_holders;
SAVEPOINT s;
SELECT coord.publish('mine.undone') > 0;
ROLLBACK TO s;
SELECT coord.publish('mine.too') > 0;
COMMIT;
SELECT string_agg(type, ',' ORDER BY pos) FROM coord.log_read(:start, types => '{mine*}');
SELECT count(*) FROM coord.horizon_holders;
BEGIN;
SELECT coord.publish('rolled back') > 0;
ROLLBACK;
SELECT count(*) FROM coord.log_read(:start, types => '{rolled*}');
SELECT count(*) FROM coord.horizon_holders;

-- A prepared transaction holds those behind it back, and nobody else.
BEGIN;
SELECT coord.publish('prepared') > 0;
PREPARE TRANSACTION 'regress event log';
SELECT coord.publish('behind') > 0;
SELECT count(*) FROM coord.log_read(:start, types => '{prepared,behind}');
SELECT gid, pid, position = coord.last_position() - 1 FROM coord.horizon_holders;
COMMIT PREPARED 'regress event log';
SELECT string_agg(type, ',' ORDER BY pos) FROM coord.log_read(:start, types => '{prepared,behind}');
SELECT count(*) FROM coord.horizon_holders;

-- An older snapshot does not make the reader skip what comes.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM coord.log_read(:start, types => '{later}');
SELECT count(*) FROM coord.log_read(:start, types => '{behind}');
COMMIT;

-- Errors.
SELECT coord.publish(NULL);
SELECT coord.publish('');
SELECT coord.publish('a*');
SELECT coord.publish(repeat('x', 201));
SELECT coord.publish('a', NULL);
SELECT coord.publish('a', key => '');
SELECT coord.publish('a', key => repeat('x', 201));
SELECT coord.publish_many('a', NULL);
SELECT coord.publish_many('a', ARRAY[NULL]::jsonb[]);
SELECT coord.publish_many('a', '{1,2}', '{x}');
SELECT coord.log_read(types => '{a*b}');
SELECT coord.log_read(types => ARRAY[NULL]::text[]);
SELECT coord.log_read(types => '{""}');
SELECT coord.log_read(max_events => -1);
BEGIN READ ONLY;
SELECT coord.publish('a');
ROLLBACK;
SELECT count(*) FROM coord.horizon_holders;

-- Who may.
RESET ROLE;
SET ROLE regress_event_reader;
SELECT coord.publish('a');
SELECT coord.log_read();
SELECT count(*) > 0 FROM coord.events WHERE type = 'order.paid';
SELECT count(*) FROM coord_internal.event_log;
RESET ROLE;
DROP OWNED BY regress_event_log, regress_event_reader;
DROP ROLE regress_event_log, regress_event_reader;
