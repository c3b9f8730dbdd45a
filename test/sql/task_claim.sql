-- Workers outside claim tasks: what they get, in which order, what is refused.
\set name regress_task_claim
\getenv abs_srcdir PG_ABS_SRCDIR
\set include :abs_srcdir/include/saga.psql
\i :include
\set include :abs_srcdir/include/task.psql
\i :include

SELECT coord.saga_define('order', ARRAY[
  coord.step('reserve', 'act', compensation => 'undo'),
  coord.step('charge', queue => 'claim.payments', action => 'take', compensation => 'give back', timeout => '1 min'),
  coord.step('ship', queue => 'claim.shipping')]);
-- A queue is known once a definition uses it; there is nothing in it yet.
SELECT * FROM coord.task_claim('claim.payments');
SELECT * FROM coord.queues WHERE queue LIKE 'claim.%' ORDER BY queue;

DO $$ BEGIN
  PERFORM coord.saga_start('order', '{"order_id": 1}', key => 'a');
  PERFORM coord.saga_start('order', '{"order_id": 2}', key => 'b');
  PERFORM coord.saga_start('order', '{"order_id": 3}', key => 'c', priority => 5);
END $$;
CALL run();
SELECT step, item, phase, queue, status, attempt, worker, lease_expires_at, available_at FROM coord.tasks WHERE saga_id = find('a');
SELECT * FROM coord.queues WHERE queue LIKE 'claim.%' ORDER BY queue;

-- What a worker gets.  The one of higher priority comes first.
CREATE TABLE got AS SELECT * FROM coord.task_claim('claim.payments', 2, 'w1');
INSERT INTO held (key, step, phase, task_id, token) SELECT payload ->> 'key', step, phase, task_id, token FROM got;
\x on
SELECT saga, step, phase, action, item, attempt, idempotency_key = saga_id || '/charge' AS idempotency_key, null_compensation,
  payload - 'saga_id' - 'correlation_id' - 'idempotency_key' AS payload, payload ->> 'saga_id' = saga_id::text AND payload ->> 'idempotency_key' = idempotency_key AS same,
  token BETWEEN 1 AND 9007199254740991 AS token, lease_expires_at FROM got;
\x off
-- The lease is as long as wanted, but no longer than the step's timeout.
SELECT claim('claim.payments', 10, lease => '2 hours');
SELECT claim('claim.payments', 10);
SELECT tasks();
SELECT queue, ready, running, delayed, last_claim_at FROM coord.queues WHERE queue = 'claim.payments';

-- Results are seen by the steps that come after.
SELECT coord.task_complete(id('c'), tok('c'), '{"charged": 10}');
CALL run();
SELECT payload ->> 'key', action, payload -> 'results' FROM coord.task_claim('claim.shipping', 10, lease => '5 min');
SELECT show('c');

-- A compensation has its own idempotency key, and the result of what it undoes.
SELECT coord.saga_cancel(find('c'), 'not wanted any more');
SELECT at('2030-01-01 00:10:00+00');
SELECT claim('claim.shipping');
CALL run();
\x on
SELECT payload ->> 'key' AS key, phase, action, idempotency_key = saga_id || '/charge/compensation' AS idempotency_key, payload -> 'result' AS result, payload -> 'error' AS error,
  null_compensation FROM coord.task_claim('claim.payments', 1, 'w2');
\x off

-- An action that was never claimed is undone all the same, and that is said.
DO $$ BEGIN PERFORM coord.saga_start('order', key => 'd'); END $$;
CALL run();
SELECT coord.saga_cancel(find('d'));
CALL run();
SELECT claim('claim.payments');
SELECT show('d');

-- Several items; a position in the array is the item.
SELECT coord.saga_define('fan', ARRAY[coord.step('send', queue => 'claim.mail', for_each => '$.input.to[*]', max_parallel => 2)]);
DO $$ BEGIN PERFORM coord.saga_start('fan', '{"to": ["x", "y", "z"]}', key => 'f'); END $$;
CALL run();
SELECT tasks('f');
SELECT claim('claim.mail', 10);
SELECT tasks('f');
SELECT coord.task_complete(task_id, token, to_jsonb(item)) FROM held WHERE key = 'f' AND item = 0;
CALL run();
SELECT claim('claim.mail', 10);

-- Arguments.
SELECT try('SELECT coord.task_claim(NULL)');
SELECT try('SELECT coord.task_claim(''claim.payment'')');
SELECT try('SELECT coord.task_claim(repeat(''x'', 300))');
SELECT try('SELECT coord.task_claim(''claim.mail'', 0)');
SELECT try('SELECT coord.task_claim(''claim.mail'', 10001)');
SELECT try('SELECT coord.task_claim(''claim.mail'', 1, '''')');
SELECT try('SELECT coord.task_claim(''claim.mail'', 1, repeat(''x'', 300))');
SELECT try('SELECT coord.task_claim(''claim.mail'', 1, NULL, ''0'')');
SELECT try('SELECT coord.task_claim(''claim.mail'', 1, NULL, ''-1 s'')');
SELECT try('SELECT coord.task_claim(''claim.mail'', 1, NULL, NULL, ''-1 s'')');
SELECT count(*) FROM coord.task_claim('claim.mail', NULL, NULL, NULL, NULL);
-- Everything that claims must write.
BEGIN READ ONLY;
SELECT try('SELECT coord.task_claim(''claim.mail'')');
ROLLBACK;
\set include :abs_srcdir/include/task_end.psql
\i :include
