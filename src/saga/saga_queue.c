/*-------------------------------------------------------------------------
 *
 * saga_queue.c
 *	  Queues in shared memory.
 *
 * The table of tasks is the truth.  What is here makes claims fast and fair and
 * wakes those who wait; all of it can be lost at any time, and a queue for which
 * there is no room does without.
 *
 * Each queue in use has a slot: how far it has been read (saga_queue_mark.c), who
 * comes next (saga_queue_place.c), and who waits (here).  The slots are in the DSA
 * area of the doorbell; a slot that nobody used for a while may be given to
 * another queue, which "incarnation" tells.
 *
 * Waiters sleep on the condition variable of their queue and are woken by the
 * commit that makes tasks ready, one for each task, all if they are of several
 * roles.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "parser/scansup.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "saga/saga.h"
#include "saga/saga_queue_slot.h"

#define SHMEM_NAME "coord 1.0 queues"

/* A place that nobody used for this long may be given to another queue. */
#define UNUSED_US (30 * USECS_PER_SEC)

/* A waiter looks again after this time even when nothing rings. */
#define WAIT_US LOOK_THROUGH_US

/* Waiters of several roles were seen within this time. */
#define MIXED_US (30 * USECS_PER_SEC)

/* More than so many are not woken one by one. */
#define MAX_SIGNALS 32

/* At most one NOTIFY per queue in this time. */
#define NOTIFY_US (100 * 1000)
#define NOTIFY_PREFIX "coord_queue_"

PG_FUNCTION_INFO_V1(coord_internal_queue_last_claim);

QueueShared *queue_shared = NULL;
QueueSlot  *queue_slots = NULL;

/* Slots that this process has used, by name. */
typedef struct SlotEntry
{
	char		name[CHECK_NAME_MAX + 1];
	QueueSlot  *slot;
	uint32		incarnation;
} SlotEntry;

static HTAB *known_slots = NULL;

/* ----------------------------------------------------------------
 *		Slots
 * ----------------------------------------------------------------
 */

Size
queue_shmem_size(void)
{
	return MAXALIGN(sizeof(QueueShared));
}

/* Make the slots, or find that another process was faster. */
static void
make_slots(dsa_area *area)
{
	dsa_pointer pointer = dsa_allocate0(area, sizeof(QueueSlot) * QUEUE_SLOTS);
	QueueSlot  *made = dsa_get_address(area, pointer);

	for (int i = 0; i < QUEUE_SLOTS; i++)
	{
		LWLockInitialize(&made[i].lock, queue_shared->tranche);
		ConditionVariableInit(&made[i].waiters);
	}
	LWLockAcquire(&queue_shared->lock, LW_EXCLUSIVE);
	if (!queue_shared->made)
	{
		queue_shared->slots = pointer;
		queue_shared->made = true;
		pointer = InvalidDsaPointer;
	}
	LWLockRelease(&queue_shared->lock);
	if (DsaPointerIsValid(pointer))
		dsa_free(area, pointer);
}

/* Find or make the shared structs.  Cheap after the first call. */
void
queue_attach(void)
{
	dsa_area   *area;
	bool		found;

	if (queue_slots != NULL)
		return;
	doorbell_attach_queue();
	area = doorbell_area();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	queue_shared = ShmemInitStruct(SHMEM_NAME, queue_shmem_size(), &found);
	if (!found)
	{
		memset(queue_shared, 0, sizeof(QueueShared));
		queue_shared->tranche = coord_new_tranche("coord_task_queue");
		LWLockInitialize(&queue_shared->lock, queue_shared->tranche);
		pg_atomic_init_u32(&queue_shared->notify, 0);
		ConditionVariableInit(&queue_shared->others);
	}
	LWLockRelease(AddinShmemInitLock);
	coord_register_tranche(queue_shared->tranche, "coord_task_queue");
	if (!queue_shared->made)
		make_slots(area);

	queue_register_callbacks();
	queue_slots = dsa_get_address(area, queue_shared->slots);
}

/* Is a NOTIFY wanted for the queue?  The slot is locked. */
void
queue_set_notify(QueueSlot *slot, bool wanted)
{
	if (slot->notify == wanted)
		return;
	slot->notify = wanted;
	if (wanted)
		pg_atomic_fetch_add_u32(&queue_shared->notify, 1);
	else
		pg_atomic_fetch_sub_u32(&queue_shared->notify, 1);
}

