-- Queues: fair between definitions, limits, pause, what is stuck.
\set name regress_task_queue
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/task.psql
\i :include

SELECT coord.saga_define('big', ARRAY[coord.step('s', queue => 'queue.q', for_each => '$.input[*]')]);
SELECT coord.saga_define('small', ARRAY[coord.step('s', queue => 'queue.q')]);
SELECT coord.saga_define('tiny', ARRAY[coord.step('s', queue => 'queue.q')]);

-- With 10,000 tasks of one definition ready, a new one of another is claimed within two claims.
SELECT count(coord.saga_start('big', (SELECT jsonb_agg(i) FROM generate_series(1, 10000) i), key => 'big'));
CALL run();
SELECT claim('queue.q', 3);
SELECT count(coord.saga_start('small', key => 'small ' || i)) FROM generate_series(1, 4) i;
SELECT count(coord.saga_start('tiny', key => 'tiny ' || i)) FROM generate_series(1, 3) i;
CALL run();
SELECT claim('queue.q', 2);
SELECT claim('queue.q', 12);
-- What is more urgent comes first, and what is less urgent does not come at all.
SELECT count(coord.saga_start('small', key => 'urgent ' || i, priority => 10)) FROM generate_series(1, 3) i;
SELECT count(coord.saga_start('tiny', key => 'idle', priority => -10));
CALL run();
SELECT claim('queue.q', 2);
SELECT claim('queue.q', 2);
-- Claims of what is urgent do not put those behind who come anew.
SELECT count(coord.saga_start('small', key => 'more urgent ' || i, priority => 10)) FROM generate_series(1, 100) i;
CALL run();
SELECT count(*) FROM claim('queue.q', 100);
SELECT count(coord.saga_start('tiny', key => 'new'));
CALL run();
SELECT claim('queue.q', 2);
-- One batch, or a thousand: the same tasks.
SELECT count(DISTINCT task_id), count(*) FROM coord.task_claim('queue.q', 9000);
CALL clear();

-- Pause.
SELECT coord.queue_configure('queue.q', paused => true);
SELECT count(coord.saga_start('small', key => 'paused'));
CALL run();
SELECT claim('queue.q');
SELECT kind, id, name, since, waits_for, hint, repair FROM coord.stuck WHERE name LIKE 'queue.%';
SELECT paused, max_running, rate_limit, ready FROM coord.queues WHERE queue = 'queue.q';
SELECT coord.queue_configure('queue.q', paused => false);
SELECT claim('queue.q');
SELECT coord.task_complete(id('paused'), tok('paused'));

-- At most so many at a time.
SELECT coord.queue_configure('queue.q', max_running => 3);
SELECT count(coord.saga_start('small', key => 'limited ' || i)) FROM generate_series(1, 8) i;
CALL run();
SELECT claim('queue.q', 2);
SELECT claim('queue.q', 10);
SELECT claim('queue.q', 10);
SELECT coord.task_complete(id('limited 1'), tok('limited 1'));
SELECT claim('queue.q', 10);
SELECT coord.task_fail(id('limited 2'), tok('limited 2'), 'x', false);
SELECT coord.task_release(id('limited 3'), tok('limited 3'));
SELECT claim('queue.q', 10);
SELECT running, ready FROM coord.queues WHERE queue = 'queue.q';
-- An expired lease makes room.
SELECT at(clock() + interval '30 s');
SELECT claim('queue.q', 10);
-- No limit any more.
SELECT coord.queue_configure('queue.q', max_running => 2147483647);
SELECT count(*) FROM claim('queue.q', 10);
SELECT max_running FROM coord.queues WHERE queue = 'queue.q';
CALL clear();

-- Nobody claims: after a minute that is to be seen.
SELECT count(coord.saga_start('small', key => 'stuck'));
CALL run();
SELECT at(clock() + interval '59 s');
SELECT kind, name, waits_for, repair FROM coord.stuck WHERE kind = 'queue';
SELECT at(clock() + interval '2 min');
SELECT kind, id, name, since, waits_for, hint, repair FROM coord.stuck WHERE name LIKE 'queue.%';
SELECT claim('queue.q');
SELECT kind, name, waits_for, repair FROM coord.stuck WHERE kind = 'queue';
CALL clear();

-- At most so many per second, and no more than a second's worth at once.
SELECT coord.queue_configure('queue.q', rate_limit => 4);
SELECT count(coord.saga_start('small', key => 'rate ' || i)) FROM generate_series(1, 20) i;
CALL run();
SELECT count(*) FROM claim('queue.q', 10);
SELECT count(*) FROM claim('queue.q', 10);
SELECT at(clock() + interval '250 ms');
SELECT count(*) FROM claim('queue.q', 10);
SELECT at(clock() + interval '500 ms');
SELECT count(*) FROM claim('queue.q');
SELECT count(*) FROM claim('queue.q', 10);
SELECT at(clock() + interval '1 h');
SELECT count(*) FROM claim('queue.q', 10);
-- What was not used is not lost.
SELECT at(clock() + interval '1 s');
SELECT count(*) FROM claim('queue.q', 3);
SELECT count(*) FROM claim('queue.q', 10);
-- Less than one per second.
SELECT coord.queue_configure('queue.q', rate_limit => 0.5);
SELECT at(clock() + interval '1 s');
SELECT count(*) FROM claim('queue.q', 10);
SELECT at(clock() + interval '1 s');
SELECT count(*) FROM claim('queue.q', 10);
-- The clock is set back: no more, and no less for ever.
SELECT at(clock() - interval '10 min');
SELECT count(*) FROM claim('queue.q', 10);
SELECT at(clock() + interval '2 s');
SELECT count(*) FROM claim('queue.q', 10);
SELECT coord.queue_configure('queue.q', rate_limit => 'infinity');
SELECT rate_limit FROM coord.queues WHERE queue = 'queue.q';
CALL clear();

