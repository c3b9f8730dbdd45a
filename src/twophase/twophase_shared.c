/*-------------------------------------------------------------------------
 *
 * twophase_shared.c
 *	  Shared memory of two-phase commit: who is in the middle of one, and what
 *	  the resolver is wanted for.
 *
 * A session writes its global transaction's id here before the first PREPARE goes
 * out, and takes it back when its transaction has ended, visibly to others.  So for
 * who reads first what is prepared, then this, then the decisions:
 *
 * 1. A prepared transaction whose id is neither here nor among the decisions was not
 *	  committed and never will be.  Its id was here before it was prepared; as it is
 *	  not any more, the transaction had ended; as no decision is seen by a snapshot
 *	  taken after that, it ended otherwise than by committing one.
 * 2. After a crash nothing is here, and no transaction is open that could decide.
 *
 * Tables are the truth, this is gone with the server.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/query.h"
#include "twophase/twophase_shared.h"

#define SHMEM_NAME "coord 1.0 twophase"

/* A resolver that was asked for and has not come by then never will. */
#define START_TIMEOUT_US (60 * USECS_PER_SEC)
#define RETRY_US (5 * USECS_PER_SEC)

/* When it is made sure that those who were told have done it. */
#define TOLD_US (2 * USECS_PER_SEC)

/* How long DROP DATABASE waits for the first look of a database's resolver. */
#define FIRST_LOOK_US (15 * USECS_PER_SEC)

TwophaseShared *twophase_shared = NULL;

PG_FUNCTION_INFO_V1(coord_internal_twophase_sessions);
PG_FUNCTION_INFO_V1(coord_internal_twophase_unacknowledged);
PG_FUNCTION_INFO_V1(coord_internal_twophase_figures);

/* Sessions there can be, as far as it is known before they are counted. */
static int
session_count(void)
{
	return MaxBackends + NUM_AUXILIARY_PROCS;
}

Size
twophase_shmem_size(void)
{
	return MAXALIGN(offsetof(TwophaseShared, sessions) +
					sizeof(TwophaseSession) * session_count());
}

/* Find or make the shared struct.  Cheap after the first call. */
void
twophase_attach(void)
{
	bool		found;

	if (twophase_shared != NULL)
		return;
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	twophase_shared = ShmemInitStruct(SHMEM_NAME, twophase_shmem_size(), &found);
	if (!found)
	{
		memset(twophase_shared, 0, twophase_shmem_size());
		twophase_shared->tranche = coord_new_tranche("coord_twophase");
		LWLockInitialize(&twophase_shared->lock, twophase_shared->tranche);
		twophase_shared->nsessions = session_count();
		for (int i = 0; i < twophase_shared->nsessions; i++)
			pg_atomic_init_u64(&twophase_shared->sessions[i].gtid, 0);
		for (int i = 0; i < COORD_MAX_DATABASES; i++)
			ConditionVariableInit(&twophase_shared->databases[i].answered);
	}
	LWLockRelease(AddinShmemInitLock);
	coord_register_tranche(twophase_shared->tranche, "coord_twophase");
}

/* The slot of a database; NULL when there is none and "create" is false or no room. */
static TwophaseDatabase *
find_database(Oid oid, bool create)
{
	TwophaseDatabase *result = NULL;

	twophase_attach();
	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < COORD_MAX_DATABASES; i++)
	{
		TwophaseDatabase *database = &twophase_shared->databases[i];

		if (database->database == oid)
		{
			result = database;
			break;
		}
		if (create && result == NULL && !OidIsValid(database->database))
			result = database;
	}
	if (result != NULL && result->database != oid)
	{
		ConditionVariable answered = result->answered;

		memset(result, 0, sizeof(TwophaseDatabase));
		result->answered = answered;
		result->database = oid;
	}
	LWLockRelease(&twophase_shared->lock);
	return result;
}

