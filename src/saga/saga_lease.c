/*-------------------------------------------------------------------------
 *
 * saga_lease.c
 *	  Whoever has claimed a task ends it, extends his lease, or loses it.
 *
 * A token is good for a task as long as no other claim has replaced it: also
 * after the lease has expired, when the task is ready again but nobody has taken
 * it.  That is one condition on one row (HELD), so that whoever comes first, the
 * completion, the next claim or the sweep, locks the row, and the others find it
 * changed:
 *
 *	 token       task                         complete, fail, release    extend
 *	 same        running, or expired          done                       done
 *	 same        ended or given back          false                      ZC001
 *	 another                                  ZC001                      ZC001
 *				 withdrawn with its saga      ZC011                      ZC011
 *
 * What is left of tasks whose saga is finished is in coord_internal.task_gone,
 * for a day or so; what is not even there was ended long ago.
 *
 * Every change that matters to the saga is told it in the same transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/errors.h"
#include "base/installation.h"
#include "base/json.h"
#include "base/query.h"
#include "saga/saga_lease.h"
#include "saga/saga_queue.h"

#define DEFAULT_LEASE_US (30 * USECS_PER_SEC)

PG_FUNCTION_INFO_V1(coord_task_complete);
PG_FUNCTION_INFO_V1(coord_task_complete_many);
PG_FUNCTION_INFO_V1(coord_task_extend);
PG_FUNCTION_INFO_V1(coord_task_release);
PG_FUNCTION_INFO_V1(coord_task_revoke);

/*
 * Rows of the last result that begin with LEASE_COLUMNS.  Their definitions are
 * looked up by lease_get_definitions(), after query_end().
 */
Lease *
lease_read(MemoryContext context, uint64 rows, int64 **definitions)
{
	Lease	   *leases = MemoryContextAllocZero(context, sizeof(Lease) * Max(rows, 1));

	*definitions = MemoryContextAlloc(context, sizeof(int64) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
	{
		Lease	   *lease = &leases[i];
		bool		isnull;

		lease->id = DatumGetInt64(query_value(i, 1, &isnull));
		lease->saga_id = DatumGetInt64(query_value(i, 2, &isnull));
		lease->ordinal = DatumGetInt32(query_value(i, 3, &isnull));
		lease->phase = DatumGetBool(query_value(i, 4, &isnull)) ?
			PHASE_COMPENSATION : PHASE_ACTION;
		(*definitions)[i] = DatumGetInt64(query_value(i, 5, &isnull));
		lease->owner = DatumGetObjectId(query_value(i, 6, &isnull));
		lease->queue = query_text(context, i, 7);
		lease->rank = DatumGetInt64(query_value(i, 8, &isnull));
		lease->position = DatumGetInt64(query_value(i, 9, &isnull));
		lease->attempt = DatumGetInt32(query_value(i, 10, &isnull));
		lease->worker = query_text(context, i, 11);
		lease->claimed_at = query_time(i, 12);
		lease->expires_at = query_time(i, 13);
		lease->item = DatumGetInt32(query_value(i, 14, &isnull));
	}
	return leases;
}

void
lease_get_definitions(Lease *leases, const int64 *definitions, int count)
{
	for (int i = 0; i < count; i++)
		leases[i].def = saga_definition_by_id(definitions[i]);
}

const StepDef *
lease_step(const Lease *lease)
{
	return &lease->def->steps[lease->ordinal];
}

/* An item has come to its end: one that is held back may begin. */
void
lease_let_item_go(const Lease *lease)
{
	if (lease->item != NO_ITEM)
		saga_let_items_go(lease->saga_id, lease->def, (int) -lease->rank, lease->owner,
						  lease->ordinal, lease->phase, lease->item, 1);
}

/* 42704: there is no such task, or the caller may not see it. */
static void
task_unknown(int64 id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("task " INT64_FORMAT " does not exist", id)));
}

static void
check_access(int64 id, const char *queue, Oid owner)
{
	if (!queue_may_act(queue, owner))
		task_unknown(id);
}

void
lease_tell(const Lease *leases, int count)
{
	int64	   *ids = palloc(sizeof(int64) * Max(count, 1));
	int		   *priorities = palloc(sizeof(int) * Max(count, 1));
	Oid		   *owners = palloc(sizeof(Oid) * Max(count, 1));

	for (int i = 0; i < count; i++)
	{
		ids[i] = leases[i].saga_id;
		priorities[i] = (int) -leases[i].rank;
		owners[i] = leases[i].owner;
	}
	saga_tell(ids, priorities, owners, count);
}

