/*-------------------------------------------------------------------------
 *
 * saga_task_fail.c
 *	  Attempts at tasks that failed: the worker says so, or its lease expires.
 *
 * Another attempt follows, or the task has failed for good, which its saga is
 * told.  An attempt whose lease expired is charged, but its token stays good until
 * somebody else claims the task (see saga_lease.c): the worker may only have been
 * slow.
 *
 * Nobody waits for expired leases.  Each claim that commits says when its leases
 * end, and at that time the engine, or whoever claims from the queue next, looks
 * through the tasks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/doorbell.h"
#include "base/identity.h"
#include "base/installation.h"
#include "base/query.h"
#include "base/retry.h"
#include "saga/saga.h"
#include "saga/saga_lease.h"
#include "saga/saga_queue.h"

/* Expired leases taken at a time. */
#define SWEEP 1000

/* When to look again at expired leases that somebody had locked. */
#define LOOK_AGAIN_US USECS_PER_SEC

/* SQLSTATEs of attempts that failed outside. */
#define FAILED_SQLSTATE "P0001"
#define EXPIRED_SQLSTATE "57014"

PG_FUNCTION_INFO_V1(coord_task_fail);

/* ----------------------------------------------------------------
 *		Attempts that failed
 * ----------------------------------------------------------------
 */

/* How an attempt ended. */
typedef struct Failure
{
	Lease	   *lease;
	const char *error;
	const char *sqlstate;
	bool		again;			/* else the task has failed for good */
	bool		keep_lease;		/* its token stays good until it is claimed */
	TimestampTz available_at;
} Failure;

/*
 * May a retryable failure be followed by another attempt?  Past the pivot, always:
 * from there a saga only goes forward.
 */
static bool
attempts_left(const Lease *lease)
{
	const StepDef *step = lease_step(lease);

	return lease->attempt < saga_attempt_limit(step, lease->phase) ||
		(lease->phase == PHASE_ACTION && step->past_pivot);
}

static void
log_failures(const Failure *failures, int count)
{
	Turn		turn;

	saga_ensure_partitions(identity_is_worker());
	saga_turn_begin(&turn, identity_is_worker());
	for (int i = 0; i < count; i++)
	{
		const Lease *lease = failures[i].lease;
		LogRow		row = {0};

		row.saga = lease->saga_id;
		row.name = lease->def->name;
		row.owner = lease->owner;
		row.at = clock_now();
		row.event = "attempt_failed";
		row.step = saga_task_name(lease->def, lease->ordinal, lease->item);
		row.phase = lease->phase;
		row.attempt = lease->attempt;
		row.role = lease->owner;
		row.error = failures[i].error;
		row.sqlstate = failures[i].sqlstate;
		if (lease->worker != NULL)
			row.context = psprintf("worker \"%s\"", lease->worker);
		saga_log(&turn, &row);
	}
	saga_flush(&turn, NULL, 0);
}

/* Write what became of attempts, which are locked, and tell everybody. */
static void
end_attempts(const Failure *failures, int count)
{
	static Statement update = {
		"UPDATE coord_internal.task t SET status = u.status, available_at = u.available_at,"
		" lease_expires_at = CASE WHEN u.keep THEN t.lease_expires_at END,"
		" error = u.error, sqlstate = u.sqlstate,"
		" error_context = 'worker \"' || t.worker || '\"',"
		" finished_at = CASE u.status WHEN 'failed' THEN $7 END"
		" FROM unnest($1, $2, $3, $4, $5, $6)"
		" AS u(id, status, available_at, keep, error, sqlstate) WHERE t.id = u.id",
		7, {INT8ARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, BOOLARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, TIMESTAMPTZOID}
	};
	static const Oid types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID, BOOLOID, TEXTOID, TEXTOID};
	Datum	   *columns[lengthof(types)];
	Datum		values[lengthof(types) + 1];
	TimestampTz now = clock_now();
	Lease	   *leases = palloc(sizeof(Lease) * count);
	QueryScope	scope;

	for (int i = 0; i < lengthof(types); i++)
		columns[i] = palloc(sizeof(Datum) * count);
	for (int i = 0; i < count; i++)
	{
		const Failure *failure = &failures[i];

		leases[i] = *failure->lease;
		columns[0][i] = Int64GetDatum(failure->lease->id);
		columns[1][i] = CStringGetTextDatum(failure->again ? "ready" : "failed");
		columns[2][i] = TimestampTzGetDatum(failure->available_at);
		columns[3][i] = BoolGetDatum(failure->keep_lease && failure->again);
		columns[4][i] = CStringGetTextDatum(failure->error);
		columns[5][i] = CStringGetTextDatum(failure->sqlstate);
	}
	for (int i = 0; i < lengthof(types); i++)
		values[i] = lease_array(columns[i], NULL, count, types[i]);
	values[lengthof(types)] = TimestampTzGetDatum(now);
	query_begin(&scope);
	query_run(&update, values, NULL, 0);
	query_end(&scope);
	log_failures(failures, count);

	for (int i = 0; i < count; i++)
	{
		const Lease *lease = &leases[i];

		queue_freed_at_commit(lease->queue);
		if (!failures[i].again)
		{
			lease_let_item_go(lease);
			continue;
		}
		if (failures[i].available_at <= now)
			queue_ready_at_commit(lease->queue, lease->rank, lease->position);
		else
		{
			queue_due_at_commit(lease->queue, failures[i].available_at);
			doorbell_task_due_at_commit(failures[i].available_at);
		}
	}
	lease_tell(leases, count);
}

