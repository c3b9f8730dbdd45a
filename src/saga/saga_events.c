/*-------------------------------------------------------------------------
 *
 * saga_events.c
 *	  What happens while a saga waits, and how it gets to know.
 *
 * A task of a queue, a branch that runs beside others, the items of a for_each,
 * a signal, a pause, another saga: each is begun in one turn of its saga, is
 * "waiting" while nobody holds the saga, and is ended in a later turn.  What
 * happens meanwhile is written elsewhere (coord_internal.task, saga_signal, the
 * other saga's row), never in the row of the saga, so that any number of workers
 * can finish items of one saga at a time.  Whoever writes it leaves a row in
 * coord_internal.saga_inbox in the same transaction and rings at its commit.
 *
 * Why no event is overlooked:
 *
 * 1. A turn first deletes the rows of the inbox that it sees and then, with a
 *	  later snapshot, reads tasks, signals and sagas.  So an event whose row it
 *	  deleted it has read.
 * 2. An event that commits later leaves its row, and rings.  If the ring finds
 *	  the saga locked it is lost, but whoever has the lock looks into the inbox
 *	  after his commit (saga_recheck(); a session's lock ends with a ring of its
 *	  own, see saga_load()).
 * 3. After a crash, an overflow of the queue or COMMIT PREPARED the inbox is read
 *	  as a whole, with everything else that is due.
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
#include "saga/saga_events.h"

/* A saga with items is not counted again before this many times as long. */
#define HOLD_MULTIPLE 20
#define MAX_HOLD_US (USECS_PER_SEC / 2)

/* ----------------------------------------------------------------
 *		The inbox
 * ----------------------------------------------------------------
 */

/*
 * Something has happened to these sagas in this transaction: they are to look at
 * it once it commits.  An id may come more than once; those that are finished are
 * left out.
 */
void
saga_tell(const int64 *ids, const int *priorities, const Oid *owners, int count)
{
	static Statement insert = {
		"INSERT INTO coord_internal.saga_inbox SELECT id, $2 FROM coord_internal.saga WHERE id = ANY ($1)",
		2, {INT8ARRAYOID, TIMESTAMPTZOID}
	};
	static Statement insert_one = {
		"INSERT INTO coord_internal.saga_inbox SELECT id, $2 FROM coord_internal.saga WHERE id = $1",
		2, {INT8OID, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[2];

	if (count == 0)
		return;
	query_begin(&scope);
	values[1] = TimestampTzGetDatum(clock_now());
	if (count == 1)
	{
		values[0] = Int64GetDatum(ids[0]);
		query_run(&insert_one, values, NULL, 0);
	}
	else
	{
		values[0] = query_int8_array(ids, count);
		query_run(&insert, values, NULL, 0);
	}
	query_end(&scope);
	for (int i = 0; i < count; i++)
	{
		if (i == 0 || ids[i] != ids[i - 1])
			doorbell_tell_at_commit(ids[i], priorities[i], owners[i]);
	}
}

/* ----------------------------------------------------------------
 *		What has happened
 * ----------------------------------------------------------------
 */

/* The loaded saga with this id; "sagas" may be in any order. */
static Saga *
find_saga(Saga **sagas, int count, int64 id)
{
	for (int i = 0; i < count; i++)
	{
		if (sagas[i]->id == id)
			return sagas[i];
	}
	elog(ERROR, "saga " INT64_FORMAT " is not loaded", id);
	return NULL;
}

/* The steps of these sagas that wait for tasks, as three arrays. */
static int
waiting_steps(Saga **sagas, int count, bool items, Datum *values)
{
	int			nwaiting = 0;
	int			n = 0;
	Datum	   *ids;
	Datum	   *ordinals;
	Datum	   *phases;

	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < sagas[i]->def->nsteps; j++)
			nwaiting += sagas[i]->steps[j].waiting;
	}
	if (nwaiting == 0)
		return 0;
	ids = palloc(sizeof(Datum) * nwaiting);
	ordinals = palloc(sizeof(Datum) * nwaiting);
	phases = palloc(sizeof(Datum) * nwaiting);
	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < sagas[i]->def->nsteps; j++)
		{
			const StepDef *step = &sagas[i]->def->steps[j];

			if (!sagas[i]->steps[j].waiting || !step_is_tasks(step) ||
				(step->for_each != NULL) != items)
				continue;
			ids[n] = Int64GetDatum(sagas[i]->id);
			ordinals[n] = Int32GetDatum(j);
			phases[n++] = CStringGetTextDatum(saga_phase_name(sagas[i]->steps[j].phase));
		}
	}
	values[0] = PointerGetDatum(construct_array(ids, n, INT8OID, 8, true, TYPALIGN_DOUBLE));
	values[1] = PointerGetDatum(construct_array(ordinals, n, INT4OID, 4, true, TYPALIGN_INT));
	values[2] = PointerGetDatum(construct_array(phases, n, TEXTOID, -1, false, TYPALIGN_INT));
	return n;
}

