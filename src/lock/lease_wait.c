/*-------------------------------------------------------------------------
 *
 * lease_wait.c
 *	  Waiting for a lease: the gate, the head of the queue, the fence.
 *
 * Whoever wants a lease goes through its gate, a heavyweight lock that is kept
 * until the transaction ends.  So those who wait stand in the lock manager's own
 * queue, in order of arrival and in pg_locks, and only the one inside, the head,
 * sleeps on a condition variable until the holder is gone or its time is up.
 * The deadlock detector knows those before the gate, but not for whom the head
 * waits: every wait ends at a time.
 *
 * Before the head is granted the lease it takes the fence exclusively, which a
 * transaction that passed fence_check() holds shared: so no fenced transaction of
 * a predecessor is open any more.  Both locks are released with the transaction,
 * or the savepoint, that would undo the grant.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "storage/condition_variable.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/guc.h"
#include "base/query.h"
#include "lock/lease.h"
#include "lock/lock_held.h"
#include "lock/lock_shared.h"

/* How long a fence is waited for before somebody looks who holds it. */
#define STEAL_LOOK_US (USECS_PER_SEC / 4)

/* Waits are measured in real time, also where coord.test_now is set. */
static int64
wait_now(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/* When a wait of this length ends, for the functions below. */
int64
lease_wait_end(int64 timeout_us)
{
	return timeout_us <= 0 ? 0 : wait_now() + timeout_us;
}

/* Take a lock that is released with the current subtransaction. */
static bool
try_lock(const LOCKTAG *tag)
{
	ResourceOwner owner = CurrentResourceOwner;
	LockAcquireResult result;

	CurrentResourceOwner = CurTransactionResourceOwner;
	result = LockAcquire(tag, ExclusiveLock, false, true);
	CurrentResourceOwner = owner;
	return result != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Wait for a lock, at most so long.  The server reports the end of the time by
 * an error, so this is a subtransaction, which then is rolled back.
 */
static bool
wait_lock(const LOCKTAG *tag, int64 us)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			users_timeout = LockTimeout;
	volatile int64 ms = Min(Max(1, (us + 999) / 1000), INT_MAX);
	volatile bool granted = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		if (users_timeout <= 0 || ms <= users_timeout)
			LockTimeout = (int) ms;
		(void) LockAcquire(tag, ExclusiveLock, false, false);
		LockTimeout = users_timeout;
		granted = true;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;
		bool		ours = LockTimeout == (int) ms;

		LockTimeout = users_timeout;
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (!ours || error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(error);
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return granted;
}

/*
 * The same for locks that count for the quota, each once however often it is
 * taken.
 */
static bool
try_counted(const char *name, const LOCKTAG *tag)
{
	bool		had = held_by_me(tag, ExclusiveLock);
	bool		granted;

	if (!had)
		held_count_one(name, false);
	granted = try_lock(tag);
	if (!had && !granted)
		held_count_one_less(false);
	return granted;
}

static bool
wait_counted(const char *name, const LOCKTAG *tag, int64 us)
{
	bool		granted;

	held_count_one(name, false);
	granted = wait_lock(tag, us);
	if (!granted)
		held_count_one_less(false);
	return granted;
}

static void
give_back(const LOCKTAG *tag)
{
	ResourceOwner owner = CurrentResourceOwner;

	CurrentResourceOwner = CurTransactionResourceOwner;
	LockRelease(tag, ExclusiveLock, false);
	CurrentResourceOwner = owner;
	if (!held_by_me(tag, ExclusiveLock))
		held_count_one_less(false);
}

/* ----------------------------------------------------------------
 *		The gate
 * ----------------------------------------------------------------
 */

static void
gate_tag(LOCKTAG *tag, const char *name)
{
	LockKey		key = lock_key(name);

	lock_tag(tag, &key, SPACE_GATE);
}

/* Go through the gate; false: not before the time was up. */
bool
lease_enter_gate(const char *name, int64 until)
{
	LOCKTAG		tag;
	int64		now;

	gate_tag(&tag, name);
	if (try_counted(name, &tag))
		return true;
	now = wait_now();
	if (now >= until)
		return false;
	lease_wait_begin(name);
	if (wait_counted(name, &tag, until - now))
		return true;
	lease_wait_done();
	return false;
}

/* Let the next one in: nothing was granted. */
void
lease_leave_gate(const char *name)
{
	LOCKTAG		tag;

	gate_tag(&tag, name);
	give_back(&tag);
}

/* ----------------------------------------------------------------
 *		The head
 * ----------------------------------------------------------------
 */

static ConditionVariable *waiting_for = NULL;

/* The views show that this process waits. */
void
lease_wait_begin(const char *name)
{
	LockKey		key = lock_key(name);

	held_waits(name, &key, KIND_LEASE);
}

/*
 * Sleep until something may have changed, or for "most_us".  False: the time is
 * up.  lease_wait_prepare() comes first, then lease_get(), which said that there
 * is no room: so nothing falls between.
 */
bool
lease_wait(const LeaseState *state, int64 until, int64 most_us)
{
	static uint32 wait_event = 0;
	int64		now = wait_now();
	int64		us = until - now;

	if (us <= 0)
		return false;
	us = Min(us, most_us);
	if (!clock_is_set())
	{
		int64		lease_now = clock_steady_us();

		for (int i = 0; i < state->nholders; i++)
		{
			if (state->holders[i].deadline > lease_now)
				us = Min(us, state->holders[i].deadline - lease_now);
		}
	}
	(void) ConditionVariableTimedSleep(waiting_for, (long) Min(us / 1000 + 1, INT_MAX),
									   coord_wait_event(&wait_event, "CoordLease"));
	CHECK_FOR_INTERRUPTS();
	return true;
}

/* Who is inside begins to wait; before lease_get(). */
void
lease_wait_prepare(const char *name)
{
	waiting_for = lease_waiters(name);
	ConditionVariablePrepareToSleep(waiting_for);
}

void
lease_wait_done(void)
{
	if (waiting_for != NULL)
		(void) ConditionVariableCancelSleep();
	waiting_for = NULL;
	held_waits_no_more();
}

/* ----------------------------------------------------------------
 *		The fence
 * ----------------------------------------------------------------
 */

/* Terminate fenced transactions of this name that have been idle for too long. */
static void
steal_fence(const LOCKTAG *tag)
{
	static Statement steal = {
		"SELECT a.pid, pg_terminate_backend(a.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
		" WHERE l.locktype = 'advisory' AND l.database = $1 AND l.classid = $2 AND l.objid = $3"
		" AND l.objsubid = $4 AND l.granted AND a.state LIKE 'idle in transaction%'"
		" AND a.state_change < clock_timestamp() - $5 * interval '1 ms'",
		5, {OIDOID, OIDOID, OIDOID, INT2OID, INT4OID}
	};
	QueryScope	scope;
	Datum		values[5];
	uint64		rows;

	/* What it says is kept for the transaction otherwise. */
	pgstat_clear_snapshot();
	values[0] = ObjectIdGetDatum(MyDatabaseId);
	values[1] = ObjectIdGetDatum(tag->locktag_field2);
	values[2] = ObjectIdGetDatum(tag->locktag_field3);
	values[3] = Int16GetDatum((int16) tag->locktag_field4);
	values[4] = Int32GetDatum(guc_fence_steal_timeout);
	query_begin(&scope);
	rows = query_run(&steal, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
		ereport(LOG,
				(errmsg("coord: process %d was terminated: its fenced transaction was idle for longer than coord.fence_steal_timeout",
						query_int4(i, 1))));
	query_end(&scope);
}

/*
 * Wait until no fenced transaction of the name is open, and let none in until
 * this one ends.  False: not before the time was up.
 */
bool
lease_fence_off(const char *name, int64 until)
{
	LOCKTAG		tag;

	fence_tag(&tag, name);
	if (try_counted(name, &tag))
		return true;
	for (;;)
	{
		int64		left = until - wait_now();

		if (left <= 0)
		{
			held_waits_no_more();
			return false;
		}
		lease_wait_begin(name);
		if (guc_fence_steal_timeout > 0)
		{
			steal_fence(&tag);
			left = Min(left, STEAL_LOOK_US);
		}
		if (wait_counted(name, &tag, left))
		{
			held_waits_no_more();
			return true;
		}
	}
}

/* Nothing was granted: let fenced transactions in again. */
void
lease_open_fence(const char *name)
{
	LOCKTAG		tag;

	fence_tag(&tag, name);
	give_back(&tag);
}
