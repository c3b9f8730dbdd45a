/*-------------------------------------------------------------------------
 *
 * saga_claim.c
 *	  Workers outside take tasks: task_claim(), and await() for a queue.
 *
 * A claim is one statement, whatever its size: it locks ready tasks, passing over
 * those that others have locked, and makes them running.  It changes no indexed
 * column, so a task leads its whole life on one page, under two index entries.
 * What the saga has come to is read afterwards, once per saga, for the documents
 * that the worker gets.
 *
 * Each claim of a task has a token that is greater than all before, also when the
 * clock is set back; whoever has an older one can change nothing any more.
 *
 * A claim need not be durable: if the server crashes, what was claimed just before
 * is ready again, as if the lease had expired.  So a transaction that did nothing
 * but claim does not wait for the disk at its commit.  Whether it did nothing else
 * is told by the log: the last record of the transaction is the claim's own.  A
 * completion waits, and what was claimed before is on the disk with it.
 *
 * saga_queue_mark.c has the rules by which a claim need not read the queue from
 * its start, saga_queue_place.c those of fairness.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/commit_level.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/query.h"
#include "saga/saga_queue.h"
#include "saga/saga_task.h"

#define MAX_TASKS 10000
#define DEFAULT_LEASE_US (30 * USECS_PER_SEC)

/* How often a waiter looks whether the engine may act again. */
#define HALTED_US USECS_PER_SEC

PG_FUNCTION_INFO_V1(coord_task_claim);
PG_FUNCTION_INFO_V1(coord_internal_lease_end);

/* What a caller wants. */
typedef struct Claim
{
	char	   *queue;
	int			max_tasks;
	char	   *worker;
	int64		lease_us;
	TimestampTz now;			/* coord's clock, of the last reading */
	int64		wait_us;		/* > 0: no sooner is there anything to be had */
} Claim;

/* A task that was claimed. */
typedef struct Claimed
{
	Task		task;
	SagaRow		saga;
	int64		token;
	bool		null_compensation;
	TimestampTz lease_expires_at;
	QueueKey	key;
} Claimed;

/*
 * When a lease ends that was wanted until then: with the step's timeout at the
 * latest.
 */
Datum
coord_internal_lease_end(PG_FUNCTION_ARGS)
{
	SagaDef    *def = saga_definition_by_id(PG_GETARG_INT64(0));
	int			ordinal = PG_GETARG_INT32(1);
	TimestampTz claimed_at = PG_GETARG_TIMESTAMPTZ(2);
	TimestampTz result = PG_GETARG_TIMESTAMPTZ(3);
	int			timeout_ms;

	if (ordinal < 0 || ordinal >= def->nsteps)
		elog(ERROR, "saga definition " INT64_FORMAT " has no step %d", def->id, ordinal);
	timeout_ms = def->steps[ordinal].timeout_ms;
	if (timeout_ms > 0)
		result = Min(result, claimed_at + timeout_ms * INT64CONST(1000));
	PG_RETURN_TIMESTAMPTZ(result);
}

static Datum
oid_array(const Oid *oids, int count)
{
	Datum	   *elements = palloc(sizeof(Datum) * Max(count, 1));

	for (int i = 0; i < count; i++)
		elements[i] = ObjectIdGetDatum(oids[i]);
	return PointerGetDatum(construct_array(elements, count, OIDOID, sizeof(Oid), true,
										   TYPALIGN_INT));
}

/* ----------------------------------------------------------------
 *		Claiming
 * ----------------------------------------------------------------
 */

/*
 * A task of queue $1 to be claimed by role $7 at time $5, behind ($2, $3, $4).
 * OFFSET 0 keeps the saga from being joined in any other way than task by task,
 * in the order of the queue.
 */
#define CLAIMABLE \
	" FROM coord_internal.task t CROSS JOIN LATERAL" \
	" (SELECT s.ctid, s.xmin FROM coord_internal.saga s WHERE s.id = t.saga_id" \
	"  AND s.home = $9 AND s.status IN ('running', 'compensating')" \
	"  AND s.backward = (t.phase = 'compensation') OFFSET 0) s" \
	" WHERE t.queue = $1 AND (t.rank, t.position, t.id) > ($2, $3, $4)" \
	" AND t.status = 'ready' AND t.available_at <= $5" \
	" AND (SELECT NOT q.paused FROM coord_internal.queue q WHERE q.name = $1)" \
	" AND ($6 OR pg_has_role($7, t.owner, 'MEMBER') OR EXISTS" \
	"  (SELECT FROM unnest($8) r WHERE pg_has_role(r, t.owner, 'MEMBER')))" \
	" ORDER BY t.rank, t.position, t.id LIMIT $10 FOR UPDATE OF t SKIP LOCKED"

