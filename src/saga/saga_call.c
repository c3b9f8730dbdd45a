/*-------------------------------------------------------------------------
 *
 * saga_call.c
 *	  Running a step's function as the owner of the saga.
 *
 * A call is made bare or guarded.  Bare, it runs in the turn's transaction
 * itself: cheapest, and an error aborts the whole turn.  Guarded, it runs in a
 * subtransaction, so that a failure undoes this step and nothing else, and is
 * recorded in the same transaction.  A worker trusts a step with a bare call
 * while it does not fail; one failure, and the step is guarded for its next
 * thousand calls.  The turn that failed bare left nothing behind and is simply
 * made again.
 *
 * A step that this process has never seen, that is slow, or that was running
 * when a server crashed has a transaction of its own, in which only its saga is
 * claimed, so that no neighbour waits uncommitted or locked behind it.
 * CALL_NOT_NOW asks for that.
 *
 * Failures that may come from the neighbours in the same transaction (a
 * deadlock, a lock timeout, a serialization failure) are charged to a step only
 * when it was alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/jsonpath.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/json.h"
#include "base/json_path.h"
#include "base/query.h"
#include "base/user_call.h"
#include "saga/saga_task.h"
#include "twophase/twophase.h"

/* A step whose mean is over this runs alone. */
#define SLOW_CALL_US 5000

/* Calls for which a step that failed is guarded. */
#define DISTRUST_CALLS 1000

/* Subtransactions with an xid that fit in PGPROC; beyond lies the overflow. */
#define MAX_SUBTRANSACTIONS 48
#define MAX_OWN_SUBXIDS 32

/* Two quoted identifiers, every byte doubled, and what is between. */
#define FUNCTION_NAME_MAX (4 * NAMEDATALEN + 8)

/* A function resolved in this transaction; the key is its name's address. */
typedef struct FunctionEntry
{
	const char *name;
	bool		ready;
	bool		returns_void;
	bool		returns_bool;	/* a vote */
	FmgrInfo	function;
} FunctionEntry;

/* Memories by function; in TopMemoryContext, never emptied. */
static HTAB *memories = NULL;

typedef struct MemoryEntry
{
	char		function[FUNCTION_NAME_MAX];
	CallMemory	memory;
} MemoryEntry;

/*
 * This process's memory of the function of a call.  It is the function's and
 * not the step's, since ten thousand steps may share one.
 */
