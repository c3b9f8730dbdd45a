/*-------------------------------------------------------------------------
 *
 * doorbell.c
 *	  Shared memory: who works where, and what is to be done next.
 *
 * The tables are the truth.  What is here is a doorbell and a cache that can
 * be rebuilt from the tables at any time: per database a bounded queue of
 * instances that are due, in order of priority and arrival, and the time of
 * the next timer.
 *
 * A transaction that makes something due notes it in backend-local memory, and
 * the XactCallback at COMMIT, when the rows are visible to others, moves the
 * notes into the queue and sets the latch of a worker that sleeps.  So a user's
 * transaction neither polls nor NOTIFYs, and a worker under load finds work
 * without reading an index whose dead entries a long snapshot keeps.
 *
 * Why nothing is lost:
 *
 * 1. The queue is full: the entry that is dropped sets "scan", and the next
 *	  worker that finds the queue empty reads the tables.
 * 2. A worker took entries and died: its exit sets "scan"; after a crash of the
 *	  server the launcher starts a worker in every database, and a worker's
 *	  first act is to scan.
 * 3. COMMIT PREPARED: the callback at PREPARE drops the notes; the utility hook
 *	  sets "scan" after COMMIT PREPARED; without preload the slow safety scan
 *	  finds the rows.
 * 4. A worker goes to sleep while an entry arrives: it looks at the queue and
 *	  declares itself idle under the same lock under which entries arrive and
 *	  idle workers are looked for.
 *
 * An entry too many (rolled back to a savepoint, already done, not due any
 * more) is harmless: to claim is to lock the row and look again.
 *
 * The struct is allocated from the main segment, also without preload, from the
 * room that PostgreSQL keeps for that; the queues are in a DSA area.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/guc.h"

/* The name carries the layout's version: two libraries never share a struct. */
#define SHMEM_NAME "coord 1.0"

/* How often a database without coord is looked at. */
#define NOT_INSTALLED_US (60 * USECS_PER_SEC)

/* A note taken by this transaction; see the file header. */
typedef struct Note
{
	int64		id;
	TimestampTz wake_at;
	int			priority;
	Oid			owner;
	bool		task;
	bool		told;			/* something has happened to it; see Hold */
} Note;

CoordShared *coord_shared = NULL;

/* This process's mapping of the queues; NULL until doorbell_attach_queue(). */
static dsa_area *area = NULL;

/*
 * Notes of the open transaction.  Allocated in TopMemoryContext and kept, so
 * that the commit callback allocates nothing.
 */
static Note *due = NULL;
static int	ndue = 0;
static int	due_size = 0;
static int64 *finished = NULL;
static int	nfinished = 0;
static int	finished_size = 0;
static bool note_request = false;
static bool note_scan = false;
static bool note_resume = false;
static bool note_also_abort = false;
static TimestampTz note_task_due = 0;
static TimestampTz note_sweep = 0;
static int64 note_interrupt = 0;
static DatabaseSlot *note_slot = NULL;
static bool callback_registered = false;

static void xact_callback(XactEvent event, void *arg);

Size
doorbell_shmem_size(void)
{
	return MAXALIGN(sizeof(CoordShared));
}

/* Find or make the shared struct.  Cheap after the first call. */
void
doorbell_attach(void)
{
	bool		found;

	if (coord_shared != NULL)
		return;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	coord_shared = ShmemInitStruct(SHMEM_NAME, doorbell_shmem_size(), &found);
	if (!found)
	{
		memset(coord_shared, 0, sizeof(CoordShared));
		coord_shared->tranche = coord_new_tranche("coord");
		coord_shared->dsa_tranche = coord_new_tranche("coord_queue");
		LWLockInitialize(&coord_shared->lock, coord_shared->tranche);
		for (int i = 0; i < COORD_MAX_DATABASES; i++)
		{
			ConditionVariableInit(&coord_shared->databases[i].workers_changed);
			coord_shared->databases[i].queue = InvalidDsaPointer;
		}
		for (int i = 0; i < COORD_WAIT_BUCKETS; i++)
			ConditionVariableInit(&coord_shared->waiters[i]);
	}
	LWLockRelease(AddinShmemInitLock);

	coord_register_tranche(coord_shared->tranche, "coord");
	coord_register_tranche(coord_shared->dsa_tranche, "coord_queue");
}