#define CLAIMABLE_ARGS 10
#define CLAIMABLE_TYPES \
	TEXTOID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID, BOOLOID, OIDOID, OIDARRAYOID, \
	INT8OID, INT4OID

static void
claimable_values(Datum *values, const char *queue, Oid user, const QueueAccess *access,
				 const QueueReading *reading, TimestampTz now, int limit)
{
	values[0] = CStringGetTextDatum(queue);
	values[1] = Int64GetDatum(reading->from.rank);
	values[2] = Int64GetDatum(reading->from.position);
	values[3] = Int64GetDatum(reading->from.id);
	values[4] = TimestampTzGetDatum(now);
	values[5] = BoolGetDatum(access->all);
	values[6] = ObjectIdGetDatum(user);
	values[7] = oid_array(access->others, access->nothers);
	values[8] = Int64GetDatum(installation_home());
	values[9] = Int32GetDatum(limit);
}

/* One row of the claim, in "context". */
static void
read_claimed(MemoryContext context, uint64 row, Claimed *claimed)
{
	Task	   *task = &claimed->task;
	bool		isnull;

	memset(claimed, 0, sizeof(Claimed));
	task->id = DatumGetInt64(query_value(row, 1, &isnull));
	claimed->token = DatumGetInt64(query_value(row, 2, &isnull));
	task->saga_id = DatumGetInt64(query_value(row, 3, &isnull));
	task->ordinal = DatumGetInt32(query_value(row, 4, &isnull));
	task->item = DatumGetInt32(query_value(row, 5, &isnull));
	task->phase = DatumGetBool(query_value(row, 6, &isnull)) ?
		PHASE_COMPENSATION : PHASE_ACTION;
	task->attempt = DatumGetInt32(query_value(row, 7, &isnull));
	claimed->null_compensation = DatumGetBool(query_value(row, 8, &isnull));
	task->item_value = (Jsonb *) DatumGetPointer(query_copy(context, row, 9, &isnull));
	task->given = (Jsonb *) DatumGetPointer(query_copy(context, row, 10, &isnull));
	claimed->lease_expires_at = DatumGetTimestampTz(query_value(row, 11, &isnull));
	claimed->key.rank = DatumGetInt64(query_value(row, 12, &isnull));
	claimed->key.position = DatumGetInt64(query_value(row, 13, &isnull));
	claimed->key.id = task->id;
	claimed->saga.id = task->saga_id;
	claimed->saga.tid = *(ItemPointer) DatumGetPointer(query_value(row, 14, &isnull));
	claimed->saga.xmin = DatumGetTransactionId(query_value(row, 15, &isnull));
}

