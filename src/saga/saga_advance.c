/*-------------------------------------------------------------------------
 *
 * saga_advance.c
 *	  What happens next in a saga.
 *
 * saga_advance() takes a loaded instance as far as it can go now: forward along
 * the graph, or back through the compensations, until it is finished, has to
 * wait for a time, for an operator, or for the transaction to end.  It only
 * changes the instance in memory; saga_store.c writes it in the same
 * transaction in which the calls had their effects.  That is the whole of
 * "exactly once": there is no moment at which an effect is committed and its
 * record is not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/debug_point.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/user_call.h"
#include "saga/saga_task.h"

#define DEFAULT_ATTEMPTS 3
#define MANY_ATTEMPTS 25		/* of compensations and tasks of queues */

/*
 * A saga that runs longer than this in one transaction lets it end; one of very
 * many steps takes longer to load, and may go on for a multiple of that.
 */
#define SAGA_BUDGET_US 20000
#define LOAD_MULTIPLE 10

/* From how many steps on it pays to keep the results as one growing object. */
#define MANY_STEPS 64

/* A suspect waits this long when another one is being run. */
#define SUSPECT_DELAY_US (100 * 1000)

/* A saga that this session cannot run is a worker's after this time. */
#define ELSEWHERE_DELAY_US (1 * USECS_PER_SEC)

/* The one writer of a saga's status. */
void
saga_set_status(Saga *saga, SagaEvent event)
{
	saga->status = machine_next(&saga_machine, saga->status, event);
	saga->dirty = true;
	if (saga_status_is_final(saga->status))
	{
		saga->finished_at = clock_now();
		saga->wake_at = 0;

		/* A saga that is a step may have to be undone later. */
		saga->parked = saga->status == SAGA_COMPLETED && saga->parent != 0;
	}
}

/* The one writer of a step's status. */
void
saga_set_step(Saga *saga, int ordinal, StepEvent event)
{
	StepState  *state = &saga->steps[ordinal];

	state->status = machine_next(&step_machine, state->status, event);
	state->dirty = true;
	saga->dirty = true;
}

static bool
step_is_final(const StepState *state)
{
	return state->status == STEP_COMPLETED || state->status == STEP_SKIPPED ||
		state->status == STEP_FAILED;
}

/* Has the point of no return been passed? */
bool
saga_pivot_done(const Saga *saga)
{
	return saga->def->pivot >= 0 &&
		saga->steps[saga->def->pivot].status == STEP_COMPLETED;
}

static void
push_ready(Saga *saga, int ordinal)
{
	int			at = (saga->ready_head + saga->ready_count) % saga->def->nsteps;

	saga->ready[at] = ordinal;
	saga->ready_count++;
}

/* Does the trigger rule of a step whose predecessors are all final hold? */
static bool
rule_holds(const Saga *saga, int ordinal)
{
	const StepDef *step = &saga->def->steps[ordinal];
	int			completed = 0;
	int			failed = 0;

	for (int i = 0; i < step->nafter; i++)
	{
		switch (saga->steps[step->after[i]].status)
		{
			case STEP_SKIPPED:
				break;
			case STEP_FAILED:
				failed++;
				break;
			default:
				completed++;
		}
	}
	switch (step->rule)
	{
		case RULE_NONE_FAILED:
			return failed == 0;
		case RULE_ALL_SUCCESS:
			return completed == step->nafter;
		case RULE_ONE_SUCCESS:
			return completed > 0;
		case RULE_ONE_FAILED:
			return failed > 0;
		case RULE_ALL_DONE:
		case RULE_ALWAYS:
			return true;
	}
	return true;
}

/*
 * A step whose predecessors are all final becomes ready, or is skipped because
 * its rule does not hold.  Skipping unblocks others; a worklist instead of
 * recursion, since chains may be ten thousand long.
 */
static void
unblock(Saga *saga, int first)
{
	SagaDef    *def = saga->def;
	List	   *worklist = list_make1_int(first);

	while (worklist != NIL)
	{
		int			ordinal = llast_int(worklist);

		worklist = list_delete_last(worklist);
		if (saga->steps[ordinal].status != STEP_PENDING)
			continue;
		if (rule_holds(saga, ordinal))
		{
			saga_set_step(saga, ordinal, STEP_EVENT_UNBLOCK);
			saga->steps[ordinal].dirty = false; /* told by the others' states */
			push_ready(saga, ordinal);
			continue;
		}
		saga_set_step(saga, ordinal, STEP_EVENT_NOT_WANTED);
		saga->steps[ordinal].finished_at = clock_now();
		saga->unfinished--;
		for (int i = 0; i < def->steps[ordinal].nbefore; i++)
		{
			int			next = def->steps[ordinal].before[i];

			if (--saga->steps[next].blocked_by == 0)
				worklist = lappend_int(worklist, next);
		}
	}
}

