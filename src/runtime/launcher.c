/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The one process that starts workers where there is something to do.
 *
 * Why two kinds of processes: a worker is connected to one database and cannot
 * leave it, and a connection to every database of a cluster would be in the way
 * of everybody (DROP DATABASE, connection slots, memory).  The launcher is
 * connected to none.  It sleeps on its latch and looks at shared memory when
 * somebody rings: a commit in a database without a worker, a worker that ends
 * or wants help, a timer of a database whose worker went home.
 *
 * What shared memory cannot tell after a start or a promotion, because it is
 * empty then, is which databases have work.  So the launcher sends one worker
 * into each database once; one without coord, or with nothing to do, ends it at
 * once.
 *
 * The launcher keeps no state that matters.  If it dies the postmaster starts
 * another, and the workers go on meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/guc.h"
#include "runtime/runtime.h"
#include "twophase/twophase.h"

/* A worker that was asked for and has not come by then never will. */
#define START_TIMEOUT_US (60 * USECS_PER_SEC)

/* No further worker for a database within this time. */
#define SPAWN_INTERVAL_US (50 * 1000)

/*
 * When no slot was free: how long until the next try.  The postmaster frees the
 * slot of a worker a moment after that has ended, so the first tries are quick
 * and nothing is said about them.
 */
#define QUICK_RETRIES 10
#define QUICK_RETRY_US (100 * 1000)
#define EXHAUSTED_RETRY_US (5 * USECS_PER_SEC)
#define MAX_RETRY_US (60 * USECS_PER_SEC)

/* The log says it once in this time, however many databases starve. */
#define SAY_AGAIN_US (10 * 60 * USECS_PER_SEC)

/* Handles of workers by slot, to see those that never start. */
static BackgroundWorkerHandle *handles[COORD_MAX_WORKERS];

/* Called from _PG_init while shared_preload_libraries is processed. */
void
launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 5;
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "coord");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "coord_launcher_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, "coord launcher");
	snprintf(worker.bgw_type, BGW_MAXLEN, "coord launcher");
	RegisterBackgroundWorker(&worker);
}

/* Workers of a database, and in "free_slot" a free place.  Lock held. */
static int
count_workers(Oid database, int *free_slot, int *total)
{
	int			count = 0;

	*free_slot = -1;
	*total = 0;
	for (int i = 0; i < COORD_MAX_WORKERS; i++)
	{
		WorkerSlot *worker = &coord_shared->workers[i];

		if (worker->state == WORKER_FREE)
		{
			if (*free_slot < 0)
				*free_slot = i;
			continue;
		}
		(*total)++;
		if (worker->database == database && worker->state != WORKER_LEAVING)
			count++;
	}
	return count;
}

/*
 * Ask the postmaster for a worker in a database.  Returns its slot, or -1; then
 * "exhausted" says whether the server has no room for one.
 */
int
launcher_spawn(DatabaseSlot *slot, Oid role, bool *exhausted)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle = NULL;
	int			place;
	int			total;
	bool		registered;

	*exhausted = false;
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	(void) count_workers(slot->database, &place, &total);
	if (place < 0 || total >= guc_max_workers || slot->wanted_by != 0)
	{
		LWLockRelease(&coord_shared->lock);
		return -1;
	}
	memset(&coord_shared->workers[place], 0, sizeof(WorkerSlot));
	coord_shared->workers[place].state = WORKER_STARTING;
	coord_shared->workers[place].database = slot->database;
	coord_shared->workers[place].started_at = GetCurrentTimestamp();
	LWLockRelease(&coord_shared->lock);

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "coord");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "coord_worker_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, "coord worker for database %u", slot->database);
	snprintf(worker.bgw_type, BGW_MAXLEN, "coord worker");
	worker.bgw_main_arg = Int32GetDatum(place);
	memcpy(worker.bgw_extra, &slot->database, sizeof(Oid));
	memcpy(worker.bgw_extra + sizeof(Oid), &role, sizeof(Oid));
	worker.bgw_notify_pid = MyProcPid;
	registered = RegisterDynamicBackgroundWorker(&worker, &handle);

	if (!registered)
	{
		LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
		coord_shared->workers[place].state = WORKER_FREE;
		LWLockRelease(&coord_shared->lock);
		*exhausted = true;
		return -1;
	}
	if (handles[place] != NULL)
		pfree(handles[place]);
	handles[place] = handle;
	return place;
}