/* For unnest(). */
Datum
lease_array(Datum *values, bool *nulls, int count, Oid type)
{
	int			dims[1] = {count};
	int			lbs[1] = {1};
	int16		typlen;
	bool		typbyval;
	char		typalign;

	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	return PointerGetDatum(construct_md_array(values, nulls, 1, dims, lbs, type, typlen,
											  typbyval, typalign));
}

/*
 * Lock the task that a token is good for; NULL when there is none, or not any
 * more.
 */
Lease *
lease_lock(int64 id, int64 token)
{
	static Statement lock = {
		"SELECT" LEASE_COLUMNS " FROM coord_internal.task t WHERE t.id = $1 AND " HELD
		" FOR UPDATE",
		2, {INT8OID, INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		values[2];
	Lease	   *lease;
	int64	   *definitions;
	uint64		rows;

	query_begin(&scope);
	values[0] = Int64GetDatum(id);
	values[1] = Int64GetDatum(token);
	rows = query_run(&lock, values, NULL, 0);
	lease = lease_read(context, rows, &definitions);
	query_end(&scope);
	if (rows == 0)
		return NULL;
	check_access(id, lease->queue, lease->owner);
	lease_get_definitions(lease, definitions, 1);
	return lease;
}

/* ----------------------------------------------------------------
 *		Tokens that are not good
 * ----------------------------------------------------------------
 */

/* What a row of task_gone, or an ended one of task, says of a token. */
static Refusal
judge_ended(const char *status, bool same)
{
	if (strcmp(status, "cancelled") == 0)
		return REFUSAL_CANCELLED;
	return same ? REFUSAL_ENDED : REFUSAL_LOST;
}

/*
 * Why HELD did not find a task; as of now, not of the transaction's snapshot.
 * 42704 when the caller may not see it or its id was never given out.
 */
static Refusal
judge(int64 id, int64 token)
{
	static Statement read = {
		"SELECT t.status, t.token = $2, t.owner, t.queue, coalesce(" HELD ", false)"
		" FROM coord_internal.task t WHERE t.id = $1 AND t.queue <> ''",
		2, {INT8OID, INT8OID}
	};
	static Statement read_gone = {
		"SELECT status, token = $2, owner, queue FROM coord_internal.task_gone WHERE id = $1",
		2, {INT8OID, INT8OID}
	};
	static Statement given_out = {
		"SELECT is_called AND $1 <= last_value AND $1 > 0 FROM coord_internal.task_id",
		1, {INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		values[2];
	char	   *status = NULL;
	char	   *queue = NULL;
	Oid			owner = InvalidOid;
	bool		same = false;
	bool		held = false;
	bool		existed = false;
	bool		isnull;

	query_begin(&scope);
	values[0] = Int64GetDatum(id);
	values[1] = Int64GetDatum(token);
	if (query_run_latest(&read, values, NULL, 1) > 0)
		held = DatumGetBool(query_value(0, 5, &isnull));
	else if (query_run_latest(&read_gone, values, NULL, 1) == 0)
	{
		query_run_latest(&given_out, values, NULL, 1);
		existed = DatumGetBool(query_value(0, 1, &isnull));
		query_end(&scope);
		if (!existed)
			task_unknown(id);
		return REFUSAL_ENDED;
	}
	status = query_text(context, 0, 1);
	same = DatumGetBool(query_value(0, 2, &isnull));
	owner = DatumGetObjectId(query_value(0, 3, &isnull));
	queue = query_text(context, 0, 4);
	query_end(&scope);

	check_access(id, queue, owner);
	return held ? REFUSAL_NONE : judge_ended(status, same);
}

/* Raise what is an error; the rest is "false". */
static void
refuse(int64 id, Refusal refusal)
{
	if (refusal == REFUSAL_CANCELLED)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_CANCELLED),
				 errmsg("task " INT64_FORMAT " was withdrawn", id),
				 errdetail("Its saga turned back or was given up, or an operator skipped the step. What the worker did for it is not recorded."),
				 errhint("Stop working on it.")));
	if (refusal == REFUSAL_LOST)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_LEASE_LOST),
				 errmsg("the lease on task " INT64_FORMAT " was lost", id),
				 errdetail("Another claim, or coord.task_revoke(), has replaced the token."),
				 errhint("Stop working on it. Claim with a longer lease, or extend it in time with coord.task_extend().")));
}

