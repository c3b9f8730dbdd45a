/*-------------------------------------------------------------------------
 *
 * saga_verbs.c
 *	  What operators do to sagas: cancel, pause, resume, retry, skip, patch,
 *	  abandon.
 *
 * A verb never waits for a running step.  If nobody has the saga in hand it is
 * done at once, in the caller's transaction.  Otherwise it is written down in
 * coord_internal.saga_request, and whoever has the saga does it at the next
 * step boundary:
 *
 * 1. The request commits, then raises request_serial (commit callback).
 * 2. Whoever advances the saga compares request_serial with what it was when
 *	  its transaction began, before each call and before it goes on after one;
 *	  a difference makes it commit, which frees the saga.
 * 3. Whoever claims sagas to advance them first applies the requests for them
 *	  that are committed by then, as long as "requests_left" says that there may
 *	  be some.  So it does not matter who it is that claims the saga next.
 * 4. "requests_left" is set with the serial, and cleared only by who has seen the
 *	  table empty under the serial that still is the current one.
 *	  A verb that finds the saga free is such a one, so verbs do not overtake each
 *	  other.
 * 5. The flag "requests" wakes a worker for sagas that nobody would claim soon.
 *	  The holder may be another operator's open transaction: its commit sets
 *	  the flag as well.  That worker may find the saga still locked by a turn that
 *	  is just ending, or by another worker that applies requests: whoever had
 *	  sagas in hand and finds that the serial has changed meanwhile sets the flag
 *	  again (saga_turn_end()).
 *
 * Privileges are checked when the verb is called; the audit row in the log
 * bears the role that called.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/debug_point.h"
#include "base/errors.h"
#include "base/installation.h"
#include "base/query.h"
#include "saga/saga_task.h"

PG_FUNCTION_INFO_V1(coord_saga_cancel);
PG_FUNCTION_INFO_V1(coord_saga_pause);
PG_FUNCTION_INFO_V1(coord_saga_resume);
PG_FUNCTION_INFO_V1(coord_saga_retry);
PG_FUNCTION_INFO_V1(coord_saga_skip);
PG_FUNCTION_INFO_V1(coord_saga_patch);
PG_FUNCTION_INFO_V1(coord_saga_abandon);

#define REQUEST_BATCH 256

typedef struct Request
{
	int64		id;				/* 0: not from the table */
	int64		saga;
	const char *verb;
	char	   *step;
	Jsonb	   *argument;
	Oid			role;
	char	   *reason;
	bool		interrupt;
} Request;

/* Why a verb cannot be done; code 0: it can. */
typedef struct Refusal
{
	int			code;
	char	   *message;
	char	   *hint;
} Refusal;

static void
refuse(Refusal *refusal, char *message, char *hint)
{
	refusal->code = ERRCODE_COORD_ILLEGAL_TRANSITION;
	refusal->message = message;
	refusal->hint = hint;
}

/*
 * Is it a participant of a two-phase commit, which may not decide alone?  Then what
 * an operator asks for is refused, as long as it would be that.
 */
static bool
would_decide_alone(const Saga *saga, const Request *request, Refusal *refusal)
{
	if (!saga->def->participant || saga->backward || saga_pivot_done(saga))
		return false;
	refuse(refusal,
		   psprintf("saga " INT64_FORMAT " is a participant of transaction " INT64_FORMAT " and may not decide alone",
					saga->id, saga_participant_gtid(saga)),
		   psprintf("SELECT coord.twophase_abort(" INT64_FORMAT "); if that is what you want.",
					saga_participant_gtid(saga)));
	return true;
}

/* The engine should look at it as soon as it may. */
static void
wake(Saga *saga)
{
	saga->wake_at = clock_now();
	if (!saga->backward && saga->start_at > saga->wake_at)
		saga->wake_at = saga->start_at;
	saga->dirty = true;
}

/* Tasks of a saga that was stopped were passed over; they are looked at again. */
static void
find_tasks_again(const Saga *saga)
{
	const SagaDef *def = saga->def;

	if (!def->waits)
		return;
	doorbell_scan_at_commit();
	for (int i = 0; i < def->nsteps; i++)
	{
		if (saga->steps[i].waiting && def->steps[i].kind == STEP_QUEUE)
			queue_resumed_at_commit(def->steps[i].queue);
	}
}