static Phase
get_phase(uint64 row, int column)
{
	return strcmp(query_text(CurrentMemoryContext, row, column), "action") == 0 ?
		PHASE_ACTION : PHASE_COMPENSATION;
}

static void
add_task_event(MemoryContext context, Saga **sagas, int count, int64 id, TaskEvent *event)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	SagaEvents *events = find_saga(sagas, count, id)->events;
	TaskEvent  *copy = palloc(sizeof(TaskEvent));

	*copy = *event;
	events->tasks = lappend(events->tasks, copy);
	MemoryContextSwitchTo(old);
}

/* Tasks that are not items, and are finished. */
static void
load_single_tasks(MemoryContext context, Saga **sagas, int count)
{
	static Statement read = {
		"SELECT t.saga_id, t.ordinal, t.phase, t.id, t.status, t.attempt, t.result,"
		" t.started_at, t.finished_at, t.error, t.sqlstate, t.error_detail, t.error_context"
		" FROM unnest($1, $2, $3) AS u(saga_id, ordinal, phase)"
		" JOIN coord_internal.task t ON (t.saga_id, t.ordinal, t.phase, t.item) ="
		" (u.saga_id, u.ordinal, u.phase, -1)"
		" WHERE t.status NOT IN ('ready', 'held', 'running')",
		3, {INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID}
	};
	QueryScope	scope;
	Datum		values[3];
	uint64		rows;

	query_begin(&scope);
	rows = waiting_steps(sagas, count, false, values) == 0 ? 0 :
		query_run(&read, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		TaskEvent	event = {0};

		event.ordinal = query_int4(i, 2);
		event.phase = get_phase(i, 3);
		event.id = query_int8(i, 4);
		event.status = query_text(context, i, 5);
		event.attempt = query_int4(i, 6);
		event.result = query_jsonb(context, i, 7);
		event.started_at = query_time(i, 8);
		event.finished_at = query_time(i, 9);
		event.error = query_text(context, i, 10);
		event.sqlstate = query_text(context, i, 11);
		event.detail = query_text(context, i, 12);
		event.context = query_text(context, i, 13);
		add_task_event(context, sagas, count, query_int8(i, 1), &event);
	}
	query_end(&scope);
}

/* Steps with items: how many are in which state. */
static void
load_items(MemoryContext context, Saga **sagas, int count)
{
	static Statement read = {
		"SELECT u.saga_id, u.ordinal, u.phase, c.open, c.completed, c.failed, c.stopped,"
		" e.error, e.sqlstate, e.error_detail, e.error_context, c.cancelled"
		" FROM unnest($1, $2, $3) AS u(saga_id, ordinal, phase)"
		" CROSS JOIN LATERAL (SELECT"
		"  (count(*) FILTER (WHERE status IN ('ready', 'held', 'running')))::int AS open,"
		"  (count(*) FILTER (WHERE status IN ('completed', 'skipped')))::int AS completed,"
		"  (count(*) FILTER (WHERE status = 'failed'))::int AS failed,"
		"  (count(*) FILTER (WHERE status = 'stopped'))::int AS stopped,"
		"  (count(*) FILTER (WHERE status = 'cancelled'))::int AS cancelled,"
		"  min(item) FILTER (WHERE status IN ('failed', 'stopped')) AS first_failed"
		"  FROM coord_internal.task t WHERE (t.saga_id, t.ordinal, t.phase) ="
		"  (u.saga_id, u.ordinal, u.phase)) AS c"
		" LEFT JOIN coord_internal.task e ON (e.saga_id, e.ordinal, e.phase, e.item) ="
		" (u.saga_id, u.ordinal, u.phase, c.first_failed)",
		3, {INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID}
	};
	TimestampTz begin = GetCurrentTimestamp();
	QueryScope	scope;
	Datum		values[3];
	uint64		rows;

	query_begin(&scope);
	rows = waiting_steps(sagas, count, true, values) == 0 ? 0 :
		query_run(&read, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		TaskEvent	event = {0};

		event.items = true;
		event.ordinal = query_int4(i, 2);
		event.phase = get_phase(i, 3);
		event.open = query_int4(i, 4);
		event.completed = query_int4(i, 5);
		event.failed = query_int4(i, 6);
		event.stopped = query_int4(i, 7);
		event.error = query_text(context, i, 8);
		event.sqlstate = query_text(context, i, 9);
		event.detail = query_text(context, i, 10);
		event.context = query_text(context, i, 11);
		event.cancelled = query_int4(i, 12);
		add_task_event(context, sagas, count, query_int8(i, 1), &event);

		/* To count is not free: not for each item that is finished. */
		doorbell_hold(query_int8(i, 1), Min(HOLD_MULTIPLE * (GetCurrentTimestamp() - begin),
										  MAX_HOLD_US));
	}
	query_end(&scope);
}

