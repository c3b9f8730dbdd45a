-- A step for each of some items.
\set name regress_saga_for_each
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/saga_waits.psql
\i :include

-- What the function is given; results in the order of the items.
CREATE FUNCTION given(context jsonb) RETURNS jsonb LANGUAGE sql
  RETURN jsonb_build_object('item', context -> 'item', 'index', context -> 'index', 'attempt', context -> 'attempt', 'step', context -> 'step', 'result', context -> 'result', 'error', context -> 'error',
    'key', regexp_replace(context ->> 'idempotency_key', '^[0-9]+', 'ID'));
CREATE FUNCTION item(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note(context, format('%s[%s]=%s', context ->> 'step', context ->> 'index', context -> 'item'));
  RETURN jsonb_build_object('of', context -> 'item');
END $$;
CREATE FUNCTION undo_item(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note(context, format('undo %s[%s]=%s %s', context ->> 'step', context ->> 'index', context -> 'item', context ->> 'result'));
END $$;
SELECT coord.saga_define('given', ARRAY[coord.step('a', 'given', for_each => '$.input.items[*]'), coord.step('b', 'given', for_each => '$.results.a[*].item')]);
SELECT coord.saga_start('given', '{"items": ["x", {"y": [1]}, null]}', key => 'given') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT step, e FROM coord.saga_steps CROSS JOIN jsonb_array_elements(result) WITH ORDINALITY AS r (e, n) WHERE saga_id = find('given') AND item IS NULL ORDER BY ordinal, n;
SELECT coord.saga_status(find('given'));

-- Which items: those of the path, without unwrapping.  An array is one item.
CREATE TABLE paths (n int GENERATED ALWAYS AS IDENTITY, path jsonpath);
INSERT INTO paths (path) VALUES ('$.input.list[*]'), ('$.input.list'), ('$.input.empty[*]'), ('$.input.empty'), ('$.input.missing'), ('$.input.missing[*]'), ('$.input.n'), ('$.input.null'), ('$.input.nested[*]'),
  ('$.input.nested[*][*]'), ('$.input.one[*]'), ('$.input.object.*'), ('$.input.list[*] ? (@ > 1)'), ('strict $.input.missing'), ('strict $.input.n[*]'), ('$.input.nulls[*]'), ('$.input.text.double()'), ('$.results.nobody[*]');

SELECT count(coord.saga_define('path ' || n, ARRAY[coord.step('a', 'item', for_each => path)])) FROM paths;
SELECT count(coord.saga_start('path ' || n, '{"list": [1, 2, 3], "empty": [], "n": 7, "null": null, "nested": [[1, 2], [], [[3]]], "one": ["only"], "object": {"a": 1, "b": [2]}, "nulls": [null, null], "text": "x"}', key => 'path ' || n)) FROM paths;
CALL coord.run_pending() \gset
SELECT format('%s: %s', path, (SELECT concat_ws(' ', status, result, sqlstate) FROM coord.saga_steps WHERE saga_id = find('path ' || n) AND item IS NULL)) FROM paths ORDER BY n;
SELECT unattended();
SELECT count(coord.saga_drop('path ' || n)) FROM paths;

-- No items: the step is completed with an empty array, and what comes after it runs.
SELECT coord.saga_define('none', ARRAY[coord.step('a', 'item', for_each => '$.input[*]', compensation => 'undo_item', max_parallel => 1), coord.step('b', 'act')]);
INSERT INTO fault VALUES ('b', 1, 'P0001');
SELECT coord.saga_start('none', '[]', key => 'none') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('none');
DELETE FROM fault;

-- A path that does not fit is retried as any failure, and looks at the input anew.
SELECT coord.saga_define('mended', ARRAY[coord.step('a', 'item', for_each => 'strict $.input.list[*]', retry_on => '{22}')]);
SELECT coord.saga_start('mended', key => 'mended') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('mended');
SELECT unattended();
SELECT coord.saga_patch(find('mended'), '{"list": [1, 2]}'), next('mended');
CALL coord.run_pending() \gset
SELECT show('mended');

-- A condition is the step's, asked once, before there are items.
SELECT coord.saga_define('condition', ARRAY[coord.step('a', 'item', for_each => '$.input.list[*]', condition => '$.input.wanted'), coord.step('b', 'act')]);
SELECT coord.saga_start('condition', '{"list": [1, 2], "wanted": true}', key => 'wanted') IS NOT NULL, coord.saga_start('condition', '{"list": [1, 2], "wanted": false}', key => 'not wanted') IS NOT NULL;
SELECT coord.saga_define('condition of item', ARRAY[coord.step('a', 'item', for_each => '$.input.list[*]', condition => '$.item > 1')]);
SELECT coord.saga_start('condition of item', '{"list": [1, 2]}', key => 'condition of item') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show(key) FROM unnest('{wanted,not wanted,condition of item}'::text[]) AS key;

-- Never more than max_parallel in hand, in the order of the items; the rest is held back.
SELECT coord.saga_define('two at a time', ARRAY[coord.step('a', 'item', for_each => '$.input[*]', max_parallel => 2, compensation => 'undo_item'), coord.step('end', 'act')]);
SELECT coord.saga_start('two at a time', '[10, 11, 12, 13, 14]', key => 'two') IS NOT NULL;
CALL coord.run_pending(1) \gset
SELECT items('two', 'a');
CREATE TABLE in_hand (n int GENERATED ALWAYS AS IDENTITY, items text);
CREATE PROCEDURE watch(key text, step text, phase text DEFAULT 'action') LANGUAGE plpgsql AS $$
DECLARE turns int := 1;
BEGIN
  WHILE turns > 0 LOOP
    CALL coord.run_pending(1, turns);
    INSERT INTO in_hand (items) SELECT items(key, step, phase) WHERE items(key, step, phase) IS DISTINCT FROM (SELECT items FROM in_hand ORDER BY n DESC LIMIT 1);
    INSERT INTO in_hand (items) SELECT unattended();
    COMMIT;
  END LOOP;
END $$;
CALL watch('two', 'a');
SELECT items FROM in_hand ORDER BY n;
SELECT show('two'), traced('two');
-- the same on the way back, and after failures
TRUNCATE in_hand;
INSERT INTO fault VALUES ('end', 1, 'P0001'), ('a[1]=11', 1, '40001');
SELECT coord.saga_start('two at a time', '[10, 11, 12, 13, 14]', key => 'two back') IS NOT NULL;
CALL watch('two back', 'a');
SELECT next('two back');
SELECT items('two back', 'a');
CALL watch('two back', 'a', 'compensation');
SELECT at(clock() + '2 s') IS NOT NULL;
CALL watch('two back', 'a', 'compensation');
SELECT items FROM in_hand ORDER BY n;
SELECT show('two back'), traced('two back');
-- one at a time is a queue
SELECT coord.saga_define('one at a time', ARRAY[coord.step('a', 'item', for_each => '$.input[*]', max_parallel => 1)]);
SELECT coord.saga_start('one at a time', '[1, 2, 3]', key => 'one') IS NOT NULL;
CALL coord.run_pending(1) \gset
SELECT items('one', 'a');
CALL coord.run_pending(1) \gset
SELECT items('one', 'a');
CALL coord.run_pending() \gset
SELECT show('one'), traced('one');

-- Failing items: each has its own attempts, other items go on; too many are a failure of the step.
TRUNCATE fault;
INSERT INTO fault VALUES ('a[1]=1', 2, '40001', 'later'), ('a[2]=2', 1, 'P0001', 'never'), ('a[3]=3', 3, '40001', 'too often');
SELECT coord.saga_define('failing', ARRAY[coord.step('a', 'item', for_each => '$.input[*]', compensation => 'undo_item', retry_delay => '0', max_failed_items => 1), coord.step('b', 'act')]);
SELECT coord.saga_start('failing', '[0, 1]', key => 'retried') IS NOT NULL, coord.saga_start('failing', '[0, 1, 2]', key => 'tolerated') IS NOT NULL, coord.saga_start('failing', '[0, 1, 2, 3]', key => 'too many') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('retried'), traced('retried');
SELECT show('tolerated'), traced('tolerated');
SELECT show('too many'), traced('too many');
SELECT step, phase, attempt, error, sqlstate, error_detail FROM coord.saga_log WHERE saga_id = find('too many') ORDER BY id;
SELECT unattended();
-- a tolerated failure is not compensated, the others are
INSERT INTO fault VALUES ('b', 1, 'P0001');
SELECT coord.saga_start('failing', '[0, 1, 2]', key => 'tolerated back') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('tolerated back'), traced('tolerated back');
-- as soon as there are too many nothing is begun any more
TRUNCATE fault;
INSERT INTO fault VALUES ('a[0]=0', 1, 'P0001');
SELECT coord.saga_define('at once', ARRAY[coord.step('a', 'item', for_each => '$.input[*]', max_parallel => 1, compensation => 'undo_item')]);
SELECT coord.saga_start('at once', '[0, 1, 2, 3]', key => 'at once') IS NOT NULL;
CALL coord.run_pending(2) \gset
SELECT items('at once', 'a');
CALL coord.run_pending() \gset
SELECT show('at once'), traced('at once');

-- Compensation: of completed items only, with their own item, index and result.
CREATE TABLE documents (context jsonb);
CREATE FUNCTION document(context jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO documents VALUES (context) $$;
SELECT coord.saga_define('documents', ARRAY[coord.step('a', 'item', for_each => '$.input[*]', compensation => 'document')]);
INSERT INTO fault VALUES ('a[1]="b"', 1, 'P0001', 'b is bad');
SELECT coord.saga_start('documents', '["a", "b", null, {"c": []}]', key => 'documents') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('documents');
SELECT given(context) FROM documents ORDER BY context -> 'index';
SELECT context -> 'results' FROM documents LIMIT 1;

-- A compensation that fails for one item: suspended; a retry is of that item alone.
TRUNCATE fault;
INSERT INTO fault VALUES ('b', 1, 'P0001', 'at the end'), ('undo a[1]=1 {"of": 1}', 9, 'P0001', 'cannot undo');
SELECT coord.saga_define('undo', ARRAY[coord.step('a', 'item', for_each => '$.input[*]', compensation => 'undo_item'), coord.step('b', 'act')]);
SELECT coord.saga_start('undo', '[0, 1, 2]', key => 'undo') IS NOT NULL, coord.saga_start('undo', '[0, 1, 2]', key => 'undo skipped') IS NOT NULL, coord.saga_start('undo', '[0, 1, 2]', key => 'undo given up') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('undo'), traced('undo'), items('undo', 'a', 'compensation');
SELECT name, waits_for, no_ids(repair) FROM coord.stuck WHERE kind = 'saga' ORDER BY id::bigint;
SELECT unattended();
TRUNCATE fault;
SELECT coord.saga_retry(find('undo'), 'a');
CALL coord.run_pending() \gset
SELECT show('undo'), traced('undo');
SELECT coord.saga_skip(find('undo skipped'), 'a', reason => 'done by hand');
CALL coord.run_pending() \gset
SELECT show('undo skipped'), traced('undo skipped');
SELECT coord.saga_abandon(find('undo given up'));
SELECT show('undo given up');
SELECT unattended();

-- A step whose items failed and that is retried runs those again that are not completed.
INSERT INTO fault VALUES ('a[1]=1', 9, 'P0001', 'boom');
SELECT coord.saga_define('again', ARRAY[coord.step('a', 'item', for_each => '$.input[*]', compensation => 'undo_item')], on_exhausted => 'suspend');
SELECT count(coord.saga_start('again', '[0, 1, 2]', key => key)) FROM unnest('{again,patched,skipped,cancelled,abandoned}'::text[]) AS key;
CALL coord.run_pending() \gset
SELECT show('again'), traced('again'), items('again', 'a');
SELECT unattended();
SELECT coord.saga_retry(find('again'));
CALL coord.run_pending() \gset
SELECT show('again'), traced('again');
TRUNCATE fault;
SELECT coord.saga_retry(find('again'), 'a');
CALL coord.run_pending() \gset
SELECT show('again'), traced('again');
-- its items stay what they are, whatever becomes of the input
SELECT coord.saga_patch(find('patched'), '[7]'), coord.saga_retry(find('patched'));
CALL coord.run_pending() \gset
SELECT show('patched'), traced('patched');
SELECT coord.saga_skip(find('skipped'), 'a', '"by hand"');
CALL coord.run_pending() \gset
SELECT show('skipped'), traced('skipped');
-- cancelled: what is completed is compensated
SELECT coord.saga_cancel(find('cancelled'));
CALL coord.run_pending() \gset
SELECT show('cancelled'), traced('cancelled');
SELECT coord.saga_abandon(find('abandoned'));
SELECT show('abandoned');
SELECT unattended();

-- An optional step that fails: the graph goes on, and later its completed items are compensated.
INSERT INTO fault VALUES ('a[1]=1', 1, 'P0001', 'never mind');
SELECT coord.saga_define('optional', ARRAY[coord.step('a', 'item', for_each => '$.input[*]', compensation => 'undo_item', optional => true), coord.step('b', 'act', trigger_rule => 'all_done')]);
SELECT coord.saga_start('optional', '[0, 1]', key => 'optional') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('optional'), coord.saga_output(find('optional'));
INSERT INTO fault VALUES ('b', 1, 'P0001', 'after all');
SELECT coord.saga_start('optional', '[0, 1]', key => 'optional back') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('optional back'), traced('optional back');

-- The function is dropped midway: suspended; it goes on where it was, never with more than max_parallel.
TRUNCATE fault, in_hand;
CREATE FUNCTION vanishing(jsonb) RETURNS jsonb LANGUAGE sql RETURN $1 -> 'item';
SELECT coord.saga_define('vanishing', ARRAY[coord.step('a', 'vanishing', for_each => '$.input[*]', max_parallel => 2)]);
SELECT coord.saga_start('vanishing', '[0, 1, 2, 3, 4, 5]', key => 'vanishing') IS NOT NULL;
CALL coord.run_pending(2) \gset
SELECT items('vanishing', 'a');
DROP FUNCTION vanishing;
CALL coord.run_pending() \gset
SELECT show('vanishing');
SELECT waits_for, no_ids(repair) FROM coord.stuck WHERE kind = 'saga' ORDER BY id::bigint;
SELECT unattended();
SELECT coord.saga_retry(find('vanishing'));
CALL coord.run_pending() \gset
SELECT show('vanishing');
SELECT unattended();
CREATE FUNCTION vanishing(jsonb) RETURNS jsonb LANGUAGE sql RETURN $1 -> 'item';
SELECT coord.saga_retry(find('vanishing'), 'a');
CALL watch('vanishing', 'a');
SELECT items FROM in_hand WHERE items ~ 'more than';
SELECT show('vanishing');
-- two such steps at a time, and two that fail at a time
SELECT coord.saga_define('both', ARRAY[coord.step('a', 'vanishing', for_each => '$.input[*]', after => '{}'), coord.step('b', 'vanishing', for_each => '$.input[*]', after => '{}'), coord.step('c', 'item', for_each => '$.input[*]', after => '{}'),
  coord.step('d', 'item', for_each => '$.input[*]', after => '{}')], on_exhausted => 'suspend');
SELECT coord.saga_start('both', '[0, 1]', key => 'both') IS NOT NULL;
CALL coord.run_pending(1) \gset
DROP FUNCTION vanishing;
INSERT INTO fault VALUES ('c[1]=1', 1, 'P0001', 'c failed'), ('d[0]=0', 1, 'P0001', 'd failed');
CALL coord.run_pending() \gset
SELECT show('both');
SELECT unattended();
CREATE FUNCTION vanishing(jsonb) RETURNS jsonb LANGUAGE sql RETURN $1 -> 'item';
TRUNCATE fault;
SELECT coord.saga_retry(find('both'));
CALL coord.run_pending() \gset
SELECT show('both'), traced('both');

-- Verbs called by an item on its own saga take effect after it.
CREATE FUNCTION verb(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE status text;
BEGIN
  PERFORM note(context, format('%s[%s]', context ->> 'step', context ->> 'index'));
  IF context ->> 'index' = '1' THEN
    EXECUTE format('SELECT coord.saga_%s(%s)', context #>> '{input,verb}', format(context #>> '{input,arguments}', context ->> 'saga_id')) INTO status;
  END IF;
  RETURN to_jsonb(status);
END $$;
SELECT coord.saga_define('verb', ARRAY[coord.step('a', 'verb', for_each => '$.input.items[*]', max_parallel => 1, compensation => 'undo'), coord.step('b', 'act')]);
SELECT count(coord.saga_start('verb', jsonb_build_object('items', '[0, 1, 2]'::jsonb, 'verb', verb, 'arguments', arguments), key => 'verb ' || verb))
FROM (VALUES ('cancel', '%s'), ('pause', '%s'), ('abandon', '%s'), ('skip', '%s, ''a'', ''"by itself"'''), ('patch', '%s, ''{"new": 1}''')) AS v (verb, arguments);
CALL coord.run_pending() \gset
SELECT show('verb ' || verb), traced('verb ' || verb) FROM unnest('{cancel,pause,abandon,skip,patch}'::text[]) AS verb;
SELECT unattended();
SELECT coord.saga_resume(find('verb pause'));
CALL coord.run_pending() \gset
SELECT show('verb pause'), traced('verb pause');

-- Paused, with items in every state; what is in hand stays, nothing new is begun.
TRUNCATE fault;
INSERT INTO fault VALUES ('a[0]=10', 1, '40001', 'later');
SELECT count(coord.saga_start('two at a time', '[10, 11, 12, 13]', key => key)) FROM unnest('{paused,cancelled there,skipped there,abandoned there,deadline there}'::text[]) AS key;
SELECT coord.saga_start('two at a time', '[10, 11, 12, 13]', key => 'with deadline', deadline => '1 h') IS NOT NULL;
CALL coord.run_pending(6) \gset
CALL coord.run_pending(12) \gset
SELECT key, items(key, 'a') FROM unnest('{paused,with deadline}'::text[]) AS key;
SELECT coord.saga_pause(find('paused'));
SELECT unattended();
SELECT coord.saga_skip(find('skipped there'), 'a', '["some"]'), coord.saga_cancel(find('cancelled there'), 'no more'), coord.saga_abandon(find('abandoned there'));
SELECT at(clock() + '1 min') IS NOT NULL;
SELECT coord.saga_pause(find('with deadline'));
CALL coord.run_pending() \gset
SELECT items('paused', 'a');
SELECT show('skipped there'), traced('skipped there');
SELECT show('cancelled there'), traced('cancelled there');
SELECT show('abandoned there'), traced('abandoned there');
SELECT unattended();
SELECT coord.saga_resume(find('paused'));
CALL coord.run_pending() \gset
SELECT show('paused'), traced('paused');
-- the deadline passes while it is paused
SELECT at(clock() + '1 h') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT show('with deadline');
SELECT coord.saga_resume(find('with deadline'));
CALL coord.run_pending() \gset
SELECT show('with deadline'), traced('with deadline');
SELECT show('deadline there'), traced('deadline there');

-- Many: a thousand items, in order.
SELECT coord.saga_define('many', ARRAY[coord.step('a', 'item', for_each => '$.input.list[*]', max_parallel => 10), coord.step('b', 'given')]);
SELECT coord.saga_start('many', jsonb_build_object('list', (SELECT jsonb_agg(i) FROM generate_series(1, 1000) i)), key => 'many') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_status(find('many')), jsonb_array_length(output -> 'a'), (SELECT bool_and((e ->> 'of')::bigint = n) FROM jsonb_array_elements(output -> 'a') WITH ORDINALITY AS r (e, n)),
  (SELECT count(DISTINCT what) = 1000 AND count(*) = 1000 FROM trace WHERE saga = find('many')) FROM coord.sagas WHERE id = find('many');

-- saga_run() does the items itself.
CREATE TABLE ran (status text, output jsonb);
DO $$
DECLARE id bigint; status text; output jsonb;
BEGIN
  CALL coord.saga_run('two at a time', '[1, 2, 3]', NULL, id, status, output);
  INSERT INTO ran VALUES (status, output);
END $$;
SELECT * FROM ran;

-- A picture while it runs and afterwards.
SELECT coord.saga_start('two at a time', '[1, 2, 3]', key => 'picture') IS NOT NULL;
CALL coord.run_pending(2) \gset
SELECT shown(find('picture'));
SELECT regexp_replace(coord.saga_picture(find('picture')), '\n  classDef.*', '');
SELECT regexp_replace(coord.saga_timeline(find('picture')), ' *=.*', ' ...');
CALL coord.run_pending() \gset
SELECT shown(find('picture'));
SELECT regexp_replace(coord.saga_picture(find('picture')), '\n  classDef.*', '');
SELECT regexp_replace(coord.saga_timeline(find('picture')), ' *=.*', ' ...');
SELECT coord.saga_diagram('two at a time', 'dot');

\set include :abs_srcdir/include/saga_waits_end.psql
\i :include
\set include :abs_srcdir/include/saga_end.psql
\i :include
