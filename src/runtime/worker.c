/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  A background worker: one database, turn after turn, until there is
 *	  nothing to do.
 *
 * Work comes from the queue in shared memory.  The tables are read
 *
 *	  - when the worker begins, after an overflow and after COMMIT PREPARED, from
 *		the start ("scan");
 *	  - when a timer is due, from where the last reading ended;
 *	  - every half minute, from the start, for whatever nobody rang for.
 *
 * One worker of a database reads at a time, the others take what it finds from
 * the queue.
 *
 * The worker's session role is coord_worker, which may do nothing; see
 * identity.c for whom it acts as.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/access.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/guc.h"
#include "base/identity.h"
#include "base/in_hand.h"
#include "base/installation.h"
#include "event/event.h"
#include "lock/lock.h"
#include "runtime/runtime.h"
#include "saga/saga.h"
#include "twophase/twophase.h"

#define SAFETY_SCAN_US (30 * USECS_PER_SEC)
#define FRESH_SCAN_US (1 * USECS_PER_SEC)
#define HOUSEKEEPING_US (60 * USECS_PER_SEC)
#define SWEEP_MULTIPLE 20
#define MAX_STAGED 256

/* Under load, drivers that LISTEN are woken at most this often. */
#define NOTIFY_INTERVAL_US (100 * 1000)

/* How long to wait, under load, for enough sagas for a turn. */
#define LOADED_COUNT 1.25
#define GATHER_MS 1

/* After a turn that could not be made. */
#define FAILURE_DELAY_MS 1000

/* This worker. */
static WorkerSlot *my_slot = NULL;
static DatabaseSlot *my_database = NULL;

/* Taken from the queue, not yet claimed. */
static QueueEntry staged[MAX_STAGED];
static int	nstaged = 0;

/* Why the worker ends, for its exit callback. */
static bool orderly_end = false;

/*
 * Give the place back.  Whatever was staged is found again by a scan.
 */
static void
worker_exit(int code, Datum arg)
{
	DatabaseSlot *slot = my_database;

	in_hand_detach();
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (slot != NULL)
	{
		if (nstaged > 0 || !orderly_end)
			slot->scan = slot->scan || slot->installed;
		if (code != 0 && !orderly_end && !my_slot->asked_to_stop)
		{
			int64		delay = USECS_PER_SEC << Min(slot->failures, 6);

			slot->failures++;
			slot->retry_at = GetCurrentTimestamp() + delay / 4;
		}
		if (slot->queued == 0)
			slot->wanted_workers = 0;
		if (my_slot->scanning)
			slot->scanning = false;
	}
	my_slot->state = WORKER_FREE;
	my_slot->pid = 0;
	my_slot->current = 0;
	my_slot->subscription = 0;
	LWLockRelease(&coord_shared->lock);
	if (slot != NULL)
		ConditionVariableBroadcast(&slot->workers_changed);
	doorbell_wake_launcher();
}

/* End without a fault. */
static void
finish(void)
{
	orderly_end = true;
	proc_exit(0);
}

/* The earlier of two times, of which 0 is none. */
static TimestampTz
earlier(TimestampTz a, TimestampTz b)
{
	return a == 0 ? b : b == 0 ? a : Min(a, b);
}

/*
 * Inboxes, or tasks: those that may be begun go into the queue, leases that have
 * ended are dealt with, and "task_due" is when the next one does.  Returns
 * whether there was too little room.
 */
static bool
scan_more(QueueEntry *entries, int max, TimestampTz *task_due, bool tasks)
{
	TimestampTz begin = GetCurrentTimestamp();
	int			count;

	if (!tasks)
		count = saga_scan_inbox(entries, max);
	else
	{
		TimestampTz next;

		count = saga_scan_tasks(clock_now(), entries, max, &next);
		*task_due = earlier(next, task_sweep());

		/* All tasks are read for it: not all the time. */
		if (*task_due != 0)
			*task_due = Max(*task_due, clock_now() +
							SWEEP_MULTIPLE * (GetCurrentTimestamp() - begin));
	}
	return doorbell_push(my_database, entries, count) < count || count == max;
}