static CallMemory *
phase_memory(StepDef *step, Phase phase)
{
	if (step->memory[phase] == NULL)
	{
		MemoryEntry *entry;
		bool		found;

		if (memories == NULL)
		{
			HASHCTL		ctl = {0};

			ctl.keysize = FUNCTION_NAME_MAX;
			ctl.entrysize = sizeof(MemoryEntry);
			ctl.hcxt = TopMemoryContext;
			memories = hash_create("coord saga call memory", 64, &ctl,
								   HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
		}
		entry = hash_search(memories, phase == PHASE_ACTION ? step->action :
							step->compensation, HASH_ENTER, &found);
		if (!found)
			memset(&entry->memory, 0, sizeof(CallMemory));
		step->memory[phase] = &entry->memory;
	}
	return step->memory[phase];
}

/* A bare call of this step failed: guard it. */
void
saga_distrust(SagaDef *def, int ordinal, Phase phase)
{
	phase_memory(&def->steps[ordinal], phase)->distrust = DISTRUST_CALLS;
}

Pace
saga_call_pace(const StepDef *step, Phase phase)
{
	CallMemory *memory = phase_memory(unconstify(StepDef *, step), phase);

	if (memory->calls == 0)
		return PACE_UNKNOWN;
	return memory->alone || memory->mean_us > SLOW_CALL_US ? PACE_SLOW : PACE_QUICK;
}

/*
 * A call that perhaps another process made took this long.  A slow one counts
 * whatever is known already: items of one step may differ, and one that waits
 * for long must not have others in hand.
 */
void
saga_learn(Saga *saga, int ordinal, Phase phase, int64 us)
{
	CallMemory *memory = phase_memory(&saga->def->steps[ordinal], phase);

	if (us > SLOW_CALL_US)
		memory->mean_us = Max(memory->mean_us, us);
	memory->calls = Max(memory->calls, 1);
}

/* Be coord again after calls of user code. */
void
saga_leave_user(Turn *turn)
{
	if (!turn->in_user)
		return;
	turn->in_user = false;
	identity_leave_user(&turn->user);
}

/* Be the saga's owner, with its definition's search_path. */
static void
enter_user(Turn *turn, const Saga *saga)
{
	if (turn->in_user && turn->user_role == saga->owner && turn->user_def == saga->def)
		return;
	saga_leave_user(turn);
	identity_enter_user(&turn->user, saga->owner, saga->def->search_path);
	turn->user_role = saga->owner;
	turn->user_def = saga->def;
	turn->in_user = true;
}

/*
 * The function of a call, resolved as the owner.  Returns NULL and says why
 * when it cannot be run; that is for an operator to mend and charges nothing.
 */
static FunctionEntry *
find_function(Turn *turn, const Saga *saga, const char *name, bool vote, char **reason)
{
	FunctionEntry *entry;
	bool		found;
	Oid			oid;

	if (turn->functions == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(char *);
		ctl.entrysize = sizeof(FunctionEntry);
		ctl.hcxt = turn->context;
		turn->functions = hash_create("coord saga functions", 32, &ctl,
									  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(turn->functions, &name, HASH_ENTER, &found);
	if (found && entry->ready)
		return entry;

	entry->ready = false;
	oid = saga_function_usable(name, saga->owner);
	if (!OidIsValid(oid))
		*reason = psprintf("function %s(jsonb) does not exist, or its schema may not be used", name);
	else if (saga_function_problem(oid, vote) != NULL)
		*reason = psprintf("function %s(jsonb) does not return %s any more", name,
						   vote ? "boolean" : "jsonb or void");
	else if (coord_function_aclcheck(oid, saga->owner) != ACLCHECK_OK)
		*reason = psprintf("permission denied for function %s", name);
	else
	{
		entry->returns_void = get_func_rettype(oid) == VOIDOID;
		entry->returns_bool = vote;
		fmgr_info_cxt(oid, &entry->function, turn->context);
		entry->ready = true;
		return entry;
	}
	return NULL;
}

/* A step's name as the log has it, of an item with its number. */
char *
saga_task_name(const SagaDef *def, int ordinal, int item)
{
	return item == NO_ITEM ? def->steps[ordinal].name :
		psprintf("%s[%d]", def->steps[ordinal].name, item);
}

/*
 * What makes a call, or a task, the same at each attempt.  The number of an item
 * comes before the slash, so that no step's name can be mistaken for it.
 */
void
saga_idempotency_key(char *key, size_t size, const Saga *saga, int ordinal, Phase phase,
					 const Task *task)
{
	char		item[16] = "";

	if (saga->def->participant)
	{
		saga_participant_key(key, size, saga, ordinal, phase);
		return;
	}
	if (task != NULL && task->item != NO_ITEM)
		snprintf(item, sizeof(item), ".%d", task->item);
	snprintf(key, size, INT64_FORMAT "%s/%s%s", saga->id, item,
			 saga->def->steps[ordinal].name,
			 phase == PHASE_COMPENSATION ? "/compensation" : "");
}

/*
 * The context document; see doc/saga.md.  "task" is NULL for a call that was not
 * handed out.
 */
Jsonb *
saga_document(const Saga *saga, int ordinal, Phase phase, const Task *task)
{
	const StepDef *step = &saga->def->steps[ordinal];
	const StepState *state = &saga->steps[ordinal];
	bool		item = task != NULL && task->item != NO_ITEM;
	JsonPart	parts[13];
	int			results;
	int			n = 0;
	char		idempotency_key[IDEMPOTENCY_KEY_SIZE];

	saga_idempotency_key(idempotency_key, sizeof(idempotency_key), saga, ordinal, phase, task);
	if (saga->def->participant)
		return saga_participant_document(saga, idempotency_key);

	/* In jsonb's order: length, then bytes. */
	json_part_string(&parts[n++], "key", saga->key);
	if (item)
		json_part_jsonb(&parts[n++], "item", task->item_value);
	json_part_string(&parts[n++], "saga", saga->def->name);
	json_part_string(&parts[n++], "step", step->name);
	if (phase == PHASE_COMPENSATION)
		json_part_string(&parts[n++], "error", saga->error);
	if (item)
		json_part_integer(&parts[n++], "index", task->item);
	json_part_jsonb(&parts[n++], "input", saga->input);
	if (phase == PHASE_COMPENSATION)
		json_part_jsonb(&parts[n++], "result", item ? task->given : state->result);
	json_part_integer(&parts[n++], "attempt", task ? task->attempt : state->attempt);
	results = n++;
	if (saga->growing == NULL)
		json_part_jsonb(&parts[results], "results",
						json_from_parts(saga->results, saga->def->nsteps));
	else
	{
		json_part_key(&parts[results], "results");
		parts[results].present = true;
		json_object_value(saga->growing, &parts[results].value);
	}
	json_part_integer(&parts[n++], "saga_id", saga->id);
	json_part_string(&parts[n++], "correlation_id",
					 saga->has_correlation ? saga->correlation_id : NULL);
	json_part_string(&parts[n++], "idempotency_key", idempotency_key);

	/* A saga that is only read may be used by several calls at a time. */
	if (saga->growing != NULL && task == NULL)
		return json_object_document(saga->growing, parts, n, results);
	return json_from_parts(parts, n);
}

/*
 * A result that says {"success": false} is a failure; its reason, NULL: it is
 * none.
 */
char *
saga_result_failure(Jsonb *result)
{
	JsonbValue	value;
	char	   *reason;

	if (result == NULL || !json_is_object(result) ||
		json_get(result, "success", &value) == NULL ||
		value.type != jbvBool || value.val.boolean)
		return NULL;
	reason = json_get_text(result, "error");
	if (reason == NULL && json_get(result, "error", &value) != NULL &&
		value.type == jbvBinary)
		reason = JsonbToCString(NULL, value.val.binary.data, value.val.binary.len);
	return reason ? reason : pstrdup("the step returned \"success\": false");
}

/* What a step did whose result is a failure is undone like that of one that raises. */
static void
check_success(Jsonb *result)
{
	char	   *reason = saga_result_failure(result);

	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_RAISE_EXCEPTION),
				 errmsg("%s", reason)));
}