/* A step has just become final: others may begin. */
void
saga_step_finished(Saga *saga, int ordinal)
{
	StepDef    *step = &saga->def->steps[ordinal];

	saga->unfinished--;
	if (saga->backward)
		return;
	for (int i = 0; i < step->nbefore; i++)
	{
		if (--saga->steps[step->before[i]].blocked_by == 0)
			unblock(saga, step->before[i]);
	}
}

/* Keep a step's result, also where the context document takes it from. */
void
saga_set_result(Saga *saga, int ordinal, Jsonb *result)
{
	StepDef    *step = &saga->def->steps[ordinal];

	saga->steps[ordinal].result = result;
	saga->steps[ordinal].has_result = true;
	json_part_jsonb(&saga->results[step->rank], step->name, result);
	if (saga->growing != NULL &&
		!json_object_put(saga->growing, step->rank, &saga->results[step->rank]))
		saga->growing = NULL;	/* replaced: as of a saga of few steps from here on */
}

/* What the context document takes from the steps as loaded. */
void
saga_prepare_results(Saga *saga)
{
	SagaDef    *def = saga->def;

	saga->growing = NULL;
	saga->results = palloc(sizeof(JsonPart) * def->nsteps);
	memcpy(saga->results, def->parts, sizeof(JsonPart) * def->nsteps);
	for (int i = 0; i < def->nsteps; i++)
	{
		if (saga->steps[i].has_result)
			saga_set_result(saga, i, saga->steps[i].result);
	}
	if (def->nsteps > MANY_STEPS)
		saga->growing = json_object_make(saga->results, def->nsteps);
}

/*
 * Derive what saga_advance() works with from the states as loaded: counts,
 * ready steps, the order of compensation.
 */
void
saga_prepare(Saga *saga)
{
	SagaDef    *def = saga->def;

	saga->ready = palloc(sizeof(int) * def->nsteps);
	saga_prepare_results(saga);
	saga->ready_head = saga->ready_count = 0;
	saga->unfinished = 0;
	saga->undo = NULL;

	for (int i = 0; i < def->nsteps; i++)
	{
		if (!step_is_final(&saga->steps[i]))
			saga->unfinished++;
		saga->steps[i].blocked_by = 0;
		for (int j = 0; j < def->steps[i].nafter; j++)
		{
			if (!step_is_final(&saga->steps[def->steps[i].after[j]]))
				saga->steps[i].blocked_by++;
		}
	}
	/* What comes after the step that stopped it is not to be decided yet. */
	if (saga->status != SAGA_RUNNING || saga->backward)
		return;
	for (int i = 0; i < def->nsteps; i++)
	{
		StepState  *state = &saga->steps[i];

		if (state->status == STEP_READY)
			push_ready(saga, i);
	}
	for (int i = 0; i < def->nsteps; i++)
	{
		if (saga->steps[i].status == STEP_PENDING && saga->steps[i].blocked_by == 0)
			unblock(saga, i);
	}
}

static const Saga *compare_saga;	/* qsort() passes no argument */

static int
compare_undo(const void *a, const void *b)
{
	return compare_saga->steps[*(const int *) b].sequence -
		compare_saga->steps[*(const int *) a].sequence;
}

/*
 * The steps to compensate: completed ones with a compensation, last completed
 * first, and failed ones that may have had an effect all the same, which have a
 * place in that order.  A step completes after those it depends on, so this goes
 * against the edges of any graph.
 */