/* Free the places of workers that ended before they could do it themselves. */
static void
reap(void)
{
	for (int i = 0; i < COORD_MAX_WORKERS; i++)
	{
		WorkerSlot *worker = &coord_shared->workers[i];
		bool		gone = false;
		pid_t		pid;

		if (worker->state != WORKER_STARTING)
			continue;
		if (handles[i] != NULL)
			gone = GetBackgroundWorkerPid(handles[i], &pid) == BGWH_STOPPED;
		else
			gone = GetCurrentTimestamp() - worker->started_at > START_TIMEOUT_US;
		if (!gone)
			continue;
		LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
		if (worker->state == WORKER_STARTING)
		{
			for (int j = 0; j < COORD_MAX_DATABASES; j++)
			{
				DatabaseSlot *slot = &coord_shared->databases[j];

				if (slot->database == worker->database)
				{
					slot->retry_at = GetCurrentTimestamp() + USECS_PER_SEC;
					slot->scan = true;
					ConditionVariableBroadcast(&slot->workers_changed);
				}
			}
			worker->state = WORKER_FREE;
		}
		LWLockRelease(&coord_shared->lock);
	}
}

/*
 * Hold the slots against pg_database: databases that are new are to be probed,
 * the slots of those that are gone are free again.
 */
static void
scan_databases(void)
{
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;
	List	   *databases = NIL;
	List	   *all = NIL;
	ListCell   *cell;
	MemoryContext context = CurrentMemoryContext;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old;

		old = MemoryContextSwitchTo(context);
		all = lappend_oid(all, database->oid);
		if (database->datallowconn && !database->datistemplate)
			databases = lappend_oid(databases, database->oid);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < COORD_MAX_DATABASES; i++)
	{
		DatabaseSlot *slot = &coord_shared->databases[i];

		if (OidIsValid(slot->database) && !list_member_oid(all, slot->database))
			slot->database = InvalidOid;
	}
	LWLockRelease(&coord_shared->lock);

	foreach(cell, databases)
	{
		DatabaseSlot *slot = doorbell_database(lfirst_oid(cell), false);

		if (slot != NULL)
			continue;
		slot = doorbell_database(lfirst_oid(cell), true);
		if (slot == NULL)
		{
			ereport(LOG,
					(errmsg("coord serves at most %d databases of a cluster",
							COORD_MAX_DATABASES)));
			break;
		}
		slot->probe = true;
	}

	list_free(databases);
	list_free(all);
}

/*
 * The worker's role, and whether the database still exists; both change only
 * rarely, and are looked up only when a worker is about to be started.
 */
static Oid
worker_role(Oid database, bool *exists)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			role;

	StartTransactionCommand();
	role = get_role_oid("coord_worker", true);
	*exists = SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database));
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return role;
}

/* Is whoever wanted the database for himself gone without giving it back? */
static void
check_wanted(DatabaseSlot *slot)
{
	if (slot->wanted_by != 0 && BackendPidGetProc(slot->wanted_by) == NULL)
		slot->wanted_by = 0;
}

