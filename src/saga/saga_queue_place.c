/*-------------------------------------------------------------------------
 *
 * saga_queue_place.c
 *	  Who comes next in a queue, and how many at a time.
 *
 * Tasks of equal rank are claimed in the order of their positions, which
 * are start tags of start-time fair queueing: with the virtual time V, the
 * position of the task claimed last, the n-th of a definition's new tasks gets
 * max(V, last position given to this definition) + n.  So whatever a definition
 * has queued, a task of another one stands right behind V.  Source: P. Goyal,
 * H. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996.  V belongs to a
 * rank, as claims of one rank say nothing of how far another has come.  After a
 * restart V and the last positions are read from the table.  Positions given to
 * a transaction that aborts are lost, which delays nobody else.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/query.h"
#include "saga/saga_queue_slot.h"
#include "saga/saga_task.h"

/* Tokens of a queue without a slot are this process's own. */
static Bucket own_bucket;

/* ----------------------------------------------------------------
 *		Places
 * ----------------------------------------------------------------
 */

static RankTime *
find_rank(QueueSlot *slot, int64 rank)
{
	for (int i = 0; i < QUEUE_RANKS; i++)
	{
		if (slot->ranks[i].known && slot->ranks[i].rank == rank)
			return &slot->ranks[i];
	}
	return NULL;
}

/* Claims have come to "key"; the slot is locked. */
void
queue_advance_time(QueueSlot *slot, const QueueKey *key, TimestampTz now)
{
	for (int i = 0; i < QUEUE_RANKS; i++)
	{
		RankTime   *rank = &slot->ranks[i];

		if (rank->known && rank->rank == key->rank)
		{
			rank->now = Max(rank->now, key->position);
			rank->used_at = now;
		}
	}
}

/* A place for the virtual time of another rank; the slot is locked. */
static RankTime *
make_rank(QueueSlot *slot, int64 rank, int64 virtual_time)
{
	RankTime   *result = &slot->ranks[0];

	for (int i = 0; i < QUEUE_RANKS && result->known; i++)
	{
		if (!slot->ranks[i].known || slot->ranks[i].used_at < result->used_at)
			result = &slot->ranks[i];
	}
	for (int i = 0; i < QUEUE_FLOWS && result->known; i++)
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

	for (int i = 0; i < QUEUE_FLOWS; i++)
	{
		if (slot->flows[i].definition == definition && slot->flows[i].rank == rank)
			return &slot->flows[i];
	}
	for (int i = 0; i < QUEUE_FLOWS && least > 0; i++)
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
	Flow		flows[QUEUE_FLOWS];
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
	contents->nflows = Min((int) rows, QUEUE_FLOWS);
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
	QueueKey	result = QUEUE_END;

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

