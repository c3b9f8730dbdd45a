/*-------------------------------------------------------------------------
 *
 * saga_takein.c
 *	  Taking in what has come of steps that wait, and taking back what a saga
 *	  that turned back does not want any more.
 *
 * What nobody has begun with is withdrawn; what is in somebody's hands is waited
 * for.  As long as that is the pivot nothing else is given up (see
 * saga_advance.c), since a completed pivot means that the saga goes forward.
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

/* How often a saga that turns back looks again at tasks it could not withdraw. */
#define WITHDRAW_AGAIN_US USECS_PER_SEC

/* ----------------------------------------------------------------
 *		Taking in what has come
 * ----------------------------------------------------------------
 */

/* A row that is of no more use once its outcome is in the saga. */
static void
forget_task(Turn *turn, int64 id)
{
	MemoryContext old = MemoryContextSwitchTo(turn->context);
	int64	   *copy = palloc(sizeof(int64));

	*copy = id;
	turn->done_tasks = lappend(turn->done_tasks, copy);
	MemoryContextSwitchTo(old);
}

/* A step or a compensation that could not be run at all: an operator's matter. */
static void
take_in_stopped(Saga *saga, int ordinal, Phase phase, char *reason)
{
	saga->steps[ordinal].error = reason;
	if (phase == PHASE_ACTION)
		saga_set_step(saga, ordinal, STEP_EVENT_RETRY);
	saga_suspend(saga, saga->backward ? NULL : reason);
}

static void
take_in_task(Turn *turn, Saga *saga, const TaskEvent *event)
{
	const StepDef *step = &saga->def->steps[event->ordinal];
	StepState  *state = &saga->steps[event->ordinal];

	saga_end_waiting(saga, event->ordinal);
	state->attempt = event->attempt;
	if (event->started_at != 0 && event->phase == PHASE_ACTION)
		state->started_at = event->started_at;
	/* Those of a queue remember who held which token. */
	if (step->kind == STEP_LOCAL)
	{
		forget_task(turn, event->id);
		saga_learn(saga, event->ordinal, event->phase,
				   event->finished_at - event->started_at);
	}
	if (strcmp(event->status, "completed") == 0)
		saga_step_succeeded(turn, saga, event->ordinal, event->result);
	else if (strcmp(event->status, "skipped") == 0)
		saga_step_not_wanted(saga, event->ordinal);
	else if (strcmp(event->status, "stopped") == 0)
		take_in_stopped(saga, event->ordinal, event->phase, event->error);
	else if (event->phase == PHASE_ACTION && saga_pivot_done(saga) && event->sqlstate != NULL &&
			 saga_is_worth_retrying(step, event->phase, event->sqlstate))
	{
		/* It was not when the task gave up; from the pivot on there is no limit. */
		saga_hand_out_later(turn, saga, event->ordinal, PHASE_ACTION, false,
					   clock_now() + retry_delay(&step->retry, event->attempt));
		saga_begin_waiting(saga, event->ordinal);
	}
	else
		saga_step_failed(turn, saga, event->ordinal, event->error, event->sqlstate,
						 event->detail, event->context);
}

/* The results of a step's items, in their order. */
static Jsonb *
collect_results(Turn *turn, const Saga *saga, int ordinal)
{
	static Statement read = {
		"SELECT coalesce(jsonb_agg(result ORDER BY item), '[]') FROM coord_internal.task"
		" WHERE saga_id = $1 AND ordinal = $2 AND phase = 'action'",
		2, {INT8OID, INT4OID}
	};
	static Statement forget = {
		"DELETE FROM coord_internal.task WHERE saga_id = $1 AND ordinal = $2"
		" AND phase = 'action'",
		2, {INT8OID, INT4OID}
	};
	QueryScope	scope;
	Datum		values[2];
	Jsonb	   *result;

	query_begin(&scope);
	values[0] = Int64GetDatum(saga->id);
	values[1] = Int32GetDatum(ordinal);
	query_run(&read, values, NULL, 0);
	result = query_jsonb(turn->context, 0, 1);
	if (saga->def->steps[ordinal].compensation == NULL)
		query_run(&forget, values, NULL, 0);
	query_end(&scope);
	return result;
}