static void
prepare_undo(Saga *saga)
{
	SagaDef    *def = saga->def;

	saga->undo = palloc(sizeof(int) * (def->nsteps + 1));
	saga->nundo = saga->undo_at = 0;
	for (int i = 0; i < def->nsteps; i++)
	{
		StepStatus	status = saga->steps[i].status;

		if ((status == STEP_COMPLETED && saga_step_can_be_undone(&def->steps[i]) &&
			 !(def->steps[i].for_each && saga->steps[i].items == 0)) ||
			(status == STEP_FAILED && saga->steps[i].sequence > 0) ||
			status == STEP_COMPENSATING || status == STEP_COMPENSATION_FAILED)
			saga->undo[saga->nundo++] = i;
	}
	compare_saga = saga;
	qsort(saga->undo, saga->nundo, sizeof(int), compare_undo);
}

/*
 * Turn round: from here on the saga only undoes.  "cancelled" is an operator's
 * cancel, else it failed.  With nothing to undo it ends at once.
 */
void
saga_turn_back(Saga *saga, bool cancelled, const char *cause, const char *error)
{
	bool		waiting = false;

	for (int i = 0; i < saga->def->nsteps && saga->def->waits; i++)
		waiting = waiting || saga->steps[i].waiting;
	prepare_undo(saga);
	saga->cause = pstrdup(cause);
	saga->error = error ? pstrdup(error) : NULL;
	saga->backward = true;
	saga->dirty = true;
	saga->wake_at = clock_now();
	if (saga->nundo > 0 || waiting || saga_any_child_undone(saga))
		saga_set_status(saga, cancelled ? SAGA_EVENT_CANCEL : SAGA_EVENT_FAIL);
	else
		saga_set_status(saga, cancelled ? SAGA_EVENT_CANCEL_NOTHING_DONE :
						SAGA_EVENT_FAIL_NOTHING_DONE);

	/* What is still in somebody's hands may add to it. */
	if (waiting)
		saga->undo = NULL;
}

/* It is given up as it is: nothing is waited for any more. */
void
saga_abandon(Saga *saga, const char *error)
{
	for (int i = 0; i < saga->def->nsteps && saga->def->waits; i++)
	{
		if (!saga->steps[i].waiting)
			continue;
		saga->steps[i].waiting = false;
		saga->steps[i].finished_at = clock_now();
		if (saga->steps[i].status == STEP_RUNNING)
			saga_set_step(saga, i, STEP_EVENT_WITHDRAW);
	}
	saga_set_status(saga, SAGA_EVENT_ABANDON);
	saga->cause = "abandoned";
	if (error != NULL)
		saga->error = pstrdup(error);
}

/* A completed saga that is a step is to be undone. */
void
saga_undo(Saga *saga, const char *error)
{
	saga->cause = "cancelled";
	saga->error = pstrdup(error);
	saga->backward = true;
	saga->undo = NULL;
	saga->wake_at = clock_now();
	saga->finished_at = 0;
	saga_set_status(saga, SAGA_EVENT_UNDO);
}

/*
 * The pivot was in somebody's hands when the saga turned back, and is completed:
 * from here on there is only forward.
 */
static void
pivot_won(Turn *turn, Saga *saga)
{
	LogRow		row = {0};
	bool		failed = false;

	row.saga = saga->id;
	row.name = saga->def->name;
	row.owner = saga->owner;
	row.at = clock_now();
	row.event = "pivot_completed";
	row.step = saga->def->steps[saga->def->pivot].name;
	row.phase = -1;
	row.role = saga->owner;
	row.reason = "it was in somebody's hands when the saga turned back, which goes forward now";
	saga_log(turn, &row);

	saga->backward = false;
	saga->cause = NULL;
	saga_set_status(saga, SAGA_EVENT_PIVOT_DONE);
	for (int i = 0; i < saga->def->nsteps; i++)
		failed = failed || (saga->steps[i].status == STEP_FAILED &&
							!saga->def->steps[i].optional);
	if (failed)
		saga_suspend(saga, NULL);
	else
	{
		saga->error = NULL;
		saga_prepare(saga);
	}
}

/* Stop and wait for an operator; coord.stuck shows it. */
void
saga_suspend(Saga *saga, const char *error)
{
	if (saga->status == SAGA_SUSPENDED)
		return;					/* something else stopped it in the same turn */
	saga_set_status(saga, SAGA_EVENT_SUSPEND);
	saga->wake_at = 0;
	if (error != NULL)
		saga->error = pstrdup(error);
}