/*
 * Map the queues, making the area on first use in the cluster.  Done before a
 * callback could need it, because it may fail.
 */
void
doorbell_attach_queue(void)
{
	MemoryContext old;

	doorbell_attach();
	if (area != NULL)
		return;

	old = MemoryContextSwitchTo(TopMemoryContext);
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (!coord_shared->dsa_created)
	{
		area = dsa_create(coord_shared->dsa_tranche);
		dsa_pin(area);
		coord_shared->dsa = dsa_get_handle(area);
		coord_shared->dsa_created = true;
	}
	LWLockRelease(&coord_shared->lock);
	if (area == NULL)
		area = dsa_attach(coord_shared->dsa);
	dsa_pin_mapping(area);
	MemoryContextSwitchTo(old);
}

/* The area, for what else is shared; doorbell_attach_queue() comes before. */
dsa_area *
doorbell_area(void)
{
	return area;
}

/*
 * The slot of a database, NULL when there is none and "create" is false or all
 * are taken.  A slot that was made has its queue.  Takes the lock.
 */
DatabaseSlot *
doorbell_database(Oid database, bool create)
{
	DatabaseSlot *free_slot = NULL;
	DatabaseSlot *result = NULL;

	doorbell_attach();
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < COORD_MAX_DATABASES && result == NULL; i++)
	{
		DatabaseSlot *slot = &coord_shared->databases[i];

		if (slot->database == database)
			result = slot;
		else if (free_slot == NULL && !OidIsValid(slot->database))
			free_slot = slot;
	}
	if (result == NULL && create && free_slot != NULL)
	{
		result = free_slot;
		result->database = database;
		result->installed = result->probe = false;
		result->scanning = false;
		result->starved = 0;
		result->more = result->halted = false;
		result->scan = true;
		result->requests = result->requests_left = true;
		result->wanted_by = 0;
		result->wanted_workers = 0;
		result->failures = 0;
		result->retry_at = result->next_wake = result->last_spawn = 0;
		result->events = true;
		result->events_at = 0;
		result->told_at = result->task_due = result->inbox_at = result->sweep_at = 0;
		result->queued = 0;
	}
	LWLockRelease(&coord_shared->lock);
	return result;
}

/* Does "a" come before "b"? */
static inline bool
entry_before(const QueueEntry *a, const QueueEntry *b)
{
	if (a->priority != b->priority)
		return a->priority > b->priority;
	return (int32) (a->sequence - b->sequence) < 0;
}

static void
heap_sift_up(QueueEntry *heap, uint32 at)
{
	QueueEntry	entry = heap[at];

	while (at > 0)
	{
		uint32		parent = (at - 1) / 2;

		if (!entry_before(&entry, &heap[parent]))
			break;
		heap[at] = heap[parent];
		at = parent;
	}
	heap[at] = entry;
}

static void
heap_sift_down(QueueEntry *heap, uint32 count, uint32 at)
{
	QueueEntry	entry = heap[at];

	for (;;)
	{
		uint32		child = at * 2 + 1;

		if (child >= count)
			break;
		if (child + 1 < count && entry_before(&heap[child + 1], &heap[child]))
			child++;
		if (!entry_before(&heap[child], &entry))
			break;
		heap[at] = heap[child];
		at = child;
	}
	heap[at] = entry;
}

/*
 * Add an entry; the lock is held.  When the queue is full a leaf, which is an
 * entry of low rank, gives way, and "scan" says that the tables hold more.
 */
static void
push_locked(DatabaseSlot *slot, QueueEntry entry)
{
	QueueEntry *heap;

	if (!DsaPointerIsValid(slot->queue))
	{
		slot->scan = true;
		return;
	}
	heap = dsa_get_address(area, slot->queue);
	entry.sequence = slot->sequence++;
	if (slot->queued == COORD_QUEUE_SIZE)
	{
		slot->scan = true;
		if (!entry_before(&entry, &heap[COORD_QUEUE_SIZE - 1]))
			return;
		slot->queued--;
	}
	heap[slot->queued] = entry;
	heap_sift_up(heap, slot->queued++);
}