/*
 * An attempt failed; false when its token is not good.  "retry_us" is when to try
 * again, -1: as the step says.  "by_result": the result says so, and as for a
 * step that is a function, the step's retry_on decides whether it is tried again.
 */
static bool
fail(int64 id, int64 token, const char *error, bool retryable, int64 retry_us, bool by_result)
{
	Lease	   *lease = lease_lock(id, token);
	const StepDef *step;
	Failure		failure = {0};

	if (lease == NULL)
		return false;
	step = lease_step(lease);
	if (by_result)
		retryable = retry_is_worth(&step->retry, FAILED_SQLSTATE);
	if (step->vote && lease->phase == PHASE_ACTION)
		retryable = false;		/* it is a no */
	else if (step->vote || step->must)
		retryable = true;
	if (retry_us < 0)
		retry_us = retry_delay(&step->retry, lease->attempt);
	failure.lease = lease;
	failure.error = error;
	failure.sqlstate = FAILED_SQLSTATE;
	failure.again = retryable && attempts_left(lease);
	failure.available_at = clock_now() + (failure.again ? retry_us : 0);
	end_attempts(&failure, 1);
	return true;
}

/* A result that is a failure; see fail(). */
bool
task_fail_by_result(int64 id, int64 token, const char *error)
{
	return fail(id, token, error, false, -1, true);
}

/* coord.task_fail(task_id, token, error, retryable, retry_in) */
Datum
coord_task_fail(PG_FUNCTION_ARGS)
{
	int64		id;
	int64		token;
	char	   *error;
	bool		retryable = PG_ARGISNULL(3) || PG_GETARG_BOOL(3);
	int64		retry_us = -1;

	check_required(fcinfo, 0, "task_id");
	id = PG_GETARG_INT64(0);
	check_required(fcinfo, 1, "token");
	token = PG_GETARG_INT64(1);
	error = check_text(fcinfo, 2, "error");
	if (!PG_ARGISNULL(4))
	{
		retry_us = clock_interval_us(PG_GETARG_INTERVAL_P(4));
		if (retry_us < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("retry_in must not be negative")));
	}
	installation_check();
	check_not_in_recovery("coord.task_fail()");
	do
	{
		if (fail(id, token, error, retryable, retry_us, false))
			PG_RETURN_BOOL(true);
	} while (lease_refusal(id, token) == REFUSAL_NONE);
	PG_RETURN_BOOL(false);
}

/* ----------------------------------------------------------------
 *		Leases that expired
 * ----------------------------------------------------------------
 */

/* What there is of a queue. */
typedef struct Looked
{
	char	   *name;
	TimestampTz next;			/* due after now; DT_NOEND: none */
	int64		expired;
	TimestampTz available;		/* the last delayed task that can be claimed now */
	bool		ready;
	QueueKey	first;			/* of what is ready */
} Looked;

/*
 * End attempts whose lease has expired, of one queue or (NULL) of all; returns
 * how many.  Those that somebody has locked are just being ended or extended.
 */