static int
compare_claimed(const void *a, const void *b)
{
	const QueueKey *x = &((const Claimed *) a)->key;
	const QueueKey *y = &((const Claimed *) b)->key;

	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	if (x->position != y->position)
		return x->position < y->position ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

/*
 * Claim up to "limit" tasks; returns how many, in their order.
 *
 * A task that was changed after the statement's snapshot, and is ready again, is
 * locked but not found by its address: it is for the next claim.  The mark does
 * not pass it, for whoever made it ready has lowered it or is about to.
 *
 * The time is read after the mark: were it read before, a task might become ready
 * between them, at a later time, and be neither claimed nor held against the mark.
 */
static int
claim_tasks(Claim *claim, const QueueAccess *access, int limit, Claimed **claimed)
{
	static Statement statement = {
		"WITH picked AS (SELECT t.ctid AS tid, s.ctid AS saga_tid, s.xmin AS saga_xmin" CLAIMABLE ")"
		" UPDATE coord_internal.task t SET status = 'running', attempt = t.attempt + 1,"
		" claims = t.claims + 1, token = greatest(t.token + 1, $11), worker = $12,"
		" claimed_at = $5, started_at = coalesce(t.started_at, $5),"
		" lease_expires_at = coord_internal.lease_end(t.definition, t.ordinal, $5, $13)"
		" FROM picked p WHERE t.ctid = p.tid"
		" RETURNING t.id, t.token, t.saga_id, t.ordinal, t.item, t.phase = 'compensation',"
		" t.attempt, t.null_compensation, t.item_value, t.given, t.lease_expires_at,"
		" t.rank, t.position, p.saga_tid, p.saga_xmin",
		CLAIMABLE_ARGS + 3, {CLAIMABLE_TYPES, INT8OID, TEXTOID, TIMESTAMPTZOID}
	};
	MemoryContext context = CurrentMemoryContext;
	Oid			user = GetUserId();
	QueueReading reading;
	QueryScope	scope;
	Datum		values[CLAIMABLE_ARGS + 3];
	bool		nulls[CLAIMABLE_ARGS + 3] = {false};
	QueueKey   *keys;
	TimestampTz due = DT_NOEND;
	int			count;

	DEBUG_POINT("task_claim");
	queue_reading_begin(&reading, claim->queue, user);
	claim->now = clock_now();
	query_begin(&scope);
	claimable_values(values, claim->queue, user, access, &reading, claim->now, limit);
	values[10] = Int64GetDatum(claim->now);
	nulls[11] = claim->worker == NULL;
	if (!nulls[11])
		values[11] = CStringGetTextDatum(claim->worker);
	values[12] = TimestampTzGetDatum(claim->now + claim->lease_us);
	count = (int) query_run(&statement, values, nulls, 0);
	*claimed = MemoryContextAlloc(context, sizeof(Claimed) * Max(count, 1));
	for (int i = 0; i < count; i++)
		read_claimed(context, i, &(*claimed)[i]);
	query_end(&scope);

	qsort(*claimed, count, sizeof(Claimed), compare_claimed);
	keys = palloc(sizeof(QueueKey) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		keys[i] = (*claimed)[i].key;
		due = Min(due, (*claimed)[i].lease_expires_at);
	}
	queue_reading_end(&reading, keys, count, count < limit);
	if (count > 0)
	{
		queue_due_at_commit(claim->queue, due);
		doorbell_task_due_at_commit(due);
	}
	DEBUG_POINT("task_claimed");
	return count;
}

/*
 * How many more tasks of a queue may run.  With "locked" the queue is locked, so
 * what others have claimed is committed, and the answer exact.  Running tasks
 * come before the highest that was ever claimed; what is ready behind it, which
 * may be much, is not read.
 */
static int
room_left(const char *queue, int max_running, bool locked)
{
	static Statement read = {
		"SELECT count(*) OVER (), rank, position, id FROM"
		" (SELECT rank, position, id FROM coord_internal.task"
		"  WHERE queue = $1 AND (rank, position, id) <= ($2, $3, $4) AND status = 'running'"
		"  ORDER BY rank, position, id LIMIT $5) AS running"
		" ORDER BY rank DESC, position DESC, id DESC LIMIT 1",
		5, {TEXTOID, INT8OID, INT8OID, INT8OID, INT4OID}
	};
	QueueSlot  *slot = queue_slot(queue);
	QueueKey	highest = queue_highest_claimed(slot);
	QueryScope	scope;
	Datum		values[5];
	int64		running = 0;
	bool		isnull;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(queue);
	values[1] = Int64GetDatum(highest.rank);
	values[2] = Int64GetDatum(highest.position);
	values[3] = Int64GetDatum(highest.id);
	values[4] = Int32GetDatum(max_running);
	if (query_run_latest(&read, values, NULL, 0) > 0)
	{
		running = DatumGetInt64(query_value(0, 1, &isnull));
		highest.rank = DatumGetInt64(query_value(0, 2, &isnull));
		highest.position = DatumGetInt64(query_value(0, 3, &isnull));
		highest.id = DatumGetInt64(query_value(0, 4, &isnull));
	}
	else
		highest.rank = highest.position = highest.id = PG_INT64_MIN;
	query_end(&scope);
	if (locked && running < max_running)
		queue_set_highest_claimed(slot, &highest);
	return (int) (max_running - running);
}

/*
 * Look once: claim what there is, within the queue's limits.  The engine may act.
 */
static int
look(Claim *claim, const QueueConfig *config, Claimed **claimed)
{
	QueueSlot  *slot = queue_slot(claim->queue);
	int			max_running = config->max_running;
	double		rate_limit = config->rate_limit;
	int			limit = claim->max_tasks;
	int			count = 0;
	int			tokens = 0;
	QueueAccess access;

	queue_access(config, &access);
	if (queue_take_due(slot, GetUserId(), clock_now()))
		task_sweep_queue(claim->queue);
	if (max_running > 0)
	{
		queue_lock(claim->queue, true);
		limit = Min(limit, room_left(claim->queue, max_running, true));
	}
	if (limit > 0 && rate_limit > 0)
		limit = tokens = queue_take_tokens(slot, rate_limit, limit, &claim->wait_us);
	if (limit > 0)
		count = claim_tasks(claim, &access, limit, claimed);
	if (tokens > count)
		queue_return_tokens(slot, tokens - count);
	if (max_running > 0 && count == 0)
		queue_lock(claim->queue, false);
	return count;
}

/*
 * Look, and wait, until there is something or the time is over.  Whoever looks
 * has before begun to wait, so nothing falls between.
 */
static int
claim_or_wait(Claim *claim, TimestampTz until, Claimed **claimed)
{
	QueueSlot  *slot;
	bool		waiting = until > GetCurrentTimestamp();
	int			count = 0;

	(void) queue_config_or_error(claim->queue);
	slot = queue_slot(claim->queue);
	if (waiting)
		queue_prepare_to_wait(slot);
	for (;;)
	{
		QueueConfig *config = queue_config_or_error(claim->queue);
		bool		running = installation_state() == ENGINE_RUNNING;
		TimestampTz now;
		TimestampTz wake_at = until;

		claim->wait_us = 0;
		if (running && !config->paused)
			count = look(claim, config, claimed);
		now = GetCurrentTimestamp();
		if (count > 0 || now >= until)
			break;
		if (claim->wait_us > 0 && !clock_is_set())
			wake_at = Min(wake_at, now + claim->wait_us);
		if (!running)
			wake_at = Min(wake_at, now + HALTED_US);
		queue_wait(slot, wake_at, running && !config->paused);
		AcceptInvalidationMessages();
	}
	if (waiting)
		queue_end_wait(slot);
	return count;
}

/* ----------------------------------------------------------------
 *		What the worker gets
 * ----------------------------------------------------------------
 */

/* The sagas of claimed tasks, each once. */
static Saga **
read_sagas(Turn *turn, const Claimed *claimed, int count, int *nsagas)
{
	SagaRow    *rows = palloc(sizeof(SagaRow) * count);

	for (int i = 0; i < count; i++)
		rows[i] = claimed[i].saga;
	return saga_read(turn, rows, count, nsagas);
}

static void
put_claimed(ReturnSetInfo *rsinfo, const Claimed *claimed, Saga **sagas, int nsagas)
{
	const Task *task = &claimed->task;
	const Saga *saga = saga_find_read(sagas, nsagas, task->saga_id);
	const StepDef *step;
	char		key[IDEMPOTENCY_KEY_SIZE];
	Datum		values[13];
	bool		nulls[13] = {false};

	if (saga == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("saga " INT64_FORMAT " was finished by a concurrent transaction",
						task->saga_id)));
	step = &saga->def->steps[task->ordinal];
	saga_idempotency_key(key, sizeof(key), saga, task->ordinal, task->phase, task);
	values[0] = Int64GetDatum(task->id);
	values[1] = Int64GetDatum(claimed->token);
	values[2] = Int64GetDatum(task->saga_id);
	if (saga->def->participant)
	{
		values[3] = CStringGetTextDatum("twophase");
		values[4] = CStringGetTextDatum(json_get_text(saga->input, "participant"));
		values[5] = CStringGetTextDatum(saga_participant_phase(saga, task->ordinal, task->phase));
	}
	else
	{
		values[3] = CStringGetTextDatum(saga->def->name);
		values[4] = CStringGetTextDatum(step->name);
		values[5] = CStringGetTextDatum(saga_phase_name(task->phase));
	}
	values[6] = CStringGetTextDatum(task->phase == PHASE_ACTION ? step->action :
									step->compensation);
	values[7] = Int32GetDatum(task->item);
	nulls[7] = task->item == NO_ITEM;
	values[8] = Int32GetDatum(task->attempt);
	values[9] = CStringGetTextDatum(key);
	values[10] = BoolGetDatum(claimed->null_compensation);
	values[11] = JsonbPGetDatum(saga_document(saga, task->ordinal, task->phase, task));
	values[12] = TimestampTzGetDatum(claimed->lease_expires_at);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* A duration; 22023 when it is negative, or must not be zero and is. */
static int64
duration(FunctionCallInfo fcinfo, int argument, const char *name, int64 default_us,
		 bool zero_allowed)
{
	Interval   *interval;
	int64		us;

	if (PG_ARGISNULL(argument))
		return default_us;
	interval = PG_GETARG_INTERVAL_P(argument);
	us = clock_interval_us(interval);
	if (us < 0 || (us == 0 && !zero_allowed) ||
		(!zero_allowed && !coord_interval_is_finite(interval)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 zero_allowed ? errmsg("%s must not be negative", name) :
				 errmsg("%s must be greater than 0 and finite", name)));
	return us;
}

/* coord.task_claim(queue, max_tasks, worker, lease, timeout) */
Datum
coord_task_claim(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Claim		claim = {0};
	Claimed    *claimed = NULL;
	int64		timeout_us;
	bool		nothing_else;
	int			count;

	claim.queue = check_text(fcinfo, 0, "queue");
	claim.max_tasks = PG_ARGISNULL(1) ? 1 : PG_GETARG_INT32(1);
	if (claim.max_tasks < 1 || claim.max_tasks > MAX_TASKS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_tasks must be between 1 and %d", MAX_TASKS)));
	claim.worker = check_optional_text(fcinfo, 2);
	if (claim.worker != NULL)
		check_name("worker", claim.worker);
	claim.lease_us = duration(fcinfo, 3, "lease", DEFAULT_LEASE_US, false);
	timeout_us = duration(fcinfo, 4, "timeout", 0, true);
	timeout_us = Min(timeout_us, guc_max_function_wait * INT64CONST(1000));
	installation_check();
	check_not_in_recovery("coord.task_claim()");
	InitMaterializedSRF(fcinfo, 0);

	nothing_else = commit_may_be_late();
	count = claim_or_wait(&claim, GetCurrentTimestamp() + timeout_us, &claimed);
	if (count > 0)
	{
		Turn		turn = {0};
		Saga	  **sagas;
		int			nsagas;

		turn.context = CurrentMemoryContext;
		sagas = read_sagas(&turn, claimed, count, &nsagas);
		for (int i = 0; i < count; i++)
			put_claimed(rsinfo, &claimed[i], sagas, nsagas);
	}
	commit_late(nothing_else);
	return (Datum) 0;
}

/* ----------------------------------------------------------------
 *		Waiting without a snapshot
 * ----------------------------------------------------------------
 */

/*
 * Is there a task that the current user could claim from a queue?  It is locked
 * until the end of the transaction: a task that another claim holds does not
 * count, or whoever waits would be sent to claim in vain again and again.
 * "wait_us" is how long it takes at least until there can be one.
 */
bool
queue_has_task(const char *queue, int64 *wait_us)
{
	static Statement statement = {
		"SELECT t.rank, t.position, t.id" CLAIMABLE,
		CLAIMABLE_ARGS, {CLAIMABLE_TYPES}
	};
	QueueConfig *config = queue_config_or_error(queue);
	Oid			user = GetUserId();
	QueueReading reading;
	QueueAccess access;
	QueryScope	scope;
	Datum		values[CLAIMABLE_ARGS];
	QueueSlot  *slot = queue_slot(queue);
	int			max_running = config->max_running;
	double		rate_limit = config->rate_limit;
	QueueKey	key;
	bool		found;

	*wait_us = 0;
	check_not_in_recovery("waiting for a queue");
	if (installation_state() != ENGINE_RUNNING || config->paused)
	{
		*wait_us = HALTED_US;
		return false;
	}
	queue_access(config, &access);
	if (queue_take_due(slot, user, clock_now()))
		task_sweep_queue(queue);
	if (max_running > 0 && room_left(queue, max_running, false) <= 0)
		return false;
	if (rate_limit > 0)
	{
		if (queue_take_tokens(slot, rate_limit, 1, wait_us) == 0)
			return false;
		queue_return_tokens(slot, 1);
	}
	queue_reading_begin(&reading, queue, user);
	query_begin(&scope);
	claimable_values(values, queue, user, &access, &reading, clock_now(), 1);
	found = query_run(&statement, values, NULL, 0) > 0;
	if (found)
	{
		bool		isnull;

		key.rank = DatumGetInt64(query_value(0, 1, &isnull));
		key.position = DatumGetInt64(query_value(0, 2, &isnull));
		key.id = DatumGetInt64(query_value(0, 3, &isnull));
	}
	query_end(&scope);
	if (found)
		queue_locked(queue, user, &key);
	else
		queue_reading_end(&reading, NULL, 0, true);
	return found;
}