/* A worker for a database, if one may be had.  Returns when to look again. */
static TimestampTz
start_worker(DatabaseSlot *slot, TimestampTz now)
{
	static TimestampTz said_at = 0;
	bool		exists;
	bool		exhausted;
	Oid			role = worker_role(slot->database, &exists);

	if (!exists)
	{
		LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
		slot->database = InvalidOid;
		LWLockRelease(&coord_shared->lock);
		return 0;
	}
	if (!OidIsValid(role))
	{
		slot->probe = slot->scan = slot->requests = slot->events = false;
		return 0;
	}
	if (launcher_spawn(slot, role, &exhausted) >= 0)
	{
		slot->starved = 0;
		slot->last_spawn = now;
		return now + SPAWN_INTERVAL_US;
	}
	if (!exhausted)
		return 0;				/* one of coord's own will end and ring */
	if (slot->starved++ >= QUICK_RETRIES &&
		(said_at == 0 || now < said_at || now - said_at > SAY_AGAIN_US))
	{
		said_at = now;
		ereport(LOG,
				(errmsg("coord: no background worker could be started for database %u",
						slot->database),
				 errhint("Raise max_worker_processes.")));
	}
	slot->retry_at = now + (slot->starved <= QUICK_RETRIES ? QUICK_RETRY_US :
							EXHAUSTED_RETRY_US);
	return slot->retry_at;
}

/* A resolver for a database that wants one, besides its workers. */
static TimestampTz
look_for_resolver(DatabaseSlot *slot, TimestampTz now)
{
	TimestampTz again = 0;
	bool		exists;
	Oid			role;

	if (!twophase_wants_resolver(slot->database, now, &again))
		return again;
	role = worker_role(slot->database, &exists);
	if (exists && OidIsValid(role))
		twophase_resolver_spawn(slot->database, role);
	return now + USECS_PER_SEC;
}

/* Is this worker in a call that takes long?  It will not do anything soon. */
static bool
is_in_long_call(const WorkerSlot *worker, TimestampTz now)
{
	return worker->state == WORKER_RUNNING && worker->current != 0 &&
		now - worker->since >= COORD_STALL_US;
}

/*
 * When every place is taken and a database has none, the database with most
 * workers gives one up; with one each, the worker that is there longest.  One
 * that is in a long call is passed over: it could not follow.
 */
static void
make_room(void)
{
	TimestampTz now = GetCurrentTimestamp();
	WorkerSlot *victim = NULL;
	int			victim_count = 0;
	int			free_slot;
	int			total;

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < COORD_MAX_WORKERS; i++)
	{
		WorkerSlot *worker = &coord_shared->workers[i];
		int			count;

		if (worker->state == WORKER_FREE || is_in_long_call(worker, now))
			continue;
		if (worker->state == WORKER_LEAVING)
		{
			victim = NULL;
			break;
		}
		if (worker->asked_to_stop)
		{
			victim = NULL;		/* one is on its way already */
			break;
		}
		count = count_workers(worker->database, &free_slot, &total);
		if (victim == NULL || count > victim_count ||
			(count == victim_count && worker->started_at < victim->started_at))
		{
			victim = worker;
			victim_count = count;
		}
	}
	if (victim != NULL && victim->state != WORKER_STARTING)
	{
		victim->asked_to_stop = true;
		SetLatch(&ProcGlobal->allProcs[victim->procno].procLatch);
	}
	LWLockRelease(&coord_shared->lock);
}

/*
 * Is work waiting behind calls that take long in every worker of a database?
 * The lock is held.
 */
static bool
is_stalled(const DatabaseSlot *slot, TimestampTz now)
{
	for (int i = 0; i < COORD_MAX_WORKERS; i++)
	{
		WorkerSlot *worker = &coord_shared->workers[i];

		if (worker->state == WORKER_FREE || worker->state == WORKER_LEAVING ||
			worker->database != slot->database)
			continue;
		if (!is_in_long_call(worker, now))
			return false;
	}
	return true;
}

