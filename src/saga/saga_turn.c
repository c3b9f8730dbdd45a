/*-------------------------------------------------------------------------
 *
 * saga_turn.c
 *	  A worker's turn: claim a batch, advance it, commit.
 *
 * One transaction serves the sagas of one owner.  How many it takes adapts: as
 * long as whole batches get done within the time a turn may last, the next one
 * is larger; when something slow ends a turn early, the next one is as small as
 * what was done.  So short steps share a commit among hundreds, and a slow one
 * has locked nothing but its own saga.
 *
 * An error that comes out of a turn has undone all of it.  If a step raised it
 * the step is guarded from now on and the turn is made again.  If it came from
 * coord's own statements or from COMMIT, the batch is made again one by one,
 * and a saga that fails alone, and not for a reason that will pass, is
 * suspended.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/access.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/errors.h"
#include "base/installation.h"
#include "base/query.h"
#include "base/retry.h"
#include "saga/saga_instance.h"

/* A worker begins no further saga in a turn that is this old. */
#define TURN_BUDGET_US 5000

/* Sagas to claim in the next turn; see the file header. */
static int	batch_size = 1;

/* Turns to come that take one saga each, after an error nobody owned up to. */
static int	singly = 0;

/*
 * Advance loaded sagas until the turn should end, and write them back.  Returns
 * how many were got to.
 */
static int
run_sagas(Turn *turn, Saga **sagas, int count)
{
	int			done = 0;

	saga_apply_requests_to(turn, sagas, count);
	while (done < count && !turn->end)
	{
		CHECK_FOR_INTERRUPTS();
		saga_advance(turn, sagas[done++]);
		if (GetCurrentTimestamp() - turn->started > TURN_BUDGET_US ||
			(turn->slot && turn->slot->request_serial != turn->request_serial))
			break;
	}
	saga_leave_user(turn);
	saga_flush(turn, sagas, count);
	return done;
}

/*
 * Start a turn's transaction.  Unless it returns SAGA_TURN_DONE the engine may
 * not act, and the transaction is over.
 */
static SagaTurnOutcome
start_transaction(void)
{
	SagaTurnOutcome outcome = SAGA_TURN_DONE;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!installation_lock(AccessShareLock))
		outcome = SAGA_TURN_GONE;
	else
	{
		installation_check();
		if (installation_state() != ENGINE_RUNNING)
			outcome = SAGA_TURN_HALTED;
	}
	if (outcome != SAGA_TURN_DONE)
		CommitTransactionCommand();
	return outcome;
}

/* The transaction of a turn; the caller catches its errors. */
static SagaTurnOutcome
turn_transaction(Turn *turn, QueueEntry *entries, int count, SagaTurnResult *result)
{
	int64	   *ids = palloc(sizeof(int64) * count);
	Saga	  **sagas;
	SagaTurnOutcome outcome;
	int			loaded;
	int			done;

	outcome = start_transaction();
	if (outcome == SAGA_TURN_DONE && !access_role_is_noted(entries[0].owner))
	{
		/* In a transaction of its own; see there. */
		access_note_role(entries[0].owner);
		CommitTransactionCommand();
		outcome = start_transaction();
	}
	if (outcome != SAGA_TURN_DONE)
		return outcome;
	PushActiveSnapshot(GetTransactionSnapshot());
	saga_ensure_partitions(true);
	saga_turn_begin(turn, true);
	for (int i = 0; i < count; i++)
		ids[i] = entries[i].id;
	sagas = saga_load(turn, ids, count, clock_now(), &loaded);
	turn->loaded = GetCurrentTimestamp();
	turn->nloaded = loaded;
	saga_take_in_hand(turn, ids, count);
	PopActiveSnapshot();
	done = run_sagas(turn, sagas, loaded);

	result->sagas = done;
	result->leftover = 0;
	for (int i = 0; i < loaded; i++)
	{
		/* Not got to, or asked for a fresh transaction. */
		if (i < done && !sagas[i]->not_now)
			continue;
		result->fresh = result->fresh || sagas[i]->not_now;
		entries[result->leftover].id = sagas[i]->id;
		entries[result->leftover].priority = sagas[i]->priority;
		entries[result->leftover].owner = sagas[i]->owner;
		result->leftover++;
	}
	result->steps = turn->calls;
	CommitTransactionCommand();
	saga_suspect_release(false);

	if (result->fresh)
		batch_size = 1;
	else if (result->leftover > 0)
		batch_size = Max(1, done);
	else if (count >= batch_size)
		batch_size = Min(SAGA_MAX_BATCH, batch_size * 2);
	return SAGA_TURN_DONE;
}

/*
 * A saga whose turn fails by itself, outside its steps: leave it to an
 * operator instead of trying for ever.
 */
static void
suspend_broken(int64 id, const char *message)
{
	Turn		turn;
	Saga	  **sagas;
	int			loaded;

	StartTransactionCommand();
	if (installation_lock(AccessShareLock))
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		saga_turn_begin(&turn, true);
		sagas = saga_load(&turn, &id, 1, 0, &loaded);
		if (loaded == 1 && machine_allows(&saga_machine, sagas[0]->status, SAGA_EVENT_SUSPEND))
		{
			saga_suspend(sagas[0], message);
			saga_flush(&turn, sagas, 1);
		}
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
}

