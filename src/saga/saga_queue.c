/*-------------------------------------------------------------------------
 *
 * saga_queue.c
 *	  Queues in shared memory: where to read on, who comes next, who waits.
 *
 * The table of tasks is the truth.  What is here makes claims fast and fair and
 * wakes those who wait; all of it can be lost at any time.
 *
 * Marks.  A claim reads a queue in the order of (rank, position, id).  If it
 * read from the start each time, it would walk over every task that is leased,
 * and over the index entries of all that were deleted since the oldest snapshot
 * anywhere began: hundreds of times the work of the claim itself.  So it reads on
 * from the mark, behind which nothing is left to claim.  Since roles may claim
 * from a queue different things, each role has a mark of its own; the four last
 * used are kept.
 *
 * Why no ready task is overlooked for longer than max(5 s, 20 times as long as
 * it takes to look through the whole queue), and most not at all:
 *
 * 1. Whoever makes a task ready lowers the marks to it by queue_ready_at_commit(),
 *	  in the commit callback, that is after the task has become visible.
 * 2. A claim takes its mark and the generation first, and its snapshot then.  So
 *	  a task that its snapshot does not show is one whose callback, see 1, comes
 *	  later than that.  Each lowering is noted under a new generation ("lows"); at
 *	  its commit the claim advances the mark no further than to the lowest of the
 *	  later generations.  If the callback comes even after this, it lowers the
 *	  mark itself.
 * 3. A task that the snapshot shows is claimed, or not claimable yet (5), or
 *	  locked by another transaction.  If that is another claim: when it aborts, its
 *	  callback lowers the marks to the first task it had, which by 2 holds back
 *	  whoever passed over it.  The same for a rolled-back savepoint.  A claim that
 *	  reads in a transaction-wide snapshot (repeatable read) does not advance.
 * 4. COMMIT and ROLLBACK PREPARED: all marks of the database go back to the
 *	  start (queue_look_again(), by the utility hook).
 * 5. What becomes claimable by the passing of time, a delayed task or one whose
 *	  lease expires, is under "next_due": the commit that brings it about lowers
 *	  that time, and the first claim after it looks through the whole queue
 *	  (task_sweep_queue()) and lowers the marks to the first task that is ready.
 * 6. What nobody rang for (a task locked by a transaction that was no claim and
 *	  aborted, a task of a restored dump, a role that was granted another, COMMIT
 *	  PREPARED without the hook) is found in the same way: claims look through
 *	  the queue also when that was not done for 5 s.  Neither 5 nor 6 is done
 *	  again before 20 times as long as it took, so that it takes no more than a
 *	  twentieth of the time.
 * 7. A queue that has no place in the table is always read from the start.
 *
 * Places.  Tasks of equal rank are claimed in the order of their positions, which
 * are start tags of start-time fair queueing: with the virtual time V, the
 * position of the task claimed last, the n-th of a definition's new tasks gets
 * max(V, last position given to this definition) + n.  So whatever a definition
 * has queued, a task of another one stands right behind V.  Source: P. Goyal,
 * H. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996.  V belongs to a
 * rank, as claims of one rank say nothing of how far another has come.  After a
 * restart V and the last positions are read from the table.  Positions given to
 * a transaction that aborts are lost, which delays nobody else.
 *
 * Waiters sleep on the condition variable of their queue and are woken by the
 * commit that makes tasks ready, one for each task, all if they are of several
 * roles.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "parser/scansup.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/query.h"
#include "saga/saga.h"
#include "saga/saga_queue.h"
#include "saga/saga_task.h"

#define SHMEM_NAME "coord 1.0 queues"

#define SLOTS 256
#define MARKS 4
#define LOWS 16
#define RANKS 8
#define FLOWS 64

/* A queue is looked through this often, and takes no more than this share. */
#define LOOK_THROUGH_US (5 * USECS_PER_SEC)
#define LOOK_THROUGH_SHARE 20

/* A place that nobody used for this long may be given to another queue. */
#define UNUSED_US (30 * USECS_PER_SEC)

/* A waiter looks again after this time even when nothing rings. */
#define WAIT_US (5 * USECS_PER_SEC)

/* Waiters of several roles were seen within this time. */
#define MIXED_US (30 * USECS_PER_SEC)

/* More than so many are not woken one by one. */
#define MAX_SIGNALS 32

/* At most one NOTIFY per queue in this time. */
#define NOTIFY_US (100 * 1000)
#define NOTIFY_PREFIX "coord_queue_"

PG_FUNCTION_INFO_V1(coord_internal_queue_last_claim);

