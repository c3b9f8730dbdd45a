-- ---------------------------------------------------------------------------
-- Privileges: nothing for PUBLIC; looking for coord_reader and pg_monitor, using
-- for coord_user, ruling for coord_admin.
-- ---------------------------------------------------------------------------

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA coord FROM PUBLIC;
REVOKE ALL ON ALL PROCEDURES IN SCHEMA coord FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA coord, coord_internal FROM PUBLIC;

REVOKE ALL ON FUNCTION coord_internal.adopt_identity(), coord_internal.ring() FROM PUBLIC;

GRANT SELECT ON ALL TABLES IN SCHEMA coord TO coord_reader, pg_monitor;
GRANT EXECUTE ON FUNCTION
  coord.state_machine(text), coord.saga_status(bigint), coord.saga_output(bigint),
  coord.saga_find(text, text), coord.saga_diagram(text, text), coord.saga_picture(bigint, text),
  coord.saga_timeline(bigint)
  TO coord_reader;
GRANT EXECUTE ON FUNCTION
  coord.step(text, text, text, text[], text, name, boolean, boolean, jsonpath, text, jsonpath,
             int, int, interval, int, interval, float8, interval, text[]),
  coord.step_signal(text, text, interval, text, text[], jsonpath), coord.step_sleep(text, interval, text[], jsonpath),
  coord.step_saga(text, text, jsonpath, text[], jsonpath), coord.saga_signal(bigint, text, jsonb, text),
  coord.saga_define(text, jsonb[], interval, text, boolean),
  coord.saga_define_json(text, jsonb), coord.saga_activate(text, int), coord.saga_drop(text),
  coord.saga_start(text, jsonb, text, uuid, int, timestamptz, interval, int, jsonb, text),
  coord.saga_wait(bigint, interval), coord.saga_cancel(bigint, text, boolean),
  coord.saga_pause(bigint, text), coord.saga_resume(bigint, text),
  coord.saga_retry(bigint, text, text), coord.saga_skip(bigint, text, jsonb, text),
  coord.saga_patch(bigint, jsonb, text), coord.saga_abandon(bigint, text),
  coord.grant_use(text, text, name), coord.revoke_use(text, text, name),
  coord.task_claim(text, int, text, interval, interval), coord.task_complete(bigint, bigint, jsonb),
  coord.task_complete_many(bigint[], bigint[], jsonb), coord.task_fail(bigint, bigint, text, boolean, interval),
  coord.task_extend(bigint, bigint, interval), coord.task_release(bigint, bigint),
  coord.task_revoke(bigint, text), coord.queue_configure(text, int, float8, boolean),
  coord.lock(text, text, text, interval), coord.try_lock(text, text, text), coord.unlock(text, text),
  coord.lock_many(text[], text, text, interval),
  coord.lease_acquire(text, text, interval, interval, int), coord.lease_renew(text, bigint, interval),
  coord.lease_release(text, bigint), coord.lease_break(text, text),
  coord.fence_check(text, bigint), coord.fence_guard(regclass, text, name), coord.fence_unguard(regclass),
  coord.semaphore_create(text, int), coord.semaphore_resize(text, int), coord.semaphore_drop(text),
  coord.leader_campaign(text, text, interval), coord.leader_resign(text, text), coord.once_per(text, interval),
  coord.remote_exec(name, text, jsonb, interval), coord.remote_query(name, text, jsonb, interval),
  coord.twophase_current(), coord.twophase_outcome(bigint),
  coord.twophase_begin(text, interval), coord.twophase_enlist(bigint, text, text, text, text, text, name, jsonb),
  coord.twophase_abort(bigint, text), coord.branch(name, text, jsonb, bigint),
  coord.twophase_check(name),
  coord.publish(text, jsonb, text, uuid, jsonb, uuid), coord.publish_many(text, jsonb[], text[], uuid), coord.last_position(),
  coord.append(text, text, jsonb, bigint, jsonb, uuid, uuid, text, text), coord.append_many(text, jsonb, bigint),
  coord.coordinate(text, jsonb), coord.coordination_events(text), coord.stream_read(text, bigint, int, boolean),
  coord.stream_version(text), coord.stream_truncate(text, bigint), coord.stream_tombstone(text, text),
  coord.stream_load(text, text, jsonb, bigint), coord.stream_snapshot(text, text, jsonb),
  coord.log_read(bigint, int, text[]),
  coord.subscribe(text, text[], text, text, text[], text, bigint, jsonpath, text, int, int, int, text, name),
  coord.projection_define(text, text[], text, text), coord.projection_rebuild(text),
  coord.projection_wait(text, bigint, interval), coord.unsubscribe(text), coord.subscription_pause(text, text), coord.subscription_resume(text, text),
  coord.subscription_seek(text, bigint, timestamptz), coord.parked_replay(text, text), coord.parked_drop(text, bigint, text),
  coord.subscription_poll(text, int, interval, interval), coord.subscription_ack(text, bigint, bigint),
  coord.subscription_nack(text, bigint, bigint[], interval), coord.subscription_extend(text, bigint, interval)
  TO coord_user;
GRANT EXECUTE ON PROCEDURE
  coord.saga_run(text, jsonb, text, bigint, text, jsonb), coord.run_pending(int, int),
  coord.await(text, text, interval, boolean),
  coord.twophase_commit(bigint, text),
  coord.twophase_run(jsonb[], text, bigint, text, bigint[]),
  coord.twophase_run_json(jsonb, text, bigint, text, bigint[])
  TO coord_user;
GRANT EXECUTE ON FUNCTION coord.pause(text), coord.resume(text), coord.start_worker(), coord.fence_advance(bigint),
  coord.twophase_resolve(name), coord.twophase_force(text, name, text, text), coord.twophase_adopt(int, text),
  coord.create_restore_point(text)
  TO coord_admin;
GRANT EXECUTE ON PROCEDURE coord.drain(interval, boolean) TO coord_admin;

-- A worker comes and looks.
SELECT coord_internal.ring();