/* What the tables say is due goes into the queue. */
static void
scan_tables(bool from_start)
{
	DatabaseSlot *slot = my_database;
	TimestampTz until;
	TimestampTz next = 0;
	TimestampTz mark_at;
	int64		mark_id;
	QueueEntry *entries;
	TimestampTz task_due = 0;
	bool		dropped = false;
	bool		tasks;
	bool		inbox;
	int			room;
	int			count;

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (slot->scanning)
	{
		LWLockRelease(&coord_shared->lock);
		return;
	}
	slot->scanning = true;
	my_slot->scanning = true;
	if (from_start)
	{
		slot->scan = false;
		slot->mark_at = DT_NOBEGIN;
		slot->mark_id = 0;
	}
	mark_at = slot->mark_at;
	mark_id = slot->mark_id;
	room = COORD_QUEUE_SIZE - slot->queued;
	if (from_start || (slot->events_at != 0 && slot->events_at <= clock_now()))
	{
		slot->events = true;
		slot->events_at = 0;
	}
	tasks = from_start || (slot->task_due != 0 && slot->task_due <= clock_now());
	inbox = from_start || (slot->inbox_at != 0 && slot->inbox_at <= clock_now());
	if (tasks)
		slot->task_due = 0;
	if (inbox)
		slot->inbox_at = 0;
	slot->next_wake = 0;
	LWLockRelease(&coord_shared->lock);

	/*
	 * Before the snapshot: what commits after it and was due by then, its
	 * commit callback, which looks at the clock later, puts into the queue.
	 */
	until = clock_now();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!installation_lock(AccessShareLock))
		finish();
	installation_check();
	PushActiveSnapshot(GetTransactionSnapshot());
	entries = palloc(sizeof(QueueEntry) * Max(room, 1));
	if (from_start)
	{
		count = saga_scan_priority(until, entries, room / 2);
		dropped = doorbell_push(slot, entries, count) < count;
	}
	if (inbox)
		dropped = scan_more(entries, room / 2, &task_due, false) || dropped;
	if (tasks)
		dropped = scan_more(entries, room / 2, &task_due, true) || dropped;
	room = Min(room, COORD_QUEUE_SIZE - (int) slot->queued);
	count = saga_scan_due(mark_at, mark_id, until, entries, room, &mark_at, &mark_id);
	dropped = doorbell_push(slot, entries, count) < count || dropped;
	if (count < room)
		next = saga_next_wake(until);
	PopActiveSnapshot();
	CommitTransactionCommand();

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (count < room)
	{
		slot->mark_at = until;
		slot->mark_id = PG_INT64_MAX;
		slot->more = false;
	}
	else
	{
		slot->mark_at = mark_at;
		slot->mark_id = mark_id;
		slot->more = true;
	}
	/* Commits may have taken the room meanwhile: what was read is read again. */
	if (dropped)
		slot->scan = true;
	if (task_due != 0 && (slot->task_due == 0 || task_due < slot->task_due))
		slot->task_due = task_due;
	next = earlier(next, earlier(slot->task_due, earlier(earlier(slot->inbox_at, slot->events_at), slot->sweep_at)));
	slot->next_wake = earlier(next, slot->next_wake);
	slot->scanning = false;
	my_slot->scanning = false;
	LWLockRelease(&coord_shared->lock);
}

/*
 * Is the engine allowed to act here?  A worker that finds it is not says so and
 * ends, and none is started until somebody resumes.
 */