/* How far a role has read. */
typedef struct Mark
{
	Oid			role;			/* InvalidOid: free */
	QueueKey	key;			/* nothing to claim up to here */
	TimestampTz used_at;
} Mark;

/*
 * The lowest key that marks were lowered to in the generations up to "until",
 * after those of the entry before.
 */
typedef struct Low
{
	uint64		until;
	uint32		span;			/* how many generations */
	QueueKey	key;
} Low;

/* Virtual time of a rank. */
typedef struct RankTime
{
	bool		known;
	int64		rank;
	int64		now;
	TimestampTz used_at;
} RankTime;

/* What one definition was given within a rank. */
typedef struct Flow
{
	int64		definition;		/* 0: free */
	int64		rank;
	int64		last;			/* position */
} Flow;

/* Tokens for claims, by coord's clock. */
typedef struct Bucket
{
	double		tokens;
	TimestampTz at;				/* 0: not yet filled */
} Bucket;

struct QueueSlot
{
	LWLock		lock;			/* protects all that follows */
	Oid			database;		/* InvalidOid: free; under QueueShared.lock too */
	uint32		incarnation;	/* changes when it is given to another queue */
	char		name[CHECK_NAME_MAX + 1];
	TimestampTz used_at;

	uint64		generation;
	bool		generation_read;	/* since it was begun */
	int			nlows;
	Low			lows[LOWS];		/* oldest first */
	Mark		marks[MARKS];
	QueueKey	highest;		/* no task behind it was ever claimed */
	TimestampTz next_due;		/* DT_NOBEGIN: now, DT_NOEND: never */
	TimestampTz swept_at;		/* looked through, for the last time */
	int64		swept_us;		/* how long that took */
	TimestampTz available;		/* delayed tasks up to here were announced */

	RankTime	ranks[RANKS];
	Flow		flows[FLOWS];

	TimestampTz last_claim_at;
	Bucket		bucket;
	bool		limited;		/* who ends a task makes room for another */
	uint32		serial;			/* of the configuration */
	bool		notify;			/* tasks have become ready since the last */
	TimestampTz notified_at;

	ConditionVariable waiters;
	Oid			waiter_role;
	TimestampTz waiter_at;
	TimestampTz mixed_at;		/* waiters of another role */
};

typedef struct QueueShared
{
	LWLock		lock;			/* which slot is whose */
	int			tranche;
	bool		made;
	dsa_pointer slots;
	uint32		incarnation;
	pg_atomic_uint32 notify;	/* slots with "notify" set */
	ConditionVariable others;	/* waiters of queues without a slot */
} QueueShared;

static const QueueKey queue_start = {PG_INT64_MIN, PG_INT64_MIN, PG_INT64_MIN};
static const QueueKey queue_end = {PG_INT64_MAX, PG_INT64_MAX, PG_INT64_MAX};

/* Valid after attach(). */
static QueueShared *shared = NULL;
static QueueSlot *slots = NULL;

/* Slots that this process has used, by name. */
typedef struct SlotEntry
{
	char		name[CHECK_NAME_MAX + 1];
	QueueSlot  *slot;
	uint32		incarnation;
} SlotEntry;

static HTAB *known_slots = NULL;

/* Tokens of a queue without a slot are this process's own. */
static Bucket own_bucket;

/*
 * What the open transaction did to a queue.  Allocated in TopMemoryContext and
 * kept, so that the callbacks allocate nothing.
 */
typedef struct Note
{
	QueueSlot  *slot;
	uint32		incarnation;

	/* At commit. */
	bool		lower;			/* marks to "low" */
	QueueKey	low;
	int			wake;			/* so many waiters; -1: all */
	bool		notify;
	bool		config;
	TimestampTz due;			/* DT_NOEND: none */

	/* Claims of "role"; InvalidOid: this is no note of claims. */
	Oid			role;
	SubTransactionId subid;
	QueueKey	before;			/* the first task claimed comes behind this */
	int			nclaimed;
	bool		advance;		/* at commit, the mark to "last" */
	QueueKey	last;
	uint64		generation;
	QueueKey	highest;		/* the last task claimed */
	bool		swept;			/* next_due was taken */
} Note;