static bool
do_cancel(Saga *saga, const Request *request, Refusal *refusal)
{
	if (strcmp(request->verb, "abort") != 0 && would_decide_alone(saga, request, refusal))
		return false;
	if (saga->backward)
		return false;
	if (saga_pivot_done(saga))
	{
		refuse(refusal,
			   psprintf("saga " INT64_FORMAT " cannot be cancelled: its pivot \"%s\" is completed",
						saga->id, saga->def->steps[saga->def->pivot].name),
			   "From here on it only goes forward; coord.saga_abandon() gives it up without undoing anything.");
		return false;
	}
	saga_turn_back(saga, true, "cancelled",
				   request->reason ? request->reason : "cancelled");
	return true;
}

static bool
do_pause(Saga *saga, const Request *request, Refusal *refusal)
{
	if (!machine_allows(&saga_machine, saga->status, SAGA_EVENT_PAUSE))
		return false;
	saga_set_status(saga, SAGA_EVENT_PAUSE);
	saga->wake_at = 0;
	return true;
}

static bool
do_resume(Saga *saga, const Request *request, Refusal *refusal)
{
	if (saga->status != SAGA_PAUSED)
		return false;
	saga_set_status(saga, saga->backward ? SAGA_EVENT_RESUME_BACKWARD :
					SAGA_EVENT_RESUME_FORWARD);
	wake(saga);
	find_tasks_again(saga);
	return true;
}

/* A suspended saga goes on the way it went. */
static void
go_on(Saga *saga)
{
	if (saga->status == SAGA_SUSPENDED)
	{
		saga_set_status(saga, saga->backward ? SAGA_EVENT_RETRY_BACKWARD :
						SAGA_EVENT_RETRY_FORWARD);
		if (!saga->backward)
			saga->error = NULL;
	}
	if (saga->status != SAGA_PAUSED)
		wake(saga);
	find_tasks_again(saga);
}

/* Does this step stop the saga, or wait for its next attempt? */
static bool
is_stopped(const Saga *saga, int ordinal)
{
	const StepState *state = &saga->steps[ordinal];

	if (saga->backward)
		return state->status == STEP_COMPENSATION_FAILED ||
			(state->status == STEP_COMPENSATING && state->next_attempt_at != 0);
	if (state->status == STEP_FAILED)
		return !saga->def->steps[ordinal].optional;
	return state->status == STEP_READY &&
		(state->next_attempt_at != 0 || (state->error != NULL && state->sqlstate == NULL));
}

static void
revive(Saga *saga, int ordinal)
{
	StepState  *state = &saga->steps[ordinal];

	if (state->status == STEP_FAILED)
		saga_set_step(saga, ordinal, STEP_EVENT_REVIVE);
	else if (state->status == STEP_COMPENSATION_FAILED)
		saga_set_step(saga, ordinal, STEP_EVENT_UNDO_REVIVE);
	state->attempt = 0;
	state->sequence = saga->backward ? state->sequence : 0;
	state->next_attempt_at = 0;
	state->finished_at = 0;
	if (state->sqlstate == NULL)
		state->error = NULL;	/* why it could not be run */
	state->dirty = true;
	saga->dirty = true;
}

/* Does any step still stop the saga for an operator? */
static bool
is_still_stopped(const Saga *saga)
{
	for (int i = 0; i < saga->def->nsteps; i++)
	{
		if (is_stopped(saga, i) && saga->steps[i].next_attempt_at == 0)
			return true;
	}
	return false;
}

static bool
do_retry(Saga *saga, const Request *request, Refusal *refusal)
{
	int			revived = 0;

	for (int i = 0; i < saga->def->nsteps; i++)
	{
		if (!is_stopped(saga, i))
			continue;
		if (request->step && strcmp(saga->def->steps[i].name, request->step) != 0)
			continue;
		revive(saga, i);
		revived++;
	}
	for (int i = 0; i < saga->def->nsteps && saga->def->waits; i++)
	{
		if (saga->steps[i].waiting &&
			(request->step == NULL || strcmp(saga->def->steps[i].name, request->step) == 0) &&
			saga_hurry_tasks(saga, i, saga->steps[i].phase))
			revived++;
	}
	if (revived == 0 && (request->step || saga->status != SAGA_SUSPENDED))
	{
		if (request->step && saga->status == SAGA_SUSPENDED)
			refuse(refusal,
				   psprintf("step \"%s\" of saga " INT64_FORMAT " is not what stops it",
							request->step, saga->id),
				   "coord.stuck names the step; leave the step out to retry it.");
		return false;
	}
	if (!is_still_stopped(saga))
		go_on(saga);
	return true;
}