/*
 * Make one turn with these entries, which all have the same owner.  On return
 * the first "leftover" of them are those to be tried again.  Never raises an
 * error that a saga can bring about; runs outside a transaction.
 */
SagaTurnOutcome
saga_worker_turn(QueueEntry *entries, int count, SagaTurnResult *result)
{
	MemoryContext context = CurrentMemoryContext;
	Turn		turn = {0};
	volatile SagaTurnOutcome outcome = SAGA_TURN_FAILED;
	ErrorData  *volatile error = NULL;

	memset(result, 0, sizeof(SagaTurnResult));
	PG_TRY();
	{
		outcome = turn_transaction(&turn, entries, count, result);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		if (turn.calling != NULL)
			saga_distrust(turn.calling->def, turn.calling_ordinal, turn.calling_phase);
		else if (count > 1)
			singly = count;
		saga_crash_leave();
		saga_suspect_release(true);
		(void) saga_crash_interrupted();
		AbortCurrentTransaction();
		identity_forget_session();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (error == NULL)
	{
		if (singly > 0)
			singly--;
		return outcome;
	}

	result->leftover = count;
	batch_size = 1;
	if (turn.calling == NULL && count == 1)
	{
		RetryPolicy standard = {0};
		const char *sqlstate = unpack_sql_state(error->sqlerrcode);

		ereport(LOG,
				(errmsg("coord: saga " INT64_FORMAT " could not be advanced: %s",
						entries[0].id, error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0,
				 error->context ? errcontext("%s", error->context) : 0));
		if (!retry_is_worth(&standard, sqlstate) &&
			error->sqlerrcode != ERRCODE_COORD_VERSION_MISMATCH)
		{
			suspend_broken(entries[0].id, error->message);
			result->leftover = 0;
		}
		return SAGA_TURN_FAILED;
	}
	FreeErrorData(error);
	return SAGA_TURN_DONE;
}

/* How many entries the next turn wants. */
int
saga_turn_size(void)
{
	return singly > 0 ? 1 : batch_size;
}

/* ----------------------------------------------------------------
 *		What is due, according to the tables
 * ----------------------------------------------------------------
 */

/*
 * Due sagas after the mark (wake_at, id), up to "until"; at most "max".  The
 * mark is what keeps dead index entries before it, which somebody's snapshot
 * may hold, from being read again and again.  Returns how many; "last" is set
 * to the mark to go on from.
 */
int
saga_scan_due(TimestampTz mark_at, int64 mark_id, TimestampTz until,
			  QueueEntry *entries, int max, TimestampTz *last_at, int64 *last_id)
{
	static Statement scan = {
		"SELECT id, priority, owner, wake_at FROM coord_internal.saga"
		" WHERE (wake_at, id + 0) > ($1, $2) AND wake_at <= $3"
		" ORDER BY wake_at, id + 0 LIMIT $4",
		4, {TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT4OID}
	};
	QueryScope	scope;
	Datum		values[4];
	uint64		rows;
	bool		isnull;

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(mark_at);
	values[1] = Int64GetDatum(mark_id);
	values[2] = TimestampTzGetDatum(until);
	values[3] = Int32GetDatum(max);
	rows = query_run(&scan, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		entries[i].id = DatumGetInt64(query_value(i, 1, &isnull));
		entries[i].priority = DatumGetInt32(query_value(i, 2, &isnull));
		entries[i].owner = DatumGetObjectId(query_value(i, 3, &isnull));
		*last_at = DatumGetTimestampTz(query_value(i, 4, &isnull));
		*last_id = entries[i].id;
	}
	query_end(&scope);
	return (int) rows;
}

/*
 * Due sagas of other than normal priority, best first: a backlog of normal ones
 * must not hide them.
 */
int
saga_scan_priority(TimestampTz until, QueueEntry *entries, int max)
{
	static Statement scan = {
		"SELECT id, priority, owner FROM coord_internal.saga"
		" WHERE priority > 0 AND wake_at <= $1"
		" ORDER BY priority DESC, wake_at, id LIMIT $2",
		2, {TIMESTAMPTZOID, INT4OID}
	};
	QueryScope	scope;
	Datum		values[2];
	uint64		rows;
	bool		isnull;

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(until);
	values[1] = Int32GetDatum(max);
	rows = query_run(&scan, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		entries[i].id = DatumGetInt64(query_value(i, 1, &isnull));
		entries[i].priority = DatumGetInt32(query_value(i, 2, &isnull));
		entries[i].owner = DatumGetObjectId(query_value(i, 3, &isnull));
	}
	query_end(&scope);
	return (int) rows;
}

/* The first timer after "after"; 0 when there is none. */
TimestampTz
saga_next_wake(TimestampTz after)
{
	static Statement next = {
		"SELECT wake_at FROM coord_internal.saga WHERE wake_at > $1"
		" ORDER BY wake_at LIMIT 1",
		1, {TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		value = TimestampTzGetDatum(after);
	TimestampTz result = 0;
	bool		isnull;

	query_begin(&scope);
	if (query_run(&next, &value, NULL, 1) > 0)
		result = DatumGetTimestampTz(query_value(0, 1, &isnull));
	query_end(&scope);
	return result;
}