/* A database's, NULL: there is none. */
TwophaseDatabase *
twophase_database_by_oid(Oid oid)
{
	return find_database(oid, false);
}

/* Free the slots of databases that are gone. */
static void
forget_dropped_databases(void)
{
	for (int i = 0; i < COORD_MAX_DATABASES; i++)
	{
		TwophaseDatabase *database = &twophase_shared->databases[i];
		Oid			oid = database->database;

		if (!OidIsValid(oid) || SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(oid)))
			continue;
		LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
		if (database->database == oid)
			database->database = InvalidOid;
		LWLockRelease(&twophase_shared->lock);
	}
}

/* This database's; 53400 when there are too many. */
TwophaseDatabase *
twophase_database(void)
{
	static TwophaseDatabase *database = NULL;

	if (database == NULL || database->database != MyDatabaseId)
		database = find_database(MyDatabaseId, true);
	if (database == NULL)
	{
		forget_dropped_databases();
		database = find_database(MyDatabaseId, true);
	}
	if (database == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("coord serves at most %d databases of a cluster",
						COORD_MAX_DATABASES)));
	return database;
}

/* This session's. */
TwophaseSession *
twophase_session(void)
{
	twophase_attach();
	return &twophase_shared->sessions[coord_my_proc_number()];
}

/* Is a session in the middle of it? */
bool
twophase_is_active(int64 gtid)
{
	pg_memory_barrier();
	for (int i = 0; i < twophase_shared->nsessions; i++)
	{
		if (pg_atomic_read_u64(&twophase_shared->sessions[i].gtid) == (uint64) gtid)
			return true;
	}
	return false;
}

/*
 * The oldest id that a session of this database is in the middle of; what is asked
 * for participants' sake must be read before it.
 */
int64
twophase_oldest_active(void)
{
	int64		result = PG_INT64_MAX;

	pg_memory_barrier();
	for (int i = 0; i < twophase_shared->nsessions; i++)
	{
		TwophaseSession *session = &twophase_shared->sessions[i];
		uint64		gtid = pg_atomic_read_u64(&session->gtid);

		if (gtid != 0 && session->database == MyDatabaseId)
			result = Min(result, (int64) gtid);
	}
	return result;
}

/* Wake the resolver at "at", 0: now; or the launcher to start one.  Raises nothing. */
void
twophase_want_resolver(TwophaseDatabase *database, TimestampTz at)
{
	int			procno = -1;

	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	if (at == 0)
		database->wanted = true;
	else if (database->next_at == 0 || at < database->next_at)
		database->next_at = at;
	if (database->resolver_pid != 0)
		procno = database->resolver_procno;
	LWLockRelease(&twophase_shared->lock);
	if (procno >= 0)
		SetLatch(&ProcGlobal->allProcs[procno].procLatch);
	else
		doorbell_wake_launcher();
}

/* A decision that not all participants have acknowledged.  Raises nothing. */
void
twophase_not_acknowledged(TwophaseDatabase *database, int64 gtid)
{
	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	if (database->nunacknowledged < TWOPHASE_UNACKNOWLEDGED)
		database->unacknowledged[database->nunacknowledged++] = gtid;
	else
		database->many = true;
	LWLockRelease(&twophase_shared->lock);
}

/*
 * May a decision of this run, whose session has left, be one that is not acknowledged?
 */
bool
twophase_is_unacknowledged(TwophaseDatabase *database, int64 gtid)
{
	bool		result;

	LWLockAcquire(&twophase_shared->lock, LW_SHARED);
	result = database->many || gtid < database->first_gtid;
	for (int i = 0; i < database->nunacknowledged && !result; i++)
		result = database->unacknowledged[i] == gtid;
	LWLockRelease(&twophase_shared->lock);
	return result;
}

/*
 * A PREPARE that was sent and not answered may still be carried out: it is looked for
 * again and again for so long.  Raises nothing.
 */