static void
log_attempt(Turn *turn, Saga *saga, int ordinal)
{
	StepState  *state = &saga->steps[ordinal];
	LogRow		row = {0};

	row.saga = saga->id;
	row.name = saga->def->name;
	row.owner = saga->owner;
	row.at = clock_now();
	row.event = "attempt_failed";
	row.step = saga->def->steps[ordinal].name;
	row.phase = state->phase;
	row.attempt = state->attempt;
	row.role = saga->owner;
	row.error = state->error;
	row.sqlstate = state->sqlstate;
	row.detail = state->detail;
	row.context = state->context;
	saga_log(turn, &row);
}

/* Attempts a step, or each of its items, has in a phase. */
int
saga_attempt_limit(const StepDef *step, Phase phase)
{
	if (step->vote || step->must)
		return PG_INT32_MAX;
	if (step->retry.max_attempts > 0)
		return step->retry.max_attempts;
	return phase == PHASE_ACTION && step->kind != STEP_QUEUE ? DEFAULT_ATTEMPTS :
		MANY_ATTEMPTS;
}

/*
 * Is an attempt that failed worth another?  What a participant of a two-phase commit
 * has to do once it is decided always is.
 */
bool
saga_is_worth_retrying(const StepDef *step, Phase phase, const char *sqlstate)
{
	return step->must || (step->vote && phase == PHASE_COMPENSATION) ||
		retry_is_worth(&step->retry, sqlstate);
}

/* A step failed for good, in the phase it is in: what follows from that. */
static void
failed_for_good(Turn *turn, Saga *saga, int ordinal)
{
	StepDef    *step = &saga->def->steps[ordinal];
	StepState  *state = &saga->steps[ordinal];

	if (state->phase == PHASE_COMPENSATION)
	{
		saga_set_step(saga, ordinal, STEP_EVENT_UNDO_EXHAUST);
		saga_suspend(saga, NULL);
		return;
	}
	saga_set_step(saga, ordinal, STEP_EVENT_EXHAUST);
	state->finished_at = clock_now();
	if (step->compensation && (step->kind == STEP_QUEUE || state->any_completed))
		state->sequence = saga->next_sequence++;
	if (saga->backward || saga->status == SAGA_SUSPENDED)
		return;
	if (step->optional)
		saga_step_finished(saga, ordinal);
	else if (saga_pivot_done(saga) || saga->def->suspend_on_exhausted)
		saga_suspend(saga, state->error);
	else
		saga_turn_back(saga, false, "step_failed", state->error);
}

/*
 * A step that was handed out, waited for a signal or was a saga has failed, and
 * there will be no other attempt.
 */
void
saga_step_failed(Turn *turn, Saga *saga, int ordinal, char *error, char *sqlstate,
				 char *detail, char *context)
{
	StepState  *state = &saga->steps[ordinal];
	StepKind	kind = saga->def->steps[ordinal].kind;

	state->error = error;
	state->sqlstate = sqlstate;
	state->detail = detail;
	state->context = context;
	state->dirty = true;
	saga->dirty = true;

	/* Tasks log each of their attempts. */
	if (kind != STEP_LOCAL && kind != STEP_QUEUE)
		log_attempt(turn, saga, ordinal);
	failed_for_good(turn, saga, ordinal);
}

/* The phase that a step is in has succeeded. */
void
saga_step_succeeded(Turn *turn, Saga *saga, int ordinal, Jsonb *result)
{
	StepState  *state = &saga->steps[ordinal];

	state->error = state->sqlstate = state->detail = state->context = NULL;
	state->finished_at = clock_now();
	if (state->phase == PHASE_COMPENSATION)
	{
		saga_set_step(saga, ordinal, STEP_EVENT_UNDONE);
		return;
	}
	saga_set_result(saga, ordinal, result);
	state->sequence = saga->next_sequence++;
	saga_set_step(saga, ordinal, STEP_EVENT_SUCCEED);
	saga_step_finished(saga, ordinal);
	if (saga->backward && saga->def->pivot == ordinal)
		pivot_won(turn, saga);
}

/* A step that has begun is not wanted: its condition is false. */
void
saga_step_not_wanted(Saga *saga, int ordinal)
{
	saga->steps[ordinal].finished_at = clock_now();
	saga_set_step(saga, ordinal, STEP_EVENT_NOT_WANTED);
	saga_step_finished(saga, ordinal);
}

/*
 * An attempt failed: another one later, or the end of the step and what follows
 * from that.
 */
