/*-------------------------------------------------------------------------
 *
 * subscription_turn.c
 *	  Handing events to handlers.
 *
 * A turn is a transaction: it reads events, calls the handler for them as the owner of
 * the subscription, and moves the cursor.  So what a handler does in this database is
 * done once, whatever happens to the server.
 *
 * A worker calls bare, without subtransactions; an error aborts the turn, and it is made
 * again with a few events, each in a subtransaction.  Those that fail are put aside, to
 * be tried again later, and the cursor passes over them.  In a caller's session all
 * calls are made so.
 *
 * A subscription that was in hand when the server crashed is a suspect (in_hand.c).
 * Then its events are all put aside first, and one at a time is tried, with the attempt
 * committed beforehand, until as many have passed as a turn may have had in hand.
 *
 * Why none waits that could be handled:
 *
 * 1. A publisher rings once its events can be read, if somebody has asked for it
 *	  (event_shared.c).  event_round() asks before it reads how far the log can be read:
 *	  what it does not see rings.
 * 2. Two workers may be sent to a subscription.  Who finds it locked by the other one goes
 *	  away, perhaps for something that this one has not seen.  So he tells him to look
 *	  again, and then tries the lock once more.  If it is still locked, then by the other
 *	  one, who will see what he was told when his turn is over, or by somebody whose turn
 *	  began later and sees what is there.
 * 3. Who rings at the end of his transaction may have the lock still.  He is waited for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/uuid.h"

#include "base/access.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/doorbell.h"
#include "base/guc.h"
#include "base/identity.h"
#include "base/in_hand.h"
#include "base/installation.h"
#include "base/json.h"
#include "base/query.h"
#include "base/retry.h"
#include "base/user_call.h"
#include "event/event.h"
#include "event/event_log.h"
#include "event/event_shared.h"
#include "event/subscription.h"

/* Events a turn has when each is in a subtransaction. */
#define CAREFUL_EVENTS 48

/* How long a worker waits for a session that has the lock. */
#define WAIT_MS 5
#define WAIT_TIMES 100

/* How long a worker stays with one subscription while others wait. */
#define STAY_US 200000

typedef enum TurnResult
{
	TURN_IDLE,					/* nothing to do now */
	TURN_BUSY,					/* somebody else has it */
	TURN_WAITS,					/* so he has, and will not look again */
	TURN_MORE					/* something was done, there may be more */
} TurnResult;

typedef struct HandlerTurn
{
	Subscription *subscription;
	FmgrInfo	function;
	bool		returns_void;
	Oid			caller;
	MemoryContext call_context;
	int			handled;
	bool		had_items;		/* it was for those put aside */
	bool		elsewhere;		/* it cannot be called in this session */
} HandlerTurn;

/* What has become of an event. */
typedef struct Fate
{
	enum
	{
		FATE_DONE,
		FATE_FAILED,
		FATE_WAITS,				/* behind another of its key */
		FATE_NOT_REACHED
	}			fate;
	char	   *sqlstate;
	char	   *message;
} Fate;

/* ----------------------------------------------------------------
 *		Calls
 * ----------------------------------------------------------------
 */

/* What the handler is given. */
static Datum
make_argument(const Subscription *subscription, const Event *events, int count)
{
	JsonWriter	writer = {0};
	Datum	   *rows;

	if (!subscription->batch)
		return subscription->takes_event ? events[0].row : JsonbPGetDatum(event_document(&events[0]));
	if (subscription->takes_event)
	{
		int16		length;
		bool		by_value;
		char		align;

		rows = palloc(sizeof(Datum) * count);
		for (int i = 0; i < count; i++)
			rows[i] = events[i].row;
		get_typlenbyvalalign(event_row_type(), &length, &by_value, &align);
		return PointerGetDatum(construct_array(rows, count, event_row_type(), length, by_value, align));
	}
	json_begin_array(&writer);
	for (int i = 0; i < count; i++)
		json_element(&writer, event_document(&events[i]));
	json_end_array(&writer);
	return JsonbPGetDatum(json_finish(&writer));
}