typedef struct CallErrorContext
{
	const Saga *saga;
	const StepDef *step;
} CallErrorContext;

static void
call_error_context(void *arg)
{
	CallErrorContext *context = arg;

	errcontext("saga " INT64_FORMAT " step \"%s\"",
			   context->saga->id, context->step->name);
}

/*
 * The call itself, as the owner, in the call's memory context.  Everything that
 * user code can raise comes out of here as an error, and everything that user
 * code can defer has run when it returns.
 */
static CallOutcome
invoke(Turn *turn, Saga *saga, int ordinal, Phase phase, FunctionEntry *entry,
	   Jsonb **result)
{
	StepDef    *step = &saga->def->steps[ordinal];
	LOCAL_FCINFO(fcinfo, 1);
	PgStat_FunctionCallUsage usage;
	CallOutcome outcome = CALL_SUCCEEDED;
	Jsonb	   *document;
	Datum		value;
	int			guc_level;

	*result = NULL;
	PushActiveSnapshot(GetTransactionSnapshot());
	guc_level = identity_enter_call(saga->has_correlation ? saga->correlation_id : NULL);

	document = saga_document(saga, ordinal, phase, saga->task);
	if (phase == PHASE_ACTION && step->condition != NULL && step->for_each == NULL &&
		!json_path_holds(step->condition, document))
		outcome = CALL_SKIPPED;
	else if (step->server != NULL)
	{
		*result = twophase_call(step->server, phase == PHASE_ACTION ? step->action :
								step->compensation, document);
		DEBUG_POINT("saga_after_call");
		check_success(*result);
	}
	else
	{
		InitFunctionCallInfoData(*fcinfo, &entry->function, 1, InvalidOid, NULL, NULL);
		fcinfo->args[0].value = JsonbPGetDatum(document);
		fcinfo->args[0].isnull = false;
		pgstat_init_function_usage(fcinfo, &usage);
		value = FunctionCallInvoke(fcinfo);
		pgstat_end_function_usage(&usage, true);
		if (entry->returns_bool && (fcinfo->isnull || !DatumGetBool(value)))
			ereport(ERROR,
					(errcode(ERRCODE_RAISE_EXCEPTION),
					 errmsg("it returned %s", fcinfo->isnull ? "null" : "false")));
		if (!fcinfo->isnull && !entry->returns_void && !entry->returns_bool)
			*result = DatumGetJsonbP(value);
		DEBUG_POINT("saga_after_call");
		check_success(*result);
	}
	/* Deferred triggers want no snapshot of ours and take their own. */
	PopActiveSnapshot();
	identity_leave_call(guc_level);
	CommandCounterIncrement();
	return outcome;
}

