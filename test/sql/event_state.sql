-- The state of a stream: folding, snapshots, reducers that change, truncation, who may.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS coord;
DROP ROLE IF EXISTS regress_event_state, regress_event_other;
CREATE ROLE regress_event_state; CREATE ROLE regress_event_other;
GRANT coord_user TO regress_event_state, regress_event_other;
CREATE SCHEMA regress_event_state AUTHORIZATION regress_event_state;
GRANT ALL ON SCHEMA regress_event_state TO regress_event_other;
RESET client_min_messages;
\pset format unaligned
\pset tuples_only on
SET search_path = regress_event_state;
SET ROLE regress_event_state;
CREATE FUNCTION balance(state jsonb, event jsonb) RETURNS jsonb LANGUAGE sql AS
  $$ SELECT jsonb_build_object('sum', coalesce((state ->> 'sum')::int, 0) + (event ->> 'data')::int, 'last', event ->> 'type') $$;
CREATE FUNCTION count_calls(state jsonb, event jsonb) RETURNS jsonb LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('regress_event_state.calls'); RETURN balance(state, event); END $$;
CREATE SEQUENCE calls;
CREATE FUNCTION calls() RETURNS bigint LANGUAGE sql AS $$ SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM calls $$;

SELECT * FROM coord.stream_load('state-1', 'balance');
SELECT coord.append_many('state-1', (SELECT jsonb_agg(jsonb_build_object('type', 't' || i, 'data', i)) FROM generate_series(1, 1101) i));
SELECT state, version, pos = (SELECT max(pos) FROM coord.stream_read('state-1')) FROM coord.stream_load('state-1', 'balance');
SELECT state, version FROM coord.stream_load('state-1', 'balance', '{"sum": 1000}', 2);
SELECT state, version FROM coord.stream_load('state-1', 'balance', at_version => 0);
SELECT state, version FROM coord.stream_load('state-1', 'balance', at_version => 99999);

-- With a snapshot only what came after it is read.
SELECT coord.stream_snapshot('state-1', 'count_calls'), calls();
SELECT coord.append('state-1', 'more', '5');
SELECT state, version FROM coord.stream_load('state-1', 'count_calls');
SELECT calls();
SELECT state, version FROM coord.stream_load('state-1', 'count_calls', at_version => 3);
SELECT calls();
-- Another initial state, or a corrected reducer, does not use it.
SELECT state, version FROM coord.stream_load('state-1', 'count_calls', '{"sum": 1}', 1102);
SELECT calls();
CREATE OR REPLACE FUNCTION count_calls(state jsonb, event jsonb) RETURNS jsonb LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('regress_event_state.calls'); RETURN to_jsonb(coalesce(state::text::int, 0) + 1); END $$;
SELECT state, version FROM coord.stream_load('state-1', 'count_calls', '0');
SELECT calls();
SELECT coord.stream_snapshot('state-1', 'balance');
SELECT coord.stream_snapshot('state-1', 'balance');
SELECT coord.append('state-1', 'a', '1'), coord.stream_snapshot('state-1', 'balance');
SELECT coord.append('state-1', 'a', '1'), coord.stream_snapshot('state-1', 'balance');
RESET ROLE;
SELECT version FROM coord_internal.stream_snapshot WHERE stream = 'state-1' AND state ? 'last' AND version > 1101 ORDER BY 1;
SET ROLE regress_event_state;

-- What was truncated is told from a snapshot, or not at all.
SELECT coord.stream_truncate('state-1', 1104);
SELECT state, version FROM coord.stream_load('state-1', 'balance');
\set VERBOSITY terse
SELECT * FROM coord.stream_load('state-1', 'balance', at_version => 10);
SELECT * FROM coord.stream_load('state-1', 'balance', '{"sum": 1}');
SELECT coord.stream_snapshot('state-1', 'balance', '{"sum": 1}');

-- Its own events, and the snapshot of the transaction.
BEGIN;
SELECT coord.append('state-1', 'own', '100');
SELECT state, version FROM coord.stream_load('state-1', 'balance');
ROLLBACK;
SELECT state, version FROM coord.stream_load('state-1', 'balance');
SELECT coord.stream_tombstone('state-1');
SELECT state, version FROM coord.stream_load('state-1', 'balance');

-- Errors.
CREATE FUNCTION nothing(state jsonb, event jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE FUNCTION wrong(state jsonb, event jsonb) RETURNS text LANGUAGE sql AS 'SELECT NULL::text';
CREATE FUNCTION fails(state jsonb, event jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
SELECT coord.append('state-2', 'x', '1');
SELECT * FROM coord.stream_load('state-2', 'nothing');
SELECT * FROM coord.stream_load('state-2', 'wrong');
SELECT * FROM coord.stream_load('state-2', 'fails');
SELECT * FROM coord.stream_load('state-2', 'nosuch');
SELECT * FROM coord.stream_load('state-2', NULL);
SELECT * FROM coord.stream_load(NULL, 'balance');
SELECT * FROM coord.stream_load('state-2', 'balance', NULL);
SELECT * FROM coord.stream_load('state-2', 'balance', at_version => -1);
REVOKE EXECUTE ON FUNCTION balance FROM PUBLIC;

-- Others see nothing; those who may use it load, as themselves, and plant no snapshots.
SET ROLE regress_event_other;
CREATE FUNCTION mine(state jsonb, event jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(current_user)';
SELECT * FROM coord.stream_load('state-2', 'balance');
SELECT * FROM coord.stream_load('state-2', 'mine');
SELECT coord.stream_snapshot('state-2', 'mine');
SET ROLE regress_event_state;
SELECT coord.grant_use('stream', 'state-', 'regress_event_other');
SET ROLE regress_event_other;
SELECT state, version FROM coord.stream_load('state-2', 'mine');
SELECT coord.stream_snapshot('state-2', 'mine');
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA regress_event_state CASCADE;
DROP OWNED BY regress_event_state, regress_event_other;
DROP ROLE regress_event_state, regress_event_other;
