-- Defining sagas: what is refused and how it says so, versions, names.
\set name regress_saga_define
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

-- What a step says, and that defaults say nothing.
SELECT coord.step('a', 'act');
SELECT coord.step('a', 'act', compensation => 'undo', after => '{b,c}', queue => 'q', server => 's',
  pivot => true, optional => true, condition => '$.input.x ? (@ > 1)', trigger_rule => 'all_done',
  for_each => '$.input.items[*]', max_parallel => 2, max_failed_items => 1, timeout => '90 s', max_attempts => 7,
  retry_delay => '2 s', retry_backoff => 1.5, retry_max_delay => '1 h', retry_on => '{40001,08,*}');
SELECT coord.step('a', 'act', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
SELECT coord.step('a', 'act', pivot => false, optional => false, trigger_rule => 'none_failed',
  retry_delay => '1 s', retry_backoff => 2, retry_max_delay => '5 min');
SELECT coord.step('a', 'act', after => '{}');
SELECT try($$SELECT coord.step(NULL, 'act')$$);
SELECT try($$SELECT coord.step('a', 'act', after => '{b,NULL}')$$);

-- Every wrong definition; each changes nothing.
CREATE FUNCTION wrong(steps jsonb[]) RETURNS SETOF text LANGUAGE sql AS
  $$ SELECT try(format('SELECT coord.saga_define(%L, %L::jsonb[])', 'wrong', steps::text)) $$;
CREATE FUNCTION wrong_json(definition jsonb) RETURNS SETOF text LANGUAGE sql AS
  $$ SELECT try(format('SELECT coord.saga_define_json(%L, %L)', 'wrong', definition)) $$;

CREATE FUNCTION no_argument() RETURNS jsonb LANGUAGE sql RETURN '{}'::jsonb;
CREATE FUNCTION takes_json(json) RETURNS jsonb LANGUAGE sql RETURN '{}'::jsonb;
CREATE FUNCTION takes_two(jsonb, jsonb) RETURNS jsonb LANGUAGE sql RETURN '{}'::jsonb;
CREATE FUNCTION returns_text(jsonb) RETURNS text LANGUAGE sql RETURN 'x';
CREATE FUNCTION returns_set(jsonb) RETURNS SETOF jsonb LANGUAGE sql AS $$ SELECT $1 $$;
CREATE FUNCTION returns_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE PROCEDURE a_procedure(jsonb) LANGUAGE sql AS $$ SELECT 1 $$;
CREATE AGGREGATE an_aggregate(jsonb) (sfunc = jsonb_concat, stype = jsonb);
CREATE FUNCTION forbidden(jsonb) RETURNS jsonb LANGUAGE sql RETURN $1;
REVOKE EXECUTE ON FUNCTION forbidden FROM PUBLIC, regress_saga_define;

-- Functions
SELECT wrong(ARRAY[coord.step('a')]);
SELECT wrong(ARRAY[coord.step('a', 'nothing')]);
SELECT wrong(ARRAY[coord.step('a', 'nowhere.nothing')]);
SELECT wrong(ARRAY[coord.step('a', 'no_argument')]);
SELECT wrong(ARRAY[coord.step('a', 'takes_json')]);
SELECT wrong(ARRAY[coord.step('a', 'takes_two')]);
SELECT wrong(ARRAY[coord.step('a', 'returns_text')]);
SELECT wrong(ARRAY[coord.step('a', 'returns_set')]);
SELECT wrong(ARRAY[coord.step('a', 'a_procedure')]);
SELECT wrong(ARRAY[coord.step('a', 'an_aggregate')]);
SELECT wrong(ARRAY[coord.step('a', 'forbidden')]);
SELECT wrong(ARRAY[coord.step('a', '')]);
SELECT wrong(ARRAY[coord.step('a', 'act(jsonb)')]);
SELECT wrong(ARRAY[coord.step('a', 'one.two.three.four')]);
SELECT wrong(ARRAY[coord.step('a', 'act', compensation => 'nothing')]);
SELECT wrong(ARRAY[coord.step('a', 'act', compensation => 'returns_text')]);
SELECT wrong(ARRAY[coord.step('a', 'act', compensation => 'forbidden')]);

-- Names
SELECT wrong(ARRAY[coord.step('', 'act')]);
SELECT wrong(ARRAY[coord.step(repeat('x', 201), 'act')]);
SELECT wrong(ARRAY[coord.step(repeat('ä', 101), 'act')]);
SELECT wrong(ARRAY[coord.step('a', 'act'), coord.step('a', 'act')]);
SELECT try($$SELECT coord.saga_define(NULL, ARRAY[coord.step('a', 'act')])$$);
SELECT try($$SELECT coord.saga_define('', ARRAY[coord.step('a', 'act')])$$);
SELECT try($$SELECT coord.saga_define(repeat('x', 201), ARRAY[coord.step('a', 'act')])$$);

-- The array
SELECT try($$SELECT coord.saga_define('wrong', NULL)$$);
SELECT try($$SELECT coord.saga_define('wrong', '{}')$$);
SELECT try($$SELECT coord.saga_define('wrong', ARRAY[coord.step('a', 'act'), NULL])$$);
SELECT wrong(ARRAY['"a"'::jsonb]);
SELECT wrong(ARRAY['[]'::jsonb]);
SELECT wrong(ARRAY['{"action": "act"}'::jsonb]);

-- The graph
SELECT wrong(ARRAY[coord.step('a', 'act', after => '{b}')]);
SELECT wrong(ARRAY[coord.step('a', 'act', after => '{a}')]);
SELECT wrong(ARRAY[coord.step('a', 'act', after => '{}'), coord.step('b', 'act', after => '{a,a}')]);
SELECT wrong(ARRAY[coord.step('start', 'act'), coord.step('a', 'act', after => '{start,c}'), coord.step('b', 'act'), coord.step('c', 'act'),
  coord.step('end', 'act')]);
SELECT wrong(ARRAY[coord.step('a', 'act'), coord.step('b', 'act', trigger_rule => 'sometimes')]);
SELECT wrong(ARRAY[coord.step('a', 'act', trigger_rule => 'one_failed')]);
SELECT wrong(ARRAY[coord.step('a', 'act'), coord.step('b', 'act', after => '{}', trigger_rule => 'all_done')]);

-- The pivot
SELECT wrong(ARRAY[coord.step('a', 'act', pivot => true, optional => true)]);
SELECT wrong(ARRAY[coord.step('a', 'act', pivot => true, compensation => 'undo')]);
SELECT wrong(ARRAY[coord.step('a', 'act', pivot => true), coord.step('b', 'act', pivot => true)]);
SELECT wrong(ARRAY[coord.step('a', 'act', pivot => true), coord.step('b', 'act'), coord.step('c', 'act', compensation => 'undo')]);

-- Retries and time
SELECT wrong(ARRAY[coord.step('a', 'act', max_attempts => 0)]);
SELECT wrong(ARRAY[coord.step('a', 'act', max_attempts => -1)]);
SELECT wrong(ARRAY[coord.step('a', 'act', timeout => '0')]);
SELECT wrong(ARRAY[coord.step('a', 'act', timeout => '-1 s')]);
SELECT wrong(ARRAY[coord.step('a', 'act', retry_delay => '-1 s')]);
SELECT wrong(ARRAY[coord.step('a', 'act', retry_max_delay => '-1 s')]);
SELECT wrong(ARRAY[coord.step('a', 'act', retry_backoff => 0.5)]);
SELECT wrong(ARRAY[coord.step('a', 'act', retry_backoff => 1001)]);
SELECT try($$SELECT coord.saga_define('wrong', ARRAY[coord.step('a', 'act', retry_backoff => 'NaN')])$$);
SELECT try($$SELECT coord.saga_define('wrong', ARRAY[coord.step('a', 'act', retry_backoff => 'Infinity')])$$);
SELECT wrong(ARRAY[coord.step('a', 'act', retry_on => '{}')]);
SELECT wrong(ARRAY[coord.step('a', 'act', retry_on => '{4000}')]);
SELECT wrong(ARRAY[coord.step('a', 'act', retry_on => '{40p01}')]);
SELECT wrong(ARRAY[coord.step('a', 'act', retry_on => '{40001,serialization_failure}')]);
SELECT wrong(ARRAY[coord.step('a', 'act', retry_on => '{40001}', max_attempts => 1)]);
SELECT try($$SELECT coord.saga_define('wrong', ARRAY[coord.step('a', 'act')], deadline => '0')$$);
SELECT try($$SELECT coord.saga_define('wrong', ARRAY[coord.step('a', 'act')], deadline => '-1 day')$$);
SELECT try($$SELECT coord.saga_define('wrong', ARRAY[coord.step('a', 'act')], on_exhausted => 'explode')$$);

-- Options that would have no effect
SELECT wrong(ARRAY[coord.step('a', 'act', max_parallel => 2)]);
SELECT wrong(ARRAY[coord.step('a', 'act', max_failed_items => 1)]);

-- A server is looked for, and is not a queue
SELECT wrong(ARRAY[coord.step('a', 'act', server => 's')]);
SELECT wrong(ARRAY[coord.step('a', 'act', server => 's', queue => 'q')]);

-- Members of steps of another kind
SELECT wrong(ARRAY['{"name": "a", "action": "act", "signal": "s"}'::jsonb]);
SELECT wrong(ARRAY['{"name": "a", "action": "act", "on_timeout": "fail"}'::jsonb]);
SELECT wrong(ARRAY['{"name": "a", "action": "act", "duration": "1 h"}'::jsonb]);
SELECT wrong(ARRAY['{"name": "a", "action": "act", "saga": "other"}'::jsonb]);
SELECT wrong(ARRAY['{"name": "a", "action": "act", "input": "$.input"}'::jsonb]);
SELECT try($$SELECT coord.saga_define('wrong', ARRAY[coord.step('a', 'act')], record_events => true)$$);

-- JSON
SELECT try($$SELECT coord.saga_define_json(NULL, '{}')$$);
SELECT try($$SELECT coord.saga_define_json('wrong', NULL)$$);
SELECT wrong_json('[]');
SELECT wrong_json('"x"');
SELECT wrong_json('{}');
SELECT wrong_json('{"steps": {}}');
SELECT wrong_json('{"steps": null}');
SELECT wrong_json('{"steps": []}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act"}], "colour": "red"}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act", "colour": "red"}]}');
SELECT wrong_json('{"steps": [{"name": ["a"], "action": "act"}]}');
SELECT wrong_json('{"steps": [{"name": null, "action": "act"}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": {}}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act"}, {"name": "b", "action": "act", "after": "a"}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act"}, {"name": "b", "action": "act", "after": [1]}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act", "pivot": "yes"}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act", "optional": 1}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act", "max_attempts": "3"}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act", "max_attempts": 1.5}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act", "max_attempts": 1e10}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act", "retry_backoff": "2"}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act", "retry_delay": "soon"}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act", "retry_on": "40001"}]}');
SELECT left(wrong_json('{"steps": [{"name": "a", "action": "act", "condition": "$..["}]}'), 5);
SELECT wrong_json('{"steps": [{"name": "a", "action": "act", "timeout": []}]}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act"}], "deadline": {}}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act"}], "on_exhausted": "explode"}');
SELECT wrong_json('{"steps": [{"name": "a", "action": "act"}], "record_events": true}');

SELECT count(*) FROM coord.saga_definitions WHERE name IN ('', 'wrong');

-- The longest name, and a null for what may be left out
SELECT coord.saga_define(repeat('x', 200), ARRAY[coord.step(repeat('y', 200), 'act')]);
SELECT coord.saga_drop(repeat('x', 200));
SELECT coord.saga_define('nulls', ARRAY[coord.step('a', 'act')], NULL, NULL, NULL);
SELECT coord.saga_define_json('nulls', '{"steps": [{"name": "a", "action": "act", "after": null, "queue": null, "condition": null}],
  "deadline": null, "on_exhausted": null, "record_events": null}');
SELECT definition FROM coord.saga_definitions WHERE name = 'nulls';

-- What is stored: qualified names, the graph spelled out, the search_path with pg_temp last.
SELECT coord.saga_define('stored', ARRAY[coord.step('a', 'act', compensation => 'undo'), coord.step('b', 'regress_saga_define.act'),
  coord.step('c', 'act', after => '{a}', condition => '$.input.x')], deadline => '36 h', on_exhausted => 'suspend');
SELECT version, active, jsonb_pretty(definition), search_path, owner, definer, created_at FROM coord.saga_definitions WHERE name = 'stored';
SET search_path = pg_temp, "$user", regress_saga_define;
SELECT regress_saga_define.try($$SELECT coord.saga_define('path', ARRAY[coord.step('a', 'act')])$$);
SELECT search_path FROM coord.saga_definitions WHERE name = 'path';
SET search_path = regress_saga_define;

-- A function that only exists in pg_temp is not what anybody else would run.
CREATE FUNCTION pg_temp.passing(jsonb) RETURNS jsonb LANGUAGE sql RETURN $1;
SELECT wrong(ARRAY[coord.step('a', 'passing')]);

-- Names that need quotes
CREATE FUNCTION "Odd ""Name"(jsonb) RETURNS jsonb LANGUAGE sql RETURN $1;
SELECT coord.saga_define('a "b" ''c''', ARRAY[coord.step('"', '"Odd ""Name"')]);
SELECT name, definition FROM coord.saga_definitions WHERE name ~ '^a ';

-- The same content is the same version, in whatever way it is written.
SELECT coord.saga_define('versions', ARRAY[coord.step('a', 'act'), coord.step('b', 'act')]);
SELECT coord.saga_define('versions', ARRAY[coord.step('a', 'regress_saga_define.act'), coord.step('b', 'act', after => '{a}')]);
SELECT coord.saga_define_json('versions', '{"steps": [{"action": "act", "name": "a"}, {"action": "act", "name": "b"}]}');
SELECT coord.saga_define('versions', ARRAY[coord.step('a', 'act')]);
SELECT coord.saga_define('versions', ARRAY[coord.step('a', 'act')], deadline => '60 s');
SELECT coord.saga_define('versions', ARRAY[coord.step('a', 'act')], deadline => '1 min');
-- An earlier one: it says that it is not what new sagas get.
SELECT coord.saga_define('versions', ARRAY[coord.step('a', 'act'), coord.step('b', 'act')]);
SELECT version, active FROM coord.saga_definitions WHERE name = 'versions' ORDER BY version;
SELECT coord.saga_activate('versions', 1);
SELECT coord.saga_activate('versions', 1);
SELECT version, active FROM coord.saga_definitions WHERE name = 'versions' ORDER BY version;
SELECT coord.saga_define('versions', ARRAY[coord.step('a', 'act'), coord.step('b', 'act')]);
SELECT try($$SELECT coord.saga_activate('versions', 4)$$);
SELECT try($$SELECT coord.saga_activate('versions', 0)$$);
SELECT try($$SELECT coord.saga_activate('versions', NULL)$$);
SELECT try($$SELECT coord.saga_activate(NULL, 1)$$);

-- Unknown names, and those that are meant.
SELECT try($$SELECT coord.saga_activate('version', 1)$$);
SELECT try($$SELECT coord.saga_start('storde')$$);
SELECT try($$SELECT coord.saga_start('something else')$$);
SELECT left(try($$SELECT coord.saga_start(repeat('x', 1000))$$), 5);
SELECT try($$SELECT coord.saga_start('')$$);
SELECT try($$SELECT coord.saga_diagram('pat')$$);

-- Dropping
SELECT coord.saga_drop('versions');
SELECT coord.saga_drop('versions');
SELECT coord.saga_drop('never was');
SELECT try($$SELECT coord.saga_drop(NULL)$$);
SELECT count(*) FROM coord.saga_definitions WHERE name = 'versions';
SELECT coord.saga_start('stored', key => 'one') AS id \gset
SELECT try($$SELECT coord.saga_drop('stored')$$);
SELECT coord.saga_start('stored', key => 'two') AS id2 \gset
SELECT try($$SELECT coord.saga_drop('stored')$$);
SELECT coord.saga_abandon(:id), coord.saga_pause(:id2);
SELECT try($$SELECT coord.saga_drop('stored')$$);
SELECT coord.saga_abandon(:id2);
SELECT coord.saga_drop('stored');
-- What ran is still to be seen, and a new definition begins with version 1.
SELECT name, version, key, status FROM coord.sagas WHERE id IN (:id, :id2) ORDER BY key;
SELECT coord.saga_define('stored', ARRAY[coord.step('a', 'act')]);
BEGIN;
SELECT coord.saga_drop('stored');
SELECT try($$SELECT coord.saga_start('stored')$$);
ROLLBACK;
SELECT version, active FROM coord.saga_definitions WHERE name = 'stored';

-- Definitions are the transaction's.
BEGIN;
SELECT coord.saga_define('stored', ARRAY[coord.step('b', 'act')]);
ROLLBACK;
SELECT coord.saga_define('stored', ARRAY[coord.step('c', 'act')]);
SELECT version, active, definition #>> '{steps,0,name}' FROM coord.saga_definitions WHERE name = 'stored' ORDER BY version;

-- A name belongs to who took it first, his members, and coord_admin.
RESET ROLE;
CREATE ROLE regress_saga_define_other IN ROLE coord_user;
CREATE ROLE regress_saga_define_member IN ROLE regress_saga_define;
CREATE ROLE regress_saga_define_admin IN ROLE coord_admin;
CREATE ROLE regress_saga_define_nobody;
SET ROLE regress_saga_define_other;
SELECT try($$SELECT coord.saga_define('stored', ARRAY[coord.step('d', 'act')])$$);
SELECT try($$SELECT coord.saga_activate('stored', 1)$$);
-- Not to be told from a name that nobody took.
SELECT coord.saga_drop('stored');
SELECT coord.saga_drop('nobody took it');
SELECT try($$SELECT coord.saga_start('stored')$$);
SELECT try($$SELECT coord.saga_start('stord')$$);
SELECT count(*) FROM coord.saga_definitions WHERE name = 'stored';
SET ROLE regress_saga_define_member;
SELECT coord.saga_define('stored', ARRAY[coord.step('d', 'act')]);
SELECT coord.saga_activate('stored', 1);
SET ROLE regress_saga_define_admin;
SELECT coord.saga_define('stored', ARRAY[coord.step('e', 'act')]);
SELECT version, active, owner, definer FROM coord.saga_definitions WHERE name = 'stored' ORDER BY version;
SELECT try($$SELECT coord.saga_start('stord')$$);
-- Near names are those that one may see: by grant_use() as well.
SELECT coord.grant_use('saga', 'stored', 'regress_saga_define_other');
SET ROLE regress_saga_define_other;
SELECT try($$SELECT coord.saga_start('stord')$$);
SET ROLE regress_saga_define_admin;
SELECT coord.saga_drop('stored');
SET ROLE regress_saga_define_nobody;
SELECT try($$SELECT coord.saga_define('stored', ARRAY['{}'::jsonb])$$);
SELECT try($$SELECT coord.step('a')$$);
RESET ROLE;
DROP ROLE regress_saga_define_other, regress_saga_define_member, regress_saga_define_admin, regress_saga_define_nobody;

\set include :abs_srcdir/include/saga_end.psql
\i :include