static Note *notes = NULL;
static int	nnotes = 0;
static int	notes_size = 0;
static bool note_others = false;	/* something about a queue without a slot */
static void xact_callback(XactEvent event, void *arg);
static void subxact_callback(SubXactEvent event, SubTransactionId mine,
							 SubTransactionId parent, void *arg);

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
	dsa_pointer pointer = dsa_allocate0(area, sizeof(QueueSlot) * SLOTS);
	QueueSlot  *made = dsa_get_address(area, pointer);

	for (int i = 0; i < SLOTS; i++)
	{
		LWLockInitialize(&made[i].lock, shared->tranche);
		ConditionVariableInit(&made[i].waiters);
	}
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (!shared->made)
	{
		shared->slots = pointer;
		shared->made = true;
		pointer = InvalidDsaPointer;
	}
	LWLockRelease(&shared->lock);
	if (DsaPointerIsValid(pointer))
		dsa_free(area, pointer);
}

/* Find or make the shared structs.  Cheap after the first call. */
static void
attach(void)
{
	dsa_area   *area;
	bool		found;

	if (slots != NULL)
		return;
	doorbell_attach_queue();
	area = doorbell_area();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct(SHMEM_NAME, queue_shmem_size(), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(QueueShared));
		shared->tranche = coord_new_tranche("coord_task_queue");
		LWLockInitialize(&shared->lock, shared->tranche);
		pg_atomic_init_u32(&shared->notify, 0);
		ConditionVariableInit(&shared->others);
	}
	LWLockRelease(AddinShmemInitLock);
	coord_register_tranche(shared->tranche, "coord_task_queue");
	if (!shared->made)
		make_slots(area);

	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	slots = dsa_get_address(area, shared->slots);
}

/* Is a NOTIFY wanted for the queue?  The slot is locked. */
static void
set_notify(QueueSlot *slot, bool wanted)
{
	if (slot->notify == wanted)
		return;
	slot->notify = wanted;
	if (wanted)
		pg_atomic_fetch_add_u32(&shared->notify, 1);
	else
		pg_atomic_fetch_sub_u32(&shared->notify, 1);
}