static int
expire(const char *queue, TimestampTz now)
{
#define EXPIRED \
	"SELECT" LEASE_COLUMNS " FROM coord_internal.task t" \
	" WHERE t.status = 'running' AND t.lease_expires_at <= $1" \
	" AND (SELECT s.home FROM coord_internal.saga s WHERE s.id = t.saga_id) = $2" \
	" AND t.queue "
	static Statement lock = {
		EXPIRED "= $4 LIMIT $3 FOR UPDATE SKIP LOCKED",
		4, {TIMESTAMPTZOID, INT8OID, INT4OID, TEXTOID}
	};
	static Statement lock_all = {
		EXPIRED "> '' LIMIT $3 FOR UPDATE SKIP LOCKED",
		3, {TIMESTAMPTZOID, INT8OID, INT4OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		values[4];
	Lease	   *leases;
	Failure    *failures;
	int64	   *definitions;
	int			count;

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(now);
	values[1] = Int64GetDatum(installation_home());
	values[2] = Int32GetDatum(SWEEP);
	if (queue != NULL)
		values[3] = CStringGetTextDatum(queue);
	count = (int) query_run(queue != NULL ? &lock : &lock_all, values, NULL, 0);
	leases = lease_read(context, count, &definitions);
	query_end(&scope);
	if (count == 0)
		return 0;
	lease_get_definitions(leases, definitions, count);
	failures = palloc0(sizeof(Failure) * count);
	for (int i = 0; i < count; i++)
	{
		int			timeout_ms = lease_step(&leases[i])->timeout_ms;
		bool		timed_out = timeout_ms > 0 && leases[i].expires_at >=
			leases[i].claimed_at + timeout_ms * INT64CONST(1000);

		failures[i].lease = &leases[i];
		failures[i].error = timed_out ? "the step ran longer than its timeout" :
			"the lease expired";
		failures[i].sqlstate = EXPIRED_SQLSTATE;
		failures[i].again = attempts_left(&leases[i]);
		failures[i].keep_lease = true;
		failures[i].available_at = now;
	}
	end_attempts(failures, count);
	return count;
}

static void
read_looked(MemoryContext context, uint64 row, Looked *looked)
{
	Datum	   *key;
	Datum		value;
	bool		isnull;
	int			count;

	looked->name = query_text(context, row, 1);
	value = query_value(row, 2, &isnull);
	looked->next = isnull ? DT_NOEND : DatumGetTimestampTz(value);
	looked->expired = DatumGetInt64(query_value(row, 3, &isnull));
	value = query_value(row, 4, &isnull);
	looked->available = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	value = query_value(row, 5, &isnull);
	looked->ready = !isnull;
	if (isnull)
		return;
	deconstruct_array(DatumGetArrayTypeP(value), INT8OID, sizeof(int64), true,
					  TYPALIGN_DOUBLE, &key, NULL, &count);
	looked->first.rank = DatumGetInt64(key[0]);
	looked->first.position = DatumGetInt64(key[1]);
	looked->first.id = DatumGetInt64(key[2]);
}

/*
 * Look through one queue or (NULL) all: end what has expired, note what will be
 * due and what is ready.  Returns the next time that something is due, DT_NOEND
 * for none.
 */
static TimestampTz
sweep(const char *queue)
{
#define LOOK \
	"SELECT queue, min(due) FILTER (WHERE due > $1)," \
	" count(*) FILTER (WHERE status = 'running' AND due <= $1)," \
	" max(available_at) FILTER (WHERE status = 'ready' AND due <= $1" \
	"  AND available_at > created_at)," \
	" min(ARRAY[rank, position, id]) FILTER (WHERE status = 'ready' AND due <= $1)" \
	" FROM (SELECT *, CASE status WHEN 'running' THEN lease_expires_at ELSE available_at" \
	"  END AS due FROM coord_internal.task WHERE status IN ('ready', 'running')" \
	"  AND queue "
	static Statement look = {
		LOOK "= $2) t GROUP BY queue", 2, {TIMESTAMPTZOID, TEXTOID}
	};
	static Statement look_all = {
		LOOK "> '') t GROUP BY queue", 1, {TIMESTAMPTZOID}
	};
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = clock_now();
	TimestampTz began = GetCurrentTimestamp();
	TimestampTz next = DT_NOEND;
	int64		expired = 0;
	QueryScope	scope;
	Datum		values[2];
	Looked	   *queues;
	uint64		rows;

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(now);
	if (queue != NULL)
		values[1] = CStringGetTextDatum(queue);
	rows = query_run(queue != NULL ? &look : &look_all, values, NULL, 0);
	queues = MemoryContextAllocZero(context, sizeof(Looked) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
	{
		read_looked(context, i, &queues[i]);
		expired += queues[i].expired;
	}
	query_end(&scope);

	/* Some that are locked may be left as they are: look again soon. */
	if (expired > 0 && expire(queue, now) < expired)
		next = now + LOOK_AGAIN_US;
	for (uint64 i = 0; i < rows; i++)
	{
		next = Min(next, queues[i].next);
		queue_swept(queues[i].name, queues[i].expired > 0 ? next : queues[i].next,
					queues[i].ready ? &queues[i].first : NULL, queues[i].available,
					(GetCurrentTimestamp() - began) / rows);
	}
	return next;
}

/*
 * End attempts whose lease has expired, in all queues.  Returns the next time
 * that this has something to do, or that a delayed task can be claimed; 0: none.
 * For the engine, in a transaction.
 */
TimestampTz
task_sweep(void)
{
	TimestampTz next = sweep(NULL);

	return next == DT_NOEND ? 0 : next;
}

/* The same for one queue, for whoever claims from it. */
void
task_sweep_queue(const char *queue)
{
	(void) sweep(queue);
}
