/*-------------------------------------------------------------------------
 *
 * saga_turn.c
 *	  A worker's turn: claim a batch, advance it, commit.
 *
 * One transaction serves the sagas of one owner.  How many it takes adapts: as
 * long as whole batches get done within the time a turn may last, the next one
 * is larger; when something slow ends a turn early, the next one is half as large,
 * since it may only have been the machine that was busy (what is slow by itself
 * runs alone, see saga_call.c).  So short steps share a commit among hundreds, and a slow one
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
#include "utils/array.h"
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
#include "saga/saga_task.h"
#include "twophase/twophase.h"

/* A worker begins no further saga in a turn that is this old. */
#define TURN_BUDGET_US 5000

/* The same with participants: their prepares and commits cost more than the steps. */
#define REMOTE_BUDGET_US 25000

/* Sagas to claim in the next turn; see the file header. */
static int	batch_size = 1;

/* Turns to come that take one saga each, after an error nobody owned up to. */
static int	singly = 0;

/* Should no further saga or task be begun in this turn? */
bool
saga_turn_is_over(const Turn *turn)
{
	return GetCurrentTimestamp() - turn->started >
		(twophase_in_use() ? REMOTE_BUDGET_US : TURN_BUDGET_US);
}

/*
 * Advance loaded sagas until the turn should end, and write them back.  Returns
 * how many were got to.
 */