/*
 * Take back those tasks of a step that nobody has begun with.  Returns how many;
 * "left" says whether one could not be had because somebody is just looking at it.
 */
static int
cancel_tasks(Saga *saga, int ordinal, Phase phase, bool *left)
{
	static Statement cancel = {
		"UPDATE coord_internal.task SET status = 'cancelled', finished_at = $4"
		" WHERE id IN (SELECT id FROM coord_internal.task WHERE saga_id = $1 AND ordinal = $2"
		"  AND phase = $3 AND status IN ('ready', 'held') FOR UPDATE SKIP LOCKED)",
		4, {INT8OID, INT4OID, TEXTOID, TIMESTAMPTZOID}
	};
	static Statement look = {
		"SELECT FROM coord_internal.task WHERE saga_id = $1 AND ordinal = $2"
		" AND phase = $3 AND status IN ('ready', 'held')",
		3, {INT8OID, INT4OID, TEXTOID}
	};
	QueryScope	scope;
	Datum		values[4];
	uint64		rows;

	query_begin(&scope);
	values[0] = Int64GetDatum(saga->id);
	values[1] = Int32GetDatum(ordinal);
	values[2] = CStringGetTextDatum(saga_phase_name(phase));
	values[3] = TimestampTzGetDatum(clock_now());
	rows = query_run(&cancel, values, NULL, 0);
	*left = query_run(&look, values, NULL, 1) > 0;
	query_end(&scope);
	return (int) rows;
}

/* As many items in hand as there may be; see saga_let_items_go(). */
static void
fill_items(const Saga *saga, int ordinal, Phase phase)
{
	static Statement read = {
		"SELECT (count(*) FILTER (WHERE status IN ('ready', 'running')))::int,"
		" (count(*) FILTER (WHERE status = 'held'))::int"
		" FROM coord_internal.task WHERE saga_id = $1 AND ordinal = $2 AND phase = $3",
		3, {INT8OID, INT4OID, TEXTOID}
	};
	QueryScope	scope;
	Datum		values[3];
	int			in_hand;
	int			held;

	query_begin(&scope);
	values[0] = Int64GetDatum(saga->id);
	values[1] = Int32GetDatum(ordinal);
	values[2] = CStringGetTextDatum(saga_phase_name(phase));
	query_run(&read, values, NULL, 0);
	in_hand = query_int4(0, 1);
	held = query_int4(0, 2);
	query_end(&scope);
	if (held > 0 && in_hand < saga->def->steps[ordinal].max_parallel)
		saga_let_items_go(saga->id, saga->def, saga->priority, saga->owner, ordinal, phase, -1,
						  saga->def->steps[ordinal].max_parallel - in_hand);
}

/*
 * A step that the saga, which turned back, waits for no longer and which is not
 * completed.  What may have had an effect has failed, and its compensation is
 * due; a queue's worker is told in any case, he may have heard of it.
 */
static void
give_up(Saga *saga, int ordinal)
{
	const StepDef *step = &saga->def->steps[ordinal];
	StepState  *state = &saga->steps[ordinal];
	bool		told = step->kind == STEP_QUEUE && step->compensation != NULL;

	state->finished_at = clock_now();
	if (!told && !state->any_completed)
	{
		saga_set_step(saga, ordinal, STEP_EVENT_WITHDRAW);
		return;
	}
	state->error = pstrdup("the saga turned back");
	saga_set_step(saga, ordinal, STEP_EVENT_EXHAUST);
	if (step->compensation != NULL)
		state->sequence = saga->next_sequence++;
}

