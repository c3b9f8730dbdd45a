/*-------------------------------------------------------------------------
 *
 * saga_session.c
 *	  Procedures of the caller's session: run_pending(), saga_run(), await().
 *
 * The same engine as a worker's, with three differences.  Each transaction
 * serves one saga, so that what a caller sees is deterministic.  Every call is
 * guarded by a subtransaction, because the transaction is the CALL's and an
 * error must not abort it under the server's feet.  And only sagas of roles
 * that the caller is a member of are touched.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/installation.h"
#include "base/json.h"
#include "base/query.h"
#include "event/event.h"
#include "event/event_shared.h"
#include "saga/saga_queue.h"
#include "saga/saga_task.h"
#include "twophase/twophase.h"

/* What is due, looked up at a time; the same for saga_run(). */
#define FETCH 1000
#define RUN_AT_A_TIME 100

/* How far ahead a session that runs a saga keeps the workers away from it. */
#define HOLD_US (30 * USECS_PER_SEC)

PG_FUNCTION_INFO_V1(coord_run_pending);
PG_FUNCTION_INFO_V1(coord_saga_run);
PG_FUNCTION_INFO_V1(coord_await);

/*
 * Commit and go on in a new transaction, which has no snapshot yet.  The caller
 * runs in a nonatomic CALL and holds no snapshot of its own.
 */
static void
commit_without_snapshot(void)
{
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SPI_commit();
	SPI_finish();
	suspect_release(true);
}

/* The same, and take a snapshot. */
static void
commit(void)
{
	commit_without_snapshot();
	EnsurePortalSnapshotExists();
}

/*
 * The beginning of a turn: take part in the exclusion of DROP EXTENSION and
 * drain, apply what operators left.  False when the engine may not act.
 */
static bool
begin_turn(Turn *turn)
{
	EngineState state;

	CHECK_FOR_INTERRUPTS();
	if (!installation_lock(AccessShareLock))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"coord\" was dropped")));
	installation_check();
	state = installation_state();
	if (state != ENGINE_RUNNING)
	{
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("coord does not run anything in this database"),
				 errdetail("The engine is %s.",
						   state == ENGINE_COPY ? "held because this database is a copy" :
						   state == ENGINE_DISABLED ? "switched off by coord.enabled" : "paused"),
				 errhint("coord.stuck says what to do.")));
		return false;
	}
	saga_ensure_partitions(true);
	saga_turn_begin(turn, false);
	if (turn->slot != NULL && turn->slot->requests)
	{
		turn->slot->requests = false;
		saga_apply_requests_here();
	}
	return true;
}