static void
check_state(void)
{
	uint32		resumed = my_database->resumed;
	EngineState state;
	bool		overtaken;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!installation_exists() || !installation_lock(AccessShareLock))
	{
		LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
		if (my_database->resumed != resumed)
		{
			/* CREATE EXTENSION has committed meanwhile, and its ring must not be lost. */
			LWLockRelease(&coord_shared->lock);
			CommitTransactionCommand();
			check_state();
			return;
		}
		my_database->installed = my_database->scan = my_database->requests = my_database->events = false;
		my_database->probe = false;
		my_database->queued = 0;
		my_database->next_wake = 0;
		LWLockRelease(&coord_shared->lock);
		CommitTransactionCommand();
		finish();
	}
	installation_check();
	PushActiveSnapshot(GetTransactionSnapshot());
	state = installation_state();
	if (state == ENGINE_RUNNING)
	{
		access_refresh_roles();
		twophase_database_started();
	}
	PopActiveSnapshot();
	DEBUG_POINT("worker_state_read");
	CommitTransactionCommand();

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	my_database->installed = true;
	my_database->probe = false;

	/* A resume that committed after the snapshot must not be taken back. */
	overtaken = state != ENGINE_RUNNING && my_database->resumed != resumed;
	my_database->halted = state != ENGINE_RUNNING && !overtaken;
	LWLockRelease(&coord_shared->lock);
	if (overtaken)
	{
		check_state();
		return;
	}
	if (state == ENGINE_COPY)
		ereport(WARNING,
				(errmsg("coord: this database (oid %u) is a copy and nothing will run in it",
						MyDatabaseId),
				 errdetail("It was made from a template or a dump, or runs under another system identifier than the database it was."),
				 errhint("SELECT coord.resume(); if it shall act.")));
	if (state != ENGINE_RUNNING)
		finish();
}

/*
 * Move the entries of one owner and one kind, at most "max", to the front of "staged" in
 * their order; returns how many.
 */
static int
gather_owner(int max)
{
	Oid			owner = staged[0].owner;
	WorkKind	kind = staged[0].kind;
	QueueEntry	others[MAX_STAGED];
	int			count = 0;
	int			nothers = 0;

	for (int i = 0; i < nstaged; i++)
	{
		if (staged[i].owner == owner && staged[i].kind == kind && count < max)
			staged[count++] = staged[i];
		else
			others[nothers++] = staged[i];
	}
	memcpy(&staged[count], others, sizeof(QueueEntry) * nothers);
	return count;
}

/* Ask for another worker when one cannot keep up. */
static void
call_for_help(int turn_size)
{
	bool		wake = false;
	int			workers = 0;

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < COORD_MAX_WORKERS; i++)
		workers += coord_shared->workers[i].state != WORKER_FREE &&
			coord_shared->workers[i].state != WORKER_LEAVING &&
			coord_shared->workers[i].database == MyDatabaseId;
	if (my_database->queued > Max(4 * turn_size, COORD_ENOUGH_FOR_A_TURN) && workers < guc_max_workers &&
		my_database->wanted_workers <= workers)
	{
		my_database->wanted_workers = workers + 1;
		wake = true;
	}
	else if (my_database->queued == 0 && nstaged == 0)
		my_database->wanted_workers = 0;
	LWLockRelease(&coord_shared->lock);
	if (wake)
		doorbell_wake_launcher();
}

/*
 * Under load, let a few more arrive before the next turn: a commit for each
 * pair of sagas would cost more than all their steps.  Load is when turns find
 * more than one saga; a single client that starts one saga after the other
 * never waits here.
 */
static void
gather_more(int last_count)
{
	static uint32 wait_event = 0;
	static double usual_count = 1;

	usual_count += (last_count - usual_count) / 8;
	if (usual_count < LOADED_COUNT || my_database->queued >= COORD_ENOUGH_FOR_A_TURN)
		return;
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 GATHER_MS, coord_wait_event(&wait_event, "CoordWorkerGather"));
	ResetLatch(MyLatch);
}

/* Subscriptions that have something to do go into the queue, but for one. */
static void
look_for_events(void)
{
	int			count = 0;

	my_database->events = false;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (installation_lock(AccessShareLock) && installation_state() == ENGINE_RUNNING)
		count = subscription_round(staged, MAX_STAGED);
	CommitTransactionCommand();
	if (count > 1 && doorbell_push(my_database, &staged[1], count - 1) < count - 1)
		my_database->events = true;
	nstaged = Min(count, 1);
}

