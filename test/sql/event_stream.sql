-- Streams: versions, coordinations, reading, truncating, ending, privileges.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS coord;
DROP ROLE IF EXISTS regress_stream_a, regress_stream_b;
CREATE ROLE regress_stream_a; CREATE ROLE regress_stream_b;
GRANT coord_user TO regress_stream_a, regress_stream_b;
RESET client_min_messages;
\pset format unaligned
\pset tuples_only on
SET ROLE regress_stream_a;
SELECT coalesce(max(pos), 0) AS start FROM coord.events \gset

-- Versions.
SELECT coord.stream_version('rs/acc-1');
SELECT coord.append('rs/acc-1', 'opened', '{"owner": "a"}', 0);
SELECT coord.append('rs/acc-1', 'opened', '{"owner": "a"}', 0);
SELECT coord.append('rs/acc-1', 'in', '{"amount": 5}', 1, '{"by": "me"}', NULL, '01234567-89ab-cdef-0123-456789abcdef', 'co-0', 'step 1');
SELECT coord.append('rs/acc-1', 'in', '{"amount": 6}', 1);
SELECT coord.append('rs/acc-1', 'in', '{"amount": 6}', 9);
SELECT coord.append('rs/none', 'in', '{}', 1);
SELECT coord.stream_version('rs/none'), count(*) FROM coord.streams WHERE stream = 'rs/none';
SELECT coord.append('rs/acc-1', 'out', '{"amount": 1}');
SELECT coord.append('rs/acc-1', 'out', '{"amount": 2}', event_id => '11111111-89ab-4def-8123-456789abcdef');
SELECT coord.append('rs/acc-1', 'out', '{"amount": 2}', event_id => '11111111-89ab-4def-8123-456789abcdef');
SELECT coord.append('rs/acc-1', 'out', '{"amount": 2}', 17, event_id => '11111111-89ab-4def-8123-456789abcdef');
SELECT coord.append('rs/acc-2', 'out', '{"amount": 2}', event_id => '11111111-89ab-4def-8123-456789abcdef');
SELECT coord.stream_version('rs/acc-1');

-- Several of one call, and of one transaction.
SELECT coord.append_many('rs/acc-2', '[{"type": "in", "data": 1}, {"type": "in", "data": {"x": 2}, "metadata": {"m": 1}, "event_id": "22222222-89ab-4def-8123-456789abcdef"}]', 1);
SELECT coord.append_many('rs/acc-2', '[{"type": "in", "data": 1}]', 1);
SELECT coord.append_many('rs/acc-2', '[]') IS NULL;
BEGIN;
SELECT coord.append('rs/acc-3', 'a', '1', 0), coord.append('rs/acc-3', 'b', '2', 1), coord.append('rs/acc-3', 'c', '3');
SELECT coord.stream_version('rs/acc-3'), count(*) FROM coord.stream_read('rs/acc-3');
ROLLBACK;
SELECT coord.stream_version('rs/acc-3'), count(*) FROM coord.stream_read('rs/acc-3');

-- A coordination: all or none.
SELECT coord.coordinate('rs-move', '[{"stream": "rs/acc-2", "type": "out", "data": 3, "step_id": "s1"}, {"stream": "rs/acc-1", "type": "in", "data": 3, "expected_version": 4, "metadata": {}}, {"stream": "rs/acc-2", "type": "noted", "data": 0}]') = coord.last_position();
SELECT stream, version, type, data, metadata, coordination_id, step_id FROM coord.coordination_events('rs-move');
SELECT coord.coordinate('rs-not', '[{"stream": "rs/acc-2", "type": "out", "data": 3}, {"stream": "rs/acc-1", "type": "in", "data": 3, "expected_version": 1}]');
SELECT count(*) FROM coord.coordination_events('rs-not');
SELECT coord.coordinate('rs-none', '[]') IS NULL;
SELECT stream, version, step_id FROM coord.coordination_events('co-0');

-- Reading.
SELECT version, type, key, data, metadata, event_id, correlation_id FROM coord.stream_read('rs/acc-1');
SELECT string_agg(version::text, ',') FROM coord.stream_read('rs/acc-1', 2, 3);
SELECT string_agg(version::text, ',') FROM coord.stream_read('rs/acc-1', backward => true);
SELECT string_agg(version::text, ',') FROM coord.stream_read('rs/acc-1', 3, 2, true);
SELECT count(*) FROM coord.stream_read('rs/acc-1', 99);
SELECT count(*) FROM coord.stream_read('rs/nothing');
-- With published ones in one order.
SELECT coord.publish('published') > 0;
SELECT coalesce(stream, '-'), version, type FROM coord.log_read(:start) ORDER BY pos;
SELECT string_agg(type, ',' ORDER BY pos) FROM coord.log_read(:start, types => '{published,noted}');