-- A paused saga's tasks are not handed out.
SELECT count(coord.saga_start('small', key => 'waits'));
CALL run();
SELECT coord.saga_pause(find('waits'));
SELECT claim('queue.q');
SELECT coord.saga_resume(find('waits'));
SELECT claim('queue.q');
CALL clear();
-- The engine is paused: nothing is handed out, what was can be ended.
SELECT count(coord.saga_start('small', key => 'in hand'));
SELECT count(coord.saga_start('small', key => 'waits on'));
CALL run();
SELECT claim('queue.q');
RESET ROLE;
SELECT coord.pause('test');
SET ROLE :name;
SELECT claim('queue.q');
SELECT coord.task_complete(id('in hand'), tok('in hand'));
RESET ROLE;
SELECT coord.resume();
SET ROLE :name;
SELECT claim('queue.q');

-- A queue may be made before anything uses it; repeating changes nothing.
SELECT coord.queue_configure('queue.new');
SELECT coord.queue_configure('queue.new', 1, 1, true);
SELECT coord.queue_configure('queue.new', 1, 1, true);
SELECT coord.queue_configure('queue.new');
SELECT queue, paused, max_running, rate_limit FROM coord.queues WHERE queue = 'queue.new';
SELECT try('SELECT coord.queue_configure(NULL)');
SELECT try('SELECT coord.queue_configure('''')');
SELECT try('SELECT coord.queue_configure(repeat(''x'', 201))');
SELECT try('SELECT coord.queue_configure(''queue.new'', 0)');
SELECT try('SELECT coord.queue_configure(''queue.new'', rate_limit => 0)');
SELECT try('SELECT coord.queue_configure(''queue.new'', rate_limit => ''nan'')');
SELECT try('SELECT coord.queue_configure(''queue.new'', rate_limit => -1)');
-- What is rolled back was never so, for this session neither.
BEGIN;
SELECT coord.queue_configure('queue.q', paused => true);
SELECT claim('queue.q');
ROLLBACK;
SELECT coord.task_release(id('waits on'), tok('waits on'));
SELECT claim('queue.q');

-- Rolled back claims can be claimed again, wherever they were rolled back.
CALL clear();
SELECT count(coord.saga_start('small', key => 's' || i)) FROM generate_series(1, 4) i;
CALL run();
BEGIN;
SELECT claim('queue.q', 2);
SAVEPOINT a;
SELECT claim('queue.q');
ROLLBACK TO a;
SELECT claim('queue.q');
SAVEPOINT b;
SELECT claim('queue.q');
RELEASE b;
ROLLBACK TO a;
SELECT claim('queue.q', 10);
ROLLBACK;
SELECT claim('queue.q', 10);
-- What is given back in a transaction can be claimed in it.
BEGIN;
SELECT coord.task_release(id('s1'), tok('s1'));
SELECT claim('queue.q');
COMMIT;
SELECT claim('queue.q');

-- Waiting for something to claim.
CALL coord.await('queue', 'queue.q', '0');
SELECT coord.task_release(id('s2'), tok('s2'));
CALL coord.await('queue', 'queue.q', '1 min');
CALL coord.await('queue', 'queue.q', '1 min');
SELECT claim('queue.q');
CALL coord.await('queue', 'queue.q', '10 ms');
SELECT coord.queue_configure('queue.q', paused => true);
SELECT coord.task_release(id('s2'), tok('s2'));
CALL coord.await('queue', 'queue.q', '10 ms');
SELECT coord.queue_configure('queue.q', paused => false, max_running => 3);
CALL coord.await('queue', 'queue.q', '10 ms');
SELECT coord.queue_configure('queue.q', max_running => 4);
CALL coord.await('queue', 'queue.q', '10 ms');
SELECT coord.queue_configure('queue.q', max_running => 2147483647);
\set VERBOSITY sqlstate
CALL coord.await('queue', 'nothing', '1 min');
CALL coord.await('queue', NULL);
BEGIN;
CALL coord.await('queue', 'queue.q', '1 min');
ROLLBACK;
\set VERBOSITY default
-- A function waits too, but no longer than it may.
SELECT claim('queue.q');
RESET ROLE;
SET coord.max_function_wait = '20 ms';
SELECT clock_timestamp() AS began \gset
SELECT count(*) FROM coord.task_claim('queue.q', timeout => '1 h');
SELECT clock_timestamp() - :'began' BETWEEN '20 ms' AND '10 s';
RESET coord.max_function_wait;
SET ROLE :name;

\set include :abs_srcdir/include/task_end.psql
\i :include
