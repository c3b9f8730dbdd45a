/*-------------------------------------------------------------------------
 *
 * engine.c
 *	  The engine of a database as an operator sees it: pause, resume, drain,
 *	  start a worker, who works.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/identity.h"
#include "base/installation.h"
#include "base/query.h"
#include "lock/lock.h"
#include "runtime/runtime.h"
#include "saga/saga.h"

PG_FUNCTION_INFO_V1(coord_pause);
PG_FUNCTION_INFO_V1(coord_resume);
PG_FUNCTION_INFO_V1(coord_drain);
PG_FUNCTION_INFO_V1(coord_start_worker);
PG_FUNCTION_INFO_V1(coord_internal_workers);
PG_FUNCTION_INFO_V1(coord_internal_ring);

static void
check_admin(const char *function)
{
	if (!access_sees_all(GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", function),
				 errdetail("It is for members of coord_admin.")));
}

/* An operator must be able to see later who did it. */
static void
log_engine(const char *what, const char *reason)
{
	ereport(LOG,
			(errmsg("coord: engine of database %u %s by role \"%s\"", MyDatabaseId, what,
					GetUserNameFromId(GetUserId(), true)),
			 reason ? errdetail("Reason: %s", reason) : 0));
}

/* Stop the engine: true if it was not paused already. */
static bool
pause_engine(const char *reason)
{
	static Statement insert = {
		"INSERT INTO coord_internal.engine_pause (paused_at, paused_by, reason)"
		" SELECT $1, rolname, $3 FROM pg_catalog.pg_authid WHERE oid = $2"
		" AND NOT EXISTS (SELECT FROM coord_internal.engine_pause)",
		3, {TIMESTAMPTZOID, OIDOID, TEXTOID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		values[3];
	bool		nulls[3] = {false, false, reason == NULL};
	bool		changed;

	installation_check();
	query_begin(&scope);
	values[0] = TimestampTzGetDatum(clock_now());
	values[1] = ObjectIdGetDatum(user);
	values[2] = reason ? CStringGetTextDatum(reason) : (Datum) 0;
	changed = query_run(&insert, values, nulls, 0) > 0;
	query_end(&scope);
	access_refresh_roles();
	installation_state_changed();
	if (changed)
		log_engine("paused", reason);
	return changed;
}

/* coord.pause(reason) */
Datum
coord_pause(PG_FUNCTION_ARGS)
{
	check_admin("coord.pause");
	PG_RETURN_BOOL(pause_engine(check_optional_text(fcinfo, 0)));
}

/*
 * coord.resume(reason): go on after a pause, and take a copy for what it now
 * is.  In a copy, the roles that own work are found again by name.
 */
Datum
coord_resume(PG_FUNCTION_ARGS)
{
	static Statement unpause = {
		"DELETE FROM coord_internal.engine_pause", 0, {0}
	};
	static Statement adopt = {
		"SELECT coord_internal.adopt_identity()", 0, {0}
	};
	QueryScope	scope;
	bool		adopted;
	bool		changed;
	bool		isnull;

	check_admin("coord.resume");
	installation_check();
	query_begin(&scope);
	changed = query_run(&unpause, NULL, NULL, 0) > 0;
	query_run(&adopt, NULL, NULL, 0);
	adopted = DatumGetBool(query_value(0, 1, &isnull));
	changed = adopted || changed;
	query_end(&scope);
	installation_state_changed();
	queue_forget_all();
	if (adopted)
		lease_forget_all();
	lock_prefixes_changed();
	doorbell_resume_at_commit();
	if (changed)
		log_engine("resumed", check_optional_text(fcinfo, 0));
	PG_RETURN_BOOL(changed);
}

/*
 * CALL coord.drain(timeout, drained): pause, then wait until no turn is in
 * progress, in workers and sessions alike.
 */
Datum
coord_drain(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	TupleDesc	tupdesc;
	TimestampTz end;
	int64		us = 300 * USECS_PER_SEC;
	Datum		value;
	bool		isnull = false;
	bool		drained = false;

	check_nonatomic(fcinfo, "coord.drain");
	check_admin("coord.drain");
	if (!PG_ARGISNULL(0))
		us = clock_interval_us(PG_GETARG_INTERVAL_P(0));
	if (us < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));
	end = GetCurrentTimestamp() + us;
	(void) pause_engine("coord.drain()");
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SPI_commit();

	/*
	 * A turn that begins after the commit sees the pause.  One that began
	 * before holds its lock until it ends, so once the lock was free nothing
	 * runs.  The lock is tried and not waited for, lest new turns queue behind.
	 */
	for (;;)
	{
		drained = installation_try_lock(AccessExclusiveLock);
		if (drained || GetCurrentTimestamp() >= end)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 20, coord_wait_event(&wait_event, "CoordDrain"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	SPI_commit();				/* give the lock back */
	SPI_finish();
	EnsurePortalSnapshotExists();

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "procedure must return a row");
	value = BoolGetDatum(drained);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), &value, &isnull));
}

