/*-------------------------------------------------------------------------
 *
 * saga_task_turn.c
 *	  Carrying out tasks of coord's own workers: branches of a saga that run
 *	  beside others, and items.
 *
 * A task is claimed as a saga is: by locking its row, with no write.  Its saga is
 * only read.  What the task's function did, its outcome and the word to the saga
 * (saga_tell()) commit together; so any number of workers can be at tasks of one
 * saga, and none of them holds up the saga's own turns.
 *
 * What the saga has become meanwhile is looked at when the task is claimed: one
 * that turned back wants no more of it.  The task is then left as it is, and the
 * saga is told, because its turn may just have passed over the locked row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/debug_point.h"
#include "base/json.h"
#include "base/query.h"
#include "base/user_call.h"
#include "saga/saga_task.h"

/* What has become of a task in this turn. */
typedef enum TaskEnd
{
	TASK_NOT_REACHED,			/* the turn ended first */
	TASK_NOT_NOW,				/* its call wants a fresh transaction */
	TASK_LEFT,					/* its saga does not want it */
	TASK_CHARGED,				/* the attempt is written down before it is made */
	TASK_AGAIN,					/* failed, another attempt later */
	TASK_COMPLETED,				/* this and what follows is the end of it */
	TASK_SKIPPED,
	TASK_FAILED,
	TASK_STOPPED				/* cannot be run */
} TaskEnd;

static const char *const end_status[] = {
	NULL, NULL, NULL, "ready", "ready", "completed", "skipped", "failed", "stopped"
};

typedef struct Work
{
	Task		task;
	SagaRow		row;
	Saga	   *saga;
	TaskEnd		end;
	Jsonb	   *result;
	char	   *error;
	char	   *sqlstate;
	char	   *detail;
	char	   *context;
	TimestampTz available_at;
	TimestampTz started_at;
	TimestampTz finished_at;
} Work;

/*
 * Claim those of "ids" that may be begun; in order of id.  That they are tasks of
 * coord's own workers is known, and not asked: with a word about the queue the
 * planner, which knows nothing of a table that was empty, may read the whole queue
 * for it.
 */