/* Give the slot its queue, outside the lock since that may fail. */
static void
ensure_queue(DatabaseSlot *slot)
{
	dsa_pointer queue;

	if (DsaPointerIsValid(slot->queue))
		return;
	queue = dsa_allocate(area, sizeof(QueueEntry) * COORD_QUEUE_SIZE);
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (!DsaPointerIsValid(slot->queue))
	{
		slot->queue = queue;
		queue = InvalidDsaPointer;
	}
	LWLockRelease(&coord_shared->lock);
	if (DsaPointerIsValid(queue))
		dsa_free(area, queue);
}

/* Take up to "max" entries, best first; returns how many. */
int
doorbell_pop(DatabaseSlot *slot, QueueEntry *entries, int max)
{
	QueueEntry *heap;
	int			count = 0;

	ensure_queue(slot);
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	heap = dsa_get_address(area, slot->queue);
	while (count < max && slot->queued > 0)
	{
		entries[count++] = heap[0];
		heap[0] = heap[--slot->queued];
		if (slot->queued > 0)
			heap_sift_down(heap, slot->queued, 0);
	}
	LWLockRelease(&coord_shared->lock);
	return count;
}

/* Bring the next timer forward; the lock is held. */
static void
lower_wake_locked(DatabaseSlot *slot, TimestampTz wake_at)
{
	if (slot->next_wake == 0 || wake_at < slot->next_wake)
		slot->next_wake = wake_at;
}

/*
 * Wake up to "count" sleeping workers of a database, and the launcher when it
 * has none at all.  Returns how many slept.  The lock is held.
 */
static int
wake_locked(Oid database, int count)
{
	bool		any = false;
	int			woken = 0;

	for (int i = 0; i < COORD_MAX_WORKERS; i++)
	{
		WorkerSlot *worker = &coord_shared->workers[i];

		if (worker->state == WORKER_FREE || worker->state == WORKER_LEAVING ||
			worker->database != database)
			continue;
		any = true;
		if (worker->state == WORKER_IDLE && count > 0)
		{
			/* One ring wakes one worker, not the same one twice. */
			worker->state = WORKER_RUNNING;
			SetLatch(&ProcGlobal->allProcs[worker->procno].procLatch);
			count--;
			woken++;
		}
	}
	if (!any && coord_shared->launcher_pid != 0)
		SetLatch(&ProcGlobal->allProcs[coord_shared->launcher_procno].procLatch);
	return woken;
}

void
doorbell_wake_workers(Oid database, int count)
{
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	wake_locked(database, count);
	LWLockRelease(&coord_shared->lock);
}

void
doorbell_wake_launcher(void)
{
	LWLockAcquire(&coord_shared->lock, LW_SHARED);
	if (coord_shared->launcher_pid != 0)
		SetLatch(&ProcGlobal->allProcs[coord_shared->launcher_procno].procLatch);
	LWLockRelease(&coord_shared->lock);
}

/*
 * Something in the tables of "database", which is known, wants looking at.  Where a
 * worker has found no coord, another one looks only now and then: the database may be
 * a busy participant of somebody's two-phase commits.
 */
void
doorbell_ring_scan(Oid database)
{
	DatabaseSlot *slot = doorbell_database(database, false);
	TimestampTz now = GetCurrentTimestamp();

	if (slot == NULL)
		return;
	if (!slot->installed && !slot->probe && slot->last_spawn <= now &&
		now - slot->last_spawn < NOT_INSTALLED_US)
		return;
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	slot->scan = slot->requests = slot->requests_left = true;
	wake_locked(database, 1);
	LWLockRelease(&coord_shared->lock);
}

/* Where sessions that wait for an instance sleep. */
ConditionVariable *
doorbell_waiters(int64 id)
{
	uint64		hash = (uint64) id * UINT64CONST(0x9E3779B97F4A7C15) + MyDatabaseId;

	return &coord_shared->waiters[(hash >> 32) % COORD_WAIT_BUCKETS];
}

/*
 * Get everything ready that the commit callback needs: nothing in it may fail.
 */
static void
prepare_notes(void)
{
	if (note_slot == NULL || note_slot->database != MyDatabaseId)
	{
		doorbell_attach_queue();
		note_slot = doorbell_database(MyDatabaseId, true);
		if (note_slot == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("coord serves at most %d databases of a cluster",
							COORD_MAX_DATABASES)));
	}
	ensure_queue(note_slot);
	(void) dsa_get_address(area, note_slot->queue); /* map it now */
	if (!callback_registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		callback_registered = true;
	}
}