/* The handler's result is an event, too. */
static void
emit(const Subscription *subscription, Jsonb *result, pg_uuid_t *correlation_id)
{
	PublishedEvent event = {0};

	event.type = cstring_to_text(subscription->emits);
	event.data = result;
	event.correlation_id = correlation_id;
	event_publisher_enter();
	(void) event_log_insert(&event, clock_now(), subscription->owner);
}

/* An id of the event, if this is the only one. */
static pg_uuid_t *
id_of(const Event *events, int count, int column)
{
	bool		isnull;
	Datum		value;

	if (count != 1)
		return NULL;
	value = event_field(&events[0], column, &isnull);
	return isnull ? NULL : DatumGetUUIDP(value);
}

/* The call itself, as the owner; raises what user code raises. */
static void
invoke(HandlerTurn *turn, const Event *events, int count)
{
	LOCAL_FCINFO(fcinfo, 1);
	pg_uuid_t  *correlation_id = id_of(events, count, 11);
	Datum		value;
	int			guc_level;

	PushActiveSnapshot(GetTransactionSnapshot());
	guc_level = identity_enter_call(correlation_id == NULL ? NULL :
									DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(correlation_id))));
	InitFunctionCallInfoData(*fcinfo, &turn->function, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = make_argument(turn->subscription, events, count);
	fcinfo->args[0].isnull = false;
	event_cause = id_of(events, count, 8);
	value = FunctionCallInvoke(fcinfo);
	DEBUG_POINT("event_after_handler");
	if (turn->subscription->emits != NULL && !turn->returns_void && !fcinfo->isnull)
		emit(turn->subscription, DatumGetJsonbP(value), correlation_id);
	PopActiveSnapshot();
	identity_leave_call(guc_level);
	CommandCounterIncrement();
}

/* The same, with everything around it. */
static void
call(HandlerTurn *turn, const Event *events, int count)
{
	MemoryContext context = MemoryContextSwitchTo(turn->call_context);
	TimestampTz until = guc_handler_timeout == 0 ? 0 :
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), guc_handler_timeout);
	volatile TimestampTz theirs = 0;
	bool		armed = false;

	in_hand_enter(-turn->subscription->id, 0, 0, 0, turn->subscription->owner);
	if (until != 0)
		theirs = user_call_arm(until, &armed);
	PG_TRY();
	{
		invoke(turn, events, count);
	}
	PG_FINALLY();
	{
		event_cause = NULL;
		if (armed)
			user_call_disarm(theirs);
	}
	PG_END_TRY();
	if (armed && GetCurrentTimestamp() > until)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("the handler ran longer than coord.handler_timeout")));
	in_hand_leave();
	MemoryContextSwitchTo(context);
	MemoryContextReset(turn->call_context);
	turn->handled += count;
}

/* The call in a subtransaction: what it raises is in "fate". */
static void
call_guarded(HandlerTurn *turn, const Event *event, Fate *fate)
{
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext context = CurrentMemoryContext;
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), guc_handler_timeout);
	UserCallSession session;

	fate->fate = FATE_DONE;
	if (!user_call_watch(turn->subscription->owner, turn->caller, &session))
	{
		turn->elsewhere = true;
		fate->fate = FATE_NOT_REACHED;
		return;
	}
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		call(turn, event, 1);
		user_call_check(&session);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		identity_forget_session();
		in_hand_leave();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		MemoryContextReset(turn->call_context);

		/* A caller who cancels his CALL means the CALL. */
		if (user_call_is_cancel(error) && !identity_is_worker() &&
			(guc_handler_timeout == 0 || GetCurrentTimestamp() < until))
			ReThrowError(error);
		fate->fate = FATE_FAILED;
		fate->sqlstate = pstrdup(unpack_sql_state(error->sqlerrcode));
		fate->message = error->message ? error->message : "unknown error";
		if (user_call_is_restriction(&session, error))
		{
			turn->elsewhere = true;
			fate->fate = FATE_NOT_REACHED;
		}
	}
	PG_END_TRY();
	user_call_release(&session);
}