/* Give a slot to a queue; QueueShared.lock is held. */
static void
init_slot(QueueSlot *slot, const char *queue, TimestampTz now)
{
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	slot->database = MyDatabaseId;
	slot->incarnation = ++queue_shared->incarnation;
	strlcpy(slot->name, queue, sizeof(slot->name));
	slot->used_at = now;
	slot->generation = 0;
	slot->generation_read = false;
	slot->nlows = 0;
	memset(slot->marks, 0, sizeof(slot->marks));
	slot->highest = QUEUE_END;
	slot->next_due = DT_NOBEGIN;
	slot->swept_at = 0;
	slot->sweep_debt = 0;
	slot->available = DT_NOBEGIN;
	memset(slot->ranks, 0, sizeof(slot->ranks));
	memset(slot->flows, 0, sizeof(slot->flows));
	slot->last_claim_at = 0;
	memset(&slot->bucket, 0, sizeof(slot->bucket));
	slot->limited = false;
	slot->serial = 0;
	queue_set_notify(slot, false);
	slot->notified_at = 0;
	slot->waiter_role = InvalidOid;
	slot->waiter_at = slot->mixed_at = 0;
	LWLockRelease(&slot->lock);
}

/* The slot that a queue has or is given; NULL when all are in use. */
static QueueSlot *
assign_slot(const char *queue, TimestampTz now)
{
	QueueSlot  *result = NULL;
	QueueSlot  *victim = NULL;

	LWLockAcquire(&queue_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < QUEUE_SLOTS && result == NULL; i++)
	{
		QueueSlot  *slot = &queue_slots[i];

		if (slot->database == MyDatabaseId && strcmp(slot->name, queue) == 0)
			result = slot;
		else if (!OidIsValid(slot->database))
		{
			if (victim == NULL || OidIsValid(victim->database))
				victim = slot;
		}
		else if (victim == NULL ||
				 (OidIsValid(victim->database) && slot->used_at < victim->used_at))
			victim = slot;
	}
	if (result == NULL &&
		(!OidIsValid(victim->database) || now - victim->used_at > UNUSED_US))
	{
		result = victim;
		init_slot(result, queue, now);
	}
	LWLockRelease(&queue_shared->lock);
	return result;
}

/*
 * The slot of a queue of this database, NULL when there is none to be had.  It
 * remains the queue's for half a minute at least.
 */