/* Signals that nobody has waited for yet. */
static void
load_signals(MemoryContext context, Saga **sagas, int count)
{
	static Statement read = {
		"SELECT saga_id, id, signal, payload FROM coord_internal.saga_signal"
		" WHERE saga_id = ANY ($1) AND NOT consumed ORDER BY saga_id, id",
		1, {INT8ARRAYOID}
	};
	int64	   *ids = palloc(sizeof(int64) * count);
	int			nids = 0;
	QueryScope	scope;
	Datum		value;
	uint64		rows;

	for (int i = 0; i < count; i++)
	{
		if (sagas[i]->def->signals)
			ids[nids++] = sagas[i]->id;
	}
	if (nids == 0)
		return;
	query_begin(&scope);
	value = query_int8_array(ids, nids);
	rows = query_run(&read, &value, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		SagaEvents *events = find_saga(sagas, count, query_int8(i, 1))->events;
		Signal	   *signal = palloc0(sizeof(Signal));

		signal->id = query_int8(i, 2);
		signal->name = query_text(context, i, 3);
		signal->payload = query_jsonb(context, i, 4);
		events->signals = lappend(events->signals, signal);
		MemoryContextSwitchTo(old);
	}
	query_end(&scope);
}

/* Sagas that are steps: what has become of them. */
static void
load_children(MemoryContext context, Saga **sagas, int count)
{
	/* Finished ones are in the archive, unless this one may want them undone. */
	static Statement read = {
		"SELECT u.saga_id, u.id, coalesce(c.status, a.status), coalesce(c.error, a.error),"
		" CASE WHEN c.status = 'completed' THEN (SELECT jsonb_object_agg("
		"  v.definition #>> ARRAY['steps', t.ordinal::text, 'name'], t.result)"
		"  FROM coord_internal.saga_step t WHERE t.saga_id = c.id AND t.has_result) END"
		" FROM unnest($1, $2) AS u(saga_id, id)"
		" LEFT JOIN coord_internal.saga c ON c.id = u.id"
		" LEFT JOIN coord_internal.saga_version v ON v.id = c.definition"
		" LEFT JOIN LATERAL (SELECT status, error FROM coord_internal.saga_archive"
		"  WHERE id = u.id AND c.id IS NULL) AS a ON true",
		2, {INT8ARRAYOID, INT8ARRAYOID}
	};
	int64	   *ids;
	int64	   *children;
	int			nchildren = 0;
	QueryScope	scope;
	Datum		values[2];
	uint64		rows;

	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < sagas[i]->def->nsteps; j++)
			nchildren += sagas[i]->steps[j].waiting && sagas[i]->steps[j].child != 0;
	}
	if (nchildren == 0)
		return;
	ids = palloc(sizeof(int64) * nchildren);
	children = palloc(sizeof(int64) * nchildren);
	nchildren = 0;
	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < sagas[i]->def->nsteps; j++)
		{
			if (!sagas[i]->steps[j].waiting || sagas[i]->steps[j].child == 0)
				continue;
			ids[nchildren] = sagas[i]->id;
			children[nchildren++] = sagas[i]->steps[j].child;
		}
	}
	query_begin(&scope);
	values[0] = query_int8_array(ids, nchildren);
	values[1] = query_int8_array(children, nchildren);
	rows = query_run(&read, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		SagaEvents *events = find_saga(sagas, count, query_int8(i, 1))->events;
		ChildEvent *child = palloc0(sizeof(ChildEvent));

		child->id = query_int8(i, 2);
		child->status = query_text(context, i, 3);
		child->error = query_text(context, i, 4);
		child->output = query_jsonb(context, i, 5);
		events->children = lappend(events->children, child);
		MemoryContextSwitchTo(old);
	}
	query_end(&scope);
}