/* ----------------------------------------------------------------
 *		A turn
 * ----------------------------------------------------------------
 */

/* When an event that has failed so often is tried again; 0: not. */
static TimestampTz
retry_at(const Subscription *subscription, int attempts)
{
	RetryPolicy policy = {0};

	if (attempts >= subscription->max_attempts)
		return 0;
	policy.delay = USECS_PER_SEC;
	policy.backoff = 2;
	policy.max_delay = 300 * USECS_PER_SEC;
	return clock_now() + retry_delay(&policy, attempts);
}

/* Note why the handler cannot be called, or that it can. */
static void
note_problem(const Subscription *subscription, const char *problem)
{
	static Statement update = {
		"UPDATE coord_internal.subscription SET problem = $2 WHERE id = $1 AND problem IS DISTINCT FROM $2",
		2, {INT8OID, TEXTOID}
	};
	QueryScope	scope;
	Datum		values[2];
	bool		nulls[2] = {false, problem == NULL};
	bool		changed;

	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = problem != NULL ? CStringGetTextDatum(problem) : (Datum) 0;
	changed = query_run(&update, values, nulls, 0) > 0;
	query_end(&scope);
	if (changed && problem != NULL)
		ereport(LOG,
				(errmsg("coord: subscription \"%s\" cannot go on: %s", subscription->name, problem)));
}

/* Find the handler; false, and noted, when it cannot be called. */
static bool
prepare(HandlerTurn *turn)
{
	Subscription *subscription = turn->subscription;
	char	   *reason = NULL;
	Oid			function = InvalidOid;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(subscription->owner)))
		reason = "its owner does not exist any more";
	else
		function = subscription_handler(subscription, &reason);
	if (subscription->problem || reason != NULL)
		note_problem(subscription, reason);
	if (reason != NULL)
		return false;
	turn->returns_void = get_func_rettype(function) == VOIDOID;
	fmgr_info(function, &turn->function);
	turn->caller = GetUserId();
	turn->call_context = AllocSetContextCreate(CurrentMemoryContext, "coord handler", ALLOCSET_DEFAULT_SIZES);
	return true;
}

static void
enter(HandlerTurn *turn, UserScope *user)
{
	identity_enter_user(user, turn->subscription->owner, turn->subscription->search_path);
}

/* Has an event of this key failed in this turn, or does it wait? */
static bool
is_behind(const Event *events, const Fate *fates, int i)
{
	for (int j = 0; j < i; j++)
	{
		if (fates[j].fate != FATE_DONE && fates[j].fate != FATE_NOT_REACHED &&
			strcmp(events[j].key ? events[j].key : "", events[i].key) == 0)
			return true;
	}
	return false;
}

/* Events that were put aside and are due, each in a subtransaction. */
static void
run_items(HandlerTurn *turn, const Event *events, int count)
{
	Subscription *subscription = turn->subscription;
	Fate	   *fates = palloc0(sizeof(Fate) * count);
	UserScope	user;

	enter(turn, &user);
	for (int i = 0; i < count; i++)
	{
		if (turn->elsewhere)
			fates[i].fate = FATE_NOT_REACHED;
		else if (subscription->on_error == ON_ERROR_PARK_KEY && events[i].key != NULL &&
				 is_behind(events, fates, i))
			fates[i].fate = FATE_WAITS;
		else
			call_guarded(turn, &events[i], &fates[i]);
	}
	identity_leave_user(&user);
	for (int i = 0; i < count; i++)
	{
		int			attempts = events[i].attempts + 1;

		if (fates[i].fate == FATE_DONE)
			subscription_item_done(subscription, events[i].pos);
		else if (fates[i].fate == FATE_FAILED)
			subscription_item_failed(subscription, &events[i], attempts, retry_at(subscription, attempts),
									 fates[i].sqlstate, fates[i].message);
	}
}