static Work *
claim(Turn *turn, const int64 *ids, int count, int *nclaimed)
{
	static Statement claim = {
		"SELECT t.id, t.ctid, t.saga_id, t.ordinal, t.item, t.phase, t.attempt, t.item_value,"
		" t.given, s.ctid, s.xmin"
		" FROM coord_internal.task t LEFT JOIN coord_internal.saga s ON s.id = t.saga_id"
		" WHERE t.id = ANY ($1) AND t.status = 'ready'"
		" AND t.available_at <= $2 FOR UPDATE OF t SKIP LOCKED",
		2, {INT8ARRAYOID, TIMESTAMPTZOID}
	};
	MemoryContext context = turn->context;
	QueryScope	scope;
	Datum		values[2];
	Work	   *works;
	uint64		rows;
	Datum		ctid;
	bool		isnull;

	values[0] = query_int8_array(ids, count);
	values[1] = TimestampTzGetDatum(clock_now());
	query_begin(&scope);
	rows = query_run(&claim, values, NULL, 0);
	works = MemoryContextAllocZero(context, sizeof(Work) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
	{
		Task	   *task = &works[i].task;

		task->id = DatumGetInt64(query_value(i, 1, &isnull));
		task->tid = *(ItemPointer) DatumGetPointer(query_value(i, 2, &isnull));
		task->saga_id = DatumGetInt64(query_value(i, 3, &isnull));
		task->ordinal = DatumGetInt32(query_value(i, 4, &isnull));
		task->item = DatumGetInt32(query_value(i, 5, &isnull));
		task->phase = strcmp(query_text(context, i, 6), "action") == 0 ?
			PHASE_ACTION : PHASE_COMPENSATION;
		task->attempt = DatumGetInt32(query_value(i, 7, &isnull));
		task->item_value = (Jsonb *) DatumGetPointer(query_copy(context, i, 8, &isnull));
		task->given = (Jsonb *) DatumGetPointer(query_copy(context, i, 9, &isnull));
		works[i].row.id = task->saga_id;
		ctid = query_value(i, 10, &isnull);
		if (!isnull)
			works[i].row.tid = *(ItemPointer) DatumGetPointer(ctid);
		works[i].row.xmin = DatumGetTransactionId(query_value(i, 11, &isnull));
	}
	query_end(&scope);
	*nclaimed = (int) rows;
	return works;
}

/* How long until a task that could not be claimed is tried again. */
#define TRY_AGAIN_US USECS_PER_SEC

/*
 * Fewer tasks were claimed than the queue had.  One that is still ready is being
 * carried out by somebody else; or it was only locked for a moment by somebody
 * who did not take it (to let items go may lock one too many), and then this was
 * its only ring.
 */
static void
try_again_later(const int64 *ids, int count)
{
	static Statement read = {
		"SELECT id, (-rank)::int, owner FROM coord_internal.task t"
		" WHERE id = ANY ($1) AND status = 'ready' AND available_at <= $2"
		" AND EXISTS (SELECT FROM coord_internal.saga s WHERE s.id = t.saga_id"
		"  AND s.status IN ('running', 'compensating') AND s.backward = (t.phase = 'compensation'))",
		2, {INT8ARRAYOID, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[2];
	uint64		rows;
	TimestampTz now = clock_now();

	query_begin(&scope);
	values[0] = query_int8_array(ids, count);
	values[1] = TimestampTzGetDatum(now);
	rows = query_run(&read, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;

		doorbell_task_at_commit(query_int8(i, 1), query_int4(i, 2),
								DatumGetObjectId(query_value(i, 3, &isnull)),
								now + TRY_AGAIN_US);
	}
	query_end(&scope);
}

/* Read the sagas of claimed tasks. */
static void
read_sagas(Turn *turn, Work *works, int count)
{
	SagaRow    *rows = palloc(sizeof(SagaRow) * Max(count, 1));
	Saga	  **sagas;
	int			nread;

	for (int i = 0; i < count; i++)
		rows[i] = works[i].row;
	sagas = saga_read(turn, rows, count, &nread);
	for (int i = 0; i < count; i++)
		works[i].saga = saga_find_read(sagas, nread, works[i].task.saga_id);
}

/*
 * A verb that a task calls on its own saga becomes a request: it might change the
 * very row that the task's outcome is written to.
 */
static void
take_in_hand(Turn *turn, const Work *works, int count)
{
	int64		ids[SAGA_MAX_BATCH];

	for (int i = 0; i < count; i++)
		ids[i] = works[i].task.saga_id;
	saga_take_in_hand(turn, ids, count);
}

/* Does the saga, as it was read, want this done? */
static bool
is_wanted(const Work *work)
{
	const Saga *saga = work->saga;

	if (saga == NULL || (saga->status != SAGA_RUNNING && saga->status != SAGA_COMPENSATING))
		return false;
	return saga->backward == (work->task.phase == PHASE_COMPENSATION);
}

static void
log_failure(Turn *turn, const Work *work)
{
	const Saga *saga = work->saga;
	LogRow		row = {0};

	row.saga = saga->id;
	row.name = saga->def->name;
	row.owner = saga->owner;
	row.at = clock_now();
	row.event = "attempt_failed";
	row.step = saga_task_name(saga->def, work->task.ordinal, work->task.item);
	row.phase = work->task.phase;
	row.attempt = work->task.attempt;
	row.role = saga->owner;
	row.error = work->error;
	row.sqlstate = work->sqlstate;
	row.detail = work->detail;
	row.context = work->context;
	saga_log(turn, &row);
}

/* The attempt failed with "error": another one, or that was it. */
static void
attempt_failed(Turn *turn, Work *work, ErrorData *error)
{
	const Saga *saga = work->saga;
	const StepDef *step = &saga->def->steps[work->task.ordinal];
	Phase		phase = work->task.phase;

	work->error = error->message;
	work->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	work->detail = error->detail;
	work->context = error->context;
	log_failure(turn, work);
	if (saga_is_worth_retrying(step, phase, work->sqlstate) &&
		(work->task.attempt < saga_attempt_limit(step, phase) ||
		 (phase == PHASE_ACTION && saga_pivot_done(saga))))
	{
		work->end = TASK_AGAIN;
		work->available_at = clock_now() + retry_delay(&step->retry, work->task.attempt);
	}
	else
		work->end = TASK_FAILED;
}

/*
 * An attempt at a task of a saga that was in hand when the server crashed is
 * charged in a transaction that commits before it is made; see charge_suspect()
 * in saga_advance.c.  Returns true when it may be made now.
 */
static bool
charge_suspect(Turn *turn, Work *work)
{
	Task	   *task = &work->task;

	if (!suspect_acquire(work->saga->id))
	{
		work->end = TASK_AGAIN;
		work->available_at = clock_now() + USECS_PER_SEC / 10;
		return false;
	}
	if (suspect_charged(work->saga->id, task->ordinal, task->phase, task->item))
		return true;
	if (task->attempt >= saga_attempt_limit(&work->saga->def->steps[task->ordinal], task->phase))
	{
		ErrorData	error = {0};

		error.sqlerrcode = ERRCODE_SYSTEM_ERROR;
		error.message = pstrdup("the server crashed during each attempt");
		attempt_failed(turn, work, &error);
		return false;
	}
	task->attempt++;
	work->end = TASK_CHARGED;
	suspect_charge(work->saga->id, task->ordinal, task->phase, task->item);
	turn->end = true;
	return false;
}

/* Carry one task out. */
static void
carry_out(Turn *turn, Work *work)
{
	Saga	   *saga = work->saga;
	Task	   *task = &work->task;
	CallResult	call = {0};
	bool		suspect;

	if (!is_wanted(work))
	{
		work->end = TASK_LEFT;
		return;
	}
	suspect = in_hand_is_suspect(saga->id);
	if (suspect && !charge_suspect(turn, work))
		return;
	if (!suspect)
		task->attempt++;
	saga->task = task;
	work->started_at = clock_now();
	saga_call(turn, saga, task->ordinal, task->phase, &call);
	saga->task = NULL;
	if (call.outcome == CALL_NOT_NOW)
	{
		work->end = TASK_NOT_NOW;
		return;
	}
	if (call.outcome == CALL_ELSEWHERE)
	{
		ereport(WARNING,
				(errmsg("saga " INT64_FORMAT " is left to a worker: %s", saga->id, call.reason)));
		work->end = TASK_AGAIN;
		work->available_at = clock_now() + USECS_PER_SEC;
		task->attempt--;
		return;
	}
	work->finished_at = clock_now();
	suspect_charge(saga->id, -1, task->phase, NO_ITEM);
	switch (call.outcome)
	{
		case CALL_SUCCEEDED:
			work->end = TASK_COMPLETED;
			work->result = call.result;
			break;
		case CALL_SKIPPED:
			work->end = TASK_SKIPPED;
			break;
		case CALL_FAILED:
			if (user_call_is_cancel(call.error) && in_hand_interrupted())
			{
				work->end = TASK_LEFT;	/* for the sake of an operator's request */
				turn->end = true;
			}
			else
				attempt_failed(turn, work, call.error);
			break;
		case CALL_UNRUNNABLE:
			work->end = TASK_STOPPED;
			work->error = call.reason;
			break;
		case CALL_NOT_NOW:
		case CALL_ELSEWHERE:
			break;
	}
}

/* Write what has become of tasks. */
static void
write_tasks(Turn *turn, Work *works, int count)
{
	static Statement update = {
		"UPDATE coord_internal.task t SET status = u.status, attempt = u.attempt,"
		" available_at = coalesce(u.available_at, t.available_at), result = u.result,"
		" error = u.error, sqlstate = u.sqlstate, error_detail = u.error_detail,"
		" error_context = u.error_context, started_at = coalesce(t.started_at, u.started_at),"
		" finished_at = u.finished_at"
		" FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) AS u(tid, status, attempt,"
		" available_at, result, error, sqlstate, error_detail, error_context, started_at,"
		" finished_at) WHERE t.ctid = u.tid",
		11, {TIDARRAYOID, TEXTARRAYOID, INT4ARRAYOID, TIMESTAMPTZARRAYOID, JSONBARRAYOID,
			TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID,
		TIMESTAMPTZARRAYOID}
	};
	static const Oid types[] = {
		TIDOID, TEXTOID, INT4OID, TIMESTAMPTZOID, JSONBOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
		TIMESTAMPTZOID, TIMESTAMPTZOID
	};
	Column		columns[lengthof(types)];
	Datum		values[lengthof(types)];
	QueryScope	scope;
	int			n = 0;

	column_init(columns, lengthof(types), types, count);
	for (int i = 0; i < count; i++)
	{
		Work	   *work = &works[i];

		if (end_status[work->end] == NULL)
			continue;
		columns[0].values[n] = PointerGetDatum(&work->task.tid);
		column_text(&columns[1], n, end_status[work->end]);
		columns[2].values[n] = Int32GetDatum(work->task.attempt);
		column_time(&columns[3], n, work->available_at);
		column_jsonb(&columns[4], n, work->result);
		column_text(&columns[5], n, work->error);
		column_text(&columns[6], n, work->sqlstate);
		column_text(&columns[7], n, work->detail);
		column_text(&columns[8], n, work->context);
		column_time(&columns[9], n, work->started_at);
		column_time(&columns[10], n, work->finished_at);
		n++;
		if (work->end == TASK_AGAIN)
			doorbell_task_at_commit(work->task.id, work->saga->priority, work->saga->owner,
									work->available_at);
	}
	if (n == 0)
		return;
	column_array(values, columns, lengthof(types), n);
	query_begin(&scope);
	if (query_run(&update, values, NULL, 0) != n)
		elog(ERROR, "a task that was claimed has changed");
	query_end(&scope);
}

/* Let the next items go, and tell the sagas. */
static void
tell(Turn *turn, Work *works, int count)
{
	int64	   *ids = palloc(sizeof(int64) * Max(count, 1));
	int		   *priorities = palloc(sizeof(int) * Max(count, 1));
	Oid		   *owners = palloc(sizeof(Oid) * Max(count, 1));
	int			n = 0;

	for (int i = 0; i < count; i++)
	{
		Work	   *work = &works[i];

		if (work->end <= TASK_NOT_NOW || work->end == TASK_CHARGED || work->saga == NULL)
			continue;
		if (work->end >= TASK_COMPLETED && work->end != TASK_STOPPED &&
			work->task.item != NO_ITEM)
			saga_let_items_go(work->saga->id, work->saga->def, work->saga->priority,
							  work->saga->owner, work->task.ordinal, work->task.phase,
							  work->task.item, 1);
		ids[n] = work->saga->id;
		priorities[n] = work->saga->priority;
		owners[n++] = work->saga->owner;
	}
	saga_tell(ids, priorities, owners, n);
}

/* Those of "ids" that were not claimed. */
static void
try_missing_again(const Work *works, int nclaimed, const int64 *ids, int count)
{
	int64	   *missing = palloc(sizeof(int64) * count);
	int			n = 0;

	for (int i = 0; i < count; i++)
	{
		int			j = 0;

		while (j < nclaimed && works[j].task.id != ids[i])
			j++;
		if (j == nclaimed)
			missing[n++] = ids[i];
	}
	try_again_later(missing, n);
}

/*
 * Claim tasks and carry them out in the open transaction, until the turn should
 * end.  "ids" are then in order: first the "leftover" ones that are to be tried
 * again.  Returns how many were carried out.
 */
int
saga_carry_out(Turn *turn, int64 *ids, int count, int *leftover, bool *fresh)
{
	MemoryContext old = MemoryContextSwitchTo(turn->context);
	Work	   *works;
	int			nclaimed;
	int			done = 0;

	PushActiveSnapshot(GetTransactionSnapshot());
	works = claim(turn, ids, count, &nclaimed);
	if (nclaimed > 0)
		read_sagas(turn, works, nclaimed);
	take_in_hand(turn, works, nclaimed);
	if (nclaimed < count)
		try_missing_again(works, nclaimed, ids, count);
	PopActiveSnapshot();
	turn->loaded = GetCurrentTimestamp();
	turn->nloaded = nclaimed;
	while (done < nclaimed && !turn->end)
	{
		CHECK_FOR_INTERRUPTS();
		carry_out(turn, &works[done++]);
		if (saga_turn_is_over(turn))
			break;
	}
	saga_leave_user(turn);
	write_tasks(turn, works, nclaimed);
	tell(turn, works, nclaimed);
	saga_flush(turn, NULL, 0);

	*leftover = 0;
	*fresh = false;
	for (int i = 0; i < nclaimed; i++)
	{
		TaskEnd		end = works[i].end;

		if (end != TASK_NOT_REACHED && end != TASK_NOT_NOW && end != TASK_CHARGED)
			continue;
		*fresh = *fresh || end != TASK_NOT_REACHED;
		ids[(*leftover)++] = works[i].task.id;
	}
	MemoryContextSwitchTo(old);
	return done;
}
