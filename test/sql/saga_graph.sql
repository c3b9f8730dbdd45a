-- What runs after what: edges, trigger rules, conditions, results, documents.
\set name regress_saga_graph
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

-- A list is a chain; '{}' is no dependency; the order in the list is no order.
SELECT coord.saga_define('list', ARRAY[coord.step('a', 'act'), coord.step('b', 'act'), coord.step('c', 'act', after => '{}'), coord.step('d', 'act')]);
SELECT coord.saga_start('list', key => 'list') IS NOT NULL;
SELECT coord.saga_define('diamond', ARRAY[coord.step('bottom', 'act', after => '{left,right}'), coord.step('left', 'act', after => '{top}'),
  coord.step('right', 'act', after => '{top}'), coord.step('top', 'act', after => '{}')]);
SELECT coord.saga_start('diamond', key => 'diamond') IS NOT NULL;
-- two diamonds in a row, with an edge past both
SELECT coord.saga_define('diamonds', ARRAY[coord.step('a', 'act'), coord.step('b1', 'act', after => '{a}'), coord.step('b2', 'act', after => '{a}'),
  coord.step('c', 'act', after => '{b1,b2}'), coord.step('d1', 'act', after => '{c}'), coord.step('d2', 'act', after => '{c}'), coord.step('e', 'act', after => '{d1,d2,a}')]);
SELECT coord.saga_start('diamonds', key => 'diamonds') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show(key) FROM unnest('{list,diamond,diamonds}'::text[]) AS key;
-- Each step after those it depends on.
SELECT s.key, count(*), bool_and(before.n < after.n)
FROM coord.sagas s JOIN coord.saga_definitions d USING (name, version) CROSS JOIN jsonb_array_elements(d.definition -> 'steps') AS step
CROSS JOIN jsonb_array_elements_text(step -> 'after') AS edge
JOIN trace before ON before.saga = s.id AND before.what = edge JOIN trace after ON after.saga = s.id AND after.what = step ->> 'name'
WHERE s.owner = current_user GROUP BY s.key ORDER BY s.key COLLATE "C";
SELECT key, count(*) FROM trace JOIN coord.sagas ON id = saga GROUP BY key ORDER BY key COLLATE "C";