static void
add_note(Note note)
{
	prepare_notes();
	if (ndue == due_size)
	{
		int			size = due_size ? due_size * 2 : 64;

		if (ndue == COORD_QUEUE_SIZE)
		{
			note_scan = true;	/* more than the queue holds: by the tables */
			return;
		}
		if (due == NULL)
			due = MemoryContextAlloc(TopMemoryContext, size * sizeof(Note));
		else
			due = repalloc(due, size * sizeof(Note));
		due_size = size;
	}
	due[ndue++] = note;
}

/*
 * When this transaction commits, instance "id" is due at "wake_at".  May raise
 * out of memory, like the others.
 */
void
doorbell_due_at_commit(int64 id, int priority, Oid owner, TimestampTz wake_at)
{
	Note		note = {id, wake_at, priority, owner, false, false};

	add_note(note);
}

/* When this transaction commits, instance "id" has something in its inbox. */
void
doorbell_tell_at_commit(int64 id, int priority, Oid owner)
{
	Note		note = {id, 0, priority, owner, false, true};

	add_note(note);
}

/* When this transaction commits, a task of coord's own workers may be begun. */
void
doorbell_task_at_commit(int64 id, int priority, Oid owner, TimestampTz available_at)
{
	Note		note = {id, available_at, priority, owner, true, false};

	add_note(note);
}

/* When this transaction commits, a lease or a task's delay ends at "due_at". */
void
doorbell_task_due_at_commit(TimestampTz due_at)
{
	prepare_notes();
	if (note_task_due == 0 || due_at < note_task_due)
		note_task_due = due_at;
}

/* When this transaction commits, housekeeping is wanted at "sweep_at". */
void
doorbell_sweep_at_commit(TimestampTz sweep_at)
{
	prepare_notes();
	if (note_sweep == 0 || sweep_at < note_sweep)
		note_sweep = sweep_at;
}

/* The same also when it aborts; an entry too many does no harm. */
void
doorbell_due_at_end(int64 id, int priority, Oid owner, TimestampTz wake_at)
{
	doorbell_due_at_commit(id, priority, owner, wake_at);
	note_also_abort = true;
}

/* When this transaction commits, an operator's request waits. */
void
doorbell_request_at_commit(void)
{
	prepare_notes();
	note_request = true;
}

/* When this transaction commits, the step of "id" that runs is cancelled. */
void
doorbell_interrupt_at_commit(int64 id)
{
	prepare_notes();
	note_request = true;
	note_interrupt = id;
}

/* When this transaction commits, the tables are to be looked at. */
void
doorbell_scan_at_commit(void)
{
	prepare_notes();
	note_scan = true;
}

/*
 * When this transaction commits, the engine may act and the tables are to be
 * looked at.
 */
void
doorbell_resume_at_commit(void)
{
	prepare_notes();
	note_scan = note_resume = true;
}

/* When this transaction commits, those who wait for "id" should look. */
void
doorbell_finished_at_commit(int64 id)
{
	prepare_notes();
	if (nfinished == finished_size)
	{
		int			size = finished_size ? finished_size * 2 : 64;

		if (finished == NULL)
			finished = MemoryContextAlloc(TopMemoryContext, size * sizeof(int64));
		else
			finished = repalloc(finished, size * sizeof(int64));
		finished_size = size;
	}
	finished[nfinished++] = id;
}

/* Did the open transaction start or touch instance "id"? */
bool
doorbell_started_here(int64 id)
{
	for (int i = 0; i < ndue; i++)
	{
		if (due[i].id == id && !due[i].task)
			return true;
	}
	return false;
}

/* The place of a hold. */
static Hold *
hold_of(int64 id)
{
	return &coord_shared->holds[murmurhash32((uint32) id) % COORD_HOLDS];
}

/*
 * Put an instance that was told of something into the queue, or off while it is
 * held.  Returns whether it is in the queue.  The lock is held.
 */
static bool
tell_locked(DatabaseSlot *slot, QueueEntry entry, TimestampTz now)
{
	Hold	   *hold = hold_of(entry.id);

	if (hold->id == entry.id && hold->database == MyDatabaseId && hold->until > now &&
		hold->until < now + USECS_PER_SEC)
	{
		if (slot->inbox_at == 0 || hold->until < slot->inbox_at)
			slot->inbox_at = hold->until;
		lower_wake_locked(slot, slot->inbox_at);
		return false;
	}
	push_locked(slot, entry);
	return true;
}