static void
take_in_items(Turn *turn, Saga *saga, TaskEvent *event)
{
	const StepDef *step = &saga->def->steps[event->ordinal];
	StepState  *state = &saga->steps[event->ordinal];
	bool		action = event->phase == PHASE_ACTION;
	bool		too_many = event->failed > (action ? step->max_failed_items : 0);

	if (event->stopped > 0)
	{
		saga_end_waiting(saga, event->ordinal);
		take_in_stopped(saga, event->ordinal, event->phase, event->error);
		return;
	}
	if (too_many && action && event->open > 0)
	{
		bool		left;

		event->open -= cancel_tasks(saga, event->ordinal, event->phase, &left);
		if (left)
			saga->look_again_at = clock_now() + WITHDRAW_AGAIN_US;
	}
	if (event->open > 0)
	{
		/* Should items be held back for no reason, they go now. */
		if (step->max_parallel > 0 && !too_many)
			fill_items(saga, event->ordinal, event->phase);
		return;
	}

	saga_end_waiting(saga, event->ordinal);
	state->attempt = Max(state->attempt, 1);
	if (action && saga->backward && event->cancelled > 0)
	{
		/* The rest was withdrawn, so it is not what it was to be. */
		state->any_completed = event->completed > 0;
		give_up(saga, event->ordinal);
	}
	else if (too_many)
	{
		char	   *error = psprintf("%d of %d items failed, the first with: %s", event->failed,
									 state->items, event->error ? event->error : "");

		state->any_completed = event->completed > 0;
		saga_step_failed(turn, saga, event->ordinal, error, event->sqlstate,
						 event->detail, event->context);
	}
	else if (action)
		saga_step_succeeded(turn, saga, event->ordinal,
							collect_results(turn, saga, event->ordinal));
	else
		saga_step_succeeded(turn, saga, event->ordinal, NULL);
}

static ChildEvent *
find_child(const Saga *saga, int64 id)
{
	ListCell   *cell;

	foreach(cell, saga->events->children)
	{
		ChildEvent *child = lfirst(cell);

		if (child->id == id)
			return child;
	}
	return NULL;
}

/* A saga that is a step has come to an end, perhaps. */
static void
take_in_child(Turn *turn, Saga *saga, int ordinal)
{
	StepState  *state = &saga->steps[ordinal];
	ChildEvent *child = find_child(saga, state->child);
	bool		compensating = state->phase == PHASE_COMPENSATION;

	if (child == NULL)
		return;
	if (child->status == NULL)
	{
		saga_end_waiting(saga, ordinal);
		saga_step_failed(turn, saga, ordinal,
						 psprintf("saga " INT64_FORMAT " does not exist any more", child->id),
						 "42704", NULL, NULL);
	}
	else if (strcmp(child->status, "compensated") == 0 || strcmp(child->status, "failed") == 0)
	{
		saga_end_waiting(saga, ordinal);
		if (compensating)
			saga_step_succeeded(turn, saga, ordinal, NULL);
		else
			saga_step_failed(turn, saga, ordinal,
							 psprintf("saga " INT64_FORMAT " (\"%s\") is %s: %s", child->id,
									  saga->def->steps[ordinal].saga, child->status,
									  child->error ? child->error : "it was cancelled"),
							 "P0001", NULL, NULL);
	}
	else if (strcmp(child->status, "completed") == 0 && !compensating)
	{
		Jsonb	   *output = child->output;

		if (output == NULL)
		{
			JsonWriter	writer = {0};

			json_begin_object(&writer);
			json_end_object(&writer);
			output = json_finish(&writer);
		}
		saga_end_waiting(saga, ordinal);
		saga_step_succeeded(turn, saga, ordinal, output);
	}
}

/* Signals that have come, and what it has been too late for. */
static void
take_in_time(Turn *turn, Saga *saga, int ordinal)
{
	const StepDef *step = &saga->def->steps[ordinal];
	StepState  *state = &saga->steps[ordinal];
	Signal	   *signal = step->kind == STEP_SIGNAL ? saga_take_signal(turn, saga, step->signal) : NULL;
	bool		late = state->next_attempt_at != 0 && state->next_attempt_at <= clock_now();

	if (signal == NULL && !late)
		return;
	saga_end_waiting(saga, ordinal);
	if (signal != NULL)
		saga_signal_came(turn, saga, ordinal, signal);
	else if (step->kind == STEP_SLEEP || step->continue_on_timeout)
		saga_step_succeeded(turn, saga, ordinal, NULL);
	else
		saga_step_failed(turn, saga, ordinal,
						 psprintf("signal \"%s\" did not come in time", step->signal),
						 "57014", NULL, NULL);
}

/*
 * What the saga that this one is a step of wants of it.  It says so by its own
 * state, so that nothing is lost or done twice.
 */
