/*-------------------------------------------------------------------------
 *
 * saga_queue_slot.h
 *	  What shared memory holds of a queue; private to saga_queue*.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_SAGA_QUEUE_SLOT_H
#define COORD_SAGA_QUEUE_SLOT_H

#include "postgres.h"

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/dsa.h"

#include "base/check.h"
#include "saga/saga_queue.h"

#define QUEUE_SLOTS 256
#define QUEUE_MARKS 4
#define QUEUE_LOWS 16
#define QUEUE_RANKS 8
#define QUEUE_FLOWS 64

/*
 * A queue is looked through this often, and at other times when there is reason
 * to, as long as that takes no more than this share of the time (one of so many
 * parts), a short while at first excepted.
 */
#define LOOK_THROUGH_US (5 * USECS_PER_SEC)
#define LOOK_THROUGH_SHARE 20
#define LOOK_THROUGH_FREE_US (50 * 1000)

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
	Low			lows[QUEUE_LOWS];		/* oldest first */
	Mark		marks[QUEUE_MARKS];
	QueueKey	highest;		/* no task behind it was ever claimed */
	TimestampTz next_due;		/* DT_NOBEGIN: now, DT_NOEND: never */
	TimestampTz swept_at;		/* looked through, for the last time */
	int64		sweep_debt;		/* us spent on it that time has not yet made good */
	TimestampTz available;		/* delayed tasks up to here were announced */

	RankTime	ranks[QUEUE_RANKS];
	Flow		flows[QUEUE_FLOWS];

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

/* Before and behind all tasks. */
#define QUEUE_START ((QueueKey) {PG_INT64_MIN, PG_INT64_MIN, PG_INT64_MIN})
#define QUEUE_END ((QueueKey) {PG_INT64_MAX, PG_INT64_MAX, PG_INT64_MAX})

/* Valid after queue_attach(). */
extern QueueShared *queue_shared;
extern QueueSlot *queue_slots;

/* saga_queue.c */
extern void queue_attach(void);
extern void queue_set_notify(QueueSlot *slot, bool wanted);
extern void queue_wake_waiters(QueueSlot *slot, int count);

/* saga_queue_mark.c */
extern TimestampTz queue_next_sweep(const QueueSlot *slot, TimestampTz now, bool due);
extern int	queue_compare_keys(const QueueKey *a, const QueueKey *b);
extern void queue_register_callbacks(void);

/* saga_queue_place.c */
extern void queue_advance_time(QueueSlot *slot, const QueueKey *key, TimestampTz now);

#endif							/* COORD_SAGA_QUEUE_SLOT_H */