/*
 * A token was not good: raise it where that is an error, else say whether it
 * ended the task before, or is worth another try.
 */
Refusal
lease_refusal(int64 id, int64 token)
{
	Refusal		refusal = judge(id, token);

	refuse(id, refusal);
	CHECK_FOR_INTERRUPTS();
	return refusal;
}

/* ----------------------------------------------------------------
 *		Completing
 * ----------------------------------------------------------------
 */

static int64
required_int8(FunctionCallInfo fcinfo, int argument, const char *name)
{
	check_required(fcinfo, argument, name);
	return PG_GETARG_INT64(argument);
}

/* Complete one task; false when its token is not good. */
static bool
complete(int64 id, int64 token, Jsonb *result)
{
	static Statement update = {
		"UPDATE coord_internal.task t SET status = 'completed', result = $3,"
		" finished_at = $4, lease_expires_at = NULL, error = NULL, sqlstate = NULL,"
		" error_context = NULL WHERE t.id = $1 AND " HELD " RETURNING " LEASE_COLUMNS,
		4, {INT8OID, INT8OID, JSONBOID, TIMESTAMPTZOID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		values[4];
	bool		nulls[4] = {false, false, result == NULL, false};
	Lease	   *lease;
	int64	   *definitions;
	bool		found;

	query_begin(&scope);
	values[0] = Int64GetDatum(id);
	values[1] = Int64GetDatum(token);
	values[2] = PointerGetDatum(result);
	values[3] = TimestampTzGetDatum(clock_now());
	found = query_run(&update, values, nulls, 0) > 0;
	lease = lease_read(context, found, &definitions);
	query_end(&scope);
	if (!found)
		return false;
	/* An error undoes what was written. */
	check_access(id, lease->queue, lease->owner);
	lease_get_definitions(lease, definitions, 1);
	lease_let_item_go(lease);
	lease_tell(lease, 1);
	queue_freed_at_commit(lease->queue);
	return true;
}

/* A result as it is stored: a JSON null is none. */
static Jsonb *
stored_result(Jsonb *result)
{
	JsonbValue	value;

	if (result != NULL && JB_ROOT_IS_SCALAR(result) &&
		JsonbExtractScalar(&result->root, &value) && value.type == jbvNull)
		return NULL;
	return result;
}

/* coord.task_complete(task_id, token, result) */
Datum
coord_task_complete(PG_FUNCTION_ARGS)
{
	int64		id = required_int8(fcinfo, 0, "task_id");
	int64		token = required_int8(fcinfo, 1, "token");
	Jsonb	   *result = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2);
	char	   *failure = saga_result_failure(result);

	installation_check();
	check_not_in_recovery("coord.task_complete()");
	do
	{
		if (failure != NULL ? task_fail_by_result(id, token, failure) :
			complete(id, token, stored_result(result)))
			PG_RETURN_BOOL(true);
	} while (lease_refusal(id, token) == REFUSAL_NONE);
	PG_RETURN_BOOL(false);
}

/* One of task_complete_many()'s. */
typedef struct Completion
{
	int64		id;
	int64		token;
	Jsonb	   *result;
} Completion;

static int
compare_completions(const void *a, const void *b)
{
	const Completion *x = a;
	const Completion *y = b;

	if (x->id != y->id)
		return x->id < y->id ? -1 : 1;
	return x->token < y->token ? -1 : x->token > y->token;
}

static int
compare_int64(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

static int64 *
int8_elements(FunctionCallInfo fcinfo, int argument, const char *name, int *count)
{
	Datum	   *elements;
	bool	   *nulls;
	int64	   *result;

	check_required(fcinfo, argument, name);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argument), INT8OID, sizeof(int64), true,
					  TYPALIGN_DOUBLE, &elements, &nulls, count);
	result = palloc(sizeof(int64) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain null", name)));
		result[i] = DatumGetInt64(elements[i]);
	}
	return result;
}

static void
check_lengths(bool same)
{
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("task_ids, tokens and results must have the same number of elements")));
}

