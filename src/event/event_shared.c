/*-------------------------------------------------------------------------
 *
 * event_shared.c
 *	  Who is publishing, and how far the log may be read.
 *
 * A position is taken from a sequence before its transaction commits, so a later
 * position may be visible first.  Whoever reads on from a position and must not skip
 * an event may therefore read up to a horizon only: below it everything is visible
 * that ever will be.  Each backend that publishes says, in a slot of shared memory,
 * from which position on its transaction may have events; the horizon is below the
 * lowest of these.  Nobody but publishers of the same database holds it back.
 *
 * Publisher:	W1  slot := maximum + 1		(the first time in a transaction)
 *				W2  position := nextval
 *				W3  insert
 *				W4  maximum := max(maximum, position)
 *				W5  commit becomes visible, or the transaction has ended otherwise
 *				W6  slot := 0
 * Reader:		R1  horizon := maximum
 *				R2  for each slot that is not 0: horizon := min(horizon, slot - 1)
 *				R3  take a snapshot
 *				R4  read what is not above the horizon
 *
 * No event E at a position p that is not above the horizon is committed and not
 * visible in the reader's snapshot.  Let P be its publisher.
 *
 * 1. In W1 P stores less than or exactly p: "maximum" holds only positions that W2 has
 *	  handed out before, and the sequence, which caches nothing, hands out p later.
 * 2. So if R2 sees what P stored in W1, the horizon is below p.
 * 3. If R2 reads P's slot after W6, then W5 is before R3, and E is visible.
 * 4. If R2 reads P's slot before W1, then R1, which is before R2, is before W2.  What R1
 *	  read had been handed out by then, so it is lower than p.
 * 5. Between W1 and W2 and between R1 and R2 there are full barriers.  "maximum" begins
 *	  at the sequence's last value, which nothing handed out before is above.
 * 6. A transaction that is prepared gives its slot back.  Before that, it takes a lock
 *	  whose tag is what its slot said.  It goes over to the prepared transaction, is there
 *	  again after a restart, and is released after the transaction has become visible.
 *	  The reader looks for such locks after R2: when P's slot is empty already, the lock is
 *	  there, or E is visible.  Reading the lock table is spared while no transaction was
 *	  prepared since it was last found without such locks; the counter is raised before
 *	  the slot is emptied.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "commands/sequence.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/check.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/doorbell.h"
#include "base/query.h"
#include "event/event.h"
#include "event/event_shared.h"

#define SHMEM_NAME "coord event"

/* The last field of a lock's tag that stands for a prepared publisher's positions. */
#define SPACE_PUBLISHER 0x5100

/* A backend.  Written by it alone. */
typedef struct Publisher
{
	pg_atomic_uint64 lower;		/* it may have events from here on; 0: it has none */
	Oid			database;
	int			pid;
	TimestampTz since;
} Publisher;

typedef struct EventDatabase
{
	Oid			database;		/* InvalidOid: free */
	Oid			sequence;		/* another after CREATE EXTENSION; protected by the lock */
	pg_atomic_uint64 maximum;	/* highest position handed out; 0: not known yet */
	pg_atomic_uint64 prepared;	/* raised when a publisher is prepared */
	ConditionVariable waiters;	/* sessions that wait for events */
	pg_atomic_uint32 asked;		/* publishers are to ring; see event_ask_for_rings() */
	pg_atomic_uint64 clean;		/* "prepared", when no such lock was there */
} EventDatabase;

typedef struct EventShared
{
	LWLock		lock;
	int			tranche;
	int			npublishers;
	EventDatabase databases[COORD_MAX_DATABASES];
	Publisher	publishers[FLEXIBLE_ARRAY_MEMBER];
} EventShared;

PG_FUNCTION_INFO_V1(coord_internal_publishers);
PG_FUNCTION_INFO_V1(coord_last_position);

static EventShared *event_shared = NULL;

/* Owned by this backend's publishing functions; set by attach(). */
static Publisher *my_publisher = NULL;
static EventDatabase *my_database = NULL;