/*
 * When a call's time is up: the step's timeout, and in a session that waits for a
 * vote the end of that; 0: never.
 */
static TimestampTz
call_until(const Turn *turn, const Saga *saga, int ordinal, Phase phase)
{
	const StepDef *step = &saga->def->steps[ordinal];

	if (step->timeout_ms > 0)
		return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), step->timeout_ms);
	return step->vote && phase == PHASE_ACTION ? turn->vote_until : 0;
}

/* invoke() with the timeout around it. */
static CallOutcome
invoke_timed(Turn *turn, Saga *saga, int ordinal, Phase phase,
			 FunctionEntry *entry, Jsonb **result)
{
	TimestampTz until = call_until(turn, saga, ordinal, phase);
	CallOutcome outcome;
	volatile TimestampTz theirs;
	bool		armed;

	if (until == 0)
		return invoke(turn, saga, ordinal, phase, entry, result);

	theirs = user_call_arm(until, &armed);
	PG_TRY();
	{
		outcome = invoke(turn, saga, ordinal, phase, entry, result);
	}
	PG_FINALLY();
	{
		if (armed)
			user_call_disarm(theirs);
	}
	PG_END_TRY();

	/* User code can catch the cancel; it is too late all the same. */
	if (armed && GetCurrentTimestamp() > until)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("the step ran longer than its timeout")));
	return outcome;
}

/* A caller who cancels his CALL, or whose time is up, means the CALL. */
static bool
must_propagate(Turn *turn, const ErrorData *error, bool step_timed_out)
{
	return user_call_is_cancel(error) && !turn->worker && !step_timed_out;
}

/*
 * The call in a subtransaction: an error is returned, not raised.
 */
static void
invoke_guarded(Turn *turn, Saga *saga, int ordinal, Phase phase,
			   FunctionEntry *entry, CallResult *call)
{
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext context = CurrentMemoryContext;
	TimestampTz until = call_until(turn, saga, ordinal, phase);
	UserCallSession session;

	if (!user_call_watch(saga->owner, turn->user.identity.user, &session))
	{
		call->outcome = CALL_ELSEWHERE;
		call->reason = "the session has open cursors";
		return;
	}
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	turn->subtransactions++;
	PG_TRY();
	{
		call->outcome = invoke_timed(turn, saga, ordinal, phase, entry, &call->result);
		user_call_check(&session);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(turn->context);
		call->error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		identity_forget_session();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		call->outcome = CALL_FAILED;
		if (user_call_is_restriction(&session, call->error))
		{
			call->outcome = CALL_ELSEWHERE;
			call->reason = call->error->message;
		}
		if (must_propagate(turn, call->error, until != 0 && GetCurrentTimestamp() >= until))
			ReThrowError(call->error);
	}
	PG_END_TRY();
	user_call_release(&session);
}

/* May the others in the same transaction have brought it about? */
static bool
may_be_neighbours_fault(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE ||
		sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED ||
		sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE;
}

