-- ---------------------------------------------------------------------------
-- The reference, in the catalog: \df+ coord.*, \d+ coord.sagas.
--
-- Times are of type timestamptz, durations of type interval.  Where an argument
-- is not said to be required, NULL means its default.
-- ---------------------------------------------------------------------------

COMMENT ON SCHEMA coord IS
$$The interface of the extension coord: functions, procedures and views.
Reference: \df+ coord.* and \d+ coord.sagas, or doc/ in the source.$$;
COMMENT ON SCHEMA coord_internal IS
$$Tables and helpers of the extension coord. Not an interface: they change without notice.$$;

-- ---------------------------------------------------------------------------
-- Defining
-- ---------------------------------------------------------------------------

COMMENT ON FUNCTION coord.step(text, text, text, text[], text, name, boolean, boolean, jsonpath, text, jsonpath,
  int, int, interval, int, interval, float8, interval, text[]) IS
$$Describes one step for coord.saga_define(). Checks nothing and changes nothing.
name: required, 1 to 200 bytes, unique within the saga.
action: the function to run, f(jsonb) RETURNS jsonb or void. Looked up when the saga is defined, stored with its schema.
  It fails when it raises an error, or returns an object with "success": false, whose "error" is the reason.
compensation: the function that undoes the action, of the same form.
after: names of steps that must be finished first. NULL: the step before it in the array. '{}': none.
pivot: once this step is completed the saga only goes forward. At most one; it has no compensation, nor have steps after it.
optional: when it fails for good, it is recorded as failed and the saga goes on. A step after it runs only under a
  trigger_rule that allows for that, for example all_done: with the default it is skipped.
condition: a path on the context document; the step is skipped unless the first item found is true or neither a boolean nor null.
trigger_rule: none_failed (default), all_success, all_done, one_success, one_failed or always (the same as all_done).
  Looked at when all steps in "after" are finished; the step is skipped when it does not hold.
timeout: per attempt; it then fails with 57014, which is retried by default. NULL: none.
max_attempts: per phase. NULL: 3 for the action, 25 for the compensation.
retry_delay, retry_backoff, retry_max_delay: before attempt n+1 it waits a random time between 0 and the lesser of
  retry_max_delay and retry_delay * retry_backoff ^ (n-1).
retry_on: SQLSTATEs, two-character classes or '*'. NULL: 08, 40, 53, 57, 55P03, 58030.
queue: hand the step out as a task to workers outside the database, see coord.task_claim(). action (default: the step's
  name) and compensation are then labels for the worker, and max_attempts defaults to 25.
for_each: a path on the context document; the step runs once for each of its items (no unwrapping: '$.input.items[*]'),
  side by side. The function finds "item" and "index" (from 0) in its document; the step's result is the array of
  the items' results in their order. Attempts are counted, and compensations run, for each item.
max_parallel: items in hand at a time. NULL: no limit.
max_failed_items: how many items may fail for good; their result is null. One more fails the step. Default: 0.
server: a server of postgres_fdw on which the functions are; the step commits there together with what records it. Not with queue.
Returns the step as a JSON object.
Errors: 22004 name is null, or an array contains null.
Example: coord.step('charge', 'shop.charge', compensation => 'shop.refund', max_attempts => 5)$$;

COMMENT ON FUNCTION coord.step_signal(text, text, interval, text, text[], jsonpath) IS
$$Describes a step that waits for coord.saga_signal(). Checks nothing and changes nothing.
name, signal: required, 1 to 200 bytes. Several steps may wait for signals of one name; each takes one, in order.
timeout: how long it waits, from when the step begins. NULL: as long as it takes.
on_timeout: fail (default): the step fails with 57014; continue: it is completed with result null.
after, condition: as in coord.step().
Returns the step as a JSON object. Its result will be the signal's payload; one with "success": false fails the step.
Errors: 22004 name or signal is null.
Example: coord.step_signal('approval', 'approved', timeout => '2 days')$$;

COMMENT ON FUNCTION coord.step_sleep(text, interval, text[], jsonpath) IS
$$Describes a step that lets time pass. Checks nothing and changes nothing.
name: required. duration: required, positive, from when the step begins.
after, condition: as in coord.step().
Returns the step as a JSON object. Its result will be null. Errors: 22004 name or duration is null.
Example: coord.step_sleep('cool_off', '14 days')$$;

COMMENT ON FUNCTION coord.step_saga(text, text, jsonpath, text[], jsonpath) IS
$$Describes a step that is another saga, started when the step begins, for the same owner, with the same correlation id.
name: required. saga: required, its name; looked up when the step begins.
input: a path on the context document; its first item is the input of that saga.
after, condition: as in coord.step().
Returns the step as a JSON object. Its result will be that saga's output. It fails when that saga fails or is compensated;
cancelling reaches down, and to compensate the step is to compensate all of that saga. Errors: 22004 name or saga is null.
Example: coord.step_saga('payment', 'pay', input => '$.input.payment')$$;

COMMENT ON FUNCTION coord.saga_define(text, jsonb[], interval, text, boolean) IS
$$Defines a saga, or a new version of it, which becomes the active one.
The same content with the same search_path is the same version: defining it again changes nothing. If that version
is not the active one, a NOTICE says so.
Unfinished instances keep the version they were started with.
name: required, 1 to 200 bytes. It belongs to the role that defines it first.
steps: required, made by coord.step().
deadline: how long an instance may take, from its start_at. NULL: as long as it likes.
on_exhausted: what a step that failed for good leads to before the pivot: compensate or suspend.
record_events: not supported yet.
Returns the version, from 1.
Errors: 22004 null; 22023 a mistake in the definition; 42883 no such function; 42P13 a function of another form;
42501 a function that the current user may not execute, or a name of another role; 42704 "after" names no step;
42710 two steps of one name; 42622 a name too long; 0A000 not supported yet.
Example: SELECT coord.saga_define('order', ARRAY[
  coord.step('reserve', 'shop.reserve_stock', compensation => 'shop.release_stock'),
  coord.step('ship', 'shop.ship', pivot => true)]);$$;

COMMENT ON FUNCTION coord.saga_define_json(text, jsonb) IS
$$The same as coord.saga_define(), the definition being one JSON object:
{"steps": [{"name": ..., "action": ..., ...}], "deadline": "1 day", "on_exhausted": "compensate"}.
The members of a step are the arguments of coord.step(); intervals are strings.
name, definition: required.
Returns the version. Errors: as coord.saga_define().
Example: SELECT coord.saga_define_json('order', '{"steps": [{"name": "ship", "action": "shop.ship"}]}');$$;

COMMENT ON FUNCTION coord.saga_activate(text, int) IS
$$Chooses the version that coord.saga_start() takes, for example to go back to the one before.
name, version: required. For members of the name's owner and of coord_admin.
Errors: 22004 null; 42704 no such saga or version.
Example: SELECT coord.saga_activate('order', 1);$$;

COMMENT ON FUNCTION coord.saga_drop(text) IS
$$Drops a saga's name, all its versions and the grants of its use. Finished instances stay in the archive.
name: required. For members of the name's owner and of coord_admin.
Waits for open transactions that have started sagas, and starts wait for it meanwhile: set a lock_timeout.
Returns true; false when there is no such saga, or none that the caller may drop.
Errors: 22004 null; 55006 it has unfinished instances.
Example: SELECT coord.saga_drop('order');$$;

-- ---------------------------------------------------------------------------
-- Running
-- ---------------------------------------------------------------------------

COMMENT ON FUNCTION coord.saga_start(text, jsonb, text, uuid, int, timestamptz, interval, int, jsonb, text) IS
$$Starts a saga as part of the caller's transaction: it exists when that commits, and its steps run then, as current_user.
name: required.
input: what the steps get as "input". Default: {}.
key: up to 200 bytes; at most one saga per name and key. NULL: no such limit.
correlation_id: for finding together what belongs together. NULL: coord.correlation_id, else a random one.
version: NULL: the active one.
start_at: no step runs before. NULL: now.
deadline: from start_at (or now, if that is later). NULL: the definition's.
priority: of what is due, higher ones first. Default: 0.
labels: any JSON object, for coord.sagas.
on_existing: when the key is taken: return (its id; the input must be the same), error, or restart_failed (a new saga
  if that one has failed or was compensated, else as return). A concurrent transaction that uses the key is waited for.
Returns the id.
Errors: 22004 null name; 42704 no such saga or version, or none that the caller may use; 42883, 42501 a function that the
caller cannot execute, or a key taken by another role's saga; 23505 on_existing is error and the key taken;
ZC005 the key was used with another input; 40001 a concurrent change of the key; 22023 a bad argument.
Example: SELECT coord.saga_start('order', '{"order_id": 42}', key => 'order-42');$$;

COMMENT ON PROCEDURE coord.saga_run(text, jsonb, text, bigint, text, jsonb) IS
$$Starts a saga and runs it here and now, in the caller's session, until it is finished, suspended or paused. Tasks in queues,
signals and pauses it waits for.
Commits as it goes. Should the session die, a worker goes on after half a minute.
With a key that is taken it runs the saga that has it, or waits for it when that is another role's.
name: required. input: default {}. key: as in coord.saga_start().
Returns id, status and, when it is finished, output: {step: result}.
Errors: as coord.saga_start(); 25001 in a transaction block or function. A failed step is a status, not an error.
Example: CALL coord.saga_run('order', '{"order_id": 42}');$$;

COMMENT ON PROCEDURE coord.await(text, text, interval, boolean) IS
'Waits like coord.saga_wait(), but holds no snapshot meanwhile: for long waits.
kind: saga, queue or subscription (lease is not supported yet: 0A000). name: the saga''s id, the queue, or the subscription.
timeout: at most this long, default 1 min.
ready: true when the saga is finished, suspended or paused; when there is a task that the caller can claim from the queue;
when there is something to poll of a subscription.
Errors: 25001 in a transaction block, 42704 unknown saga, queue or subscription, 55000 a subscription with a handler, 22023 unknown kind, 22P02 name is not an id.
Example: CALL coord.await(''saga'', ''42'', ''1 hour'');';
COMMENT ON PROCEDURE coord.run_pending(int, int) IS
$$Runs, in the caller's session, the due sagas of roles that the caller is a member of until none is left.
What a worker does, for tests and for servers without shared_preload_libraries. Commits after each turn.
max_turns: stop after so many. A turn is one transaction with the steps of one saga that run at once, or with one task. NULL: no limit.
Returns turns: how many it made. A paused engine is a WARNING and 0.
Errors: 25001 in a transaction block or function; 22023 negative max_turns.
Example: CALL coord.run_pending();$$;

COMMENT ON FUNCTION coord.saga_wait(bigint, interval) IS
$$Waits until a saga is finished, suspended or paused, or the timeout is over.
id: required. timeout: default 1 minute; 0 looks once.
Returns the status at the end: after a timeout it is running or compensating.
Errors: 22004 null id; 42704 no such saga; 22023 negative timeout; 55000 this transaction started it, so it cannot run
before the transaction ends; 25006 on a standby.
Example: SELECT coord.saga_wait(1, '10 s');$$;

COMMENT ON FUNCTION coord.saga_status(bigint) IS
$$The present status of a saga, also when this transaction's snapshot is older.
id: required.
Returns running, paused, suspended, compensating, completed, compensated or failed.
Errors: 22004 null; 42704 no such saga, or none that the caller may see.
Example: SELECT coord.saga_status(1);$$;

COMMENT ON FUNCTION coord.saga_output(bigint) IS
$$The results of a saga's steps so far, as {step: result}.
id: required. A step that was skipped, has not run, or failed has no member; one whose function returns void has null.
Reads with the statement's snapshot: in the same statement as coord.saga_wait() it shows what was before.
Errors: 22004 null; 42704 no such saga, or none that the caller may see.
Example: SELECT coord.saga_output(1) -> 'charge';$$;

COMMENT ON FUNCTION coord.saga_find(text, text) IS
$$The saga that has a key.
name, key: required.
Returns its id; NULL when there is none, or none that the caller may see. A key is kept as long as the saga.
Errors: 22004 null.
Example: SELECT coord.saga_find('order', 'order-42');$$;

-- ---------------------------------------------------------------------------
-- Operating
-- ---------------------------------------------------------------------------

COMMENT ON FUNCTION coord.saga_signal(bigint, text, jsonb, text) IS
$$Sends a signal to a saga; a step made by coord.step_signal() takes it. One that comes early is kept; signals of one name are
taken in the order in which they came. Never waits for a running step. A finished saga is left as it is.
id, signal: required. payload: the step's result; an object with "success": false fails the step.
signal_id: a second signal of the same name and id is left out, so repeating is harmless. NULL: every signal counts.
Returns the status at this moment.
Errors: 22004 null; 42704 no such saga, or no step of its definition waits for such a signal; 42622 signal_id too long.
Example: SELECT coord.saga_signal(1, 'approved', '{"by": "ann"}', signal_id => 'form-7');$$;