/* The last position of the open transaction, of the session; 0: none. */
static int64 transaction_position = 0;
static int64 session_position = 0;

/* At the end of the open transaction those who wait look again. */
static bool wake_at_commit = false;

static void xact_callback(XactEvent event, void *arg);

static int
publisher_count(void)
{
	return MaxBackends;
}

Size
event_shmem_size(void)
{
	return MAXALIGN(offsetof(EventShared, publishers) + sizeof(Publisher) * publisher_count());
}

/* Free the slots of databases that are gone. */
static void
forget_dropped_databases(void)
{
	for (int i = 0; i < COORD_MAX_DATABASES; i++)
	{
		EventDatabase *database = &event_shared->databases[i];
		Oid			oid = database->database;

		if (!OidIsValid(oid) || SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(oid)))
			continue;
		LWLockAcquire(&event_shared->lock, LW_EXCLUSIVE);
		if (database->database == oid)
			database->database = InvalidOid;
		LWLockRelease(&event_shared->lock);
	}
}

/* This database's slot; NULL when there is no room. */
static EventDatabase *
find_database(void)
{
	EventDatabase *result = NULL;

	LWLockAcquire(&event_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < COORD_MAX_DATABASES; i++)
	{
		EventDatabase *database = &event_shared->databases[i];

		if (database->database == MyDatabaseId)
		{
			result = database;
			break;
		}
		if (result == NULL && !OidIsValid(database->database))
			result = database;
	}
	if (result != NULL && result->database != MyDatabaseId)
	{
		result->database = MyDatabaseId;
		result->sequence = InvalidOid;
		pg_atomic_write_u64(&result->maximum, 0);
		pg_atomic_write_u64(&result->prepared, 1);
		pg_atomic_write_u64(&result->clean, 0);
	}
	LWLockRelease(&event_shared->lock);
	return result;
}

static Oid
position_sequence(void)
{
	Oid			namespace = get_namespace_oid("coord_internal", false);

	return get_relname_relid("event_position", namespace);
}

/* Where the sequence is, when the server has not handed out a position yet. */
static void
read_sequence(Oid sequence)
{
	static Statement read = {
		"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM coord_internal.event_position",
		0, {0}
	};
	QueryScope	scope;
	int64		last;

	query_begin(&scope);
	query_run_latest(&read, NULL, NULL, 1);
	last = query_int8(0, 1);
	query_end(&scope);
	LWLockAcquire(&event_shared->lock, LW_EXCLUSIVE);
	if (my_database->sequence != sequence)
	{
		/* Another installation begins anew, also if the old one had more. */
		my_database->sequence = sequence;
		pg_atomic_write_u64(&my_database->maximum, (uint64) last);
	}
	LWLockRelease(&event_shared->lock);
}

/* Get everything ready for this backend.  Cheap after the first call. */
static void
attach(void)
{
	Oid			sequence = position_sequence();
	bool		found;

	if (my_database != NULL && my_database->sequence == sequence)
		return;
	if (event_shared == NULL)
	{
		LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
		event_shared = ShmemInitStruct(SHMEM_NAME, event_shmem_size(), &found);
		if (!found)
		{
			memset(event_shared, 0, event_shmem_size());
			event_shared->tranche = coord_new_tranche("coord_event");
			LWLockInitialize(&event_shared->lock, event_shared->tranche);
			event_shared->npublishers = publisher_count();
			for (int i = 0; i < event_shared->npublishers; i++)
				pg_atomic_init_u64(&event_shared->publishers[i].lower, 0);
			for (int i = 0; i < COORD_MAX_DATABASES; i++)
			{
				ConditionVariableInit(&event_shared->databases[i].waiters);
				pg_atomic_init_u32(&event_shared->databases[i].asked, 0);
				pg_atomic_init_u64(&event_shared->databases[i].maximum, 0);
				pg_atomic_init_u64(&event_shared->databases[i].prepared, 1);
				pg_atomic_init_u64(&event_shared->databases[i].clean, 0);
			}
		}
		LWLockRelease(AddinShmemInitLock);
		coord_register_tranche(event_shared->tranche, "coord_event");
		RegisterXactCallback(xact_callback, NULL);
	}
	if (my_database == NULL && (my_database = find_database()) == NULL)
	{
		forget_dropped_databases();
		my_database = find_database();
		if (my_database == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("coord serves at most %d databases of a cluster",
							COORD_MAX_DATABASES)));
	}
	if (my_database->sequence != sequence)
		read_sequence(sequence);
}