/* Give a slot to a queue; QueueShared.lock is held. */
static void
init_slot(QueueSlot *slot, const char *queue, TimestampTz now)
{
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	slot->database = MyDatabaseId;
	slot->incarnation = ++shared->incarnation;
	strlcpy(slot->name, queue, sizeof(slot->name));
	slot->used_at = now;
	slot->generation = 0;
	slot->generation_read = false;
	slot->nlows = 0;
	memset(slot->marks, 0, sizeof(slot->marks));
	slot->highest = queue_end;
	slot->next_due = DT_NOBEGIN;
	slot->swept_at = 0;
	slot->swept_us = 0;
	slot->available = DT_NOBEGIN;
	memset(slot->ranks, 0, sizeof(slot->ranks));
	memset(slot->flows, 0, sizeof(slot->flows));
	slot->last_claim_at = 0;
	memset(&slot->bucket, 0, sizeof(slot->bucket));
	slot->limited = false;
	slot->serial = 0;
	set_notify(slot, false);
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

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SLOTS && result == NULL; i++)
	{
		QueueSlot  *slot = &slots[i];

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
	LWLockRelease(&shared->lock);
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

	attach();
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
 *		Marks
 * ----------------------------------------------------------------
 */

static int
compare_keys(const QueueKey *a, const QueueKey *b)
{
	if (a->rank != b->rank)
		return a->rank < b->rank ? -1 : 1;
	if (a->position != b->position)
		return a->position < b->position ? -1 : 1;
	return a->id < b->id ? -1 : a->id > b->id;
}

static QueueKey
lower_key(const QueueKey *a, const QueueKey *b)
{
	return compare_keys(a, b) <= 0 ? *a : *b;
}

/* The entry before "at" takes in that one. */
static void
merge_lows(QueueSlot *slot, int at)
{
	Low		   *to = &slot->lows[at - 1];
	Low		   *from = &slot->lows[at];

	to->until = from->until;
	to->span += from->span;
	to->key = lower_key(&to->key, &from->key);
	memmove(from, from + 1, sizeof(Low) * (slot->nlows - at - 1));
	slot->nlows--;
}

/*
 * Let everybody read again what comes behind "key"; the slot is locked.
 *
 * A generation that nobody has taken since it was begun can be used again.
 * Entries span the more generations the older they are: of three in a row with
 * the same span the older two become one.  So a claim that lasted a thousand
 * times as long as others still is not held back by what is older than itself
 * by more than that again.
 */
static void
lower_marks(QueueSlot *slot, const QueueKey *key)
{
	for (int i = 0; i < MARKS; i++)
		slot->marks[i].key = lower_key(&slot->marks[i].key, key);

	if (!slot->generation_read && slot->nlows > 0)
	{
		Low		   *low = &slot->lows[slot->nlows - 1];

		low->key = lower_key(&low->key, key);
		return;
	}
	if (slot->nlows == LOWS)
		merge_lows(slot, 1);
	slot->generation++;
	slot->generation_read = false;
	slot->lows[slot->nlows].until = slot->generation;
	slot->lows[slot->nlows].span = 1;
	slot->lows[slot->nlows].key = *key;
	slot->nlows++;
	for (int i = slot->nlows - 3; i >= 0; i--)
	{
		if (slot->lows[i].span == slot->lows[i + 1].span &&
			slot->lows[i + 1].span == slot->lows[i + 2].span)
			merge_lows(slot, i + 1);
	}
}

/* The mark of a role, with "create" also a new one; NULL; the slot is locked. */
static Mark *
find_mark(QueueSlot *slot, Oid role, bool create)
{
	Mark	   *oldest = &slot->marks[0];

	for (int i = 0; i < MARKS; i++)
	{
		if (slot->marks[i].role == role)
			return &slot->marks[i];
		if (slot->marks[i].used_at < oldest->used_at)
			oldest = &slot->marks[i];
	}
	if (!create)
		return NULL;
	memset(oldest, 0, sizeof(Mark));
	oldest->role = role;
	oldest->key = queue_start;
	return oldest;
}

/*
 * What was read up to "last" by a claim that began in "generation" is done with;
 * the slot is locked.
 */
static void
advance_mark(QueueSlot *slot, Oid role, QueueKey last, uint64 generation)
{
	Mark	   *mark = find_mark(slot, role, false);

	if (mark == NULL)
		return;
	for (int i = slot->nlows - 1; i >= 0 && slot->lows[i].until > generation; i--)
		last = lower_key(&last, &slot->lows[i].key);
	if (compare_keys(&mark->key, &last) < 0)
		mark->key = last;
}

/* ----------------------------------------------------------------
 *		Notes of the open transaction
 * ----------------------------------------------------------------
 */

/*
 * The note about a queue, or about the claims of "role" from it.  NULL when it
 * has no slot.  May raise out of memory.
 */
static Note *
get_note(QueueSlot *slot, Oid role)
{
	Note	   *note;

	if (slot == NULL)
	{
		note_others = true;
		return NULL;
	}
	for (int i = nnotes - 1; i >= 0; i--)
	{
		note = &notes[i];
		if (note->slot == slot && note->role == role &&
			note->incarnation == slot->incarnation)
			return note;
	}
	if (nnotes == notes_size)
	{
		int			size = notes_size ? notes_size * 2 : 16;

		if (notes == NULL)
			notes = MemoryContextAlloc(TopMemoryContext, size * sizeof(Note));
		else
			notes = repalloc(notes, size * sizeof(Note));
		notes_size = size;
	}
	note = &notes[nnotes++];
	memset(note, 0, sizeof(Note));
	note->slot = slot;
	note->incarnation = slot->incarnation;
	note->role = role;
	note->low = note->before = queue_end;
	note->highest = queue_start;
	note->due = DT_NOEND;
	return note;
}

static void
note_wake(Note *note, int count)
{
	if (count < 0)
		note->wake = -1;
	else if (note->wake >= 0)
		note->wake += count;
}

static void
note_lower(Note *note, QueueKey key)
{
	note->lower = true;
	note->low = lower_key(&note->low, &key);
}

/*
 * When this transaction commits, a task at this place is ready to be claimed.
 */
void
queue_ready_at_commit(const char *queue, int64 rank, int64 position)
{
	Note	   *note = get_note(queue_slot(queue), InvalidOid);
	QueueKey	key = {rank, position, 0};

	if (note == NULL)
		return;
	note_lower(note, key);
	note_wake(note, 1);
	note->notify = true;
}

/* When this transaction commits, any tasks of the queue may have become ready. */
void
queue_resumed_at_commit(const char *queue)
{
	Note	   *note = get_note(queue_slot(queue), InvalidOid);

	if (note == NULL)
		return;
	note_lower(note, queue_start);
	note_wake(note, -1);
	note->due = DT_NOBEGIN;
	note->notify = true;
}

/* When this transaction commits, something in the queue is due at "when". */
void
queue_due_at_commit(const char *queue, TimestampTz when)
{
	Note	   *note = get_note(queue_slot(queue), InvalidOid);

	if (note != NULL && when < note->due)
		note->due = when;
}

/* When this transaction commits, there is room for one more. */
void
queue_freed_at_commit(const char *queue)
{
	QueueSlot  *slot = queue_slot(queue);

	if (slot != NULL && slot->limited)
		note_wake(get_note(slot, InvalidOid), 1);
}

/* When this transaction commits, the queue's configuration is another. */
void
queue_config_changed_at_commit(const char *queue)
{
	Note	   *note = get_note(queue_slot(queue), InvalidOid);

	if (note == NULL)
		return;
	note->config = true;
	note_wake(note, -1);
}

/* Wake so many waiters; -1: all. */
static void
wake_waiters(QueueSlot *slot, int count)
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

/* The end of a transaction, as far as one note goes; raises nothing. */
static void
apply_note(const Note *note, bool commit)
{
	QueueSlot  *slot = note->slot;
	int			wake = 0;

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	if (slot->incarnation != note->incarnation)
	{
		/* It lost its slot meanwhile, and may have another one. */
		LWLockRelease(&slot->lock);
		queue_look_again();
		return;
	}
	if (commit)
	{
		if (note->lower)
			lower_marks(slot, &note->low);
		if (note->advance)
			advance_mark(slot, note->role, note->last, note->generation);
		if (compare_keys(&slot->highest, &note->highest) < 0)
			slot->highest = note->highest;
		slot->next_due = Min(slot->next_due, note->due);
		if (note->notify)
			set_notify(slot, true);
		slot->serial += note->config;
		wake = note->wake;
	}
	else if (OidIsValid(note->role))
	{
		if (compare_keys(&note->before, &queue_end) < 0)
			lower_marks(slot, &note->before);
		if (note->swept)
			slot->next_due = DT_NOBEGIN;
		wake = note->nclaimed;
	}
	LWLockRelease(&slot->lock);
	wake_waiters(slot, wake);
}

/*
 * At COMMIT this runs after the transaction has become visible to others, at
 * ABORT after its row locks have become void; nothing in it can raise an error.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	for (int i = 0; i < nnotes && event != XACT_EVENT_PREPARE; i++)
		apply_note(&notes[i], event == XACT_EVENT_COMMIT);
	if (note_others && event == XACT_EVENT_COMMIT)
		ConditionVariableBroadcast(&shared->others);
	nnotes = 0;
	note_others = false;
}

/*
 * What was claimed in a savepoint that is rolled back can be claimed again.  The
 * rest of what is noted stays: to wake or to lower too often does no harm.
 */
static void
subxact_callback(SubXactEvent event, SubTransactionId mine, SubTransactionId parent,
				 void *arg)
{
	for (int i = 0; i < nnotes; i++)
	{
		Note	   *note = &notes[i];

		if (!OidIsValid(note->role) || note->subid != mine)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			note->subid = parent;
		else if (event == SUBXACT_EVENT_ABORT_SUB)
		{
			apply_note(note, false);
			note->advance = false;
			note->nclaimed = 0;
			note->subid = parent;
		}
	}
}

/*
 * All queues of this database are to be read from the start: tasks may have
 * become ready of which nobody has told.  Raises nothing once attached.
 */
void
queue_look_again(void)
{
	attach();
	for (int i = 0; i < SLOTS; i++)
	{
		QueueSlot  *slot = &slots[i];

		if (slot->database != MyDatabaseId)
			continue;
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		if (slot->database == MyDatabaseId)
		{
			lower_marks(slot, &queue_start);
			slot->highest = queue_end;
			slot->next_due = DT_NOBEGIN;
			slot->serial++;
			set_notify(slot, true);
		}
		LWLockRelease(&slot->lock);
		ConditionVariableBroadcast(&slot->waiters);
	}
	ConditionVariableBroadcast(&shared->others);
}

/* ----------------------------------------------------------------
 *		Reading
 * ----------------------------------------------------------------
 */

/*
 * Begin to read a queue for claims of "role": where to read from.  To be called
 * before the snapshot is taken, and queue_reading_end() after the statement.
 */
void
queue_reading_begin(QueueReading *reading, const char *queue, Oid role)
{
	QueueSlot  *slot = queue_slot(queue);
	Mark	   *mark;

	reading->slot = slot;
	reading->role = role;
	reading->from = queue_start;
	if (slot == NULL)
		return;

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	reading->generation = slot->generation;
	slot->generation_read = true;
	mark = find_mark(slot, role, true);
	mark->used_at = GetCurrentTimestamp();
	reading->from = mark->key;
	LWLockRelease(&slot->lock);

	/* What this transaction itself has made ready, nobody has been told of. */
	for (int i = 0; i < nnotes; i++)
	{
		if (notes[i].slot == slot && notes[i].lower)
			reading->from = lower_key(&reading->from, &notes[i].low);
	}
}

/* Claims have come to "key"; the slot is locked. */
static void
advance_virtual_time(QueueSlot *slot, const QueueKey *key, TimestampTz now)
{
	for (int i = 0; i < RANKS; i++)
	{
		RankTime   *rank = &slot->ranks[i];

		if (rank->known && rank->rank == key->rank)
		{
			rank->now = Max(rank->now, key->position);
			rank->used_at = now;
		}
	}
}

/*
 * The tasks at these keys, in their order, were claimed; "all": there was nothing
 * more to claim.
 */
void
queue_reading_end(QueueReading *reading, const QueueKey *keys, int count, bool all)
{
	QueueSlot  *slot = reading->slot;
	QueueKey	last = all ? queue_end : keys[count - 1];
	bool		advance = !IsolationUsesXactSnapshot();
	Note	   *note;

	if (slot == NULL)
		return;
	if (count > 0)
	{
		QueueKey	before = keys[0];

		before.id--;
		note = get_note(slot, reading->role);
		note->before = lower_key(&note->before, &before);
		note->subid = GetCurrentSubTransactionId();
		note->nclaimed += count;
		note->advance = advance;
		note->last = last;
		note->generation = reading->generation;
		if (compare_keys(&note->highest, &keys[count - 1]) < 0)
			note->highest = keys[count - 1];
	}

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	if (count > 0)
	{
		TimestampTz now = GetCurrentTimestamp();

		slot->last_claim_at = clock_now();
		for (int i = 0; i < count; i++)
		{
			if (i == count - 1 || keys[i + 1].rank != keys[i].rank)
				advance_virtual_time(slot, &keys[i], now);
		}
		if (compare_keys(&slot->highest, &keys[count - 1]) < 0)
			slot->highest = keys[count - 1];
	}
	else if (advance)
		advance_mark(slot, reading->role, last, reading->generation);
	LWLockRelease(&slot->lock);
}

/*
 * The task at "key" was locked to see whether it could be claimed, and will be
 * free again when the transaction ends, whichever way.
 */
void
queue_locked(const char *queue, Oid role, const QueueKey *key)
{
	Note	   *note = get_note(queue_slot(queue), role);
	QueueKey	before = *key;

	if (note == NULL)
		return;
	before.id--;
	note->before = lower_key(&note->before, &before);
	note->subid = GetCurrentSubTransactionId();
	note->advance = false;
	note_lower(note, before);
	note_wake(note, 1);
}

/* ----------------------------------------------------------------
 *		What is due
 * ----------------------------------------------------------------
 */

/* Was the queue looked through long enough ago? */
static bool
may_sweep(const QueueSlot *slot, TimestampTz now, int64 at_least)
{
	return now < slot->swept_at ||
		now - slot->swept_at >= Max(at_least, LOOK_THROUGH_SHARE * slot->swept_us);
}

/*
 * Is the queue to be looked through, because something is due or because it was
 * not for a while?  If so the caller does that, and says by queue_swept() what he
 * found.
 */
bool
queue_take_due(QueueSlot *slot, Oid role, TimestampTz now)
{
	TimestampTz real_now = GetCurrentTimestamp();
	bool		result = false;
	Note	   *note;

	if (slot == NULL ||
		!may_sweep(slot, real_now, now >= slot->next_due ? 0 : LOOK_THROUGH_US))
		return false;
	note = get_note(slot, role);
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	if (may_sweep(slot, real_now, now >= slot->next_due ? 0 : LOOK_THROUGH_US))
	{
		slot->next_due = DT_NOEND;
		slot->swept_at = real_now;
		result = true;
	}
	LWLockRelease(&slot->lock);
	if (result)
	{
		note->swept = true;
		note->subid = GetCurrentSubTransactionId();
	}
	return result;
}

/*
 * A queue was looked through, which took "us": the next time that something in it
 * is due (DT_NOEND: none), the first task that can be claimed (NULL: none), and
 * since when the last of the delayed tasks that now can (DT_NOBEGIN: none).
 */
void
queue_swept(const char *queue, TimestampTz next, const QueueKey *first,
			TimestampTz available, int64 us)
{
	QueueSlot  *slot = queue_slot(queue);
	bool		wake;

	if (slot == NULL)
		return;
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	slot->next_due = Min(slot->next_due, next);
	slot->swept_us = us;
	wake = available > slot->available;
	if (wake)
	{
		slot->available = available;
		set_notify(slot, true);
	}
	if (first != NULL)
	{
		QueueKey	key = *first;

		key.id--;
		lower_marks(slot, &key);
	}
	LWLockRelease(&slot->lock);
	if (wake)
		wake_waiters(slot, -1);
}

/* ----------------------------------------------------------------
 *		Places
 * ----------------------------------------------------------------
 */

static RankTime *
find_rank(QueueSlot *slot, int64 rank)
{
	for (int i = 0; i < RANKS; i++)
	{
		if (slot->ranks[i].known && slot->ranks[i].rank == rank)
			return &slot->ranks[i];
	}
	return NULL;
}

/* A place for the virtual time of another rank; the slot is locked. */
static RankTime *
make_rank(QueueSlot *slot, int64 rank, int64 virtual_time)
{
	RankTime   *result = &slot->ranks[0];

	for (int i = 0; i < RANKS && result->known; i++)
	{
		if (!slot->ranks[i].known || slot->ranks[i].used_at < result->used_at)
			result = &slot->ranks[i];
	}
	for (int i = 0; i < FLOWS && result->known; i++)
	{
		if (slot->flows[i].rank == result->rank)
			slot->flows[i].definition = 0;
	}
	result->known = true;
	result->rank = rank;
	result->now = virtual_time;
	return result;
}

/*
 * What a definition was given last within a rank.  A new entry takes the place
 * of the one that is least ahead of its virtual time, whose loss means least.
 */
static Flow *
find_flow(QueueSlot *slot, int64 rank, int64 definition)
{
	Flow	   *result = NULL;
	int64		least = PG_INT64_MAX;

	for (int i = 0; i < FLOWS; i++)
	{
		if (slot->flows[i].definition == definition && slot->flows[i].rank == rank)
			return &slot->flows[i];
	}
	for (int i = 0; i < FLOWS && least > 0; i++)
	{
		Flow	   *flow = &slot->flows[i];
		RankTime   *time = flow->definition != 0 ? find_rank(slot, flow->rank) : NULL;
		int64		ahead = time != NULL ? Max(flow->last - time->now, 0) : 0;

		if (ahead < least || result == NULL)
		{
			result = flow;
			least = ahead;
		}
	}
	result->definition = definition;
	result->rank = rank;
	result->last = 0;
	return result;
}

/* What the table says of a rank: last positions by definition, and how far it is. */
typedef struct RankContents
{
	int64		virtual_time;
	int			nflows;			/* of those that are ahead, the farthest */
	Flow		flows[FLOWS];
} RankContents;

static void
read_rank(const char *queue, int64 rank, RankContents *contents)
{
	static Statement read = {
		"SELECT definition, max(position), min(position) FILTER (WHERE status = 'ready')"
		" FROM coord_internal.task WHERE queue = $1 AND rank = $2"
		" GROUP BY definition ORDER BY 2 DESC",
		2, {TEXTOID, INT8OID}
	};
	QueryScope	scope;
	Datum		values[2];
	int64		first = PG_INT64_MAX;
	int64		last = 0;
	uint64		rows;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(queue);
	values[1] = Int64GetDatum(rank);
	rows = query_run_latest(&read, values, NULL, 0);
	contents->nflows = Min((int) rows, FLOWS);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		int64		position = DatumGetInt64(query_value(i, 2, &isnull));

		last = Max(last, position);
		if (i < contents->nflows)
		{
			contents->flows[i].definition = DatumGetInt64(query_value(i, 1, &isnull));
			contents->flows[i].rank = rank;
			contents->flows[i].last = position;
		}
		position = DatumGetInt64(query_value(i, 3, &isnull));
		if (!isnull)
			first = Min(first, position);
	}
	query_end(&scope);
	contents->virtual_time = first < PG_INT64_MAX ? first - 1 : last;
}