/* Hand events to a subscription's handler. */
static void
work_on_subscription(void)
{
	static uint32 wait_event = 0;
	QueueEntry	entry = staged[0];
	bool		again;

	if (nstaged > 1 && doorbell_push(my_database, &staged[1], nstaged - 1) < nstaged - 1)
		my_database->scan = true;
	nstaged = 0;
	if (!subscription_work(entry.id, &again))
	{
		my_database->events = true;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 FAILURE_DELAY_MS,
						 coord_wait_event(&wait_event, "CoordWorkerFailure"));
		ResetLatch(MyLatch);
	}
	if (again && doorbell_push(my_database, &entry, 1) == 0)
		my_database->events = true;
	pgstat_report_stat(false);
}

/* Claim and run a batch. */
static void
work(void)
{
	static uint32 wait_event = 0;
	SagaTurnResult result;
	int			size = Min(saga_turn_size(), MAX_STAGED);
	int			count;

	if (staged[0].kind == WORK_SUBSCRIPTION)
	{
		work_on_subscription();
		return;
	}
	count = gather_owner(size);
	if (size == 1 && nstaged > 1)
	{
		/* What comes next may take long: nothing is held back behind it. */
		if (doorbell_push(my_database, &staged[1], nstaged - 1) < nstaged - 1)
			my_database->scan = true;
		nstaged = 1;
		doorbell_wake_workers(MyDatabaseId, 1);
		doorbell_wake_launcher();	/* should nobody sleep, it will see */
	}

	switch (saga_worker_turn(staged, count, &result))
	{
		case SAGA_TURN_DONE:
			my_database->failures = 0;
			break;
		case SAGA_TURN_FAILED:
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 FAILURE_DELAY_MS,
							 coord_wait_event(&wait_event, "CoordWorkerFailure"));
			ResetLatch(MyLatch);
			break;
		case SAGA_TURN_HALTED:
		case SAGA_TURN_GONE:
			nstaged = 0;
			check_state();		/* does not return unless it has changed again */
			return;
	}
	memmove(&staged[result.leftover], &staged[count],
			sizeof(QueueEntry) * (nstaged - count));
	nstaged -= count - result.leftover;
	pgstat_report_stat(false);
	call_for_help(size);
	if (nstaged == 0 && result.steps > 0)
		gather_more(count);
}

/*
 * Nothing in hand: sleep until somebody rings, a timer or a safety scan is due,
 * or it is time to go home.  Returns false when it is, but the tables have not
 * been read from the start just before: nobody will look after this one left.
 */
static bool
idle(TimestampTz idle_since, TimestampTz safety_at, TimestampTz notify_at)
{
	static uint32 wait_event = 0;
	DatabaseSlot *slot = my_database;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz home_at = idle_since + guc_worker_idle_timeout * INT64CONST(1000);
	TimestampTz until;

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (slot->queued > 0 || slot->scan || slot->requests || slot->events || slot->more)
	{
		LWLockRelease(&coord_shared->lock);
		return true;
	}
	/* To stay is cheaper than to come back soon. */
	if (slot->next_wake != 0 && slot->next_wake < home_at + USECS_PER_SEC)
		home_at = DT_NOEND;
	until = Min(home_at, safety_at);
	if (notify_at != 0)
		until = Min(until, notify_at);

	/* A pinned clock does not move; the test that moves it rings. */
	if (slot->next_wake != 0 && !clock_is_set())
		until = Min(until, slot->next_wake);
	if (home_at <= now && safety_at - now < SAFETY_SCAN_US - FRESH_SCAN_US)
	{
		LWLockRelease(&coord_shared->lock);
		return false;
	}
	if (home_at <= now)
	{
		/* Under the lock: who rings after this finds no worker here. */
		my_slot->state = WORKER_LEAVING;
		LWLockRelease(&coord_shared->lock);
		finish();
	}
	my_slot->state = WORKER_IDLE;
	LWLockRelease(&coord_shared->lock);

	pgstat_report_activity(STATE_IDLE, NULL);
	pgstat_report_stat(true);
	if (until > now)
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(1, (until - now + 999) / 1000),
						 coord_wait_event(&wait_event, "CoordWorkerMain"));
	ResetLatch(MyLatch);
	my_slot->state = WORKER_RUNNING;
	return true;
}