/* The arguments in order of ids, so that no two calls wait for each other. */
static Completion *
get_completions(FunctionCallInfo fcinfo, int *count)
{
	int			ntokens;
	int64	   *ids = int8_elements(fcinfo, 0, "task_ids", count);
	int64	   *tokens = int8_elements(fcinfo, 1, "tokens", &ntokens);
	Completion *completions = palloc0(sizeof(Completion) * Max(*count, 1));

	check_lengths(*count == ntokens);
	for (int i = 0; i < *count; i++)
	{
		completions[i].id = ids[i];
		completions[i].token = tokens[i];
	}
	if (!PG_ARGISNULL(2) && stored_result(PG_GETARG_JSONB_P(2)) != NULL)
	{
		Jsonb	   *results = PG_GETARG_JSONB_P(2);

		if (!JB_ROOT_IS_ARRAY(results) || JB_ROOT_IS_SCALAR(results))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("results must be a JSON array")));
		check_lengths(*count == JB_ROOT_COUNT(results));
		for (int i = 0; i < *count; i++)
			completions[i].result =
				JsonbValueToJsonb(getIthJsonbValueFromContainer(&results->root, i));
	}
	qsort(completions, *count, sizeof(Completion), compare_completions);
	return completions;
}

/*
 * Keep those of the pairs, which are in order of ids, whose tasks the current user
 * may end; returns how many.  One task of which the use was revoked must not keep
 * him from reporting the others.
 */
static int
keep_allowed(const Completion **pairs, int count)
{
	static Statement read = {
		"SELECT id, queue, owner FROM coord_internal.task WHERE id = ANY ($1) AND queue <> ''"
		" ORDER BY id",
		1, {INT8ARRAYOID}
	};
	MemoryContext context = CurrentMemoryContext;
	int64	   *ids = palloc(sizeof(int64) * count);
	char	  **queues;
	Oid		   *owners;
	QueryScope	scope;
	Datum		value;
	int			rows;
	int			kept = 0;
	int			row = 0;
	bool		allowed = false;

	for (int i = 0; i < count; i++)
		ids[i] = pairs[i]->id;
	query_begin(&scope);
	value = query_int8_array(ids, count);
	rows = (int) query_run(&read, &value, NULL, 0);
	queues = MemoryContextAlloc(context, sizeof(char *) * Max(rows, 1));
	owners = MemoryContextAlloc(context, sizeof(Oid) * Max(rows, 1));
	for (int i = 0; i < rows; i++)
	{
		bool		isnull;

		ids[i] = query_int8(i, 1);
		queues[i] = query_text(context, i, 2);
		owners[i] = DatumGetObjectId(query_value(i, 3, &isnull));
	}
	query_end(&scope);
	for (int i = 0; i < count && row < rows; i++)
	{
		if (pairs[i]->id != ids[row])
			continue;
		if (row == 0 || owners[row] != owners[row - 1] ||
			strcmp(queues[row], queues[row - 1]) != 0)
			allowed = queue_may_act(queues[row], owners[row]);
		if (allowed)
			pairs[kept++] = pairs[i];

		/* The same id may come again, with another token. */
		if (i + 1 == count || pairs[i + 1]->id != ids[row])
			row++;
	}
	return kept;
}

/*
 * Complete those of the pairs, which are in order of ids, whose tokens are good;
 * returns their ids.
 */
static int
complete_many(const Completion **pairs, int count, int64 *accepted)
{
	static Statement update = {
		"UPDATE coord_internal.task t SET status = 'completed', result = u.result,"
		" finished_at = $4, lease_expires_at = NULL, error = NULL, sqlstate = NULL,"
		" error_context = NULL FROM unnest($1, $2, $3) AS u(id, token, result)"
		" WHERE t.id = u.id AND t.token = u.token AND t.queue <> ''"
		" AND (t.status = 'running' OR t.status = 'ready' AND t.lease_expires_at IS NOT NULL)"
		" RETURNING " LEASE_COLUMNS,
		4, {INT8ARRAYOID, INT8ARRAYOID, JSONBARRAYOID, TIMESTAMPTZOID}
	};
	MemoryContext context = CurrentMemoryContext;
	Datum	   *columns[3];
	bool	   *nulls = palloc(sizeof(bool) * count);
	QueryScope	scope;
	Datum		values[4];
	Lease	   *leases;
	int64	   *definitions;
	int			done;

	for (int i = 0; i < 3; i++)
		columns[i] = palloc(sizeof(Datum) * count);
	for (int i = 0; i < count; i++)
	{
		columns[0][i] = Int64GetDatum(pairs[i]->id);
		columns[1][i] = Int64GetDatum(pairs[i]->token);
		columns[2][i] = PointerGetDatum(pairs[i]->result);
		nulls[i] = pairs[i]->result == NULL;
	}
	values[0] = lease_array(columns[0], NULL, count, INT8OID);
	values[1] = lease_array(columns[1], NULL, count, INT8OID);
	values[2] = lease_array(columns[2], nulls, count, JSONBOID);
	values[3] = TimestampTzGetDatum(clock_now());
	query_begin(&scope);
	done = (int) query_run(&update, values, NULL, 0);
	leases = lease_read(context, done, &definitions);
	query_end(&scope);
	for (int i = 0; i < done; i++)
	{
		check_access(leases[i].id, leases[i].queue, leases[i].owner);
		queue_freed_at_commit(leases[i].queue);
		accepted[i] = leases[i].id;
	}
	lease_get_definitions(leases, definitions, done);
	for (int i = 0; i < done; i++)
		lease_let_item_go(&leases[i]);
	lease_tell(leases, done);
	return done;
}