static bool
do_skip(Saga *saga, const Request *request, Refusal *refusal)
{
	int			ordinal = saga_step_ordinal(saga->def, request->step);
	StepState  *state = &saga->steps[ordinal];

	if (would_decide_alone(saga, request, refusal) || state->status == STEP_SKIPPED)
		return false;
	if (saga->backward)
	{
		if (state->status == STEP_COMPLETED &&
			saga_step_can_be_undone(&saga->def->steps[ordinal]))
			saga_set_step(saga, ordinal, STEP_EVENT_UNDO);
		if (!machine_allows(&step_machine, state->status, STEP_EVENT_UNDO_SKIP))
		{
			refuse(refusal,
				   psprintf("step \"%s\" of saga " INT64_FORMAT " has no compensation to skip",
							request->step, saga->id), NULL);
			return false;
		}
		saga_skip_waiting(saga, ordinal, PHASE_COMPENSATION);
		saga_set_step(saga, ordinal, STEP_EVENT_UNDO_SKIP);
	}
	else
	{
		if (!machine_allows(&step_machine, state->status, STEP_EVENT_SKIP))
		{
			refuse(refusal,
				   psprintf("step \"%s\" of saga " INT64_FORMAT " is %s and cannot be skipped",
							request->step, saga->id, step_machine.states[state->status]),
				   NULL);
			return false;
		}
		saga_skip_waiting(saga, ordinal, PHASE_ACTION);
		saga_set_step(saga, ordinal, STEP_EVENT_SKIP);
		if (request->argument != NULL)
		{
			state->result = request->argument;
			state->has_result = true;
		}
	}
	state->next_attempt_at = 0;
	state->finished_at = clock_now();
	if (!is_still_stopped(saga))
		go_on(saga);
	return true;
}

static bool
do_patch(Saga *saga, const Request *request, Refusal *refusal)
{
	if (saga->def->participant)
	{
		refuse(refusal,
			   psprintf("saga " INT64_FORMAT " is a participant of a two-phase commit: what it was given cannot be changed",
						saga->id), NULL);
		return false;
	}
	saga->input = request->argument;
	saga->input_dirty = true;
	saga->dirty = true;
	return true;
}

static bool
do_abandon(Saga *saga, const Request *request, Refusal *refusal)
{
	if (would_decide_alone(saga, request, refusal))
		return false;
	saga_abandon(saga, request->reason);
	return true;
}

static const struct
{
	const char *name;
	bool		(*apply) (Saga *saga, const Request *request, Refusal *refusal);
}			verbs[] =
{
	{"cancel", do_cancel},
	{"pause", do_pause},
	{"resume", do_resume},
	{"retry", do_retry},
	{"skip", do_skip},
	{"patch", do_patch},
	{"abandon", do_abandon},
	{"abort", do_cancel},		/* a participant, by its coordinator */
};

/* The audit row of a verb that was done or refused. */
static void
log_verb(Turn *turn, Saga *saga, const Request *request, const Refusal *refusal)
{
	LogRow		row = {0};

	row.saga = saga->id;
	row.name = saga->def->name;
	row.owner = saga->owner;
	row.at = clock_now();
	row.event = refusal->code ? psprintf("%s_refused", request->verb) : request->verb;
	row.step = request->step;
	row.phase = -1;
	row.role = request->role;
	row.reason = request->reason;
	row.error = refusal->code ? refusal->message : NULL;
	saga_log(turn, &row);
}

static int
compare_requests(const void *a, const void *b)
{
	int64		x = ((const Request *) a)->id;
	int64		y = ((const Request *) b)->id;

	return x < y ? -1 : x > y;
}

/*
 * Do what is asked, in memory, and write the audit row.  A refusal changes
 * nothing.
 */
static void
apply(Turn *turn, Saga *saga, const Request *request, Refusal *refusal)
{
	bool		changed = false;

	refusal->code = 0;
	for (int i = 0; i < lengthof(verbs); i++)
	{
		if (strcmp(verbs[i].name, request->verb) == 0)
			changed = verbs[i].apply(saga, request, refusal);
	}
	if (changed || refusal->code != 0)
		log_verb(turn, saga, request, refusal);
}