/* Look at every database; returns when to look again, 0: when somebody rings. */
static TimestampTz
look(void)
{
	TimestampTz next = 0;
	bool		crowded = false;

	for (int i = 0; i < COORD_MAX_DATABASES; i++)
	{
		DatabaseSlot *slot = &coord_shared->databases[i];
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz again = 0;
		bool		wake = false;
		int			workers;
		int			wanted;
		int			free_slot;
		int			total;

		if (!OidIsValid(slot->database))
			continue;
		check_wanted(slot);
		if (slot->wanted_by != 0)
			continue;
		again = look_for_resolver(slot, now);
		if (again != 0 && (next == 0 || again < next))
			next = again;
		again = 0;
		if (slot->halted && !slot->probe)
			continue;

		LWLockAcquire(&coord_shared->lock, LW_SHARED);
		workers = count_workers(slot->database, &free_slot, &total);
		wanted = slot->probe || slot->scan || slot->requests || slot->events || slot->queued > 0 ||
			(slot->next_wake != 0 && slot->next_wake <= clock_now());
		if (slot->wanted_workers > wanted)
			wanted = slot->wanted_workers;
		if (wanted > 0 && workers > 0 && wanted <= workers)
		{
			if (is_stalled(slot, now))
				wanted = workers + 1;
			else
			{
				/* What waited the last time, too, is worth waking a sleeper. */
				wake = slot->queued > 0 && slot->waited;
				again = now + COORD_STALL_US;
			}
			slot->waited = slot->queued > 0;
		}
		else
		{
			/* No timer for it: the next one who waits rings at once. */
			slot->waited = false;
			slot->told_at = 0;
		}
		LWLockRelease(&coord_shared->lock);
		if (wake)
			doorbell_wake_workers(slot->database, 1);

		/* Workers that are there may be in long calls when it is time. */
		if (slot->next_wake != 0 && wanted == 0)
			again = slot->next_wake;
		if (workers < wanted)
		{
			/* Times that lie too far ahead are from before the clock was set back. */
			if (slot->retry_at > now + MAX_RETRY_US)
				slot->retry_at = 0;
			if (slot->last_spawn > now)
				slot->last_spawn = 0;
			if (slot->retry_at > now)
				again = slot->retry_at;
			else if (slot->last_spawn + SPAWN_INTERVAL_US > now)
				again = slot->last_spawn + SPAWN_INTERVAL_US;
			else if (total >= guc_max_workers)
				crowded = crowded || workers == 0;
			else
				again = start_worker(slot, now);
		}
		/* Whatever kept a worker from being started may pass without a ring. */
		if (again == 0 && (workers < wanted || slot->queued > 0))
			again = now + USECS_PER_SEC;
		if (again != 0 && (next == 0 || again < next))
			next = again;
	}
	if (crowded)
	{
		make_room();
		if (next == 0)
			next = GetCurrentTimestamp() + USECS_PER_SEC;
	}
	return next;
}

static void
launcher_exit(int code, Datum arg)
{
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (coord_shared->launcher_pid == MyProcPid)
		coord_shared->launcher_pid = 0;
	LWLockRelease(&coord_shared->lock);
}

void
coord_launcher_main(Datum arg)
{
	static uint32 wait_event = 0;

	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	doorbell_attach();

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (coord_shared->launcher_pid != 0)
	{
		LWLockRelease(&coord_shared->lock);
		ereport(LOG,
				(errmsg("coord launcher is already running under PID %d",
						coord_shared->launcher_pid)));
		return;
	}
	coord_shared->launcher_pid = MyProcPid;
	coord_shared->launcher_procno = coord_my_proc_number();
	coord_shared->rescan = true;
	LWLockRelease(&coord_shared->lock);
	before_shmem_exit(launcher_exit, (Datum) 0);
	ereport(LOG, (errmsg("coord launcher started")));
	pgstat_report_activity(STATE_IDLE, NULL);

	/* Handles are kept for as long as the process lives. */
	MemoryContextSwitchTo(TopMemoryContext);
	for (;;)
	{
		TimestampTz next = 0;
		long		timeout = -1;
		int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		reap();
		if (guc_enabled)
		{
			if (coord_shared->rescan)
			{
				coord_shared->rescan = false;
				scan_databases();
			}
			next = look();
		}
		if (next != 0)
		{
			timeout = Max(1, (next - GetCurrentTimestamp()) / 1000 + 1);
			timeout = Min(timeout, 60 * 60 * 1000L);
			events |= WL_TIMEOUT;
		}
		(void) WaitLatch(MyLatch, events, timeout,
						 coord_wait_event(&wait_event, "CoordLauncherMain"));
		ResetLatch(MyLatch);
	}
}