/* coord.task_complete_many(task_ids, tokens, results): the ids accepted. */
Datum
coord_task_complete_many(PG_FUNCTION_ARGS)
{
	int			count;
	Completion *completions;
	const Completion **good;
	int64	   *accepted;
	Datum	   *elements;
	int			ngood = 0;
	int			naccepted = 0;

	installation_check();
	check_not_in_recovery("coord.task_complete_many()");
	completions = get_completions(fcinfo, &count);
	good = palloc(sizeof(Completion *) * Max(count, 1));
	accepted = palloc(sizeof(int64) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		if (i > 0 && compare_completions(&completions[i - 1], &completions[i]) == 0)
			continue;
		if (saga_result_failure(completions[i].result) == NULL)
			good[ngood++] = &completions[i];
		else if (task_fail_by_result(completions[i].id, completions[i].token,
									 saga_result_failure(completions[i].result)))
			accepted[naccepted++] = completions[i].id;
	}
	if (ngood > 0 && !access_sees_all(GetUserId()))
		ngood = keep_allowed(good, ngood);
	if (ngood > 0)
		naccepted += complete_many(good, ngood, &accepted[naccepted]);
	qsort(accepted, naccepted, sizeof(int64), compare_int64);
	elements = palloc(sizeof(Datum) * Max(naccepted, 1));
	for (int i = 0; i < naccepted; i++)
		elements[i] = Int64GetDatum(accepted[i]);
	return lease_array(elements, NULL, naccepted, INT8OID);
}

/* ----------------------------------------------------------------
 *		Extending, giving back, taking away
 * ----------------------------------------------------------------
 */

/* When the lease now ends; 0 when the token is not good. */
static TimestampTz
extend(int64 id, int64 token, int64 lease_us)
{
	static Statement update = {
		"UPDATE coord_internal.task t SET status = 'running',"
		" lease_expires_at = greatest(t.lease_expires_at,"
		"  coord_internal.lease_end(t.definition, t.ordinal, t.claimed_at, $3))"
		" WHERE t.id = $1 AND " HELD
		" RETURNING" LEASE_COLUMNS,
		3, {INT8OID, INT8OID, TIMESTAMPTZOID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		values[3];
	Lease	   *lease;
	int64	   *definitions;
	uint64		rows;

	query_begin(&scope);
	values[0] = Int64GetDatum(id);
	values[1] = Int64GetDatum(token);
	values[2] = TimestampTzGetDatum(clock_now() + lease_us);
	rows = query_run(&update, values, NULL, 0);
	lease = lease_read(context, rows, &definitions);
	query_end(&scope);
	if (rows == 0)
		return 0;
	check_access(id, lease->queue, lease->owner);
	queue_due_at_commit(lease->queue, lease->expires_at);
	doorbell_task_due_at_commit(lease->expires_at);
	return lease->expires_at;
}

/* coord.task_extend(task_id, token, lease): when it now ends */
Datum
coord_task_extend(PG_FUNCTION_ARGS)
{
	int64		id = required_int8(fcinfo, 0, "task_id");
	int64		token = required_int8(fcinfo, 1, "token");
	int64		lease_us = DEFAULT_LEASE_US;
	TimestampTz result;

	if (!PG_ARGISNULL(2))
	{
		Interval   *interval = PG_GETARG_INTERVAL_P(2);

		lease_us = clock_interval_us(interval);
		if (lease_us <= 0 || !coord_interval_is_finite(interval))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("lease must be greater than 0 and finite")));
	}
	installation_check();
	check_not_in_recovery("coord.task_extend()");
	while ((result = extend(id, token, lease_us)) == 0)
	{
		if (lease_refusal(id, token) == REFUSAL_ENDED)
			refuse(id, REFUSAL_LOST);
	}
	PG_RETURN_TIMESTAMPTZ(result);
}