/* Rings for "id" are put off for this long from now on. */
void
doorbell_hold(int64 id, int64 us)
{
	Hold	   *hold = hold_of(id);

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	hold->database = MyDatabaseId;
	hold->id = id;
	hold->until = clock_now() + us;
	LWLockRelease(&coord_shared->lock);
}

/* These instances, of this database, have something in their inboxes. */
void
doorbell_tell(DatabaseSlot *slot, const QueueEntry *entries, int count)
{
	TimestampTz now = clock_now();

	ensure_queue(slot);
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < count; i++)
		(void) tell_locked(slot, entries[i], now);
	LWLockRelease(&coord_shared->lock);
}

/*
 * Tasks were put into the queue: more workers than are there may be of use.  The
 * lock is held; "woken" workers slept.
 */
static void
want_workers_locked(DatabaseSlot *slot, int tasks, int woken)
{
	int			workers = 0;

	if (tasks <= woken)
		return;
	for (int i = 0; i < COORD_MAX_WORKERS; i++)
		workers += coord_shared->workers[i].state != WORKER_FREE &&
			coord_shared->workers[i].state != WORKER_LEAVING &&
			coord_shared->workers[i].database == slot->database;
	workers = Min(workers + tasks - woken, guc_max_workers);
	if (slot->wanted_workers >= workers)
		return;
	slot->wanted_workers = workers;
	if (coord_shared->launcher_pid != 0)
		SetLatch(&ProcGlobal->allProcs[coord_shared->launcher_procno].procLatch);
}

/*
 * Is a worker awake that will get to a few entries soon?  Then it is not worth
 * waking another: two would share what one can do in one transaction.  The lock
 * is held.
 */
static bool
is_attended_locked(const DatabaseSlot *slot)
{
	TimestampTz now;

	if (slot->queued > COORD_ENOUGH_FOR_A_TURN)
		return false;
	now = GetCurrentTimestamp();
	for (int i = 0; i < COORD_MAX_WORKERS; i++)
	{
		const WorkerSlot *worker = &coord_shared->workers[i];

		if (worker->state == WORKER_RUNNING && worker->database == slot->database &&
			(worker->current == 0 || now - worker->since < COORD_STALL_US / 10))
			return true;
	}
	return false;
}

/*
 * Entries wait and nobody was woken for them: perhaps all are in something long.
 * The launcher will see.  The lock is held.
 */
static void
tell_launcher_locked(DatabaseSlot *slot, TimestampTz now)
{
	if (now >= slot->told_at && now - slot->told_at <= COORD_STALL_US)
		return;
	slot->told_at = now;
	if (coord_shared->launcher_pid != 0)
		SetLatch(&ProcGlobal->allProcs[coord_shared->launcher_procno].procLatch);
}

/*
 * Events of this database can be read that could not be before.  Raises nothing, and
 * does nothing before somebody has called doorbell_attach() here.
 */
void
doorbell_ring_events(void)
{
	DatabaseSlot *slot = coord_shared == NULL ? NULL : doorbell_database(MyDatabaseId, false);

	if (slot == NULL)
		return;
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	slot->events = true;
	if (wake_locked(MyDatabaseId, 1) == 0)
		tell_launcher_locked(slot, GetCurrentTimestamp());
	LWLockRelease(&coord_shared->lock);
}

/* Events of this database that were put aside are due at this time. */
void
doorbell_events_due(TimestampTz due_at)
{
	DatabaseSlot *slot = doorbell_database(MyDatabaseId, false);

	if (slot == NULL)
		return;
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (slot->events_at == 0 || due_at < slot->events_at)
		slot->events_at = due_at;
	lower_wake_locked(slot, due_at);
	LWLockRelease(&coord_shared->lock);
}

/*
 * Put entries read from the tables, or taken back, into the queue, as many as
 * have room.  Returns how many had.  Tasks may be long, and are many hands' work.
 */