/* Ids of due sagas of the caller's roles, best first. */
static int
fetch_due(int64 *ids)
{
	static Statement fetch = {
		"SELECT id FROM (SELECT id, owner, home, priority, wake_at FROM coord_internal.saga"
		"  WHERE wake_at <= $1"
		"  UNION SELECT s.id, owner, home, priority, wake_at FROM coord_internal.saga_inbox i"
		"  JOIN coord_internal.saga s ON s.id = i.saga_id) AS s"
		" WHERE (SELECT coord_internal.home()) = home"
		" AND pg_has_role($2, owner, 'MEMBER')"
		" ORDER BY priority DESC, wake_at, id LIMIT $3",
		3, {TIMESTAMPTZOID, OIDOID, INT4OID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		values[3];
	uint64		rows;
	bool		isnull;

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(clock_now());
	values[1] = ObjectIdGetDatum(user);
	values[2] = Int32GetDatum(FETCH);
	rows = query_run_latest(&fetch, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
		ids[i] = DatumGetInt64(query_value(i, 1, &isnull));
	query_end(&scope);
	return (int) rows;
}

/* A saga $4 and the sagas that are its steps, and theirs. */
#define FAMILY \
	"WITH RECURSIVE family AS (SELECT $4::bigint AS id UNION ALL" \
	" SELECT c.id FROM family f JOIN coord_internal.saga c ON c.parent_id = f.id)" \
	" SELECT id FROM family"

/*
 * Of a saga and the sagas that are its steps those that are due; itself only when
 * it has something in its inbox.
 */
static int
fetch_family(int64 id, int64 *ids, int max)
{
	static Statement fetch = {
		"SELECT s.id FROM coord_internal.saga s WHERE s.id IN (" FAMILY ")"
		" AND (s.id <> $4 AND s.wake_at <= $1 OR EXISTS"
		"  (SELECT FROM coord_internal.saga_inbox i WHERE i.saga_id = s.id))"
		" AND (SELECT coord_internal.home()) = s.home AND pg_has_role($2, s.owner, 'MEMBER')"
		" LIMIT $3",
		4, {TIMESTAMPTZOID, OIDOID, INT4OID, INT8OID}
	};
	QueryScope	scope;
	Datum		values[4];
	uint64		rows;
	bool		isnull;

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(clock_now());
	values[1] = ObjectIdGetDatum(GetUserId());
	values[2] = Int32GetDatum(max);
	values[3] = Int64GetDatum(id);
	rows = query_run_latest(&fetch, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
		ids[i] = DatumGetInt64(query_value(i, 1, &isnull));
	query_end(&scope);
	return (int) rows;
}

/*
 * Tasks of coord's own workers that may be begun and are the caller's roles'; of
 * saga "saga" alone unless it is 0.
 */
static int
fetch_tasks(int64 saga, int64 *ids, int max)
{
	static Statement fetch = {
		"SELECT t.id FROM coord_internal.task t JOIN coord_internal.saga s ON s.id = t.saga_id"
		" WHERE t.queue = '' AND t.status = 'ready' AND t.available_at <= $1"
		" AND (SELECT coord_internal.home()) = s.home AND pg_has_role($2, t.owner, 'MEMBER')"
		" AND s.status IN ('running', 'compensating')"
		" AND s.backward = (t.phase = 'compensation') AND ($4 = 0 OR t.saga_id IN (" FAMILY "))"
		" ORDER BY t.rank, t.position, t.id LIMIT $3",
		4, {TIMESTAMPTZOID, OIDOID, INT4OID, INT8OID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		values[4];
	uint64		rows;
	bool		isnull;

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(clock_now());
	values[1] = ObjectIdGetDatum(user);
	values[2] = Int32GetDatum(max);
	values[3] = Int64GetDatum(saga);
	rows = query_run_latest(&fetch, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
		ids[i] = DatumGetInt64(query_value(i, 1, &isnull));
	query_end(&scope);
	return (int) rows;
}

/*
 * Advance those of these sagas that are due, each in a transaction of its own, at
 * most "max".  Returns how many.
 */
static int
advance_due(const int64 *ids, int count, int max, TimestampTz vote_until)
{
	int			turns = 0;

	for (int i = 0; i < count && turns < max; i++)
	{
		Turn		turn;
		Saga	  **sagas;
		int			loaded;

		if (!begin_turn(&turn))
			break;
		turn.vote_until = vote_until;
		sagas = saga_load(&turn, &ids[i], 1, clock_now(), &loaded);
		if (loaded == 1)
		{
			saga_take_in_hand(&turn, &ids[i], 1);
			saga_apply_requests_to(&turn, sagas, 1);
			saga_load_events(&turn, sagas, 1);
			access_note_role(sagas[0]->owner);
			saga_advance(&turn, sagas[0]);
			saga_leave_user(&turn);
			saga_flush(&turn, sagas, 1);
			turns++;
		}
		commit();
		saga_turn_end(&turn);
	}
	return turns;
}

/*
 * Carry tasks out, each in a transaction of its own, at most "max".  Returns how
 * many; -1: the engine may not act any more.
 */
static int
carry_out(int64 *ids, int count, int max)
{
	int			turns = 0;

	for (int i = 0; i < count && turns < max; i++)
	{
		Turn		turn;
		int			leftover;
		bool		fresh;

		if (!begin_turn(&turn))
			return -1;
		turns += saga_carry_out(&turn, &ids[i], 1, &leftover, &fresh);
		commit();
	}
	return turns;
}

/* One row of a procedure's INOUT arguments. */
static Datum
procedure_result(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	TupleDesc	tupdesc;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "procedure must return a row");
	tupdesc = BlessTupleDesc(tupdesc);
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
}

/*
 * Is the caller a member of the saga's owner?  A key may lead to a saga of a
 * role that has only granted its use, whose code must not run in his session.
 */
static bool
is_mine(int64 id)
{
	static Statement read = {
		"SELECT owner FROM coord_internal.saga WHERE id = $1", 1, {INT8OID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);
	Oid			owner = InvalidOid;
	bool		isnull;

	query_begin(&scope);
	if (query_run_latest(&read, &value, NULL, 1) > 0)
		owner = DatumGetObjectId(query_value(0, 1, &isnull));
	query_end(&scope);
	return OidIsValid(owner) && is_member_of_role(user, owner);
}

/*
 * Do what is due of these sagas that the caller's roles own, each in a transaction of
 * its own; for who is in a nonatomic CALL.  False when nothing was.  "vote_until" as in
 * Turn.
 */
bool
saga_drive(const int64 *ids, int count, TimestampTz vote_until)
{
	bool		any = false;

	for (int i = 0; i < count; i++)
	{
		bool		mine = is_mine(ids[i]);

		commit();
		if (mine && advance_due(&ids[i], 1, 1, vote_until) > 0)
			any = true;
	}
	return any;
}

/*
 * Hand events to the handlers of the caller's roles, in at most "max" turns.  Returns
 * how many there were.
 */
static int
handle_events(int64 *ids, int max)
{
	int			count = subscription_mine(ids, FETCH);
	int			turns = 0;

	commit();
	for (int i = 0; i < count; i++)
	{
		bool		more = true;

		while (more && turns < max)
		{
			Turn		turn;
			int			handled;

			if (!begin_turn(&turn))
				return turns;
			more = subscription_session_turn(ids[i], &handled);
			turns += more;
			commit();
		}
	}
	return turns;
}

/* CALL coord.run_pending(max_turns, turns) */
Datum
coord_run_pending(PG_FUNCTION_ARGS)
{
	int64	   *ids;
	int			max_turns = PG_INT32_MAX;
	int			turns = 0;
	int			count = 0;
	bool		progress = true;
	Datum		value;
	bool		isnull = false;

	check_nonatomic(fcinfo, "coord.run_pending");
	if (!PG_ARGISNULL(0))
		max_turns = PG_GETARG_INT32(0);
	if (max_turns < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_turns must not be negative")));
	doorbell_attach_queue();
	ids = palloc(sizeof(int64) * FETCH);

	while (progress && turns < max_turns)
	{
		Turn		turn;
		int			done;

		progress = false;
		if (!begin_turn(&turn))
			break;
		(void) task_sweep();
		(void) twophase_app_sweep();
		count = fetch_due(ids);
		commit();
		done = advance_due(ids, count, max_turns - turns, 0);
		if (done > 0)
		{
			turns += done;
			progress = true;
		}
		count = fetch_tasks(0, ids, FETCH);
		commit();
		done = carry_out(ids, count, max_turns - turns);
		if (done < 0)
			break;
		turns += done;
		progress = progress || done > 0;
		done = handle_events(ids, max_turns - turns);
		turns += done;
		progress = progress || done > 0;
	}
	value = Int32GetDatum(turns);
	return procedure_result(fcinfo, &value, &isnull);
}

/* The status and output of a finished saga, of an unfinished one its status. */
static void
read_result(int64 id, Datum *values, bool *nulls)
{
	static Statement read = {
		"SELECT coord_internal.steps_output(steps)"
		" FROM coord_internal.saga_archive WHERE id = $1",
		1, {INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);

	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(saga_status_or_error(id));
	query_begin(&scope);
	nulls[2] = true;
	if (query_run_latest(&read, &value, NULL, 1) > 0)
		values[2] = query_copy(context, 0, 1, &nulls[2]);
	query_end(&scope);
}

/*
 * One turn of saga_run().  Returns when to go on: 0 means that the saga is
 * finished or stopped.
 */
static TimestampTz
run_turn(Turn *turn, int64 id)
{
	Saga	  **sagas = NULL;
	TimestampTz wake_at = 0;
	int			loaded;

	if (!begin_turn(turn))
		return 0;
	loaded = 0;
	if (is_mine(id))
		sagas = saga_load(turn, &id, 1, 0, &loaded);
	if (loaded == 0)
	{
		/* It is for others to run, or they do, or it is finished. */
		char	   *status = saga_status_or_error(id);

		if (strcmp(status, "running") == 0 || strcmp(status, "compensating") == 0)
			wake_at = clock_now() + USECS_PER_SEC;
		return wake_at;
	}
	saga_take_in_hand(turn, &id, 1);
	saga_apply_requests_to(turn, sagas, 1);
	saga_load_events(turn, sagas, 1);
	saga_advance(turn, sagas[0]);
	saga_leave_user(turn);
	if (sagas[0]->status == SAGA_RUNNING || sagas[0]->status == SAGA_COMPENSATING)
	{
		wake_at = sagas[0]->wake_at;

		/* It waits for something to come, which wakes it. */
		if (wake_at == 0)
			wake_at = clock_now() + HOLD_US;
		sagas[0]->wake_at = Max(wake_at, clock_now()) + HOLD_US;
		sagas[0]->dirty = true;
	}
	saga_flush(turn, sagas, 1);
	return wake_at;
}

/* Sleep until "until", or until the saga changes. */
static void
sleep_until(int64 id, TimestampTz until)
{
	static uint32 wait_event = 0;
	ConditionVariable *waiters = doorbell_waiters(id);
	int64		left = until - clock_now();

	if (left <= 0)
		return;
	ConditionVariablePrepareToSleep(waiters);
	(void) ConditionVariableTimedSleep(waiters, Min(left / 1000 + 1, 30000),
									   coord_wait_event(&wait_event, "CoordSagaRun"));
	ConditionVariableCancelSleep();
}

/* CALL coord.saga_run(name, input, key, id, status, output) */
Datum
coord_saga_run(PG_FUNCTION_ARGS)
{
	StartOptions options = {0};
	Datum		values[3] = {0};
	bool		nulls[3] = {false};
	TimestampTz wake_at;
	bool		existing;
	int64		id;

	check_nonatomic(fcinfo, "coord.saga_run");
	options.name = check_text(fcinfo, 0, "name");
	if (PG_ARGISNULL(1))
	{
		JsonWriter	writer = {0};

		json_begin_object(&writer);
		json_end_object(&writer);
		options.input = json_finish(&writer);
	}
	else
		options.input = PG_GETARG_JSONB_P(1);
	options.key = check_optional_text(fcinfo, 2);
	options.on_existing = "return";
	options.hold_us = HOLD_US;
	doorbell_attach_queue();
	id = saga_start(&options, &existing);
	access_note_role(GetUserId());
	commit();

	for (;;)
	{
		int64		ids[RUN_AT_A_TIME];
		Turn		turn = {0};
		int			count;

		wake_at = run_turn(&turn, id);
		commit();
		saga_turn_end(&turn);
		if (wake_at == 0)
			break;
		count = fetch_tasks(id, ids, RUN_AT_A_TIME);
		commit();
		if (carry_out(ids, count, count) > 0)
			continue;
		count = fetch_family(id, ids, RUN_AT_A_TIME);
		commit();
		if (advance_due(ids, count, count, 0) > 0)
			continue;
		if (clock_is_set() && wake_at > clock_now())
			break;				/* a pinned clock never gets there */
		sleep_until(id, wake_at);
	}
	read_result(id, values, nulls);
	return procedure_result(fcinfo, values, nulls);
}

/* Is the saga finished or stopped? */
static bool
await_saga(int64 id, TimestampTz end)
{
	static uint32 wait_event = 0;
	ConditionVariable *waiters = doorbell_waiters(id);
	char	   *status;
	bool		ready;

	ConditionVariablePrepareToSleep(waiters);
	for (;;)
	{
		int64		left;

		ready = saga_has_nothing_to_wait_for(id, &status);
		left = end - GetCurrentTimestamp();
		if (ready || left <= 0)
			break;
		commit_without_snapshot();
		(void) ConditionVariableTimedSleep(waiters, Min(left / 1000 + 1, 30000),
										   coord_wait_event(&wait_event, "CoordAwait"));
		EnsurePortalSnapshotExists();
	}
	ConditionVariableCancelSleep();
	return ready;
}

/* Is there a task to claim?  What was locked to see that is free again. */
static bool
await_queue(const char *queue, TimestampTz end)
{
	QueueSlot  *slot;
	bool		ready;

	(void) queue_config_or_error(queue);
	slot = queue_slot(queue);
	queue_prepare_to_wait(slot);
	for (;;)
	{
		TimestampTz until = end;
		int64		wait_us;

		ready = queue_has_task(queue, &wait_us);
		if (ready || end <= GetCurrentTimestamp())
			break;
		commit_without_snapshot();
		if (wait_us > 0 && !clock_is_set())
			until = Min(until, GetCurrentTimestamp() + wait_us);
		queue_wait(slot, until, wait_us < USECS_PER_SEC);
		EnsurePortalSnapshotExists();
	}
	queue_end_wait(slot);
	commit();
	return ready;
}

/* Is there something to poll? */
static bool
await_subscription(const char *name, TimestampTz end)
{
	bool		ready;

	subscription_check_pollable(name);
	for (;;)
	{
		TimestampTz at;

		event_wait_begin();
		at = subscription_ready_at(name);
		ready = at == 0;
		if (ready || end <= GetCurrentTimestamp())
			break;
		commit_without_snapshot();
		(void) event_wait_until(Min(end, at));
		event_wait_end();
		EnsurePortalSnapshotExists();
	}
	event_wait_end();
	commit();
	return ready;
}

/*
 * CALL coord.await(kind, name, timeout, ready): wait as saga_wait() and
 * task_claim() do, but without holding a snapshot, so that vacuum is not kept
 * from anything however long it takes.
 */
Datum
coord_await(PG_FUNCTION_ARGS)
{
	static const char *const later_kinds[] = {"lease"};
	char	   *kind;
	char	   *name;
	TimestampTz end;
	int64		us = 60 * USECS_PER_SEC;
	Datum		value;
	bool		isnull = false;
	bool		ready;

	check_nonatomic(fcinfo, "coord.await");
	kind = check_text(fcinfo, 0, "kind");
	name = check_text(fcinfo, 1, "name");
	for (int i = 0; i < lengthof(later_kinds); i++)
	{
		if (strcmp(kind, later_kinds[i]) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("waiting for kind \"%s\" is not supported yet", kind)));
	}
	if (strcmp(kind, "saga") != 0 && strcmp(kind, "queue") != 0 && strcmp(kind, "subscription") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown kind \"%s\"", kind),
				 errhint("It is saga, name being the saga's id, queue or subscription.")));
	if (!PG_ARGISNULL(2))
		us = clock_interval_us(PG_GETARG_INTERVAL_P(2));
	if (us < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));
	installation_check();
	doorbell_attach_queue();
	end = GetCurrentTimestamp() + us;
	if (strcmp(kind, "queue") == 0)
		ready = await_queue(name, end);
	else if (strcmp(kind, "subscription") == 0)
		ready = await_subscription(name, end);
	else
		ready = await_saga(DatumGetInt64(DirectFunctionCall1(int8in, CStringGetDatum(name))), end);
	value = BoolGetDatum(ready);
	return procedure_result(fcinfo, &value, &isnull);
}