void
saga_attempt_failed(Turn *turn, Saga *saga, int ordinal, ErrorData *error)
{
	StepDef    *step = &saga->def->steps[ordinal];
	StepState  *state = &saga->steps[ordinal];
	bool		action = state->phase == PHASE_ACTION;
	bool		again;

	/* The step was cancelled for the sake of an operator's request. */
	if (user_call_is_cancel(error) && in_hand_interrupted())
	{
		state->attempt--;
		turn->end = true;
		if (action)
		{
			saga_set_step(saga, ordinal, STEP_EVENT_RETRY);
			push_ready(saga, ordinal);
		}
		return;
	}

	state->error = error->message;
	state->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
	state->detail = error->detail;
	state->context = error->context;
	state->dirty = true;
	saga->dirty = true;
	log_attempt(turn, saga, ordinal);

	again = saga_is_worth_retrying(step, state->phase, state->sqlstate) &&
		(state->attempt < saga_attempt_limit(step, state->phase) ||
		 (action && saga_pivot_done(saga)));
	if (again)
	{
		state->next_attempt_at = clock_now() +
			retry_delay(&step->retry, state->attempt);
		if (action)
		{
			saga_set_step(saga, ordinal, STEP_EVENT_RETRY);
			push_ready(saga, ordinal);
		}
		return;
	}

	failed_for_good(turn, saga, ordinal);
}

/*
 * A step of a saga that was in hand when the server crashed is charged the
 * attempt in a transaction that commits before it runs again, so that one which
 * kills the server runs out of attempts.  Returns true when it may run now.
 */
static bool
charge_suspect(Turn *turn, Saga *saga, int ordinal)
{
	StepState  *state = &saga->steps[ordinal];

	if (suspect_charged(saga->id, ordinal, state->phase, NO_ITEM))
		return true;
	if (state->attempt >= saga_attempt_limit(&saga->def->steps[ordinal], state->phase))
	{
		ErrorData	error = {0};

		error.sqlerrcode = ERRCODE_SYSTEM_ERROR;
		error.message = pstrdup("the server crashed during each attempt");
		if (state->phase == PHASE_ACTION)
			saga_set_step(saga, ordinal, STEP_EVENT_START);
		saga_attempt_failed(turn, saga, ordinal, &error);
		return false;
	}
	state->attempt++;
	state->dirty = true;
	saga->dirty = true;
	suspect_charge(saga->id, ordinal, state->phase, NO_ITEM);
	saga->not_now = true;		/* but in the next transaction, by this process */
	turn->end = true;
	if (state->phase == PHASE_ACTION)
		push_ready(saga, ordinal);
	return false;
}

/* Make one call and take note of how it went. */
static void
run_call(Turn *turn, Saga *saga, int ordinal, Phase phase)
{
	StepState  *state = &saga->steps[ordinal];
	CallResult	call = {0};
	TimestampTz now = clock_now();

	if (state->phase != phase)
	{
		state->phase = phase;
		state->attempt = 0;
		state->next_attempt_at = 0;
		state->error = state->sqlstate = state->detail = state->context = NULL;
	}
	if (phase == PHASE_COMPENSATION && state->status == STEP_COMPLETED)
		saga_set_step(saga, ordinal, STEP_EVENT_UNDO);

	if (in_hand_is_suspect(saga->id))
	{
		if (!charge_suspect(turn, saga, ordinal))
			return;
	}
	else
		state->attempt++;

	saga_call(turn, saga, ordinal, phase, &call);
	if (call.outcome == CALL_NOT_NOW)
	{
		saga->not_now = true;
		if (!in_hand_is_suspect(saga->id))
			state->attempt--;
		if (phase == PHASE_ACTION)
			push_ready(saga, ordinal);
		return;
	}

	if (call.outcome == CALL_ELSEWHERE)
	{
		ereport(WARNING,
				(errmsg("saga " INT64_FORMAT " is left to a worker: %s",
						saga->id, call.reason)));
		saga->elsewhere = true;
		if (!in_hand_is_suspect(saga->id))
			state->attempt--;
		if (phase == PHASE_ACTION)
			push_ready(saga, ordinal);
		return;
	}

	if (saga->started_at == 0)
		saga->started_at = now;
	if (state->started_at == 0)
		state->started_at = now;
	state->next_attempt_at = 0;
	saga->dirty = true;
	state->dirty = true;
	suspect_charge(saga->id, -1, phase, NO_ITEM);

	if (phase == PHASE_ACTION)
		saga_set_step(saga, ordinal, STEP_EVENT_START);
	switch (call.outcome)
	{
		case CALL_SUCCEEDED:
			saga_step_succeeded(turn, saga, ordinal, call.result);
			break;
		case CALL_SKIPPED:
			saga_step_not_wanted(saga, ordinal);
			break;
		case CALL_FAILED:
			saga_attempt_failed(turn, saga, ordinal, call.error);
			break;
		case CALL_UNRUNNABLE:
			state->attempt--;
			if (phase == PHASE_ACTION)
				saga_set_step(saga, ordinal, STEP_EVENT_RETRY);
			state->error = call.reason;
			saga_suspend(saga, saga->backward ? NULL : call.reason);
			break;
		case CALL_NOT_NOW:
		case CALL_ELSEWHERE:
			break;
	}
}