/* Write the request down for whoever has the saga. */
static void
leave_request(const Request *request)
{
	static Statement insert = {
		"INSERT INTO coord_internal.saga_request"
		" (saga_id, verb, step, argument, role, reason, at)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7)",
		7, {INT8OID, TEXTOID, TEXTOID, JSONBOID, OIDOID, TEXTOID, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[7];
	bool		nulls[7] = {false};

	query_begin(&scope);
	values[0] = Int64GetDatum(request->saga);
	values[1] = CStringGetTextDatum(request->verb);
	nulls[2] = request->step == NULL;
	if (!nulls[2])
		values[2] = CStringGetTextDatum(request->step);
	nulls[3] = request->argument == NULL;
	values[3] = PointerGetDatum(request->argument);
	values[4] = ObjectIdGetDatum(request->role);
	nulls[5] = request->reason == NULL;
	if (!nulls[5])
		values[5] = CStringGetTextDatum(request->reason);
	values[6] = TimestampTzGetDatum(clock_now());
	query_run(&insert, values, nulls, 0);
	query_end(&scope);
	if (request->interrupt)
		doorbell_interrupt_at_commit(request->saga);
	else
		doorbell_request_at_commit();
}

/* 42704 when the saga's definition has no such step. */
static void
check_step(int64 id, const char *step)
{
	static Statement read = {
		"SELECT definition FROM coord_internal.saga WHERE id = $1", 1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);
	int64		definition = 0;
	SagaDef    *def;
	List	   *names = NIL;
	char	   *hint;
	bool		isnull;

	query_begin(&scope);
	if (query_run_latest(&read, &value, NULL, 1) > 0)
		definition = DatumGetInt64(query_value(0, 1, &isnull));
	query_end(&scope);
	if (definition == 0)
		return;					/* finished meanwhile: nothing will change */
	def = saga_definition_by_id(definition);
	if (saga_step_ordinal(def, step) >= 0)
		return;
	for (int i = 0; i < Min(def->nsteps, 1000); i++)
		names = lappend(names, def->steps[i].name);
	hint = check_near_names(step, names);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("saga " INT64_FORMAT " has no step \"%s\"", id, step),
			 hint ? errhint("%s", hint) : 0));
}

/*
 * Do what is asked for, or leave it to who has the saga in hand.  Returns the status
 * after it; NULL: it was left.
 */
static const char *
do_or_leave(Request *request)
{
	Turn		turn;
	Saga	  **sagas = NULL;
	Refusal		refusal;
	int			loaded = 0;

	saga_turn_begin(&turn, identity_is_worker());
	if (!saga_is_in_hand(request->saga))
		sagas = saga_load(&turn, &request->saga, 1, 0, &loaded);
	if (loaded == 0)
	{
		leave_request(request);
		return NULL;
	}
	saga_ensure_partitions(identity_is_worker());

	/* What was asked for before comes first. */
	saga_apply_requests_to(&turn, sagas, 1);
	refusal.code = 0;
	if (!saga_status_is_final(sagas[0]->status))
		apply(&turn, sagas[0], request, &refusal);
	if (refusal.code != 0)
		ereport(ERROR,
				(errcode(refusal.code),
				 errmsg("%s", refusal.message),
				 refusal.hint ? errhint("%s", refusal.hint) : 0));
	saga_flush(&turn, sagas, 1);
	if (request->interrupt)
		doorbell_interrupt_at_commit(request->saga);	/* what was handed out */
	else
		doorbell_request_at_commit();
	return saga_machine.states[sagas[0]->status];
}

/*
 * A participant's coordinator has decided to abort: it turns back.  False when it is
 * finished.
 */
bool
saga_cancel_participant(int64 id, Oid role, const char *reason)
{
	static Statement exists = {
		"SELECT FROM coord_internal.saga WHERE id = $1", 1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);
	Request		request = {0};
	bool		found;

	query_begin(&scope);
	found = query_run_latest(&exists, &value, NULL, 1) > 0;
	query_end(&scope);
	if (!found)
		return false;
	request.saga = id;
	request.verb = "abort";
	request.role = role;
	request.reason = pstrdup(reason);
	request.interrupt = true;
	(void) do_or_leave(&request);
	return true;
}