int
doorbell_push(DatabaseSlot *slot, const QueueEntry *entries, int count)
{
	int			tasks = 0;
	int			i;

	ensure_queue(slot);
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	for (i = 0; i < count && slot->queued < COORD_QUEUE_SIZE; i++)
	{
		push_locked(slot, entries[i]);
		tasks += entries[i].kind != WORK_SAGA;
	}
	if (tasks > 0)
		want_workers_locked(slot, tasks, wake_locked(slot->database, tasks));
	LWLockRelease(&coord_shared->lock);
	return i;
}

static void
ring(void)
{
	TimestampTz now = ndue > 0 || note_task_due != 0 ? clock_now() : 0;
	int			tasks = 0;
	int			pushed = 0;
	bool		look = note_scan || note_request;
	bool		sooner = false;

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (note_slot->database == MyDatabaseId)
	{
		for (int i = 0; i < ndue; i++)
		{
			if (due[i].wake_at <= now)
			{
				QueueEntry	entry = {due[i].id, 0, due[i].priority, due[i].owner,
				due[i].task ? WORK_TASK : WORK_SAGA};

				if (due[i].told)
				{
					if (tell_locked(note_slot, entry, now))
						pushed++;
					else
						sooner = true;
					continue;
				}
				push_locked(note_slot, entry);
				pushed++;
				tasks += due[i].task;
			}
			else
			{
				sooner = sooner || note_slot->next_wake == 0 ||
					due[i].wake_at < note_slot->next_wake;
				lower_wake_locked(note_slot, due[i].wake_at);
				if (due[i].task && (note_slot->task_due == 0 ||
									due[i].wake_at < note_slot->task_due))
					note_slot->task_due = due[i].wake_at;
			}
		}
		if (note_task_due != 0)
		{
			sooner = sooner || note_slot->next_wake == 0 ||
				note_task_due < note_slot->next_wake;
			lower_wake_locked(note_slot, note_task_due);
			if (note_slot->task_due == 0 || note_task_due < note_slot->task_due)
				note_slot->task_due = note_task_due;
		}
		if (note_sweep != 0)
		{
			sooner = sooner || note_slot->next_wake == 0 ||
				note_sweep < note_slot->next_wake;
			lower_wake_locked(note_slot, note_sweep);
			if (note_slot->sweep_at == 0 || note_sweep < note_slot->sweep_at)
				note_slot->sweep_at = note_sweep;
		}
		note_slot->scan = note_slot->scan || note_scan;
		if (note_resume)
		{
			/* What made its workers fail is over, for all that is known. */
			note_slot->halted = false;
			note_slot->failures = 0;
			note_slot->retry_at = 0;
			note_slot->resumed++;
		}
		if (note_request)
		{
			note_slot->requests = note_slot->requests_left = true;
			note_slot->request_serial++;
		}
		for (int i = 0; i < COORD_MAX_WORKERS && note_interrupt != 0; i++)
		{
			WorkerSlot *worker = &coord_shared->workers[i];

			if (worker->state != WORKER_FREE && worker->database == MyDatabaseId &&
				worker->current == note_interrupt)
			{
				worker->interrupt = note_interrupt;
				kill(worker->pid, SIGINT);
			}
		}
		if (tasks > 0)
			want_workers_locked(note_slot, tasks, wake_locked(MyDatabaseId, tasks));
		else if (pushed > 0 && !look && is_attended_locked(note_slot))
			tell_launcher_locked(note_slot, now);
		else if ((pushed > 0 || look || sooner) && wake_locked(MyDatabaseId, 1) == 0 &&
			pushed > 0)
			tell_launcher_locked(note_slot, now);
	}
	LWLockRelease(&coord_shared->lock);
}

/*
 * At COMMIT this runs after the transaction has become visible to others and
 * before its locks are released; nothing in it can raise an error.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT && note_also_abort)
	{
		note_request = note_scan = note_resume = false;
		note_interrupt = 0;
		ring();
	}
	if (event == XACT_EVENT_COMMIT)
	{
		if (ndue > 0 || note_request || note_scan || note_task_due != 0 || note_sweep != 0)
			ring();
		for (int i = 0; i < nfinished; i++)
			ConditionVariableBroadcast(doorbell_waiters(finished[i]));
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
	{
		ndue = nfinished = 0;
		note_task_due = note_sweep = 0;
		note_request = note_scan = note_resume = note_also_abort = false;
		note_interrupt = 0;
	}
}
