-- Pictures: of a definition, of a saga as it stands, of its course in time.
\set name regress_saga_pictures
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include

SELECT coord.saga_define('s', ARRAY[coord.step('reserve', 'act', compensation => 'undo'), coord.step('charge', 'act', after => '{reserve}', compensation => 'undo'),
  coord.step('mail', 'act', after => '{reserve}', optional => true, condition => '$.input.mail == true'), coord.step('ship', 'act', after => '{charge,mail}', trigger_rule => 'all_done', pivot => true)]);
SELECT coord.saga_diagram('s');
SELECT coord.saga_diagram('s', 'mermaid') = coord.saga_diagram('s'), coord.saga_diagram('s', NULL) = coord.saga_diagram('s');
SELECT coord.saga_diagram('s', 'dot');
SELECT try($$SELECT coord.saga_diagram('s', 'png')$$);
SELECT try($$SELECT coord.saga_diagram('s', '')$$);
SELECT try($$SELECT coord.saga_diagram(NULL)$$);
SELECT try($$SELECT coord.saga_diagram('t')$$);

-- With live state, archived state, and after the definition is gone.
INSERT INTO fault VALUES ('charge', 1, '40001');
SELECT coord.saga_start('s', key => 'live') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT coord.saga_picture(find('live'));
SELECT coord.saga_picture(find('live'), 'dot');
DELETE FROM fault;
INSERT INTO fault VALUES ('ship', 1, 'P0001');
SELECT next('live');
CALL coord.run_pending() \gset
SELECT coord.saga_picture(find('live'));
SELECT try(format('SELECT coord.saga_picture(%s, %L)', find('live'), 'png'));
SELECT try('SELECT coord.saga_picture(NULL)');
SELECT try('SELECT coord.saga_picture(0)');
-- The picture is of the version that it runs.
SELECT coord.saga_define('s', ARRAY[coord.step('other', 'act')]);
SELECT coord.saga_diagram('s');
SELECT coord.saga_picture(find('live')) LIKE '%charge%';
SELECT coord.saga_drop('s');
SELECT coord.saga_picture(find('live'));

-- Names and conditions that would break out of it are text.
SELECT coord.saga_define('hostile', ARRAY[coord.step('a"]; click b "javascript:alert(1)', 'act'), coord.step(E'line\nbreak', 'act'), coord.step('<img src=x onerror=alert(1)>', 'act'),
  coord.step('back\slash\', 'act'), coord.step('a --> b | c', 'act', condition => '$.input.x == "q\" | --> \n <b>"'), coord.step('&quot; #quot; %%', 'act')]);
SELECT coord.saga_diagram('hostile');
SELECT coord.saga_diagram('hostile', 'dot');
SELECT coord.saga_start('hostile', key => 'hostile') IS NOT NULL;
CALL coord.run_pending() \gset
SELECT line FROM regexp_split_to_table(coord.saga_picture(find('hostile')), E'\n') AS line WHERE line !~ 'classDef';
-- In dot, no quote and no backslash stands unescaped within a label.
SELECT line FROM regexp_split_to_table(coord.saga_diagram('hostile', 'dot'), E'\n') AS line WHERE line ~ 'label=' AND line !~ 'label="([^"\\]|\\.)*"\];$';

-- The timeline: a line for each step, in order, as wide as it took.
SELECT coord.saga_define('time', ARRAY[coord.step('one', 'act', retry_delay => '1000 s', retry_max_delay => '1000 s'), coord.step('second', 'act'), coord.step('skipped', 'act', condition => 'false'), coord.step('never', 'act')]);
DELETE FROM fault;
INSERT INTO fault VALUES ('never', 1, 'P0001');
SELECT coord.saga_start('time', key => 'time') IS NOT NULL;
-- not begun
SELECT regexp_replace(coord.saga_timeline(find('time')), ' +$', '');
CALL coord.run_pending() \gset
SELECT regexp_replace(coord.saga_timeline(find('time')), ' +$', '');
SELECT try('SELECT coord.saga_timeline(NULL)');
SELECT try('SELECT coord.saga_timeline(0)');
-- A step that took four times as long as the one after it.
SELECT coord.saga_define('gantt', ARRAY[coord.step('a', 'act', retry_on => '{P0}', retry_delay => '0'), coord.step('b', 'act')]);
DELETE FROM fault;
SELECT coord.saga_start('gantt', key => 'gantt') IS NOT NULL;
CALL coord.run_pending() \gset
RESET ROLE;
UPDATE coord_internal.saga_archive SET steps = jsonb_set(jsonb_set(steps, '{0,finished_at}', to_jsonb((steps #>> '{0,started_at}')::bigint + 8000000)), '{1}',
  steps -> 1 || jsonb_build_object('started_at', (steps #>> '{0,started_at}')::bigint + 8000000, 'finished_at', (steps #>> '{0,started_at}')::bigint + 10000000)) WHERE key = 'gantt' AND name = 'gantt';
SET ROLE :name;
SELECT coord.saga_timeline(find('gantt'));

\set include :abs_srcdir/include/saga_end.psql
\i :include