/* What an operator sees in pg_stat_activity and coord.workers. */
static void
report_call(Turn *turn, const Saga *saga, const StepDef *step, int ordinal, Phase phase)
{
	char		activity[CHECK_NAME_MAX + 64];

	in_hand_enter(saga->id, saga->def->id, ordinal, phase, saga->owner);
	if (!turn->worker || !pgstat_track_activities)
		return;
	snprintf(activity, sizeof(activity), "coord: saga " INT64_FORMAT " %s %s",
			 saga->id, phase == PHASE_ACTION ? "step" : "compensation of", step->name);
	pgstat_report_activity(STATE_RUNNING, activity);
}

/* Note how long it took; an average that forgets. */
static void
remember_call(CallMemory *memory, TimestampTz begin)
{
	double		us = GetCurrentTimestamp() - begin;

	if (memory->calls++ == 0)
		memory->mean_us = us > SLOW_CALL_US ? us : 0;
	else
		memory->mean_us += (us - memory->mean_us) / Min(memory->calls, 16);
	if (memory->distrust > 0)
		memory->distrust--;
	if (MyProc->subxidStatus.overflowed ||
		MyProc->subxidStatus.count > MAX_OWN_SUBXIDS + MAX_SUBTRANSACTIONS)
		memory->alone = true;
}

/*
 * Run one phase of one step.  The outcome is in "call"; nothing of the saga is
 * changed.  In a worker a bare call raises its error, see the file header.
 */
void
saga_call(Turn *turn, Saga *saga, int ordinal, Phase phase, CallResult *call)
{
	StepDef    *step = &saga->def->steps[ordinal];
	CallMemory *memory = phase_memory(step, phase);
	const char *name = phase == PHASE_ACTION ? step->action : step->compensation;
	bool		alone = memory->calls == 0 || memory->alone || memory->alone_next ||
		memory->mean_us > SLOW_CALL_US || in_hand_is_suspect(saga->id);
	bool		guarded = turn->guard_all || alone || memory->distrust > 0;
	bool		first = turn->calls == 0;
	CallErrorContext error_context = {saga, step};
	ErrorContextCallback callback;
	FunctionEntry *entry;
	MemoryContext context;
	TimestampTz begin;

	if ((alone && turn->worker && (!first || turn->nloaded > 1)) ||
		turn->subtransactions >= MAX_SUBTRANSACTIONS)
	{
		turn->end = true;
		call->outcome = CALL_NOT_NOW;
		return;
	}
	turn->end = turn->end || alone;
	turn->alone = alone;
	memory->alone_next = false;

	call->outcome = CALL_UNRUNNABLE;
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(saga->owner)))
	{
		call->reason = psprintf("role with OID %u, who started the saga, does not exist any more",
								saga->owner);
		return;
	}
	enter_user(turn, saga);
	entry = step->server != NULL ? NULL :
		find_function(turn, saga, name, step->vote && phase == PHASE_ACTION, &call->reason);
	if (entry == NULL && step->server == NULL)
		return;

	turn->calls++;
	turn->calling = saga;
	turn->calling_ordinal = ordinal;
	turn->calling_phase = phase;
	callback.callback = call_error_context;
	callback.arg = &error_context;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	report_call(turn, saga, step, ordinal, phase);

	context = MemoryContextSwitchTo(turn->call_context);
	begin = GetCurrentTimestamp();
	if (guarded)
		invoke_guarded(turn, saga, ordinal, phase, entry, call);
	else
		call->outcome = invoke_timed(turn, saga, ordinal, phase, entry, &call->result);
	MemoryContextSwitchTo(context);

	remember_call(memory, begin);
	in_hand_leave();
	error_context_stack = callback.previous;
	if (call->result != NULL)
	{
		Size		size = VARSIZE(call->result);

		call->result = memcpy(palloc(size), call->result, size);
	}
	MemoryContextReset(turn->call_context);

	if (call->outcome == CALL_FAILED)
	{
		memory->distrust = DISTRUST_CALLS;
		if (turn->worker && !first && may_be_neighbours_fault(call->error->sqlerrcode))
		{
			memory->alone_next = true;
			ReThrowError(call->error);
		}
	}
	turn->calling = NULL;
}