-- Trigger rules: against every outcome of two steps before.
CREATE TABLE outcomes (n int GENERATED ALWAYS AS IDENTITY, x text, y text);
INSERT INTO outcomes (x, y) VALUES ('completed', 'completed'), ('completed', 'skipped'), ('completed', 'failed'), ('skipped', 'skipped'), ('skipped', 'failed'), ('failed', 'failed');
CREATE FUNCTION outcome(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  IF context -> 'input' ->> (context ->> 'step') = 'failed' THEN RAISE 'failed'; END IF;
  RETURN '1';
END $$;
SELECT coord.saga_define('rules', ARRAY[
  coord.step('x', 'outcome', after => '{}', optional => true, condition => '$.input.x != "skipped"'),
  coord.step('y', 'outcome', after => '{}', optional => true, condition => '$.input.y != "skipped"')]
  || ARRAY(SELECT coord.step(rule, 'act', after => '{x,y}', trigger_rule => rule) FROM unnest('{none_failed,all_success,all_done,one_success,one_failed,always}'::text[]) AS rule));
SELECT count(coord.saga_start('rules', jsonb_build_object('x', x, 'y', y), key => x || ' ' || y)) FROM outcomes;
CALL coord.run_pending() \gset
SELECT format('%s: %s', x || ' ' || y, (SELECT coord.saga_status(find(x || ' ' || y)) || ': ' || string_agg(step, ' ' ORDER BY ordinal) FILTER (WHERE ordinal > 1 AND status = 'completed')
    || ', not ' || string_agg(step, ' ' ORDER BY ordinal) FILTER (WHERE ordinal > 1 AND status = 'skipped')
    FROM coord.saga_steps WHERE saga_id = find(x || ' ' || y)))
FROM outcomes ORDER BY n;
SELECT format('%s %s', x, y) FROM outcomes o WHERE (SELECT array_agg(status ORDER BY ordinal) FROM coord.saga_steps WHERE saga_id = find(x || ' ' || y) AND ordinal < 2) <> ARRAY[x, y];

-- A skip cascades under all_success only.
SELECT coord.saga_define('cascade', ARRAY[coord.step('a', 'act', condition => 'false'), coord.step('b', 'act'), coord.step('c', 'act', after => '{a}', trigger_rule => 'all_success'),
  coord.step('d', 'act', trigger_rule => 'all_success'), coord.step('e', 'act', after => '{b}', trigger_rule => 'all_success'), coord.step('end', 'act', after => '{d,e}')]);
SELECT coord.saga_start('cascade', key => 'cascade') IS NOT NULL;
-- A whole saga that is skipped is completed.
SELECT coord.saga_define('all skipped', ARRAY[coord.step('a', 'act', condition => 'false')] || ARRAY(SELECT coord.step('s' || i, 'act', trigger_rule => 'all_success') FROM generate_series(1, 500) i));
SELECT coord.saga_start('all skipped', key => 'all skipped') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('cascade');
SELECT coord.saga_status(find('all skipped')), status, count(*) FROM coord.saga_steps WHERE saga_id = find('all skipped') GROUP BY status;
SELECT traced('all skipped'), coord.saga_output(find('all skipped'));

-- A failed optional step: none_failed, the default, does not come after it, and that is no failure.
INSERT INTO fault VALUES ('maybe', 1, 'P0001');
SELECT coord.saga_define('optional', ARRAY[coord.step('maybe', 'act', optional => true), coord.step('next', 'act'), coord.step('then', 'act'),
  coord.step('instead', 'act', after => '{maybe}', trigger_rule => 'one_failed'), coord.step('always', 'act', after => '{maybe,next}', trigger_rule => 'all_done')]);
SELECT coord.saga_start('optional', key => 'optional') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('optional');
SELECT coord.saga_output(find('optional'));

-- Conditions: the first item; a boolean as it is, none or null is false, all else true.
CREATE TABLE conditions (n int GENERATED ALWAYS AS IDENTITY, condition jsonpath);
INSERT INTO conditions (condition) VALUES ('true'), ('false'), ('null'), ('0'), ('""'), ('$.input.list'), ('$.input.list[*]'), ('$.input.empty'), ('$.input.empty[*]'),
  ('$.input.object'), ('$.input.no'), ('$.input.yes'), ('$.input.nothing'), ('$.input.missing'), ('$.input.list[*] ? (@ == true)'), ('$.input.n > 2'), ('$.input.n > 3'),
  ('$.input.missing > 3'), ('$.input.text > 3'), ('exists($.input.missing)'), ('$.results.a.by == "a"'), ('$.results.missing'), ('$.attempt == 1'), ('$.step == "b"'),
  ('$.key starts with "condition"'), ('$.input.list.size() == 2'), ('$.input.when.datetime() < "2030-01-01".datetime()'), ('strict $.input.missing'), ('$.input.text.double()'), ('strict $.input.list.x');
SELECT count(coord.saga_define('condition ' || n, ARRAY[coord.step('a', 'act'), coord.step('b', 'act', condition => condition)])) FROM conditions;
SELECT count(coord.saga_start('condition ' || n, '{"list": [false, true], "empty": [], "object": {}, "no": false, "yes": true, "nothing": null, "n": 3, "text": "x",
  "when": "2029-12-31"}', key => 'condition ' || n)) FROM conditions;
CALL coord.run_pending() \gset
SELECT format('%s: %s', condition, (SELECT concat_ws(' ', status, sqlstate) FROM coord.saga_steps WHERE saga_id = find('condition ' || n) AND step = 'b')) FROM conditions ORDER BY n;
SELECT count(coord.saga_drop('condition ' || n)) FROM conditions;
-- A failed condition is retried like the action it belongs to; it is asked anew.
CREATE FUNCTION count_calls(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT context -> 'attempt' $$;
SELECT coord.saga_define('asked', ARRAY[coord.step('a', 'count_calls', condition => 'strict $.input.x', retry_on => '{22}', retry_delay => '1 s')]);
SELECT coord.saga_start('asked', '{}', key => 'asked') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('asked');
SELECT coord.saga_patch(find('asked'), '{"x": true}'), next('asked');
CALL coord.run_pending() \gset
SELECT show('asked');

-- The document, to the letter.
CREATE FUNCTION nothing(jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION keys(context jsonb) RETURNS jsonb LANGUAGE sql RETURN to_jsonb(ARRAY(SELECT jsonb_object_keys(context)));
SELECT coord.saga_define('document', ARRAY[coord.step('first "step"', 'act'), coord.step('nothing', 'nothing'), coord.step('echo', 'echo'),
  coord.step('skipped', 'act', condition => 'false'), coord.step('keys', 'keys')]);
SELECT coord.saga_start('document', '{"n": 1, "text": "ü"}', key => 'the key', correlation_id => '01234567-89ab-cdef-0123-456789abcdef') IS NOT NULL;
SELECT coord.saga_start('document') AS id \gset
SELECT coord.saga_start('document', '[1]', key => 'an array') IS NOT NULL, coord.saga_start('document', 'null', key => 'null') IS NOT NULL, coord.saga_start('document', NULL, key => 'sql null') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT jsonb_pretty(echo || jsonb_build_object('saga_id', 'ID', 'idempotency_key', regexp_replace(echo ->> 'idempotency_key', '^[0-9]+/', 'ID/'))), keys
  FROM coord.sagas CROSS JOIN jsonb_to_record(output) AS (echo jsonb, keys jsonb) WHERE id = find('the key');
SELECT (output #>> '{echo,saga_id}')::bigint = id, output #>> '{echo,idempotency_key}' = id || '/echo', output #> '{echo,key}', output #> '{echo,input}',
  (output #>> '{echo,correlation_id}')::uuid = correlation_id, output #>> '{echo,correlation_id}' ~ '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'
  FROM coord.sagas WHERE id = :id;
SELECT key, input, output #> '{echo,input}' FROM coord.sagas WHERE id IN (find('an array'), find('null'), find('sql null')) ORDER BY key;

-- Results of every kind.
CREATE FUNCTION given(context jsonb) RETURNS jsonb LANGUAGE sql RETURN context -> 'input' -> 'give';
CREATE FUNCTION sql_null(jsonb) RETURNS jsonb LANGUAGE sql RETURN NULL::jsonb;
SELECT coord.saga_define('give', ARRAY[coord.step('a', 'given'), coord.step('b', 'sql_null'), coord.step('c', 'keys'), coord.step('d', 'echo')]);
SELECT count(coord.saga_start('give', jsonb_build_object('give', g), key => g::text)) FROM jsonb_array_elements('[1, -2.50, "x", true, null, [], {}, [1, [2, {"x": null}]], {"y": {"z": []}}]') AS g;
CALL coord.run_pending() \gset
SELECT key, output - 'd', output #> '{d,results}' FROM coord.sagas WHERE name = 'give' AND owner = current_user ORDER BY id;

-- A result of 10 MB, to be carried to the next step, over a retry between them, and back.
CREATE FUNCTION large(context jsonb) RETURNS jsonb LANGUAGE sql RETURN jsonb_build_object('large', repeat('x', 10000000));
CREATE FUNCTION measure(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN PERFORM note(context, 'measure'); RETURN to_jsonb(length(context #>> '{results,large,large}')); END $$;
INSERT INTO fault VALUES ('measure', 1, '40001'), ('end', 1, 'P0001');
CREATE FUNCTION measure_undo(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM note(context, 'undo ' || length(context #>> '{result,large}')); END $$;
SELECT coord.saga_define('large', ARRAY[coord.step('large', 'large', compensation => 'measure_undo'), coord.step('measure', 'measure'), coord.step('end', 'act')]);
SELECT coord.saga_start('large', key => 'large') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT next('large');
CALL coord.run_pending() \gset
SELECT status, length(output #>> '{large,large}'), output -> 'measure' FROM coord.sagas WHERE id = find('large');
SELECT traced('large');

-- A chain of 1,000, and a thousand beside each other.
CREATE FUNCTION count_up(context jsonb) RETURNS jsonb LANGUAGE sql
  RETURN to_jsonb(1 + coalesce((context -> 'results' ->> ('s' || substr(context ->> 'step', 2)::int - 1))::int, 0));
SELECT coord.saga_define('chain', ARRAY(SELECT coord.step('s' || i, 'count_up') FROM generate_series(1, 1000) i ORDER BY i));
SELECT coord.saga_define('fan', ARRAY[coord.step('first', 'nothing')] || ARRAY(SELECT coord.step('s' || i, 'nothing', after => '{first}') FROM generate_series(1, 1000) i ORDER BY i)
  || coord.step('last', 'keys', after => ARRAY(SELECT 's' || i FROM generate_series(1, 1000) i)));
SELECT coord.saga_start('chain', key => 'chain') IS NOT NULL, coord.saga_start('fan', key => 'fan') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT status, output -> 's1000', (SELECT count(*) FROM jsonb_object_keys(output)) FROM coord.sagas WHERE id = find('chain');
SELECT s.status, t.status, count(*), count(DISTINCT t.ordinal) FROM coord.sagas s JOIN coord.saga_steps t ON t.saga_id = s.id WHERE s.id = find('fan') GROUP BY s.status, t.status;

-- Steps of one saga see what the steps before them did, in the same transaction or not.
CREATE TABLE account (balance int);
INSERT INTO account VALUES (0);
CREATE FUNCTION add_one(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE b int;
BEGIN UPDATE account SET balance = balance + 1 RETURNING balance INTO b; RETURN to_jsonb(b); END $$;
SELECT coord.saga_define('account', ARRAY[coord.step('a', 'add_one'), coord.step('b', 'add_one'), coord.step('c', 'add_one')]);
SELECT coord.saga_start('account', key => 'account') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_output(find('account'));

\set include :abs_srcdir/include/saga_end.psql
\i :include