static void
leave(void)
{
	if (my_publisher != NULL && pg_atomic_read_u64(&my_publisher->lower) != 0)
	{
		pg_write_barrier();
		pg_atomic_write_u64(&my_publisher->lower, 0);
		pg_memory_barrier();
		if (pg_atomic_read_u32(&my_database->asked) != 0 &&
			pg_atomic_exchange_u32(&my_database->asked, 0) != 0)
		{
			doorbell_ring_events();
			ConditionVariableBroadcast(&my_database->waiters);
		}
	}
	transaction_position = 0;
}

static void
publisher_tag(LOCKTAG *tag, int64 lower)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) ((uint64) lower >> 32), (uint32) lower,
						 SPACE_PUBLISHER);
}

static void
xact_callback(XactEvent event, void *arg)
{
	LOCKTAG		tag;

	if (wake_at_commit && (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE))
	{
		wake_at_commit = false;
		ConditionVariableBroadcast(&my_database->waiters);
	}
	if (my_publisher == NULL || pg_atomic_read_u64(&my_publisher->lower) == 0)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			publisher_tag(&tag, (int64) pg_atomic_read_u64(&my_publisher->lower));
			(void) LockAcquire(&tag, ShareLock, false, false);
			break;
		case XACT_EVENT_PREPARE:
			(void) pg_atomic_fetch_add_u64(&my_database->prepared, 1);
			DEBUG_POINT("event_prepared");
			leave();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
			leave();
			break;
		default:
			break;
	}
}

/*
 * Before the first position of a transaction: from here on it may have events.  Has to
 * be called before each event_position_next().
 */
void
event_publisher_enter(void)
{
	check_not_in_recovery("an event");
	attach();
	doorbell_attach();
	if (my_publisher == NULL)
	{
		my_publisher = &event_shared->publishers[coord_my_proc_number()];
	}
	if (pg_atomic_read_u64(&my_publisher->lower) != 0)
		return;
	my_publisher->database = MyDatabaseId;
	my_publisher->pid = MyProcPid;
	my_publisher->since = GetCurrentTransactionStartTimestamp();
	pg_write_barrier();
	pg_atomic_write_u64(&my_publisher->lower, pg_atomic_read_u64(&my_database->maximum) + 1);
	pg_memory_barrier();
}

/* The next position; its row is then to be inserted. */
int64
event_position_next(void)
{
	int64		position;
	uint64		maximum;

	Assert(my_publisher != NULL && pg_atomic_read_u64(&my_publisher->lower) != 0);
	position = nextval_internal(my_database->sequence, false);
	DEBUG_POINT("event_allocated");

	/*
	 * Before the row is there: what is above the own slot is not read anyway.
	 */
	maximum = pg_atomic_read_u64(&my_database->maximum);
	while ((int64) maximum < position &&
		   !pg_atomic_compare_exchange_u64(&my_database->maximum, &maximum, (uint64) position))
		;
	transaction_position = session_position = position;
	return position;
}

/* The last position that the open transaction has written, 0: none. */
int64
event_own_position(void)
{
	return transaction_position;
}

/* From where on the open transaction may have events, 0: it has none. */
int64
event_own_first(void)
{
	return my_publisher == NULL ? 0 : (int64) pg_atomic_read_u64(&my_publisher->lower);
}