COMMENT ON FUNCTION coord.saga_cancel(bigint, text, boolean) IS
$$Cancels a saga: no further step runs, and what was completed is compensated.
Never waits for a running step: if somebody has the saga in hand it is done at the next step boundary.
A finished saga, or one that compensates already, is left as it is.
id: required. reason: for coord.saga_log, and the saga's "error".
interrupt: also cancel the functions that workers are running for this saga. Default: false.
Returns the status at this moment: compensating, failed (nothing to undo), or unchanged while it waits for the boundary.
Errors: 22004 null id; 42704 no such saga; ZC006 its pivot is completed. A refusal at the boundary is in coord.saga_log.
Example: SELECT coord.saga_cancel(1, 'customer called');$$;

COMMENT ON FUNCTION coord.saga_pause(bigint, text) IS
$$Stops a saga between two steps until coord.saga_resume(). Never waits for a running step.
Changes nothing when it is paused, suspended or finished. Its deadline goes on.
id: required. reason: for coord.saga_log.
Returns the status at this moment. Errors: 22004 null id; 42501 the caller was only given use of it; 42704 no such saga.
Example: SELECT coord.saga_pause(1, 'payment provider is down');$$;

COMMENT ON FUNCTION coord.saga_resume(bigint, text) IS
$$Lets a paused saga go on. Changes nothing when it is not paused.
id: required. reason: for coord.saga_log.
Returns the status at this moment. Errors: 22004 null id; 42501 the caller was only given use of it; 42704 no such saga.
Example: SELECT coord.saga_resume(1);$$;

COMMENT ON FUNCTION coord.saga_retry(bigint, text, text) IS
$$Runs again what stopped a suspended saga, with its attempts counted anew; or makes the next attempt now where one waits,
also of tasks.
id: required. step: only this one. NULL: whatever stopped it. reason: for coord.saga_log.
Returns the status at this moment; unchanged when there is nothing to retry.
Errors: 22004 null id; 42501 the caller was only given use of it; 42704 no such saga or step; ZC006 the step is not what stops the saga.
Example: SELECT coord.saga_retry(1, reason => 'printer has paper again');$$;

COMMENT ON FUNCTION coord.saga_skip(bigint, text, jsonb, text) IS
$$Takes a step as done, or its compensation as done by hand, and lets a suspended saga go on.
Forward: a step that is pending, ready, waited for or failed; it becomes skipped and is not compensated later. Whoever has
  its task gets ZC011 when he reports; a saga that it is gets cancelled.
Backward: the compensation of the step.
id, step: required. result: what later steps see as the step's result (forward only). reason: for coord.saga_log.
Returns the status at this moment.
Errors: 22004 null; 42501 the caller was only given use of it; 42704 no such saga or step; ZC006 the step is completed, or has no compensation to skip.
Example: SELECT coord.saga_skip(1, 'charge', '{"charged": 0}', 'paid in cash');$$;

COMMENT ON FUNCTION coord.saga_patch(bigint, jsonb, text) IS
$$Replaces the input of a saga that is not finished; steps that run from now on see the new one.
id, input: required. reason: for coord.saga_log.
Returns the status at this moment.
Errors: 22004 null; 42501 the caller was only given use of it; 42704 no such saga; ZC006 it is finished.
Example: SELECT coord.saga_patch(1, '{"order_id": 42, "address": "12 Canal Street"}');$$;

COMMENT ON FUNCTION coord.saga_abandon(bigint, text) IS
$$Gives a saga up: it is failed, and nothing is undone. A finished saga is left as it is.
id: required. reason: for coord.saga_log, and the saga's "error".
Returns the status at this moment. Errors: 22004 null id; 42501 the caller was only given use of it; 42704 no such saga.
Example: SELECT coord.saga_abandon(1, 'refunded by hand');$$;

-- ---------------------------------------------------------------------------
-- Workers outside the database
-- ---------------------------------------------------------------------------

COMMENT ON FUNCTION coord.task_claim(text, int, text, interval, interval) IS
$$Takes tasks of a queue: those of higher priority first, then fair between the definitions that they come from.
Nobody else gets them until the lease expires or they are given back. Commit before you do what they ask for.
queue: required. max_tasks: at most so many, 1 (default) to 10000. worker: a name for coord.tasks and coord.saga_log.
lease: how long they are the caller's, default 30 s; no longer than the step's timeout. coord.task_extend() prolongs it.
timeout: how long to wait for a task, default 0; at most coord.max_function_wait, since the snapshot is held meanwhile.
Returns a row for each task:
  task_id, token: for coord.task_complete(), coord.task_fail(), coord.task_extend() and coord.task_release().
  saga_id, saga, step, item (from 0, of a step that is for each of something): where it comes from.
  phase, action: action or compensation, and its label. attempt: from 1.
  idempotency_key: the same at each attempt. Hand it on to whatever you call, so that doing it twice does it once.
  null_compensation: undo something that may never have been done, for its action was never claimed.
  payload: the context document, as a function would get it. lease_expires_at: until when.
No row: there is none within the timeout, the queue is paused or at its limit, or the engine does not run.
Whose tasks: of roles that the caller is a member of; all for coord_admin; with coord.grant_use(), the grantor's.
Errors: 22004 null queue; 42704 no such queue, or none that the caller may see; 22023 a bad argument; 25006 on a standby.
Example: SELECT * FROM coord.task_claim('payments', 10, 'worker-1', timeout => '5 s');$$;

COMMENT ON FUNCTION coord.task_complete(bigint, bigint, jsonb) IS
$$Ends a task that was claimed: its step is completed with this result, once the caller's transaction commits.
In the same transaction as the worker's own writes to this database it makes them exactly-once.
task_id, token: required, from coord.task_claim(). result: what later steps see. An object with "success": false is a failure,
  whose "error" is the reason; as for a step that is a function, it is tried again only if the step's retry_on has P0001.
Accepted also after the lease has expired, as long as nobody else has claimed the task.
Returns true; false when the same token has ended it before, or given it back: repeating is harmless.
Errors: 22004 null; 42704 no such task; ZC001 the lease is lost: another claim or coord.task_revoke() has replaced the token;
ZC011 the saga was cancelled meanwhile.
Example: SELECT coord.task_complete(1, 845000000000000, '{"charge": "ch_1"}');$$;

COMMENT ON FUNCTION coord.task_complete_many(bigint[], bigint[], jsonb) IS
$$Ends many tasks at once; one statement, whatever their number.
task_ids, tokens: required, of the same length. results: a JSON array of that length. NULL: no results.
Never fails for a task: one whose token is stale, that was ended before, whose saga was cancelled, or that the caller
may not end is left out.
Returns the ids accepted. One that is given twice counts once.
Errors: 22004 null; 22023 different lengths, or results is no array.
Example: SELECT coord.task_complete_many('{1,2}', '{845000000000000,845000000000000}', '[{"ok": true}, null]');$$;

COMMENT ON FUNCTION coord.task_fail(bigint, bigint, text, boolean, interval) IS
$$Ends an attempt at a task that did not succeed. It is recorded in coord.saga_log.
task_id, token, error: required. retryable: is it worth another attempt? Default: true.
retry_in: when. NULL: as the step's retry_delay, retry_backoff and retry_max_delay say; 0: at once.
The step fails when it is not retryable, or its attempts are used up (max_attempts, by default 25). After the saga's pivot,
what is retryable is tried without limit.
Returns true; false when the same token has ended it before. Errors: as coord.task_complete(); 22023 negative retry_in.
Example: SELECT coord.task_fail(1, 845000000000000, 'payment provider is down', retry_in => '1 min');$$;

COMMENT ON FUNCTION coord.task_extend(bigint, bigint, interval) IS
$$Prolongs a lease, also one that has expired if nobody else has claimed the task.
task_id, token: required. lease: from now, default 30 s. It never ends before it did, nor after the step's timeout.
Returns when it now ends.
Errors: 22004 null; 22023 a bad lease; 42704 no such task; ZC001 the lease is lost, or the task ended; ZC011 the saga was cancelled.
Example: SELECT coord.task_extend(1, 845000000000000, '5 min');$$;

COMMENT ON FUNCTION coord.task_release(bigint, bigint) IS
$$Gives a task back unfinished, at once and without counting the attempt: for a worker that shuts down.
task_id, token: required.
Returns true; false when the same token has ended it before. Errors: as coord.task_complete().
Example: SELECT coord.task_release(1, 845000000000000);$$;

COMMENT ON FUNCTION coord.task_revoke(bigint, text) IS
$$Takes a task away from the worker that has it and puts it back into its queue, without counting the attempt.
For operators: the worker hangs, and its lease is long. What it still reports is refused with ZC001.
task_id: required. reason: for coord.saga_log.
Returns true; false when nobody has it. Errors: 22004 null; 42704 no such task; 42501 the caller was only given use of the queue.
Example: SELECT coord.task_revoke(1, 'worker-7 was switched off');$$;

COMMENT ON FUNCTION coord.queue_configure(text, int, float8, boolean) IS
$$Sets limits of a queue, or stops it. What is NULL is left as it is. Makes the queue when there is none.
queue: required, 1 to 200 bytes. max_running: at most so many tasks claimed at a time; 2147483647: no limit.
rate_limit: at most so many claims per second, at most one second's worth at once; 'infinity': no limit.
paused: true: nobody gets a task of it; what was claimed can be ended.
For members of the roles whose sagas use the queue, or that configured it first, and of coord_admin.
Errors: 22004 null queue; 22023 a limit of 0 or less; 42501 it belongs to other roles; 42704 to the caller there is no such queue.
Example: SELECT coord.queue_configure('payments', max_running => 10, rate_limit => 50);$$;

-- ---------------------------------------------------------------------------
-- Pictures
-- ---------------------------------------------------------------------------

COMMENT ON FUNCTION coord.saga_diagram(text, text) IS
$$The graph of a saga's active version: steps, what comes after what, compensations.
name: required. format: mermaid (default) or dot.
Returns the source of the picture.
Errors: 22004 null; 42704 no such saga, or none that the caller may use; 22023 unknown format.
Example: SELECT coord.saga_diagram('order');$$;

COMMENT ON FUNCTION coord.saga_picture(bigint, text) IS
$$The graph of one saga with the status of each step.
id: required. format: mermaid (default) or dot.
Returns the source of the picture.
Errors: 22004 null; 42704 no such saga, or none that the caller may see; 22023 unknown format.
Example: SELECT coord.saga_picture(1);$$;

COMMENT ON FUNCTION coord.saga_timeline(bigint) IS
$$When each step of a saga ran, as a chart for psql: one line per step, with its duration in milliseconds.
A step is drawn from its first attempt to its end, with the pauses between attempts and its compensation.
id: required. Errors: 22004 null; 42704 no such saga, or none that the caller may see.
Example: SELECT * FROM coord.saga_timeline(1);$$;

COMMENT ON FUNCTION coord.state_machine(text) IS
$$The legal transitions of a state machine: state, event, next state, reason.
name: saga or step. Errors: 42704 unknown machine, 22004 null.
Example: SELECT * FROM coord.state_machine('saga');$$;

-- ---------------------------------------------------------------------------
-- The engine
-- ---------------------------------------------------------------------------

COMMENT ON FUNCTION coord.pause(text) IS
$$Stops the engine of this database: from commit on no new turn begins, and nobody gets a task. Sagas can still be started, and run after coord.resume();
tasks that were claimed can be ended.
Turns that have begun go on to their commit; CALL coord.drain() waits for them. For coord_admin.
reason: shown in coord.stuck.
Returns true; false when it was paused already. Errors: 42501.
Example: SELECT coord.pause('upgrade of the payment service');$$;

COMMENT ON FUNCTION coord.resume(text) IS
$$Lets the engine of this database go on after coord.pause() or coord.drain(). For coord_admin.
In a copy (restored from a dump, made from a template) it says that the copy shall act: roles that own work are
found again by name. The original goes on acting as well.
reason: not recorded.
Returns true; false when there was nothing to resume. Errors: 42501.
Example: SELECT coord.resume();$$;

COMMENT ON PROCEDURE coord.drain(interval, boolean) IS
$$Pauses the engine of this database and waits until no turn is in progress, in workers and sessions alike.
Afterwards it stays paused, also after a timeout. For coord_admin.
timeout: default 5 minutes.
Returns drained: false when the timeout came first.
Errors: 42501; 22023 negative timeout; 25001 in a transaction block or function.
Example: CALL coord.drain('1 min');$$;

COMMENT ON FUNCTION coord.start_worker() IS
$$Starts a background worker in this database, for servers where coord is not in shared_preload_libraries. For coord_admin.
It ends when it has had nothing to do for coord.worker_idle_timeout, and nothing starts it again.
Returns true; false when coord.max_workers are running, or the database is wanted by a statement such as DROP DATABASE.
Errors: 42501; 53000 no background worker slot is free: raise max_worker_processes; 53400 more than 128 databases.
Example: SELECT coord.start_worker();$$;