-- Truncated and ended.
SELECT coord.stream_truncate('rs/acc-1', 3), coord.stream_truncate('rs/acc-1', 3), coord.stream_truncate('rs/acc-1', 1);
SELECT string_agg(version::text, ',') FROM coord.stream_read('rs/acc-1');
SELECT coord.stream_truncate('rs/acc-1', 1000000);
SELECT string_agg(version::text, ',') FROM coord.stream_read('rs/acc-1');
SELECT coord.append('rs/acc-1', 'in', '{}', 5);
SELECT coord.stream_tombstone('rs/acc-1', 'closed'), coord.stream_tombstone('rs/acc-1', 'again');
SELECT coord.append('rs/acc-1', 'in', '{}');
SELECT coord.append('rs/acc-1', 'in', '{}', 0);
SELECT coord.stream_version('rs/acc-1');
SELECT stream, owner, version, truncated_before, tombstoned_at IS NOT NULL, reason FROM coord.streams WHERE stream LIKE 'rs/%' ORDER BY 1;

-- Somebody else's.
RESET ROLE;
SET ROLE regress_stream_b;
SELECT coord.append('rs/acc-2', 'in', '{}');
SELECT coord.stream_version('rs/acc-2'), (SELECT count(*) FROM coord.stream_read('rs/acc-2')), (SELECT count(*) FROM coord.coordination_events('rs-move'));
SELECT count(*) FROM coord.log_read(:start) WHERE stream LIKE 'rs/%';
SELECT count(*) FROM coord.events WHERE stream LIKE 'rs/%';
SELECT count(*) FROM coord.streams WHERE stream LIKE 'rs/%';
SELECT coord.stream_truncate('rs/acc-2', 1);
SELECT coord.stream_tombstone('rs/acc-2');
SELECT coord.stream_tombstone('rs/nothing');
-- A grant is for the grantor's own.
SELECT coord.grant_use('stream', 'rs/', 'regress_stream_b');
SELECT coord.append('rs/acc-2', 'in', '{}');
SELECT coord.revoke_use('stream', 'rs/', 'regress_stream_b');
RESET ROLE;
SET ROLE regress_stream_a;
SELECT coord.grant_use('stream', 'rs/acc-2', 'regress_stream_b'), coord.grant_use('stream', 'rs/acc-2', 'regress_stream_b');
RESET ROLE;
SET ROLE regress_stream_b;
SELECT coord.append('rs/acc-2', 'in', '{"by": "b"}') > 0, coord.stream_version('rs/acc-2') > 0;
SELECT count(*) > 0 FROM coord.log_read(:start) WHERE stream = 'rs/acc-2';
SELECT count(*) FROM coord.log_read(:start) WHERE stream = 'rs/acc-1';
SELECT stream FROM coord.streams WHERE stream LIKE 'rs/%';
SELECT coord.stream_tombstone('rs/acc-2');
RESET ROLE;
SET ROLE regress_stream_a;
SELECT coord.revoke_use('stream', 'rs/acc-2', 'regress_stream_b'), coord.revoke_use('stream', 'rs/acc-2', 'regress_stream_b');
RESET ROLE;

-- Errors.
\set VERBOSITY sqlstate
SELECT coord.append(NULL, 'a', '1');
SELECT coord.append('', 'a', '1');
SELECT coord.append(repeat('x', 201), 'a', '1');
SELECT coord.append('rs/x', NULL, '1');
SELECT coord.append('rs/x', 'a*', '1');
SELECT coord.append('rs/x', 'a', NULL);
SELECT coord.append('rs/x', 'a', '1', -1);
SELECT coord.append('rs/x', 'a', '1', coordination_id => '');
SELECT coord.append_many('rs/x', NULL);
SELECT coord.append_many('rs/x', '{}');
SELECT coord.append_many('rs/x', '"text"');
SELECT coord.append_many('rs/x', '[1]');
SELECT coord.append_many('rs/x', '[{"data": 1}]');
SELECT coord.append_many('rs/x', '[{"type": "a"}]');
SELECT coord.append_many('rs/x', '[{"type": "a", "data": 1, "event_id": "no"}]');
SELECT coord.coordinate(NULL, '[]');
SELECT coord.coordinate('x', '[{"type": "a", "data": 1}]');
SELECT coord.coordinate('x', '[{"stream": "rs/x", "type": "a", "data": 1, "expected_version": "1"}]');
SELECT coord.coordinate('x', '[{"stream": "rs/x", "type": "a", "data": 1, "expected_version": -1}]');
SELECT coord.stream_version(NULL);
SELECT coord.stream_read(NULL);
SELECT coord.stream_read('x', max_events => -1);
SELECT coord.stream_truncate('rs/acc-2', NULL);
SELECT coord.stream_version('rs/x');
DROP OWNED BY regress_stream_a, regress_stream_b;
DROP ROLE regress_stream_a, regress_stream_b;