QueueSlot *
queue_slot(const char *queue)
{
	TimestampTz now = GetCurrentTimestamp();
	SlotEntry  *entry;
	QueueSlot  *slot;

	queue_attach();
	if (known_slots == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = CHECK_NAME_MAX + 1;
		ctl.entrysize = sizeof(SlotEntry);
		ctl.hcxt = TopMemoryContext;
		known_slots = hash_create("coord queue slots", 16, &ctl,
								  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	}
	entry = hash_search(known_slots, queue, HASH_FIND, NULL);
	if (entry != NULL && entry->slot->incarnation == entry->incarnation)
	{
		/* Not each time, which would take it away from the others' caches. */
		if (now - entry->slot->used_at > USECS_PER_SEC || now < entry->slot->used_at)
			entry->slot->used_at = now;
		return entry->slot;
	}
	slot = assign_slot(queue, now);
	if (slot != NULL)
	{
		slot->used_at = now;
		entry = hash_search(known_slots, queue, HASH_ENTER, NULL);
		entry->slot = slot;
		entry->incarnation = slot->incarnation;
	}
	return slot;
}

/* ----------------------------------------------------------------
 *		Waiting
 * ----------------------------------------------------------------
 */

/* Wake so many waiters; -1: all. */
void
queue_wake_waiters(QueueSlot *slot, int count)
{
	TimestampTz now;

	if (count == 0)
		return;
	now = GetCurrentTimestamp();
	if (count < 0 || count > MAX_SIGNALS || now - slot->mixed_at < MIXED_US)
		ConditionVariableBroadcast(&slot->waiters);
	else
	{
		while (count-- > 0)
			ConditionVariableSignal(&slot->waiters);
	}
}

/* To be called before looking for what is waited for. */
void
queue_prepare_to_wait(QueueSlot *slot)
{
	queue_attach();
	ConditionVariablePrepareToSleep(slot != NULL ? &slot->waiters : &queue_shared->others);
}

/*
 * Sleep until "until", or until it is worth looking again: tasks have become
 * ready, for a while nobody has looked or, if "due", something is due.
 */
void
queue_wait(QueueSlot *slot, TimestampTz until, bool due)
{
	static uint32 wait_event = 0;
	TimestampTz now = GetCurrentTimestamp();

	until = Min(until, now + WAIT_US);
	if (slot != NULL)
	{
		Oid			role = GetUserId();

		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		if (slot->waiter_role == role || now - slot->waiter_at > MIXED_US)
		{
			slot->waiter_role = role;
			slot->waiter_at = now;
		}
		else
			slot->mixed_at = now;
		if (due && !clock_is_set())
			until = Min(until, Max(slot->next_due, queue_next_sweep(slot, now, true)));
		LWLockRelease(&slot->lock);
	}
	if (until > now)
		(void) ConditionVariableTimedSleep(slot != NULL ? &slot->waiters : &queue_shared->others,
										   (until - now) / 1000 + 1,
										   coord_wait_event(&wait_event, "CoordTaskClaim"));
	CHECK_FOR_INTERRUPTS();
}

/* Whoever was woken and leaves hands it on. */
void
queue_end_wait(QueueSlot *slot)
{
	coord_cancel_sleep(slot != NULL ? &slot->waiters : &queue_shared->others);
}

/* The serial of a queue's configuration; it changes when that may have. */
uint32
queue_serial(const char *queue)
{
	QueueSlot  *slot = queue_slot(queue);

	return slot != NULL ? slot->incarnation + slot->serial : 0;
}

/* When somebody last claimed from a queue, as far as is known; 0: not. */
Datum
coord_internal_queue_last_claim(PG_FUNCTION_ARGS)
{
	char	   *queue = check_text(fcinfo, 0, "queue");
	QueueSlot  *slot = strlen(queue) <= CHECK_NAME_MAX ? queue_slot(queue) : NULL;

	if (slot == NULL || slot->last_claim_at == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(slot->last_claim_at);
}

/* ----------------------------------------------------------------
 *		NOTIFY
 * ----------------------------------------------------------------
 */

/* Names of channels for queues that want it and may have it now. */
static List *
notify_wanted(TimestampTz now, TimestampTz *next)
{
	List	   *channels = NIL;

	for (int i = 0; i < QUEUE_SLOTS; i++)
	{
		QueueSlot  *slot = &queue_slots[i];
		char	   *channel;

		if (slot->database != MyDatabaseId || !slot->notify)
			continue;
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		if (now >= slot->notified_at && now - slot->notified_at < NOTIFY_US)
		{
			if (*next == 0 || slot->notified_at + NOTIFY_US < *next)
				*next = slot->notified_at + NOTIFY_US;
			LWLockRelease(&slot->lock);
			continue;
		}
		queue_set_notify(slot, false);
		slot->notified_at = now;
		channel = psprintf(NOTIFY_PREFIX "%s", slot->name);
		LWLockRelease(&slot->lock);
		truncate_identifier(channel, strlen(channel), false);
		channels = lappend(channels, channel);
	}
	return channels;
}

/* In a transaction of its own.  Raises nothing: who listens also polls. */
static void
send_notifications(List *channels)
{
	MemoryContext context = CurrentMemoryContext;
	ListCell   *cell;

	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		foreach(cell, channels)
			Async_Notify(lfirst(cell), NULL);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		/* The server's queue of notifications is full. */
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/*
 * Tell those who LISTEN to queues of this database that tasks have become ready.
 * For workers, outside a transaction.  Never in the transaction of a user, whose
 * commit would take a lock of the whole cluster for it.  Returns when it wants to
 * be called again; 0: when something happens.
 */
TimestampTz
queue_notify(void)
{
	TimestampTz next = 0;
	List	   *channels;

	queue_attach();
	if (pg_atomic_read_u32(&queue_shared->notify) == 0)
		return 0;
	channels = notify_wanted(GetCurrentTimestamp(), &next);
	if (channels == NIL)
		return next;
	send_notifications(channels);
	list_free_deep(channels);
	return next;
}