/* New events, some of which wait behind others.  Returns to where the cursor moves. */
static int64
run_events(HandlerTurn *turn, Event *events, int count, int64 reached, bool careful)
{
	Subscription *subscription = turn->subscription;
	bool		by_key = subscription->on_error == ON_ERROR_PARK_KEY;
	bool		blocking = by_key && subscription_has_items(subscription);
	Fate	   *fates = palloc0(sizeof(Fate) * Max(count, 1));
	UserScope	user;

	for (int i = 0; i < count && blocking; i++)
	{
		if (events[i].key != NULL && subscription_key_is_blocked(subscription, events[i].key))
			fates[i].fate = FATE_WAITS;
	}
	enter(turn, &user);
	if (subscription->batch && !careful)
	{
		Event	   *wanted = palloc(sizeof(Event) * Max(count, 1));
		int			nwanted = 0;

		for (int i = 0; i < count; i++)
		{
			if (fates[i].fate == FATE_DONE)
				wanted[nwanted++] = events[i];
		}
		if (nwanted > 0)
			call(turn, wanted, nwanted);
	}
	for (int i = 0; i < count && (careful || !subscription->batch); i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (by_key && careful && events[i].key != NULL && is_behind(events, fates, i))
			fates[i].fate = FATE_WAITS;
		if (fates[i].fate == FATE_WAITS)
			continue;
		if (!careful)
			call(turn, &events[i], 1);
		else
			call_guarded(turn, &events[i], &fates[i]);
		if (turn->elsewhere ||
			(fates[i].fate == FATE_FAILED && subscription->on_error == ON_ERROR_STOP))
		{
			/* What comes after it is read again. */
			reached = turn->elsewhere ? events[i].pos - 1 : events[i].pos;
			count = turn->elsewhere ? i : i + 1;
		}
	}
	identity_leave_user(&user);

	for (int i = 0; i < count; i++)
	{
		if (fates[i].fate == FATE_WAITS)
			subscription_put_aside(subscription, &events[i], false);
		else if (fates[i].fate == FATE_FAILED)
			subscription_item_failed(subscription, &events[i], 1, retry_at(subscription, 1),
									 fates[i].sqlstate, fates[i].message);
	}
	return reached;
}

/*
 * One turn of a subscription, which is locked, in the caller's transaction.  Bare calls, without "careful", raise their errors.
 */
static TurnResult
take_turn(HandlerTurn *turn, int64 id, bool careful)
{
	Subscription *subscription;
	Event	   *events;
	int64		horizon;
	int64		reached;
	int			count;

	memset(turn, 0, sizeof(*turn));
	subscription = turn->subscription = subscription_load(id);
	if (subscription == NULL || subscription->paused || subscription->handler == NULL || !prepare(turn))
		return TURN_IDLE;
	count = subscription_items(subscription, CAREFUL_EVENTS, &events);
	if (count > 0)
	{
		turn->had_items = true;
		run_items(turn, events, count);
		event_wake_waiters();
		return turn->elsewhere ? TURN_IDLE : TURN_MORE;
	}
	if (subscription->on_error == ON_ERROR_STOP && subscription_has_items(subscription))
		return TURN_IDLE;
	horizon = event_horizon();
	if (horizon <= subscription->position)
		return TURN_IDLE;
	count = subscription_read(subscription, subscription->position, horizon,
							  careful ? Min(CAREFUL_EVENTS, subscription->batch_size) : subscription->batch_size,
							  &events, &reached);
	if (count == 0 && reached == horizon)
	{
		if (reached - subscription->position > SUBSCRIPTION_IDLE_POSITIONS)
			subscription_move(subscription, reached);
		return TURN_IDLE;
	}
	reached = run_events(turn, events, count, reached, careful);
	if (reached > subscription->position)
		subscription_move(subscription, reached);
	event_wake_waiters();
	DEBUG_POINT("event_turn_done");
	return turn->elsewhere ? TURN_IDLE : TURN_MORE;
}