/* What the sagas that these are steps of want of them. */
static void
load_parents(MemoryContext context, Saga **sagas, int count)
{
	static Statement read = {
		"SELECT u.id, p.id IS NULL, p.backward OR t.status = 'skipped', t.status = 'compensating',"
		" p.id IS NULL AND coalesce((SELECT coalesce(cause, '') = 'abandoned' FROM coord_internal.saga_archive a"
		"  WHERE a.id = u.parent_id), true)"
		" FROM unnest($1, $2) AS u(id, parent_id)"
		" LEFT JOIN coord_internal.saga p ON p.id = u.parent_id"
		" LEFT JOIN coord_internal.saga_step t ON t.saga_id = p.id AND t.child = u.id",
		2, {INT8ARRAYOID, INT8ARRAYOID}
	};
	int64	   *ids = palloc(sizeof(int64) * count);
	int64	   *parents = palloc(sizeof(int64) * count);
	int			n = 0;
	QueryScope	scope;
	Datum		values[2];
	uint64		rows;

	for (int i = 0; i < count; i++)
	{
		if (sagas[i]->parent == 0)
			continue;
		ids[n] = sagas[i]->id;
		parents[n++] = sagas[i]->parent;
	}
	if (n == 0)
		return;
	query_begin(&scope);
	values[0] = query_int8_array(ids, n);
	values[1] = query_int8_array(parents, n);
	rows = query_run(&read, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		SagaEvents *events = find_saga(sagas, count, query_int8(i, 1))->events;
		bool		isnull;

		events->parent = MemoryContextAllocZero(context, sizeof(ParentEvent));
		events->parent->gone = DatumGetBool(query_value(i, 2, &isnull));
		events->parent->backward = DatumGetBool(query_value(i, 3, &isnull)) && !isnull;
		events->parent->undo = DatumGetBool(query_value(i, 4, &isnull)) && !isnull;
		events->parent->abandoned = DatumGetBool(query_value(i, 5, &isnull)) && !isnull;
	}
	query_end(&scope);
}

/* Empty the inbox of these sagas, as far as it is visible. */
static void
empty_inbox(Saga **sagas, int count)
{
	static Statement empty = {
		"DELETE FROM coord_internal.saga_inbox WHERE saga_id = ANY ($1)",
		1, {INT8ARRAYOID}
	};
	int64	   *ids = palloc(sizeof(int64) * count);
	QueryScope	scope;
	Datum		value;

	for (int i = 0; i < count; i++)
		ids[i] = sagas[i]->id;
	query_begin(&scope);
	value = query_int8_array(ids, count);
	query_run(&empty, &value, NULL, 0);
	query_end(&scope);
}

/*
 * Read what has happened to claimed sagas; to be done after operators' requests
 * were applied and before they are advanced.  The inbox is only a bell: to one
 * that an operator stopped nothing happens but its parent's word, and when he lets
 * it go on it has a turn, which reads everything.  One that its parent may set
 * going again in this very turn reads everything now.
 */
void
saga_load_events(Turn *turn, Saga **sagas, int count)
{
	MemoryContext old = MemoryContextSwitchTo(turn->context);
	Saga	  **some = palloc(sizeof(Saga *) * Max(count, 1));
	Saga	  **active = palloc(sizeof(Saga *) * Max(count, 1));
	int			nsome = 0;
	int			nactive = 0;
	bool		parents = false;

	for (int i = 0; i < count; i++)
	{
		if (!has_events(sagas[i]))
			continue;
		sagas[i]->events = palloc0(sizeof(SagaEvents));
		some[nsome++] = sagas[i];
		parents = parents || sagas[i]->parent != 0;
		if (sagas[i]->status == SAGA_RUNNING || sagas[i]->status == SAGA_COMPENSATING ||
			sagas[i]->parent != 0)
			active[nactive++] = sagas[i];
	}
	if (nsome > 0)
		empty_inbox(some, nsome);
	if (nactive > 0)
	{
		load_single_tasks(turn->context, active, nactive);
		load_items(turn->context, active, nactive);
		load_signals(turn->context, active, nactive);
		load_children(turn->context, active, nactive);
	}
	if (parents)
		load_parents(turn->context, some, nsome);
	MemoryContextSwitchTo(old);
}

/* ----------------------------------------------------------------
 *		The end
 * ----------------------------------------------------------------
 */