/* Put a locked task back into its queue, as if this attempt had not been made. */
static void
put_back(const Lease *lease, bool new_token)
{
	static Statement update = {
		"UPDATE coord_internal.task t SET status = 'ready', attempt = t.attempt - 1,"
		" lease_expires_at = NULL, worker = NULL,"
		" token = CASE WHEN $2 THEN greatest(t.token + 1, $3) ELSE t.token END"
		" WHERE t.id = $1",
		3, {INT8OID, BOOLOID, INT8OID}
	};
	QueryScope	scope;
	Datum		values[3];

	query_begin(&scope);
	values[0] = Int64GetDatum(lease->id);
	values[1] = BoolGetDatum(new_token);
	values[2] = Int64GetDatum(clock_now());
	query_run(&update, values, NULL, 0);
	query_end(&scope);
	queue_ready_at_commit(lease->queue, lease->rank, lease->position);
	queue_freed_at_commit(lease->queue);
	lease_tell(lease, 1);
}

/* coord.task_release(task_id, token) */
Datum
coord_task_release(PG_FUNCTION_ARGS)
{
	int64		id = required_int8(fcinfo, 0, "task_id");
	int64		token = required_int8(fcinfo, 1, "token");

	installation_check();
	check_not_in_recovery("coord.task_release()");
	do
	{
		Lease	   *lease = lease_lock(id, token);

		if (lease != NULL)
		{
			put_back(lease, false);
			PG_RETURN_BOOL(true);
		}
	} while (lease_refusal(id, token) == REFUSAL_NONE);
	PG_RETURN_BOOL(false);
}

/*
 * May the current user take the task away?  Members of its owner and coord_admin
 * may; 42704 when he may not even see it, or there is none.
 */
static void
check_revoke(int64 id)
{
	static Statement read = {
		"SELECT owner, queue FROM coord_internal.task WHERE id = $1 AND queue <> ''",
		1, {INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);
	char	   *queue = NULL;
	Oid			owner = InvalidOid;
	bool		isnull;

	query_begin(&scope);
	if (query_run_latest(&read, &value, NULL, 1) > 0)
	{
		owner = DatumGetObjectId(query_value(0, 1, &isnull));
		queue = query_text(context, 0, 2);
	}
	query_end(&scope);
	if (queue == NULL)
	{
		(void) judge(id, 0);	/* it is ended, or unknown */
		return;
	}
	check_access(id, queue, owner);
	if (!access_may_act(owner, "queue", NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to revoke task " INT64_FORMAT, id),
				 errdetail("It is for members of its owner and of coord_admin; coord.grant_use() allows to claim and to end it.")));
}

/* The audit row of task_revoke(). */
static void
log_revoke(const Lease *lease, char *reason)
{
	Turn		turn;
	LogRow		row = {0};

	row.saga = lease->saga_id;
	row.name = lease->def->name;
	row.owner = lease->owner;
	row.at = clock_now();
	row.event = "revoked";
	row.step = saga_task_name(lease->def, lease->ordinal, lease->item);
	row.phase = lease->phase;
	row.attempt = lease->attempt;
	row.role = GetUserId();
	row.reason = reason;
	if (lease->worker != NULL)
		row.context = psprintf("worker \"%s\"", lease->worker);
	saga_ensure_partitions(false);
	saga_turn_begin(&turn, false);
	saga_log(&turn, &row);
	saga_flush(&turn, NULL, 0);
}

/* coord.task_revoke(task_id, reason) */
Datum
coord_task_revoke(PG_FUNCTION_ARGS)
{
	static Statement lock = {
		"SELECT" LEASE_COLUMNS " FROM coord_internal.task t"
		" WHERE t.id = $1 AND t.queue <> '' AND t.status = 'running' FOR UPDATE",
		1, {INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	int64		id = required_int8(fcinfo, 0, "task_id");
	char	   *reason = check_optional_text(fcinfo, 1);
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);
	Lease	   *lease;
	int64	   *definitions;
	uint64		rows;

	installation_check();
	check_not_in_recovery("coord.task_revoke()");
	check_revoke(id);
	query_begin(&scope);
	rows = query_run(&lock, &value, NULL, 0);
	lease = lease_read(context, rows, &definitions);
	query_end(&scope);
	if (rows == 0)
		PG_RETURN_BOOL(false);
	lease_get_definitions(lease, definitions, 1);
	put_back(lease, true);
	log_revoke(lease, reason);
	PG_RETURN_BOOL(true);
}
