/*-------------------------------------------------------------------------
 *
 * saga_handout.c
 *	  Beginning steps, and compensations, that are not a call in the turn's own
 *	  transaction.
 *
 * A single task is only noted, and written with the turn's sagas in one statement
 * for all of them; the items of a step are written at once, since they come from
 * one statement on the array of items.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonpath.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/errors.h"
#include "base/json.h"
#include "base/json_path.h"
#include "base/user_call.h"
#include "saga/saga_events.h"

/* What a step that is to be handed out needs to know first. */
typedef struct Preparation
{
	bool		wanted;			/* its condition holds */
	Jsonb	   *items;			/* of a for_each */
	int64		child;			/* the saga that was started */
} Preparation;

/* More sagas within sagas than this is a mistake. */
#define MAX_DEPTH 32

static void
check_depth(const Saga *saga)
{
	static Statement read = {
		"WITH RECURSIVE up AS (SELECT parent_id, 1 AS n FROM coord_internal.saga WHERE id = $1"
		" UNION ALL SELECT s.parent_id, n + 1 FROM up JOIN coord_internal.saga s"
		" ON s.id = up.parent_id WHERE n < 100) SELECT max(n) FROM up",
		1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(saga->id);
	int			depth;

	query_begin(&scope);
	query_run(&read, &value, NULL, 0);
	depth = query_int4(0, 1);
	query_end(&scope);
	if (depth > MAX_DEPTH)
		ereport(ERROR,
				(errcode(ERRCODE_STATEMENT_TOO_COMPLEX),
				 errmsg("sagas are steps of each other more than %d deep", MAX_DEPTH),
				 errhint("Does a saga start itself?")));
}

/* Start the saga that a step is, as the owner of this one. */
static int64
start_child(Turn *turn, Saga *saga, const StepDef *step, Jsonb *document)
{
	StartOptions options = {0};
	JsonWriter	writer = {0};
	bool		existing;

	options.name = step->saga;
	options.input = json_path_query(step->input, document, true);
	if (options.input == NULL)
	{
		json_begin_object(&writer);
		json_end_object(&writer);
		options.input = json_finish(&writer);
	}
	if (saga->has_correlation)
		options.correlation_id = DatumGetUUIDP(DirectFunctionCall1(uuid_in,
																   CStringGetDatum(saga->correlation_id)));
	options.priority = saga->priority;
	options.on_existing = "error";
	options.parent = saga->id;
	if (saga->parent != 0)
		check_depth(saga);
	return saga_start(&options, &existing);
}

/* What can raise an error; the caller is ready for it. */
static void
prepare(Turn *turn, Saga *saga, int ordinal, Preparation *preparation)
{
	const StepDef *step = &saga->def->steps[ordinal];
	Jsonb	   *document = saga_document(saga, ordinal, PHASE_ACTION, NULL);

	preparation->wanted = step->condition == NULL ||
		json_path_holds(step->condition, document);
	if (!preparation->wanted)
		return;
	if (step->for_each != NULL)
		preparation->items = json_path_query(step->for_each, document, false);
	if (step->kind == STEP_SAGA)
	{
		UserScope	user;

		identity_enter_user(&user, saga->owner, saga->def->search_path);
		preparation->child = start_child(turn, saga, step, document);
		identity_leave_user(&user);
	}
}

/*
 * The same in a subtransaction, since a path may not fit the document and a saga
 * may not be startable.  Returns the error, NULL: none.
 */
static ErrorData *
prepare_guarded(Turn *turn, Saga *saga, int ordinal, Preparation *preparation)
{
	const StepDef *step = &saga->def->steps[ordinal];
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	preparation->wanted = true;
	if (step->condition == NULL && step->for_each == NULL && step->kind != STEP_SAGA)
		return NULL;
	saga_leave_user(turn);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	turn->subtransactions++;
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		prepare(turn, saga, ordinal, preparation);
		PopActiveSnapshot();
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (user_call_is_cancel(error))
			ReThrowError(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

/* ----------------------------------------------------------------
 *		Handing out
 * ----------------------------------------------------------------
 */

/* A task to be written when the turn's sagas are. */
typedef struct HandOut
{
	const Saga *saga;
	int			ordinal;
	Phase		phase;
	bool		null_compensation;
	TimestampTz available_at;
} HandOut;

static const char *
queue_name(const StepDef *step)
{
	return step->kind == STEP_QUEUE ? step->queue : "";
}

void
saga_hand_out_later(Turn *turn, const Saga *saga, int ordinal, Phase phase,
			   bool null_compensation, TimestampTz available_at)
{
	MemoryContext old = MemoryContextSwitchTo(turn->context);
	HandOut    *handout = palloc(sizeof(HandOut));

	handout->saga = saga;
	handout->ordinal = ordinal;
	handout->phase = phase;
	handout->null_compensation = null_compensation;
	handout->available_at = available_at;
	turn->handouts = lappend(turn->handouts, handout);
	MemoryContextSwitchTo(old);
}

/*
 * Tasks with these ids, the first at "position", are ready now, or at
 * "available_at" when that is later.
 */
static void
announce(int priority, Oid owner, const char *queue, int64 position, const int64 *ids,
		 int count, TimestampTz available_at)
{
	if (*queue == '\0')
	{
		for (int i = 0; i < count; i++)
			doorbell_task_at_commit(ids[i], priority, owner, available_at);
	}
	else if (available_at > clock_now())
	{
		queue_due_at_commit(queue, available_at);
		doorbell_task_due_at_commit(available_at);
	}
	else
		queue_ready_at_commit(queue, -(int64) priority, position);
}

/*
 * Write the tasks of this turn.  One that was there before, when a step is
 * tried anew, keeps its id and its token.
 */
static void
write_handouts(Turn *turn)
{
	static Statement insert = {
		"INSERT INTO coord_internal.task AS t (saga_id, ordinal, phase, definition, owner,"
		" queue, rank, position, null_compensation, available_at, created_at)"
		" SELECT u.*, $11 FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) AS u"
		" ON CONFLICT (saga_id, ordinal, phase, item) DO UPDATE SET status = 'ready',"
		" attempt = 0, available_at = excluded.available_at, lease_expires_at = NULL,"
		" worker = NULL, result = NULL, error = NULL, sqlstate = NULL, error_detail = NULL,"
		" error_context = NULL, finished_at = NULL RETURNING id, position",
		11, {INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, INT8ARRAYOID, OIDARRAYOID, TEXTARRAYOID,
			INT8ARRAYOID, INT8ARRAYOID, BOOLARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZOID}
	};
	static const Oid types[] = {
		INT8OID, INT4OID, TEXTOID, INT8OID, OIDOID, TEXTOID, INT8OID, INT8OID, BOOLOID,
		TIMESTAMPTZOID
	};
	int			count = list_length(turn->handouts);
	Column		columns[lengthof(types)];
	Datum		values[lengthof(types) + 1];
	QueryScope	scope;
	ListCell   *cell;
	uint64		rows;

	if (count == 0)
		return;
	column_init(columns, lengthof(types), types, count);
	foreach(cell, turn->handouts)
	{
		HandOut    *handout = lfirst(cell);
		const Saga *saga = handout->saga;
		const char *queue = queue_name(&saga->def->steps[handout->ordinal]);
		int			i = foreach_current_index(cell);

		columns[0].values[i] = Int64GetDatum(saga->id);
		columns[1].values[i] = Int32GetDatum(handout->ordinal);
		column_text(&columns[2], i, saga_phase_name(handout->phase));
		columns[3].values[i] = Int64GetDatum(saga->def->id);
		columns[4].values[i] = ObjectIdGetDatum(saga->owner);
		column_text(&columns[5], i, queue);
		columns[6].values[i] = Int64GetDatum(-(int64) saga->priority);
		columns[7].values[i] = Int64GetDatum(*queue ? queue_places(queue, -(int64) saga->priority, saga->def->id, 1) : 0);
		columns[8].values[i] = BoolGetDatum(handout->null_compensation);
		column_time(&columns[9], i, handout->available_at);
	}
	column_array(values, columns, lengthof(types), count);
	values[lengthof(types)] = TimestampTzGetDatum(clock_now());
	query_begin(&scope);
	rows = query_run(&insert, values, NULL, 0);
	if (rows != count)
		elog(ERROR, "tasks could not be written");
	for (uint64 i = 0; i < rows; i++)
	{
		HandOut    *handout = list_nth(turn->handouts, (int) i);
		int64		id = query_int8(i, 1);

		announce(handout->saga->priority, handout->saga->owner,
				 queue_name(&handout->saga->def->steps[handout->ordinal]),
				 query_int8(i, 2), &id, 1, handout->available_at);
	}
	query_end(&scope);
}

/* Ids in column 1 of the last result. */
static int64 *
result_ids(MemoryContext context, uint64 rows)
{
	int64	   *ids = MemoryContextAlloc(context, sizeof(int64) * Max(rows, 1));

	for (uint64 i = 0; i < rows; i++)
		ids[i] = query_int8(i, 1);
	return ids;
}

/* How many of a step's items there may be in hand at a time. */
static int
parallel_limit(const StepDef *step)
{
	return step->max_parallel > 0 ? step->max_parallel : PG_INT32_MAX;
}

/* Begin with the items of a step: a task for each. */
static void
hand_out_items(Turn *turn, Saga *saga, int ordinal, Jsonb *items)
{
	static Statement insert = {
		"INSERT INTO coord_internal.task (saga_id, ordinal, item, phase, definition, owner,"
		" queue, rank, position, status, available_at, item_value, created_at)"
		" SELECT $1, $2, n - 1, 'action', $3, $4, $5, $6, $7 + n,"
		" CASE WHEN n <= $8 THEN 'ready' ELSE 'held' END, $9, v, $9"
		" FROM jsonb_array_elements($10) WITH ORDINALITY AS e(v, n)"
		" RETURNING id, status",
		10, {INT8OID, INT4OID, INT8OID, OIDOID, TEXTOID, INT8OID, INT8OID, INT4OID,
		TIMESTAMPTZOID, JSONBOID}
	};
	const StepDef *step = &saga->def->steps[ordinal];
	const char *queue = queue_name(step);
	int			count = JB_ROOT_COUNT(items);
	int			limit = Min(parallel_limit(step), count);
	TimestampTz now = clock_now();
	int64		position = *queue ? queue_places(queue, -(int64) saga->priority, saga->def->id, count) : 1;
	QueryScope	scope;
	Datum		values[10];
	uint64		rows;

	query_begin(&scope);
	values[0] = Int64GetDatum(saga->id);
	values[1] = Int32GetDatum(ordinal);
	values[2] = Int64GetDatum(saga->def->id);
	values[3] = ObjectIdGetDatum(saga->owner);
	values[4] = CStringGetTextDatum(queue);
	values[5] = Int64GetDatum(-(int64) saga->priority);
	values[6] = Int64GetDatum(position - 1);
	values[7] = Int32GetDatum(limit);
	values[8] = TimestampTzGetDatum(now);
	values[9] = JsonbPGetDatum(items);
	rows = query_run(&insert, values, NULL, 0);
	announce(saga->priority, saga->owner, queue, position, result_ids(turn->context, rows), Min(rows, limit), now);
	query_end(&scope);
	saga->steps[ordinal].items = count;
}

/*
 * Begin again with the items of one phase of a step that failed or could not be
 * run.  Returns whether there were any.
 */
static bool
hand_out_items_again(Turn *turn, Saga *saga, int ordinal, Phase phase)
{
	static Statement update = {
		"UPDATE coord_internal.task t SET status = CASE WHEN u.n <= $4 - (SELECT count(*)"
		"  FROM coord_internal.task WHERE saga_id = $1 AND ordinal = $2 AND phase = $3"
		"  AND status IN ('ready', 'running')) THEN 'ready' ELSE 'held' END,"
		" attempt = 0, available_at = $5, lease_expires_at = NULL, worker = NULL,"
		" error = NULL, sqlstate = NULL, error_detail = NULL, error_context = NULL,"
		" finished_at = NULL"
		" FROM (SELECT id, row_number() OVER (ORDER BY item) AS n FROM coord_internal.task"
		"  WHERE saga_id = $1 AND ordinal = $2 AND phase = $3"
		"  AND status IN ('failed', 'stopped', 'cancelled', 'held')) AS u"
		" WHERE t.id = u.id RETURNING t.id, t.status, t.position",
		5, {INT8OID, INT4OID, TEXTOID, INT4OID, TIMESTAMPTZOID}
	};
	const StepDef *step = &saga->def->steps[ordinal];
	TimestampTz now = clock_now();
	QueryScope	scope;
	Datum		values[5];
	uint64		rows;

	query_begin(&scope);
	values[0] = Int64GetDatum(saga->id);
	values[1] = Int32GetDatum(ordinal);
	values[2] = CStringGetTextDatum(saga_phase_name(phase));
	values[3] = Int32GetDatum(parallel_limit(step));
	values[4] = TimestampTzGetDatum(now);
	rows = query_run(&update, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		int64		id = query_int8(i, 1);

		if (strcmp(query_text(turn->context, i, 2), "ready") == 0)
			announce(saga->priority, saga->owner, queue_name(step), query_int8(i, 3), &id, 1, now);
	}
	query_end(&scope);
	return rows > 0;
}

/*
 * Tasks of a step that wait for their next attempt may be begun now.  Returns
 * whether there were any.
 */
bool
saga_hurry_tasks(const Saga *saga, int ordinal, Phase phase)
{
	static Statement update = {
		"UPDATE coord_internal.task SET available_at = $4 WHERE saga_id = $1 AND ordinal = $2"
		" AND phase = $3 AND status = 'ready' AND available_at > $4 RETURNING id, position",
		4, {INT8OID, INT4OID, TEXTOID, TIMESTAMPTZOID}
	};
	const StepDef *step = &saga->def->steps[ordinal];
	TimestampTz now = clock_now();
	QueryScope	scope;
	Datum		values[4];
	uint64		rows;

	if (!step_is_tasks(step))
		return false;
	query_begin(&scope);
	values[0] = Int64GetDatum(saga->id);
	values[1] = Int32GetDatum(ordinal);
	values[2] = CStringGetTextDatum(saga_phase_name(phase));
	values[3] = TimestampTzGetDatum(now);
	rows = query_run(&update, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		int64		id = query_int8(i, 1);

		announce(saga->priority, saga->owner, queue_name(step), query_int8(i, 2), &id, 1, now);
	}
	query_end(&scope);
	return rows > 0;
}

/* The compensations of a step's items; returns how many there are. */
static int
hand_out_undoing_items(Turn *turn, Saga *saga, int ordinal)
{
	static Statement insert = {
		"INSERT INTO coord_internal.task (saga_id, ordinal, item, phase, definition, owner,"
		" queue, rank, position, status, null_compensation, available_at, item_value, given,"
		" created_at)"
		" SELECT saga_id, ordinal, item, 'compensation', definition, owner, queue, rank, $3 + n,"
		" CASE WHEN n <= $4 THEN 'ready' ELSE 'held' END, never_claimed, $5, item_value,"
		" result, $5"
		" FROM (SELECT *, row_number() OVER (ORDER BY item) AS n,"
		"  status <> 'completed' AND claims = 0 AS never_claimed FROM coord_internal.task"
		"  WHERE saga_id = $1 AND ordinal = $2 AND phase = 'action'"
		"  AND (status = 'completed' OR (queue <> '' AND status IN ('failed', 'cancelled')))) AS a"
		" RETURNING id, status",
		5, {INT8OID, INT4OID, INT8OID, INT4OID, TIMESTAMPTZOID}
	};
	const StepDef *step = &saga->def->steps[ordinal];
	const char *queue = queue_name(step);
	int64		position;
	TimestampTz now = clock_now();
	QueryScope	scope;
	Datum		values[5];
	uint64		rows;

	if (hand_out_items_again(turn, saga, ordinal, PHASE_COMPENSATION))
		return 1;
	position = *queue ? queue_places(queue, -(int64) saga->priority, saga->def->id, saga->steps[ordinal].items) : 1;
	query_begin(&scope);
	values[0] = Int64GetDatum(saga->id);
	values[1] = Int32GetDatum(ordinal);
	values[2] = Int64GetDatum(position - 1);
	values[3] = Int32GetDatum(parallel_limit(step));
	values[4] = TimestampTzGetDatum(now);
	rows = query_run(&insert, values, NULL, 0);
	announce(saga->priority, saga->owner, queue, position, result_ids(turn->context, rows),
			 Min(rows, parallel_limit(step)), now);
	query_end(&scope);
	return (int) rows;
}

/*
 * "finished" items of a step, the last of them "item", have come to their end:
 * as many that were held back because of max_parallel may begin.  In the
 * transaction that ends them, so that the saga itself is not needed for it.
 *
 * Items are let go in their order, so those held back come after the ones in
 * hand; SKIP LOCKED may let a transaction pass over one that another is about to
 * let go and, if that rolls back, leave a gap, which the next one to end before
 * the gap fills, and in the end the saga's turn (see take_in_items()).
 */
void
saga_let_items_go(int64 saga, const SagaDef *def, int priority, Oid owner, int ordinal,
				  Phase phase, int item, int finished)
{
	static Statement update = {
		"UPDATE coord_internal.task SET status = 'ready', available_at = $6"
		" WHERE id IN (SELECT id FROM coord_internal.task WHERE saga_id = $1 AND ordinal = $2"
		"  AND phase = $3 AND item > $4 AND status = 'held'"
		"  ORDER BY item LIMIT $5 FOR UPDATE SKIP LOCKED) RETURNING id, position",
		6, {INT8OID, INT4OID, TEXTOID, INT4OID, INT4OID, TIMESTAMPTZOID}
	};
	const StepDef *step = &def->steps[ordinal];
	TimestampTz now = clock_now();
	QueryScope	scope;
	Datum		values[6];
	uint64		rows;

	if (step->max_parallel == 0 || finished == 0)
		return;
	query_begin(&scope);
	values[0] = Int64GetDatum(saga);
	values[1] = Int32GetDatum(ordinal);
	values[2] = CStringGetTextDatum(saga_phase_name(phase));
	values[3] = Int32GetDatum(item);
	values[4] = Int32GetDatum(finished);
	values[5] = TimestampTzGetDatum(now);
	rows = query_run(&update, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		int64		id = query_int8(i, 1);

		announce(priority, owner, queue_name(step), query_int8(i, 2), &id, 1, now);
	}
	query_end(&scope);
}

/* ----------------------------------------------------------------
 *		Beginning to wait
 * ----------------------------------------------------------------
 */

void
saga_begin_waiting(Saga *saga, int ordinal)
{
	saga->steps[ordinal].waiting = true;
	saga->steps[ordinal].dirty = true;
	saga->dirty = true;
	saga->nwaiting++;
	saga->nprobes += is_probe(&saga->def->steps[ordinal]);
}

void
saga_end_waiting(Saga *saga, int ordinal)
{
	saga->steps[ordinal].waiting = false;
	saga->steps[ordinal].next_attempt_at = 0;
	saga->steps[ordinal].dirty = true;
	saga->dirty = true;
	saga->nwaiting--;
	saga->nprobes -= is_probe(&saga->def->steps[ordinal]);
}

/* An early signal, taken; NULL: none has come. */
Signal *
saga_take_signal(Turn *turn, Saga *saga, const char *name)
{
	ListCell   *cell;

	foreach(cell, saga->events->signals)
	{
		Signal	   *signal = lfirst(cell);

		if (!signal->consumed && strcmp(signal->name, name) == 0)
		{
			MemoryContext old = MemoryContextSwitchTo(turn->context);
			int64	   *id = palloc(sizeof(int64));

			*id = signal->id;
			turn->consumed = lappend(turn->consumed, id);
			signal->consumed = true;
			MemoryContextSwitchTo(old);
			return signal;
		}
	}
	return NULL;
}

/* The step's signal has come: it succeeds, or fails when the payload says so. */
void
saga_signal_came(Turn *turn, Saga *saga, int ordinal, const Signal *signal)
{
	char	   *reason = saga_result_failure(signal->payload);

	if (reason == NULL)
		saga_step_succeeded(turn, saga, ordinal, signal->payload);
	else
		saga_step_failed(turn, saga, ordinal, reason, "P0001", NULL, NULL);
}

/*
 * Begin a ready step that is not called in the turn itself.  Afterwards it waits,
 * or is finished already: skipped, failed, or there was nothing to wait for.
 */
void
saga_hand_out(Turn *turn, Saga *saga, int ordinal)
{
	const StepDef *step = &saga->def->steps[ordinal];
	StepState  *state = &saga->steps[ordinal];
	Preparation preparation = {0};
	TimestampTz now = clock_now();
	ErrorData  *error = NULL;
	Signal	   *signal;
	bool		again = state->items > 0;

	/* A single local step looks at its condition when it is called. */
	state->attempt++;
	if (!again && (step->kind != STEP_LOCAL || step->for_each != NULL))
		error = prepare_guarded(turn, saga, ordinal, &preparation);
	else
		preparation.wanted = true;

	if (saga->started_at == 0)
		saga->started_at = now;
	if (state->started_at == 0)
		state->started_at = now;
	state->next_attempt_at = 0;
	state->phase = PHASE_ACTION;
	saga_set_step(saga, ordinal, STEP_EVENT_START);
	if (error != NULL)
	{
		saga_attempt_failed(turn, saga, ordinal, error);
		return;
	}
	if (!preparation.wanted)
	{
		saga_step_not_wanted(saga, ordinal);
		return;
	}

	switch (step->kind)
	{
		case STEP_LOCAL:
		case STEP_QUEUE:
			if (step->for_each == NULL)
				saga_hand_out_later(turn, saga, ordinal, PHASE_ACTION, false, now);
			else if (again)
				(void) hand_out_items_again(turn, saga, ordinal, PHASE_ACTION);
			else if (JB_ROOT_COUNT(preparation.items) == 0)
			{
				saga_step_succeeded(turn, saga, ordinal, preparation.items);
				return;
			}
			else
				hand_out_items(turn, saga, ordinal, preparation.items);
			break;
		case STEP_SIGNAL:
			signal = saga_take_signal(turn, saga, step->signal);
			if (signal != NULL)
			{
				saga_signal_came(turn, saga, ordinal, signal);
				return;
			}
			if (step->wait_us > 0)
				state->next_attempt_at = now + step->wait_us;
			break;
		case STEP_SLEEP:
			state->next_attempt_at = now + step->wait_us;
			break;
		case STEP_SAGA:
			state->child = preparation.child;
			break;
	}
	saga_begin_waiting(saga, ordinal);
}

/* Did anybody ever claim the task of this step's action? */
static bool
was_claimed(const Saga *saga, int ordinal)
{
	static Statement read = {
		"SELECT claims > 0 FROM coord_internal.task WHERE saga_id = $1 AND ordinal = $2"
		" AND phase = 'action' AND item = -1",
		2, {INT8OID, INT4OID}
	};
	QueryScope	scope;
	Datum		values[2];
	bool		claimed = true;
	bool		isnull;

	query_begin(&scope);
	values[0] = Int64GetDatum(saga->id);
	values[1] = Int32GetDatum(ordinal);
	if (query_run(&read, values, NULL, 0) > 0)
		claimed = DatumGetBool(query_value(0, 1, &isnull));
	query_end(&scope);
	return claimed;
}

/* Has the saga that a step was passed its own pivot? */
static bool
child_is_final(int64 child)
{
	static Statement read = {
		"SELECT EXISTS (SELECT FROM coord_internal.saga s"
		" JOIN coord_internal.saga_version v ON v.id = s.definition"
		" JOIN coord_internal.saga_step t ON t.saga_id = s.id"
		" WHERE s.id = $1 AND t.status = 'completed'"
		" AND (v.definition #> ARRAY['steps', t.ordinal::text, 'pivot']) = 'true')",
		1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(child);
	bool		result;
	bool		isnull;

	query_begin(&scope);
	query_run(&read, &value, NULL, 0);
	result = DatumGetBool(query_value(0, 1, &isnull));
	query_end(&scope);
	return result;
}

/*
 * Begin to undo a step whose compensation is not a call in the turn itself; it
 * is "compensating".  Afterwards it waits, or is finished already.
 */
void
saga_hand_out_undoing(Turn *turn, Saga *saga, int ordinal)
{
	const StepDef *step = &saga->def->steps[ordinal];
	StepState  *state = &saga->steps[ordinal];

	if (state->phase != PHASE_COMPENSATION)
	{
		state->phase = PHASE_COMPENSATION;
		state->attempt = 0;
		state->error = state->sqlstate = state->detail = state->context = NULL;
		state->dirty = true;
	}
	state->next_attempt_at = 0;
	if (step->kind == STEP_SAGA)
	{
		state->attempt++;
		if (child_is_final(state->child))
		{
			saga_step_failed(turn, saga, ordinal,
							 psprintf("saga " INT64_FORMAT " cannot be undone: its pivot is completed",
									  state->child), "ZC006", NULL, NULL);
			return;
		}
		saga_tell(&state->child, &saga->priority, &saga->owner, 1);
	}
	else if (step->for_each != NULL)
	{
		if (hand_out_undoing_items(turn, saga, ordinal) == 0)
		{
			state->finished_at = clock_now();
			saga_set_step(saga, ordinal, STEP_EVENT_UNDONE);
			return;
		}
	}
	else
		saga_hand_out_later(turn, saga, ordinal, PHASE_COMPENSATION,
					   !was_claimed(saga, ordinal), clock_now());
	saga_begin_waiting(saga, ordinal);
}


/* ----------------------------------------------------------------
 *		Writing
 * ----------------------------------------------------------------
 */

static Datum
id_list(List *list)
{
	int64	   *ids = palloc(sizeof(int64) * list_length(list));
	ListCell   *cell;

	foreach(cell, list)
		ids[foreach_current_index(cell)] = *(int64 *) lfirst(cell);
	return query_int8_array(ids, list_length(list));
}

/* Write what the turn has noted; part of saga_flush(). */
void
saga_write_waits(Turn *turn)
{
	static Statement forget = {
		"DELETE FROM coord_internal.task WHERE id = ANY ($1)", 1, {INT8ARRAYOID}
	};
	static Statement consume = {
		"UPDATE coord_internal.saga_signal SET consumed = true WHERE saga_id IN"
		" (SELECT saga_id FROM coord_internal.saga_signal WHERE id = ANY ($1)) AND id = ANY ($1)",
		1, {INT8ARRAYOID}
	};
	QueryScope	scope;
	Datum		value;

	if (turn->done_tasks != NIL || turn->consumed != NIL)
	{
		query_begin(&scope);
		if (turn->done_tasks != NIL)
		{
			value = id_list(turn->done_tasks);
			query_run(&forget, &value, NULL, 0);
		}
		if (turn->consumed != NIL)
		{
			value = id_list(turn->consumed);
			query_run(&consume, &value, NULL, 0);
		}
		query_end(&scope);
	}
	write_handouts(turn);
	turn->done_tasks = turn->consumed = turn->handouts = NIL;
}