/* Give "count" places within a known rank; the slot is locked. */
static int64
give_places(QueueSlot *slot, RankTime *time, int64 definition, int count)
{
	Flow	   *flow = find_flow(slot, time->rank, definition);
	int64		first = Max(time->now, flow->last) + 1;

	flow->last = first + count - 1;
	time->used_at = GetCurrentTimestamp();
	return first;
}

/*
 * The positions of "count" new tasks of a definition: the returned one and those
 * behind it.  See the file header.  May read tables; not to be called between
 * query_begin() and query_end().
 */
int64
queue_places(const char *queue, int64 rank, int64 definition, int count)
{
	QueueSlot  *slot = queue_slot(queue);
	RankContents contents;
	RankTime   *time;
	int64		first = 0;

	if (slot != NULL)
	{
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		time = find_rank(slot, rank);
		if (time != NULL)
			first = give_places(slot, time, definition, count);
		LWLockRelease(&slot->lock);
		if (first != 0)
			return first;
	}

	read_rank(queue, rank, &contents);
	if (slot == NULL)
	{
		first = contents.virtual_time;
		for (int i = 0; i < contents.nflows; i++)
		{
			if (contents.flows[i].definition == definition)
				first = Max(first, contents.flows[i].last);
		}
		return first + 1;
	}

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	time = find_rank(slot, rank);
	if (time == NULL)
	{
		time = make_rank(slot, rank, contents.virtual_time);
		for (int i = contents.nflows - 1; i >= 0; i--)
			find_flow(slot, rank, contents.flows[i].definition)->last = contents.flows[i].last;
	}
	first = give_places(slot, time, definition, count);
	LWLockRelease(&slot->lock);
	return first;
}