/* ----------------------------------------------------------------
 *		Suspects
 * ----------------------------------------------------------------
 */

#define CRASHED "57P02"

/* How many events of a suspect have been put aside since this process met it. */
static int64 suspect_id = 0;
static int	suspect_passed = 0;

/* Is there one whose last attempt ended with the server? */
static bool
has_crashed_item(int64 id)
{
	static Statement read = {
		"SELECT FROM coord_internal.subscription_event"
		" WHERE subscription = $1 AND sqlstate = '" CRASHED "' AND parked_at IS NULL LIMIT 1",
		1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);
	bool		found;

	query_begin(&scope);
	found = query_run_latest(&read, &value, NULL, 1) > 0;
	query_end(&scope);
	return found;
}

/*
 * The first transaction of a turn of a suspect: commits an attempt, whose event is then
 * in "charged".  Without one, "charged" is NULL.
 */
static TurnResult
charge_suspect(HandlerTurn *turn, int64 id, int64 *charged)
{
	Subscription *subscription;
	Event	   *events;
	int64		reached;
	int			count;

	*charged = 0;
	memset(turn, 0, sizeof(*turn));
	subscription = turn->subscription = subscription_load(id);
	if (subscription == NULL || subscription->paused || subscription->handler == NULL)
		return TURN_IDLE;
	if (suspect_id != id)
		suspect_passed = 0;
	suspect_id = id;
	count = subscription_items(subscription, 1, &events);
	if (count > 0)
	{
		bool		gone = events[0].attempts >= subscription->max_attempts;

		subscription_item_failed(subscription, &events[0], events[0].attempts + (gone ? 0 : 1),
								 gone ? 0 : clock_now(), CRASHED,
								 "the server crashed while it was being handled");
		*charged = gone ? 0 : events[0].pos;
		return TURN_MORE;
	}
	count = suspect_passed >= subscription->batch_size ? 0 :
		subscription_read(subscription, subscription->position, event_horizon(),
						  Min(CAREFUL_EVENTS, subscription->batch_size), &events, &reached);
	if (count == 0)
	{
		if (!has_crashed_item(id))
			suspect_clear(-id);
		return has_crashed_item(id) ? TURN_IDLE : TURN_MORE;
	}
	for (int i = 0; i < count; i++)
		subscription_put_aside(subscription, &events[i],
							   subscription->on_error != ON_ERROR_PARK_KEY || events[i].key == NULL ||
							   !subscription_key_is_blocked(subscription, events[i].key));
	subscription_move(subscription, reached);
	suspect_passed += count;
	return TURN_MORE;
}

/* The second: the attempt. */
static void
try_suspect(HandlerTurn *turn, int64 id, int64 pos)
{
	Event	   *events;
	int			count;

	memset(turn, 0, sizeof(*turn));
	if (!subscription_lock(id, true))
		return;
	turn->subscription = subscription_load(id);
	if (turn->subscription == NULL || !prepare(turn))
		return;
	count = subscription_items(turn->subscription, 1, &events);
	if (count == 0 || events[0].pos != pos)
		return;

	/* It has been counted. */
	events[0].attempts--;
	run_items(turn, events, 1);
}

/* ----------------------------------------------------------------
 *		Workers
 * ----------------------------------------------------------------
 */

/* Begin a transaction; false when nothing may be done here. */
static bool
start_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!installation_lock(AccessShareLock))
		return false;
	installation_check();
	return installation_state() == ENGINE_RUNNING;
}

/* This worker. */
static WorkerSlot *
my_worker(void)
{
	for (int i = 0; i < COORD_MAX_WORKERS; i++)
	{
		if (coord_shared->workers[i].pid == MyProcPid)
			return &coord_shared->workers[i];
	}
	elog(ERROR, "this is no worker");
}