/* coord.start_worker(): without preload, a worker for this database. */
Datum
coord_start_worker(PG_FUNCTION_ARGS)
{
	DatabaseSlot *slot;
	bool		exhausted;

	check_admin("coord.start_worker");
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot execute coord.start_worker() during recovery")));
	installation_check();
	doorbell_attach_queue();
	slot = doorbell_database(MyDatabaseId, true);
	if (slot == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("coord serves at most %d databases of a cluster",
						COORD_MAX_DATABASES)));
	if (launcher_spawn(slot, get_role_oid("coord_worker", false), &exhausted) >= 0)
		PG_RETURN_BOOL(true);
	if (exhausted)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not start a background worker"),
				 errhint("Raise max_worker_processes.")));
	PG_RETURN_BOOL(false);
}

/* For the view coord.workers: the launcher and this database's workers. */
Datum
coord_internal_workers(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	static const char *const states[] = {"free", "starting", "running", "idle", "leaving"};

	InitMaterializedSRF(fcinfo, 0);
	doorbell_attach();
	for (int i = -1; i < COORD_MAX_WORKERS; i++)
	{
		Datum		values[10] = {0};
		bool		nulls[10];
		WorkerSlot	worker;

		memset(nulls, true, sizeof(nulls));
		if (i < 0)
		{
			if (coord_shared->launcher_pid == 0)
				continue;
			values[0] = Int32GetDatum(coord_shared->launcher_pid);
			values[1] = CStringGetTextDatum("coord launcher");
			values[2] = CStringGetTextDatum("running");
			nulls[0] = nulls[1] = nulls[2] = false;
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
			continue;
		}
		LWLockAcquire(&coord_shared->lock, LW_SHARED);
		worker = coord_shared->workers[i];
		LWLockRelease(&coord_shared->lock);
		if (worker.state == WORKER_FREE || worker.database != MyDatabaseId)
			continue;
		values[0] = Int32GetDatum(worker.pid);
		nulls[0] = worker.pid == 0;
		values[1] = CStringGetTextDatum("coord worker");
		values[2] = CStringGetTextDatum(states[worker.state]);
		values[3] = TimestampTzGetDatum(worker.started_at);
		nulls[1] = nulls[2] = nulls[3] = false;
		if (worker.current > 0)
		{
			values[4] = Int64GetDatum(worker.current);
			values[5] = Int64GetDatum(worker.definition);
			values[6] = Int32GetDatum(worker.ordinal);
			values[7] = CStringGetTextDatum(worker.phase == 0 ? "action" : "compensation");
			values[8] = ObjectIdGetDatum(worker.owner);
			values[9] = TimestampTzGetDatum(worker.since);
			memset(&nulls[4], false, 6);
		}
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* For the script: once this commits, somebody looks at this database. */
Datum
coord_internal_ring(PG_FUNCTION_ARGS)
{
	lease_forget_all();
	doorbell_resume_at_commit();
	PG_RETURN_VOID();
}