/* The lowest that a prepared publisher may have, less one; "horizon" if there is none. */
static int64
below_prepared(int64 horizon)
{
	uint64		prepared = pg_atomic_read_u64(&my_database->prepared);
	bool		found = false;
	LockData   *locks;

	if (pg_atomic_read_u64(&my_database->clean) == prepared)
		return horizon;
	locks = GetLockStatusData();
	for (int i = 0; i < locks->nelements; i++)
	{
		const LOCKTAG *tag = &locks->locks[i].locktag;
		int64		lower;

		if (tag->locktag_type != LOCKTAG_ADVISORY || tag->locktag_field1 != MyDatabaseId ||
			tag->locktag_field4 != SPACE_PUBLISHER)
			continue;
		found = true;
		lower = (int64) ((uint64) tag->locktag_field2 << 32 | tag->locktag_field3);
		horizon = Min(horizon, lower - 1);
	}
	if (!found)
		pg_atomic_write_u64(&my_database->clean, prepared);
	return horizon;
}

/*
 * Up to where everything can be seen by a snapshot that is taken after this.  Requires
 * a transaction.
 */
int64
event_horizon(void)
{
	int64		horizon;

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("the event log cannot be read in order on a standby"),
				 errdetail("Who is publishing is known on the primary only."),
				 errhint("View coord.events shows what has arrived.")));
	attach();
	horizon = (int64) pg_atomic_read_u64(&my_database->maximum);
	pg_memory_barrier();
	for (int i = 0; i < event_shared->npublishers; i++)
	{
		Publisher  *publisher = &event_shared->publishers[i];
		int64		lower = (int64) pg_atomic_read_u64(&publisher->lower);

		if (lower == 0)
			continue;
		pg_read_barrier();
		if (publisher->database == MyDatabaseId)
			horizon = Min(horizon, lower - 1);
	}
	pg_memory_barrier();
	DEBUG_POINT("event_slots_read");
	horizon = below_prepared(horizon);
	DEBUG_POINT("event_horizon_read");
	return horizon;
}

/*
 * The next publisher whose transaction is over rings for the workers, once.  Who asks
 * and then reads the horizon misses nobody: a publisher that has not taken his word back
 * by then sees that he was asked, when he has.
 */
void
event_ask_for_rings(void)
{
	attach();
	pg_atomic_write_u32(&my_database->asked, 1);
	pg_memory_barrier();
}

/*
 * Wait for events: between event_wait_begin() and event_wait_end() somebody looks whether
 * there are any, and if not calls event_wait_until(), which returns false when the time
 * is up.  Times that have come, 0 for one, return at once.
 */
void
event_wait_begin(void)
{
	attach();
	ConditionVariablePrepareToSleep(&my_database->waiters);
	event_ask_for_rings();
}

bool
event_wait_until(TimestampTz until)
{
	static uint32 wait_event = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (until <= now)
		return false;
	return !ConditionVariableTimedSleep(&my_database->waiters, Min((until - now) / 1000 + 1, 30000),
										coord_wait_event(&wait_event, "CoordEventWait"));
}

void
event_wait_end(void)
{
	ConditionVariableCancelSleep();
}

/* Somebody gave events back, or parked ones are tried again. */
void
event_wake_waiters(void)
{
	attach();
	wake_at_commit = true;
}

/* Open publishers of this database: pid, first position, since. */
Datum
coord_internal_publishers(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	attach();
	for (int i = 0; i < event_shared->npublishers; i++)
	{
		Publisher  *publisher = &event_shared->publishers[i];
		int64		lower = (int64) pg_atomic_read_u64(&publisher->lower);
		Datum		values[3];
		bool		nulls[3] = {false};

		if (lower == 0 || publisher->database != MyDatabaseId)
			continue;
		values[0] = Int32GetDatum(publisher->pid);
		values[1] = Int64GetDatum(lower);
		values[2] = TimestampTzGetDatum(publisher->since);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* coord.last_position() */
Datum
coord_last_position(PG_FUNCTION_ARGS)
{
	int64		position = transaction_position != 0 ? transaction_position : session_position;

	if (position == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(position);
}
