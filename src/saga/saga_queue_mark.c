/*-------------------------------------------------------------------------
 *
 * saga_queue_mark.c
 *	  Where to read a queue on.
 *
 * A claim reads a queue in the order of (rank, position, id).  If it
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
 *	  the queue also when that was not done for 5 s.  Where it takes long, it is
 *	  not done again before 20 times as long, so that 5 and 6 together take no
 *	  more than a twentieth of the time.
 * 7. A queue that has no place in the table is always read from the start.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "saga/saga.h"
#include "saga/saga_queue_slot.h"
#include "saga/saga_task.h"

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
/* ----------------------------------------------------------------
 *		Marks
 * ----------------------------------------------------------------
 */

int
queue_compare_keys(const QueueKey *a, const QueueKey *b)
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
	return queue_compare_keys(a, b) <= 0 ? *a : *b;
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
	for (int i = 0; i < QUEUE_MARKS; i++)
		slot->marks[i].key = lower_key(&slot->marks[i].key, key);

	if (!slot->generation_read && slot->nlows > 0)
	{
		Low		   *low = &slot->lows[slot->nlows - 1];

		low->key = lower_key(&low->key, key);
		return;
	}
	if (slot->nlows == QUEUE_LOWS)
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

	for (int i = 0; i < QUEUE_MARKS; i++)
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
	oldest->key = QUEUE_START;
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
	if (queue_compare_keys(&mark->key, &last) < 0)
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
	note->low = note->before = QUEUE_END;
	note->highest = QUEUE_START;
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
	note_lower(note, QUEUE_START);
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
		if (queue_compare_keys(&slot->highest, &note->highest) < 0)
			slot->highest = note->highest;
		slot->next_due = Min(slot->next_due, note->due);
		if (note->notify)
			queue_set_notify(slot, true);
		slot->serial += note->config;
		wake = note->wake;
	}
	else if (OidIsValid(note->role))
	{
		if (queue_compare_keys(&note->before, &QUEUE_END) < 0)
			lower_marks(slot, &note->before);
		if (note->swept)
			slot->next_due = DT_NOBEGIN;
		wake = note->nclaimed;
	}
	LWLockRelease(&slot->lock);
	queue_wake_waiters(slot, wake);
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
		ConditionVariableBroadcast(&queue_shared->others);
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

/* Once per process. */
void
queue_register_callbacks(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}

/*
 * All queues of this database are to be read from the start: tasks may have
 * become ready of which nobody has told.  Raises nothing once attached.
 */
void
queue_look_again(void)
{
	queue_attach();
	for (int i = 0; i < QUEUE_SLOTS; i++)
	{
		QueueSlot  *slot = &queue_slots[i];

		if (slot->database != MyDatabaseId)
			continue;
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		if (slot->database == MyDatabaseId)
		{
			lower_marks(slot, &QUEUE_START);
			slot->highest = QUEUE_END;
			slot->next_due = DT_NOBEGIN;
			slot->serial++;
			queue_set_notify(slot, true);
		}
		LWLockRelease(&slot->lock);
		ConditionVariableBroadcast(&slot->waiters);
	}
	ConditionVariableBroadcast(&queue_shared->others);
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
	reading->from = QUEUE_START;
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

/*
 * The tasks at these keys, in their order, were claimed; "all": there was nothing
 * more to claim.
 */
void
queue_reading_end(QueueReading *reading, const QueueKey *keys, int count, bool all)
{
	QueueSlot  *slot = reading->slot;
	QueueKey	last = all ? QUEUE_END : keys[count - 1];
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
		if (queue_compare_keys(&note->highest, &keys[count - 1]) < 0)
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
				queue_advance_time(slot, &keys[i], now);
		}
		if (queue_compare_keys(&slot->highest, &keys[count - 1]) < 0)
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

/*
 * When the queue may be looked through again: "due" for a reason, else because it
 * was not for a while.
 */
TimestampTz
queue_next_sweep(const QueueSlot *slot, TimestampTz now, bool due)
{
	int64		too_much = slot->sweep_debt - LOOK_THROUGH_FREE_US;

	if (now < slot->swept_at)
		return now;				/* the clock was set back */
	return slot->swept_at + Max(due ? 0 : LOOK_THROUGH_US, too_much * LOOK_THROUGH_SHARE);
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

	if (slot == NULL || real_now < queue_next_sweep(slot, real_now, now >= slot->next_due))
		return false;
	note = get_note(slot, role);
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	if (real_now >= queue_next_sweep(slot, real_now, now >= slot->next_due))
	{
		slot->next_due = DT_NOEND;
		slot->sweep_debt = Max(0, slot->sweep_debt -
							   Max(0, real_now - slot->swept_at) / LOOK_THROUGH_SHARE);
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
	slot->sweep_debt += us;
	wake = available > slot->available;
	if (wake)
	{
		slot->available = available;
		queue_set_notify(slot, true);
	}
	if (first != NULL)
	{
		QueueKey	key = *first;

		key.id--;
		lower_marks(slot, &key);
	}
	LWLockRelease(&slot->lock);
	if (wake)
		queue_wake_waiters(slot, -1);
}