static void
obey_parent(Turn *turn, Saga *saga)
{
	ParentEvent *parent = saga->events->parent;

	if (saga->status == SAGA_COMPLETED)
	{
		if (parent->gone)
			saga->parked = false;	/* to the archive */
		else if (parent->undo)
			saga_undo(saga, psprintf("saga " INT64_FORMAT ", of which it is a step, turned back",
									 saga->parent));
		return;
	}
	if (parent->gone && parent->abandoned)
		saga_abandon(saga, psprintf("saga " INT64_FORMAT ", of which it is a step, was given up",
									saga->parent));
	else if ((parent->gone || parent->backward) && !saga->backward && !saga_pivot_done(saga))
		saga_turn_back(saga, true, "cancelled",
					   psprintf("saga " INT64_FORMAT ", of which it is a step, turned back",
								saga->parent));
}

/* Is any of a step's items open, is any completed? */
static void
count_items(const Saga *saga, int ordinal, bool *open, bool *completed)
{
	static Statement read = {
		"SELECT coalesce(bool_or(status IN ('ready', 'held', 'running')), false),"
		" coalesce(bool_or(status = 'completed'), false)"
		" FROM coord_internal.task WHERE saga_id = $1 AND ordinal = $2 AND phase = 'action'",
		2, {INT8OID, INT4OID}
	};
	QueryScope	scope;
	Datum		values[2];
	bool		isnull;

	query_begin(&scope);
	values[0] = Int64GetDatum(saga->id);
	values[1] = Int32GetDatum(ordinal);
	query_run(&read, values, NULL, 0);
	*open = DatumGetBool(query_value(0, 1, &isnull));
	*completed = DatumGetBool(query_value(0, 2, &isnull));
	query_end(&scope);
}

/*
 * Take back what a saga that has turned back does not want any more: what nobody
 * has begun with.  What is in somebody's hands is waited for.
 */
static void
withdraw(Turn *turn, Saga *saga, int ordinal)
{
	const StepDef *step = &saga->def->steps[ordinal];
	StepState  *state = &saga->steps[ordinal];
	bool		left = false;

	if (step->kind == STEP_SAGA)
	{
		saga_tell(&state->child, &saga->priority, &saga->owner, 1);
		return;
	}
	if (step_is_tasks(step))
	{
		int			cancelled = cancel_tasks(saga, ordinal, PHASE_ACTION, &left);
		bool		open = left;

		if (step->for_each != NULL && !left)
			count_items(saga, ordinal, &open, &state->any_completed);
		else if (cancelled == 0)
			open = true;
		if (left)
			saga->look_again_at = clock_now() + WITHDRAW_AGAIN_US;
		if (open)
			return;
	}

	saga_end_waiting(saga, ordinal);
	give_up(saga, ordinal);
}

/* Has a saga that is a step, and failed as such, undone what it had done? */
bool
saga_any_child_undone(const Saga *saga)
{
	static Statement read = {
		"SELECT FROM coord_internal.saga_archive WHERE id = ANY ($1) AND status = 'compensated'",
		1, {INT8ARRAYOID}
	};
	int64	   *ids;
	int			n = 0;
	QueryScope	scope;
	Datum		value;
	bool		found;

	if (!saga->def->waits)
		return false;
	ids = palloc(sizeof(int64) * saga->def->nsteps);
	for (int i = 0; i < saga->def->nsteps; i++)
	{
		if (saga->steps[i].child != 0 && saga->steps[i].status == STEP_FAILED)
			ids[n++] = saga->steps[i].child;
	}
	if (n == 0)
		return false;
	query_begin(&scope);
	value = query_int8_array(ids, n);
	found = query_run(&read, &value, NULL, 1) > 0;
	query_end(&scope);
	return found;
}

/* Is any item of a step compensated, whose other compensations were skipped? */
bool
saga_any_item_undone(const Saga *saga, int ordinal)
{
	static Statement read = {
		"SELECT FROM coord_internal.task WHERE saga_id = $1 AND ordinal = $2"
		" AND phase = 'compensation' AND status = 'completed'",
		2, {INT8OID, INT4OID}
	};
	QueryScope	scope;
	Datum		values[2];
	bool		found;

	query_begin(&scope);
	values[0] = Int64GetDatum(saga->id);
	values[1] = Int32GetDatum(ordinal);
	found = query_run(&read, values, NULL, 1) > 0;
	query_end(&scope);
	return found;
}