/* ----------------------------------------------------------------
 *		Limits
 * ----------------------------------------------------------------
 */

/*
 * Take up to "wanted" tokens of a queue that has "rate" of them per second.  The
 * bucket holds one second's worth, and one at least; after a restart it begins
 * with one.  When there is none, "wait_us" says when there will be.
 */
int
queue_take_tokens(QueueSlot *slot, double rate, int wanted, int64 *wait_us)
{
	Bucket	   *bucket = slot != NULL ? &slot->bucket : &own_bucket;
	TimestampTz now = clock_now();
	int			taken;

	if (slot != NULL)
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	if (bucket->at == 0)
		bucket->tokens = 1;
	else if (now > bucket->at)
		bucket->tokens += rate * (now - bucket->at) / USECS_PER_SEC;
	bucket->at = now;
	bucket->tokens = Min(bucket->tokens, Max(rate, 1));
	taken = (int) Min((double) wanted, bucket->tokens + 1e-6);
	bucket->tokens -= taken;
	*wait_us = taken > 0 ? 0 :
		(int64) Min((1 - bucket->tokens) / rate * USECS_PER_SEC, 1e15) + 1;
	if (slot != NULL)
		LWLockRelease(&slot->lock);
	return taken;
}

/* What was taken and not used. */
void
queue_return_tokens(QueueSlot *slot, int count)
{
	Bucket	   *bucket = slot != NULL ? &slot->bucket : &own_bucket;

	if (slot != NULL)
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	bucket->tokens += count;
	if (slot != NULL)
		LWLockRelease(&slot->lock);
}