void
twophase_expect_late(TwophaseDatabase *database, int64 us)
{
	TimestampTz until = GetCurrentTimestamp() + us;

	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	database->late_until = Max(database->late_until, until);
	LWLockRelease(&twophase_shared->lock);
}

/*
 * The same for one that all have been told of, and whose answers are not waited for:
 * the resolver makes sure, in a while.
 */
void
twophase_told(TwophaseDatabase *database, int64 gtid)
{
	twophase_not_acknowledged(database, gtid);
	twophase_want_resolver(database, GetCurrentTimestamp() + TOLD_US);
}

/*
 * A worker is in this database: if there are participants, and the resolver has not
 * looked since the server started, or since a pause, it does.  Requires a transaction
 * and a snapshot.
 */
void
twophase_database_started(void)
{
	static Statement read = {
		"SELECT FROM coord_internal.twophase_participant UNION ALL"
		" SELECT FROM coord_internal.twophase_app WHERE status IN ('open', 'preparing') LIMIT 1", 0, {0}
	};
	TwophaseDatabase *database = twophase_database();
	QueryScope	scope;
	bool		any;

	if (database->incarnation != 0 && !database->waits_for_resume)
		return;
	database->waits_for_resume = false;
	query_begin(&scope);
	any = query_run(&read, NULL, NULL, 1) > 0;
	query_end(&scope);
	if (any)
		twophase_want_resolver(database, 0);
}

/* ----------------------------------------------------------------
 *		For the launcher
 * ----------------------------------------------------------------
 */

/*
 * Should a resolver be started in this database?  Else "again" may be set to when
 * to ask.
 */
bool
twophase_wants_resolver(Oid oid, TimestampTz now, TimestampTz *again)
{
	TwophaseDatabase *database = find_database(oid, false);
	bool		result = false;

	if (database == NULL)
		return false;
	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	if (database->starting && (now - database->started_at > START_TIMEOUT_US ||
							   now < database->started_at))
		database->starting = false;
	if (database->retry_at > now + RETRY_US)
		database->retry_at = 0;
	if (database->resolver_pid == 0 && !database->starting)
	{
		TimestampTz at = database->wanted ? now : database->next_at;

		if (at != 0 && at < database->retry_at)
			at = database->retry_at;
		result = at != 0 && at <= now;
		*again = result ? 0 : at;
	}
	LWLockRelease(&twophase_shared->lock);
	return result;
}

/* Ask the postmaster for a resolver. */
void
twophase_resolver_spawn(Oid oid, Oid role)
{
	TwophaseDatabase *database = find_database(oid, false);
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "coord");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "coord_resolver_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, "coord resolver for database %u", oid);
	snprintf(worker.bgw_type, BGW_MAXLEN, "coord resolver");
	memcpy(worker.bgw_extra, &oid, sizeof(Oid));
	memcpy(worker.bgw_extra + sizeof(Oid), &role, sizeof(Oid));

	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	database->starting = true;
	database->started_at = GetCurrentTimestamp();
	LWLockRelease(&twophase_shared->lock);
	if (!RegisterDynamicBackgroundWorker(&worker, NULL))
	{
		LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
		database->starting = false;
		database->retry_at = GetCurrentTimestamp() + RETRY_US;
		LWLockRelease(&twophase_shared->lock);
	}
}

/* Send a database's resolver home; "force": also out of what it is doing. */
void
twophase_stop_resolver(Oid oid, bool force)
{
	TwophaseDatabase *database = find_database(oid, false);

	if (database == NULL || database->resolver_pid == 0)
		return;
	if (force)
		(void) kill(database->resolver_pid, SIGTERM);
	else
		SetLatch(&ProcGlobal->allProcs[database->resolver_procno].procLatch);
}

bool
twophase_resolver_is_gone(Oid oid)
{
	TwophaseDatabase *database = find_database(oid, false);

	return database == NULL ||
		(database->resolver_pid == 0 &&
		 (!database->starting ||
		  GetCurrentTimestamp() - database->started_at > START_TIMEOUT_US));
}