/* The loop; ends by finish() or an error. */
static void
run(void)
{
	TimestampTz idle_since = GetCurrentTimestamp();
	TimestampTz safety_at = 0;
	TimestampTz housekeeping_at = 0;
	TimestampTz last_now = 0;
	TimestampTz notify_at = 0;
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "coord worker",
												  ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		bool		due;

		/* A clock that was set back makes every time kept in memory void. */
		if (now < last_now || clock_now() < my_database->mark_at)
		{
			idle_since = now;
			safety_at = housekeeping_at = 0;
			my_database->scan = true;
		}
		last_now = now;
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (!guc_enabled || my_slot->asked_to_stop || my_database->wanted_by != 0)
			finish();

		if (my_database->requests)
		{
			my_database->requests = false;
			saga_apply_requests();
			continue;
		}
		if (my_database->events && nstaged == 0)
		{
			look_for_events();
			continue;
		}
		if (now >= housekeeping_at ||
			(my_database->sweep_at != 0 && my_database->sweep_at <= clock_now()))
		{
			my_database->sweep_at = 0;
			saga_housekeeping();
			lease_housekeeping();
			event_housekeeping();
			housekeeping_at = now + HOUSEKEEPING_US;
		}
		if (nstaged == 0)
			nstaged = doorbell_pop(my_database, staged, Min(saga_turn_size(), MAX_STAGED));
		if (nstaged > 0)
		{
			work();
			idle_since = GetCurrentTimestamp();
			if (idle_since >= notify_at)
			{
				(void) queue_notify();
				notify_at = idle_since + NOTIFY_INTERVAL_US;
			}
			continue;
		}
		if (my_database->scan || now >= safety_at)
		{
			scan_tables(true);
			if (now >= safety_at)
				my_database->requests = my_database->requests || my_database->requests_left;
			safety_at = now + SAFETY_SCAN_US;
			if (my_database->queued > 0)
				continue;
		}
		due = my_database->next_wake != 0 && my_database->next_wake <= clock_now();
		if (due || my_database->more)
		{
			scan_tables(false);
			continue;
		}
		notify_at = queue_notify();
		if (!idle(idle_since, safety_at, notify_at))
			safety_at = 0;
	}
}

void
coord_worker_main(Datum arg)
{
	int			place = DatumGetInt32(arg);
	Oid			database;
	Oid			role;

	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);

	memcpy(&database, MyBgworkerEntry->bgw_extra, sizeof(Oid));
	memcpy(&role, MyBgworkerEntry->bgw_extra + sizeof(Oid), sizeof(Oid));

	doorbell_attach();
	my_slot = &coord_shared->workers[place];
	my_database = doorbell_database(database, true);
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	my_slot->state = WORKER_RUNNING;
	my_slot->pid = MyProcPid;
	my_slot->procno = coord_my_proc_number();
	my_slot->database = database;
	my_slot->started_at = GetCurrentTimestamp();
	LWLockRelease(&coord_shared->lock);
	before_shmem_exit(worker_exit, (Datum) 0);
	BackgroundWorkerUnblockSignals();
	if (my_database == NULL || my_database->wanted_by != 0)
		finish();

	BackgroundWorkerInitializeConnectionByOid(database, role, COORD_WORKER_CONNECT_FLAGS);
	identity_session_is_worker();
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_USERSET, PGC_S_OVERRIDE);
	doorbell_attach_queue();

	check_state();
	in_hand_attach(place);
	my_database->scan = true;
	run();
}