/* Every verb: check, then do it or leave it; the status after. */
static Datum
verb(Request *request)
{
	char	   *status;
	const char *after;

	installation_check();
	if (strcmp(request->verb, "cancel") == 0)
		status = saga_status_or_error(request->saga);
	else
		status = saga_repairable_status(request->saga, request->verb);
	if (request->step)
		check_step(request->saga, request->step);
	if (saga_status_is_final(machine_state(&saga_machine, status)))
	{
		if (strcmp(request->verb, "patch") == 0)
			ereport(ERROR,
					(errcode(ERRCODE_COORD_ILLEGAL_TRANSITION),
					 errmsg("saga " INT64_FORMAT " is finished", request->saga),
					 errdetail("It is %s.", status)));
		return CStringGetTextDatum(status);
	}

	after = do_or_leave(request);
	return CStringGetTextDatum(after ? after : saga_status_or_error(request->saga));
}

/* ----------------------------------------------------------------
 *		Requests that were left
 * ----------------------------------------------------------------
 */

/* Apply to one claimed saga what is waiting for it, oldest first. */
static void
apply_to_saga(Turn *turn, Saga *saga)
{
	static Statement take = {
		"DELETE FROM coord_internal.saga_request WHERE saga_id = $1"
		" RETURNING id, verb, step, argument, role, reason",
		1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(saga->id);
	MemoryContext old;
	Request    *requests;
	uint64		count;
	bool		isnull;

	query_begin(&scope);
	count = query_run(&take, &value, NULL, 0);
	requests = MemoryContextAllocZero(turn->context, sizeof(Request) * Max(count, 1));
	for (uint64 i = 0; i < count; i++)
	{
		Request    *request = &requests[i];

		request->id = DatumGetInt64(query_value(i, 1, &isnull));
		request->saga = saga->id;
		request->verb = query_text(turn->context, i, 2);
		request->step = query_text(turn->context, i, 3);
		request->argument = (Jsonb *) DatumGetPointer(query_copy(turn->context, i, 4, &isnull));
		if (isnull)
			request->argument = NULL;
		request->role = DatumGetObjectId(query_value(i, 5, &isnull));
		request->reason = query_text(turn->context, i, 6);
	}
	query_end(&scope);

	old = MemoryContextSwitchTo(turn->context);
	qsort(requests, count, sizeof(Request), compare_requests);
	for (uint64 i = 0; i < count; i++)
	{
		Refusal		refusal;

		if (saga_status_is_final(saga->status))
		{
			refuse(&refusal, "the saga is finished", NULL);
			log_verb(turn, saga, &requests[i], &refusal);
		}
		else
			apply(turn, saga, &requests[i], &refusal);
	}
	if (count > 0)
		doorbell_finished_at_commit(saga->id);	/* for who waited until it is done */
	MemoryContextSwitchTo(old);
}

/*
 * Apply to claimed sagas what was asked for while somebody had them in hand;
 * to be done before they are advanced.  Costs nothing while there are no
 * requests in the database.
 */
void
saga_apply_requests_to(Turn *turn, Saga **sagas, int count)
{
	if (turn->slot != NULL && !turn->slot->requests_left)
		return;
	for (int i = 0; i < count; i++)
		apply_to_saga(turn, sagas[i]);
}

/*
 * Apply what is waiting for sagas that are free now.  Runs in the caller's
 * transaction.
 */
static void
apply_waiting(Turn *turn)
{
	static Statement list = {
		"SELECT DISTINCT saga_id FROM coord_internal.saga_request"
		" ORDER BY saga_id LIMIT $1",
		1, {INT4OID}
	};
	static Statement gone = {
		"WITH gone AS (DELETE FROM coord_internal.saga_request r WHERE NOT EXISTS"
		" (SELECT FROM coord_internal.saga s WHERE s.id = r.saga_id) RETURNING *)"
		" INSERT INTO coord_internal.saga_log"
		" (saga_id, name, owner, at, event, step, role, reason, error)"
		" SELECT g.saga_id, coalesce(a.name, ''), coalesce(a.owner, g.role), $1, g.verb || '_refused', g.step,"
		" coalesce(r.rolname, g.role::text), g.reason, 'the saga is finished'"
		" FROM gone g LEFT JOIN coord_internal.saga_archive a ON a.id = g.saga_id"
		" LEFT JOIN pg_catalog.pg_authid r ON r.oid = g.role",
		1, {TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		value = Int32GetDatum(REQUEST_BATCH);
	int64		ids[REQUEST_BATCH];
	Saga	  **sagas;
	uint64		rows;
	int			loaded;
	bool		isnull;

	saga_turn_begin(turn, identity_is_worker());
	query_begin(&scope);
	rows = query_run_latest(&list, &value, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
		ids[i] = DatumGetInt64(query_value(i, 1, &isnull));
	query_end(&scope);
	if (rows == 0)
	{
		if (turn->slot != NULL)
		{
			LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
			if (turn->slot->request_serial == turn->request_serial)
				turn->slot->requests_left = false;
			LWLockRelease(&coord_shared->lock);
		}
		return;
	}

	saga_ensure_partitions(true);
	sagas = saga_load(turn, ids, (int) rows, 0, &loaded);
	for (int i = 0; i < loaded; i++)
		apply_to_saga(turn, sagas[i]);
	saga_flush(turn, sagas, loaded);
	DEBUG_POINT("requests_applied");

	query_begin(&scope);
	value = TimestampTzGetDatum(clock_now());
	query_run(&gone, &value, NULL, 0);
	query_end(&scope);
}

/*
 * Apply waiting requests in a transaction of its own; for workers, outside a
 * transaction.
 */
void
saga_apply_requests(void)
{
	Turn		turn = {0};

	StartTransactionCommand();
	if (installation_lock(AccessShareLock))
	{
		installation_check();
		PushActiveSnapshot(GetTransactionSnapshot());
		apply_waiting(&turn);
		PopActiveSnapshot();
	}
	CommitTransactionCommand();

	/* It had sagas in hand as a turn has them. */
	saga_turn_end(&turn);
}

/* The same in the open transaction of a session that runs sagas. */
void
saga_apply_requests_here(void)
{
	Turn		turn;

	apply_waiting(&turn);
}

/* ----------------------------------------------------------------
 *		The SQL functions
 * ----------------------------------------------------------------
 */

static void
request_init(Request *request, FunctionCallInfo fcinfo, const char *name)
{
	memset(request, 0, sizeof(Request));
	check_required(fcinfo, 0, "id");
	request->saga = PG_GETARG_INT64(0);
	request->verb = name;
	request->role = GetUserId();
}

/* coord.saga_cancel(id, reason, interrupt) */
Datum
coord_saga_cancel(PG_FUNCTION_ARGS)
{
	Request		request;

	request_init(&request, fcinfo, "cancel");
	request.reason = check_optional_text(fcinfo, 1);
	request.interrupt = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	return verb(&request);
}

/* coord.saga_pause(id, reason) */
Datum
coord_saga_pause(PG_FUNCTION_ARGS)
{
	Request		request;

	request_init(&request, fcinfo, "pause");
	request.reason = check_optional_text(fcinfo, 1);
	return verb(&request);
}

/* coord.saga_resume(id, reason) */
Datum
coord_saga_resume(PG_FUNCTION_ARGS)
{
	Request		request;

	request_init(&request, fcinfo, "resume");
	request.reason = check_optional_text(fcinfo, 1);
	return verb(&request);
}

/* coord.saga_retry(id, step, reason) */
Datum
coord_saga_retry(PG_FUNCTION_ARGS)
{
	Request		request;

	request_init(&request, fcinfo, "retry");
	request.step = check_optional_text(fcinfo, 1);
	request.reason = check_optional_text(fcinfo, 2);
	return verb(&request);
}

/* coord.saga_skip(id, step, result, reason) */
Datum
coord_saga_skip(PG_FUNCTION_ARGS)
{
	Request		request;

	request_init(&request, fcinfo, "skip");
	request.step = check_text(fcinfo, 1, "step");
	if (!PG_ARGISNULL(2))
		request.argument = PG_GETARG_JSONB_P(2);
	request.reason = check_optional_text(fcinfo, 3);
	return verb(&request);
}

/* coord.saga_patch(id, input, reason) */
Datum
coord_saga_patch(PG_FUNCTION_ARGS)
{
	Request		request;

	request_init(&request, fcinfo, "patch");
	check_required(fcinfo, 1, "input");
	request.argument = PG_GETARG_JSONB_P(1);
	request.reason = check_optional_text(fcinfo, 2);
	return verb(&request);
}

/* coord.saga_abandon(id, reason) */
Datum
coord_saga_abandon(PG_FUNCTION_ARGS)
{
	Request		request;

	request_init(&request, fcinfo, "abandon");
	request.reason = check_optional_text(fcinfo, 1);
	return verb(&request);
}