/*
 * What is not finished in a database, as far as is known here, for who wants to drop
 * it.  Waits for the resolver's first look since the server started, if there is one
 * to come.
 */
void
twophase_unresolved(Oid oid, int64 *in_doubt, int64 *unacknowledged, int64 *active,
					int64 *unreachable)
{
	TwophaseDatabase *database = find_database(oid, false);
	TimestampTz until = GetCurrentTimestamp() + FIRST_LOOK_US;

	*in_doubt = *unacknowledged = *active = *unreachable = 0;
	if (database == NULL)
		return;
	while (!database->looked && GetCurrentTimestamp() < until &&
		   (database->wanted || database->starting || database->resolver_pid != 0))
	{
		CHECK_FOR_INTERRUPTS();
		pg_usleep(20000);
	}
	LWLockAcquire(&twophase_shared->lock, LW_SHARED);
	*in_doubt = database->nunresolved;
	*unacknowledged = database->nunacknowledged;
	*unreachable = database->nunreachable;
	LWLockRelease(&twophase_shared->lock);
	for (int i = 0; i < twophase_shared->nsessions; i++)
	{
		TwophaseSession *session = &twophase_shared->sessions[i];

		if (session->database == oid && pg_atomic_read_u64(&session->gtid) != 0)
			(*active)++;
	}
}

/* ----------------------------------------------------------------
 *		For the views
 * ----------------------------------------------------------------
 */

/* Sessions of this database that are in the middle of a commit. */
Datum
coord_internal_twophase_sessions(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	twophase_attach();
	for (int i = 0; i < twophase_shared->nsessions; i++)
	{
		TwophaseSession *session = &twophase_shared->sessions[i];
		Datum		values[5];
		bool		nulls[5] = {false};
		uint64		gtid = pg_atomic_read_u64(&session->gtid);

		if (gtid <= 1 || session->database != MyDatabaseId)
			continue;
		values[0] = Int64GetDatum((int64) gtid);
		values[1] = Int32GetDatum(session->pid);
		values[2] = ObjectIdGetDatum(session->role);
		values[3] = TimestampTzGetDatum(session->since);
		values[4] = Int32GetDatum(session->participants);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Decisions of this run that are not acknowledged by all. */
Datum
coord_internal_twophase_unacknowledged(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	TwophaseDatabase *database = twophase_database();
	int64		gtids[TWOPHASE_UNACKNOWLEDGED];
	int			count;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	LWLockAcquire(&twophase_shared->lock, LW_SHARED);
	count = database->nunacknowledged;
	memcpy(gtids, database->unacknowledged, sizeof(int64) * count);
	LWLockRelease(&twophase_shared->lock);
	for (int i = 0; i < count; i++)
	{
		Datum		value = Int64GetDatum(gtids[i]);
		bool		isnull = false;

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
	}
	return (Datum) 0;
}

/* This run's incarnation and first id, and what the resolver has done. */
Datum
coord_internal_twophase_figures(PG_FUNCTION_ARGS)
{
	TwophaseDatabase *database = twophase_database();
	TupleDesc	desc;
	Datum		values[7];
	bool		nulls[7] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	LWLockAcquire(&twophase_shared->lock, LW_SHARED);
	values[0] = Int32GetDatum(database->incarnation);
	nulls[0] = database->incarnation == 0;
	values[1] = Int64GetDatum(database->first_gtid);
	nulls[1] = database->incarnation == 0;
	values[2] = BoolGetDatum(database->many);
	values[3] = Int32GetDatum(database->resolver_pid);
	nulls[3] = database->resolver_pid == 0;
	values[4] = Int64GetDatum(database->committed);
	values[5] = Int64GetDatum(database->rolled_back);
	values[6] = Int64GetDatum(database->resurrected);
	LWLockRelease(&twophase_shared->lock);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