/* The worker that has a subscription locked for a turn; NULL: none, or somebody else has. */
static WorkerSlot *
who_has_it(int64 id)
{
	VirtualTransactionId *holders = subscription_holders(id);

	for (int i = 0; i < COORD_MAX_WORKERS && VirtualTransactionIdIsValid(holders[0]); i++)
	{
		WorkerSlot *worker = &coord_shared->workers[i];
		VirtualTransactionId theirs;

		if (worker->state == WORKER_FREE || worker->pid == 0 || worker->subscription != id)
			continue;
		GET_VXID_FROM_PGPROC(theirs, ProcGlobal->allProcs[worker->procno]);
		if (VirtualTransactionIdEquals(theirs, holders[0]))
			return worker;
	}
	return NULL;
}

typedef enum LockOutcome
{
	LOCK_TAKEN,
	LOCK_OF_WORKER,				/* who will look again */
	LOCK_OF_OTHER				/* for a while now */
} LockOutcome;

/* Lock a subscription for a turn; see the file header, 2 and 3. */
static LockOutcome
take_lock(int64 id)
{
	static uint32 wait_event = 0;

	for (int i = 0; i < WAIT_TIMES; i++)
	{
		WorkerSlot *worker;

		if (subscription_lock(id, false))
			return LOCK_TAKEN;
		worker = who_has_it(id);
		if (worker != NULL)
		{
			worker->look_again = true;
			pg_memory_barrier();
			return subscription_lock(id, false) ? LOCK_TAKEN : LOCK_OF_WORKER;
		}
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, WAIT_MS,
						 coord_wait_event(&wait_event, "CoordSubscriptionLock"));
		CHECK_FOR_INTERRUPTS();
	}
	return LOCK_OF_OTHER;
}

/* When something that was put aside is due, somebody looks. */
static void
note_due(int64 id)
{
	TimestampTz due_at = subscription_next_due(id);

	if (due_at != 0)
		doorbell_events_due(due_at);
}

static TurnResult
worker_turn(HandlerTurn *turn, int64 id, bool careful)
{
	bool		suspect = in_hand_is_suspect(-id);
	TurnResult	result;
	int64		charged = 0;

	my_worker()->subscription = id;
	my_worker()->look_again = false;
	pg_memory_barrier();
	if (!start_transaction())
	{
		CommitTransactionCommand();
		return TURN_IDLE;
	}
	if (suspect && !suspect_acquire(-id))
	{
		/* Not two suspects at a time. */
		doorbell_events_due(clock_now() + USECS_PER_SEC);
		CommitTransactionCommand();
		return TURN_IDLE;
	}
	switch (take_lock(id))
	{
		case LOCK_TAKEN:
			result = suspect ? charge_suspect(turn, id, &charged) : take_turn(turn, id, careful);
			break;
		case LOCK_OF_WORKER:
			result = TURN_BUSY;
			break;
		default:
			result = TURN_WAITS;
			break;
	}
	if (result == TURN_IDLE)
		note_due(id);
	CommitTransactionCommand();
	if (charged != 0 && start_transaction())
		try_suspect(turn, id, charged);
	if (IsTransactionState())
		CommitTransactionCommand();
	suspect_release(true);
	return result;
}

/*
 * A worker with a subscription: turns until nothing is left or others have waited
 * enough.  Returns false when it could not be done, and the worker is to wait a little.
 * "again" is set when it is to be looked at again.  Runs its own transactions.
 */