/*
 * No task behind this key was ever claimed, so none there is running.  Tells
 * from then on those who end tasks to wake who waits for room.
 */
QueueKey
queue_highest_claimed(QueueSlot *slot)
{
	QueueKey	result = queue_end;

	if (slot == NULL)
		return result;
	slot->limited = true;
	LWLockAcquire(&slot->lock, LW_SHARED);
	result = slot->highest;
	LWLockRelease(&slot->lock);
	return result;
}

/* The last running task was found there; nobody else claims meanwhile. */
void
queue_set_highest_claimed(QueueSlot *slot, const QueueKey *key)
{
	if (slot == NULL)
		return;
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	slot->highest = *key;
	LWLockRelease(&slot->lock);
}

/* ----------------------------------------------------------------
 *		Waiting
 * ----------------------------------------------------------------
 */

/* To be called before looking for what is waited for. */
void
queue_prepare_to_wait(QueueSlot *slot)
{
	attach();
	ConditionVariablePrepareToSleep(slot != NULL ? &slot->waiters : &shared->others);
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
			until = Min(until, Max(slot->next_due, slot->swept_at +
								   LOOK_THROUGH_SHARE * slot->swept_us));
		LWLockRelease(&slot->lock);
	}
	if (until > now)
		(void) ConditionVariableTimedSleep(slot != NULL ? &slot->waiters : &shared->others,
										   (until - now) / 1000 + 1,
										   coord_wait_event(&wait_event, "CoordTaskClaim"));
	CHECK_FOR_INTERRUPTS();
}

/* Whoever was woken and leaves hands it on. */
void
queue_end_wait(QueueSlot *slot)
{
	coord_cancel_sleep(slot != NULL ? &slot->waiters : &shared->others);
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

	for (int i = 0; i < SLOTS; i++)
	{
		QueueSlot  *slot = &slots[i];
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
		set_notify(slot, false);
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

	attach();
	if (pg_atomic_read_u32(&shared->notify) == 0)
		return 0;
	channels = notify_wanted(GetCurrentTimestamp(), &next);
	if (channels == NIL)
		return next;
	send_notifications(channels);
	list_free_deep(channels);
	return next;
}