/*
 * May another call be made in this transaction?
 */
static bool
may_go_on(Turn *turn, Saga *saga)
{
	if (turn->end)
		return false;
	if (turn->slot && turn->slot->request_serial != turn->request_serial)
		return false;			/* an operator waits */
	return turn->calls == 0 ||
		GetCurrentTimestamp() - turn->started <
		Max(SAGA_BUDGET_US, LOAD_MULTIPLE * (turn->loaded - turn->started));
}

/*
 * Nothing can be done before "wake", or before something comes that the saga
 * waits for.
 */
static void
wait_until(Saga *saga, TimestampTz wake)
{
	TimestampTz until = saga_waits_until(saga);

	if (wake == 0 || (until != 0 && until < wake))
		wake = until;
	if (!saga->backward && saga->deadline_at != 0 && !saga_pivot_done(saga) &&
		(wake == 0 || saga->deadline_at < wake))
		wake = saga->deadline_at;
	if (wake == 0 && saga->nwaiting == 0)
		elog(ERROR, "saga " INT64_FORMAT " has nothing to wait for", saga->id);
	if (saga->wake_at != wake)
		saga->dirty = true;
	saga->wake_at = wake;
}

/* A step of unknown duration is handed out, but not more than this many at a time. */
static int
max_probes(void)
{
	return Max(2 * guc_max_workers, 4);
}

typedef enum Way
{
	WAY_CALL,					/* in the turn itself */
	WAY_HAND_OUT,
	WAY_LATER					/* when it is known how long it takes */
} Way;

/*
 * How a ready step is to be carried out.  What is short is called at once, which
 * is cheapest.  A local step that may be long is handed out when the saga has
 * anything else to do or to wait for, since a call keeps the saga locked.
 */
static Way
way_of(Turn *turn, const Saga *saga, int ordinal)
{
	const StepDef *step = &saga->def->steps[ordinal];

	if (step->kind != STEP_LOCAL || step->for_each != NULL)
		return WAY_HAND_OUT;
	if (!turn->worker || !saga->def->waits || saga->ready_count + saga->nwaiting == 0 ||
		in_hand_is_suspect(saga->id))
		return WAY_CALL;
	switch (saga_call_pace(step, PHASE_ACTION))
	{
		case PACE_QUICK:
			return WAY_CALL;
		case PACE_SLOW:
			return WAY_HAND_OUT;
		case PACE_UNKNOWN:
			break;
	}
	return saga->nprobes < max_probes() ? WAY_HAND_OUT : WAY_LATER;
}

/* One step forward; false when nothing can be done now. */
static bool
advance_forward(Turn *turn, Saga *saga)
{
	TimestampTz now = clock_now();
	TimestampTz wake = 0;
	int			count = saga->ready_count;

	if (saga->deadline_at != 0 && saga->deadline_at <= now && saga->unfinished > 0 &&
		!saga_pivot_done(saga))
	{
		saga_turn_back(saga, false, "deadline", "the deadline has passed");
		return true;
	}
	if (saga->unfinished == 0)
	{
		saga_set_status(saga, SAGA_EVENT_ALL_DONE);
		return false;
	}
	for (int i = 0; i < count; i++)
	{
		int			ordinal = saga->ready[saga->ready_head];
		StepState  *state = &saga->steps[ordinal];
		Way			way = WAY_LATER;

		saga->ready_head = (saga->ready_head + 1) % saga->def->nsteps;
		saga->ready_count--;
		if (state->next_attempt_at <= now)
		{
			way = way_of(turn, saga, ordinal);
			if (way == WAY_CALL)
				run_call(turn, saga, ordinal, PHASE_ACTION);
			else if (way == WAY_HAND_OUT)
				saga_hand_out(turn, saga, ordinal);
			if (way != WAY_LATER)
				return true;
		}
		else if (wake == 0 || state->next_attempt_at < wake)
			wake = state->next_attempt_at;
		push_ready(saga, ordinal);
	}
	wait_until(saga, wake);
	return false;
}