bool
subscription_work(int64 id, bool *again)
{
	TimestampTz until = GetCurrentTimestamp() + STAY_US;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "coord subscription",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;
	volatile bool careful = false;
	volatile bool done = true;
	volatile TurnResult result = TURN_MORE;

	*again = false;
	while (result == TURN_MORE && done)
	{
		HandlerTurn turn = {0};
		volatile bool failed = false;

		CHECK_FOR_INTERRUPTS();
		/* Who has failed bare is tried with care now: the time is not up before. */
		if (!careful && GetCurrentTimestamp() > until)
		{
			*again = true;
			break;
		}
		PG_TRY();
		{
			result = worker_turn(&turn, id, careful);
			careful = careful && turn.had_items;
			if (result == TURN_IDLE && my_worker()->look_again)
				result = TURN_MORE;
		}
		PG_CATCH();
		{
			ErrorData  *error;

			MemoryContextSwitchTo(context);
			error = CopyErrorData();
			FlushErrorState();
			AbortCurrentTransaction();
			identity_forget_session();
			in_hand_leave();
			suspect_release(true);
			event_cause = NULL;
			if (ProcDiePending)
				proc_exit(1);
			failed = true;
			if (careful)
			{
				ereport(LOG,
						(errmsg("coord: events of subscription " INT64_FORMAT " could not be handled: %s",
								id, error->message)));
				done = false;
			}
			careful = true;
		}
		PG_END_TRY();
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
		*again = result == TURN_WAITS;
		if (failed)
			result = TURN_MORE;
	}
	my_worker()->subscription = 0;
	MemoryContextDelete(context);
	return done;
}

/*
 * Which subscriptions have something to do: puts them into "entries", at most "max", and
 * returns how many.  From now on publishers ring.  Requires a transaction.
 */
int
subscription_round(QueueEntry *entries, int max)
{
	static Statement read = {
		"SELECT s.id, s.owner FROM coord_internal.subscription s"
		" WHERE s.handler IS NOT NULL AND s.paused_at IS NULL AND"
		" ((SELECT c.position FROM coord_internal.subscription_cursor c WHERE c.subscription = s.id"
		"   ORDER BY c.move DESC LIMIT 1) < $1"
		"  OR EXISTS (SELECT FROM coord_internal.subscription_event i"
		"   WHERE i.subscription = s.id AND i.due_at IS NOT NULL))"
		" ORDER BY s.id LIMIT $2",
		2, {INT8OID, INT4OID}
	};
	QueryScope	scope;
	Datum		values[2];
	uint64		rows;

	event_ask_for_rings();
	values[0] = Int64GetDatum(event_horizon());
	values[1] = Int32GetDatum(max);
	query_begin(&scope);
	rows = query_run_latest(&read, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;

		memset(&entries[i], 0, sizeof(QueueEntry));
		entries[i].id = query_int8(i, 1);
		entries[i].owner = DatumGetObjectId(query_value(i, 2, &isnull));
		entries[i].kind = WORK_SUBSCRIPTION;
	}
	query_end(&scope);
	return (int) rows;
}

/* ----------------------------------------------------------------
 *		Sessions
 * ----------------------------------------------------------------
 */

/* Subscriptions with handlers of roles that the caller is a member of. */
int
subscription_mine(int64 *ids, int max)
{
	static Statement read = {
		"SELECT id FROM coord_internal.subscription WHERE handler IS NOT NULL AND paused_at IS NULL"
		" AND pg_has_role($1, owner, 'MEMBER') ORDER BY id LIMIT $2",
		2, {OIDOID, INT4OID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		values[2];
	uint64		rows;

	query_begin(&scope);
	values[0] = ObjectIdGetDatum(user);
	values[1] = Int32GetDatum(max);
	rows = query_run_latest(&read, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
		ids[i] = query_int8(i, 1);
	query_end(&scope);
	return (int) rows;
}

/* One turn in a caller's session; false when there was nothing to do. */
bool
subscription_session_turn(int64 id, int *handled)
{
	HandlerTurn turn;
	TurnResult	result;

	*handled = 0;
	if (!subscription_lock(id, false))
		return false;
	result = take_turn(&turn, id, true);
	*handled = turn.handled;
	return result == TURN_MORE;
}