static int
run_sagas(Turn *turn, Saga **sagas, int count)
{
	int			done = 0;

	saga_apply_requests_to(turn, sagas, count);
	saga_load_events(turn, sagas, count);
	while (done < count && !turn->end)
	{
		CHECK_FOR_INTERRUPTS();
		saga_advance(turn, sagas[done++]);
		if (saga_turn_is_over(turn) ||
			(turn->slot && turn->slot->request_serial != turn->request_serial))
			break;
	}
	saga_leave_user(turn);
	saga_flush(turn, sagas, count);

	/* Whoever was not got to has its inbox emptied all the same. */
	for (int i = done; i < count; i++)
	{
		if (sagas[i]->events != NULL)
			saga_tell(&sagas[i]->id, &sagas[i]->priority, &sagas[i]->owner, 1);
	}
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

/*
 * Sagas that this process has just let go of and that may have been told of
 * something meanwhile: whoever rang found them locked.
 */
static QueueEntry let_go[SAGA_MAX_BATCH];
static int	nlet_go = 0;

static void
note_let_go(Saga **sagas, int count)
{
	nlet_go = 0;
	for (int i = 0; i < count; i++)
	{
		const Saga *saga = sagas[i];

		if ((!saga->def->waits && saga->parent == 0) ||
			(saga->status != SAGA_RUNNING && saga->status != SAGA_COMPENSATING && !saga->parked))
			continue;
		let_go[nlet_go].id = saga->id;
		let_go[nlet_go].priority = saga->priority;
		let_go[nlet_go].owner = saga->owner;
		let_go[nlet_go++].kind = WORK_SAGA;
	}
}

/* After the commit that let them go: ring again for those that have an inbox. */
static void
recheck_inboxes(DatabaseSlot *slot)
{
	static Statement look = {
		"SELECT i FROM unnest($1) AS u(i) WHERE EXISTS"
		" (SELECT FROM coord_internal.saga_inbox b WHERE b.saga_id = u.i)",
		1, {INT8ARRAYOID}
	};
	Datum		ids[SAGA_MAX_BATCH];
	QueryScope	scope;
	Datum		value;
	uint64		rows;

	if (nlet_go == 0 || slot == NULL)
		return;
	StartTransactionCommand();
	if (!installation_lock(AccessShareLock))
	{
		nlet_go = 0;
		CommitTransactionCommand();
		return;
	}
	for (int i = 0; i < nlet_go; i++)
		ids[i] = Int64GetDatum(let_go[i].id);
	query_begin(&scope);
	value = PointerGetDatum(construct_array(ids, nlet_go, INT8OID, 8, true, TYPALIGN_DOUBLE));
	rows = query_run(&look, &value, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(query_value(i, 1, &isnull));

		for (int j = 0; j < nlet_go; j++)
		{
			if (let_go[j].id == id)
				doorbell_tell(slot, &let_go[j], 1);
		}
	}
	query_end(&scope);
	nlet_go = 0;
	CommitTransactionCommand();
}

/*
 * Claim sagas and advance them in the open transaction.  "ids" are then in order:
 * first the "leftover" ones that are to be tried again.  Returns how many were
 * got to.
 */
static int
advance(Turn *turn, int64 *ids, int count, int *leftover, bool *fresh)
{
	Saga	  **sagas;
	int			loaded;
	int			done;

	PushActiveSnapshot(GetTransactionSnapshot());
	sagas = saga_load(turn, ids, count, clock_now(), &loaded);
	turn->loaded = GetCurrentTimestamp();
	turn->nloaded = loaded;
	saga_take_in_hand(turn, ids, count);
	PopActiveSnapshot();
	done = run_sagas(turn, sagas, loaded);

	*leftover = 0;
	for (int i = 0; i < loaded; i++)
	{
		/* Not got to, or asked for a fresh transaction. */
		if (i < done && !sagas[i]->not_now)
			continue;
		*fresh = *fresh || sagas[i]->not_now;
		ids[(*leftover)++] = sagas[i]->id;
	}
	note_let_go(sagas, loaded);
	return done;
}

/* The transaction of a turn; the caller catches its errors. */
static SagaTurnOutcome
turn_transaction(Turn *turn, QueueEntry *entries, int count, SagaTurnResult *result)
{
	int64	   *ids = palloc(sizeof(int64) * count);
	SagaTurnOutcome outcome;

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
	saga_turn_begin(turn, true);
	for (int i = 0; i < count; i++)
		ids[i] = entries[i].id;
	PushActiveSnapshot(GetTransactionSnapshot());
	saga_ensure_partitions(true);
	PopActiveSnapshot();
	if (entries[0].kind == WORK_TASK)
		result->sagas = saga_carry_out(turn, ids, count, &result->leftover, &result->fresh);
	else
		result->sagas = advance(turn, ids, count, &result->leftover, &result->fresh);
	for (int i = 0; i < result->leftover; i++)
		entries[i].id = ids[i];
	result->steps = turn->calls;
	CommitTransactionCommand();
	suspect_release(false);
	saga_turn_end(turn);
	recheck_inboxes(turn->slot);

	if (result->fresh)
		batch_size = 1;
	else if (result->leftover > 0)
		batch_size = Max(Max(1, result->sagas), batch_size / 2);
	else if (count >= batch_size && !turn->alone)
		batch_size = Min(SAGA_MAX_BATCH, batch_size * 2);
	return SAGA_TURN_DONE;
}

/* The saga of a task; runs outside a transaction. */
static int64
saga_of_task(int64 task)
{
	static Statement read = {
		"SELECT saga_id FROM coord_internal.task WHERE id = $1", 1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(task);
	int64		saga = 0;
	bool		isnull;

	StartTransactionCommand();
	if (installation_lock(AccessShareLock))
	{
		query_begin(&scope);
		if (query_run(&read, &value, NULL, 0) > 0)
			saga = DatumGetInt64(query_value(0, 1, &isnull));
		query_end(&scope);
	}
	CommitTransactionCommand();
	return saga;
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
		nlet_go = 0;
		if (turn.calling != NULL)
			saga_distrust(turn.calling->def, turn.calling_ordinal, turn.calling_phase);
		else if (count > 1)
			singly = count;
		in_hand_leave();
		suspect_release(true);
		(void) in_hand_interrupted();
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

		int64		saga = entries[0].kind == WORK_TASK ? saga_of_task(entries[0].id) : entries[0].id;

		ereport(LOG,
				(errmsg("coord: saga " INT64_FORMAT " could not be advanced: %s",
						saga, error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0,
				 error->context ? errcontext("%s", error->context) : 0));
		if (!retry_is_worth(&standard, sqlstate) &&
			error->sqlerrcode != ERRCODE_COORD_VERSION_MISMATCH)
		{
			suspend_broken(saga, error->message);
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

/* Rows of the last result: id, priority, owner. */
static void
read_entries(QueueEntry *entries, uint64 rows, WorkKind kind)
{
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;

		entries[i].id = query_int8(i, 1);
		entries[i].priority = query_int4(i, 2);
		entries[i].owner = DatumGetObjectId(query_value(i, 3, &isnull));
		entries[i].kind = kind;
	}
}

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

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(mark_at);
	values[1] = Int64GetDatum(mark_id);
	values[2] = TimestampTzGetDatum(until);
	values[3] = Int32GetDatum(max);
	rows = query_run(&scan, values, NULL, 0);
	read_entries(entries, rows, WORK_SAGA);
	if (rows > 0)
	{
		*last_at = query_time(rows - 1, 4);
		*last_id = entries[rows - 1].id;
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

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(until);
	values[1] = Int32GetDatum(max);
	rows = query_run(&scan, values, NULL, 0);
	read_entries(entries, rows, WORK_SAGA);
	query_end(&scope);
	return (int) rows;
}

/* Sagas that have something in their inboxes. */
int
saga_scan_inbox(QueueEntry *entries, int max)
{
	static Statement scan = {
		"SELECT s.id, s.priority, s.owner FROM"
		" (SELECT DISTINCT saga_id FROM coord_internal.saga_inbox) AS i"
		" JOIN coord_internal.saga s ON s.id = i.saga_id LIMIT $1",
		1, {INT4OID}
	};
	QueryScope	scope;
	Datum		value = Int32GetDatum(max);
	uint64		rows;

	query_begin(&scope);
	rows = query_run(&scan, &value, NULL, 0);
	read_entries(entries, rows, WORK_SAGA);
	query_end(&scope);
	return (int) rows;
}

/*
 * Tasks of coord's own workers that may be begun by "until", at most "max"; in
 * "next" when the first of the others may, 0: there is none.
 */
int
saga_scan_tasks(TimestampTz until, QueueEntry *entries, int max, TimestampTz *next)
{
	static Statement scan = {
		"SELECT id, (-rank)::int, owner FROM coord_internal.task"
		" WHERE queue = '' AND status = 'ready' AND available_at <= $1"
		" ORDER BY queue, rank, position, id LIMIT $2",
		2, {TIMESTAMPTZOID, INT4OID}
	};
	static Statement later = {
		"SELECT min(available_at) FROM coord_internal.task"
		" WHERE queue = '' AND status = 'ready' AND available_at > $1",
		1, {TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[2];
	uint64		rows;

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(until);
	values[1] = Int32GetDatum(max);
	rows = query_run(&scan, values, NULL, 0);
	read_entries(entries, rows, WORK_TASK);
	query_run(&later, values, NULL, 0);
	*next = query_time(0, 1);
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