/*
 * These sagas are finished and go to the archive: nothing of theirs is left here
 * but what may be asked for by a token; sagas that are steps of theirs are told.
 * A task that somebody is carrying out or ending at the moment (of a saga that was
 * given up) is not waited for; housekeeping finds it.
 */
void
saga_forget_waits(Turn *turn, Saga **sagas, int count)
{
	static Statement forget_tasks = {
		"WITH gone AS (DELETE FROM coord_internal.task WHERE id IN (SELECT id"
		"  FROM coord_internal.task WHERE saga_id = ANY ($1) FOR UPDATE SKIP LOCKED)"
		" RETURNING id, saga_id, owner, queue, token, status, claims)"
		" INSERT INTO coord_internal.task_gone (id, saga_id, owner, queue, token, status, at)"
		" SELECT id, saga_id, owner, queue, token, CASE WHEN status IN ('ready', 'held', 'running', 'cancelled')"
		"  THEN 'cancelled' ELSE 'completed' END, $2 FROM gone"
		" WHERE claims > 1 OR claims = 1 AND status IN ('ready', 'held', 'running', 'cancelled')",
		2, {INT8ARRAYOID, TIMESTAMPTZOID}
	};
	static Statement forget_signals = {
		"DELETE FROM coord_internal.saga_signal WHERE saga_id = ANY ($1)", 1, {INT8ARRAYOID}
	};
	int64	   *ids = palloc(sizeof(int64) * Max(count, 1));
	bool		signals = false;
	int			n = 0;
	QueryScope	scope;
	Datum		values[2];

	for (int i = 0; i < count; i++)
	{
		if (!has_events(sagas[i]))
			continue;
		signals = signals || sagas[i]->def->signals;
		ids[n++] = sagas[i]->id;
		if (sagas[i]->events == NULL)
			empty_inbox(&sagas[i], 1);	/* by a verb, without a turn */
		for (int j = 0; j < sagas[i]->def->nsteps; j++)
		{
			if (sagas[i]->steps[j].child != 0)
				saga_tell(&sagas[i]->steps[j].child, &sagas[i]->priority, &sagas[i]->owner, 1);
		}
	}
	if (n == 0)
		return;
	query_begin(&scope);
	values[0] = query_int8_array(ids, n);
	values[1] = TimestampTzGetDatum(clock_now());
	query_run(&forget_tasks, values, NULL, 0);
	if (signals)
		query_run(&forget_signals, values, NULL, 0);
	query_end(&scope);
}

/*
 * Tell the sagas of which some of these are steps that they have just come to an
 * end.
 */
void
saga_tell_parents(Saga **sagas, int count)
{
	for (int i = 0; i < count; i++)
	{
		bool		gone = sagas[i]->events && sagas[i]->events->parent &&
			sagas[i]->events->parent->gone;

		if (sagas[i]->parent != 0 && !gone && sagas[i]->status != sagas[i]->stored_status &&
			saga_status_is_final(sagas[i]->status))
			saga_tell(&sagas[i]->parent, &sagas[i]->priority, &sagas[i]->owner, 1);
	}
}

/* Tokens are remembered for this long after their task is gone. */
#define TASK_GONE_US (USECS_PER_DAY)

/*
 * For housekeeping, in a transaction: also what somebody wrote for a saga while
 * it was being finished.
 */
void
saga_forget_gone_tasks(void)
{
	static Statement forget = {
		"DELETE FROM coord_internal.task_gone WHERE at < $1", 1, {TIMESTAMPTZOID}
	};
	static Statement forget_tasks = {
		"DELETE FROM coord_internal.task i WHERE NOT EXISTS"
		" (SELECT FROM coord_internal.saga s WHERE s.id = i.saga_id)",
		0, {0}
	};
	static Statement forget_inbox = {
		"DELETE FROM coord_internal.saga_inbox i WHERE NOT EXISTS"
		" (SELECT FROM coord_internal.saga s WHERE s.id = i.saga_id)",
		0, {0}
	};
	static Statement forget_signals = {
		"DELETE FROM coord_internal.saga_signal i WHERE NOT EXISTS"
		" (SELECT FROM coord_internal.saga s WHERE s.id = i.saga_id)",
		0, {0}
	};
	QueryScope	scope;
	Datum		value = TimestampTzGetDatum(clock_now() - TASK_GONE_US);

	query_begin(&scope);
	query_run(&forget, &value, NULL, 0);
	query_run(&forget_inbox, NULL, NULL, 0);
	query_run(&forget_tasks, NULL, NULL, 0);
	query_run(&forget_signals, NULL, NULL, 0);
	query_end(&scope);
}