/*
 * An operator skips a step that waits.  A task that somebody is just carrying out
 * is not waited for: its outcome will not be looked at.
 */
void
saga_skip_waiting(Saga *saga, int ordinal, Phase phase)
{
	static Statement cancel = {
		"UPDATE coord_internal.task SET status = 'cancelled', finished_at = $4"
		" WHERE id IN (SELECT id FROM coord_internal.task WHERE saga_id = $1 AND ordinal = $2"
		"  AND phase = $3 AND status IN ('ready', 'held', 'running') FOR UPDATE SKIP LOCKED)",
		4, {INT8OID, INT4OID, TEXTOID, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[4];

	if (!saga->steps[ordinal].waiting)
		return;
	if (saga->def->steps[ordinal].kind == STEP_SAGA)
		saga_tell(&saga->steps[ordinal].child, &saga->priority, &saga->owner, 1);
	if (step_is_tasks(&saga->def->steps[ordinal]))
	{
		query_begin(&scope);
		values[0] = Int64GetDatum(saga->id);
		values[1] = Int32GetDatum(ordinal);
		values[2] = CStringGetTextDatum(saga_phase_name(phase));
		values[3] = TimestampTzGetDatum(clock_now());
		query_run(&cancel, values, NULL, 0);
		query_end(&scope);
	}
	saga_end_waiting(saga, ordinal);
}

/*
 * Take in what saga_load_events() has read; part of saga_advance(), which has
 * prepared the saga.
 */
void
saga_take_in(Turn *turn, Saga *saga)
{
	ListCell   *cell;

	saga->nwaiting = saga->nprobes = 0;
	saga->look_again_at = 0;
	for (int i = 0; i < saga->def->nsteps && saga->def->waits; i++)
	{
		saga->nwaiting += saga->steps[i].waiting;
		saga->nprobes += saga->steps[i].waiting && is_probe(&saga->def->steps[i]);
	}
	if (saga->events == NULL)
		return;
	if (saga->events->parent != NULL)
		obey_parent(turn, saga);
	if (saga->status != SAGA_RUNNING && saga->status != SAGA_COMPENSATING)
		return;

	foreach(cell, saga->events->tasks)
	{
		TaskEvent  *event = lfirst(cell);
		StepState  *state = &saga->steps[event->ordinal];

		if (!state->waiting || state->phase != event->phase)
			continue;
		if (event->items)
			take_in_items(turn, saga, event);
		else
			take_in_task(turn, saga, event);
	}
	for (int i = 0; i < saga->def->nsteps && saga->nwaiting > 0; i++)
	{
		StepKind	kind = saga->def->steps[i].kind;

		if (!saga->steps[i].waiting)
			continue;
		if (kind == STEP_SAGA)
			take_in_child(turn, saga, i);
		else if (kind == STEP_SIGNAL || kind == STEP_SLEEP)
			take_in_time(turn, saga, i);
	}
}

/* The same for one step; returns whether it is still waited for. */
bool
saga_withdraw_step(Turn *turn, Saga *saga, int ordinal)
{
	if (saga->steps[ordinal].waiting)
		withdraw(turn, saga, ordinal);
	return saga->steps[ordinal].waiting;
}

/*
 * Withdraw what a saga that goes backward is still waiting for of its way
 * forward.  Returns whether something is left.
 */
bool
saga_withdraw(Turn *turn, Saga *saga)
{
	bool		left = false;

	for (int i = 0; i < saga->def->nsteps && saga->nwaiting > 0; i++)
	{
		if (!saga->steps[i].waiting || saga->steps[i].status != STEP_RUNNING)
			continue;
		withdraw(turn, saga, i);
		left = left || saga->steps[i].waiting;
	}
	return left;
}

/* The first time at which something that a saga waits for is over; 0: none. */
TimestampTz
saga_waits_until(const Saga *saga)
{
	TimestampTz until = saga->look_again_at;

	for (int i = 0; i < saga->def->nsteps && saga->nwaiting > 0; i++)
	{
		const StepState *state = &saga->steps[i];

		if (state->waiting && state->next_attempt_at != 0 &&
			(until == 0 || state->next_attempt_at < until))
			until = state->next_attempt_at;
	}
	return until;
}