/* One step back; false when nothing can be done now. */
static bool
advance_backward(Turn *turn, Saga *saga)
{
	TimestampTz now = clock_now();

	if (saga->undo == NULL)
	{
		int			pivot = saga->def->pivot;

		/* As long as the pivot is in somebody's hands nothing else is given up. */
		if ((saga->nwaiting > 0 && pivot >= 0 && saga_withdraw_step(turn, saga, pivot)) ||
			saga_withdraw(turn, saga))
		{
			wait_until(saga, 0);
			return false;
		}
		prepare_undo(saga);
	}
	while (saga->undo_at < saga->nundo)
	{
		int			ordinal = saga->undo[saga->undo_at];
		StepDef    *step = &saga->def->steps[ordinal];
		StepState  *state = &saga->steps[ordinal];

		if (state->status != STEP_COMPLETED && state->status != STEP_COMPENSATING &&
			state->status != STEP_FAILED)
		{
			saga->undo_at++;
			continue;
		}
		if (state->waiting)
		{
			wait_until(saga, 0);
			return false;
		}
		if (state->phase == PHASE_COMPENSATION && state->next_attempt_at > now)
		{
			saga->wake_at = state->next_attempt_at;
			saga->dirty = true;
			return false;
		}
		if (step->kind == STEP_LOCAL && step->for_each == NULL)
			run_call(turn, saga, ordinal, PHASE_COMPENSATION);
		else
		{
			if (state->status != STEP_COMPENSATING)
				saga_set_step(saga, ordinal, STEP_EVENT_UNDO);
			saga_hand_out_undoing(turn, saga, ordinal);
		}
		return true;
	}
	saga_settle(saga);
	return false;
}

/* Nothing is left to undo: what has it come to? */
void
saga_settle(Saga *saga)
{
	bool		undone = false;

	for (int i = 0; i < saga->def->nsteps; i++)
		undone = undone || saga->steps[i].status == STEP_COMPENSATED ||
			(saga->steps[i].status == STEP_SKIPPED && saga->steps[i].items > 0 &&
			 saga->steps[i].phase == PHASE_COMPENSATION && saga_any_item_undone(saga, i));
	undone = undone || saga_any_child_undone(saga);
	saga_set_status(saga, undone ? SAGA_EVENT_ALL_UNDONE : SAGA_EVENT_NOTHING_UNDONE);
}

/*
 * Take a saga as far as it can go in this transaction.  Afterwards it is
 * finished, waits (wake_at in the future or never), or goes on in the next
 * transaction (wake_at not after now).
 */
void
saga_advance(Turn *turn, Saga *saga)
{
	bool		more = true;

	if (saga->steps == NULL)
		elog(ERROR, "saga " INT64_FORMAT " is not loaded", saga->id);
	if (in_hand_is_suspect(saga->id) && !suspect_acquire(saga->id))
	{
		saga->wake_at = clock_now() + SUSPECT_DELAY_US;
		saga->dirty = true;
		return;
	}
	saga_prepare(saga);
	saga_take_in(turn, saga);
	if (saga->start_at > clock_now() && saga->started_at == 0 && !saga->backward)
		return;					/* told of something before its time */
	while (more)
	{
		if (saga->status != SAGA_RUNNING && saga->status != SAGA_COMPENSATING)
			break;
		if (saga->elsewhere)
		{
			saga->wake_at = clock_now() + ELSEWHERE_DELAY_US;
			saga->dirty = true;
			break;
		}
		if (!may_go_on(turn, saga))
		{
			if (saga->wake_at == 0 || saga->wake_at > clock_now())
			{
				saga->wake_at = clock_now();
				saga->dirty = true;
			}
			break;
		}
		more = saga->backward ? advance_backward(turn, saga) :
			advance_forward(turn, saga);
	}
}