COMMENT ON FUNCTION coord.grant_use(text, text, name) IS
$$Lets a role use something of another role: with kind saga, start it, and see and cancel all its instances;
with kind queue, claim and end the tasks in it whose owners the grantor is a member of (coord_admin's grant: all);
with kind lock, use lock names that begin with a prefix, which is closed to all others from then on. The longest prefix that
fits a name decides, and coord_admin may use all.
The grantee's sagas run as the grantee, who needs EXECUTE on their functions. It may not define versions.
kind: saga, queue or lock; subscription and stream are not supported yet. name: of the saga or queue, or the prefix. grantee: a role.
All required. For members of the saga's owner or of the roles that the queue belongs to, and of coord_admin; kind lock for coord_admin.
Returns true; false when it was granted already (of a queue, by the same grantor).
Errors: 22004 null; 22023 unknown kind; 0A000 not supported yet; 42704 no such saga, queue or role; 42501 a queue of
other roles, or a prefix by others than coord_admin.
Example: SELECT coord.grant_use('saga', 'order', 'web');$$;

COMMENT ON FUNCTION coord.revoke_use(text, text, name) IS
$$Takes back coord.grant_use(). Sagas that the role has started go on. A prefix of lock names is open again after the last one.
kind, name, grantee: as there. Of a queue, what members of the caller's roles granted; all for coord_admin.
Returns true; false when it was not granted. Errors: as coord.grant_use().
Example: SELECT coord.revoke_use('saga', 'order', 'web');$$;

-- ---------------------------------------------------------------------------
-- Locks and leases
-- ---------------------------------------------------------------------------

COMMENT ON FUNCTION coord.lock(text, text, text, interval) IS
$$Takes a named lock, in order of arrival; waits for those who have it. Writes nothing.
name: required, 1 to 200 bytes.
mode: exclusive (default), share, intent_exclusive, intent_share or share_intent_exclusive: X, S, IX, IS and SIX of locking in
  several granularities.
scope: transaction (default): free at its end, or at ROLLBACK TO SAVEPOINT if first taken behind the savepoint; or session: free
  after as many coord.unlock() as grants, at its end, by DISCARD ALL or pg_advisory_unlock_all(); not behind a pooler in transaction mode.
timeout: how long to wait. NULL: for ever, 0: not at all.
Returns the fencing token: of an exclusive grant higher than all before; of another mode the highest so far. Taking once more
what one has never waits, and returns the same token. Lock in a statement of its own, and read in the next one.
Errors: 22004 null name; 22023 empty name, unknown mode or scope, negative timeout; 42622 name too long; 42501 a name that is
closed to the caller; 55P03 not granted in time, or lock_timeout; 40P01 deadlock; 53400 coord.max_locks reached; 55000 tokens are
stored that lie in the future, see coord.fence_advance(); 25006 on a standby.
Example: SELECT coord.lock('invoice/42', timeout => '2 s');$$;

COMMENT ON FUNCTION coord.try_lock(text, text, text) IS
$$Takes a named lock if that needs no waiting, also not for those who wait already.
name, mode, scope: as in coord.lock().
Returns the fencing token; NULL: not granted. Errors: as coord.lock(), without 55P03 and 40P01.
Example: SELECT coord.try_lock('invoice/42') IS NOT NULL;$$;

COMMENT ON FUNCTION coord.unlock(text, text) IS
$$Gives back one hold of a session's lock. A transaction's lock is given back by its end only.
name: required. mode: the one it was taken in, default exclusive.
Returns true; false when the session does not hold it in this mode.
Errors: 22004 null name; 22023 empty name or unknown mode; 42622 name too long; 25006 on a standby.
Example: SELECT coord.unlock('invoice/42');$$;

COMMENT ON FUNCTION coord.lock_many(text[], text, text, interval) IS
$$Takes several locks, all or none, in an order that is the same for everybody: two callers do not deadlock over them.
names: required, each once. mode, scope: of all of them, as in coord.lock(). timeout: for all together.
Returns the fencing tokens in the order of the names.
Errors: as coord.lock(); 22004 also if a name is null; 22023 also if one is given twice.
Example: SELECT coord.lock_many('{account/7,account/3}');$$;

COMMENT ON FUNCTION coord.lease_acquire(text, text, interval, interval, int) IS
$$Acquires a lease, or permits of a semaphore, for an owner. It outlives the session, works through any pooler, and survives
restart and failover. In a transaction block it is granted at COMMIT, and nobody else gets it meanwhile.
name: required, 1 to 200 bytes. owner: required, 1 to 200 bytes: who has it, for example host, process and a random part.
ttl: time to live, default 30 s, at most coord.max_lease. coord.lease_renew() prolongs it; after a restart it is full again.
timeout: how long to wait, in order of arrival; default 0. Must be finite.
permits: of a semaphore, default 1: together or not at all.
The same owner and role again, before it ends: the same token with a fresh time to live. So repeat a call whose answer got lost.
Returns one row, or none when it is not granted within the timeout:
  token: the fencing token, higher than all before; for coord.lease_renew(), coord.lease_release() and coord.fence_check().
  ttl_ms: what is left, in milliseconds. expires_at: until when.
Errors: 22004 null; 22023 empty, a bad ttl, timeout or number of permits, or another number than the owner has; 42622 name or
owner too long; 42501 a name that is closed to the caller, or permits of the same owner but another role; 25006 read-only or on a
standby; 55000 the database is a copy, see coord.resume(), or as coord.lock(); 53400 coord.max_locks reached; 40P01 deadlock.
Example: SELECT token FROM coord.lease_acquire('import', 'host-1/4711', '30 s', timeout => '10 s');$$;

COMMENT ON FUNCTION coord.lease_renew(text, bigint, interval) IS
$$Lets a lease, or permits, live on from now. For members of the role that acquired it, and of coord_admin.
name, token: required, from coord.lease_acquire() or coord.leader_campaign().
ttl: from now; at most coord.max_lease. NULL: the one that is stored. One that is no longer than that writes nothing and counts
  at once, whatever becomes of the transaction; a longer one is stored and counts from COMMIT.
Returns when it now expires.
Errors: 22004 null; 22023 a bad ttl; ZC001 the lease is lost: released, broken, or out of time, taken by another or not;
42501 another role's, or a closed name; 25006 a longer ttl in a read-only transaction, or on a standby; 55000 a copy.
Example: SELECT coord.lease_renew('import', 845000000000000);$$;

COMMENT ON FUNCTION coord.lease_release(text, bigint) IS
$$Ends a lease, or gives back permits, when the transaction commits. For members of the role that acquired it, and of coord_admin.
name, token: required.
Returns true; false when it was over already: repeating is harmless.
Errors: 22004 null; 22023 the token is another lease's, or was never given out; 42501 another role's, or a closed name; 25006
read-only or on a standby; 55000 a copy.
Example: SELECT coord.lease_release('import', 845000000000000);$$;

COMMENT ON FUNCTION coord.lease_break(text, text) IS
$$For operators: takes a lease, or all permits of a semaphore, away from whoever has it, when the transaction commits. Its token is
stale from then on. Recorded in coord.lease_log and in the server's log. For whoever may use the name.
name: required. reason: for the log.
Returns true; false when nobody had it.
Errors: 22004 null name; 42501 a closed name; 25006 read-only or on a standby; 55000 a copy.
Example: SELECT coord.lease_break('import', 'host-1 is gone');$$;

COMMENT ON FUNCTION coord.fence_check(text, bigint) IS
$$Passes the fence of a name: fails unless the token is the current one, and keeps it current until this transaction ends. A
successor's grant waits for that, also if the lease runs out, is released or broken meanwhile. At any isolation level; kept over
ROLLBACK TO SAVEPOINT and PREPARE TRANSACTION. Call it in the transaction that writes, before it writes.
name: required.
token: required: of a lease or a leader, in any session; or of an exclusive lock in the session that has it, while nobody has the
  lease of that name.
Errors: ZC002 the token is stale; 0A000 the name is a semaphore's; 22004 null; 42501 a closed name; 40P01 deadlock; 25006 on a
standby; 55000 a copy.
Example: SELECT coord.fence_check('import', 845000000000000);$$;

COMMENT ON FUNCTION coord.fence_guard(regclass, text, name) IS
$$Guards a table: from now on its rows are written, and it is truncated, only in a transaction that has passed coord.fence_check();
others get ZC002. Done by triggers, partitions included; a TRUNCATE of one that comes later once this is called again.
tbl: required, for its owner. name: required, the name to be passed.
key_column: then to write a row the name to be passed is name, a slash, and the row's key, before and after the
  change. TRUNCATE still wants the name itself.
Calling it again changes nothing, with another name or key it replaces the guard.
Errors: 22004 null; 42P01, 42809 no such table, or no table; 42501 another's table, or a closed name; 42703 no such column; 0A000 a
virtual generated column, or a key that is not an integer, numeric, text, uuid, boolean or enum; 25006 on a standby.
Example: SELECT coord.fence_guard('account', 'account', key_column => 'id');$$;

COMMENT ON FUNCTION coord.fence_unguard(regclass) IS
$$Removes the guard of a table. For its owner.
tbl: required.
Returns true; false when there was none. Errors: 22004 null; 42P01, 42809 no such table, or no table; 42501 another's table.
Example: SELECT coord.fence_unguard('account');$$;

COMMENT ON FUNCTION coord.fence_advance(bigint) IS
$$Makes tokens be higher than a number from now on, also after a restart. For coord_admin, where the server's clock was once ahead,
or what was given out has been lost.
min_token: required, from 1.
Returns true; false when they were already.
Errors: 22004 null; 22023 less than 1, more than a year ahead of the clock, or lower than what is stored and lies in the future;
42501; 25006 on a standby.
Example: SELECT coord.fence_advance(845000000000000);$$;

COMMENT ON FUNCTION coord.semaphore_create(text, int) IS
$$Makes a name a semaphore: coord.lease_acquire() then grants up to so many permits of it at a time.
name: required, 1 to 200 bytes. capacity: required, from 1. Again with the same capacity changes nothing.
Errors: 22004 null; 22023 empty name or capacity; 42622 name too long; 42710 it exists with another capacity; 55006 it is a lease that
is held; 55P03 others waited for the name for 10 s; 42501 a closed name; 25006 read-only or on a standby; 55000 a copy.
Example: SELECT coord.semaphore_create('api', 3);$$;

COMMENT ON FUNCTION coord.semaphore_resize(text, int) IS
$$Changes how many permits a semaphore has, when the transaction commits. Fewer take nothing away: none is granted until enough are
back. For members of the role that created it, and of coord_admin.
name, capacity: required; capacity from 1.
Errors: 22004 null; 22023 empty name or capacity; 42704 no such semaphore; 42501 another role's, or a closed name; 25006 read-only or
on a standby; 55000 a copy.
Example: SELECT coord.semaphore_resize('api', 5);$$;

COMMENT ON FUNCTION coord.semaphore_drop(text) IS
$$Makes a semaphore an ordinary name again. For members of the role that created it, and of coord_admin.
name: required.
Returns true; false when there was none.
Errors: 22004 null; 55006 somebody has permits; 55P03 others waited for them for 10 s; 42501 another role's, or a closed name; 25006
read-only or on a standby; 55000 a copy.
Example: SELECT coord.semaphore_drop('api');$$;

COMMENT ON FUNCTION coord.leader_campaign(text, text, interval) IS
$$Asks to lead, or to go on leading. Does not wait: call it every few seconds. An election is a lease: whoever has it leads.
name: required. owner: required, the candidate. ttl: default 15 s, at most coord.max_lease; who does not come back within it is
  followed by the next one.
Returns one row: is_leader; leader: who leads, also if it is not the caller; token: his fencing token; ttl_ms: what is left of his
time, in milliseconds. leader, token and ttl_ms are null when nobody leads yet, for a grant is not committed.
Errors: as coord.lease_acquire(); 0A000 the name is a semaphore's.
Example: SELECT is_leader, token FROM coord.leader_campaign('scheduler', 'host-1');$$;

COMMENT ON FUNCTION coord.leader_resign(text, text) IS
$$Ends a leader's time, when the transaction commits. For members of the role that campaigned, and of coord_admin.
name, owner: required.
Returns true; false when that owner did not lead.
Errors: 22004 null; 42501 another role's, or a closed name; 0A000 a semaphore; 25006 read-only or on a standby; 55000 a copy.
Example: SELECT coord.leader_resign('scheduler', 'host-1');$$;

COMMENT ON FUNCTION coord.once_per(text, interval) IS
$$Says yes to one caller per period. Part of the transaction: another caller waits for its end, and is the first if it is rolled
back; so do the work in it, or start a saga.
name: required. period: required, positive and finite: since the last yes, by the wall clock.
Returns true for the first, false for the others.
Errors: 22004 null; 22023 empty name or a bad period; 42501 a closed name; 40001 a concurrent call in a transaction that keeps its
snapshot; 25006 read-only or on a standby; 55000 a copy.
Example: SELECT coord.once_per('nightly_report', '20 hours');$$;

-- ---------------------------------------------------------------------------
-- Two-phase commit
-- ---------------------------------------------------------------------------

COMMENT ON FUNCTION coord.remote_exec(name, text, jsonb, interval) IS
$$Runs one statement at a participant, in a transaction there that commits together with this one, or is rolled back with it.
server: required, a server of postgres_fdw with a user mapping for the caller; only their definition is used, the connection is coord's.
sql: required, one statement, with $1, $2 for its values. No transaction control, no COPY.
args: an array with the values: strings as they are, numbers and booleans as text, null as NULL, arrays and objects as JSON text.
  Default: none.
timeout: for connecting and the statement together, which is cancelled there. Default: none; a lock is waited for as long as
  coord.twophase_lock_timeout says.
Returns how many rows it touched, or found.
Errors: 22004 null; 22023 args are not an array, empty sql, timeout not positive; 0A000 transaction control or COPY; 42704 no such
server, or no user mapping; 42501 no USAGE of the server; 42809 not a server of postgres_fdw; 2F003 a password is required; ZC010 the
participant refused, failed, did not answer, or is a standby, with its SQLSTATE in the detail; 54000 more than 64 participants; 55000 no
launcher or resolver, or a copy; 25000 in a parallel worker; 25006 on a standby. At COMMIT: ZC010 a participant did not vote for it, and all
is rolled back; ZC009 the only participant that wrote was lost while it committed; 0A000 a foreign table was written, or PREPARE TRANSACTION.
Example: SELECT coord.remote_exec('shard_a', 'UPDATE account SET balance = balance - $1 WHERE id = $2', '[10, 7]');$$;

COMMENT ON FUNCTION coord.remote_query(name, text, jsonb, interval) IS
$$Runs one statement at a participant, in a transaction there that commits together with this one, and returns its rows.
server, sql, args, timeout: as coord.remote_exec().
Returns a row as an object, its columns by name; types that are not built in come as text.
Errors: as coord.remote_exec().
Example: SELECT r ->> 'id' FROM coord.remote_query('shard_a', 'SELECT id, balance FROM account WHERE id = $1', '[7]') AS r;$$;

COMMENT ON FUNCTION coord.twophase_current() IS
$$The id of the open transaction, for coord.twophase_outcome(): note it before COMMIT, and ask should the connection be lost in it. The
transaction is then committed in two phases, and recorded, however few participants it has.
Returns the id; the same one for the whole transaction.
Errors: 55000 no launcher or resolver; 25006 on a standby, or read-only at COMMIT.
Example: SELECT coord.twophase_current();$$;

COMMENT ON FUNCTION coord.twophase_outcome(bigint) IS
$$What became of a transaction with participants.
gtid: required, from coord.twophase_current(), coord.twophase_run() or coord.twophase_begin().
Returns pending: its session is at it; committed; aborted; in_doubt: prepared by an earlier incarnation of this database and not decided,
see coord.twophase_in_doubt, until somebody does; unknown: older than coord.twophase_retention, of an earlier incarnation, or an id that was
never given out. Whoever knows the id may ask; after one of an application only who may use it, to others it is unknown.
Errors: 22004 null; 55000 no launcher or resolver; 25006 on a standby.
Example: SELECT coord.twophase_outcome(845000000000000);$$;

COMMENT ON FUNCTION coord.twophase_begin(text, interval) IS
$$Begins a two-phase commit of an application: participants are functions of this database, workers outside, or servers. Part of the
caller's transaction, and to be committed before CALL coord.twophase_commit().
label: optional, for people, at most 200 bytes; need not be unique.
timeout: from now on until it must be decided; then it is aborted, whatever became of the session. Less than coord.twophase_retention.
Returns its id, for the other functions; members of the role that began it and of coord_admin may use it.
Errors: 22023 timeout; 42622 label too long; 55000 a copy that was not resumed; 25006 on a standby.
Example: SELECT coord.twophase_begin('order 42', '30 s');$$;

COMMENT ON FUNCTION coord.twophase_enlist(bigint, text, text, text, text, text, name, jsonb) IS
$$Adds a participant to a two-phase commit of an application. Nothing is asked of it before CALL coord.twophase_commit(). The same once
more changes nothing.
gtid: required, from coord.twophase_begin(). participant: required, its name in this transaction.
prepare, commit, abort: without queue and server functions, prepare(jsonb) RETURNS boolean, the others RETURNS void or jsonb. Each runs in
a transaction of its own as the role that enlists; false, null or an error that does not pass by itself is a no. commit and abort may be
left out, and are tried until they succeed. They are given payload with gtid, participant and idempotency_key.
queue: the three are labels of tasks for workers outside, see coord.task_claim(), phases prepare, commit and abort: completing is yes,
failing is no. abort may come without prepare. Left out, commit and abort have the label of prepare.
server: prepare is one statement that is run there by the mapping of the role that enlists, and prepared and committed by PostgreSQL's
own means. payload: its $1, $2, as args of coord.remote_exec().
payload: optional, an object for functions and workers.
Errors: 42704 no such transaction, or not to be seen; 55000 participants are asked already, it is decided, or its time is up; 42710 another
participant has this name; 22004, 22023 arguments; 42883, 42P13, 42501 functions; as coord.remote_exec() for a server.
Example: SELECT coord.twophase_enlist(845000000000000, 'stock', 'shop.reserve', 'shop.confirm', 'shop.release', payload => '{"sku": 7}');$$;

COMMENT ON PROCEDURE coord.twophase_commit(bigint, text) IS
$$Asks all participants to prepare, until the timeout; commits if all say yes, else aborts; and tells them. Not in a transaction block.
gtid: required, from coord.twophase_begin().
outcome: committed or aborted; coord.twophase_transactions has the reason. A WARNING names participants that are not through with commit
within coord.twophase_phase2_timeout: they are told until they are. May be repeated, also by another session when one was lost in it.
Errors: 42704 no such transaction, or not to be seen; 22004 null; 25001 in a transaction block; 55000 a copy, or with servers no launcher
or resolver; 25006 on a standby.
Example: CALL coord.twophase_commit(845000000000000);$$;

COMMENT ON FUNCTION coord.twophase_abort(bigint, text) IS
$$Aborts a two-phase commit of an application that is not decided. Part of the caller's transaction.
gtid: required, from coord.twophase_begin(). reason: optional, kept in coord.twophase_transactions.
Returns aborted. Of one that is aborted already it changes nothing.
Errors: 42704 no such transaction, or not to be seen; 22004 null; ZC006 it is committed; 25006 on a standby.
Example: SELECT coord.twophase_abort(845000000000000, 'customer left');$$;

COMMENT ON FUNCTION coord.branch(name, text, jsonb, bigint) IS
$$Describes one branch of a transaction for coord.twophase_run(). Checks nothing of the server and runs nothing.
server: of postgres_fdw. NULL: this database.
sql: required, one statement, with $1, $2 for its values.
args: as coord.remote_exec(); in this database each is read as the type that the statement uses it as.
expect_rows: how many rows it must touch, lest all be rolled back. Default: any number.
Returns an object with the members server, sql, args, expect_rows.
Errors: 22004 null; 22023 args are not an array, expect_rows negative; 54000 more than 1000 values.
Example: SELECT coord.branch('shard_a', 'UPDATE account SET balance = balance - $1 WHERE id = $2', '[10, 7]', 1);$$;

COMMENT ON PROCEDURE coord.twophase_run(jsonb[], text, bigint, text, bigint[]) IS
$$Runs branches at several servers as one transaction: all commit or none. Faster than coord.remote_exec(): a statement and its vote are one
round trip. Not in a transaction block.
branches: required, at least one, made by coord.branch(). Those of one server are one transaction there, in their order.
return_at: applied (default): the participants have committed, or coord.twophase_phase2_timeout has passed; decided: it is sure that they
  will, and their data may be seen a moment later.
gtid: out, the transaction's id. outcome: out, committed. row_counts: out, how many rows each branch touched.
A participant that has not acknowledged is a WARNING, not an error: the transaction is committed.
Errors: 22004 null; 22023 no branch, one that is none or has an unknown member, unknown return_at; 25001 in a transaction block; ZC010 a
participant did not vote for it, or a branch touched another number of rows: nothing was committed; 54000 too many branches of a server;
else as coord.remote_exec(), and what the branch of this database raises.
Example: CALL coord.twophase_run(ARRAY[coord.branch('shard_a', 'UPDATE account SET balance = balance - 10 WHERE id = 7', expect_rows => 1),
  coord.branch('shard_b', 'UPDATE account SET balance = balance + 10 WHERE id = 9', expect_rows => 1)]);$$;

COMMENT ON PROCEDURE coord.twophase_run_json(jsonb, text, bigint, text, bigint[]) IS
$$coord.twophase_run() for drivers that have no arrays of jsonb: branches as one JSON array of objects.
branches: required, [{"server": .., "sql": .., "args": [..], "expect_rows": ..}]; server may be missing, args and expect_rows too.
return_at, gtid, outcome, row_counts: as coord.twophase_run().
Errors: as coord.twophase_run(); 22023 branches are not an array.
Example: CALL coord.twophase_run_json('[{"server": "shard_a", "sql": "UPDATE account SET balance = 0 WHERE id = $1", "args": [7]}]');$$;

COMMENT ON FUNCTION coord.twophase_resolve(name) IS
$$Looks at participants now, and finishes there what is decided, as the resolver does by itself; aborts applications' transactions whose
time is up. For coord_admin. Not inside a transaction block.
server: only there. Default: all that have been used.
Returns one row for each prepared transaction that was found: gid; server_name; action: committed, rolled back, left (its session is at
it), in doubt (not to be decided here) or failed; detail: why. A server that could not be asked has one row without a gid.
Errors: 42501; 42704 no such server; 55000 no launcher or resolver; 25006 on a standby.
Example: SELECT * FROM coord.twophase_resolve();$$;

COMMENT ON FUNCTION coord.twophase_force(text, name, text, text) IS
$$Ends one prepared transaction by hand: for what is in doubt, once somebody has found out how it must end. At once, whatever
becomes of the transaction that calls it, and recorded in coord.twophase_history and the server's log. For coord_admin.
gid: required, as in coord.twophase_in_doubt. server: required, where it is prepared.
outcome: required, committed or aborted. reason: required.
It is done by the caller's own user mapping there, or one that was used for a transaction.
Errors: 22004 null; 22023 an unknown outcome, an empty reason, no name of this database's; 55000 it would contradict what is recorded: the
decision, that this incarnation has made none, how another part was ended; or its session is at it; 42704 no such server, or nothing
is prepared there by that name; 42501; also when no mapping there is that of the role that prepared it, or of a superuser; ZC010 the
server cannot be asked, or refused; 25001 in a transaction with participants; 25006 on a standby.
Example: SELECT coord.twophase_force('coord:..', 'shard_a', 'aborted', 'shard_b was restored to before it');$$;

COMMENT ON FUNCTION coord.twophase_adopt(int, text) IS
$$Takes over what an earlier incarnation of this database has left prepared: for after a failover or a restore to an earlier time, when
the earlier server is gone for good. Where all parts of a transaction are still prepared they are rolled back; where some
are not, the participants are asked whether those committed, and the rest is ended likewise; what nobody knows stays in doubt. The
resolver goes on with participants that cannot be reached now. For coord_admin.
incarnation: required, the fourth part of a gid in coord.twophase_in_doubt, whose repair has the statement. reason: recorded.
Returns how many prepared transactions were ended. Repeating it is harmless.
Errors: 22004 null; 42704 no such incarnation; 55000 it is the present one; 42501; 25001 in a transaction with participants; 25006 on a
standby. A participant that cannot be asked is a WARNING.
Example: SELECT coord.twophase_adopt(1, 'failover of last night');$$;

COMMENT ON FUNCTION coord.create_restore_point(text) IS
$$Makes a restore point of one label here and at all participants, such that all servers restored to it agree about every transaction: no
decision is committed meanwhile. After the restore the resolver commits what is prepared and decided; adopt the earlier
incarnation for the rest. For coord_admin.
label: required, 1 to 63 bytes, for recovery_target_name.
Returns the position of it in this server's log.
Errors: 22004 null; 22023 an empty or too long label; 55000 wal_level; ZC010 a participant cannot make one, as its role needs
EXECUTE on pg_create_restore_point() there; the detail says where one was made before; 42501; 55P03 with lock_timeout; 25001 in a transaction
with participants; 25006 on a standby.
Example: SELECT coord.create_restore_point('before_migration');$$;

COMMENT ON FUNCTION coord.twophase_check(name) IS
$$Says what is wrong with participants, and what to do, before the first transaction fails on it. Connects anew to each.
server: only that one. Default: those that the caller has a user mapping for; for coord_admin also all that have been used.
Returns rows: server_name, null for what is about this server; check_name: launcher, engine; server, usage, mapping, password,
connection, primary, prepared_transactions, pooler, resolver, in_doubt; ok; detail. What is wrong there is a row, not an error; what
depends on it is left out.
Errors: 42704 no such server; 25001 in a transaction with participants; 25006 on a standby.
Example: SELECT * FROM coord.twophase_check() WHERE NOT ok;$$;

-- ---------------------------------------------------------------------------
-- Views
-- ---------------------------------------------------------------------------

COMMENT ON VIEW coord.sagas IS
$$Sagas, unfinished and archived: those of roles that the reader is a member of, those of names granted by
coord.grant_use(), and all for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.sagas.id IS 'The saga.';
COMMENT ON COLUMN coord.sagas.name IS 'What it is an instance of.';
COMMENT ON COLUMN coord.sagas.version IS 'Version of the definition, kept for its whole life.';
COMMENT ON COLUMN coord.sagas.status IS 'running, paused, suspended, compensating; completed, compensated, failed.';
COMMENT ON COLUMN coord.sagas.direction IS 'forward, or backward once it compensates.';
COMMENT ON COLUMN coord.sagas.cause IS 'Why it turned back or ended early: step_failed, cancelled, deadline, abandoned.';
COMMENT ON COLUMN coord.sagas.key IS 'The caller''s key, unique within the name while the saga is kept.';
COMMENT ON COLUMN coord.sagas.input IS 'What it was started with, or coord.saga_patch() replaced it with.';
COMMENT ON COLUMN coord.sagas.output IS 'Results of the steps so far: {step: result}.';
COMMENT ON COLUMN coord.sagas.error IS 'The message that turned it back or suspended it.';
COMMENT ON COLUMN coord.sagas.owner IS 'The role that started it and as which its steps run; a dropped one''s last name.';
COMMENT ON COLUMN coord.sagas.priority IS 'Higher first.';
COMMENT ON COLUMN coord.sagas.labels IS 'The caller''s own JSON object.';
COMMENT ON COLUMN coord.sagas.correlation_id IS 'Common to what belongs together.';
COMMENT ON COLUMN coord.sagas.created_at IS 'When coord.saga_start() was called.';
COMMENT ON COLUMN coord.sagas.started_at IS 'When its first step began.';
COMMENT ON COLUMN coord.sagas.finished_at IS 'When it was completed, compensated or failed.';
COMMENT ON COLUMN coord.sagas.wake_at IS 'When it is due; null while it waits for an operator or for something to come (coord.saga_steps), or is finished.';
COMMENT ON COLUMN coord.sagas.deadline_at IS 'Turned back if not past its pivot by then.';

COMMENT ON VIEW coord.saga_steps IS
$$Steps of the sagas in coord.sagas, also those that have not run yet.$$;
COMMENT ON COLUMN coord.saga_steps.saga_id IS 'The saga.';
COMMENT ON COLUMN coord.saga_steps.ordinal IS 'Place in the definition, from 0.';
COMMENT ON COLUMN coord.saga_steps.step IS 'The step''s name.';
COMMENT ON COLUMN coord.saga_steps.item IS 'Which item, from 0, of a step that is for each of something; null: the step itself. Items are shown while their saga is unfinished.';
COMMENT ON COLUMN coord.saga_steps.phase IS 'What attempt and error are about: action or compensation.';
COMMENT ON COLUMN coord.saga_steps.status IS
  'pending, ready, running, completed, skipped, failed, compensating, compensated, compensation_failed. running: a function runs, the step is handed out, or what it waits for has not come. Steps that a saga that turned back did not get to stay pending or ready.';
COMMENT ON COLUMN coord.saga_steps.attempt IS 'Attempts made in this phase.';
COMMENT ON COLUMN coord.saga_steps.result IS 'What the action returned.';
COMMENT ON COLUMN coord.saga_steps.error IS 'Message of the last failed attempt; null after success.';
COMMENT ON COLUMN coord.saga_steps.sqlstate IS 'Its SQLSTATE.';
COMMENT ON COLUMN coord.saga_steps.error_detail IS 'Its detail.';
COMMENT ON COLUMN coord.saga_steps.error_context IS 'Its context: function and line.';
COMMENT ON COLUMN coord.saga_steps.next_attempt_at IS 'No attempt before.';
COMMENT ON COLUMN coord.saga_steps.started_at IS 'When its first attempt began.';
COMMENT ON COLUMN coord.saga_steps.finished_at IS 'When it, or its compensation, ended.';

COMMENT ON VIEW coord.tasks IS
$$Steps that are handed out and not finished: to workers outside by a queue, or to coord's own. Those of roles that the reader is
a member of, those that were granted by coord.grant_use(), and all for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.tasks.task_id IS 'The task.';
COMMENT ON COLUMN coord.tasks.saga_id IS 'The saga it belongs to.';
COMMENT ON COLUMN coord.tasks.step IS 'The step.';
COMMENT ON COLUMN coord.tasks.item IS 'Which item, from 0, of a step that is for each of something.';
COMMENT ON COLUMN coord.tasks.phase IS 'action or compensation.';
COMMENT ON COLUMN coord.tasks.queue IS 'Where it is claimed; null: by coord''s own workers.';
COMMENT ON COLUMN coord.tasks.status IS
  'ready, delayed (not before available_at), held (until others of the step are finished), running, stopped (it cannot be run).';
COMMENT ON COLUMN coord.tasks.attempt IS 'Attempts made, the one in progress included.';
COMMENT ON COLUMN coord.tasks.worker IS 'Who has it, as he called himself.';
COMMENT ON COLUMN coord.tasks.lease_expires_at IS 'Until when he has it.';
COMMENT ON COLUMN coord.tasks.available_at IS 'Nobody gets it before.';

COMMENT ON VIEW coord.queues IS
$$Queues of roles that the reader is a member of, those granted by coord.grant_use(), and all for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.queues.queue IS 'The queue.';
COMMENT ON COLUMN coord.queues.paused IS 'Nobody gets a task of it.';
COMMENT ON COLUMN coord.queues.max_running IS 'At most so many claimed at a time; null: no limit.';
COMMENT ON COLUMN coord.queues.rate_limit IS 'At most so many claims per second; null: no limit.';
COMMENT ON COLUMN coord.queues.ready IS 'Tasks that can be claimed.';
COMMENT ON COLUMN coord.queues.running IS 'Tasks that are claimed.';
COMMENT ON COLUMN coord.queues.delayed IS 'Tasks that can be claimed later.';
COMMENT ON COLUMN coord.queues.oldest_ready_at IS 'Since when the first of those that are ready can be claimed.';
COMMENT ON COLUMN coord.queues.last_claim_at IS 'When somebody last got a task of it, as far as is known.';

COMMENT ON VIEW coord.saga_definitions IS
$$Versions of sagas, active or not, whose names the reader may use or see.$$;
COMMENT ON COLUMN coord.saga_definitions.name IS 'The saga.';
COMMENT ON COLUMN coord.saga_definitions.version IS 'From 1.';
COMMENT ON COLUMN coord.saga_definitions.active IS 'Is it the one that coord.saga_start() takes?';
COMMENT ON COLUMN coord.saga_definitions.definition IS 'As stored: functions with their schemas, "after" spelled out.';
COMMENT ON COLUMN coord.saga_definitions.search_path IS 'The definer''s when it was defined, pg_temp last: steps run with it.';
COMMENT ON COLUMN coord.saga_definitions.owner IS 'Whose the name is: its first definer.';
COMMENT ON COLUMN coord.saga_definitions.definer IS 'Who defined this version.';
COMMENT ON COLUMN coord.saga_definitions.created_at IS 'When.';

COMMENT ON VIEW coord.saga_log IS
$$Every failed attempt and every operator's action on the sagas in coord.sagas. Kept for coord.saga_retention.$$;
COMMENT ON COLUMN coord.saga_log.saga_id IS 'The saga.';
COMMENT ON COLUMN coord.saga_log.at IS 'When.';
COMMENT ON COLUMN coord.saga_log.event IS
  'attempt_failed; revoked (coord.task_revoke()); pivot_completed (after the saga had turned back: it goes forward); cancel, pause, resume, retry, skip, patch, abandon; or one of these with _refused.';
COMMENT ON COLUMN coord.saga_log.step IS 'The step it is about, if any; of an item with its number: load[7].';
COMMENT ON COLUMN coord.saga_log.phase IS 'action or compensation, of attempts.';
COMMENT ON COLUMN coord.saga_log.attempt IS 'Which attempt it was.';
COMMENT ON COLUMN coord.saga_log.role IS 'The operator; of attempts, the owner.';
COMMENT ON COLUMN coord.saga_log.reason IS 'The operator''s reason.';
COMMENT ON COLUMN coord.saga_log.error IS 'Message of a failure or refusal.';
COMMENT ON COLUMN coord.saga_log.sqlstate IS 'SQLSTATE of a failure.';
COMMENT ON COLUMN coord.saga_log.error_detail IS 'Its detail.';
COMMENT ON COLUMN coord.saga_log.error_context IS 'Its context: function and line.';
COMMENT ON COLUMN coord.saga_log.id IS 'Order of rows of the same time.';

COMMENT ON VIEW coord.workers IS
$$coord's processes: the launcher of the cluster and the workers of this database. What they work on is shown to
members of the saga's owner, coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.workers.pid IS 'Process id; null while it starts.';
COMMENT ON COLUMN coord.workers.backend_type IS 'coord launcher or coord worker, as in pg_stat_activity.';
COMMENT ON COLUMN coord.workers.state IS 'starting, running or idle.';
COMMENT ON COLUMN coord.workers.started_at IS 'When it was started.';
COMMENT ON COLUMN coord.workers.saga_id IS 'The saga whose function runs now.';
COMMENT ON COLUMN coord.workers.step IS 'The step.';
COMMENT ON COLUMN coord.workers.phase IS 'action or compensation.';
COMMENT ON COLUMN coord.workers.since IS 'Since when the function runs.';

COMMENT ON VIEW coord.stuck IS
$$What does not go on by itself, or not as it should, with the statement that repairs it. Empty when all is well.$$;
COMMENT ON COLUMN coord.stuck.kind IS
  'saga (suspended, paused, or late after its pivot), request (of an operator, not applied for a minute), queue (paused, or nobody has claimed its tasks for a minute), engine (paused, disabled, a copy), worker (work is due for a minute and none runs), in_doubt (prepared at a participant, and not for coord to decide), participant (has not acknowledged a decision for a minute).';
COMMENT ON COLUMN coord.stuck.id IS 'The saga''s id, for kinds saga and request; the prepared transaction''s name for in_doubt, the global id for participant.';
COMMENT ON COLUMN coord.stuck.name IS 'The saga''s, the queue''s or the servers'' name; the database''s for the other kinds.';
COMMENT ON COLUMN coord.stuck.since IS 'Since when, where that is known.';
COMMENT ON COLUMN coord.stuck.waits_for IS 'Whom or what it waits for, and why.';
COMMENT ON COLUMN coord.stuck.hint IS 'What can be done.';
COMMENT ON COLUMN coord.stuck.repair IS 'The usual statement to do it.';

COMMENT ON VIEW coord.locks IS
$$Named locks that sessions of this database hold: those of roles that the reader is a member of, all for coord_admin and
pg_monitor. A prepared transaction's have no pid and no name.$$;
COMMENT ON COLUMN coord.locks.name IS 'The lock.';
COMMENT ON COLUMN coord.locks.mode IS 'exclusive, share, intent_exclusive, intent_share or share_intent_exclusive.';
COMMENT ON COLUMN coord.locks.scope IS 'session, or transaction; session when both hold it.';
COMMENT ON COLUMN coord.locks.pid IS 'Process id of the session.';
COMMENT ON COLUMN coord.locks.owner IS 'The role that took it.';
COMMENT ON COLUMN coord.locks.token IS 'The fencing token that was returned.';
COMMENT ON COLUMN coord.locks.granted_at IS 'Since when it is held.';
COMMENT ON COLUMN coord.locks.waiters IS 'How many wait for it, in whatever mode.';

COMMENT ON VIEW coord.lock_waiters IS
$$Sessions that wait for a lock or a lease: those of roles that the reader is a member of, all for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.lock_waiters.name IS 'What it waits for.';
COMMENT ON COLUMN coord.lock_waiters.position IS 'Its place in the queue, from 1; among those that came within microseconds of each other the order shown may be wrong, grants are in order.';
COMMENT ON COLUMN coord.lock_waiters.pid IS 'Process id of the session.';
COMMENT ON COLUMN coord.lock_waiters.owner IS 'Its role.';
COMMENT ON COLUMN coord.lock_waiters.mode IS 'The mode of a lock; lease: it waits for a lease or for permits.';
COMMENT ON COLUMN coord.lock_waiters.waiting_since IS 'Since when.';
COMMENT ON COLUMN coord.lock_waiters.blocked_by IS
  'Process ids of sessions that are in front of it. Empty for the first one who waits for a lease: its holder is no session.';

COMMENT ON VIEW coord.leases IS
$$Leases, elections and permits that are granted and have not run out: those acquired by roles that the reader is a member of,
all for coord_admin and pg_monitor. What a transaction has not committed is not shown. Empty on a standby.$$;
COMMENT ON COLUMN coord.leases.name IS 'The lease.';
COMMENT ON COLUMN coord.leases.owner IS 'Who has it, as it was said to coord.lease_acquire().';
COMMENT ON COLUMN coord.leases.token IS 'The fencing token.';
COMMENT ON COLUMN coord.leases.granted_at IS 'When it was granted; acquiring again and renewing do not change that.';
COMMENT ON COLUMN coord.leases.expires_at IS 'When it ends if it is not renewed.';
COMMENT ON COLUMN coord.leases.ttl IS 'The time to live that is stored: how long a renewal without one lasts.';
COMMENT ON COLUMN coord.leases.permits IS 'How many permits the owner has; 1 of what is no semaphore.';
COMMENT ON COLUMN coord.leases.capacity IS 'How many there are; 1 of what is no semaphore.';
COMMENT ON COLUMN coord.leases.waiters IS 'How many sessions wait for it.';

COMMENT ON VIEW coord.leaders IS
$$Who leads which election; rows as in coord.leases. Not what was got by coord.lease_acquire().$$;
COMMENT ON COLUMN coord.leaders.name IS 'The election.';
COMMENT ON COLUMN coord.leaders.leader IS 'Who leads, as it was said to coord.leader_campaign().';
COMMENT ON COLUMN coord.leaders.token IS 'His fencing token.';
COMMENT ON COLUMN coord.leaders.elected_at IS 'Since when he leads.';
COMMENT ON COLUMN coord.leaders.expires_at IS 'When that ends if he does not come back.';
COMMENT ON COLUMN coord.leaders.ttl IS 'How long he may stay away.';

COMMENT ON VIEW coord.lease_log IS
$$What operators did to leases: a reader sees what roles did that he is a member of, coord_admin and pg_monitor all.$$;
COMMENT ON COLUMN coord.lease_log.at IS 'When.';
COMMENT ON COLUMN coord.lease_log.name IS 'The lease.';
COMMENT ON COLUMN coord.lease_log.owner IS 'Who had it.';
COMMENT ON COLUMN coord.lease_log.token IS 'Its fencing token, which is stale since.';
COMMENT ON COLUMN coord.lease_log.event IS 'broken: coord.lease_break().';
COMMENT ON COLUMN coord.lease_log.role IS 'The operator.';
COMMENT ON COLUMN coord.lease_log.reason IS 'The operator''s reason.';

COMMENT ON VIEW coord.twophase_active IS
$$Sessions that are preparing or committing a transaction with participants, or have called coord.twophase_current(): those of
roles that the reader is a member of, all for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.twophase_active.gtid IS 'The transaction.';
COMMENT ON COLUMN coord.twophase_active.pid IS 'Process id of the session.';
COMMENT ON COLUMN coord.twophase_active.owner IS 'Its role.';
COMMENT ON COLUMN coord.twophase_active.participants IS 'How many participants it has.';
COMMENT ON COLUMN coord.twophase_active.since IS 'Since when.';

COMMENT ON VIEW coord.twophase_pending IS
$$Transactions that are committed and whose participants have not all acknowledged it: the resolver goes on until they have. Those
of roles that the reader is a member of, all for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.twophase_pending.gtid IS 'The transaction.';
COMMENT ON COLUMN coord.twophase_pending.decided_at IS 'When it was decided.';
COMMENT ON COLUMN coord.twophase_pending.owner IS 'The role that committed it.';
COMMENT ON COLUMN coord.twophase_pending.servers IS 'All servers that had prepared it; coord.twophase_servers says which of them fail.';
COMMENT ON COLUMN coord.twophase_pending.correlation_id IS 'coord.correlation_id of the session.';

COMMENT ON VIEW coord.twophase_in_doubt IS
$$What is prepared at a participant and cannot be decided here. Its locks stay there until somebody decides. For coord_admin and
pg_monitor.$$;
COMMENT ON COLUMN coord.twophase_in_doubt.gid IS 'Its name there, in pg_prepared_xacts.';
COMMENT ON COLUMN coord.twophase_in_doubt.server_name IS 'The server.';
COMMENT ON COLUMN coord.twophase_in_doubt.prepared_at IS 'When it was prepared, by the clock there.';
COMMENT ON COLUMN coord.twophase_in_doubt.owner IS 'The role there that prepared it.';
COMMENT ON COLUMN coord.twophase_in_doubt.reason IS 'Why it is in doubt.';
COMMENT ON COLUMN coord.twophase_in_doubt.repair IS 'The statement that ends it, once somebody has found out how it must end.';

COMMENT ON VIEW coord.twophase_transactions IS
$$Two-phase commits of applications, see coord.twophase_begin(), until coord.twophase_retention after they are decided: those of roles
that the reader is a member of, all for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.twophase_transactions.gtid IS 'Its id.';
COMMENT ON COLUMN coord.twophase_transactions.label IS 'As it was begun with.';
COMMENT ON COLUMN coord.twophase_transactions.status IS 'open, preparing, committed or aborted; see coord.state_machine(''twophase'').';
COMMENT ON COLUMN coord.twophase_transactions.owner IS 'The role that began it.';
COMMENT ON COLUMN coord.twophase_transactions.participants IS 'How many are enlisted.';
COMMENT ON COLUMN coord.twophase_transactions.created_at IS 'When it was begun.';
COMMENT ON COLUMN coord.twophase_transactions.deadline_at IS 'When it is aborted unless it is decided.';
COMMENT ON COLUMN coord.twophase_transactions.decided_at IS 'When it was decided.';
COMMENT ON COLUMN coord.twophase_transactions.reason IS 'Why it was aborted.';
COMMENT ON COLUMN coord.twophase_transactions.correlation_id IS 'coord.correlation_id of the session that began it.';

COMMENT ON VIEW coord.twophase_participants IS
$$Who takes part in two-phase commits of applications: in those of roles that the reader is a member of, and what such roles enlisted; all
for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.twophase_participants.gtid IS 'The transaction.';
COMMENT ON COLUMN coord.twophase_participants.participant IS 'Its name.';
COMMENT ON COLUMN coord.twophase_participants.kind IS 'functions, queue or server.';
COMMENT ON COLUMN coord.twophase_participants.state IS 'enlisted, preparing, prepared (it said yes), committing, committed, aborting, aborted; suspended: it cannot be run, see coord.stuck.';
COMMENT ON COLUMN coord.twophase_participants.owner IS 'The role that enlisted it, and that it runs as.';
COMMENT ON COLUMN coord.twophase_participants.server_name IS 'Its server.';
COMMENT ON COLUMN coord.twophase_participants.queue IS 'Its queue.';
COMMENT ON COLUMN coord.twophase_participants.saga_id IS 'The saga that carries it, for coord.saga_log and coord.saga_retry(); null before it is asked, and for a server.';
COMMENT ON COLUMN coord.twophase_participants.error IS 'Of the last attempt that failed.';

COMMENT ON VIEW coord.twophase_servers IS
$$Participants that have been used, one for each user mapping, and what came of the resolver's last look: those that a role uses
of which the reader is a member, all for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.twophase_servers.server_name IS 'The server; null when it was dropped.';
COMMENT ON COLUMN coord.twophase_servers.mapping IS 'Whose user mapping it is; 0: PUBLIC''s.';
COMMENT ON COLUMN coord.twophase_servers.since IS 'When it was used first.';
COMMENT ON COLUMN coord.twophase_servers.seen_at IS 'When the resolver last looked there and was answered.';
COMMENT ON COLUMN coord.twophase_servers.failed_at IS 'When it last looked and was not, unless it has been since.';
COMMENT ON COLUMN coord.twophase_servers.error IS 'What was wrong then.';

COMMENT ON VIEW coord.twophase_history IS
$$Transactions that were committed in two phases, and what operators and the resolver did out of the ordinary. A reader sees those of roles that
he is a member of; coord_admin and pg_monitor see all. Kept for coord.twophase_retention, what operators did for good.$$;
COMMENT ON COLUMN coord.twophase_history.at IS 'When.';
COMMENT ON COLUMN coord.twophase_history.gtid IS 'The transaction.';
COMMENT ON COLUMN coord.twophase_history.event IS
  'committed; forced committed, forced aborted: coord.twophase_force(); adopted: coord.twophase_adopt(); resurrected: it was prepared again after it had been acknowledged, and committed again; restore_point: coord.create_restore_point().';
COMMENT ON COLUMN coord.twophase_history.gid IS 'The prepared transaction; null where it is about all of them.';
COMMENT ON COLUMN coord.twophase_history.servers IS 'The servers, as far as they exist.';
COMMENT ON COLUMN coord.twophase_history.incarnation IS 'The run of history that decided; a new one begins with promotion, restore or copy.';
COMMENT ON COLUMN coord.twophase_history.owner IS 'The role that committed, or the operator.';
COMMENT ON COLUMN coord.twophase_history.correlation_id IS 'coord.correlation_id of the session.';
COMMENT ON COLUMN coord.twophase_history.reason IS 'The operator''s reason.';

-- ---------------------------------------------------------------------------
-- coord_internal, for readers of the source
-- ---------------------------------------------------------------------------

COMMENT ON TABLE coord_internal.identity IS 'Which database this is; a row about another one says that this is a copy.';
COMMENT ON TABLE coord_internal.engine_pause IS 'One row while coord.pause() holds.';
COMMENT ON TABLE coord_internal.principal IS 'The names of roles that own work, for copies where oids differ.';
COMMENT ON TABLE coord_internal.use_grant IS 'coord.grant_use().';
COMMENT ON TABLE coord_internal.saga_name IS 'Names of sagas: owner and active version.';
COMMENT ON TABLE coord_internal.saga_version IS 'Definitions, immutable.';
COMMENT ON TABLE coord_internal.saga IS 'Unfinished sagas: the queue, by wake_at.';
COMMENT ON TABLE coord_internal.saga_step IS 'Steps of unfinished sagas to which something happened.';
COMMENT ON TABLE coord_internal.saga_archive IS 'Finished sagas with their steps, partitioned by finished_at.';
COMMENT ON TABLE coord_internal.saga_log IS 'Failed attempts and operators'' actions, partitioned by time.';
COMMENT ON TABLE coord_internal.saga_key IS 'One saga per name and key, for as long as it is kept.';
COMMENT ON TABLE coord_internal.saga_request IS 'Operators'' requests for sagas that somebody has in hand.';
COMMENT ON TABLE coord_internal.queue IS 'Queues and their limits.';
COMMENT ON TABLE coord_internal.queue_role IS 'Whose queues they are.';
COMMENT ON TABLE coord_internal.task IS 'Steps that are handed out.';
COMMENT ON TABLE coord_internal.task_gone IS 'Tasks of finished sagas, while somebody may still hold a token.';
COMMENT ON TABLE coord_internal.saga_inbox IS 'Sagas to which something has happened.';
COMMENT ON TABLE coord_internal.saga_signal IS 'Signals, until their saga is finished.';
COMMENT ON TABLE coord_internal.lease IS 'Leases, elections and permits that were granted; deadlines are in shared memory.';
COMMENT ON TABLE coord_internal.semaphore IS 'Capacities of semaphores.';
COMMENT ON TABLE coord_internal.once IS 'When coord.once_per() last said yes.';
COMMENT ON TABLE coord_internal.lease_log IS 'What operators did to leases.';
COMMENT ON TABLE coord_internal.twophase_cluster IS 'Whose prepared transactions are ours: part of their names.';
COMMENT ON TABLE coord_internal.twophase_incarnation IS 'Runs of history of this database, the last one is now.';
COMMENT ON TABLE coord_internal.twophase_participant IS 'Where the resolver looks.';
COMMENT ON TABLE coord_internal.twophase_decision IS 'Transactions that committed, partitioned by time.';
COMMENT ON TABLE coord_internal.twophase_in_doubt IS 'What is prepared somewhere and not the resolver''s to decide.';
COMMENT ON TABLE coord_internal.twophase_log IS 'What operators did, and what the resolver did not expect.';
COMMENT ON TABLE coord_internal.twophase_app IS 'Two-phase commits of applications; the row is the decision.';
COMMENT ON TABLE coord_internal.twophase_app_participant IS 'Their participants.';
COMMENT ON SEQUENCE coord_internal.twophase_log_id IS 'Order of rows in that log.';
COMMENT ON FUNCTION coord_internal.twophase_sessions() IS 'Sessions in the middle of a commit, from shared memory.';
COMMENT ON FUNCTION coord_internal.twophase_unacknowledged() IS 'Decisions of this run that not all have acknowledged, from shared memory.';
COMMENT ON FUNCTION coord_internal.twophase_figures() IS 'This run''s incarnation and first id, and what its resolver did, from shared memory.';
COMMENT ON FUNCTION coord_internal.gid_gtid(text) IS 'The transaction that a prepared one belongs to, by its name; null: it is none of coord''s.';
COMMENT ON SEQUENCE coord_internal.token_floor IS 'Up to where fencing tokens were reserved.';
COMMENT ON VIEW coord_internal.lock_row IS 'The lock manager''s own rows of coord''s locks, fences and gates.';
COMMENT ON FUNCTION coord_internal.held_locks() IS 'What sessions hold and wait for by name, from shared memory.';
COMMENT ON FUNCTION coord_internal.lease_states() IS 'Who has which lease, from shared memory.';
COMMENT ON FUNCTION coord_internal.fence_guard() IS 'Trigger of coord.fence_guard().';
COMMENT ON SEQUENCE coord_internal.task_id IS 'Ids of tasks.';
COMMENT ON SEQUENCE coord_internal.saga_signal_id IS 'Order of signals.';
COMMENT ON VIEW coord_internal.granted_queue IS 'Queues that the current user was granted the use of, and by whom.';
COMMENT ON COLUMN coord_internal.granted_queue.name IS 'The queue.';
COMMENT ON COLUMN coord_internal.granted_queue.granted_by IS 'Whose tasks he may use.';
COMMENT ON VIEW coord_internal.visible_queue IS 'Queues that the current user may see.';
COMMENT ON VIEW coord_internal.stuck_queue IS 'Queues that nobody claims from although he could.';
COMMENT ON FUNCTION coord_internal.lease_end(bigint, int, timestamptz, timestamptz) IS
  'When a lease ends: with the step''s timeout at the latest.';
COMMENT ON FUNCTION coord_internal.queue_last_claim(text) IS 'When somebody last claimed from a queue, from shared memory.';
COMMENT ON SEQUENCE coord_internal.saga_id IS 'Ids of sagas.';
COMMENT ON SEQUENCE coord_internal.saga_version_id IS 'Ids of definitions, never used again.';
COMMENT ON SEQUENCE coord_internal.saga_log_id IS 'Order of rows in the log.';
COMMENT ON SEQUENCE coord_internal.saga_request_id IS 'Order of requests.';
COMMENT ON VIEW coord_internal.granted_saga IS 'Names of sagas that the current user was granted the use of.';
COMMENT ON VIEW coord_internal.live_saga IS 'Unfinished sagas that the current user may see.';
COMMENT ON VIEW coord_internal.finished_saga IS 'Archived sagas that the current user may see.';
COMMENT ON VIEW coord_internal.waiting_request IS 'Requests for sagas that the current user may see.';
COMMENT ON VIEW coord_internal.stopped_saga IS 'Paused and suspended sagas that the current user may see, and what stops them.';
COMMENT ON FUNCTION coord_internal.home() IS 'What unfinished work of this database bears, so that a copy of it is not run.';
COMMENT ON COLUMN coord_internal.granted_saga.name IS 'The saga''s name.';

COMMENT ON FUNCTION coord_internal.version_1_0() IS 'Its name is the version that the library looks for.';
COMMENT ON FUNCTION coord_internal.system_identifier() IS 'The cluster''s system identifier.';
COMMENT ON FUNCTION coord_internal.now() IS 'The time that coord decides by: coord.test_now, else the system''s.';
COMMENT ON FUNCTION coord_internal.sees_all() IS 'Does the current user see every row of coord''s views?';
COMMENT ON FUNCTION coord_internal.is_mine(oid) IS 'Is the current user a member of the role that a stored oid means?';
COMMENT ON FUNCTION coord_internal.engine_state() IS 'running, paused, copy or disabled.';
COMMENT ON FUNCTION coord_internal.state_changed() IS 'Trigger: makes every process read the engine''s state again after commit.';
COMMENT ON FUNCTION coord_internal.ring() IS 'Makes somebody look at this database after commit.';
COMMENT ON FUNCTION coord_internal.check_visible(bigint) IS 'The saga''s id if the current user may see it, else 42704.';
COMMENT ON FUNCTION coord_internal.check_saga_name(text) IS 'The saga''s name if the current user may use it, else 42704.';
COMMENT ON FUNCTION coord_internal.check_format(text) IS 'The format of a picture, else 22023.';
COMMENT ON FUNCTION coord_internal.step_time(bigint) IS 'Time of an archived step, from microseconds since 2000-01-01 UTC.';
COMMENT ON FUNCTION coord_internal.steps_output(jsonb) IS '{step: result} of an archived saga''s steps.';
COMMENT ON FUNCTION coord_internal.role_name(oid) IS 'A role''s name, also one that was dropped; else its oid.';
COMMENT ON FUNCTION coord_internal.role_here(oid) IS 'The role that a stored oid means in this cluster; 0: none.';
COMMENT ON FUNCTION coord_internal.is_foreign() IS 'Does coord_internal.identity name another cluster?';
COMMENT ON FUNCTION coord_internal.adopt_identity() IS 'Takes a copy for what it now is; for coord.resume().';
COMMENT ON FUNCTION coord_internal.picture_text(text, text) IS 'Text that cannot break out of a label of mermaid or dot.';
COMMENT ON FUNCTION coord_internal.picture(jsonb, jsonb, text) IS 'The graph of a definition, with the states of its steps.';
COMMENT ON FUNCTION coord_internal.raise(text, text, text) IS 'Raises an error: SQLSTATE, message, hint.';
COMMENT ON FUNCTION coord_internal.workers() IS 'The launcher and this database''s workers, from shared memory.';

-- ---------------------------------------------------------------------------
-- Events.
-- ---------------------------------------------------------------------------

COMMENT ON TYPE coord.event IS
$$An event: of the log (without stream and version), or of a stream (without key). pos is its place among all of this database.$$;

COMMENT ON FUNCTION coord.publish(text, jsonb, text, uuid, jsonb, uuid) IS
$$Publishes an event in your transaction: rolled back with it, prepared with it, seen by others from its commit on.
type: required, 1 to 200 bytes, no star. data: required, any JSON; default {}. key: 1 to 200 bytes: events of one key are for
consumers in order. correlation_id: default coord.correlation_id. metadata: any JSON. event_id: default a new one.
Returns its position: a number that grows, with gaps, below 2^53.
Errors: 22004 null; 22023 an empty or starred type; 42622 type or key too long; 25006 read-only or on a standby.
Example: SELECT coord.publish('order.placed', '{"order": 7}', key => 'order-7');$$;
COMMENT ON FUNCTION coord.publish_many(text, jsonb[], text[], uuid) IS
$$Publishes events of one type, in the order of the array.
type: required, as coord.publish(). data: required, without nulls. keys: as many as data, null for none. correlation_id: default
coord.correlation_id.
Returns the last position; null for an empty array.
Errors: as coord.publish(); 22023 another number of keys than of events.
Example: SELECT coord.publish_many('tick', ARRAY['{"n": 1}', '{"n": 2}']::jsonb[]);$$;
COMMENT ON FUNCTION coord.last_position() IS
$$The newest position that this transaction has written, else that this session has; null: none yet. Also of appended events.
Example: SELECT coord.last_position();$$;

COMMENT ON FUNCTION coord.append(text, text, jsonb, bigint, jsonb, uuid, uuid, text, text) IS
$$Appends an event to a stream, in your transaction. Whoever appends first owns the stream.
stream: required, 1 to 200 bytes. type: required, 1 to 200 bytes, no star. data: required, any JSON.
expected_version: the version that the stream must be at; 0: it must not exist; null: any, which waits for others that append.
metadata: any JSON. event_id: an id that the stream may have once: repeated, the first one's version is returned and nothing is
appended. correlation_id: default coord.correlation_id. coordination_id, step_id: of what it is a part; see coord.coordinate().
Returns its version; versions of a stream count from 1 without gaps.
Errors: ZC003 the stream is at another version, which the detail names; ZC004 it has ended; 42501 it belongs to a role that the
caller is not a member of, and its use was not granted; 22004 null; 22023 a negative version, an empty or starred type; 42622 too
long; 25006 read-only or on a standby; 40P01 deadlock with another transaction that appends to several streams.
Example: SELECT coord.append('account-7', 'deposited', '{"amount": 10}', expected_version => 3);$$;
COMMENT ON FUNCTION coord.append_many(text, jsonb, bigint) IS
$$Appends events to a stream, one after the other.
stream: required. events: required: an array of objects with type, data and, if wanted, metadata and event_id.
expected_version: as coord.append(), for the first.
Returns the last version; null for an empty array.
Errors: as coord.append(); 22023 what is no array of such objects.
Example: SELECT coord.append_many('cart-1', '[{"type": "added", "data": {"sku": 1}}, {"type": "paid", "data": {}}]');$$;
COMMENT ON FUNCTION coord.coordinate(text, jsonb) IS
$$Appends events to several streams, all or none, under one coordination id.
coordination_id: required, 1 to 200 bytes. events: required: an array of objects with stream, type, data and, if wanted,
expected_version, metadata, event_id and step_id.
Returns the last position; null for an empty array. Streams are locked in order of their names, so coordinations do not deadlock
with each other.
Errors: as coord.append().
Example: SELECT coord.coordinate('move-1', '[{"stream": "a", "type": "out", "data": 5, "expected_version": 2}, {"stream": "b", "type": "in", "data": 5}]');$$;
COMMENT ON FUNCTION coord.coordination_events(text) IS
$$What was appended under a coordination id, in order, of streams that the caller may use. Empty: there is none.
coordination_id: required.
Errors: 22004 null; 22023 empty.
Example: SELECT stream, version, type FROM coord.coordination_events('move-1');$$;
COMMENT ON FUNCTION coord.stream_read(text, bigint, int, boolean) IS
$$Events of a stream, by version. Empty for one that does not exist, or that the caller may not use.
stream: required. from_version: default 1. max_events: default all. backward: the newest first, down to from_version.
Shows what the caller's snapshot shows, his own included.
Errors: 22004 null; 22023 empty, or a negative number of events.
Example: SELECT version, type, data FROM coord.stream_read('account-7', from_version => 4);$$;
COMMENT ON FUNCTION coord.stream_version(text) IS
$$The last version of a stream, as it is committed now; 0: there is no such stream, or the caller may not use it.
stream: required.
Errors: 22004 null; 22023 empty.
Example: SELECT coord.stream_version('account-7');$$;
COMMENT ON FUNCTION coord.stream_truncate(text, bigint) IS
$$Deletes the events of a stream that are below a version; the last one stays in any case, so that versions go on. For members of
its owner and of coord_admin. Waits for transactions that append to it.
stream, before_version: required.
Returns how many.
Errors: 22004 null; 42704 no such stream, or the caller may not use it; 42501 he may use it, but does not own it; 25006 read-only.
Example: SELECT coord.stream_truncate('account-7', 100);$$;
COMMENT ON FUNCTION coord.stream_tombstone(text, text) IS
$$Ends a stream: nothing can be appended any more (ZC004); what is there can be read. For members of its owner and of coord_admin.
Waits for transactions that append to it.
stream: required. reason: shown in coord.streams, and in the error.
Returns whether it has ended now: false, it had before.
Errors: as coord.stream_truncate().
Example: SELECT coord.stream_tombstone('account-7', 'closed');$$;
COMMENT ON FUNCTION coord.log_read(bigint, int, text[]) IS
$$Events of the log and of streams that the caller may use, in order of position. Never skips: an event with a lower position than
one that was returned is never returned later by reading on. So events behind the first one whose transaction is still open, or
prepared, are not there yet (coord.horizon_holders says whose it is); nor are the caller's own before he commits.
after_position: the last that was seen; default 0. max_events: default 1000; null: all. types: patterns, exact or with a star at the
end; default all.
Errors: 22004 a null type; 22023 a bad pattern, or a negative number of events; 25006 on a standby.
Example: SELECT pos, type, data FROM coord.log_read(4711, types => '{order.*}');$$;

COMMENT ON VIEW coord.events IS
$$Events that are committed: the log's, which are for everybody who may use coord, and those of streams that the reader may use. For
looking; to read on without skipping use coord.log_read().$$;
COMMENT ON COLUMN coord.events.pos IS 'Its position among all events of this database.';
COMMENT ON COLUMN coord.events.stream IS 'The stream; null: published.';
COMMENT ON COLUMN coord.events.version IS 'The version in the stream.';
COMMENT ON COLUMN coord.events.type IS 'The type.';
COMMENT ON COLUMN coord.events.key IS 'The key that it was published under.';
COMMENT ON COLUMN coord.events.data IS 'What happened.';
COMMENT ON COLUMN coord.events.metadata IS 'What was said about it.';
COMMENT ON COLUMN coord.events.event_id IS 'Its id.';
COMMENT ON COLUMN coord.events.coordination_id IS 'The coordination that it is a part of.';
COMMENT ON COLUMN coord.events.step_id IS 'The step of the coordination.';
COMMENT ON COLUMN coord.events.correlation_id IS 'The business operation that it is a part of.';
COMMENT ON COLUMN coord.events.causation_id IS 'The event that it follows from.';
COMMENT ON COLUMN coord.events.published_at IS 'When.';
COMMENT ON COLUMN coord.events.owner IS 'Who published it; of a stream''s, who owns the stream.';
COMMENT ON VIEW coord.streams IS $$Streams that the reader may use: of roles that he is a member of, or granted to him; all for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.streams.stream IS 'The name.';
COMMENT ON COLUMN coord.streams.owner IS 'Who appended first.';
COMMENT ON COLUMN coord.streams.created_at IS 'When.';
COMMENT ON COLUMN coord.streams.version IS 'The last version.';
COMMENT ON COLUMN coord.streams.truncated_before IS 'Events below this version were deleted.';
COMMENT ON COLUMN coord.streams.tombstoned_at IS 'When it ended; null: it goes on.';
COMMENT ON COLUMN coord.streams.reason IS 'Why it ended.';
COMMENT ON VIEW coord.horizon_holders IS $$Transactions that have published or appended and are not over: nobody who reads the log in order sees what comes after.$$;
COMMENT ON COLUMN coord.horizon_holders.pid IS 'Its session; null: it is prepared.';
COMMENT ON COLUMN coord.horizon_holders.gid IS 'The prepared transaction''s name.';
COMMENT ON COLUMN coord.horizon_holders.position IS 'Its first event is not before this position.';
COMMENT ON COLUMN coord.horizon_holders.since IS 'When it began, or was prepared.';

COMMENT ON FUNCTION coord_internal.publishers() IS 'Open transactions that publish, from shared memory.';
COMMENT ON FUNCTION coord_internal.may_use_stream(text, oid) IS 'May the current user use a stream of this owner?';
COMMENT ON SEQUENCE coord_internal.event_position IS 'Positions of events.';
COMMENT ON TABLE coord_internal.event_log IS 'Published events, by position.';
COMMENT ON TABLE coord_internal.stream IS 'Streams.';
COMMENT ON TABLE coord_internal.stream_event IS 'Events of streams.';

COMMENT ON FUNCTION coord.subscribe(text, text[], text, text, text[], text, bigint, jsonpath, text, int, int, int, text, name) IS
$$Subscribes to events, in the order of their positions. Again with the same arguments: changes nothing; with others: alters it and
keeps the cursor.
name: required, 1 to 200 bytes. types: patterns: a type, or a beginning and a star; default all. handler: a function that takes
coord.event (batch: coord.event[]) or jsonb and returns jsonb or void, looked up in the search_path, run as you; null: a consumer
polls. emits: the type of an event that has what the handler returns, if it is not null. streams: patterns of names of streams: only
events of these; null: what is published, and all streams that you may use. start_from: now or beginning; from_position: after this
position instead; both count when it is new. filter: a jsonpath on the event as an object: handled where its first item is neither
null nor false. mode: each, or batch: the handler is given an array. batch_size: events a transaction, 1 to 10000. parallel: 1.
max_attempts: from 1. on_error: park_key: what has the same key (of a stream: the stream) waits behind what failed; park_event:
nothing waits; stop: everything does. server: null.
Errors: 42883 no such handler; 42P13 it returns something else; 42501 it may not be called; 42704 the name is somebody else's; 22004
null; 22023 a bad pattern, type, mode or number; 42622 too long; 0A000 parallel, server: not built yet; 25006 read-only or on a
standby.
Example: SELECT coord.subscribe('billing', '{order.placed}', 'bill_order', emits => 'order.billed');$$;
COMMENT ON FUNCTION coord.unsubscribe(text) IS
$$Ends a subscription and forgets what it has put aside. Waits for a handler that is running.
name: required. Returns whether there was one.
Errors: 42704 it belongs to a role that you are not a member of; 22004 null.
Example: SELECT coord.unsubscribe('billing');$$;
COMMENT ON FUNCTION coord.subscription_pause(text, text) IS
$$No more events are handed out until coord.subscription_resume(); what is in hand is finished.
name: required. reason: for coord.subscriptions. Returns whether it was not paused already.
Errors: 42704 no such subscription of yours; 22004 null.
Example: SELECT coord.subscription_pause('billing', 'migration');$$;
COMMENT ON FUNCTION coord.subscription_resume(text, text) IS
$$Goes on after coord.subscription_pause().
name: required. reason: why. Returns whether it was paused.
Errors: 42704 no such subscription of yours; 22004 null.
Example: SELECT coord.subscription_resume('billing');$$;
COMMENT ON FUNCTION coord.subscription_seek(text, bigint, timestamptz) IS
$$Moves the cursor: events after it are handled, again if they were. What failed or is parked after it is forgotten, and tokens of
consumers are stale; what failed before it stays.
name: required. to_position: go on after this position; 0: all that is retained. to_time: go on with what was published from then on.
One of them. Returns the position.
Errors: 42704 no such subscription of yours; 22004 null; 22023 both or none, or a negative position.
Example: SELECT coord.subscription_seek('billing', to_time => now() - '1 h'::interval);$$;
COMMENT ON FUNCTION coord.parked_replay(text, text) IS
$$Parked events are tried again, with all their attempts, and what waits behind them after them. The cursor stays.
name: required. key: only of this key (of a stream: the stream). Returns how many.
Errors: 42704 no such subscription of yours; 22004 null.
Example: SELECT coord.parked_replay('billing');$$;
COMMENT ON FUNCTION coord.parked_drop(text, bigint, text) IS
$$Gives a parked event up: what waits behind it goes on.
name: required. pos: required: its position. reason: for the server's log. Returns whether it was parked.
Errors: 42704 no such subscription of yours; 22004 null.
Example: SELECT coord.parked_drop('billing', 4711, 'test data');$$;
COMMENT ON FUNCTION coord.subscription_poll(text, int, interval, interval) IS
$$Takes events of a subscription without handler, for as long as the lease lasts. What is not acknowledged by then is given out
again, so an event may come twice. Events of a key that somebody has in hand wait.
name: required. max_events: 1 to 10000, default 100. lease: default 30 s. timeout: waits at most this long for the first one, and
at most coord.max_function_wait; CALL coord.await('subscription', name) waits longer.
Returns the events in order, each with the token of this delivery and the number of the attempt; none: there is nothing. Commits
durably whatever synchronous_commit says. Keeps others from polling this subscription until its transaction ends.
Errors: 42704 no such subscription of yours; 55000 it has a handler; 22004 null; 22023 a number or lease out of range; 25006
read-only or on a standby.
Example: SELECT * FROM coord.subscription_poll('mailer', 500, timeout => '5 s');$$;
COMMENT ON FUNCTION coord.subscription_ack(text, bigint, bigint) IS
$$The events of a delivery are done.
name, token: required. upto: only those up to this position; the others are given out again.
Returns whether that was all of them.
Errors: ZC001 the token is stale: the lease has ended and they were given out again, or it was used; 42704, 55000, 22004 as
coord.subscription_poll().
Example: SELECT coord.subscription_ack('mailer', 17);$$;
COMMENT ON FUNCTION coord.subscription_nack(text, bigint, bigint[], interval) IS
$$Events of a delivery have failed: they are given out again later, or parked after max_attempts.
name, token: required. positions: these; the others stay in hand; null: all. retry_in: default at once. Returns whether there were any.
Errors: ZC001 the token is stale; 22023 a position that is not in hand with it, a negative time; 22004 null; 42704, 55000 as
coord.subscription_poll().
Example: SELECT coord.subscription_nack('mailer', 17, '{4711}', '1 min');$$;
COMMENT ON FUNCTION coord.subscription_extend(text, bigint, interval) IS
$$The lease of a delivery lasts from now on for as long.
name, token: required. lease: default 30 s. Returns when it ends.
Errors: ZC001 the token is stale; 22023 not positive; 42704, 55000, 22004 as coord.subscription_poll().
Example: SELECT coord.subscription_extend('mailer', 17, '5 min');$$;

COMMENT ON VIEW coord.subscriptions IS
$$Subscriptions of roles that the reader is a member of; of all for coord_admin and pg_monitor.$$;
COMMENT ON COLUMN coord.subscriptions.name IS 'Its name.';
COMMENT ON COLUMN coord.subscriptions.owner IS 'Who subscribed; the handler runs as this role.';
COMMENT ON COLUMN coord.subscriptions.state IS 'active, paused, blocked (the handler cannot be called; last_error says why), stopped (on_error is stop, and one is parked).';
COMMENT ON COLUMN coord.subscriptions.position IS 'Events up to here are handled, in hand or put aside.';
COMMENT ON COLUMN coord.subscriptions.head IS 'Up to here events can be read; null on a standby.';
COMMENT ON COLUMN coord.subscriptions.lag_events IS 'Positions in between, which are no fewer than events; null on a standby.';
COMMENT ON COLUMN coord.subscriptions.lag_time IS 'Age of the first published event after the cursor; null on a standby.';
COMMENT ON COLUMN coord.subscriptions.last_error IS 'Why the handler cannot be called, else the last error of an event that was put aside.';
COMMENT ON COLUMN coord.subscriptions.parked IS 'Events that were given up; see coord.parked.';
COMMENT ON COLUMN coord.subscriptions.waiting IS 'Events that failed and will be tried again, or wait behind one.';
COMMENT ON COLUMN coord.subscriptions.leased IS 'Deliveries that consumers have in hand.';
COMMENT ON COLUMN coord.subscriptions.handler IS 'The function; null: a consumer polls.';
COMMENT ON COLUMN coord.subscriptions.types IS 'Patterns of types.';
COMMENT ON COLUMN coord.subscriptions.streams IS 'Patterns of streams; null: not only of streams.';
COMMENT ON COLUMN coord.subscriptions.emits IS 'Type of the event that has the result of the handler.';
COMMENT ON COLUMN coord.subscriptions.paused_at IS 'When it was paused.';
COMMENT ON COLUMN coord.subscriptions.pause_reason IS 'Why.';
COMMENT ON COLUMN coord.subscriptions.moved_at IS 'When the cursor moved.';
COMMENT ON COLUMN coord.subscriptions.created_at IS 'When it was made.';
COMMENT ON VIEW coord.parked IS
$$Events that were given up after max_attempts, of subscriptions of roles that the reader is a member of.$$;
COMMENT ON COLUMN coord.parked.name IS 'The subscription.';
COMMENT ON COLUMN coord.parked.pos IS 'The position of the event.';
COMMENT ON COLUMN coord.parked.key IS 'Its key; of a stream, the stream.';
COMMENT ON COLUMN coord.parked.type IS 'Its type.';
COMMENT ON COLUMN coord.parked.attempts IS 'How often it was tried.';
COMMENT ON COLUMN coord.parked.parked_at IS 'When it was given up.';
COMMENT ON COLUMN coord.parked.failed_at IS 'When it failed last.';
COMMENT ON COLUMN coord.parked.sqlstate IS 'The code of the last error; 57P02: the server crashed.';
COMMENT ON COLUMN coord.parked.error IS 'The last error.';
COMMENT ON COLUMN coord.parked.event IS 'The event.';
COMMENT ON COLUMN coord.parked.waiting IS 'How many wait behind it.';

COMMENT ON FUNCTION coord.stream_load(text, text, jsonb, bigint) IS
$$The state of a stream: its events folded by a reducer, from the newest snapshot on.
stream: required. reducer: required: a function f(state jsonb, event jsonb) that returns jsonb, looked up in the search_path and
called as you; event has the columns of coord.event as members. initial: the state before the first event, default {}. at_version:
the state as it was then; default, or beyond the end: now.
Returns the state, the version that it is of and its position; initial, 0 and null when there is no such stream, or none that you
may use.
Errors: 42883 no such reducer; 42P13 it does not return jsonb; 42501 it may not be called; 22004 null, or it returned null; 22023 a
negative version; 55000 events that it would need were truncated.
Example: SELECT state FROM coord.stream_load('account-7', 'account_state', '{"balance": 0}');$$;
COMMENT ON FUNCTION coord.stream_snapshot(text, text, jsonb) IS
$$Keeps the state of a stream, so that coord.stream_load() with the same reducer and initial state has less to read. The two newest
are kept. A reducer whose source has changed does not use them.
stream, reducer, initial: as coord.stream_load(). Returns the version that it is of; 0: no such stream.
Errors: as coord.stream_load(); 42501 the caller is not a member of the stream's owner; 25006 read-only or on a standby.
Example: SELECT coord.stream_snapshot('account-7', 'account_state', '{"balance": 0}');$$;

COMMENT ON FUNCTION coord.projection_define(text, text[], text, text) IS
$$Defines a projection: tables that a handler keeps in step with events from the beginning on, one after the other; it stops at one that
fails. It is a subscription of that name, which coord.unsubscribe() ends. Again: alters it, and keeps its cursor.
name, types, handler: as coord.subscribe(), required. reset: a function without arguments that returns void and empties the tables,
for coord.projection_rebuild().
Errors: as coord.subscribe(); 42883 no such function reset; 42P13 it does not return void; 42501 it may not be called.
Example: SELECT coord.projection_define('balances', '{deposited,withdrawn}', 'book', reset => 'forget_balances');$$;
COMMENT ON FUNCTION coord.projection_rebuild(text) IS
$$Calls the projection's reset, as its owner, and moves its cursor to the beginning, in your transaction: others see the old tables
until it commits. Reads what is retained of the log, and all of streams.
name: required.
Errors: 42704 no such projection of yours; 55000 it was defined without reset; 22004 null; what reset raises.
Example: SELECT coord.projection_rebuild('balances');$$;
COMMENT ON FUNCTION coord.projection_wait(text, bigint, interval) IS
$$Waits until a projection has handled everything up to a position, such as one from coord.publish() or coord.last_position().
name, position: required. timeout: default 10 s. Returns whether it has.
Errors: 42704 no such projection; 25001 the position is of this transaction, or its isolation level is not read committed; 22004
null; 22023 a negative timeout; 25006 on a standby.
Example: SELECT coord.projection_wait('balances', coord.last_position());$$;
COMMENT ON VIEW coord.projections IS 'Projections of roles that the reader is a member of; of all for coord_admin and pg_monitor.';
COMMENT ON COLUMN coord.projections.name IS 'Its name, and that of its subscription.';
COMMENT ON COLUMN coord.projections.owner IS 'Who defined it.';
COMMENT ON COLUMN coord.projections.state IS 'As coord.subscriptions.state.';
COMMENT ON COLUMN coord.projections.position IS 'Events up to here are handled, unless one has failed.';
COMMENT ON COLUMN coord.projections.head IS 'Up to here events can be read; null on a standby.';
COMMENT ON COLUMN coord.projections.lag_events IS 'Positions in between.';
COMMENT ON COLUMN coord.projections.lag_time IS 'Age of the first published event after the cursor.';
COMMENT ON COLUMN coord.projections.last_error IS 'What it stopped at.';
COMMENT ON COLUMN coord.projections.handler IS 'The function that keeps it in step.';
COMMENT ON COLUMN coord.projections.reset IS 'The function that empties it.';
COMMENT ON COLUMN coord.projections.types IS 'Patterns of types.';
